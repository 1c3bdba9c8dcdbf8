"""The record of an evaluation, and its table: a row per point and attack."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from robustdup.errors import UserError
from robustdup.records.base import (
    RECORD_FILE,
    Accuracy,
    DataInfo,
    Part,
    Threat,
    atomic_path,
    read_record,
    to_json,
    write_atomic,
)

SCHEMA: Literal["robustdup.evaluation"] = "robustdup.evaluation"
VERSION = 2

SAMPLES_FILE = "samples.parquet"


class CurvePoint(Accuracy):
    """Robust accuracy at one eps. `alone` counts attacks run at this eps only; `value` also those at smaller ones."""

    eps: float
    alone: float


class Distances(Part):
    """Distances to the adversarial examples that a minimum-norm attack found, in the norm of the threat model."""

    n: int
    median: float | None
    mean: float | None


class MinDistance(Part):
    """The smallest eps at which each point was seen to break: an upper bound of the true one, in the threat's norm.

    Of the `n` points, misclassified clean images count as 0; `found` have a distance at all. `curve` is the accuracy
    left at each eps (text -> share of all points), an upper bound of robust accuracy from this one run.
    """

    n: int
    found: int
    median: float | None
    mean: float | None
    curve: dict[str, float]


class Escalation(Part):
    """Whether an ensemble went on to its stages for masked models: the signs of masking, and what was measured."""

    escalated: bool
    reasons: list[str]
    seen: dict[str, float]
    forward_passes: int
    backward_passes: int


class Progress(Part):
    """Where a run stands: what a live view shows. `done` of `total` points of this stage are judged."""

    eps_text: str
    stage: int
    n_stages: int
    attack: str
    done: int
    total: int
    survivors: int
    n: int
    forward_passes: int
    seconds: float
    message: str = ""


class AttackResult(Part):
    """One stage of a cascade. Passes count rows, forward and backward; `padding_rows` were computed besides.

    `violations` counts points for which the attack returned something outside its threat model; `violation_kinds` says
    what (not_finite, box, ball), `worst_excess` how far the worst lay over eps. `robust_accuracy_after` is what is left
    after this stage and those before it, and of this stage alone where attacks ran individually. `fooled_after` says how
    many points the attack had fooled after how many passes a point (forward and backward together), rising, where it
    drops them at once.
    """

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    source: str = "native"
    kind: str = "bounded"
    knowledge: str = "white-box"
    n_attacked: int
    n_broken: int
    n_undecided: int = 0
    n_unchanged: int = 0
    seconds: float
    forward_passes: int
    backward_passes: int
    padding_rows: int = 0
    violations: int
    violation_kinds: dict[str, int] = Field(default_factory=dict)
    worst_excess: float = 0.0
    rejected_claims: int = 0
    robust_accuracy_after: float
    distances: Distances | None = None
    fooled_after: list[tuple[int, int]] = Field(default_factory=list)
    errors: list[str] = Field(default_factory=list)
    warning: str = ""


class ClassResult(Part):
    """Accuracy of one class; null where it has no points."""

    label: int
    name: str
    n: int
    clean_accuracy: float | None
    robust_accuracy: float | None


class Diagnostic(Part):
    """A sign that the number may not be what it seems: what was seen, and what to do about it."""

    code: str
    severity: Literal["info", "warning", "serious"]
    message: str
    advice: str


class PassTotals(Part):
    """Rows through the judged and the attacked model, by purpose."""

    clean: int = 0
    attacks_forward: int = 0
    attacks_backward: int = 0
    referee: int = 0
    diagnostics_forward: int = 0
    diagnostics_backward: int = 0
    padding: int = 0


class ModelInfo(Part):
    """Which model: `fingerprint` is over the names and bytes of weights and buffers."""

    spec: str
    architecture: str
    fingerprint: str
    num_classes: int
    parameters: int
    mode: str = "eval"
    randomized: bool = False
    judge_draws: int = 1
    attack_model: str | None = None
    attack_model_fingerprint: str | None = None


class Environment(Part):
    """Where it ran, and in which precision each part computed.

    `folded` BatchNorm layers were folded into convolutions in the copy that native attacks used.
    """

    device: str
    device_name: str
    threads: int
    python: str
    platform: str
    attack_precision: str = "fp32"
    judge_precision: str = "fp32"
    tf32: bool = False
    micro_batch: int
    batch_size: int
    workers: int = 1
    runner: str = "local"
    folded: int = 0
    channels_last: bool = False
    compiled: str = "off"


class EvaluationRecord(Part):
    """The result of `robustdup eval`; `failed` where no attack finished a single call.

    `seconds` are those of the session that finished the run, and at least those of all its calls.
    """

    schema_name: Literal["robustdup.evaluation"] = SCHEMA
    schema_version: int = VERSION
    run_id: str
    created: str
    status: Literal["complete", "failed"]
    command: str
    n: int
    threat: Threat
    tolerance: float
    clean_accuracy: Accuracy
    robust_accuracy: Accuracy
    robust_accuracy_8bit: float | None = None
    n_undecided: int
    n_not_attacked: int = 0
    attacks: list[AttackResult]
    individual: bool = False
    escalation: Escalation | None = None
    min_distance: MinDistance | None = None
    interval_about: str
    curve: dict[str, CurvePoint] = Field(default_factory=dict)
    curve_attacks: dict[str, list[AttackResult]] = Field(default_factory=dict)
    per_class: list[ClassResult] = Field(default_factory=list)
    diagnostics: list[Diagnostic] = Field(default_factory=list)
    events: list[str] = Field(default_factory=list)
    passes: PassTotals
    seconds: float
    seed: int
    config: dict[str, Any]
    data: DataInfo
    model: ModelInfo
    environment: Environment
    versions: dict[str, str]


def save_record(record: EvaluationRecord, folder: Path) -> Path:
    """Write `record.json` into a run folder and return its path."""
    path = folder / RECORD_FILE
    write_atomic(path, (to_json(record) + "\n").encode())
    return path


def load_record(place: str | Path) -> EvaluationRecord:
    """Read an evaluation record from a run folder or a file; older versions are upgraded, newer ones refused (UserError)."""
    return read_record(place, EvaluationRecord, schema=SCHEMA, version=VERSION, what="an evaluation record")


# One row per point and attack; the first rows, attack "clean", hold every point on its clean image.
SAMPLES_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),  # row in this run, from 0
        ("index", pa.int64()),  # row in the dataset's split
        ("label", pa.int64()),
        ("image_sha256", pa.string()),  # of the clean image, see robustdup.data
        ("eps", pa.string()),  # eps_text of the stage; empty for "clean"
        ("attack", pa.string()),  # "clean", or the name of the attack
        ("stage", pa.int64()),  # -1 for "clean", then 0, 1, …
        ("outcome", pa.string()),  # clean: correct, misclassified; attacks: broken, survived, undecided
        ("prediction", pa.int64()),  # of the referee, on what was judged
        ("margin", pa.float64()),  # true logit minus best other, by the referee
        ("distance", pa.float64()),  # in the threat model's norm, of what was judged
        ("violation", pa.string()),  # "", or not_finite, box, ball joined by "+"
        ("forward_passes", pa.int64()),  # forward rows of this stage when this point was judged
        ("backward_passes", pa.int64()),
        ("correct_share", pa.float64()),  # share of the judge's draws that were right (0 or 1 unless randomised)
        ("min_distance", pa.float64()),  # rows "clean": smallest distance seen to break the point, where asked for
    ]
)


def save_samples(rows: dict[str, list[Any]], folder: Path) -> Path:
    """Write `samples.parquet` (columns of SAMPLES_SCHEMA) into a run folder and return its path."""
    path = folder / SAMPLES_FILE
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(rows, schema=SAMPLES_SCHEMA), temporary, compression="zstd")
    return path


def load_samples(folder: str | Path) -> pa.Table:
    """Read `samples.parquet` of a run folder. Raises UserError where it is missing or damaged."""
    path = Path(folder) / SAMPLES_FILE if Path(folder).is_dir() else Path(folder).parent / SAMPLES_FILE
    if not path.is_file():
        raise UserError(f"There is no {SAMPLES_FILE} in {str(path.parent)!r}.")
    try:
        with pq.ParquetFile(path) as file:
            return file.read()
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}. Was the copy cut off?") from None
