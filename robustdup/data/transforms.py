"""Transforms of torchvision that change one training image, seeded by its own stream: RandAugment, random resized crops.

They are torchvision's own (https://docs.pytorch.org/vision/stable/transforms.html, v2), made on the CPU one image after the
other, so that a sample gets the same change whatever batch it comes in. Nothing of the global random state changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from robustdup.config import parse_attacks
from robustdup.errors import UserError, unknown
from robustdup.plugins.options import check_keywords, keywords
from robustdup.rng import SampleRng

Change = Callable[[Tensor], Tensor]
MAGNITUDES = 30  # largest magnitude of RandAugment


def resized_crop(size: tuple[int, int], *, scale: float = 0.08, ratio: float = 0.75) -> Change:
    """Cut a window of `scale` to 1 of the image and of aspect `ratio` to 1 / ratio, resized: https://arxiv.org/abs/1409.4842."""
    from torchvision.transforms import v2

    return v2.RandomResizedCrop(list(size), scale=(scale, 1.0), ratio=(ratio, 1 / ratio), antialias=True)  # type: ignore[no-any-return]


def randaugment(size: tuple[int, int], *, num_ops: int = 2, magnitude: int = 9) -> Change:
    """Change an image `num_ops` times, by `magnitude` of 30: https://arxiv.org/abs/1909.13719."""
    from torchvision.transforms import v2

    return v2.RandAugment(num_ops=num_ops, magnitude=magnitude)  # type: ignore[no-any-return]


def trivialaugment(size: tuple[int, int]) -> Change:
    """Change an image once, by any strength: https://arxiv.org/abs/2103.10158."""
    from torchvision.transforms import v2

    return v2.TrivialAugmentWide()  # type: ignore[no-any-return]


def autoaugment(size: tuple[int, int], *, policy: Literal["imagenet", "cifar10", "svhn"] = "cifar10") -> Change:
    """Change an image by a policy that was learned: https://arxiv.org/abs/1805.09501."""
    from torchvision.transforms import AutoAugmentPolicy, v2

    return v2.AutoAugment(AutoAugmentPolicy(policy))  # type: ignore[no-any-return]


def erasing(size: tuple[int, int], *, p: float = 0.5) -> Change:
    """Blacken a rectangle of 2% to 33% of the image with chance `p`: https://arxiv.org/abs/1708.04896."""
    from torchvision.transforms import v2

    return v2.RandomErasing(p=p)  # type: ignore[no-any-return]


def color_jitter(
    size: tuple[int, int], *, brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4, hue: float = 0.0
) -> Change:
    """Change brightness, contrast, saturation and hue by up to so much."""
    from torchvision.transforms import v2

    return v2.ColorJitter(brightness, contrast, saturation, hue)  # type: ignore[no-any-return]


TRANSFORMS: dict[str, Callable[..., Change]] = {
    "resized-crop": resized_crop,
    "randaugment": randaugment,
    "trivialaugment": trivialaugment,
    "autoaugment": autoaugment,
    "erasing": erasing,
    "color-jitter": color_jitter,
}


class Transforms:
    """The transforms of 'resized-crop(scale=0.25),randaugment', one after the other, for images of one size.

    Raises UserError for an unknown name or option, and for values that torchvision refuses.
    """

    def __init__(self, text: str, size: tuple[int, int]) -> None:
        self.changes: list[Change] = []
        for name, given in parse_attacks(text):
            if name not in TRANSFORMS:
                raise unknown("transform", name, TRANSFORMS)
            make = TRANSFORMS[name]
            options = check_keywords(f"transform {name!r}", name, keywords(make), given)
            _check_shares(name, options)
            try:
                self.changes.append(make(size, **options))
            except (ValueError, TypeError, ZeroDivisionError) as error:
                raise UserError(f"transform {name!r}: {error}.", code="bad-value") from None

    def __call__(self, images: Tensor, rng: SampleRng) -> Tensor:
        """Return images (N, C, H, W), bytes or floats in [0, 1], each changed by draws from its own stream."""
        seeds = seeds_of(rng)
        with torch.random.fork_rng(devices=[]):
            changed = [self._changed(image, seed) for image, seed in zip(images.cpu(), seeds, strict=True)]
        if not changed:
            return images
        result = torch.stack(changed).to(images.device)
        return result if result.dtype == torch.uint8 else result.clamp(0, 1)

    def _changed(self, image: Tensor, seed: int) -> Tensor:
        torch.default_generator.manual_seed(seed)
        for change in self.changes:
            image = change(image)
        return image


def _check_shares(name: str, options: dict[str, Any]) -> None:
    """Raise UserError for what torchvision finds out late: while it changes the first image."""
    for option in ("scale", "ratio"):
        if not 0 < options.get(option, 1) <= 1:
            raise UserError(f"transform {name!r}: {option} is above 0 and 1 at most.", code="bad-value")
    if not 0 <= options.get("magnitude", 0) <= MAGNITUDES:
        raise UserError(f"transform {name!r}: magnitude is 0 to {MAGNITUDES}.", code="bad-value")


def seeds_of(rng: SampleRng) -> list[int]:
    """Return a seed of 62 bits for torch's generator for each sample."""
    words = rng.to("cpu").bits((2,))
    seeds: list[Any] = ((words[:, 0] << 30) | (words[:, 1] >> 2)).tolist()
    return seeds
