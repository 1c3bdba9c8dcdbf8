"""A strided convolution of few channels without its stride, for input gradients on a CPU.

oneDNN's input gradient of a strided convolution of three channels takes five times as long as the same sums as a convolution
with stride 1 of the blocks of pixels that one step of the stride covers.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

FEW = 4  # channels: an image's


def can_go_unstrided(layer: nn.Module) -> bool:
    """Say whether a layer is such a convolution, and gives as many places with whole blocks as padding."""
    if not isinstance(layer, nn.Conv2d) or layer.in_channels > FEW or layer.groups != 1 or layer.dilation != (1, 1):
        return False
    stride, side, padding = layer.stride[0], layer.kernel_size[0], layer.padding[0]
    square = (layer.stride, layer.kernel_size, layer.padding) == ((stride,) * 2, (side,) * 2, (padding,) * 2)
    if not square or stride < 2 or layer.padding_mode != "zeros":
        return False
    blocks, _, taps = _in_blocks(layer)
    return 2 * blocks - taps == (2 * int(padding) - side) // stride


class Unstrided(nn.Conv2d):
    """A convolution of `can_go_unstrided`, with its parameters: (N, C, H, W) -> what nn.Conv2d gives, to rounding."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the convolution of images (N, C, H, W); sides that are no multiple of the stride keep the stride."""
        stride = self.stride[0]
        n, channels, height, width = images.shape
        if height % stride or width % stride:
            return super().forward(images)
        blocks, shift, taps = _in_blocks(self)
        after = taps * stride - shift - self.kernel_size[0]
        kernel = F.pad(self.weight, (shift, after, shift, after))
        kernel = kernel.view(-1, channels, taps, stride, taps, stride).permute(0, 3, 5, 1, 2, 4)
        tiles = images.permute(0, 2, 3, 1).reshape(n, height // stride, stride, width // stride, stride, channels)
        tiles = tiles.transpose(2, 3).reshape(n, height // stride, width // stride, -1).permute(0, 3, 1, 2)
        return F.conv2d(tiles, kernel.reshape(len(kernel), -1, taps, taps), self.bias, padding=blocks)


def _in_blocks(layer: nn.Conv2d) -> tuple[int, int, int]:
    """Return the padding in blocks, the places by which the kernel moves for it, and the blocks a side that it then covers."""
    stride, padding = layer.stride[0], int(layer.padding[0])
    blocks = -(-padding // stride)
    shift = stride * blocks - padding
    return blocks, shift, -(-(layer.kernel_size[0] + shift) // stride)
