"""One step of APGD in each norm, and its random start.

Everything here treats a sample by itself: sums over its pixels fold them in halves, so that its bits do not depend on
company.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustdup.projections import fold_length, per_sample, project_l1
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

MOMENTUM = 0.75  # weight of the new step against the last change
TINY = 1e-12


def random_start(images: Tensor, threat: ThreatModel, rng: SampleRng, *, draw: int) -> Tensor:
    """Return images (N, C, H, W) at which a run begins: at distance eps before they are cut to [0, 1].

    Linf: uniform noise, scaled so that a sample's largest entry is eps. L2: normal noise of length eps. L1: normal noise,
    projected.
    """
    shape = tuple(images.shape[1:])
    if threat.norm == "Linf":
        noise = 2 * rng.uniform(shape, draw=draw, dtype=images.dtype) - 1
        length = noise.flatten(1).abs().amax(dim=1)
    else:
        noise = rng.normal(shape, draw=draw, dtype=images.dtype)
        if threat.norm == "L1":
            return threat.project(images, images + noise)  # once a run: exact, and pixels it leaves alone stay the same
        length = fold_length(noise, "L2")
    return (images + threat.radius * (noise / per_sample(length + TINY, noise))).clamp(0, 1)


def linf_step(
    images: Tensor,
    iterate: Tensor,
    previous: Tensor,
    gradient: Tensor,
    step_size: Tensor,
    radius: float,
    *,
    first: bool,
) -> Tensor:
    """Return the next iterate of each sample (N, ...): a signed step, then momentum, each cut to the ball and [0, 1]."""
    lower, upper = (images - radius).clamp_(min=0), (images + radius).clamp_(max=1)
    stepped = gradient.sign().mul_(step_size).add_(iterate)
    torch.minimum(torch.maximum(stepped, lower, out=stepped), upper, out=stepped)
    moved = with_momentum(iterate, previous, stepped, first=first)
    return torch.minimum(torch.maximum(moved, lower, out=moved), upper, out=moved)


def l2_step(
    images: Tensor,
    iterate: Tensor,
    previous: Tensor,
    gradient: Tensor,
    step_size: Tensor,
    radius: float,
    *,
    first: bool,
) -> Tensor:
    """Return the next iterate of each sample (N, ...): a step along the gradient, then momentum, each cut.

    They are cut to the ball, then to [0, 1], as the published attack does, and not their intersection at once.
    """

    def cut(moved: Tensor) -> Tensor:
        delta = moved.sub_(images)
        length = fold_length(delta, "L2")
        delta.div_(per_sample(length + TINY, delta)).mul_(per_sample(length.clamp(max=radius), delta))
        return delta.add_(images).clamp_(0, 1)

    stepped = cut((gradient / per_sample(fold_length(gradient, "L2") + TINY, gradient)).mul_(step_size).add_(iterate))
    return cut(with_momentum(iterate, previous, stepped, first=first))


def l1_step(
    images: Tensor, iterate: Tensor, gradient: Tensor, step_size: Tensor, radius: float, *, share: Tensor
) -> Tensor:
    """Return the next iterate of each sample (N, ...): equal steps on the `share` (N,) of pixels of largest gradient.

    The steps' sizes add up to `step_size` (N, 1, ...); there is no momentum. https://arxiv.org/abs/2103.01208
    """
    flat = gradient.flatten(1)
    pixels = flat.shape[1]
    strength = flat.abs()
    rank = pixels - ((1.0 - share) * pixels).clamp(min=0, max=pixels - 1).long()  # 1 is the largest
    floor = strength.topk(int(rank.max()), dim=1).values.gather(1, rank[:, None] - 1)
    direction = flat.sign().mul_(strength >= floor)
    count = (direction != 0).sum(dim=1).to(flat.dtype)  # a sum of whole numbers: exact in any order
    step = (direction * (step_size.flatten(1) / (count[:, None] + 1e-10))).view_as(iterate)
    return project_l1(images, step.add_(iterate), radius)


def with_momentum(iterate: Tensor, previous: Tensor, stepped: Tensor, *, first: bool) -> Tensor:
    """Return 0.75 of the step and 0.25 of the last change; the first step has no past."""
    weight = 1.0 if first else MOMENTUM
    # torch.add(..., alpha=...) would round once less on some pixels than on others.
    inertia = (iterate - previous).mul_(1 - weight)
    return stepped.sub_(iterate).mul_(weight).add_(iterate).add_(inertia)
