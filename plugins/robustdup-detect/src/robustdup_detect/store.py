"""What is kept of each image of a split, in files of rows on disk: memory holds only the rows at hand.

A piece of work writes its rows first and then, atomically, a marker that says so: what a killed run had finished is kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustdup.errors import RunError
from robustdup.records import write_atomic
from robustdup_detect.features import SIZE

DIMENSIONS = 64
ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
    "pictures": ("uint8", (3, SIZE, SIZE)),
    "hashes": ("uint8", (16,)),
    "facts": ("int64", (4,)),  # width, height, bytes of the file, 1 where the image can be read
    "embeddings": ("float32", (DIMENSIONS,)),
}


@dataclass(frozen=True)
class Store:
    """The arrays of one split with `n` rows, in a folder of their own."""

    folder: Path
    n: int

    def create(self) -> None:
        """Make the files, as long as they will be, where they are not there yet. Raises RunError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in ARRAYS:
                path, size = self._path(name), self.n * _row_bytes(name)
                if not path.is_file() or path.stat().st_size != size:
                    with path.open("wb") as file:
                        file.truncate(size)
        except OSError as error:
            raise _unwritten(self.folder, error) from error

    def write(self, name: str, start: int, rows: Any) -> None:
        """Write rows of an array from row `start` on. Raises RunError where the disk is full."""
        content = np.ascontiguousarray(rows, dtype=ARRAYS[name][0])
        try:  # not through a memory map: a full disk would kill the process without a word
            with self._path(name).open("r+b") as file:
                file.seek(start * _row_bytes(name))
                file.write(content.tobytes())
        except OSError as error:
            raise _unwritten(self.folder, error) from error

    def read(self, name: str) -> Any:
        """Return an array (n, …) that reads from disk as its rows are asked for."""
        dtype, shape = ARRAYS[name]
        return np.memmap(self._path(name), dtype=dtype, mode="r", shape=(self.n, *shape))

    def finished(self, work: str, start: int) -> Any | None:
        """Return what a finished piece of work left (JSON), None where it is not finished."""
        path = self._marker(work, start)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def finish(self, work: str, start: int, result: Any) -> None:
        """Mark a piece of work as finished, with its result as JSON."""
        write_atomic(self._marker(work, start), json.dumps(result).encode())

    def _marker(self, work: str, start: int) -> Path:
        return self.folder / "done" / f"{work}-{start}.json"

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.bin"


def _row_bytes(name: str) -> int:
    dtype, shape = ARRAYS[name]
    return int(np.dtype(dtype).itemsize * np.prod(shape))


def _unwritten(folder: Path, error: OSError) -> RunError:
    reason = error.strerror or str(error)
    return RunError(f"Cannot write to {str(folder)!r}: {reason}. What is finished is kept: go on with --resume.")
