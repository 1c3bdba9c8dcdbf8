"""The images that an adversary may choose from, as bounds of linear functions over them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustdup.threat import ThreatModel


@dataclass(frozen=True)
class Region:
    """The ball around each image (N, C, H, W), inside [0, 1]. Its radius has the referee's tolerance on top."""

    images: Tensor
    norm: str
    radius: float

    @property
    def low(self) -> Tensor:
        """(N, C, H, W): the least value of each pixel."""
        return (self.images - self.radius).clamp(min=0)

    @property
    def high(self) -> Tensor:
        """(N, C, H, W): the largest value of each pixel."""
        return (self.images + self.radius).clamp(max=1)

    def least(self, slopes: Tensor) -> Tensor:
        """Return a lower bound (N, S) of slopes (N, S, C, H, W) times the image, over the region; exact in Linf."""
        flat = slopes.flatten(2)
        low, high = self.low.flatten(1).unsqueeze(1), self.high.flatten(1).unsqueeze(1)
        by_box = (flat.clamp(min=0) * low + flat.clamp(max=0) * high).sum(2)
        if self.norm == "Linf":
            return by_box
        length = flat.norm(dim=2) if self.norm == "L2" else flat.abs().amax(dim=2)
        by_ball = (flat * self.images.flatten(1).unsqueeze(1)).sum(2) - self.radius * length
        return torch.maximum(by_box, by_ball)


def region_of(images: Tensor, threat: ThreatModel) -> Region:
    """Return the region of a threat model around images (N, C, H, W)."""
    return Region(images, threat.norm, radius_of(threat))


def radius_of(threat: ThreatModel) -> float:
    """Return the radius within which the referee would accept an image."""
    return threat.radius + threat.tolerance
