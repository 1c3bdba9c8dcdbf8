"""What a training run says of itself: its checkpoints, when validation reached which accuracy, and the record of it all."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from robustdup.config import TrainConfig, parse_call, rerun_command
from robustdup.data.batches import Stream
from robustdup.jobs.training_data import TrainingData
from robustdup.models.load import count_parameters, fingerprint
from robustdup.plugins import ObjectiveSpec
from robustdup.records import (
    CheckpointResult,
    Threat,
    TimeTo,
    TrainEnvironment,
    TrainingRecord,
    ValidationPoint,
    now,
    versions,
)
from robustdup.threat import ThreatModel
from robustdup.training.options import TrainerOptions
from robustdup.training.parts import Parts, TrainResult

BEST: Literal["best"] = "best"
LAST: Literal["last"] = "last"


@dataclass(frozen=True)
class Assembled:
    """A run that is ready to begin: what was asked for, and what it became."""

    config: TrainConfig
    threat: ThreatModel
    objective: ObjectiveSpec
    parts: Parts
    options: TrainerOptions
    data: TrainingData
    device: torch.device


def checkpoint_results(network: nn.Module, result: TrainResult) -> list[CheckpointResult]:
    """Return what validation said of best and last, with the fingerprints of their weights, put into `network` for that."""
    checkpoints = []
    points = {point.step: point for point in result.validation}
    for name, step, weights in ((BEST, result.best_step, result.best), (LAST, result.last_step, result.last)):
        network.load_state_dict(weights)
        point = points.get(step)
        checkpoint = CheckpointResult(name=name, step=step, fingerprint=fingerprint(network))
        if point is not None:
            checkpoint.validation_clean, checkpoint.validation_robust = point.clean_accuracy, point.robust_accuracy
        checkpoints.append(checkpoint)
    return checkpoints


def times_to(points: list[ValidationPoint], targets: Iterable[float]) -> list[TimeTo]:
    """Return when validation first reached each target, clean and robust; None where it never did."""
    times = []
    kinds: tuple[Literal["clean", "robust"], ...] = ("clean", "robust")
    for kind, target in itertools.product(kinds, targets):
        first = next((point for point in points if getattr(point, f"{kind}_accuracy") >= target), None)
        when = {name: getattr(first, name, None) for name in ("step", "samples", "seconds")}
        times.append(TimeTo(kind=kind, target=target, **when))
    return times


def make_record(
    run: Assembled, result: TrainResult, checkpoints: list[CheckpointResult], folder: Path
) -> TrainingRecord:
    """Return the record of a run in `folder`."""
    config, parts, data = run.config, run.parts, run.data
    stream = Stream(data.entries, config.batch_size, max(result.samples, 1))
    return TrainingRecord(
        run_id=folder.name,
        created=now(),
        status=result.status,
        reason=result.reason,
        command=rerun_command("train", config),
        objective=config.objective,
        update=config.update,
        inner_attack=config.attack if run.objective.attacks else "",
        threat=Threat(norm=run.threat.norm, eps=run.threat.radius, eps_text=run.threat.eps_text),
        architecture=config.model,
        parameters=count_parameters(parts.model),
        budget={key: float(value) for key, value in config.budget().items()},
        steps=result.steps,
        samples_seen=result.samples,
        unique_samples_seen=stream.unique_seen(result.samples),
        epochs=result.epochs,
        batch_size=config.batch_size,
        seconds=result.seconds,
        validation_seconds=result.validation_seconds,
        images_per_second=result.images_per_second,
        peak_memory=result.peak_memory,
        passes=result.passes,
        curve=result.curve,
        validation=result.validation,
        n_validation=0 if data.validation is None else len(data.validation.labels),
        n_excluded=data.n_excluded,
        time_to=times_to(result.validation, config.targets),
        checkpoints=checkpoints,
        data=data.info,
        duplication=data.duplication,
        extra=data.extra,
        initial_fingerprint=str(parts.data["initial"]),
        events=[*data.events, *result.events],
        seed=config.seed,
        config=config.model_dump(mode="json"),
        environment=_environment(run, result.compiled),
        versions=versions({parse_call(config.attack, "attack")[0].split(":")[0]}),
    )


def _environment(run: Assembled, compiled: str) -> TrainEnvironment:
    device = run.device
    return TrainEnvironment(
        device=str(device),
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        threads=run.options.threads or torch.get_num_threads(),
        processes=run.parts.processes.count,
        python=platform.python_version(),
        platform=platform.platform(),
        precision=run.options.precision,
        compiled=compiled,
        channels_last=run.data.entries.channels_last,
        folded=run.parts.inner.folded,
    )
