"""Where a run stands: what changes from step to step, and what a checkpoint holds of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.records import TrainPasses, TrainPoint
from robustdup.training.averages import Averages
from robustdup.training.memory import Memory
from robustdup.training.processes import Processes
from robustdup.training.updates import UpdateRule, loss_scaler
from robustdup.training.validation import Selection

NEVER = 2**62  # a step that does not come
STATEFUL = ("model", "optimizer", "averages", "update", "selection", "meter")  # parts with a state of their own


class State:
    """The state of a run. A checkpoint holds all of it: from there the run goes on as if nothing had happened.

    `model` is everything that is trained. `batch` is the number of the next batch, `step` that of optimizer steps made,
    `step_before` that at the beginning of the last batch. `curve`, `passes` and `events` go into the record. `memory` is
    what the objective keeps of each training entry, if anything, `scaler` what scales losses in fp16.
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
        self.split = 1  # parts in which a batch is computed
        self.curve: list[TrainPoint] = []
        self.passes = TrainPasses()
        self.events: list[str] = []
        self.memory: Memory | None = None
        self.scaler = loss_scaler()

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors, numbers, texts, and lists and dicts of them."""
        return {
            **{name: getattr(self, name).state_dict() for name in STATEFUL},
            "batch": self.batch,
            "step": self.step,
            "split": self.split,
            "curve": [point.model_dump() for point in self.curve],
            "passes": self.passes.model_dump(),
            "seconds": self.clock.training,
            "validation_seconds": self.clock.validation,
            "events": list(self.events),
            **({"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {}),
            **({} if self.memory is None else {"memory": self.memory.state_dict()}),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, same_session: bool = False) -> None:
        """Go on from `state_dict()`; in the `same_session` the clock runs on, since the time was spent."""
        for name in STATEFUL:
            getattr(self, name).load_state_dict(state[name])
        self.split = state.get("split", self.split)
        self.batch, self.step, self.step_before = state["batch"], state["step"], state["step"]
        self.curve = [TrainPoint.model_validate(point) for point in state["curve"]]
        self.passes = TrainPasses.model_validate(state["passes"])
        self.events = list(state["events"])
        self.scaler.load_state_dict(state.get("scaler", {}))
        if self.memory is not None:
            self.memory.load_state_dict(state["memory"])
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


class Meter:
    """Sums of the loss and the metrics since the last point of the curve; nothing in `add` waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rows = 0.0
        self.sums: dict[str, Tensor] = {}
        self.bad = torch.full((), NEVER, device=device)  # the first step at which a loss was not finite

    def add(self, step: int, loss: Tensor, metrics: Mapping[str, Tensor], *, rows: float) -> None:
        """Take in the summed loss (scalar) and metrics of `rows` samples, after optimizer step `step`."""
        self.rows += rows
        for name, value in {"loss": loss, **metrics}.items():
            total = value.detach().float()
            self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.bad = torch.where(self.sums["loss"].isfinite(), self.bad, self.bad.clamp(max=step))

    def gather(self, processes: Processes) -> None:
        """Move the sums of all processes into the first one."""
        if processes.count == 1:
            return
        names = sorted(self.sums)
        rows = torch.tensor(self.rows, device=self.device)
        values = processes.sum(torch.stack([rows, *(self.sums[name] for name in names)]))
        values = values if processes.first else torch.zeros_like(values)
        self.rows = float(values[0])
        self.sums = dict(zip(names, values[1:].unbind(), strict=True))
        self.bad = processes.least(self.bad)

    def means(self) -> dict[str, float]:
        """Return the means since the last `clear`; waits for the device. Empty where nothing was seen."""
        if not self.rows:
            return {}
        values = (torch.stack(list(self.sums.values())) / self.rows).tolist()
        return dict(zip(self.sums, values, strict=True))

    def clear(self) -> None:
        """Begin the next point."""
        self.rows, self.sums = 0.0, {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a run needs to go on."""
        return {"rows": self.rows, "sums": dict(self.sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.rows = state["rows"]
        self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        self.bad = torch.full((), NEVER, device=self.device)


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes in use so far: on a GPU those allocated there, else those of this process (None: unknown)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on this system
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
