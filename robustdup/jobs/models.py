"""Models of a run, fitted to its data: what they take, what they answer, and which of their outputs is which class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustdup.attacks.isolation import isolated
from robustdup.config import EvalConfig
from robustdup.data.dataset import ImageDataset
from robustdup.errors import UserError
from robustdup.evaluation.calls import PlannedStage
from robustdup.jobs.usual_classes import by_usual_order
from robustdup.models.adapt import Adaptation, Look, adapted, inner, look_at, names_of, notes_of, usable_copy
from robustdup.models.class_names import ClassMatch, match_classes
from robustdup.models.normalisation import Normalisation, parse_normalisation, usual
from robustdup.records import Diagnostic
from robustdup.statistics import mcnemar

LOW = 0.7  # clean accuracy below which other normalisations are tried
TRIED_ON = 128  # samples at most
GRADIENT_SOURCES = ("native", "torchattacks", "foolbox", "art", "robustbench", "advlib")  # whose word on it is known
SEES_THROUGH = "straight-through"
FITS = "surrogate"  # asks for answers where there is no gradient
GAIN, P_VALUE = 0.1, 1e-3  # by how much, and how surely, one must do better to be named


@dataclass(frozen=True)
class Fitted:
    """A model as it is judged or attacked, how it was adapted, and what a reader should know of that."""

    model: nn.Module
    adaptation: Adaptation
    notes: tuple[str, ...] = ()
    signs: tuple[Diagnostic, ...] = ()
    has_gradient: bool = True


def fit_model(
    model: nn.Module, data: ImageDataset, config: EvalConfig, device: torch.device, *, search: bool = True
) -> Fitted:
    """Return a model as a classifier of the data.

    Args:
        model: images (N, C, H, W) in [0, 1], or normalised as `config.normalize` says, -> logits, or what holds them.
        data: the images, with labels, and the names of the classes where they are known.
        config: `normalize`, `class_names`, `mode`, `micro_batch` and `seed` are asked.
        device: where to ask the model about a few images.
        search: whether to look for a better normalisation where few of these images are classified correctly.

    Raises:
        UserError: where the classes of model and data cannot be the same, or the normalisation has other channels.
    """
    wanted = Adaptation(normalise=parse_normalisation(config.normalize))
    if wanted.normalise is not None:
        wanted.normalise.layer(data.images.shape[1])
    with isolated(model):  # also its mode, where it cannot be copied
        return _fitted(model, wanted, data, config, device, search=search)


def _fitted(
    model: nn.Module, wanted: Adaptation, data: ImageDataset, config: EvalConfig, device: torch.device, *, search: bool
) -> Fitted:
    eyes = _Eyes(usable_copy(model, device, eval_mode=config.mode == "eval"), data, config, device)
    look = eyes.look(wanted)
    if look is None:  # it fails, or gives no logits: judging it says so
        return Fitted(adapted(model, wanted), wanted, tuple(notes_of(model)))
    match = ClassMatch()
    if data.outputs is not None and look.logits.shape[1] > max(data.outputs):
        match = ClassMatch(order=data.outputs)
    elif config.class_names == "compare":
        names, labels = names_of(model), sorted(set(data.labels.tolist()))
        match = match_classes(names, data.class_names, outputs=look.logits.shape[1], labels=labels)
        if not names:
            logits = look.logits
            match = by_usual_order(data.class_names, logits.shape[1], lambda order: eyes.right(logits[:, list(order)]))
    adaptation = replace(look.adaptation, order=match.order)
    signs = [_doubtful_classes(match)] if match.doubtful else []
    notes = [*notes_of(model), *look.notes, *([match.note] if match.note and not match.doubtful else [])]
    answers = look.logits if match.order is None else look.logits[:, list(match.order)]
    if (
        search
        and eyes.right(answers) < LOW
        and (better := _better_normalisation(eyes, adaptation, data.images.shape[1])) is not None
    ):
        signs.append(better)
    return Fitted(adapted(model, adaptation), adaptation, tuple(notes), tuple(signs), look.has_gradient)


def check_gradient(fitted: Fitted, stages: Sequence[PlannedStage], *, stand_in: bool) -> list[str]:
    """Return what to say where attacks need gradients and none reach the images: now, and not after they all have failed.

    Raises UserError where no attack of the run can do anything about it.
    """
    white = [s.spec for s in stages if s.spec.knowledge == "white-box" and s.spec.source in GRADIENT_SOURCES]
    needing = [spec.name for spec in white if spec.name != FITS]
    if fitted.has_gradient or not needing:
        return []
    which = "attacked model (--attack-model)" if stand_in else "model"
    without = (
        f"No gradient of the {which}'s logits reaches the images. Its forward runs under torch.no_grad() or "
        "inference_mode(), or detaches (.detach(), .data, .numpy(), a round trip through PIL)."
    )
    if not stand_in and SEES_THROUGH in needing:
        return [f"{without} Attacks that follow it cannot run; {SEES_THROUGH} tries to see through."]
    names = ", ".join(dict.fromkeys(needing))
    if (why := getattr(inner(fitted.model), "why_no_gradient", None)) is not None:
        raise UserError(f"{names} follow gradients, and this {which} has none. {why}", code="no-gradient")
    raise UserError(
        f"{without} These attacks follow it: {names}. Take that out; or attack a differentiable stand-in and judge this "
        "model: --attack-model …; or try to see through: --attacks fast; or use attacks that ask for no gradient: "
        "--attacks square.",
        code="no-gradient",
    )


class _Eyes:
    """Looks at one model on images from all over the data, in calls of one size."""

    def __init__(self, model: nn.Module, data: ImageDataset, config: EvalConfig, device: torch.device) -> None:
        self.model, self.data, self.device, self.seed = model, data, device, config.seed
        self.rows = config.micro_batch or (256 if device.type == "cuda" else 32)

    def look(self, adaptation: Adaptation) -> Look | None:
        """Ask the model about one call's images."""
        images = self.data.images[_spread(len(self.data), self.rows)]
        look = look_at(self.model, self._full(images), adaptation, seed=self.seed)
        return None if look is None else replace(look, logits=look.logits[: len(images)].cpu())

    def right(self, logits: Tensor) -> float:
        """Return the share of one call's images that these logits (n, K) classify correctly."""
        labels = self.data.labels[_spread(len(self.data), self.rows)]
        return float((logits.argmax(dim=1) == labels).double().mean())

    def correct(self, adaptation: Adaptation) -> Tensor | None:
        """Return which of some samples (n,) are classified correctly; None where the model fails."""
        model = adapted(self.model, adaptation)
        rows = _spread(len(self.data), TRIED_ON)
        some = self.data.images[rows]
        try:
            with isolated(model, seed=self.seed), torch.no_grad():
                parts = [model(self._full(part))[: len(part)].cpu() for part in torch.split(some, self.rows)]
        except Exception:  # noqa: BLE001
            return None
        return torch.cat(parts).argmax(dim=1) == self.data.labels[rows]

    def _full(self, images: Tensor) -> Tensor:
        """Return images on the device, the last repeated until there are as many as in every call."""
        missing = self.rows - len(images)
        images = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])]) if missing > 0 else images
        return images.to(self.device)


def _spread(n: int, count: int) -> Tensor:
    """Return at most `count` of n positions, evenly spaced: samples may come in order of class."""
    return torch.linspace(0, n - 1, min(n, count)).round().long()


def _doubtful_classes(match: ClassMatch) -> Diagnostic:
    return Diagnostic(
        code="class_names",
        severity="serious",
        message=match.note,
        advice="Look at both lists; --class-names ignore says that the numbers are right.",
    )


def _better_normalisation(eyes: _Eyes, adaptation: Adaptation, channels: int) -> Diagnostic | None:
    """Return a sign where few images are classified correctly, and many more with another of the usual normalisations."""
    correct = eyes.correct(adaptation)
    if correct is None or float(correct.double().mean()) >= LOW:
        return None
    best: tuple[float, Normalisation | None] | None = None
    before = float(correct.double().mean())
    for way in usual(channels, adaptation.normalise):
        other = eyes.correct(replace(adaptation, normalise=way))
        if other is None:
            continue
        share = float(other.double().mean())
        if share - before < GAIN or (best is not None and share <= best[0]):
            continue
        if mcnemar(int((other & ~correct).sum()), int((correct & ~other).sum())) < P_VALUE:
            best = share, way
    if best is None:
        return None
    name = "none" if best[1] is None else best[1].text
    now = "" if adaptation.normalise is None else f" with --normalize {adaptation.normalise.text}"
    return Diagnostic(
        code="normalisation",
        severity="serious",
        message=f"Clean accuracy is {before:.1%}{now}; with --normalize {name} it is {best[0]:.1%} "
        f"on {len(correct)} samples.",
        advice=f"The model seems to want its images in another form. If so, run again with --normalize {name}.",
    )
