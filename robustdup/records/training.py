"""The record of a training run, and its curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from robustdup.records.base import Accuracy, DataInfo, Part, Threat, read_record, write_record
from robustdup.records.evaluation import Progress

TRAINING_SCHEMA: Literal["robustdup.training"] = "robustdup.training"
TRAINING_VERSION = 2
RENAMED_IN_2 = {"n_kept_out": "n_excluded", "readings": "rates"}  # names of version 1: names since


class Moment(Part):
    """How far a training run has come."""

    step: int = Field(description="Optimizer steps made.")
    samples: int = Field(description="Samples seen, over all processes.")
    epoch: float = Field(description="Passes over the training entries.")
    seconds: float = Field(description="Seconds of training over all sessions, without validation.")


class TrainPoint(Moment):
    """A point of the training curves: means over the steps since the point before. Accuracies are shares in [0, 1]."""

    lr: float = Field(description="Learning rate of the last step.")
    loss: float = Field(description="Mean of the objective per sample.")
    accuracy: float | None = Field(
        default=None,
        description="Share classified rightly of the images that the objective trained on (adversarial ones, mostly).",
    )
    metrics: dict[str, float] = Field(default_factory=dict, description="Means of the objective's other metrics.")


class ValidationPoint(Moment):
    """A candidate for the best checkpoint: accuracies on the validation images, shares in [0, 1]."""

    clean_accuracy: float = Field(description="Share of the validation images that is classified rightly.")
    robust_accuracy: float = Field(description="Share that is so under the validation attack too.")
    best: bool = Field(
        default=False, description="Whether this is the best: most robust, then most accurate, then earliest."
    )


class TimeTo(Part):
    """When the validation accuracy first reached a target; null where it never did."""

    kind: Literal["clean", "robust"] = Field(description="Which accuracy.")
    target: float = Field(description="The target, a share in [0, 1].")
    step: int | None = Field(description="Optimizer steps made by then.")
    samples: int | None = Field(description="Samples seen by then.")
    seconds: float | None = Field(description="Seconds of training by then, without validation.")


class CheckpointResult(Part):
    """What one checkpoint is worth: on validation images, and evaluated on the test split where asked for."""

    name: Literal["best", "last"] = Field(description="Which checkpoint.")
    step: int = Field(description="Optimizer steps after which the weights were so.")
    fingerprint: str = Field(description="SHA-256 of the weights.")
    validation_clean: float | None = Field(
        default=None, description="Clean accuracy on the validation images, in [0, 1]."
    )
    validation_robust: float | None = Field(
        default=None, description="Robust accuracy on the validation images, in [0, 1]."
    )
    clean_accuracy: Accuracy | None = Field(default=None, description="Clean accuracy on the test split.")
    robust_accuracy: Accuracy | None = Field(default=None, description="Robust accuracy on the test split, verified.")
    n: int = Field(default=0, description="Images of the test split that were evaluated.")
    attacks: str = Field(default="", description="Attacks of the evaluation.")
    evaluation: str | None = Field(default=None, description="Run folder of the evaluation, relative to this one.")


class TrainPasses(Part):
    """Images that went through the model: for the inner attack, for the objective's own passes, for validation."""

    attack_forward: int = Field(default=0, description="Forward, for the inner attack.")
    attack_backward: int = Field(default=0, description="Backward, for the inner attack.")
    train_forward: int = Field(default=0, description="Forward, for the objective.")
    train_backward: int = Field(default=0, description="Backward, for the objective.")
    validation_forward: int = Field(default=0, description="Forward, for validation.")
    validation_backward: int = Field(default=0, description="Backward, for validation.")


class DuplicationInfo(Part):
    """The duplication plan that was trained on."""

    scheme: str = Field(description="How the images that are duplicated were chosen.")
    mode: str = Field(description="Whether copies are added to the originals, or replace some.")
    dose: float = Field(description="Share of the training entries that are copies, in [0, 1].")
    hash: str = Field(description="SHA-256 of the plan.")
    entries: int = Field(description="Training entries: originals and copies.")
    unique: int = Field(description="Different images among them.")
    near: str | None = Field(default=None, description="How copies are changed; null where they are exact.")
    as_weights: bool = Field(default=False, description="Whether the loss of originals was weighed in place of copies.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the plan.")
    rates: dict[str, Any] = Field(default_factory=dict, description="How much was duplicated, in all usual measures.")


class ExtraDataInfo(Part):
    """The extra data that was trained on beside the training data."""

    spec: str = Field(description="What was named.")
    split: str = Field(description="Its split.")
    n: int = Field(description="Images that were drawn from.")
    n_excluded: int = Field(default=0, description="Near-duplicates of validation images, which were left out.")
    share: float = Field(description="Share of each batch that was asked for, in (0, 1).")
    in_batch: int = Field(description="Extra images in each full batch.")
    labels: str = Field(description="'given', or the model that labelled the images.")
    agreement: float | None = Field(
        default=None, description="Share of its labels that are those of the data; null where the data have none."
    )
    fingerprint: str = Field(description="SHA-256 over images, labels and order.")


class TrainEnvironment(Part):
    """Where it ran and in which precision."""

    device: str = Field(description="The device, as torch calls it.")
    device_name: str = Field(description="Name of the GPU or the processor.")
    threads: int = Field(description="CPU threads.")
    processes: int = Field(description="Processes that shared each batch.")
    python: str = Field(description="Version of Python.")
    platform: str = Field(description="Operating system.")
    precision: str = Field(description="Precision of training: fp32, tf32, bf16 or fp16.")
    compiled: str = Field(description="How the model was compiled: off, default or cudagraphs.")
    channels_last: bool = Field(description="Whether images and convolutions were in channels-last layout.")
    folded: int = Field(
        default=0, description="BatchNorm layers folded in the attack copy that the inner attack ran on."
    )


class TrainingRecord(Part):
    """The result of `robustdup train`."""

    schema_name: Literal["robustdup.training"] = Field(
        default=TRAINING_SCHEMA, description="Which kind of record this is."
    )
    schema_version: int = Field(default=TRAINING_VERSION, description="Version of the schema.")
    run_id: str = Field(description="Name of the run folder.")
    created: str = Field(description="When the run ended: ISO 8601, UTC.")
    status: Literal["complete", "stopped"] = Field(description="Stopped where the loss or the weights were not finite.")
    reason: str = Field(default="", description="Why the run was stopped, and what to try.")
    command: str = Field(description="The command that runs this again.")
    objective: str = Field(description="What was minimised, with options.")
    update: str = Field(description="The update rule, with options.")
    inner_attack: str = Field(description="The inner attack with options; empty where the objective uses none.")
    threat: Threat = Field(description="The threat model of training and validation.")
    architecture: str = Field(description="The network that was trained.")
    parameters: int = Field(description="Its parameters.")
    budget: dict[str, float] = Field(description="The budget that was given: epochs, steps or samples.")
    steps: int = Field(description="Optimizer steps made.")
    samples_seen: int = Field(description="Samples seen, over all processes.")
    unique_samples_seen: int = Field(description="Different images among them.")
    epochs: float = Field(description="Passes over the training entries.")
    batch_size: int = Field(description="Training entries in a step, over all processes.")
    seconds: float = Field(description="Seconds of training over all sessions, without validation and evaluation.")
    validation_seconds: float = Field(description="Seconds of validation over all sessions.")
    images_per_second: float = Field(description="Samples a second in the last session.")
    peak_memory: int | None = Field(description="Most bytes in use on the GPU, or by the process; null where unknown.")
    passes: TrainPasses = Field(description="Images through the model.")
    curve: list[TrainPoint] = Field(description="Loss and accuracy over training.")
    validation: list[ValidationPoint] = Field(description="The candidates for the best checkpoint.")
    n_validation: int = Field(description="Images held out to choose the checkpoint.")
    n_excluded: int = Field(default=0, description="Near-duplicates of validation images, which were not trained on.")
    time_to: list[TimeTo] = Field(description="When validation reached which accuracy.")
    checkpoints: list[CheckpointResult] = Field(description="The best checkpoint and the last.")
    data: DataInfo = Field(description="The training data.")
    duplication: DuplicationInfo | None = Field(
        default=None, description="What was duplicated; null where nothing was."
    )
    extra: ExtraDataInfo | None = Field(
        default=None, description="Extra data that was trained on; null where there was none."
    )
    initial_fingerprint: str = Field(description="SHA-256 of the weights before the first step.")
    events: list[str] = Field(default_factory=list, description="What a reader should know of how the run went.")
    seed: int = Field(description="Seed of everything random.")
    config: dict[str, Any] = Field(description="The whole configuration.")
    environment: TrainEnvironment = Field(description="Where it ran.")
    versions: dict[str, str] = Field(description="Versions of robustdup and of the packages that it used.")

    def __str__(self) -> str:
        """Return what it says in one line: accuracies on the test split, or on the validation images."""
        worth = []
        for checkpoint in self.checkpoints:
            clean, robust, where = checkpoint.validation_clean, checkpoint.validation_robust, "validation"
            if checkpoint.clean_accuracy is not None and checkpoint.robust_accuracy is not None:
                clean, robust, where = checkpoint.clean_accuracy.value, checkpoint.robust_accuracy.value, "test"
            if clean is not None and robust is not None:
                worth.append(
                    f"; {checkpoint.name} (step {checkpoint.step}): clean {clean:.2%}, robust {robust:.2%} ({where})"
                )
        return (
            f"{self.architecture} on {self.data.spec} ({self.data.split}), {self.objective}, {self.threat.text}, "
            f"{self.steps} steps{''.join(worth)}"
        )


class TrainProgress(Part):
    """Where a training run stands: what a live view shows. Accuracies are shares in [0, 1]."""

    step: int = Field(default=0, description="Optimizer steps made.")
    n_steps: int = Field(default=0, description="Optimizer steps of the budget.")
    epoch: float = Field(default=0.0, description="Passes over the training entries.")
    loss: float | None = Field(default=None, description="Mean loss of late.")
    accuracy: float | None = Field(
        default=None, description="Accuracy of late on the images that the objective trained on."
    )
    clean_accuracy: float | None = Field(default=None, description="Clean accuracy of the newest candidate.")
    robust_accuracy: float | None = Field(default=None, description="Robust accuracy of the newest candidate.")
    images_per_second: float = Field(default=0.0, description="Samples a second in this session.")
    seconds: float = Field(default=0.0, description="Seconds of training over all sessions.")
    seconds_left: float | None = Field(
        default=None, description="Seconds that are left, with validation; null while unknown."
    )
    message: str = Field(default="", description="What is being done, where that is not training.")
    evaluation: Progress | None = Field(default=None, description="Where the evaluation of a checkpoint stands.")


def load_training_record(place: str | Path) -> TrainingRecord:
    """Read a training record from a run folder or a file; older versions are upgraded, newer ones refused (UserError)."""
    return read_record(
        place,
        TrainingRecord,
        schema=TRAINING_SCHEMA,
        version=TRAINING_VERSION,
        noun="a training record",
        upgrade=upgrade_training,
    )


def upgrade_training(content: dict[str, Any], version: int) -> None:
    """Give the content of a record of an older version the names of today's."""
    if version < 2:
        for part in (content, content.get("duplication") or {}):
            for name in RENAMED_IN_2.keys() & part.keys():
                part[RENAMED_IN_2[name]] = part.pop(name)


def save_training_record(record: TrainingRecord, folder: Path) -> Path:
    """Write `record.json` into a run folder and return its path."""
    return write_record(record, folder)
