"""RayS: from answers alone, the direction of signs along which the decision boundary is nearest.

Follows https://arxiv.org/abs/2006.12792: a direction is a sign for every pixel; blocks of it are flipped, half, quarters,
eighths of the image, and a flip is kept where the boundary is nearer along the new ray. One answer tells whether it is,
some ten more where exactly. Nothing but the predicted class is used, so that no shape of the scores misleads it.

It is a `pool` attack: a sample leaves the moment a ray meets the boundary inside the ball.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.losses import fools
from robustdup.errors import check_counts
from robustdup.projections import per_sample
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

FINE = 1 / 50  # of eps: how exactly the distance along a ray is known


def rays(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    rng: SampleRng,
    queries: int = 1000,
) -> Tensor:
    """Search for the nearest boundary along rays of signs; samples that survive return the nearest ray's image in the ball.

    https://arxiv.org/abs/2006.12792

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, K), of which only the largest is looked at.
        images: clean images (N, C, H, W) in [0, 1].
        labels: true classes (N,).
        threat: the ball to stay in: Linf or L2.
        rng: not used: there is nothing random in it.
        queries: answers that are asked for, for each sample.

    Returns:
        Images (N, C, H, W) inside the ball and [0, 1].

    Raises:
        UserError: a setting that cannot work.
    """
    check_counts("rays", queries=queries)
    return search_rays(model, images, labels, threat, torch.ones_like(images), queries)


def rays_cost(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (forward, backward) passes that a surviving sample costs under these options, at most."""
    return options["queries"] + 16, 0


def search_rays(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, start: Tensor, queries: int
) -> Tensor:
    """Run RayS from the directions `start` (N, C, H, W), signs of +1 and -1; the rest as in `rays`."""
    n, pixels = len(images), max(images[0].numel(), 1) if len(images) else 1
    farthest = 1.0 if threat.norm == "Linf" else math.sqrt(pixels)
    halvings = max(1, math.ceil(math.log2(farthest / (FINE * threat.radius))))
    direction = start.flatten(1).clone()
    distance = torch.full((n,), torch.inf, dtype=torch.float64, device=images.device)
    asked = torch.zeros(n, dtype=torch.int64, device=images.device)
    level, block = torch.zeros_like(asked), torch.zeros_like(asked)
    places = torch.arange(pixels, device=images.device)

    def is_adv(rows: Tensor, rays: Tensor, radius: Tensor) -> Tensor:
        asked[rows] += 1
        return fools(model, _along(images[rows], rays, radius, threat), labels[rows])

    active, trial = torch.arange(n, device=images.device), direction.clone()
    while len(active):
        reach = distance[active].clamp(max=farthest)
        nearer = is_adv(active, trial[active], reach)
        hit = active[nearer]
        if len(hit):
            direction[hit] = trial[hit]
            distance[hit] = _bisect(
                lambda rows, radius, tried=trial: is_adv(rows, tried[rows], radius),
                hit,
                reach[nearer],
                threat,
                halvings,
            )
        active = active[(distance[active] > threat.radius) & (asked[active] < queries)]
        size = torch.div(pixels + (1 << level) - 1, 1 << level, rounding_mode="floor").clamp(min=1)
        first = block * size
        mask = (places >= first[:, None]) & (places < (first + size)[:, None])
        trial = torch.where(mask, -direction, direction)
        done = first + size >= pixels
        level = torch.where(done, torch.where(size > 1, level + 1, 0), level)
        block = torch.where(done, 0, block + 1)
    radius = distance.clamp(max=threat.radius)
    return threat.project(images, _along(images, direction, radius, threat))


def _bisect(is_adv: Any, rows: Tensor, high: Tensor, threat: ThreatModel, halvings: int) -> Tensor:
    """Return how near the boundary is along the rays of the rows, at most `high` (n,); inside the ball is near enough."""
    inside = is_adv(rows, torch.full_like(high, threat.radius).clamp(max=float(high.max())))
    nearest = torch.where(inside, torch.minimum(high, torch.full_like(high, threat.radius)), high)
    low = torch.full_like(high, threat.radius)
    going = (~inside).nonzero()[:, 0]
    for _ in range(halvings):
        going = going[nearest[going] - low[going] > FINE * threat.radius]
        if len(going) == 0:
            break
        middle = (low[going] + nearest[going]) / 2
        beyond = is_adv(rows[going], middle)
        nearest[going] = torch.where(beyond, middle, nearest[going])
        low[going] = torch.where(beyond, low[going], middle)
    return nearest


def _along(images: Tensor, direction: Tensor, radius: Tensor, threat: ThreatModel) -> Tensor:
    """Return the images at a distance `radius` (n,) along signs (n, D), inside [0, 1]."""
    length = 1.0 if threat.norm == "Linf" else math.sqrt(direction.shape[1])
    size = per_sample((radius / length).to(images.dtype), images)
    return (images + size * direction.view_as(images)).clamp(0, 1)
