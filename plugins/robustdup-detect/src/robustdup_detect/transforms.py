"""How near duplicates come about: shifted, mirrored, cropped, brighter, compressed, noisy copies, and two of these at once.

They are what the projection is learned from, and the positives of a calibration.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Change = Callable[[Tensor, np.random.Generator], Tensor]


def shift(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Move each picture by up to a tenth of its side (3 of 32 pixels), at least one pixel; what opens is black, or filled."""
    side = pixels.shape[-1]
    most = max(round(0.1 * side), 1)
    moved = []
    for image in pixels.float():
        down, across = rng.integers(-most, most + 1, 2)
        if down == across == 0:
            across = 1
        mode = ("constant", "replicate", "reflect")[rng.integers(3)]
        padded = F.pad(image[None], (most,) * 4, mode=mode)[0]
        moved.append(padded[:, most + down : most + down + side, most + across : most + across + side])
    return torch.stack(moved).to(torch.uint8)


def mirror(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Mirror each picture left to right."""
    return pixels.flip(-1)


def crop(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Cut out 90% of each side, anywhere, and resize back."""
    side = pixels.shape[-1]
    kept = round(0.9 * side)
    made = []
    for image in pixels.float():
        top, left = rng.integers(0, side - kept + 1, 2)
        part = image[None, :, top : top + kept, left : left + kept]
        made.append(F.interpolate(part, (side, side), mode="bilinear", align_corners=False, antialias=True)[0])
    return _to_uint8(torch.stack(made))


def brightness(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Multiply each picture by 0.8 or 1.2."""
    factor = torch.from_numpy(rng.choice([0.8, 1.2], len(pixels))).float()
    return _to_uint8(pixels.float() * factor[:, None, None, None])


def jpeg(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Compress each picture as JPEG of quality 60."""
    from PIL import Image

    made = []
    for image in pixels:
        content = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(content, "JPEG", quality=60)
        made.append(torch.from_numpy(np.array(Image.open(content))).permute(2, 0, 1))
    return torch.stack(made)


def noise(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Add normal noise with a standard deviation of 5 grey levels."""
    return _to_uint8(pixels.float() + torch.from_numpy(rng.normal(0, 5, pixels.shape)).float())


def _to_uint8(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


CHANGES: dict[str, Change] = {
    "shift": shift, "mirror": mirror, "crop": crop, "brightness": brightness, "jpeg": jpeg, "noise": noise,
}  # fmt: skip
NAMES = (*CHANGES, *("+".join(pair) for pair in itertools.combinations(CHANGES, 2)))


def change(name: str, pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Return changed copies of pixels uint8 (N, 3, S, S); `name` is one of NAMES, the changes done from left to right."""
    for part in name.split("+"):
        pixels = CHANGES[part](pixels, rng)
    return pixels


def changed_copies(pixels: Tensor, rng: np.random.Generator, names: Sequence[str] = NAMES) -> tuple[Tensor, list[str]]:
    """Return one changed copy of each picture, all `names` in turn, and the name of the change of each."""
    copies, done = torch.empty_like(pixels), [names[row % len(names)] for row in range(len(pixels))]
    for offset, name in enumerate(names[: len(pixels)]):
        copies[offset :: len(names)] = change(name, pixels[offset :: len(names)], rng)
    return copies, done
