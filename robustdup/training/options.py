"""What a trainer is told: budget, optimizer, learning rate, averages, precision. Neither data nor attack are its business."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from robustdup.config import BUDGETS
from robustdup.precision import TrainingPrecision


@dataclass(frozen=True)
class TrainerOptions:
    """The settings of `robustdup.training.loop.fit`; each has the name and the meaning that it has in `TrainConfig`.

    Just one of `epochs`, `steps` and `samples` is given. Learning rates are per step, `warmup`, `milestones` and `swa` are
    shares of the budget, `threads` are those of a CPU (None: as many as now), `track` names trackers with commas.
    """

    epochs: float | None = None
    steps: int | None = None
    samples: int | None = None
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    lr: float = 0.1
    muon_lr: float = 0.03
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_all: bool = True
    schedule: Literal["cosine", "one-cycle", "linear", "piecewise", "constant"] = "one-cycle"
    warmup: float = 0.0
    milestones: tuple[float, ...] = (0.5, 0.75)
    schedule_steps: int | None = None
    clip: float | None = None
    ema: float = 0.0
    swa: float = 0.0
    validate_every: int | None = None
    checkpoint_every: int | None = None
    precision: TrainingPrecision = "fp32"
    accumulate: int = 1
    deterministic: bool = False
    compile: Literal["auto", "off", "on", "cudagraphs"] = "auto"
    channels_last: bool = True
    threads: int | None = None
    seed: int = 0
    track: str = ""

    def budget(self) -> dict[str, Any]:
        """Return the budgets that are given, by name."""
        return {name: getattr(self, name) for name in BUDGETS if getattr(self, name) is not None}
