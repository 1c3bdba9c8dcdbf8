"""CutMix and MixUp: a training image takes in a part of another one, and its label that much of the other's.

Which part is torchvision's draw (https://docs.pytorch.org/vision/stable/transforms.html, v2), from the stream of the sample;
the other image is the one before it in the batch, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robustdup.config import parse_call
from robustdup.data.transforms import seeds_of
from robustdup.errors import UserError, unknown
from robustdup.plugins.options import check_keywords, keywords
from robustdup.rng import SampleRng


def cutmix(*, alpha: float = 1.0) -> Any:
    """Draw the share that stays of an image from Beta(alpha, alpha), and a box for the rest: https://arxiv.org/abs/1905.04899."""
    from torchvision.transforms import v2

    return v2.CutMix(alpha=alpha)


def mixup(*, alpha: float = 1.0) -> Any:
    """Draw the weight of an image from Beta(alpha, alpha): https://arxiv.org/abs/1710.09412."""
    from torchvision.transforms import v2

    return v2.MixUp(alpha=alpha)


WAYS: dict[str, Callable[..., Any]] = {"cutmix": cutmix, "mixup": mixup}


class Mixing:
    """What 'cutmix(alpha=1)' or 'mixup(alpha=0.2)' names. Raises UserError for an unknown name, option or value."""

    def __init__(self, text: str) -> None:
        self.name, given = parse_call(text, "way to mix images")
        if self.name not in WAYS:
            raise unknown("way to mix images", self.name, WAYS)
        make = WAYS[self.name]
        options = check_keywords(f"mix {self.name!r}", self.name, keywords(make), given)
        if not options.get("alpha", 1.0) > 0:
            raise UserError(f"mix {self.name!r}: alpha must be above 0, got {options['alpha']:g}.", code="bad-value")
        self._draw = make(**options)

    def __call__(self, images: Tensor, labels: Tensor, classes: int, rng: SampleRng) -> tuple[Tensor, Tensor]:
        """Return images (N, C, H, W) mixed with the one before, and labels (N,) as shares of classes, float (N, classes)."""
        hot = F.one_hot(labels, classes).to(images.dtype)
        if len(images) == 0:
            return images, hot
        boxes, shares = self._drawn(images, rng)
        share = shares.to(images)
        other, theirs = images.roll(1, 0), hot.roll(1, 0)
        labels = hot * share[:, None] + theirs * (1 - share)[:, None]
        if self.name == "mixup":
            weight = share[:, None, None, None]
            return images * weight + other * (1 - weight), labels
        left, top, right, bottom = (side[:, None, None] for side in boxes.to(images.device).unbind(1))
        across = torch.arange(images.shape[3], device=images.device)[None, None, :]
        down = torch.arange(images.shape[2], device=images.device)[None, :, None]
        inside = (across >= left) & (across < right) & (down >= top) & (down < bottom)
        return torch.where(inside[:, None], other, images), labels

    def _drawn(self, images: Tensor, rng: SampleRng) -> tuple[Tensor, Tensor]:
        """Return the boxes (N, 4) int64 (left, top, right, bottom) that are replaced, and the shares (N,) that stay."""
        boxes, shares = [], []
        example = [torch.empty(1, *images.shape[1:])]
        with torch.random.fork_rng(devices=[]):
            for seed in seeds_of(rng):
                torch.default_generator.manual_seed(seed)
                drawn = self._draw.make_params(example)
                boxes.append(drawn.get("box", (0, 0, 0, 0)))
                shares.append(drawn["lam"] if "lam" in drawn else drawn["lam_adjusted"])
        return torch.tensor(boxes), torch.tensor(shares, dtype=torch.float64)
