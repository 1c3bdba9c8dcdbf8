"""Pairs to look at: each image in a file of its own, and pages with the two images of each pair side by side."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robustdup.records import write_atomic
from robustdup_detect.store import decode

if TYPE_CHECKING:
    import PIL.Image

TILE = 96  # pixels a side of an image on a page
COLUMNS, LINES = 6, 10  # pairs on a page
LARGEST = 256  # pixels of the longer side of an image in a file


def write_image(encoded: Any, path: Path, background: str = "white") -> None:
    """Write an image as PNG, made smaller where it is large."""
    image = as_rgb(encoded, background)
    image.thumbnail((LARGEST, LARGEST))
    write_atomic(path, _png(image))


def as_rgb(encoded: Any, background: str = "white") -> PIL.Image.Image:
    """Return an encoded image in mode RGB."""
    from PIL import Image

    image, _ = decode(encoded, background)
    if image.mode == "F":
        image = Image.fromarray(np.asarray(image).round().clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def write_sheet(pairs: Sequence[tuple[Path, Path, str]], path: Path) -> None:
    """Write a page of pairs: the files of the two images, and a line of text for each."""
    from PIL import Image, ImageDraw

    width, height = 2 * TILE + 16, TILE + 20
    page = Image.new("RGB", (COLUMNS * width, math.ceil(len(pairs) / COLUMNS) * height), "white")
    draw = ImageDraw.Draw(page)
    for number, (first, second, text) in enumerate(pairs):
        left, top = number % COLUMNS * width, number // COLUMNS * height
        for place, file in enumerate((first, second)):
            with Image.open(file) as image:
                scale = TILE / max(image.size)
                size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
                page.paste(
                    image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS),
                    (left + place * (TILE + 2), top),
                )
        draw.text((left, top + TILE + 2), text, fill="black")
    write_atomic(path, _png(page))


def change_in_words(mirrored: bool, warp: Sequence[float], size: tuple[int, int], turn: float = 0.0) -> str:
    """Say what turns the first image into the second: mirroring, a turn clockwise in degrees, shift in pixels of the first
    (width, height), and size."""
    scale_x, scale_y, shift_x, shift_y = warp
    words = ["mirrored"] if mirrored else []
    if mirrored and abs(turn) > 177:
        words = ["mirrored top to bottom"]
    elif abs(turn) > 2:
        words.append(f"turned by {turn:.0f} degrees" if turn > 0 else f"turned back by {-turn:.0f} degrees")
    scale = math.sqrt(scale_x * scale_y)
    if abs(scale - 1) > 0.02:
        words.append(f"{abs(scale - 1):.0%} {'larger' if scale > 1 else 'smaller'}")
    shifts = ((shift_x * size[0] / 2, "right", "left"), (shift_y * size[1] / 2, "down", "up"))
    moved = [
        f"{abs(pixels):.1f} {ahead if pixels > 0 else back}" for pixels, ahead, back in shifts if abs(pixels) >= 0.05
    ]
    if moved and max(abs(shift_x), abs(shift_y)) > 0.03:
        words.append(f"shifted {' and '.join(moved)} (pixels)")
    return ", ".join(words) or "in place"


def _png(image: PIL.Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()
