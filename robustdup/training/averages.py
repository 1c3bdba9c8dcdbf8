"""Averages of the weights over the steps: exponential (EMA) and, from some step on, equal (SWA)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn


class Averages:
    """The averaged copies of a model: what is validated and saved in its place.

    `ema` is the decay of the exponential average (0: none), over weights and buffers. While it is young its decay is
    (1 + n) / (10 + n) after n updates where that is less, so that a short run does not keep its first weights. From
    `swa_start` steps on (None: never) weights are averaged equally. https://arxiv.org/abs/1803.05407
    """

    def __init__(self, model: nn.Module, *, ema: float = 0.0, swa_start: int | None = None) -> None:
        self.decay, self.swa_start = ema, swa_start
        self.ema = _averaged(model, use_buffers=True) if ema else None
        self.swa = _averaged(model, use_buffers=False) if swa_start is not None else None
        self.n_ema = self.n_swa = 0

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after optimizer step number `step` (the first is 1), without a wait for a GPU."""
        if self.ema is not None:
            decay = min(self.decay, (1 + self.n_ema) / (10 + self.n_ema))
            _move(self.ema, model, 1 - decay if self.n_ema else 1.0, buffers=True)
            self.n_ema += 1
        if self.swa is not None and self.swa_start is not None and step > self.swa_start:
            _move(self.swa, model, 1 / (self.n_swa + 1), buffers=False)
            self.n_swa += 1

    def chosen(self, model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
        """Return the model to validate and save: SWA once it has begun, else EMA, else `model`.

        The statistics of BatchNorm of SWA weights are measured on `batches` of training images (n, C, H, W).
        """
        if self.swa is not None and self.n_swa:
            _copy(model.buffers(), self.swa.module.buffers())
            update_bn(batches, self.swa.module)
            return self.swa.module
        if self.ema is not None and self.n_ema:
            _copy(_counters(model), _counters(self.ema.module))
            return self.ema.module
        return model

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on."""
        state: dict[str, Any] = {"n_ema": self.n_ema, "n_swa": self.n_swa}
        for name, average in (("ema", self.ema), ("swa", self.swa)):
            if average is not None:
                state[name] = average.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.n_ema, self.n_swa = state["n_ema"], state["n_swa"]
        for name, average in (("ema", self.ema), ("swa", self.swa)):
            if average is not None:
                average.load_state_dict(state[name])


def _averaged(model: nn.Module, *, use_buffers: bool) -> AveragedModel:
    """Return a copy of the model to average in; torch's class says how it is saved, and `_move` how it moves."""
    average = AveragedModel(model, use_buffers=use_buffers)
    average.requires_grad_(False)
    average.n_averaged = torch.zeros_like(average.n_averaged, device="cpu")
    return average


@torch.no_grad()
def _move(average: AveragedModel, model: nn.Module, weight: float, *, buffers: bool) -> None:
    """Move the averaged weights (and `buffers`) towards the model's by `weight`, all in one call a dtype."""
    average.n_averaged += 1
    pairs = zip(_values(average.module, buffers), _values(model, buffers), strict=True)
    floats = [(own, other) for own, other in pairs if own.is_floating_point()]
    averaged, current = [own for own, _ in floats], [other.detach() for _, other in floats]
    if weight == 1:
        torch._foreach_copy_(averaged, current)
    else:
        torch._foreach_lerp_(averaged, current, weight)


def _values(model: nn.Module, buffers: bool) -> list[Tensor]:
    return [*model.parameters(), *(model.buffers() if buffers else ())]


def _counters(model: nn.Module) -> Iterator[Tensor]:
    """Yield the buffers that are no floats, such as BatchNorm's count of batches: there is no average of them."""
    return (buffer for buffer in model.buffers() if not buffer.is_floating_point())


@torch.no_grad()
def _copy(values: Iterable[Tensor], into: Iterable[Tensor]) -> None:
    for value, place in zip(values, into, strict=True):
        place.copy_(value)
