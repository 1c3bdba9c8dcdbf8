"""Near copies: each copy of an image is changed by named transforms, drawn from (seed, source row, copy number).

Everything is computed in integers on 8-bit pixels, so that a copy is the same to the bit on every device and whoever shares
its batch (JPEG: whatever the library makes of it). Each follows its counterpart in torchvision
(https://docs.pytorch.org/vision/stable/transforms.html), from which it differs by one level of 255 at most.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustdup.config import parse_attacks
from robustdup.errors import UserError, unknown
from robustdup.plugins.options import keywords
from robustdup.rng import SampleRng

_ONE = 4096  # fixed point: 12 bits after the binary point
_GREY = (1224, 2404, 467)  # weights of red, green and blue in grey (ITU-R 601), of 4096
_NOISY_VALUES = 2**20  # pixel values whose random words are computed at once


def entry_rng(seed: int, source_index: Tensor, copy: Tensor) -> SampleRng:
    """Return a stream for each entry, keyed by (seed, source row, copy number)."""
    return SampleRng(seed, source_index.long() + (copy.long() << 32))


@dataclass(frozen=True)
class NearTransform:
    """The transforms of near copies in order, each (name, options), and the seed of their draws."""

    steps: tuple[tuple[str, tuple[tuple[str, float], ...]], ...]
    seed: int

    @property
    def text(self) -> str:
        """The transforms as they can be written: 'shift(pixels=3),jpeg(quality=60)'."""
        return ",".join(f"{name}({','.join(f'{k}={v:g}' for k, v in options)})" for name, options in self.steps)

    def __call__(self, pixels: Tensor, source_index: Tensor, copy: Tensor) -> Tensor:
        """Return the near copies, uint8 (n, C, H, W) as given, of `pixels` with rows and copy numbers (n,).

        Grey or colour, on any device (JPEG is made on the CPU). Raises UserError for pixels of another kind.
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
            raise UserError(
                f"Near copies are made of uint8 pixels (n, 1 or 3, H, W); got {tuple(pixels.shape)} {pixels.dtype}.",
                code="bad-images",
            )
        rng = entry_rng(self.seed, source_index.to(pixels.device), copy.to(pixels.device))
        for number, (name, options) in enumerate(self.steps):
            pixels = TRANSFORMS[name](pixels, rng.fold(f"near {number} {name}"), **dict(options))
        return pixels


def parse_near(text: str, seed: int) -> NearTransform:
    """Read 'shift(pixels=2),jpeg' as a transform. Raises UserError for unknown names and values out of range."""
    steps = []
    for name, options in parse_attacks(text):
        if name not in TRANSFORMS:
            raise unknown("near transform", name, TRANSFORMS)
        known = {key: parameter.default for key, parameter in keywords(TRANSFORMS[name]).items()}
        for key in options:
            if key not in known:
                raise unknown(f"option of near transform {name!r}:", key, known)
        values = {key: _checked(name, key, options.get(key, default)) for key, default in known.items()}
        steps.append((name, tuple(values.items())))
    return NearTransform(tuple(steps), seed)


_RANGES = {
    "pixels": (1, 64), "keep": (0.1, 0.99), "strength": (0.01, 1), "quality": (1, 100), "std": (0.001, 0.5),
    "sigma": (0.2, 10),
}  # fmt: skip


def _checked(name: str, key: str, value: Any) -> float:
    low, high = _RANGES[key]
    whole = key in ("pixels", "quality")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise UserError(
            f"{key} of near transform {name!r} must be {kind} from {low} to {high}, got {value!r}.", code="bad-value"
        )
    return int(value) if whole else float(value)


def flip(images: Tensor, rng: SampleRng) -> Tensor:
    """Mirror left and right, always."""
    return images.flip(-1)


def shift(images: Tensor, rng: SampleRng, *, pixels: int = 3) -> Tensor:
    """Move by up to `pixels` in each direction, never by nothing; the edge is repeated."""
    side = 2 * pixels + 1
    place = rng.integers(0, side * side - 1)
    place = place + (place >= side * side // 2).long()  # the middle is no move
    moves = place // side - pixels, place % side - pixels
    rows, columns = (
        (torch.arange(size, device=images.device) - move[:, None]).clamp(0, size - 1)
        for size, move in zip(images.shape[-2:], moves, strict=True)
    )
    return _take(images, rows, columns)


def crop_resize(images: Tensor, rng: SampleRng, *, keep: float = 0.9) -> Tensor:
    """Crop to `keep` of each side, at a random place, and resize back (bilinear)."""
    rows, columns = (_neighbours(size, keep, rng, draw) for draw, size in enumerate(images.shape[-2:]))
    total = torch.zeros(images.shape, dtype=torch.int64, device=images.device)
    for row, row_weight in rows:
        for column, column_weight in columns:
            total += _take(images, row, column).long() * row_weight[..., None] * column_weight[:, :, None]
    return _rounded(total, _ONE * _ONE)


def brightness(images: Tensor, rng: SampleRng, *, strength: float = 0.2) -> Tensor:
    """Multiply by 1 plus or minus between half of `strength` and all of it."""
    return _rounded(images.long() * _factor(rng, strength), _ONE)


def contrast(images: Tensor, rng: SampleRng, *, strength: float = 0.2) -> Tensor:
    """Multiply the distance from the mean grey value by 1 plus or minus between half of `strength` and all of it."""
    value = images.long()
    grey = value if images.shape[1] == 1 else (value * value.new_tensor(_GREY).view(1, 3, 1, 1)).sum(1) // _ONE
    grey = grey.flatten(1)
    mean = (grey.sum(1) * _ONE // grey.shape[1]).view(-1, 1, 1, 1)
    factor = _factor(rng, strength)
    return _rounded(value * _ONE * factor + mean * (_ONE - factor), _ONE * _ONE)


def jpeg(images: Tensor, rng: SampleRng, *, quality: int = 60) -> Tensor:
    """Write as JPEG with this `quality` and read again, with Pillow."""
    from PIL import Image

    made = []
    for image in images.cpu():
        content = io.BytesIO()
        pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
        Image.fromarray(pixels.contiguous().numpy()).save(content, "JPEG", quality=quality)
        decoded = torch.from_numpy(np.array(Image.open(content)))
        made.append(decoded[None] if decoded.ndim == 2 else decoded.permute(2, 0, 1))
    return torch.stack(made).to(images.device) if made else images


def noise(images: Tensor, rng: SampleRng, *, std: float = 0.02) -> Tensor:
    """Add independent noise of this standard deviation in [0, 1]: the sum of four uniform bytes, nearly normal."""
    scale = round(std * 255 / math.sqrt(4 * (256**2 - 1) / 12) * 2**20)
    noisy = torch.empty_like(images)
    many = max(1, _NOISY_VALUES // max(1, math.prod(images.shape[1:])))
    for start in range(0, len(images), many):
        rows = slice(start, start + many)
        word = rng[rows].bits(images.shape[1:])
        total = (word & 255) + (word >> 8 & 255) + (word >> 16 & 255) + (word >> 24) - 510
        noisy[rows] = _rounded(images[rows].long() * 2**20 + total * scale, 2**20)
    return noisy


def blur(images: Tensor, rng: SampleRng, *, sigma: float = 0.7) -> Tensor:
    """Blur with a Gaussian of this standard deviation in pixels; the edge is mirrored."""
    radius = min(math.ceil(3 * sigma), min(images.shape[-2:]) - 1)
    side = [math.exp(-0.5 * (x / sigma) ** 2) for x in range(1, radius + 1)]
    part = [round(_ONE * value / (1 + 2 * sum(side))) for value in side]
    weights = [*part[::-1], _ONE - 2 * sum(part), *part]
    value = images.long()
    for axis in (-2, -1):
        place = torch.arange(images.shape[axis], device=images.device)
        last = images.shape[axis] - 1
        value = sum(
            (weight * value.index_select(axis, last - (last - (place + offset).abs()).abs())
             for weight, offset in zip(weights, range(-radius, radius + 1), strict=True)),
            torch.zeros_like(value),
        )  # fmt: skip
    return _rounded(value, _ONE * _ONE)


def _take(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return images[i, :, rows[i], columns[i]] for each image: rows (n, h), columns (n, w)."""
    n, channels, height, width = images.shape
    place = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)[:, None, :].expand(n, channels, -1)
    return images.flatten(2).gather(2, place).view(n, channels, height, width)


def _neighbours(size: int, keep: float, rng: SampleRng, draw: int) -> list[tuple[Tensor, Tensor]]:
    """Return the two source places (n, size) of each place along a side, and their weights (n, 1, size) of 4096 in all."""
    crop = max(1, min(size - 1, round(keep * size)))
    start = rng.integers(0, size - crop + 1, draw=draw)[:, None]
    place = torch.arange(size, device=start.device)
    position = (((2 * place + 1) * crop - size) * _ONE // (2 * size)).clamp(min=0)
    near, part = (position // _ONE).clamp(max=crop - 1), position % _ONE
    pairs = ((near, _ONE - part), ((near + 1).clamp(max=crop - 1), part))
    return [(start + where, weight.expand(len(start), 1, -1)) for where, weight in pairs]


def _factor(rng: SampleRng, strength: float) -> Tensor:
    """Return factors (n, 1, 1, 1) of 4096: every copy differs visibly from its source."""
    change = rng.integers(round(strength * _ONE / 2), round(strength * _ONE) + 1)
    return (_ONE + change * rng.signs(draw=1, dtype=torch.int64)).view(-1, 1, 1, 1)


def _rounded(value: Tensor, unit: int) -> Tensor:
    """Return fixed-point values as pixels."""
    return torch.div(value + unit // 2, unit, rounding_mode="floor").clamp(0, 255).to(torch.uint8)


TRANSFORMS: dict[str, Callable[..., Tensor]] = {
    "flip": flip, "shift": shift, "crop_resize": crop_resize, "brightness": brightness, "contrast": contrast,
    "jpeg": jpeg, "noise": noise, "blur": blur,
}  # fmt: skip
