"""The two small networks of arXiv 2504.00638, on duplicated training data, for images of any size.

https://arxiv.org/abs/2504.00638; layers as in the authors' notebooks, https://github.com/alireza1375/Duplication_CIFAR.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from robustdup.errors import UserError
from robustdup.models.networks import Network

_PLACES = 8  # the feature map before the linear layers is at most this wide: that of 32-pixel images


class PaperCNN(Network):
    """Two times a 3x3 convolution, ReLU and max-pool, then a hidden linear layer. Weights start as torch draws them."""

    def __init__(
        self, *, channels: int, size: tuple[int, int], classes: int, mean: Sequence[float], std: Sequence[float],
        filters: int, hidden: int, dropout: float,
    ) -> None:  # fmt: skip
        if min(size) < 4:
            raise UserError(
                f"paper-standard and paper-robust need images of 4x4 pixels or more, got {size[0]}x{size[1]}.",
                code="bad-value",
            )
        height, width = (min(side // 4, _PLACES) for side in size)
        large = max(size) // 4 > _PLACES
        body = nn.Sequential(
            nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(filters, 2 * filters, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d((height, width)) if large else nn.Identity(), nn.Flatten(),
            nn.Linear(2 * filters * height * width, hidden), nn.ReLU(),
            nn.Dropout(dropout) if dropout else nn.Identity(),
        )  # fmt: skip
        super().__init__(body, hidden, classes, mean, std)


def paper_standard(
    *, channels: int, size: tuple[int, int], classes: int, mean: Sequence[float], std: Sequence[float]
) -> nn.Module:
    """Return the network of the standard arm: 16 and 32 filters, 128 hidden units, dropout of 0.5, (x - 0.5) / 0.5."""
    return _paper(channels, size, classes, filters=16, hidden=128, dropout=0.5)


def paper_robust(
    *, channels: int, size: tuple[int, int], classes: int, mean: Sequence[float], std: Sequence[float]
) -> nn.Module:
    """Return the network of the adversarial arm: 32 and 64 filters, 256 hidden units, (x - 0.5) / 0.5."""
    return _paper(channels, size, classes, filters=32, hidden=256, dropout=0.0)


def _paper(
    channels: int, size: tuple[int, int], classes: int, *, filters: int, hidden: int, dropout: float
) -> nn.Module:
    half = [0.5] * channels  # as published, whatever the data's own mean is
    return PaperCNN(
        channels=channels,
        size=size,
        classes=classes,
        mean=half,
        std=half,
        filters=filters,
        hidden=hidden,
        dropout=dropout,
    )
