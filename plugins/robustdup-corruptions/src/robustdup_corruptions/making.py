"""The nineteen common corruptions of Hendrycks and Dietterich (https://arxiv.org/abs/1903.12261), made on the fly.

Large images are corrupted by the library imagecorruptions, as strongly as ImageNet-C (its elastic transform is replaced); small
ones with parts of it, as strongly as CIFAR-10-C (`small_corruptions`). Both draw from NumPy's global state, which is seeded here
for each sample, kind and severity, so that order, batches and processes change no pixel.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustdup.errors import Unavailable, UserError, how_to_install
from robustdup.rng import SampleRng

Array = np.ndarray[Any, Any]

SMALLEST = 32  # pixels of a side: the library takes no smaller image
LARGE = 64  # pixels of the shorter side from which on the strengths are those of ImageNet-C
LIBRARY = "imagecorruptions"
# Of ImageNet-C, by severity: reach and blur of the shifts and reach of the corners, in 244 / 224 of the side. The library has a
# milder transform of another form.
ELASTIC = ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
ELASTIC_SIDE = 244 / 224
OWN_GENERATOR = ("impulse_noise", "glass_blur")  # kinds that do not draw from NumPy's global state


def make_corrupted(images: Tensor, index: Tensor, kind: str, severity: int, *, seed: int) -> Tensor:
    """Return corrupted images: of each sample a pure function of its pixels, its index, kind, severity and seed.

    Below 64 pixels the strengths are those of CIFAR-10-C, from 64 on those of ImageNet-C. Images with a side below 32 pixels are
    enlarged by whole pixels before, and averaged back after.

    Args:
        images: float32 (N, C, H, W) in [0, 1], with one or three channels.
        index: int64 (N,), of the samples in their split.
        kind: one of KINDS.
        severity: from 1 to 5.
        seed: of everything random.

    Returns:
        float32 (N, C, H, W) on the 8-bit grid.

    Raises:
        UserError: images with other channels.
        Unavailable: the library is not installed.
    """
    if images.shape[1] not in (1, 3):
        raise UserError(
            f"Corruptions are made of images with one or three channels, not {images.shape[1]}.", code="bad-images"
        )
    from robustdup_corruptions.small_images import corrupt_small  # brings scipy.ndimage, which no other data needs

    library = _library()
    seeds = SampleRng(seed, index).fold("corruption").fold(kind).fold(severity).bits()
    enlarged = -(-SMALLEST // min(images.shape[2:]))
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    made = np.empty(pixels.shape, dtype=np.uint8)
    with _own_state():
        for row, number in enumerate(seeds.tolist()):
            np.random.seed(number)
            given = _enlarge(pixels[row], enlarged)
            if min(given.shape[:2]) < LARGE:
                image = corrupt_small(given, kind, severity, number)
            else:
                image = _corrupt_large(library, given, kind, severity, number)
            image = np.where(np.isfinite(image), image, given)  # spatter divides by zero where no drop has fallen
            made[row] = _shrink(image.astype(np.uint8), enlarged, channels=pixels.shape[3])
    return torch.from_numpy(made).permute(0, 3, 1, 2).float().div(255).contiguous()


def _corrupt_large(library: ModuleType, image: Array, kind: str, severity: int, seed: int) -> Array:
    """Return an image, uint8 (H, W, 3), with a corruption as strong as in ImageNet-C: float64 in [0, 255]."""
    if kind == "elastic_transform":
        from robustdup_corruptions.small_images import elastic_transform

        reach, blur, corners = (share * ELASTIC_SIDE for share in ELASTIC[severity - 1])
        return np.clip(elastic_transform(image / 255.0, (reach, blur, corners)), 0, 1) * 255
    own = {"seed": seed} if kind in OWN_GENERATOR else {}
    return np.asarray(library.corruption_dict[kind](Image.fromarray(image), severity, **own), dtype=np.float64)


def _library() -> ModuleType:
    """Return the library. Raises Unavailable where it is not installed."""
    if importlib.util.find_spec(LIBRARY) is None:
        raise Unavailable(
            f"Making corruptions needs the package imagecorruptions-imaug. Install it: "
            f"{how_to_install('robustdup[corruptions]')} Or name a folder of published images: --data path/to/CIFAR-10-C."
        )
    return importlib.import_module(LIBRARY)


@contextmanager
def _own_state() -> Iterator[None]:
    """Put NumPy's global random state back after the block, and say nothing of divisions by zero inside."""
    before = np.random.get_state()
    try:
        with np.errstate(invalid="ignore", divide="ignore"):
            yield
    finally:
        np.random.set_state(before)


def _enlarge(image: Array, factor: int) -> Array:
    """Repeat each pixel of (H, W, C) `factor` times in both directions, in three channels."""
    colours = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    return np.ascontiguousarray(colours.repeat(factor, axis=0).repeat(factor, axis=1))


def _shrink(image: Array, factor: int, *, channels: int) -> Array:
    """Average blocks of `factor` by `factor` pixels, and the channels where one is wanted; uint8 (H, W, C)."""
    height, width = image.shape[0] // factor, image.shape[1] // factor
    blocks = image.reshape(height, factor, width, factor, 3).astype(np.float64).mean(axis=(1, 3))
    wanted = blocks.mean(axis=2, keepdims=True) if channels == 1 else blocks
    return np.asarray(wanted.round(), dtype=np.uint8)


def strengths_of(side: int) -> str:
    """Return whose strengths images with a shorter side of so many pixels get, in words."""
    if side < SMALLEST:
        return f"as strong as CIFAR-10-C, on images enlarged from {side} pixels and averaged back"
    return "as strong as CIFAR-10-C" if side < LARGE else "as strong as ImageNet-C"
