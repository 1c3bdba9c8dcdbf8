"""What a run of training is given, and what it leaves: its parts, assembled elsewhere, and its result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from robustdup.data.batches import Batch
from robustdup.records import TrainPasses, TrainPoint, TrainProgress, ValidationPoint
from robustdup.training.inner import Inner
from robustdup.training.processes import Processes
from robustdup.training.updates import LossAndMetrics, UpdateRule

ShowProgress = Callable[[TrainProgress], None]


@dataclass
class Parts:
    """What a run is made of. Everything is on the device; `model` is changed in place.

    `objective(model, images, labels, *, attack, rng) -> (loss (n,), metrics)` has its options bound, `module` are weights
    that it has of its own and that are trained with the model. `update` makes the optimizer steps of a batch, `inner` its
    attack (not yet attached). `stream` is `robustdup.data.batches.Stream` but for its entries. `entries` is the number M of
    training entries in an epoch. A checkpoint must share with the run what `data` lists (a fingerprint, say) and the
    `settings` of the whole run, but those free to change; trackers are told the settings. Modules that are `frozen` stay in
    eval mode. A run says where robust accuracy collapses on the validation images that it is `watched_by`, if there are any.
    `on_best` is given the weights of each new best candidate, in the first process only.
    """

    model: nn.Module
    objective: Callable[..., LossAndMetrics]
    update: UpdateRule
    inner: Inner
    stream: Callable[..., Iterable[tuple[int, Batch]]]
    entries: int
    module: nn.Module | None = None
    processes: Processes = field(default_factory=Processes)
    data: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    frozen: Sequence[nn.Module] = ()
    watched_by: int = 0
    on_best: Callable[[dict[str, Tensor]], object] = lambda weights: None


@dataclass
class TrainResult:
    """What a run leaves.

    `status` is "stopped" where the loss or the weights were not finite: `reason` then says where and what to try, and
    `last` holds the weights of the last good checkpoint. `best` and `last` are state dicts on the CPU, of the averaged
    weights where there are any (after `best_step` and `last_step` optimizer steps); without validation they are the
    same. `samples` were seen in `steps` optimizer steps; `seconds` are those of training, `validation_seconds` those of
    choosing, both over all sessions; `images_per_second` is that of this session. `peak_memory` is in bytes.
    """

    status: Literal["complete", "stopped"]
    reason: str
    steps: int
    samples: int
    epochs: float
    curve: list[TrainPoint]
    validation: list[ValidationPoint]
    best_step: int
    best: dict[str, Tensor]
    last_step: int
    last: dict[str, Tensor]
    passes: TrainPasses
    seconds: float
    validation_seconds: float
    images_per_second: float
    peak_memory: int | None
    compiled: str
    events: Sequence[str]
