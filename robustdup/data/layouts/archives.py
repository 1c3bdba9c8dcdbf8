"""Archives: zips and tars of folders are unpacked once beside the datasets' cache; shards of WebDataset are read as they are."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustdup.data.arrays import class_numbers
from robustdup.data.columns import LABEL_NAMES, picture_table
from robustdup.data.layouts.folders import PICTURES
from robustdup.data.layouts.opened import Opened, split_word
from robustdup.errors import UserError
from robustdup.inflation import check_unpacked, check_zip

LABEL_FILES = ("cls", "label", "target", "class", "index", "txt", "json")
UNPACKED = "-unpacked"  # end of the name of a folder that an archive was unpacked to


def is_archive(file: Path) -> bool:
    """Tell a zip or a tar by its name: .zip, .tar, .tar.gz, .tgz and alike."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    return suffixes[-1:] in ([".zip"], [".tar"], [".tgz"]) or suffixes[-2:-1] == [".tar"]


def is_tar(file: Path) -> bool:
    """Tell a tar, packed or not, which may be a shard of WebDataset."""
    return is_archive(file) and file.suffix.lower() != ".zip"


def unpack(file: Path) -> Path:
    """Return a folder with what an archive holds, unpacked once for its place, size and time.

    Members that point outside the folder, links and devices are refused. Raises UserError.
    """
    seen = file.stat()
    digest = hashlib.sha256(f"{file.resolve()} {seen.st_size} {seen.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = _cache() / f"{digest}{UNPACKED}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{digest}-"))
    try:
        _extract(file, partial)
        partial.replace(folder)
    except UserError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, tarfile.TarError, RuntimeError) as error:
        if folder.is_dir():  # another process was quicker
            return folder
        raise UserError(f"{str(file)!r} cannot be unpacked: {error}.", code="bad-file") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def name_in_archive(path: Path) -> str | None:
    """Return the name that a file had in the archive from which `unpack` took it; None for other files."""
    cache = _cache().absolute()
    if not path.is_relative_to(cache):
        return None
    folder, *name = path.relative_to(cache).parts
    return "/".join(name) if folder.endswith(UNPACKED) and name else None


def _cache() -> Path:
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / "robustdup"


def _extract(file: Path, folder: Path) -> None:
    if zipfile.is_zipfile(file):
        check_zip(file)
        with zipfile.ZipFile(file) as archive:
            for name in archive.namelist():
                if not (folder / name).resolve().is_relative_to(folder.resolve()):
                    raise ValueError(f"{name!r} points outside")
            archive.extractall(folder)  # links are written as plain files
        return
    with tarfile.open(file) as archive:
        archive.extractall(folder, members=_members(file, archive), filter="data")


def _members(file: Path, archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar while they are few enough bytes for it. Raises UserError."""
    size = 0
    for member in archive:
        size += member.size
        check_unpacked(file, size)
        yield member


def open_shards(files: Sequence[Path]) -> Opened | None:
    """Return the splits of WebDataset shards: pictures with a .cls, .txt or .json of the same key. None for other tars.

    https://github.com/webdataset/webdataset. The split is told by the names of the shards: test-000000.tar. Raises UserError.
    """
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(split_word(file.name.split(".")[0]) or "", []).append(file)
    rows = {name: [row for file in group for row in _rows(file)] for name, group in groups.items()}
    if not any(label is not None for group in rows.values() for _, label in group):
        return None
    everything = [label for group in rows.values() for _, label in group]
    if None in everything:
        raise UserError(
            f"{everything.count(None)} pictures in {files[0].parent} have no .cls or .json beside them.",
            code="no-label",
        )
    kinds = {type(label) for label in everything}
    values = np.array(everything if len(kinds) == 1 else [str(label) for label in everything])
    numbers, names, remarks = class_numbers(values, str(files[0].parent))
    splits, start = {}, 0
    for name, group in rows.items():
        images = [{"bytes": content, "path": None} for content, _ in group]
        splits[name or "test"] = picture_table(images, numbers[start : start + len(group)].tolist(), names)
        start += len(group)
    return Opened(splits, tuple(remarks), unnamed=list(rows) == [""])


def _rows(file: Path) -> Iterator[tuple[bytes, Any]]:
    """Yield (encoded picture, label or None) for each key of a shard, in its order."""
    keys: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(file) as archive:
            for member in _members(file, archive):
                folder, _, name = member.name.rpartition("/")
                key, dot, kind = name.partition(".")
                if member.isfile() and dot and key and (stream := archive.extractfile(member)) is not None:
                    keys.setdefault(f"{folder}/{key}", {})[kind.lower()] = stream.read()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"{str(file)!r} is not a whole tar: {error}.", code="bad-file") from error
    for parts in keys.values():
        picture = next((content for kind, content in parts.items() if f".{kind.rpartition('.')[2]}" in PICTURES), None)
        if picture is not None:
            yield picture, _label(parts)


def _label(parts: dict[str, bytes]) -> Any:
    for name in LABEL_FILES:
        kind = next((kind for kind in parts if kind == name or kind.startswith(f"{name}.")), None)  # cls, cls.txt
        if kind is None or f".{kind.rpartition('.')[2]}" in PICTURES:
            continue
        text = parts[kind].decode("utf-8", errors="replace").strip()
        if not kind.endswith("json"):
            return int(text) if text.lstrip("-").isdecimal() else text
        try:
            content = json.loads(text)
        except ValueError:
            return None
        if isinstance(content, dict):
            return next((content[name] for name in ("cls", *LABEL_NAMES) if name in content), None)
        return content
    return None
