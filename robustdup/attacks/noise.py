"""Noise: random points of the ball. The baseline that every attack must beat."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robustdup.attacks.losses import margin, misclassified
from robustdup.projections import COUNTS, row_length
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel


def noise(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng, draws: int = 10
) -> Tensor:
    """Draw points of the ball and keep the one of smallest margin; a misclassified sample draws no more.

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: clean images (N, C, H, W) in [0, 1].
        labels: true classes (N,).
        threat: the ball to draw from.
        rng: the samples' streams.
        draws: at most, for each sample.

    Returns:
        Images (N, C, H, W) inside the ball and [0, 1].
    """
    adv_images = images.clone()
    lowest = images.new_full((len(images),), torch.inf)
    active = torch.arange(len(images), device=images.device)
    for draw in range(draws):
        clean = images[active]
        drawn = threat.project(clean, clean + ball_noise(clean, threat, rng[active], draw=draw))
        with torch.no_grad():
            logits = model(drawn)
        margins, is_adv = margin(logits, labels[active]), misclassified(logits, labels[active])
        improved = (margins < lowest[active]) | is_adv
        adv_images[active[improved]], lowest[active[improved]] = drawn[improved], margins[improved]
        active = active[~is_adv]
        if len(active) == 0:
            break
    return adv_images


def ball_noise(images: Tensor, threat: ThreatModel, rng: SampleRng, *, draw: int = 0) -> Tensor:
    """Return perturbations of the shape of `images` (N, ...), uniform in the ball of radius eps (images may leave [0, 1]).

    In L2 these are D of the coordinates of a uniform point on the sphere in D + 2 dimensions, in L1 on that in D + 1:
    https://doi.org/10.1016/j.jmva.2004.10.006 (Barthe et al.). In L0 eps values chosen at random become 0 or 1.
    """
    size = math.prod(images.shape[1:])
    if threat.norm == "Linf":
        unit = rng.uniform((size,), draw=draw, low=-1.0, high=1.0, dtype=torch.float64)
    elif threat.norm == "L2":
        normal = rng.normal((size + 2,), draw=draw, dtype=torch.float64)
        unit = (normal / row_length(normal, "L2")[:, None])[:, :size]
    elif threat.norm in COUNTS:
        return _sparse_noise(images, round(threat.radius), rng, threat.norm, draw=draw)
    else:
        bits = rng.bits((size + 1,), draw=draw)
        exponential = -torch.log(((bits >> 1).double() + 0.5) * 2.0**-31)  # the bit left over is the sign
        unit = (exponential / row_length(exponential, "L1")[:, None] * ((bits & 1) * 2 - 1))[:, :size]
    return (unit * threat.radius).to(images.dtype).view_as(images)


def _sparse_noise(images: Tensor, count: int, rng: SampleRng, norm: str, *, draw: int) -> Tensor:
    """Return perturbations (N, ...) that set `count` values or pixels of each image, chosen at random, to 0 or 1."""
    shape = images.shape[1:] if norm == "L0" else (1, *images.shape[2:])
    rank = rng.fold("places").bits(shape, draw=draw).flatten(1).argsort(dim=1, stable=True).argsort(dim=1)
    changes = (rank < count).view(-1, *shape)
    ends = rng.fold("ends").bits(images.shape[1:], draw=draw).bitwise_and_(1).to(images.dtype)
    return torch.where(changes, ends - images, 0)
