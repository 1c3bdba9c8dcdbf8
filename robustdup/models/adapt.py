"""A model that others wrote, as the classifier that is meant: images in [0, 1] in, logits (N, K) in the data's order out.

A few images show what a model answers: a tensor, a tuple, an object that holds logits, one logit for two classes, classes
masked with minus infinity. What has to be done for it to be a classifier is written down as an `Adaptation`, which a worker
or a verifier applies again, and `Adapted` does it. A model that is a classifier already is left alone.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.errors import UserError
from robustdup.models.attack_copy.agreement import undisturbed
from robustdup.models.normalisation import Normalisation

MASKED = -1e4  # stands for a logit of minus infinity: no attack can divide by it or subtract it in vain
LOGIT_NAMES = ("logits", "logit", "out", "output", "outputs", "pred", "preds", "prediction", "scores", "y_hat")


@dataclass(frozen=True)
class Adaptation:
    """What is done around a model.

    Args:
        normalise: put before it.
        item: which item of a tuple holds its logits.
        key: under which key a mapping does.
        attribute: under which name an object does.
        one_logit: whether it gives one number for two classes, above 0 for the second.
        masked: whether it gives minus infinity for classes that it rules out.
        order: the outputs in the order of the data's classes.
    """

    normalise: Normalisation | None = None
    item: int | None = None
    key: str | None = None
    attribute: str | None = None
    one_logit: bool = False
    masked: bool = False
    order: tuple[int, ...] | None = None


PLAIN = Adaptation()


class Adapted(nn.Module):
    """A model with an `Adaptation` around it: images (N, C, H, W) in [0, 1] -> logits (N, K)."""

    def __init__(self, model: nn.Module, adaptation: Adaptation) -> None:
        super().__init__()
        self.model = model
        self.adaptation = adaptation
        self.normalise = None if adaptation.normalise is None else adaptation.normalise.layer()
        order = None if adaptation.order is None else torch.tensor(adaptation.order)
        self.register_buffer("order", order)
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of `images`."""
        answer = self.model(images if self.normalise is None else self.normalise(images))
        how = self.adaptation
        if how.item is not None:
            answer = answer[how.item]
        elif how.key is not None:
            answer = answer[how.key]
        elif how.attribute is not None:
            answer = getattr(answer, how.attribute)
        if how.one_logit:
            half = answer.reshape(-1, 1) / 2  # the softmax of both is the sigmoid of the one
            answer = torch.cat([-half, half], dim=1)
        if how.masked:
            answer = torch.where(answer == -torch.inf, MASKED, answer)
        if self.order is not None:
            answer = answer[:, self.order]
        return answer  # type: ignore[no-any-return]


def adapted(model: nn.Module, adaptation: Adaptation) -> nn.Module:
    """Return a model with an adaptation around it; the model itself where nothing is to be done."""
    return model if adaptation == PLAIN else Adapted(model, adaptation)


def inner(model: nn.Module) -> nn.Module:
    """Return the model that was adapted; any other as it is."""
    while isinstance(model, Adapted):
        model = model.model
    return model


def order_of(model: nn.Module) -> list[int] | None:
    """Return which output is class 0, 1, …, where a model was adapted to another order."""
    order = model.adaptation.order if isinstance(model, Adapted) else None
    return None if order is None else list(order)


def names_of(model: nn.Module) -> list[str]:
    """Return the names of a model's outputs, which its source or its author keeps in `class_names`; [] where unknown."""
    names = getattr(inner(model), "class_names", None)
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return list(names)
    return []


def keep_names(model: nn.Module, names: Sequence[str]) -> None:
    """Let a model carry the names of its outputs, unless it has some of its own."""
    if names and not names_of(model):
        inner(model).class_names = list(names)  # type: ignore[assignment]


def keep_notes(model: nn.Module, notes: Sequence[str]) -> None:
    """Let a model carry what a reader should know of how it was loaded."""
    if notes:
        inner(model).load_notes = [*notes_of(model), *notes]  # type: ignore[assignment]


def notes_of(model: nn.Module) -> list[str]:
    """Return what a reader should know of how a model was loaded."""
    notes = getattr(inner(model), "load_notes", None)
    return [str(note) for note in notes] if isinstance(notes, list) else []


@dataclass(frozen=True)
class Look:
    """What a few images showed of a model: its `logits` (n, K) on them, once adapted, and whether gradients reach them."""

    adaptation: Adaptation
    logits: Tensor
    has_gradient: bool
    notes: tuple[str, ...]


def look_at(model: nn.Module, images: Tensor, adaptation: Adaptation, *, seed: int = 0) -> Look | None:
    """Ask a model about images (n, C, H, W) in [0, 1] once, and say how its answers become logits.

    The model, its random state and its buffers stay as they are. Returns None where it fails, or answers what cannot be
    logits: who judges it says so, with what to do.
    """
    try:
        with undisturbed(model, seed), torch.enable_grad():
            asked = images.detach().clone().requires_grad_(True)
            answer = adapted(model, replace(adaptation, order=None))(asked * 1.0)  # a leaf must not be written to
        adaptation, answer, notes = _picked(answer, adaptation)
        logits, adaptation, more = _as_logits(answer, adaptation, len(images))
    except Exception:  # noqa: BLE001
        return None
    return Look(adaptation, logits.detach(), _reaches(logits, asked), (*notes, *more))


def _reaches(logits: Tensor, images: Tensor) -> bool:
    """Say whether a gradient of the logits flows to the images, a leaf; that of the weights alone is none."""
    waiting = [] if logits.grad_fn is None else [logits.grad_fn]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if getattr(node, "variable", None) is images:
            return True
        further = {function for function, _ in node.next_functions if function is not None} - seen
        seen |= further
        waiting += further
    return False


def _picked(answer: Any, adaptation: Adaptation) -> tuple[Adaptation, Any, list[str]]:
    """Find the tensor in what a model returned: it itself, the first of a tuple, or what is called logits."""
    if isinstance(answer, Tensor):
        return adaptation, answer, []
    if isinstance(answer, Mapping):
        tensors = [key for key, value in answer.items() if isinstance(key, str) and isinstance(value, Tensor)]
        names = [name for name in LOGIT_NAMES if name in tensors] or (tensors if len(tensors) == 1 else [])
        if names:
            note = f"The model returns a mapping; its {names[0]!r} is taken for the logits."
            return replace(adaptation, key=names[0]), answer[names[0]], [note]
    name = next((name for name in LOGIT_NAMES if isinstance(getattr(answer, name, None), Tensor)), None)
    if name is not None:
        note = f"The model returns a {type(answer).__name__}; its {name!r} is taken for the logits."
        return replace(adaptation, attribute=name), getattr(answer, name), [note]
    if isinstance(answer, tuple | list):
        items = [number for number, value in enumerate(answer) if isinstance(value, Tensor)]
        if len(items) == 1:  # of several, (features, logits) or (logits, features), nobody can tell
            note = f"The model returns {len(answer)} things; its only tensor is taken for the logits."
            return replace(adaptation, item=items[0]), answer[items[0]], [note]
    raise UserError("The model returns no logits.", code="no-logits")


def _as_logits(answer: Tensor, adaptation: Adaptation, rows: int) -> tuple[Tensor, Adaptation, list[str]]:
    """Return logits (rows, K) of what was picked. Raises UserError where its shape is another."""
    notes = []
    if answer.shape in ((rows, 1), (rows,)):
        adaptation = replace(adaptation, one_logit=True)
        half = answer.reshape(-1, 1) / 2
        answer = torch.cat([-half, half], dim=1)
        notes.append("The model has one output: above 0 it means class 1, below it class 0.")
    if answer.ndim != 2 or answer.shape[0] != rows or not answer.shape[1] or not answer.dtype.is_floating_point:
        raise UserError("The model returns no logits.", code="no-logits")
    ruled_out = answer == -torch.inf
    if bool(ruled_out.any()) and bool((ruled_out.sum(dim=1) < answer.shape[1]).any()):
        adaptation = replace(adaptation, masked=True)
        always = ruled_out.all(dim=0).nonzero()[:, 0].tolist()
        which = f"classes {', '.join(map(str, always))}" if always else "some classes of some images"
        notes.append(f"The model rules out {which} (logits of minus infinity): images of them count as wrong.")
        answer = torch.where(ruled_out, MASKED, answer)
    return answer, adaptation, notes


def usable_copy(model: nn.Module, device: torch.device, *, eval_mode: bool) -> nn.Module:
    """Return a float32 copy of a model on a device, or the model itself where it cannot be copied. Raises as `placed`."""
    with contextlib.suppress(Exception):  # a model may refuse to be copied in any way
        model = copy.deepcopy(model).to(dtype=torch.float32)
    model = placed(model, device)
    return model.eval() if eval_mode else model


def placed(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Return a model moved to a device.

    Raises:
        UserError: it has weights without values, as on torch's device "meta".
    """
    try:
        return model.to(device)
    except NotImplementedError as error:
        if not any(value.is_meta for value in (*model.parameters(), *model.buffers())):
            raise
        raise UserError(
            f"The model cannot be moved to {device}, as weights of it have no values (they are on torch's device 'meta'): load "
            "them first, or build the model on the CPU.",
            code="no-values",
        ) from error
