"""From encoded images of any size and mode to arrays on disk: pictures of one size, hashes, and what cannot be read.

Memory holds only the rows at hand. A piece of work writes its rows first and then, atomically, a marker that says so: what a
killed run had finished is kept.
"""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robustdup.data.decode import UNREADABLE, plain_image, why_unreadable
from robustdup.errors import RunError
from robustdup.records import write_atomic
from robustdup_detect.features import SIZE
from robustdup_detect.groups import DIGEST, digest

if TYPE_CHECKING:
    import datasets
    import PIL.Image


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
    return RunError(
        f"Cannot write to {str(folder)!r}: {reason}. What is finished is kept: go on with --resume.", code="not-written"
    )


CHUNK = 500  # encoded images in memory at once


def encoded_images(dataset: datasets.Dataset, image: str) -> datasets.Dataset:
    """Return a dataset of the image column alone, as bytes and paths."""
    import datasets

    return dataset.select_columns([image]).cast_column(image, datasets.Image(decode=False)).with_format("arrow")


def read_rows(images: datasets.Dataset, image: str, store: Store, start: int, stop: int) -> list[tuple[int, str, str]]:
    """Decode rows start..stop-1 into the store; return (row, path, reason) of those that cannot be read."""
    broken = []
    for low in range(start, stop, CHUNK):
        column = images[low : min(low + CHUNK, stop)][image]
        n = len(column)
        pictures = np.zeros((n, 3, SIZE, SIZE), np.uint8)
        hashes, facts = np.zeros((n, DIGEST), np.uint8), np.zeros((n, 4), np.int64)
        for place, encoded in enumerate(column.to_pylist()):
            try:
                picture, content = decode(encoded)
                pictures[place] = small(picture)
            except UNREADABLE as error:
                broken.append((low + place, (encoded or {}).get("path") or "", why_unreadable(error)))
                continue
            hashes[place] = np.frombuffer(digest(np.asarray(picture)), np.uint8)
            facts[place] = (*picture.size, content, 1)
        for name, rows in (("pictures", pictures), ("hashes", hashes), ("facts", facts)):
            store.write(name, low, rows)
    return broken


def decode(encoded: Any) -> tuple[PIL.Image.Image, int]:
    """Return an image in mode L, RGB or F (see `plain_image`; transparency over white) and the bytes that it was read from."""
    from PIL import Image

    if encoded is None:
        raise ValueError("no image")
    content = encoded["bytes"]
    if content is None:
        with open(encoded["path"], "rb") as file:
            content = file.read()
    image: PIL.Image.Image = Image.open(io.BytesIO(content))
    image.load()
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return plain_image(image), len(content)


def read_pictures(images: datasets.Dataset, image: str, rows: Any, size: int) -> Any:
    """Return the pictures at rows, in any order, as numpy uint8 (N, 3, size, size); black where one cannot be read."""
    pictures = np.zeros((len(rows), 3, size, size), np.uint8)
    for low in range(0, len(rows), CHUNK):
        for place, encoded in enumerate(images[rows[low : low + CHUNK].tolist()][image].to_pylist()):
            with contextlib.suppress(*UNREADABLE):  # listed when it was read first
                pictures[low + place] = small(decode(encoded)[0], size)
    return pictures


def small(image: PIL.Image.Image, size: int = SIZE) -> Any:
    """Return a picture as numpy uint8 (3, size, size), squeezed into a square."""
    from PIL import Image

    if image.mode == "F":
        image = Image.fromarray(np.asarray(image).round().clip(0, 255).astype(np.uint8))
    if image.mode != "RGB":
        image = image.convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)
