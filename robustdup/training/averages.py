"""Averages of the weights over the steps: exponential (EMA) and, from some step on, equal (SWA)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn


class Averages:
    """The averaged copies of a model: what is validated and saved in its place.

    `ema` is the decay of the exponential average (0: none), over weights and buffers. While it is young its decay is
    (1 + n) / (10 + n) after n updates where that is less, so that a short run does not keep its first weights. From
    `swa_start` steps on (None: never) weights are averaged equally. https://arxiv.org/abs/1803.05407
    """

    def __init__(self, model: nn.Module, *, ema: float = 0.0, swa_start: int | None = None) -> None:
        self.decay, self.swa_start = ema, swa_start
        self.ema = _averaged(model, self._ema_step, use_buffers=True) if ema else None
        self.swa = _averaged(model, self._swa_step, use_buffers=False) if swa_start is not None else None
        self.n_ema = self.n_swa = 0

    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after optimizer step number `step` (the first is 1)."""
        if self.ema is not None:
            self.ema.update_parameters(model)
            self.n_ema += 1
        if self.swa is not None and self.swa_start is not None and step > self.swa_start:
            self.swa.update_parameters(model)
            self.n_swa += 1

    def chosen(self, model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
        """Return the model to validate and save: SWA once it has begun, else EMA, else `model`.

        The statistics of BatchNorm of SWA weights are measured on `batches` of training images (n, C, H, W).
        """
        if self.swa is not None and self.n_swa:
            update_bn(batches, self.swa.module)
            return self.swa.module
        if self.ema is not None and self.n_ema:
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

    def _ema_step(self, averaged: Any, current: Any, _: Any) -> None:
        decay = min(self.decay, (1 + self.n_ema) / (10 + self.n_ema))
        get_ema_multi_avg_fn(decay)(averaged, current, 0)  # type: ignore[no-untyped-call]

    def _swa_step(self, averaged: Any, current: Any, _: Any) -> None:
        get_swa_multi_avg_fn()(averaged, current, self.n_swa)  # type: ignore[no-untyped-call]


def _averaged(model: nn.Module, step: Any, *, use_buffers: bool) -> AveragedModel:
    average = AveragedModel(model, multi_avg_fn=step, use_buffers=use_buffers)
    average.requires_grad_(False)
    average.n_averaged = torch.zeros_like(average.n_averaged, device="cpu")  # asked each step: must not wait for a GPU
    return average
