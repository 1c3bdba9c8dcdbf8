"""A small residual network that two CPU cores can train, for images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from robustdup.errors import UserError
from robustdup.models.network import ACTIVATIONS, LARGE, Activation, Network, he_convolutions
from robustdup.models.resnet import BasicBlock, pooled


class SmallResNet(Network):
    """A 5x5 stem (stride 2 from 32 pixels on), then groups of basic blocks, each group halving the size."""

    def __init__(
        self, *, channels: int, size: tuple[int, int], classes: int, mean: Sequence[float], std: Sequence[float],
        widths: Sequence[int], blocks: int, activation: Activation,
    ) -> None:  # fmt: skip
        if blocks < 1 or widths[0] < 1:
            raise UserError(f"small-resnet needs a width and blocks from 1; got {widths[0]} and {blocks}.")
        stride = 2 if min(size) >= 32 else 1
        body: list[nn.Module] = [
            nn.Conv2d(channels, widths[0], 5, stride, padding=2, bias=False), nn.BatchNorm2d(widths[0]),
            ACTIVATIONS[activation](), *([nn.MaxPool2d(3, 2, padding=1)] if max(size) > LARGE else []),
        ]  # fmt: skip
        before = widths[0]
        for width in widths[1:]:
            for number in range(blocks):
                body.append(BasicBlock(before, width, 2 if number == 0 else 1, activation))
                before = width
        super().__init__(nn.Sequential(*body, *pooled()), before, classes, mean, std)
        he_convolutions(self)


def small_resnet(
    *, channels: int, size: tuple[int, int], classes: int, mean: Sequence[float], std: Sequence[float],
    width: int = 24, blocks: int = 1, activation: Literal["relu", "silu"] = "relu",
) -> nn.Module:  # fmt: skip
    """Return a residual network of under 0.5 million parameters: a stem of `width` channels, then groups of 3 and 6 `width`."""
    return SmallResNet(
        channels=channels, size=size, classes=classes, mean=mean, std=std, widths=(width, 3 * width, 6 * width),
        blocks=blocks, activation=activation,
    )  # fmt: skip
