"""Residual networks for images of any size: ResNet-18, its pre-activation form, wide ones, and a small one for CPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn

from robustdup.errors import UserError
from robustdup.models.networks import ACTIVATIONS, LARGE, Activation, Network, he_convolutions


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, each with BatchNorm, added to a shortcut: (N, C, H, W) -> (N, width, H/stride, W/stride)."""

    def __init__(self, channels: int, width: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = ACTIVATIONS[activation]()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = self._shortcut(channels, width, stride)
        self.act2 = ACTIVATIONS[activation]()

    def _shortcut(self, channels: int, width: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(out + self.shortcut(x))  # type: ignore[no-any-return]


class PreActBlock(nn.Module):
    """BatchNorm and activation before each 3x3 convolution; where the shape changes, the shortcut is a 1x1 convolution."""

    def __init__(self, channels: int, width: int, stride: int, activation: Activation, dropout: float = 0.0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = ACTIVATIONS[activation]()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        changes = stride != 1 or channels != width
        self.shortcut = nn.Conv2d(channels, width, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        ready = self.act1(self.bn1(x))
        out = self.conv2(self.dropout(self.act2(self.bn2(self.conv1(ready)))))
        return out + (x if self.shortcut is None else self.shortcut(ready))  # type: ignore[no-any-return]


def stem(channels: int, width: int, size: tuple[int, int], activation: Activation | None) -> list[nn.Module]:
    """Return the first layers: a 3x3 convolution, or, above 64 pixels, 7x7 with stride 2 and a max-pool, as for ImageNet.

    With an `activation`, BatchNorm and it follow the convolution; pre-activation networks bring their own.
    """
    large = max(size) > LARGE
    conv = nn.Conv2d(channels, width, 7, 2, padding=3, bias=False) if large else \
        nn.Conv2d(channels, width, 3, padding=1, bias=False)  # fmt: skip
    after = [] if activation is None else [nn.BatchNorm2d(width), ACTIVATIONS[activation]()]
    return [conv, *after, *([nn.MaxPool2d(3, 2, padding=1)] if large else [])]


def pooled() -> list[nn.Module]:
    """Return the layers (N, C, H, W) -> (N, C): the mean over places."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]


def stages(
    block: Callable[[int, int, int], nn.Module], before: int, widths: Sequence[int], blocks: int, first_stride: int = 1
) -> list[nn.Module]:
    """Return `blocks` blocks of each width, made by `block(channels, width, stride)`; all widths but the first halve the size."""
    body = []
    for group, width in enumerate(widths):
        stride = 2 if group > 0 else first_stride
        for number in range(blocks):
            body.append(block(before, width, stride if number == 0 else 1))
            before = width
    return body


class ResNet(Network):
    """A ResNet of basic blocks: `blocks` of each width in `widths`, all but the first group halving the size."""

    def __init__(
        self, *, channels: int, size: tuple[int, int], classes: int, mean: Sequence[float], std: Sequence[float],
        widths: Sequence[int], blocks: int, activation: Activation,
    ) -> None:  # fmt: skip
        body = stem(channels, widths[0], size, activation)
        body += stages(partial(BasicBlock, activation=activation), widths[0], widths, blocks)
        super().__init__(nn.Sequential(*body, *pooled()), widths[-1], classes, mean, std)
        he_convolutions(self)


class PreActResNet(Network):
    """A ResNet of pre-activation blocks, with BatchNorm and activation at the end, where `first` is the stem's width."""

    def __init__(
        self, *, channels: int, size: tuple[int, int], classes: int, mean: Sequence[float], std: Sequence[float],
        first: int, widths: Sequence[int], blocks: int, activation: Activation, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        body = stem(channels, first, size, None)
        body += stages(partial(PreActBlock, activation=activation, dropout=dropout), first, widths, blocks)
        end = [nn.BatchNorm2d(widths[-1]), ACTIVATIONS[activation](), *pooled()]
        super().__init__(nn.Sequential(*body, *end), widths[-1], classes, mean, std)
        he_convolutions(self)


class WideResNet(PreActResNet):
    """A wide residual network (https://arxiv.org/abs/1605.07146)."""


def resnet18(
    *, channels: int, size: tuple[int, int], classes: int, mean: Sequence[float], std: Sequence[float],
    activation: Literal["relu", "silu"] = "relu",
) -> nn.Module:  # fmt: skip
    """Return a ResNet-18 (https://arxiv.org/abs/1512.03385), with a 3x3 stem and no max-pool up to 64 pixels."""
    return ResNet(
        channels=channels, size=size, classes=classes, mean=mean, std=std, widths=(64, 128, 256, 512), blocks=2,
        activation=activation,
    )  # fmt: skip


def preact_resnet18(
    *, channels: int, size: tuple[int, int], classes: int, mean: Sequence[float], std: Sequence[float],
    activation: Literal["relu", "silu"] = "relu",
) -> nn.Module:  # fmt: skip
    """Return a PreActResNet-18 (https://arxiv.org/abs/1603.05027), as in https://github.com/locuslab/robust_overfitting."""
    return PreActResNet(
        channels=channels, size=size, classes=classes, mean=mean, std=std, first=64, widths=(64, 128, 256, 512), blocks=2,
        activation=activation,
    )  # fmt: skip


def wide_resnet(
    *, channels: int, size: tuple[int, int], classes: int, mean: Sequence[float], std: Sequence[float],
    depth: int = 28, width: int = 10, dropout: float = 0.0, activation: Literal["relu", "silu"] = "relu",
) -> nn.Module:  # fmt: skip
    """Return WRN-depth-width (https://arxiv.org/abs/1605.07146). Raises UserError unless depth is 6 n + 4."""
    if depth < 10 or (depth - 4) % 6:
        raise UserError(
            f"The depth of wide-resnet is 6 n + 4: 10, 16, 22, 28, 34, 40, 70, …; got {depth}.", code="bad-option"
        )
    if width < 1 or not 0 <= dropout < 1:
        raise UserError(
            f"wide-resnet needs a width from 1 and a dropout in [0, 1); got {width} and {dropout}.", code="bad-option"
        )
    return WideResNet(
        channels=channels, size=size, classes=classes, mean=mean, std=std, first=16,
        widths=(16 * width, 32 * width, 64 * width), blocks=(depth - 4) // 6, activation=activation, dropout=dropout,
    )  # fmt: skip


class SmallBlock(BasicBlock):
    """A basic block; where it halves the size, its shortcut is average pooling and a 1x1 convolution.

    https://arxiv.org/abs/1812.01187 (ResNet-D): no place of the input is skipped.
    """

    def _shortcut(self, channels: int, width: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.AvgPool2d(stride, ceil_mode=True),  # an odd side is halved upwards, as by the convolution
            nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip


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
        body += stages(partial(SmallBlock, activation=activation), widths[0], widths[1:], blocks, first_stride=2)
        super().__init__(nn.Sequential(*body, *pooled()), widths[-1], classes, mean, std)
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
        raise UserError(f"small-resnet needs a width and blocks from 1; got {width} and {blocks}.", code="bad-option")
    return SmallResNet(
        channels=channels, size=size, classes=classes, mean=mean, std=std, blocks=blocks, activation=activation,
        widths=(width, 8 * width // 3, 2 * (8 * width // 3)),
    )  # fmt: skip
