"""DDN: decoupled direction and norm, the nearest adversarial image in L2. https://arxiv.org/abs/1811.09600

Each step goes up the gradient of the cross-entropy and is scaled to a length of its own, which shrinks by a share gamma while
the sample is adversarial and grows by it while it is not. The step falls from 1 to 0.01 along a cosine.

Deviations: images are not rounded to 8 bits (the record's 8-bit accuracy tells what that costs); the last step is looked at
too; in the end the nearest image is pulled back to the boundary (`nearest.pull_back`); with `stop_within_eps` a sample leaves
at its first adversarial iterate within eps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustdup.attacks.losses import ce, fools, misclassified
from robustdup.attacks.nearest import Nearest, check_between, cosine, pull_back
from robustdup.attacks.passes import input_gradient
from robustdup.errors import check_counts
from robustdup.projections import fold_length, per_sample
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

FIRST_STEP, LAST_STEP = 1.0, 0.01
FLAT = 1e-12  # a gradient shorter than this points nowhere: a random direction is taken


def ddn(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    rng: SampleRng,
    steps: int = 100,
    gamma: float = 0.05,
    init_norm: float = 1.0,
    halvings: int = 10,
    stop_within_eps: bool = True,
) -> Tensor:
    """Search the nearest adversarial image: a gradient step of a length that follows success. https://arxiv.org/abs/1811.09600

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: clean images (N, C, H, W) in [0, 1].
        labels: true classes (N,).
        threat: L2; its eps says which samples are broken.
        rng: the samples' streams: a direction where the gradient is zero.
        steps: gradient steps.
        gamma: the share by which the length changes at each step, below 1.
        init_norm: the length that the search begins with, in pixel units.
        halvings: of the way from the boundary to the nearest image, in the end.
        stop_within_eps: whether a sample stops at its first adversarial iterate within eps; otherwise every sample goes on to
            the end and returns its nearest one, whatever eps.

    Returns:
        Images (N, C, H, W) in [0, 1]: each sample's nearest adversarial one, wherever it lies, or its last iterate projected
        onto the ball where none was met.

    Raises:
        UserError: a setting that cannot work.
    """
    _check(steps, gamma, init_norm, halvings)
    nearest = Nearest.none(images)
    index = torch.arange(len(images), device=images.device)
    farthest = fold_length(torch.maximum(images, 1 - images), "L2")
    radius = torch.full_like(farthest, init_norm)
    iterate = images
    for step in range(steps + 1):
        clean, true = images[index], labels[index]
        direction, is_adv = _look(model, iterate, true, rng[index].fold("flat"), step, last=step == steps)
        delta = iterate - clean
        distance = fold_length(delta, "L2")
        nearest.offer(index, iterate, distance, is_adv)
        if stop_within_eps:
            keep = ~(is_adv & (distance <= threat.radius))
            index, clean, iterate, delta, direction = (t[keep] for t in (index, clean, iterate, delta, direction))
            is_adv, radius = is_adv[keep], radius[keep]
        if step == steps or len(index) == 0:
            break
        delta = delta + cosine(FIRST_STEP, LAST_STEP, step, steps) * direction
        radius = torch.minimum(radius * torch.where(is_adv, 1 - gamma, 1 + gamma), farthest[index])
        delta = delta * per_sample(radius / fold_length(delta, "L2").clamp(min=FLAT), delta)
        iterate = (clean + delta).clamp(0, 1)
    nearest.keep_last(index, iterate)
    pull_back(model, images, labels, threat, nearest, halvings=halvings, stop_within_eps=stop_within_eps)
    return nearest.result(images, threat)


def _look(
    model: nn.Module, images: Tensor, labels: Tensor, rng: SampleRng, step: int, *, last: bool
) -> tuple[Tensor, Tensor]:
    """Return (direction of length 1 (N, ...), is_adv (N,)) at the images; the last look needs no direction."""
    if last:
        return torch.zeros_like(images), fools(model, images, labels)
    gradient, _, logits = input_gradient(model, images, lambda logits, rows: ce(logits, labels[rows]))
    gradient = gradient.nan_to_num(0, 0, 0)
    length = fold_length(gradient, "L2")
    flat = length < FLAT
    if bool(flat.any()):
        gradient[flat] = rng[flat].normal(images.shape[1:], draw=step, dtype=images.dtype)
        length = fold_length(gradient, "L2")
    return gradient / per_sample(length, gradient), misclassified(logits, labels)


def _check(steps: int, gamma: float, init_norm: float, halvings: int) -> None:
    check_counts("ddn", steps=steps)
    check_counts("ddn", least=0, halvings=halvings)
    check_between("ddn", "gamma", gamma, 0, 0.99)
    check_between("ddn", "init_norm", init_norm, 0, float("inf"))
