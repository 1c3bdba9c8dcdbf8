"""Small standard architectures that train and run quickly on a CPU. Normalisation is their first layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """(images - mean) / std per channel: the part of a model that other code calls preprocessing."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> the same shape, normalised."""
        return (images - self.mean) / self.std


class SmallCNN(nn.Module):
    """Three convolutions and a linear layer for small images: (N, C, H, W) in [0, 1] -> logits (N, classes).

    `size` is the side, or (height, width), of the images; the second convolution halves it, and above 32 pixels the mean
    over 16x16 regions is taken. `width` is the number of channels of the first layer.
    """

    def __init__(
        self, *, channels: int = 1, size: int | tuple[int, int] = 8, classes: int = 10, width: int = 16,
        mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,),
    ) -> None:  # fmt: skip
        super().__init__()
        height, width_of_images = (size, size) if isinstance(size, int) else size
        places = min((height + 1) // 2, 16), min((width_of_images + 1) // 2, 16)
        large = max(height, width_of_images) > 32
        self.normalise = Normalise(mean, std)
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU(),
            *([nn.AdaptiveAvgPool2d(places)] if large else []),
            nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(2 * width * places[0] * places[1], classes)

    def features(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> the inputs (N, D) of the last layer."""
        return self.body(self.normalise(images))  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> logits (N, classes)."""
        return self.head(self.features(images))  # type: ignore[no-any-return]


def small_cnn(
    *, channels: int, size: tuple[int, int], classes: int, mean: Sequence[float], std: Sequence[float], width: int = 16
) -> nn.Module:
    """Return the network of the built-in digits classifiers, for images of any size. Weights start as torch draws them."""
    return SmallCNN(channels=channels, size=size, classes=classes, width=width, mean=mean, std=std)
