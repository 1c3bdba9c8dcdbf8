"""What the conformance test tries an attack on: a network that can be broken, a few samples, and noise to beat.

The network is the built-in standard digits classifier behind three channels and 16x16 pixels, which is not robust.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from robustdup.attacks.noise import ball_noise
from robustdup.config import DataOptions
from robustdup.data.digits import load_builtin as load_digits
from robustdup.evaluation.referee import judge
from robustdup.models.load import ModelOptions, load_builtin
from robustdup.plugins import AttackSpec
from robustdup.projections import COUNTS, row_length
from robustdup.rng import SampleRng
from robustdup.threat import NORMS, ThreatModel

SAMPLES = 20
NOISE_DRAWS = 10


class RgbDigits(nn.Module):
    """The built-in standard digits classifier for images (N, 3, 16, 16) in [0, 1] -> logits (N, 10).

    It holds what careless attacks change: a frozen and an unfrozen parameter, BatchNorm statistics in eval mode, and one
    module in train mode (a dropout of nothing).
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.BatchNorm2d(3, affine=False)
        self.idle = nn.Dropout(0.0)
        self.digits = load_builtin("digits-standard", ModelOptions())
        self.eval()
        self.idle.train()
        first = next(self.digits.parameters())
        first.requires_grad_(False)
        self.digits.get_parameter("head.weight").grad = torch.zeros_like(self.digits.get_parameter("head.weight"))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the grey, halved images."""
        grey = self.idle(self.scale(images)).mean(dim=1, keepdim=True)
        return self.digits(nn.functional.avg_pool2d(grey, 2))  # type: ignore[no-any-return]


@lru_cache(maxsize=1)
def conformance_samples() -> tuple[Tensor, Tensor, Tensor]:
    """Return images (20, 3, 16, 16), labels (20,) and index (20,): test digits that the network gets right, two a class."""
    rows = load_digits("digits", DataOptions(split="test"))
    images, labels = rows.fetch(range(len(rows)))
    images = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3).expand(-1, 3, -1, -1).contiguous()
    with torch.no_grad():
        is_correct = RgbDigits()(images).argmax(dim=1) == labels
    chosen = torch.cat([(is_correct & (labels == k)).nonzero()[: SAMPLES // 10, 0] for k in range(10)])
    return images[chosen], labels[chosen], chosen


def against_noise(
    spec: AttackSpec, images: Tensor, labels: Tensor, adv_images: Tensor, threat: ThreatModel, norm: str, seed: int
) -> tuple[int, int]:
    """Count the samples broken by the attack, and by any of ten draws of noise of equal norm, on the referee's own network.

    Equal norm is eps; for an attack that knows no eps, or whose norm no threat model has, each sample's own distance.
    """
    model, rng = RgbDigits(), SampleRng(seed, torch.arange(len(images))).fold("conformance noise")
    free = spec.kind == "unbounded" or norm not in NORMS
    inside_box = torch.where(adv_images.isfinite(), adv_images, images).clamp(0, 1)

    def drawn(draw: int) -> Tensor:
        if norm in COUNTS:
            return _sparse_noise(images, inside_box, rng, draw, norm)
        delta = ball_noise(images, threat, rng, draw=draw)
        delta = delta.sign() * threat.radius if threat.norm == "Linf" else threat.sphere_scale(delta)
        if free:
            ratio = threat.distance(images, inside_box) / threat.radius
            delta = delta * ratio.view(-1, 1, 1, 1).to(delta.dtype)
        return (images + delta).clamp(0, 1)

    def broken(candidates: Tensor) -> Tensor:
        verdict = judge(model, images, candidates, labels, threat, bounded=not free)
        return verdict.raw_is_adv if free else verdict.is_adv

    by_noise = torch.stack([broken(drawn(draw)) for draw in range(NOISE_DRAWS)]).any(dim=0)
    return int(broken(adv_images).sum()), int(by_noise.sum())


def _sparse_noise(images: Tensor, adv_images: Tensor, rng: SampleRng, draw: int, norm: str) -> Tensor:
    """Set as many values or pixels of each image as the attack changed, chosen at random, to random values."""
    shape = images.shape[1:] if norm == "L0" else (1, *images.shape[2:])
    places = rng.fold("places").uniform(shape, draw=draw).flatten(1)
    count = row_length(adv_images - images, norm)[:, None]
    changes = (places.argsort(dim=1).argsort(dim=1) < count).view(-1, *shape)
    return torch.where(changes, rng.fold("values").uniform(images.shape[1:], draw=draw), images)
