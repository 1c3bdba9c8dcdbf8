"""The guard of the judge: what an attack must not change is compared before and after it, and put back.

An attack gets copies, but it runs in the process of the referee, and may reach all of it: by mistake, or on purpose. What
can be put back is put back, with a note; where it cannot, the run is refused.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.process_state import ProcessState
from robustdup.attacks.watched_code import WatchedCode, alike, refill
from robustdup.errors import RunError
from robustdup.evaluation.context import Context
from robustdup.evaluation.held import Held, as_bytes
from robustdup.plugins.exits import no_exits

SHOWN = 5  # things that a note names
TABLES = ("_parameters", "_buffers", "_modules")  # of a module, besides its hooks


class Refused(RunError):
    """The judge was changed: what it says cannot be trusted. No attack may catch it, and no resumed run forgets it."""

    code = "model-changed"


class Guard:
    """What decides a result, as it was when the attacks began: the models' weights, the code, the settings of torch."""

    def __init__(self, context: Context) -> None:
        judged = [context.original.model]
        if context.attacked is not context.original.model:
            judged.append(context.attacked)
        self._context, self._code, models = context, WatchedCode(judged), list(judged)
        if context.attack_copy is not None:  # shared by robustdup's own attacks: what weakens it flatters the model
            models.append(getattr(context.attack_copy.model, "_orig_mod", context.attack_copy.model))
        self._weights = [_Weights(model) for model in models]
        self._models = [context.original, *models[1:]]  # with what counts the passes of the original
        self._process = os.getpid()

    def around(self, name: str, notes: list[str], judged_by: Any) -> _Watch:
        """Return the block in which an attack runs: it compares before and after, and notes what the attack changed.

        Args:
            name: of the attack.
            notes: are added to.
            judged_by: what the result will be judged by: images, labels, threat model.

        Raises:
            Refused: in the end, where something cannot be put back.
        """
        return _Watch(self, name, notes, judged_by)

    def check(self) -> None:
        """Raise Refused where what was judged last may have been judged by something else than the model."""
        changed = self._put_back()
        if changed:
            raise Refused(
                f"The judge was changed while it was at work ({_named(changed)}): its results cannot be trusted.",
            )

    def _put_back(self, state: ProcessState | None = None, parts: Sequence[Held | _Modules] = ()) -> list[str]:
        try:
            changed = self._code.put_back()
            changed += state.put_back() if state is not None else []
            for part in parts:
                changed += part.put_back()
            for weights in self._weights:
                changed += weights.put_back()
        except (Exception, SystemExit) as error:
            raise Refused(
                f"An attack changed what the judge stands on, and it cannot be put back ({type(error).__name__}: {error}): "
                "the results cannot be trusted."
            ) from error
        return list(dict.fromkeys(changed))


class _Watch:
    """The block in which one call of an attack runs. A class, since an attack may reach what contextlib makes blocks of."""

    def __init__(self, guard: Guard, name: str, notes: list[str], judged_by: Any) -> None:
        self._guard, self._name, self._notes, self._judged_by = guard, name, notes, judged_by

    def __enter__(self) -> None:
        guard = self._guard
        before = guard._put_back()
        if before:  # by what an attack left running
            self._notes.append(f"Between two calls of attacks these were changed, and put back: {_named(before)}.")
        self._state = ProcessState()
        held = Held(guard._context, whole=self._judged_by)
        self._parts: list[Held | _Modules] = [held, *(_Modules(model) for model in guard._models)]
        self._exits = no_exits()
        self._exits.__enter__()

    def __exit__(self, *error: object) -> None:
        try:
            self._exits.__exit__(None, None, None)
        finally:
            if os.getpid() != self._guard._process:  # a process that the attack forked, and that would go on as a run
                os._exit(1)
            changed = [*self._state.hold_still(), *self._guard._put_back(self._state, self._parts)]
            self._state.go_on()
            if changed:
                self._notes.append(
                    f"{self._name} changed what the judge stands on, and it was put back: {_named(changed)}."
                )


def guard_of(context: Context) -> Guard:
    """Return the guard of an evaluation, made when its first attack is about to run."""
    guard = context.guard
    if not isinstance(guard, Guard):
        guard = context.guard = Guard(context)
    return guard


def _named(changed: list[str]) -> str:
    more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    return f"{', '.join(changed[:SHOWN])}{more}"


def _same(tensor: Tensor, kept: Tensor) -> bool:
    alike = tensor.shape == kept.shape and tensor.dtype == kept.dtype and tensor.device == kept.device
    if not alike or tensor.layout != torch.strided:
        return alike and tensor.layout == kept.layout
    return tensor.numel() == 0 or torch.equal(as_bytes(tensor), as_bytes(kept))


class _Weights:
    """The parameters and buffers of a model, and a copy of their values."""

    def __init__(self, model: nn.Module) -> None:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._kinds = [(name, tensor, type(tensor)) for name, tensor in tensors.items()]
        self._kept = [(name, tensor, tensor.detach().clone()) for name, tensor in tensors.items()]
        self._asked = [(name, tensor, tensor.requires_grad) for name, tensor in tensors.items()]

    @torch.no_grad()
    def put_back(self) -> list[str]:
        changed = []
        for name, tensor, kind in self._kinds:  # first: what a class says of its tensors is its own word
            if type(tensor) is not kind:
                changed.append(f"the class of the weights {name}")
                object.__setattr__(tensor, "__class__", kind)
        for name, tensor, kept in self._kept:
            if not _same(tensor, kept):
                changed.append(f"the weights {name}")
                tensor.data = kept.clone()
        for name, tensor, asked in self._asked:
            if tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None):
                changed.append(f"hooks of the weights {name}")
                hooked: Any = tensor
                hooked._backward_hooks = hooked._post_accumulate_grad_hooks = None
            if tensor.requires_grad != asked and tensor.is_leaf:
                tensor.requires_grad_(asked)
        return changed


@dataclass
class _Module:
    """What a module held at one time: its attributes, tensors with their values, and what is in the tables of torch."""

    module: nn.Module
    kind: type
    content: dict[str, Any]
    inner: dict[str, Any]
    tensors: dict[str, tuple[type, Tensor]]


class _Modules:
    """All modules of a model: classes, hooks, attributes, and which parts belong to which."""

    def __init__(self, model: nn.Module) -> None:
        self._kept = [_kept(module) for module in model.modules()]

    def put_back(self) -> list[str]:
        """Put back what is different, and return what of it is more than a module's memory of its last call."""
        changed = []
        for kept in self._kept:
            changed += _put_back(kept)
        return changed


def _kept(module: nn.Module) -> _Module:
    content = dict(vars(module))
    inner = {name: value.copy() for name, value in content.items() if _is_table(name, value)}
    tensors = {
        name: (type(value), value.detach().clone()) for name, value in content.items() if isinstance(value, Tensor)
    }
    return _Module(module, type(module), content, inner, tensors)


def _is_table(name: str, value: Any) -> bool:
    return isinstance(value, dict) and (name in TABLES or "hooks" in name)


def _put_back(kept: _Module) -> list[str]:
    module, now, label = kept.module, vars(kept.module), kept.kind.__name__
    changed = []
    if type(module) is not kept.kind:
        changed.append(f"the class of {label}")
        object.__setattr__(module, "__class__", kept.kind)
    for name in list(now):
        if name not in kept.content:
            if callable(now[name]):
                changed.append(f"{label}.{name}")
            del now[name]
    for name, value in kept.content.items():
        if now.get(name) is not value or name not in now:
            if callable(value) or callable(now.get(name)) or name in ("training", *TABLES):
                changed.append(f"{label}.{name}")
            now[name] = value
        if name in kept.inner and not alike(value, kept.inner[name]):
            changed.append(f"{label}.{name}")
            refill(value, kept.inner[name])
        if name in kept.tensors:
            of_type, before = kept.tensors[name]
            object.__setattr__(value, "__class__", of_type)
            if not _same(value, before):
                with torch.no_grad():
                    value.data = before.clone()
    return changed
