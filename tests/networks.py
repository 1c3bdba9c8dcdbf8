"""Small networks with BatchNorm for tests: a plain one and a residual one, for images (N, 3, 32, 32) in [0, 1]."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from robustdup.models.networks import Normalise

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CLASSES = 10


class Network(nn.Module):
    """Normalisation, a body that ends in flat features, and a linear head: (N, 3, 32, 32) in [0, 1] -> logits (N, 10)."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.normalise = Normalise(MEAN, STD)
        self.body = body
        self.head = nn.Linear(width, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """Images (N, 3, 32, 32) in [0, 1] -> the inputs (N, D) of the last layer."""
        return self.body(self.normalise(images))  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, 32, 32) in [0, 1] -> logits (N, 10)."""
        return self.head(self.features(images))  # type: ignore[no-any-return]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm beside a shortcut, as in https://arxiv.org/abs/1512.03385."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *conv_bn(inputs, outputs, stride=stride), nn.ReLU(), *conv_bn(outputs, outputs)
        )  # fmt: skip
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(inputs, outputs, size=1, stride=stride))

    def forward(self, images: Tensor) -> Tensor:
        """Feature maps (N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        return F.relu(self.residual(images) + self.shortcut(images))


def conv_bn(inputs: int, outputs: int, *, size: int = 3, stride: int = 1) -> list[nn.Module]:
    """Return a convolution without bias and its BatchNorm."""
    return [
        nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False), nn.BatchNorm2d(outputs)
    ]  # fmt: skip


def cnn(width: int) -> Network:
    """Return a plain network of five convolutions, BatchNorm and ReLU; 7 million multiply-adds at width 24."""
    body = nn.Sequential(
        *conv_bn(3, width, size=5, stride=2), nn.ReLU(),
        *conv_bn(width, 2 * width), nn.ReLU(),
        *conv_bn(2 * width, 4 * width, stride=2), nn.ReLU(),
        *conv_bn(4 * width, 4 * width, stride=2), nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * width, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU(),
    )  # fmt: skip
    return Network(body, 128)


def resnet(width: int) -> Network:
    """Return a ResNet of three basic blocks, at 16, 8 and 4 pixels; 7 million multiply-adds at width 24."""
    body = nn.Sequential(
        *conv_bn(3, width, stride=2), nn.ReLU(),
        BasicBlock(width, width, 1), BasicBlock(width, 2 * width, 2), BasicBlock(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    return Network(body, 4 * width)
