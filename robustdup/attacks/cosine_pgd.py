"""Cosine PGD: signed or normalised ascent with momentum, whose step falls along half a cosine from 2 eps to nothing.

Short runs from fresh random starts, of some twenty steps each: on robust networks more runs, each towards another class,
find more than longer ones, and a step that falls by the clock makes better use of few steps than one that waits for the
loss to stall (APGD, https://arxiv.org/abs/2003.01690, whose steps and momentum these are). The margin of probabilities
as a loss follows https://arxiv.org/abs/2411.15210, the targeted ratio of logit differences APGD-T.

It is a `pool` attack: a row leaves the moment it is fooled, and all randomness is the row's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.apgd_run import RowLoss
from robustdup.attacks.apgd_steps import l2_step, linf_step, random_start
from robustdup.attacks.apgd_t import targeted_losses
from robustdup.attacks.losses import Loss, find_loss, margin, misclassified, probability_cw
from robustdup.attacks.passes import input_gradient
from robustdup.errors import UserError
from robustdup.projections import per_sample
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

FIRST_STEP = 2.0  # of eps
CONFIDENT = 10.0  # a logit margin from which on probabilities hide what other classes do


def cosine_pgd(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng,
    steps: int = 25, restarts: int = 1, loss: str | Loss = "probability-margin", eot: int = 1,
) -> Tensor:  # fmt: skip
    """Maximise `loss` from `restarts` random starts, `steps` steps each; survivors return their smallest margin.

    Images (N, C, H, W) in [0, 1], labels (N,) -> images of the same shape, inside the ball and the box; Linf and L2. Where
    the logit margin is above 10, `probability-margin` is taken of logits scaled down to that, so that it keeps a slope
    whatever the scale of the logits. `eot` averages the gradient over so many calls, for randomised models; loss and
    success are of the last. Raises UserError for an unknown loss or a setting that cannot work.
    """
    function = find_loss(loss)
    if function is probability_cw:
        function = tempered_probability_cw
    return _worst_of_runs(
        "cosine-pgd", model, images, labels, threat,
        [lambda logits, rows: function(logits, labels[rows])] * max(restarts, 0),
        rng=rng, steps=steps, restarts=restarts, eot=eot,
    )  # fmt: skip


def cosine_pgd_t(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng,
    targets: int = 4, steps: int = 20, restarts: int = 1, eot: int = 1,
) -> Tensor:  # fmt: skip
    """Run `cosine_pgd` on the targeted DLR, towards each row's `targets` most likely wrong classes one by one.

    Shapes, norms, options and errors as there. The order comes from one pass over the clean images. Warns
    (AttackWarning) and takes the targeted margin where the model has fewer than four classes.
    """
    adv_images, (rows, losses) = images.clone(), targeted_losses("cosine-pgd-t", model, images, labels, targets)
    if len(rows) == 0:
        return adv_images
    adv_images[rows] = _worst_of_runs(
        "cosine-pgd-t", model, images[rows], labels[rows], threat, [loss for loss in losses for _ in range(restarts)],
        rng=rng[rows], steps=steps, restarts=restarts, eot=eot,
    )  # fmt: skip
    return adv_images


def cosine_pgd_cost(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (forward, backward) passes that a surviving point costs under these options."""
    gradients = options["restarts"] * options["steps"] * options["eot"]
    return gradients + options["restarts"], gradients


def cosine_pgd_t_cost(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (forward, backward) passes that a surviving point costs where the model has enough classes."""
    forward, backward = cosine_pgd_cost(options)
    return 1 + options["targets"] * forward, options["targets"] * backward


def tempered_probability_cw(logits: Tensor, labels: Tensor) -> Tensor:
    """Return minus the probability margin of logits scaled to a margin of at most 10: (N, K), (N,) -> (N,) in [-1, 1]."""
    gap = margin(logits.detach(), labels).abs()
    return probability_cw(logits / (gap / CONFIDENT).clamp(min=1.0)[:, None], labels)


def _worst_of_runs(
    name: str, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, losses: list[RowLoss], *,
    rng: SampleRng, steps: int, restarts: int, eot: int,
) -> Tensor:  # fmt: skip
    """Run once on each of `losses`, on the rows still correct, and return each row's iterate of smallest margin."""
    for option, count in (("steps", steps), ("restarts", restarts), ("eot", eot)):
        if count < 1:
            raise UserError(f"{name}: {option} must be at least 1, got {count}.", code="bad-option")
    adv_images, lowest = images.clone(), images.new_full((len(images),), torch.inf)
    remaining, rng = torch.arange(len(images), device=images.device), rng.fold("start")
    for draw, loss in enumerate(losses):
        if len(remaining) == 0:
            break
        start = random_start(images[remaining], threat, rng[remaining], draw=draw)
        remaining = _ascend(model, images, labels, threat, loss, start, remaining, adv_images, lowest, steps, eot)
    return adv_images


def _ascend(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, loss: RowLoss, start: Tensor, rows: Tensor,
    adv_images: Tensor, lowest: Tensor, steps: int, eot: int,
) -> Tensor:  # fmt: skip
    """Run once from `start`, for `rows`; write iterates of smaller margin to `adv_images`, return who is left."""
    move = linf_step if threat.norm == "Linf" else l2_step
    left, clean, point, previous = rows, images[rows], start, start
    for taken in range(steps + 1):
        gradient, gap, done = _look(model, point, labels, loss, left, eot if taken < steps else 0)
        better = (gap < lowest[left]) | done
        adv_images[left[better]], lowest[left[better]] = point[better], gap[better]
        keep = ~done
        if gradient is None or not bool(keep.any()):
            return left[keep]
        if bool(done.any()):
            left, clean, point, previous, gradient = (t[keep] for t in (left, clean, point, previous, gradient))
        step_size = FIRST_STEP * threat.radius * (1 + math.cos(math.pi * taken / steps)) / 2
        sizes = per_sample(torch.full_like(lowest[left], step_size), point)
        moved = move(clean, point, previous, gradient, sizes, threat.radius, first=taken == 0)
        point, previous = moved, point
    return left


def _look(
    model: nn.Module, point: Tensor, labels: Tensor, loss: RowLoss, rows: Tensor, eot: int
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return (summed gradient of `eot` calls or None, margin, fooled); the last two of the last call."""
    truth, total = labels[rows], None
    if eot == 0:
        with torch.no_grad():
            logits = model(point)
    for _ in range(eot):
        grad, _, logits = input_gradient(model, point, lambda logits, part: loss(logits, rows[part]))
        grad = grad.nan_to_num_(0, 0, 0)
        total = grad if total is None else total.add_(grad)
    return total, margin(logits, truth).to(point.dtype), misclassified(logits, truth)
