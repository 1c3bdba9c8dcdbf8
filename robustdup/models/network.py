"""What the networks to train have in common: normalisation, a body that gives features, a linear head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from robustdup.models.small import Normalise

Activation = Literal["relu", "silu"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}
LARGE = 64  # images with a side above this many pixels get the stem of ImageNet


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
