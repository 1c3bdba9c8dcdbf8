"""What a place on the command line holds: which kind of run, its record, and what lies beside the record."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from robustdup.errors import UserError
from robustdup.plugins import RecordKind, load_plugins
from robustdup.records import (
    RECORD_FILE,
    SAMPLES_FILE,
    SCHEMA,
    EvaluationRecord,
    TrainingRecord,
    find_record,
    load_record,
    load_samples,
    load_training_record,
    schema_of,
)
from robustdup.records.training import TRAINING_SCHEMA
from robustdup.report.format import plural

STATE_CONFIG = Path("state") / "config.json"
WORDS = ("image_sha256", "eps", "attack", "outcome")
COMPARED = ("index", "label", *WORDS)  # all that a comparison looks at


@dataclass(frozen=True)
class EvaluationRun:
    """A finished evaluation; `samples` is None where its table is missing or damaged, and `notes` say so."""

    folder: Path
    record: EvaluationRecord
    samples: pa.Table | None
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What to call the run: its model."""
        return self.record.model.spec


@dataclass(frozen=True)
class TrainingRun:
    """A training run."""

    folder: Path
    record: TrainingRecord

    @property
    def name(self) -> str:
        """What to call the run: its network and objective."""
        return f"{self.record.architecture} · {self.record.objective}"


@dataclass(frozen=True)
class UnfinishedRun:
    """A run without a record yet: its configuration, what is there of it in words, and the commands that go on with it."""

    folder: Path
    config: Mapping[str, Any]
    there: str
    commands: list[str]

    @property
    def name(self) -> str:
        """What to call the run: its model, or its name, where its configuration has one."""
        return str(self.config.get("model") or self.config.get("name") or self.folder.name)


@dataclass(frozen=True)
class PluggedRun:
    """A run of a kind that a plugin brought: its record, as the kind's own loader returned it."""

    folder: Path
    record: Any
    kind: RecordKind

    @property
    def name(self) -> str:
        """What to call the run."""
        return str(self.kind.title(self.record))


@dataclass(frozen=True)
class OtherRun:
    """A record of a kind that is not known here, as plain JSON."""

    folder: Path
    schema: str
    content: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What to call the run."""
        return str(self.content.get("run_id") or self.folder.name)


Run = EvaluationRun | TrainingRun | PluggedRun | UnfinishedRun | OtherRun


@cache
def record_kinds() -> Mapping[str, RecordKind]:
    """Return the kinds of records that installed plugins bring, by schema."""
    return load_plugins().record_kinds


def read_run(place: str | Path, *, brief: bool = False) -> Run:
    """Read a run folder or record file of any kind. Raises UserError where there is none, or it is damaged.

    `brief`: of the samples only what a comparison needs, which is four times as quick.
    """
    folder = Path(place)
    if folder.is_dir() and not (folder / RECORD_FILE).is_file():
        for kind in record_kinds().values():
            if kind.unfinished is not None and (unfinished := kind.unfinished(folder)) is not None:
                return unfinished  # type: ignore[no-any-return]
        if (folder / STATE_CONFIG).is_file():
            return _unfinished(folder)
    path = find_record(place)
    schema = schema_of(path)
    if schema == SCHEMA:
        return _evaluation(path, brief)
    if schema == TRAINING_SCHEMA:
        return TrainingRun(path.parent, load_training_record(path))
    if (known := record_kinds().get(schema)) is not None:
        return PluggedRun(path.parent, known.load(path), known)
    return OtherRun(path.parent, schema, json.loads(path.read_text(encoding="utf-8")))


def _evaluation(path: Path, brief: bool) -> EvaluationRun:
    record = load_record(path)
    try:
        return EvaluationRun(path.parent, record, _brief(path.parent) if brief else load_samples(path.parent))
    except UserError as error:
        return EvaluationRun(path.parent, record, None, [f"Without the samples of the points: {error}"])


def _brief(folder: Path) -> pa.Table:
    try:
        with pq.ParquetFile(folder / SAMPLES_FILE, read_dictionary=list(WORDS)) as file:
            return file.read(columns=list(COMPARED), use_threads=False)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{str(folder / SAMPLES_FILE)!r} cannot be read: {error}") from None


def _unfinished(folder: Path) -> UnfinishedRun:
    config = read_plain(folder / STATE_CONFIG)
    if "objective" in config:
        command, kept = "train", (folder / STATE_CONFIG).with_name("checkpoint.pt").is_file()
        there = "The state of its last checkpoint is saved." if kept else "No checkpoint is saved yet."
    else:
        calls = sum(1 for _ in (folder / "state").glob("*/*/*.safetensors"))
        command, there = "eval", f"{plural(calls, 'call')} of attacks {'is' if calls == 1 else 'are'} saved."
    return UnfinishedRun(folder, config, there, [f"robustdup {command} --resume {shlex.quote(str(folder))}"])


def read_plain(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{str(path)!r} is not a whole JSON file ({error}).") from None
    return content if isinstance(content, dict) else {}
