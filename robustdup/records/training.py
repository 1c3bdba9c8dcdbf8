"""The record of a training run, and its curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from robustdup.records.base import RECORD_FILE, Accuracy, DataInfo, Part, Threat, read_record, to_json, write_atomic

TRAINING_SCHEMA: Literal["robustdup.training"] = "robustdup.training"
TRAINING_VERSION = 1


class TrainPoint(Part):
    """One point of the training curves: means over the steps since the point before. Accuracies are shares in [0, 1].

    `loss` is the objective, `accuracy` that of the training images as the objective saw them (adversarial ones, where it
    attacks); `samples` training entries were seen and `seconds` of training had passed (validation not counted).
    """

    step: int
    samples: int
    epoch: float
    seconds: float
    lr: float
    loss: float
    accuracy: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict)


class ValidationPoint(Part):
    """A candidate for the best checkpoint: accuracies on the held-out validation images, shares in [0, 1]."""

    step: int
    samples: int
    epoch: float
    seconds: float
    clean_accuracy: float
    robust_accuracy: float
    best: bool = False


class TimeTo(Part):
    """When the validation accuracy first reached a target: `kind` is clean or robust; null where it never did."""

    kind: Literal["clean", "robust"]
    target: float
    step: int | None
    samples: int | None
    seconds: float | None


class CheckpointResult(Part):
    """What one checkpoint (best or last) is worth: on validation images, and evaluated on the test split where asked for."""

    name: Literal["best", "last"]
    step: int
    fingerprint: str
    validation_clean: float | None = None
    validation_robust: float | None = None
    clean_accuracy: Accuracy | None = None
    robust_accuracy: Accuracy | None = None
    n: int = 0
    attacks: str = ""
    evaluation: str | None = None  # run folder of the evaluation, relative to this one


class TrainPasses(Part):
    """Rows through the model: of the inner attack, of the objective's own passes, and of validation."""

    attack_forward: int = 0
    attack_backward: int = 0
    train_forward: int = 0
    train_backward: int = 0
    validation_forward: int = 0
    validation_backward: int = 0


class DuplicationInfo(Part):
    """The duplication plan that was trained on: its hash, its dose (share of entries that are copies), all readings."""

    scheme: str
    mode: str
    dose: float
    hash: str
    entries: int
    unique: int
    near: str | None = None
    as_weights: bool = False
    options: dict[str, Any] = Field(default_factory=dict)
    readings: dict[str, Any] = Field(default_factory=dict)


class TrainEnvironment(Part):
    """Where it ran and in which precision."""

    device: str
    device_name: str
    threads: int
    processes: int
    python: str
    platform: str
    precision: str
    compiled: str
    channels_last: bool
    folded: int = 0


class TrainingRecord(Part):
    """The result of `robustdup train`. `stopped` where the loss was not finite: then `reason` says where and what to try.

    `seconds` are those of training itself over all sessions, without validation and evaluation; `peak_memory` in bytes.
    """

    schema_name: Literal["robustdup.training"] = TRAINING_SCHEMA
    schema_version: int = TRAINING_VERSION
    run_id: str
    created: str
    status: Literal["complete", "stopped"]
    reason: str = ""
    command: str
    objective: str
    update: str
    inner_attack: str
    threat: Threat
    architecture: str
    parameters: int
    budget: dict[str, float]
    steps: int
    samples_seen: int
    unique_samples_seen: int
    epochs: float
    batch_size: int
    seconds: float
    validation_seconds: float
    images_per_second: float
    peak_memory: int | None
    passes: TrainPasses
    curve: list[TrainPoint]
    validation: list[ValidationPoint]
    n_validation: int
    n_kept_out: int = 0  # near-duplicates of validation images that were not trained on
    time_to: list[TimeTo]
    checkpoints: list[CheckpointResult]
    data: DataInfo
    duplication: DuplicationInfo | None = None
    initial_fingerprint: str
    events: list[str] = Field(default_factory=list)
    seed: int
    config: dict[str, Any]
    environment: TrainEnvironment
    versions: dict[str, str]


class TrainProgress(Part):
    """Where a training run stands: what a live view shows."""

    step: int
    n_steps: int
    epoch: float
    loss: float | None
    accuracy: float | None
    clean_accuracy: float | None
    robust_accuracy: float | None
    images_per_second: float
    seconds: float
    seconds_left: float | None
    message: str = ""


def load_training_record(place: str | Path) -> TrainingRecord:
    """Read a training record from a run folder or a file; older versions are upgraded, newer ones refused (UserError)."""
    return read_record(
        place, TrainingRecord, schema=TRAINING_SCHEMA, version=TRAINING_VERSION, what="a training record"
    )


def save_training_record(record: TrainingRecord, folder: Path) -> Path:
    """Write `record.json` into a run folder and return its path."""
    path = folder / RECORD_FILE
    write_atomic(path, (to_json(record) + "\n").encode())
    return path
