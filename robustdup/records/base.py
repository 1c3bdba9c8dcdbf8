"""What all records share: the base of their parts, the files of a run folder, and writing whole files or none."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import os
import platform
import shlex
import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from robustdup.errors import RunError, UserError, plain
from robustdup.inflation import read_text
from robustdup.records.origin import note_made_here

RECORD_FILE = "record.json"
SAMPLES_FILE = "samples.parquet"
MANIFEST = "manifest.json"  # of a bundle
TOOLKITS = {
    "torchattacks": ("torchattacks",),
    "art": ("adversarial-robustness-toolbox",),
    "foolbox": ("foolbox",),
    "advlib": ("adv-lib",),
    "robustbench": ("pyautoattack", "robustbench"),
    "pyautoattack": ("pyautoattack",),
}  # distributions behind the sources of attacks and models


class Part(BaseModel):
    """A part of a record: unknown fields are refused, NaN is kept as null."""

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="null")


UNION = "union"  # what stands for the norm of a union over several


class Threat(Part):
    """The threat model."""

    norm: str = Field(
        description="Linf, L2, L1, L0 (values that change: one channel of one pixel is one value) or L0-pixels; union where a "
        "sample must survive in several balls."
    )
    eps: float = Field(
        description="Radius in pixel units of [0, 1]; in L0 a number of values, in L0-pixels of pixels; of a union "
        "that of its first ball."
    )
    eps_text: str = Field(description="The radius as it was written: 8/255; of a union its balls: Linf 8/255 + L2 0.5.")

    @property
    def text(self) -> str:
        """The threat model in words: Linf, eps = 8/255; or the balls of a union."""
        return f"union of {self.eps_text}" if self.norm == UNION else f"{self.norm}, eps = {self.eps_text}"

    @property
    def short(self) -> str:
        """The threat model in few words: Linf 8/255; or the balls of a union."""
        return self.eps_text if self.norm == UNION else f"{self.norm} {self.eps_text}"


class Accuracy(Part):
    """A share in [0, 1] with its 95% Wilson interval about images of this kind, from which the samples are drawn."""

    value: float = Field(description="The share; undecided samples are not in it.")
    low: float = Field(description="Lower end of the 95% interval.")
    high: float = Field(description="Upper end of the 95% interval, as if undecided samples counted.")


class DataInfo(Part):
    """Which images."""

    spec: str = Field(description="How the data was named.")
    split: str = Field(description="Split of the data.")
    config: str | None = Field(default=None, description="Configuration (subset) of a Hub dataset.")
    revision: str | None = Field(default=None, description="Revision of a Hub dataset.")
    n_total: int = Field(description="Samples of the split.")
    selection: Literal["all", "first", "sample", "stratified", "given"] = Field(
        description="Which of them were taken: all, the first n, a random sample, n drawn with each class by its share (where "
        "the labels come in order), or those that were given."
    )
    image_shape: list[int] = Field(description="Channels, height, width.")
    class_names: list[str] = Field(description="Names of the classes, by label.")
    fingerprint: str = Field(description="SHA-256 over images, labels and order of the samples that were taken.")


def now() -> str:
    """Return the present time in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).replace(microsecond=0).isoformat()


def versions(sources: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions of robustdup, of what it computes with, and of the toolkits behind the given sources."""
    names = ["robustdup", "torch", "torchvision", "numpy", "datasets", "scikit-learn"]
    names += [package for source in sorted(set(sources)) for package in TOOLKITS.get(source, ())]
    installed = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = _version(name)
    return installed


@cache
def _version(name: str) -> str:
    """Return the version of an installed distribution; reading its metadata takes milliseconds."""
    return importlib.metadata.version(name)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` that replaces it when the block ends well. Raises RunError otherwise.

    Where `path` is a link, what it leads to is replaced; a device or a pipe is not: who writes `/dev/null` wants it to stay.
    """
    temporary: Path | None = None
    try:
        path = Path(os.path.realpath(path)) if path.is_symlink() else path
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OSError("it is a device or a pipe")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        temporary = None
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(
            f"Cannot write {str(path)!r}: {reason}. Nothing that was already saved is lost.", code="cannot-write"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def is_of_disk(error: BaseException) -> bool:
    """Tell whether an error, or what it came of, is that the disk is full or takes no writes: nobody's fault but the disk's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            return True
        if isinstance(cause, RunError) and cause.code in ("cannot-write", "no-space", "not-written"):
            return True
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return False


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that it is either whole or not there."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_record(record: BaseModel, folder: Path, *, made_here: bool = False) -> Path:
    """Write `record.json` into a run folder and return its path; with `made_here` it is remembered as this account's own."""
    path, content = folder / RECORD_FILE, (to_json(record) + "\n").encode()
    if made_here:
        note_made_here(content)
    write_atomic(path, content)
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
        message = (
            f"There is no record at {str(place)!r}: give a run folder (it holds {RECORD_FILE}) or the file itself."
        )
        if (Path(place) / "croissant.json").is_file():  # a dataset that was duplicated
            message += f" It is a dataset: robustdup data describe {shlex.quote(str(place))} --out RUN makes one."
        raise UserError(message, code="no-record")
    return path


R = TypeVar("R", bound=Part)


def read_record(
    place: str | Path, kind: type[R], *, schema: str, version: int, noun: str,
    upgrade: Callable[[dict[str, Any], int], None] = lambda content, version: None,
) -> R:  # fmt: skip
    """Read a record of one kind from a run folder or a file; older versions are upgraded, newer ones refused (UserError)."""
    path = find_record(place)
    content = read_content(path)
    if content.get("schema_name") != schema:
        raise UserError(
            f"{str(path)!r} is not {noun} (found {content.get('schema_name')!r}, expected {schema!r}).",
            code="other-record",
        )
    written = content.get("schema_version")
    if type(written) is not int or written < 1:
        raise UserError(
            f"{str(path)!r} is damaged: no robustdup writes the schema version {plain(repr(written), 60)}.",
            code="damaged-record",
        )
    if written > version:
        raise UserError(
            f"{str(path)!r} has schema version {written}; this robustdup reads up to {version}. Update robustdup to read it.",
            code="newer-record",
        )
    upgrade(content, written)  # changes names; what older versions lack has defaults
    content["schema_version"] = version
    try:
        return kind.model_validate_json(json.dumps(content), strict=True)  # a number is a number, and not a text of one
    except ValidationError as error:
        first = error.errors()[0]
        place_in = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{str(path)!r} is damaged: field {place_in!r}: {first['msg']}.", code="damaged-record"
        ) from None


def read_content(path: Path) -> dict[str, Any]:
    """Return the JSON object of a record file as it stands. Raises UserError where it is not whole."""
    try:
        content = json.loads(read_text(path), object_pairs_hook=each_once, parse_int=_of_64_bits)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else plain(error, 200)
        raise UserError(
            f"{str(path)!r} is not a whole JSON file ({reason}). Was the copy cut off? Run with --resume.",
            code="damaged-record",
        ) from None
    return content if isinstance(content, dict) else {"schema_name": type(content).__name__}


def _of_64_bits(digits: str) -> int:
    """Return a whole number of a record. Raises ValueError where it is larger than any that a run counts or draws."""
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise ValueError(f"the number {plain(digits, 30)} has more than 64 bits")
    return int(digits)


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these pairs; a name that stands twice would be one thing to us and another to other readers."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)!r} stands twice in it")
    return content


def schema_of(place: str | Path) -> str:
    """Return the schema name of the record in a run folder or file: which kind of run it is. Raises UserError."""
    return str(read_content(find_record(place)).get("schema_name"))
