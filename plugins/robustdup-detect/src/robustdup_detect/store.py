"""From encoded images of any size and mode to arrays on disk: pictures of one size, hashes, and what cannot be read.

Memory holds only the rows at hand. A piece of work writes its rows first and then, atomically, a marker that says so: what a
killed run had finished is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from robustdup.data.decode import UNREADABLE, check_place, no_programs, plain_image, why_unreadable
from robustdup.errors import RunError
from robustdup.records import write_atomic
from robustdup_detect.features import SIZE
from robustdup_detect.groups import DIGEST, digest
from robustdup_detect.keypoints import LARGE, MOST, WIDTH, Keypoints, find_keypoints
from robustdup_detect.paths import save_paths

if TYPE_CHECKING:
    import datasets
    import PIL.Image


DIMENSIONS = 64
ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
    "pictures": ("uint8", (3, SIZE, SIZE)),
    "hashes": ("uint8", (16,)),
    "facts": ("int64", (4,)),  # width, height, bytes of the file, 1 where the image can be read
    "embeddings": ("float32", (DIMENSIONS,)),
    "places": ("float32", (MOST, 2)),
    "descriptors": ("uint8", (MOST, WIDTH)),
    "keypoints": ("int64", ()),
    "words": ("int32", (MOST,)),
    "keys": ("uint8", (16,)),
}
LOCAL = ("places", "descriptors", "keypoints")  # what is known of local features
# Arrays that are there where pictures have local features, or where an index is kept.
OPTIONAL = (*LOCAL, "words", "keys")
ALWAYS = tuple(name for name in ARRAYS if name not in OPTIONAL)


@dataclass(frozen=True)
class Store:
    """The arrays of one split with `n` rows, in a folder of their own."""

    folder: Path
    n: int

    def create(self, names: Iterable[str] = ALWAYS) -> None:
        """Make the files, as long as they will be, where they are not there yet. Raises RunError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in names:
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
            if name in OPTIONAL and not self.has(name):
                with self._path(name).open("ab") as file:
                    file.truncate(self.n * _row_bytes(name))
            with self._path(name).open("r+b") as file:
                file.seek(start * _row_bytes(name))
                file.write(content.tobytes())
        except OSError as error:
            raise _unwritten(self.folder, error) from error

    def read(self, name: str) -> Any:
        """Return an array (n, …) that reads from disk as its rows are asked for."""
        dtype, shape = ARRAYS[name]
        return np.memmap(self._path(name), dtype=dtype, mode="r", shape=(self.n, *shape))

    def has(self, name: str) -> bool:
        """Whether any row of an array has been written, where it is not always there."""
        return self._path(name).is_file()

    def keypoints(self, rows: Any) -> Keypoints:
        """Return the local features of rows."""
        return Keypoints(*(np.array(self.read(name)[rows]) for name in LOCAL))

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


class KnownImages(Protocol):
    """What an index has of images."""

    def image(self, key: Any) -> dict[str, Any] | None:
        """Return the values of the image whose bytes have a key uint8 (16,), by the name of their array; None for none."""


CHUNK = 500  # encoded images in memory at once
ORIENTATION = 0x0112  # EXIF tag


def read_rows(
    images: datasets.Dataset, image: str, store: Store, start: int, stop: int, background: str = "white",
    *, smallest: int | None = LARGE, known: KnownImages | None = None,
) -> list[tuple[int, str, str]]:  # fmt: skip
    """Decode rows start..stop-1 into the store; return (row, path, reason) of those that cannot be read.

    Pictures whose shorter side has at least `smallest` pixels are looked at for local features, too; none if None. What an
    index has of the same bytes is taken from it (`known`), and the keys of all rows are kept then.
    """
    broken: list[tuple[int, str, str]] = []
    paths: list[str] = []
    for low in range(start, stop, CHUNK):
        column = images[low : min(low + CHUNK, stop)][image]
        n = len(column)
        rows = {
            name: np.zeros((n, *ARRAYS[name][1]), ARRAYS[name][0]) for name in ("pictures", "hashes", "facts", "keys")
        }
        local: dict[int, Any] = {}
        for place, encoded in enumerate(column.to_pylist()):
            paths.append((encoded or {}).get("path") or "")
            try:
                content = content_of(encoded)
                if known is not None:
                    rows["keys"][place] = np.frombuffer(content_key(content), np.uint8)
                    had = known.image(rows["keys"][place])
                    if had is not None:
                        for name in ("pictures", "hashes", "facts"):
                            rows[name][place] = had[name]
                        if "keypoints" in had:
                            local[place] = tuple(had[name] for name in LOCAL)
                        continue
                picture = decode_content(content, background)
                rows["pictures"][place] = small(picture)
            except UNREADABLE as error:
                broken.append((low + place, paths[-1], why_unreadable(error)))
                continue
            rows["hashes"][place] = np.frombuffer(digest(decoded_pixels(picture)), np.uint8)
            rows["facts"][place] = (*picture.size, len(content), 1)
            if smallest is not None and min(picture.size) >= smallest:
                local[place] = find_keypoints(as_pixels(picture))
        for name, values in rows.items():
            if name != "keys" or known is not None:
                store.write(name, low, values)
        if local:
            _write_keypoints(store, low, n, local)
    save_paths(store.folder, start, paths)
    return broken


def _write_keypoints(store: Store, start: int, n: int, local: dict[int, Any]) -> None:
    """Write the local features of n rows from row `start` on; rows that are not in `local` have none."""
    none = np.zeros((MOST, 2), np.float32), np.zeros((MOST, WIDTH), np.uint8), 0
    rows = [local.get(place, none) for place in range(n)]
    for name, values in zip(LOCAL, zip(*rows, strict=True), strict=True):
        store.write(name, start, np.stack(values) if name != "keypoints" else np.array(values))


def content_of(encoded: Any) -> bytes:
    """Return the bytes of an encoded image, from its file where it has one. Raises one of UNREADABLE."""
    check_place(encoded)
    content: bytes | None = encoded["bytes"]
    if content is None:
        with open(encoded["path"], "rb") as file:
            content = file.read()
    return content


def content_key(content: bytes) -> bytes:
    """Return 16 bytes that identify the bytes of an encoded image."""
    return hashlib.blake2b(content, digest_size=DIGEST).digest()


def decode(encoded: Any, background: str = "white") -> tuple[PIL.Image.Image, int]:
    """Return an image as `decode_content` does, and the number of bytes that it was read from."""
    content = content_of(encoded)
    return decode_content(content, background), len(content)


def decode_content(content: bytes, background: str = "white") -> PIL.Image.Image:
    """Return an image upright in mode L, RGB or F (see `plain_image`).

    It is turned as its EXIF orientation says, as `datasets` does; what is transparent shows the background.
    """
    from PIL import Image, ImageOps

    no_programs()
    image: PIL.Image.Image = Image.open(io.BytesIO(content))
    image.load()
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, background), layer).convert("RGB")
    return plain_image(image)


def decoded_pixels(image: PIL.Image.Image) -> Any:
    """Return what tells identical images: grey as colour, 16 bits as 8 where 8 hold the same values.

    uint8 (H, W, 3), or float32 (H, W) for the values of 16 bits that 8 cannot hold.
    """
    if image.mode != "F":
        return np.asarray(image.convert("RGB"))
    values = np.asarray(image)
    whole = values.round()
    if np.abs(values - whole).max(initial=0) > 1e-3:
        return values
    return np.repeat(whole.astype(np.uint8)[..., None], 3, axis=2)


def unreadable_rows(images: datasets.Dataset, image: str, background: str = "white") -> list[tuple[int, str, str]]:
    """Return (row, path, reason) of the images that cannot be read."""
    broken = []
    for low in range(0, len(images), CHUNK):
        for place, encoded in enumerate(images[low : low + CHUNK][image].to_pylist()):
            try:
                decode(encoded, background)
            except UNREADABLE as error:
                broken.append((low + place, (encoded or {}).get("path") or "", why_unreadable(error)))
    return broken


def read_pictures(images: datasets.Dataset, image: str, rows: Any, size: int, background: str = "white") -> Any:
    """Return the pictures at rows, in any order, as numpy uint8 (N, 3, size, size); black where one cannot be read."""
    pictures = np.zeros((len(rows), 3, size, size), np.uint8)
    for low in range(0, len(rows), CHUNK):
        for place, encoded in enumerate(images[rows[low : low + CHUNK].tolist()][image].to_pylist()):
            with contextlib.suppress(*UNREADABLE):  # listed when it was read first
                pictures[low + place] = small(decode(encoded, background)[0], size)
    return pictures


def as_pixels(image: PIL.Image.Image) -> Any:
    """Return a picture as numpy uint8 (H, W, 3)."""
    return np.asarray(_plain_rgb(image))


def _plain_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    from PIL import Image

    if image.mode == "F":
        image = Image.fromarray(np.asarray(image).round().clip(0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def small(image: PIL.Image.Image, size: int = SIZE) -> Any:
    """Return a picture as numpy uint8 (3, size, size), squeezed into a square."""
    from PIL import Image

    image = _plain_rgb(image)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)
