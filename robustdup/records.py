"""Versioned records: what a run leaves behind, enough to trust it and to run it again.

A run folder holds `record.json`, `samples.parquet` (a row per point and attack) and `images/`. Files are written
atomically. This module does not import torch: tables, pages and ranks are computed from records alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from robustdup.errors import RunError, UserError

SCHEMA: Literal["robustdup.evaluation"] = "robustdup.evaluation"
VERSION = 2

RECORD_FILE = "record.json"
SAMPLES_FILE = "samples.parquet"


class Part(BaseModel):
    """A part of a record: unknown fields are refused, NaN is kept as null."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="null")


class Threat(Part):
    """The threat model: `eps` as a float in pixel units of [0, 1], `eps_text` as it was written."""

    norm: str
    eps: float
    eps_text: str


class Accuracy(Part):
    """A share in [0, 1] with its 95% interval over images."""

    value: float
    low: float
    high: float


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


class DataInfo(Part):
    """Which images: `fingerprint` is over images, labels and order of the evaluated points."""

    spec: str
    split: str
    config: str | None = None
    revision: str | None = None
    n_total: int
    selection: Literal["all", "first", "sample", "given"]
    image_shape: list[int]
    class_names: list[str]
    fingerprint: str


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


def now() -> str:
    """Return the present time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).replace(microsecond=0).isoformat()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` that replaces it when the block ends well. Raises RunError otherwise."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"Cannot write {str(path)!r}: {reason}. Nothing that was already saved is lost.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that it is either whole or not there."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def save_record(record: EvaluationRecord, folder: Path) -> Path:
    """Write `record.json` into a run folder and return its path."""
    path = folder / RECORD_FILE
    write_atomic(path, (to_json(record) + "\n").encode())
    return path


def to_json(record: BaseModel) -> str:
    """Return a record as JSON text with an indent of two."""
    return record.model_dump_json(indent=2)


def find_record(place: str | Path) -> Path:
    """Return the path of the record.json that a run folder or file names. Raises UserError where there is none."""
    path = Path(place)
    if path.is_dir():
        path = path / RECORD_FILE
    if not path.is_file():
        raise UserError(
            f"There is no record at {str(place)!r}: give a run folder (it holds {RECORD_FILE}) or the file itself."
        )
    return path


def load_record(place: str | Path) -> EvaluationRecord:
    """Read a record from a run folder or a file; older versions are upgraded, newer ones refused (UserError)."""
    path = find_record(place)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{str(path)!r} is not a whole JSON file ({error}). Was the copy cut off? Run with --resume."
        ) from None
    if not isinstance(content, dict) or content.get("schema_name") != SCHEMA:
        kind = content.get("schema_name") if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{str(path)!r} is not an evaluation record (found {kind!r}, expected {SCHEMA!r}).")
    version = content.get("schema_version")
    if not isinstance(version, int) or version > VERSION:
        raise UserError(
            f"{str(path)!r} has schema version {version}; this robustdup reads up to {VERSION}. "
            "Update robustdup to read it."
        )
    content["schema_version"] = VERSION  # version 1 lacks fields that have defaults
    try:
        return EvaluationRecord.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place_in = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{str(path)!r} is damaged: field {place_in!r}: {first['msg']}.") from None


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
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}. Was the copy cut off?") from None
