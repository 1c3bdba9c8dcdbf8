"""FMN: the fast minimum-norm attack, in all norms. https://arxiv.org/abs/2102.12827

Each step goes up the gradient of the logit difference and is projected onto a ball of the norm whose radius eps belongs to
the sample: it shrinks while the sample is adversarial and grows while it is not. Until a first adversarial image is met,
eps is the distance at which the linearised model says that the boundary lies. Step size and the change of eps fall along a
cosine. In L0 a value is one channel of one pixel; in L0-pixels whole pixels are counted.

Deviations: gamma is 0.2 and the first step 2 (0.05 and 1 in the paper), and in L2 an iterate is scaled to the very length of
the radius, as in DDN: both find nearer images in 200 passes (docs/results/minimum-norm.md). The first radius goes beyond the
linearised boundary by the share gamma, since a ball that only reaches the boundary of a linear model never crosses it. Values
at 0 or 1 that the gradient would move out of [0, 1] have no part in it. The last step is looked at too; in the end the
nearest image is pulled back to the boundary (`nearest.pull_back`). With `stop_within_eps` a sample leaves at its first
adversarial iterate within eps. A gradient that is not finite counts as zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustdup.attacks.losses import cw, misclassified
from robustdup.attacks.nearest import Nearest, check_between, cosine, pull_back
from robustdup.attacks.passes import input_gradient
from robustdup.errors import check_counts
from robustdup.projections import COUNTS, fold_length, onto_l1_ball, per_sample, project_l0
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

DUAL = {"Linf": "L1", "L2": "L2", "L1": "Linf"}
LAST_STEP = 0.01  # of the first step
LAST_GAMMA = 0.001


def fmn(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    rng: SampleRng,
    steps: int = 100,
    step_size: float = 2.0,
    gamma: float = 0.2,
    halvings: int = 10,
    stop_within_eps: bool = True,
) -> Tensor:
    """Search the nearest adversarial image: a gradient step, then a ball that shrinks or grows. https://arxiv.org/abs/2102.12827

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: clean images (N, C, H, W) in [0, 1].
        labels: true classes (N,).
        threat: its norm measures distances; its eps says which of them are broken.
        rng: not used: nothing is random.
        steps: gradient steps.
        step_size: L2 length of the first step, in pixel units; it falls to a hundredth of that.
        gamma: by which share eps changes at first, below 1; it falls to 0.001.
        halvings: of the way from the boundary to the nearest image, in the end.
        stop_within_eps: whether a sample stops at its first adversarial iterate within eps; otherwise every sample goes on to
            the end and returns its nearest one, whatever eps.

    Returns:
        Images (N, C, H, W) in [0, 1]: each sample's nearest adversarial one, wherever it lies, or its last iterate projected
        onto the ball where none was met.

    Raises:
        UserError: a setting that cannot work.
    """
    _check(steps, step_size, gamma, halvings)
    nearest = Nearest.none(images)
    index = torch.arange(len(images), device=images.device)
    farthest = fold_length(torch.maximum(images, 1 - images), threat.norm)
    radius = torch.full_like(farthest, 1.0 if threat.norm in COUNTS else torch.inf)
    iterate = images
    for step in range(steps + 1):
        clean, true = images[index], labels[index]
        gradient, height, is_adv = _look(model, iterate, true, last=step == steps)
        distance = fold_length(iterate - clean, threat.norm)
        nearest.offer(index, iterate, distance, is_adv)
        if stop_within_eps:
            keep = ~(is_adv & (distance <= threat.radius))
            index, clean, iterate, gradient, height = (t[keep] for t in (index, clean, iterate, gradient, height))
            is_adv, distance, radius = is_adv[keep], distance[keep], radius[keep]
        if step == steps or len(index) == 0:
            break
        change = cosine(gamma, min(gamma, LAST_GAMMA), step, steps)
        radius = next_radius(threat.norm, radius, distance, gradient, height, is_adv, nearest.distance[index], change)
        radius = torch.minimum(radius, farthest[index])
        length = fold_length(gradient, "L2").clamp(min=1e-12)
        size = per_sample(cosine(step_size, LAST_STEP * step_size, step, steps) / length, gradient)
        iterate = onto_ball(clean, iterate + size * gradient, threat.norm, radius)
    nearest.keep_last(index, iterate)
    pull_back(model, images, labels, threat, nearest, halvings=halvings, stop_within_eps=stop_within_eps)
    return nearest.result(images, threat)


def next_radius(
    norm: str,
    radius: Tensor,
    distance: Tensor,
    gradient: Tensor,
    height: Tensor,
    is_adv: Tensor,
    best: Tensor,
    gamma: float,
) -> Tensor:
    """Return the radius (N,) of each sample's next ball.

    Args:
        norm: of the ball.
        radius: the last one (N,).
        distance: of the iterate (N,).
        gradient: of the logit difference (N, ...) there.
        height: the logit difference (N,), below 0 where classified correctly.
        is_adv: whether the iterate is adversarial (N,).
        best: distance of the nearest adversarial image so far (N,), infinite where there is none.
        gamma: the share by which a radius changes.
    """
    if norm in COUNTS:
        smaller = torch.minimum(torch.minimum(radius - 1, (radius * (1 - gamma)).floor()), best)
        larger = torch.maximum(radius + 1, (radius * (1 + gamma)).floor())
        return torch.where(is_adv, smaller, larger).clamp(min=1)
    boundary = distance + height.abs() / fold_length(gradient, DUAL[norm]).clamp(min=1e-12)
    return torch.where(
        is_adv,
        torch.minimum(radius * (1 - gamma), best),
        torch.where(best.isfinite(), radius, boundary) * (1 + gamma),
    )


def onto_ball(clean: Tensor, moved: Tensor, norm: str, radius: Tensor) -> Tensor:
    """Project images (N, ...) onto balls of these radii (N,) around the clean ones, in L2 their surface, then onto [0, 1]."""
    delta = moved - clean
    if norm in COUNTS:
        return project_l0(clean, moved, radius, norm)
    if norm == "L1":
        inside = per_sample(fold_length(delta, "L1") <= radius, delta)
        delta = torch.where(inside, delta, onto_l1_ball(delta, radius))
    elif norm == "L2":
        delta = delta * per_sample(radius / fold_length(delta, "L2").clamp(min=1e-12), delta)
    else:
        bound = per_sample(radius, delta)
        delta = delta.clamp(-bound, bound)
    return (clean + delta).clamp(0, 1)


def _look(model: nn.Module, images: Tensor, labels: Tensor, *, last: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return (gradient of the logit difference, the difference (N,), is_adv) at the images; no gradient in the last look."""
    if last:
        with torch.no_grad():
            logits = model(images)
        return torch.zeros_like(images), cw(logits, labels), misclassified(logits, labels)
    gradient, height, logits = input_gradient(model, images, lambda logits, rows: cw(logits, labels[rows]))
    stuck = ((images <= 0) & (gradient < 0)) | ((images >= 1) & (gradient > 0))
    return gradient.nan_to_num(0, 0, 0).masked_fill(stuck, 0), height, misclassified(logits, labels)


def _check(steps: int, step_size: float, gamma: float, halvings: int) -> None:
    check_counts("fmn", steps=steps)
    check_counts("fmn", least=0, halvings=halvings)
    check_between("fmn", "step_size", step_size, 0, float("inf"))
    check_between("fmn", "gamma", gamma, 0, 0.99)
