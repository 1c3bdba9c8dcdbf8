"""SuperDeepFool: DeepFool, then straight onto the boundary from the clean image, again and again. https://arxiv.org/abs/2303.12481

DeepFool (https://arxiv.org/abs/1511.04599) steps onto the boundary of whichever class the linearised model says is nearest
until the iterate is adversarial. There the boundary is linearised once more, between the true class and the one predicted,
and the clean image is moved onto that hyperplane the shortest way. Where the result is not adversarial, DeepFool goes on from
it. The published attack is in L2 and leaves [0, 1] aside; with the shortest step of the norm inside [0, 1] (`hyperplane`)
the same works in Linf and L1. In L1 it is weak (docs/results/minimum-norm.md): the shortest step takes few pixels as far as
they go, where a linear model says least; `fmn` finds nearer images there.

Deviations: an adversarial result does not end the search, it is linearised again, since every hyperplane met on the way is
a better one; the nearest adversarial image of all is kept; in the end it is pulled back to the boundary
(`nearest.pull_back`); with `stop_within_eps` a sample leaves at its first adversarial iterate within eps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.fab import DUAL, check_classes
from robustdup.attacks.hyperplane import hyperplane_step
from robustdup.attacks.losses import fools
from robustdup.attacks.nearest import Nearest, check_between, pull_back
from robustdup.attacks.passes import in_micro_batches
from robustdup.errors import check_counts
from robustdup.projections import fold_length, fold_sum
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel


def superdeepfool(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    rng: SampleRng,
    steps: int = 20,
    classes: int = 10,
    overshoot: float = 0.02,
    halvings: int = 10,
    stop_within_eps: bool = True,
) -> Tensor:
    """Search the nearest adversarial image: DeepFool, then a straight way from the clean image. https://arxiv.org/abs/2303.12481

    A step costs a forward pass and a backward pass per class from an iterate that is not adversarial, one of each from one
    that is; and a forward pass to tell them apart.

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: clean images (N, C, H, W) in [0, 1].
        labels: true classes (N,).
        threat: its norm measures distances; its eps says which of them are broken.
        rng: not used: nothing is random.
        steps: linearisations of each sample.
        classes: of the largest logits that DeepFool chooses between, the true one among them; all where there are fewer.
        overshoot: by which share DeepFool's steps go beyond the hyperplane.
        halvings: of the way from the boundary to the nearest image, in the end.
        stop_within_eps: whether a sample stops at its first adversarial iterate within eps; otherwise every sample goes on to
            the end and returns its nearest one, whatever eps.

    Returns:
        Images (N, C, H, W) in [0, 1]: each sample's nearest adversarial one, wherever it lies, or its last iterate projected
        onto the ball where none was met.

    Raises:
        UserError: a model of one class, or a setting that cannot work.
    """
    _check(steps, classes, overshoot, halvings)
    nearest = Nearest.none(images)
    index = torch.arange(len(images), device=images.device)
    iterate = images
    for step in range(steps + 1):
        clean, true = images[index], labels[index]
        is_adv = fools(model, iterate, true)
        distance = fold_length(iterate - clean, threat.norm)
        nearest.offer(index, iterate, distance, is_adv)
        if stop_within_eps:
            keep = ~(is_adv & (distance <= threat.radius))
            index, clean, true, iterate, is_adv = (t[keep] for t in (index, clean, true, iterate, is_adv))
        if step == steps or len(index) == 0:
            break
        moved = iterate.clone()
        moved[~is_adv] = deepfool_step(model, iterate[~is_adv], true[~is_adv], threat.norm, classes, overshoot)
        moved[is_adv] = straight_step(model, clean[is_adv], iterate[is_adv], true[is_adv], threat.norm)
        iterate = moved
    nearest.keep_last(index, iterate)
    pull_back(model, images, labels, threat, nearest, halvings=halvings, stop_within_eps=stop_within_eps)
    return nearest.result(images, threat)


def superdeepfool_cost(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (forward, backward) passes of a sample that is never adversarial: all its steps are DeepFool's."""
    return 2 * options["steps"] + 1, (options["classes"] - 1) * options["steps"]


def deepfool_step(
    model: nn.Module, images: Tensor, labels: Tensor, norm: str, classes: int, overshoot: float
) -> Tensor:
    """Return the images (N, ...) moved onto the boundary that seems nearest of those between the true and other classes."""
    if len(images) == 0:
        return images
    parts = [
        boundary(model, images[rows], labels[rows], norm, classes) for rows in in_micro_batches(model, len(images))
    ]
    normal, value = (torch.cat(part) for part in zip(*parts, strict=True))
    step = hyperplane_step(images.flatten(1), normal.flatten(1), value, norm).view_as(images)
    return (images + (1 + overshoot) * step).clamp(0, 1)


def straight_step(model: nn.Module, clean: Tensor, adv_images: Tensor, labels: Tensor, norm: str) -> Tensor:
    """Return the clean images (N, ...) moved onto the boundary as it is at adversarial images, the shortest way."""
    if len(clean) == 0:
        return clean
    parts = [boundary(model, adv_images[rows], labels[rows], norm, 2) for rows in in_micro_batches(model, len(clean))]
    normal, value = (torch.cat(part) for part in zip(*parts, strict=True))
    at_clean = value + fold_sum((normal * (clean - adv_images)).flatten(1))
    step = hyperplane_step(clean.flatten(1), normal.flatten(1), at_clean, norm).view_as(clean)
    return (clean + step).clamp(0, 1)


def boundary(model: nn.Module, images: Tensor, labels: Tensor, norm: str, classes: int) -> tuple[Tensor, Tensor]:
    """Linearise the logit of the class whose boundary seems nearest, less the true one: (normal (N, ...), value (N,)).

    Looks at the `classes` - 1 largest other logits, with a backward pass each. Raises UserError for a model of one class.
    """
    with torch.enable_grad():
        leaf = images.detach().requires_grad_(True)
        logits = model(leaf)
        others = logits.detach().scatter(1, labels[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)
        gaps = logits - logits.gather(1, labels[:, None])
    looked_at = min(classes, check_classes("superdeepfool", logits)) - 1
    normal, value = torch.zeros_like(images), torch.zeros_like(logits[:, 0])
    smallest = torch.full_like(value, torch.inf)
    for rank in range(looked_at):
        with torch.enable_grad():
            gap = gaps.gather(1, others[:, rank : rank + 1])[:, 0]
        (slope,) = torch.autograd.grad(gap.sum(), leaf, retain_graph=rank < looked_at - 1)
        slope, gap = slope.nan_to_num(0, 0, 0), gap.detach()
        distance = gap.abs() / (1e-12 + fold_length(slope, DUAL[norm]))
        closer = distance < smallest
        normal[closer], value[closer], smallest[closer] = slope[closer], gap[closer], distance[closer]
    return normal, value


def _check(steps: int, classes: int, overshoot: float, halvings: int) -> None:
    check_counts("superdeepfool", steps=steps)
    check_counts("superdeepfool", least=2, classes=classes)
    check_counts("superdeepfool", least=0, halvings=halvings)
    check_between("superdeepfool", "overshoot", 1 + overshoot, 1 - 1e-9, float("inf"))
