"""Which files the images of a dataset are, and which files of a folder were not read at all."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from robustdup.data.layouts.archives import name_in_archive
from robustdup.errors import user_path
from robustdup.records import write_atomic

CHUNK = 1000  # rows whose encoded images are in memory at once
# Ends of names of what people call pictures, whether Pillow reads them or not.
_PICTURES = frozenset({".heic", ".heif", ".avif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".svg"})
_NO_PICTURES = frozenset({".pdf", ".json"})  # that Pillow can write or read all the same


def save_paths(folder: Path, start: int, paths: list[str]) -> None:
    """Keep the paths of the rows from `start` on, where there are any."""
    if any(paths):
        write_atomic(folder / "done" / f"paths-{start}.json", json.dumps(paths).encode())


def load_paths(folder: Path, n: int, starts: Iterable[int], data: str) -> list[str]:
    """Return the path of each of n rows as it is shown: as `shown_path` does for `data`; "" where none."""
    paths = [""] * n
    root = user_path(data)
    for start in starts:
        file = folder / "done" / f"paths-{start}.json"
        if file.is_file():
            part = json.loads(file.read_text(encoding="utf-8"))
            paths[start : start + len(part)] = [shown_path(path, root) for path in part]
    return paths


def dataset_paths(dataset: Any, image: str, data: str) -> list[str]:
    """Return the path of each row of a split whose images were not read, as `load_paths` does."""
    encoded = encoded_column(dataset, image)
    root, paths = user_path(data), []
    for low in range(0, len(dataset), CHUNK):
        column = encoded[low : low + CHUNK][image].combine_chunks()
        paths += [shown_path(path or "", root) for path in column.field("path").to_pylist()]
    return paths


def encoded_column(dataset: Any, image: str) -> Any:
    """Return a dataset of the image column alone, as bytes and paths."""
    import datasets

    return dataset.select_columns([image]).cast_column(image, datasets.Image(decode=False)).with_format("arrow")


def shown_path(path: str, root: Path) -> str:
    """Return a path relative to a folder where it lies in it, or as the archive that it came from has it; else as it is."""
    for base in (root, root.resolve()):
        if base.is_dir() and Path(path).is_absolute() and Path(path).is_relative_to(base.absolute()):
            return Path(path).relative_to(base.absolute()).as_posix()
    return name_in_archive(Path(path)) or path


def unread_files(data: str, paths: Iterable[str]) -> tuple[dict[str, int], list[str]]:
    """Return how many pictures of a folder were read as no row of any split, by the end of their names, and their names.

    `paths` are those of all rows, relative to the folder. Where no row is a file of the folder (parquet files), nothing is
    unread. Files without an image's ending count where an image of the folder has the same ending.
    """
    root = user_path(data)
    read = set(paths)
    if not root.is_dir() or not any(path and (root / path).is_file() for path in list(read)[:100]):
        return {}, []
    endings = {Path(path).suffix.lower() for path in read}
    left = sorted(
        name
        for file in root.rglob("*")
        if file.is_file()
        and (name := file.relative_to(root).as_posix()) not in read
        and _is_picture(file, root, endings)
    )
    counts = Counter(Path(name).suffix.lower() for name in left)
    return dict(sorted(counts.items())), left


def _is_picture(file: Path, root: Path, endings: set[str]) -> bool:
    ending = file.suffix.lower()
    if any(part.startswith(".") or part == "__MACOSX" for part in file.relative_to(root).parts):
        return False
    return ending in endings or ending in _PICTURES or _known_to_pillow(ending)


def _known_to_pillow(ending: str) -> bool:
    from PIL import Image

    return ending not in _NO_PICTURES and ending in Image.registered_extensions()


def unread_note(counts: dict[str, int], names: list[str]) -> str:
    """Return a sentence about files that were not read; empty where there are none."""
    if not names:
        return ""
    kinds = ", ".join(f"{n:,} {ending or 'without an ending'}" for ending, n in counts.items())
    some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return (
        f"{len(names):,} pictures of the folder are in no split, and were not looked at: {kinds} ({some}). Convert them, or "
        "say in a metadata.csv which files belong to the data."
    )
