"""What the networks to train have in common, and the smallest of them: normalisation, a body of features, a linear head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Activation = Literal["relu", "silu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}
LARGE = 64  # images with a side above this many pixels get the stem of ImageNet

# Of the built-in digits classifiers, which `configs/train/NAME.yaml` made. All are trained on the first 1,297 images of
# scikit-learn's digits; the last 500 are never seen. On those 500, clean and under 40 steps of PGD from one random start
# at Linf eps of 8/255, 0.1 and 0.15: digits-standard 92.6% clean, then 86.6%, 48.2%, 15.8%; digits-robust 96.8% clean,
# then 94.8%, 83.6%, 67.6%. digits-certified 92.6% clean; at 0.1, 79.6% under 40 steps on the margin, 71.6% proven by CROWN alone.
TRAIN_EPS = {"digits-standard": 0.0, "digits-robust": 0.15, "digits-certified": 0.1}  # Linf, on 8x8 images in [0, 1]
MEAN, STD = (0.3059,), (0.3755,)  # of the training images


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


class Network(nn.Module):
    """A classifier: images (N, C, H, W) in [0, 1] -> logits (N, classes), by `normalise`, `body` (N, D) and `head`."""

    def __init__(
        self, body: nn.Module, n_features: int, classes: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.body = body
        self.head = nn.Linear(n_features, classes)

    def features(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> the inputs (N, D) of the last layer."""
        return self.body(self.normalise(images))  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> logits (N, classes)."""
        return self.head(self.features(images))  # type: ignore[no-any-return]


def he_convolutions(module: nn.Module) -> None:
    """Draw all convolutions' weights as He et al. do for rectifiers (fan out, https://arxiv.org/abs/1502.01852)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


class SmallCNN(Network):
    """Three convolutions and a linear layer for small images; quick to train and to run on a CPU.

    The second convolution halves the images, and above 32 pixels the mean over 16x16 regions is taken.

    Args:
        channels: of the images.
        size: the images' side, or (height, width), in pixels.
        classes: number of logits.
        width: channels of the first layer.
        mean: of each channel, or one for all.
        std: of each channel, or one for all.
    """

    def __init__(
        self, *, channels: int = 1, size: int | tuple[int, int] = 8, classes: int = 10, width: int = 16,
        mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,),
    ) -> None:  # fmt: skip
        height, width_of_images = (size, size) if isinstance(size, int) else size
        places = min((height + 1) // 2, 16), min((width_of_images + 1) // 2, 16)
        large = max(height, width_of_images) > 32
        body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.ReLU(),
            *([nn.AdaptiveAvgPool2d(places)] if large else []),
            nn.Flatten(),
        )
        super().__init__(body, 2 * width * places[0] * places[1], classes, mean, std)


def small_cnn(
    *, channels: int, size: tuple[int, int], classes: int, mean: Sequence[float], std: Sequence[float], width: int = 16
) -> nn.Module:
    """Return the network of the built-in digits classifiers, for images of any size. Weights start as torch draws them."""
    return SmallCNN(channels=channels, size=size, classes=classes, width=width, mean=mean, std=std)


def digits_classifier() -> SmallCNN:
    """Return the untrained network of the built-in digits classifiers: images (N, 1, 8, 8) -> logits (N, 10)."""
    return SmallCNN(channels=1, size=8, classes=10, width=16, mean=MEAN, std=STD)
