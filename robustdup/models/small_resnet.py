"""A small residual network that two CPU cores can train, for images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from robustdup.errors import UserError
from robustdup.models.network import ACTIVATIONS, LARGE, Activation, Network
from robustdup.models.resnet import pooled


class SmallBlock(nn.Module):
    """A basic block; where it halves the size, its shortcut is average pooling and a 1x1 convolution.

    https://arxiv.org/abs/1812.01187 (ResNet-D): no place of the input is skipped.
    """

    def __init__(self, channels: int, width: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = ACTIVATIONS[activation]()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True),  # an odd side is halved upwards, as by the convolution
                nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width),
            )  # fmt: skip
        self.act2 = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(out + self.shortcut(x))  # type: ignore[no-any-return]


class SmallResNet(Network):
    """A 5x5 stem (stride 2 from 32 pixels on), then two groups of blocks, each halving the size."""

    def __init__(
        self, *, channels: int, size: tuple[int, int], classes: int, mean: Sequence[float], std: Sequence[float],
        widths: Sequence[int], blocks: int, activation: Activation,
    ) -> None:  # fmt: skip
        body: list[nn.Module] = [
            nn.Conv2d(channels, widths[0], 5, 2 if min(size) >= 32 else 1, padding=2, bias=False),
            nn.BatchNorm2d(widths[0]), ACTIVATIONS[activation](),
            *([nn.MaxPool2d(3, 2, padding=1)] if max(size) > LARGE else []),
        ]  # fmt: skip
        before = widths[0]
        for width in widths[1:]:
            for number in range(blocks):
                body.append(SmallBlock(before, width, 2 if number == 0 else 1, activation))
                before = width
        super().__init__(nn.Sequential(*body, *pooled()), before, classes, mean, std)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


def small_resnet(
    *, channels: int, size: tuple[int, int], classes: int, mean: Sequence[float], std: Sequence[float],
    width: int = 24, blocks: int = 1, activation: Literal["relu", "silu"] = "relu",
) -> nn.Module:  # fmt: skip
    """Return a small ResNet: a stem of `width` channels, then `blocks` blocks each of 8/3 and 16/3 of that: 24, 64, 128.

    285,890 parameters and 7.5 million multiplications a 32x32 image by default. Raises UserError.
    """
    if blocks < 1 or width < 1:
        raise UserError(f"small-resnet needs a width and blocks from 1; got {width} and {blocks}.")
    return SmallResNet(
        channels=channels, size=size, classes=classes, mean=mean, std=std, blocks=blocks, activation=activation,
        widths=(width, 8 * width // 3, 2 * (8 * width // 3)),
    )  # fmt: skip
