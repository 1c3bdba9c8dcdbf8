"""What a place on the command line holds: which kind of run, its record, and what lies beside the record."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from robustdup.errors import UserError
from robustdup.inflation import read_text
from robustdup.plugins import RecordKind, record_kinds
from robustdup.records import RECORD_FILE, SAMPLES_FILE, find_record, load_samples, schema_of
from robustdup.report.format import plural

STATE_CONFIG = Path("state") / "config.json"
WORDS = ("image_sha256", "eps", "attack", "outcome")
COMPARED = ("index", "label", *WORDS)  # all that a comparison looks at


@dataclass(frozen=True)
class Run:
    """A finished run: its record, as the loader of its kind returned it, and what lies beside the record.

    `samples` is None where its kind has no such table, or where it is missing or damaged, and then `notes` say so.
    `gallery` is how many samples its page shows as pictures; `clean_images` (N, C, H, W) are those of a run that kept none.
    """

    folder: Path
    record: Any
    kind: RecordKind
    samples: pa.Table | None = None
    notes: list[str] = field(default_factory=list)
    gallery: int = 240
    clean_images: Any = None

    @property
    def name(self) -> str:
        """What to call the run."""
        return str(self.kind.title(self.record))


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


def read_run(place: str | Path, *, brief: bool = False) -> Run | UnfinishedRun:
    """Read a run folder or record file of any kind.

    Args:
        place: A folder with a record.json, or such a file.
        brief: Of the samples only what a comparison needs, which is four times as quick.

    Raises:
        UserError: Where there is no record, where it is damaged, or where nothing knows its kind.
    """
    folder = Path(place)
    if folder.is_dir() and not (folder / RECORD_FILE).is_file():
        for kind in record_kinds().values():
            if kind.unfinished is not None and (unfinished := kind.unfinished(folder)) is not None:
                return unfinished  # type: ignore[no-any-return]
    path = find_record(place)
    schema = schema_of(path)
    known = record_kinds().get(schema)
    if known is None:
        raise UserError(
            f"{str(path.parent)!r} holds a record of kind {schema!r}, for which there is no page. A plugin may bring one: "
            "robustdup doctor lists those that are installed.",
            code="unknown-record",
        )
    record = known.load(path)
    if not known.samples:
        return Run(path.parent, record, known)
    try:
        return Run(path.parent, record, known, _brief(path.parent) if brief else load_samples(path.parent))
    except UserError as error:
        return Run(path.parent, record, known, None, [f"Without the table of samples: {error}"])


def _brief(folder: Path) -> pa.Table:
    try:
        with pq.ParquetFile((folder / SAMPLES_FILE).absolute(), read_dictionary=list(WORDS)) as file:
            return file.read(columns=list(COMPARED), use_threads=False)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{str(folder / SAMPLES_FILE)!r} cannot be read: {error}", code="damaged-samples") from None


def unfinished_evaluation(folder: Path) -> UnfinishedRun | None:
    """Return what is there of an evaluation without a record yet; None where the folder holds something else."""
    config = _state(folder)
    if config is None or "objective" in config or "against" in config:
        return None
    calls = sum(1 for _ in (folder / "state").glob("*/*/*.safetensors"))
    there = f"{plural(calls, 'call')} of attacks {'is' if calls == 1 else 'are'} saved."
    return UnfinishedRun(folder, config, there, [f"robustdup eval --resume {shlex.quote(str(folder))}"])


def unfinished_training(folder: Path) -> UnfinishedRun | None:
    """Return what is there of a training without a record yet; None where the folder holds something else."""
    config = _state(folder)
    if config is None or "objective" not in config:
        return None
    kept = (folder / STATE_CONFIG).with_name("checkpoint.pt").is_file()
    there = "The state of its last checkpoint is saved." if kept else "No checkpoint is saved yet."
    return UnfinishedRun(folder, config, there, [f"robustdup train --resume {shlex.quote(str(folder))}"])


def _state(folder: Path) -> dict[str, Any] | None:
    return read_plain(folder / STATE_CONFIG) if (folder / STATE_CONFIG).is_file() else None


def read_plain(path: Path) -> dict[str, Any]:
    """Return a JSON file's object; an empty one where it holds something else. Raises UserError where it is damaged."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, OSError) as error:
        raise UserError(f"{str(path)!r} is not a whole JSON file ({error}).", code="damaged-record") from None
    return content if isinstance(content, dict) else {}


def labels(runs: Sequence[Run]) -> list[str]:
    """Return a label for each evaluation: its model; with data, threat model or run id as well where others are alike."""
    parts = [
        (r.model.name, r.data.spec, f"{r.threat.norm} {r.threat.eps_text}", str(r.config.get("attacks", "")), r.run_id)
        for r in (run.record for run in runs)
    ]
    varying = [i for i in range(1, 4) if len({part[i] for part in parts}) > 1]
    names = [" · ".join([part[0], *(part[i] for i in varying if part[i])]) for part in parts]
    alike = {name for name in names if names.count(name) > 1}
    return [f"{name} · {part[4]}" if name in alike else name for name, part in zip(names, parts, strict=True)]
