"""From encoded images of any size and mode to pictures of one size, hashes of their pixels, and what cannot be read."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from robustdup.data.decode import UNREADABLE, plain_image, why_unreadable
from robustdup_detect.exact import DIGEST, digest
from robustdup_detect.features import SIZE
from robustdup_detect.store import Store

if TYPE_CHECKING:
    import datasets
    import PIL.Image

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
