"""Where a run stands: what changes from step to step, and what a checkpoint holds of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from robustdup.records import TrainPasses, TrainPoint
from robustdup.training.averages import Averages
from robustdup.training.meter import Meter
from robustdup.training.updates import UpdateRule
from robustdup.training.validation import Selection


class State:
    """The state of a run. A checkpoint holds all of it: from there the run goes on as if nothing had happened.

    `model` is everything that is trained. `batch` is the number of the next batch, `step` that of optimizer steps made,
    `step_before` that at the beginning of the last batch. `curve`, `passes` and `events` go into the record.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        averages: Averages,
        update: UpdateRule,
        device: torch.device,
    ) -> None:
        self.model, self.optimizer, self.averages, self.update = model, optimizer, averages, update
        self.meter, self.selection, self.clock = Meter(device), Selection(), Clock()
        self.batch = self.step = self.step_before = 0
        self.curve: list[TrainPoint] = []
        self.passes = TrainPasses()
        self.events: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors, numbers, texts, and lists and dicts of them."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averages": self.averages.state_dict(),
            "update": self.update.state_dict(),
            "selection": self.selection.state_dict(),
            "meter": self.meter.state_dict(),
            "batch": self.batch,
            "step": self.step,
            "curve": [point.model_dump() for point in self.curve],
            "passes": self.passes.model_dump(),
            "seconds": self.clock.training,
            "validation_seconds": self.clock.validation,
            "events": list(self.events),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, same_session: bool = False) -> None:
        """Go on from `state_dict()`; in the `same_session` the clock runs on, since the time was spent."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.averages.load_state_dict(state["averages"])
        self.update.load_state_dict(state["update"])
        self.selection.load_state_dict(state["selection"])
        self.meter.load_state_dict(state["meter"])
        self.batch, self.step, self.step_before = state["batch"], state["step"], state["step"]
        self.curve = [TrainPoint.model_validate(point) for point in state["curve"]]
        self.passes = TrainPasses.model_validate(state["passes"])
        self.events = list(state["events"])
        if not same_session:
            self.clock.load(state["seconds"], state["validation_seconds"])


class Clock:
    """Seconds of training and of validation, over all sessions of a run."""

    def __init__(self) -> None:
        self.before = self.validation = 0.0
        self.started = time.perf_counter()

    def start(self) -> None:
        """Begin to count this session."""
        self.started = time.perf_counter()

    def load(self, training: float, validation: float) -> None:
        """Go on from the seconds of earlier sessions."""
        self.before, self.validation = training, validation
        self.start()

    @property
    def session(self) -> float:
        """Seconds of training in this session."""
        return time.perf_counter() - self.started

    @property
    def training(self) -> float:
        """Seconds of training in all sessions."""
        return self.before + self.session

    @contextmanager
    def validating(self) -> Iterator[None]:
        """Count what happens inside as validation."""
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            self.validation += spent
            self.started += spent
