"""What a run counts and measures on its way: losses summed on the device, rows, seconds, the first step that went wrong."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from robustdup.training.processes import Processes

NEVER = 2**62


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
