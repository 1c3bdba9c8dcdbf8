"""The gallery: some samples of a run as small pictures, packed into sheets that a page loads one at a time.

A sheet has a row a sample and up to three columns: clean, adversarial, and their difference magnified.
"""

from __future__ import annotations

import io
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open

from robustdup.records import EvaluationRecord
from robustdup.report.samples import OUTCOMES, Samples

ADVERSARIAL = Path("images") / "adversarial.safetensors"
CLEAN = Path("images") / "clean.safetensors"
PER_SHEET = 24
LARGEST = 96  # pixels a side; larger pictures are shrunk
PIXEL_ART = 64  # up to this size PNG keeps every pixel; above, JPEG keeps the sheets small
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Pictures:
    """Adversarial examples of a run and, where it kept them, its clean images: float32 (N, C, H, W) in [0, 1]."""

    path: Path
    n: int
    clean: Path | None
    given: Array | None = None

    def adversarial(self, rows: Array) -> Array:
        """Return some adversarial examples, without reading the others."""
        return _read_rows(self.path, rows)

    def clean_images(self, rows: Array) -> Array | None:
        """Return the clean images of some samples; None where the run kept none."""
        if self.given is not None:
            return np.asarray(self.given[rows], dtype=np.float32)
        return _read_rows(self.clean, rows) if self.clean is not None else None


@dataclass(frozen=True)
class Gallery:
    """What a page needs: `data` for the script, `sheets` as (file name, content), and remarks in words."""

    data: dict[str, Any]
    sheets: list[tuple[str, bytes]]
    shown: int
    total: int
    magnified: float | None
    has_clean: bool
    shrunk: bool


def find_pictures(folder: Path, n: int, given: Array | None = None) -> Pictures | str:
    """Return the pictures of a run of `n` samples, or why there are none. `given` are clean images from elsewhere."""
    path = folder / ADVERSARIAL
    if not path.is_file():
        return "The run folder keeps no adversarial images (eval --no-save-images)."
    try:
        shape = _shape(path)
        if len(shape) != 4 or shape[0] != n or min(shape) < 1 or shape[1] not in (1, 3):
            return f"The adversarial images have shape {shape}, which cannot be drawn for {n} samples."
        clean = folder / CLEAN
        kept = clean if clean.is_file() and _shape(clean) == shape else None
    except (SafetensorError, OSError, KeyError) as error:
        return f"The images of the run cannot be read: {error}."
    return Pictures(path, n, kept, given if given is not None and given.shape == shape else None)


def _shape(path: Path) -> tuple[int, ...]:
    with safe_open(path, framework="numpy") as file:
        return tuple(file.get_slice("images").get_shape())


def _read_rows(path: Path, rows: Array) -> Array:
    """Read rows (rising) of the images as float32, without reading the rest; uint8 becomes [0, 1]."""
    with safe_open(path, framework="numpy") as file:
        part = file.get_slice("images")
        pixels = np.concatenate([part[start : stop + 1] for start, stop in _runs(rows.tolist())])
    return pixels.astype(np.float32) / 255 if pixels.dtype == np.uint8 else pixels.astype(np.float32)


def _runs(rows: list[int]) -> list[tuple[int, int]]:
    """Join neighbouring rows: [1, 2, 3, 7] -> [(1, 3), (7, 7)]."""
    runs: list[tuple[int, int]] = []
    for row in rows:
        if runs and runs[-1][1] == row - 1:
            runs[-1] = (runs[-1][0], row)
        else:
            runs.append((row, row))
    return runs


def choose(samples: Samples, limit: int) -> Array:
    """Return up to `limit` rows, rising: in turn from each outcome, attack and class, the first of each first."""
    if len(samples) <= limit:
        return np.arange(len(samples))
    groups: dict[tuple[str, str, int], list[int]] = {}
    keys = zip(samples.outcome.tolist(), samples.attack.tolist(), samples.label.tolist(), strict=True)
    for row, (outcome, attack, label) in enumerate(keys):
        groups.setdefault((outcome, attack if outcome == OUTCOMES[1] else "", label), []).append(row)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*groups.values()))
    return np.array(sorted(itertools.islice((row for row in turns if row is not None), limit)))


def make_gallery(
    record: EvaluationRecord, samples: Samples, pictures: Pictures, *, prefix: str, limit: int = 240
) -> Gallery:
    """Return the gallery of a run; its sheets are to be written as `images/<prefix>-NN.png` (or .jpg)."""
    rows = choose(samples, limit)
    order = np.array([OUTCOMES.index(o) for o in samples.outcome[rows]])
    by_outcome = rows[np.argsort(np.where(order == 1, -1, order), kind="stable")]
    adv_images = displayable(pictures.adversarial(rows))
    clean = pictures.clean_images(rows)
    columns, scale = side_by_side(record, adv_images, clean)
    place = {int(row): i for i, row in enumerate(rows)}
    height, width = adv_images.shape[2:]
    factor = max(1, math.ceil(max(height, width) / LARGEST))
    art = max(height, width) <= PIXEL_ART
    sheets = []
    for number, start in enumerate(range(0, len(by_outcome), PER_SHEET)):
        positions = [place[int(row)] for row in by_outcome[start : start + PER_SHEET]]
        sheet = tiles([column[positions] for column in columns], factor)
        sheets.append((f"images/{prefix}-{number:02d}.{'png' if art else 'jpg'}", encoded(sheet, png=art)))
    data = {
        "sheets": [name for name, _ in sheets],
        "perSheet": PER_SHEET,
        "columns": ["clean", "adversarial", "difference"] if clean is not None else ["adversarial"],
        "pixelated": max(height, width) <= PIXEL_ART,
        "ratio": width / height,
        "samples": [_describe(samples, int(row)) for row in by_outcome],
    }
    magnified = None if scale is None else 0.5 / scale
    return Gallery(data, sheets, len(rows), len(samples), magnified, clean is not None, factor > 1)


def side_by_side(record: EvaluationRecord, adv_images: Array, clean: Array | None) -> tuple[list[Array], float | None]:
    """Return what is shown of samples, columns of images (n, C, H, W): clean, adversarial, their difference magnified.

    With them comes the difference that is drawn as black or white. Where there are no clean images, (adversarial alone, None).
    """
    if clean is None:
        return [adv_images], None
    scale = _scale(record, adv_images - clean)
    return [clean, adv_images, 0.5 + (adv_images - clean) / (2 * scale)], scale


def displayable(images: Array) -> Array:
    """Return images as numbers in [0, 1] that can be drawn."""
    return np.nan_to_num(images, nan=0.0, posinf=1.0, neginf=0.0).clip(0.0, 1.0)


def _scale(record: EvaluationRecord, difference: Array) -> float:
    """The difference that is drawn as black or white: eps in Linf, the largest that occurs in other norms."""
    largest = float(np.abs(difference).max()) if difference.size else 0.0
    chosen = record.threat.eps if record.threat.norm == "Linf" else largest
    return chosen if math.isfinite(chosen) and chosen > 0 else 1.0


def tiles(columns: list[Array], factor: int) -> Array:
    """Lay tiles (n, C, H, W) of each column side by side, samples below each other: uint8 (n * H, columns * W, C)."""
    rows = [np.concatenate([_shrunk(column[i], factor) for column in columns], axis=2) for i in range(len(columns[0]))]
    whole = np.concatenate(rows, axis=1)
    return np.asarray((whole.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0))


def _shrunk(image: Array, factor: int) -> Array:
    """Average blocks of `factor` by `factor` pixels of (C, H, W); what is left at the edges is cut off."""
    if factor == 1:
        return image
    channels, height, width = (image.shape[0], image.shape[1] // factor, image.shape[2] // factor)
    cut = image[:, : height * factor, : width * factor]
    return np.asarray(cut.reshape(channels, height, factor, width, factor).mean(axis=(2, 4)))


def encoded(sheet: Array, *, png: bool) -> bytes:
    """Return a sheet (H, W, C) uint8 as the content of a PNG or JPEG file."""
    picture = Image.fromarray(sheet[..., 0] if sheet.shape[2] == 1 else sheet)
    content = io.BytesIO()
    if png:
        picture.save(content, "PNG", compress_level=6)
    else:
        picture.save(content, "JPEG", quality=85)
    return content.getvalue()


def _describe(samples: Samples, row: int) -> dict[str, Any]:
    distance = float(samples.distance[row])
    return {
        "index": int(samples.index[row]),
        "label": int(samples.label[row]),
        "before": int(samples.before[row]),
        "after": int(samples.after[row]),
        "outcome": str(samples.outcome[row]),
        "attack": str(samples.attack[row]),
        "eps": str(samples.eps[row]),
        "distance": round(distance, 6) if math.isfinite(distance) else None,
    }
