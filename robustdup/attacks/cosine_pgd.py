"""Cosine PGD: signed or normalised ascent with momentum, whose step falls along half a cosine from 2 eps to nothing.

Short runs from fresh random starts, of some twenty steps each: on robust networks more runs, each towards another class,
find more than longer ones, and a step that falls by the clock makes better use of few steps than one that waits for the
loss to stall (APGD, https://arxiv.org/abs/2003.01690, whose steps and momentum these are). The margin of probabilities
as a loss follows https://arxiv.org/abs/2411.15210, the targeted ratio of logit differences APGD-T.

It is a `pool` attack: a sample leaves the moment it is misclassified, and all randomness is its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.apgd_run import RowLoss
from robustdup.attacks.apgd_steps import l2_step, linf_step, random_start
from robustdup.attacks.apgd_t import TargetLoss, targeted_loss
from robustdup.attacks.expectation import asked_again, height, keep_fewest_right
from robustdup.attacks.losses import Loss, find_loss, margin, misclassified, probability_cw
from robustdup.attacks.passes import input_gradient
from robustdup.attacks.pgd import keep_improved
from robustdup.errors import check_counts
from robustdup.projections import per_sample
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

FIRST_STEP = 2.0  # of eps
CONFIDENT = 10.0  # a logit margin from which on probabilities hide what other classes do


def cosine_pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    rng: SampleRng,
    steps: int = 25,
    restarts: int = 1,
    loss: str | Loss = "probability-margin",
    eot: int = 1,
) -> Tensor:
    """Maximise `loss` by short runs; samples that survive return their iterate of smallest margin.

    Where the margin is above 10, `probability-margin` is taken of logits scaled down to that, so that it keeps a slope
    whatever the scale of the logits.

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: clean images (N, C, H, W) in [0, 1].
        labels: true classes (N,).
        threat: the ball to stay in: Linf or L2.
        rng: the samples' streams.
        steps: for each run.
        restarts: runs from random starts.
        loss: the name of a loss, or a function (logits (N, K), labels (N,)) -> (N,).
        eot: calls over which a gradient is averaged, for randomised models; above 1 no sample leaves, and what is returned was
            right in the fewest calls.

    Returns:
        Images (N, C, H, W) inside the ball and [0, 1].

    Raises:
        UserError: an unknown loss, or a setting that cannot work.
    """
    function = find_loss(loss)
    if function is probability_cw:
        function = tempered_probability_cw
    check_counts("cosine-pgd", steps=steps, restarts=restarts, eot=eot)
    losses: list[RowLoss] = [lambda logits, index: function(logits, labels[index])] * restarts
    return _strongest_of_runs(model, images, labels, threat, losses, rng=rng, steps=steps, eot=eot)


def cosine_pgd_t(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    rng: SampleRng,
    targets: int = 4,
    steps: int = 20,
    restarts: int = 1,
    eot: int = 1,
) -> Tensor:
    """Run `cosine_pgd` on the targeted DLR, towards each sample's most likely wrong classes one by one.

    The order comes from one pass over the clean images. Warns (AttackWarning) and takes the targeted margin where the model
    has fewer than four classes. Shapes, norms, errors and the other options are those of `cosine_pgd`.

    Args:
        targets: wrong classes to aim at; all where there are fewer.
    """
    adv_images, (rows, order, loss) = images.clone(), targeted_loss("cosine-pgd-t", model, images, labels, targets, eot)
    if len(rows) == 0:
        return adv_images
    check_counts("cosine-pgd-t", steps=steps, restarts=restarts, eot=eot)
    adv_images[rows] = _strongest_of_runs(
        model,
        images[rows],
        labels[rows],
        threat,
        [_toward(loss, order[:, rank]) for rank in range(order.shape[1]) for _ in range(restarts)],
        rng=rng[rows],
        steps=steps,
        eot=eot,
    )
    return adv_images


def cosine_pgd_cost(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (forward, backward) passes that a surviving sample costs under these options."""
    eot, restarts = options["eot"], options["restarts"]
    gradients = restarts * options["steps"] * eot
    return gradients + restarts * (eot + 2 * asked_again(eot)), gradients


def cosine_pgd_t_cost(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (forward, backward) passes that a surviving sample costs where the model has enough classes."""
    forward, backward = cosine_pgd_cost(options)
    return options["eot"] + options["targets"] * forward, options["targets"] * backward


def tempered_probability_cw(logits: Tensor, labels: Tensor) -> Tensor:
    """Return minus the probability margin of logits scaled to a margin of at most 10: (N, K), (N,) -> (N,) in [-1, 1]."""
    size = margin(logits.detach(), labels).abs()
    return probability_cw(logits / (size / CONFIDENT).clamp(min=1.0)[:, None], labels)


def _toward(loss: TargetLoss, target: Tensor) -> RowLoss:
    return lambda logits, samples: loss(logits, samples, target[samples])


def _strongest_of_runs(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    losses: list[RowLoss],
    *,
    rng: SampleRng,
    steps: int,
    eot: int,
) -> Tensor:
    """Run once on each of `losses`, on the samples still correct, and return each one's iterate of smallest margin.

    With EOT no sample leaves; each run's iterate that was right in the fewest draws, and its last, are asked again.
    """
    adv_images, lowest = images.clone(), images.new_full((len(images),), torch.inf)
    remaining, rng = torch.arange(len(images), device=images.device), rng.fold("start")
    move = linf_step if threat.norm == "Linf" else l2_step
    for draw, loss in enumerate(losses):
        if len(remaining) == 0:
            break
        clean = images[remaining]
        iterate = previous = random_start(clean, threat, rng[remaining], draw=draw)
        best, best_height = (adv_images, lowest) if eot == 1 else (clean.clone(), torch.full_like(lowest, torch.inf))
        for step in range(steps + 1):
            last = step == steps
            gradient, heights, is_adv = _look(model, iterate, labels, loss, remaining, eot, gradient=not last)
            keep_improved((best, best_height), (iterate, heights), remaining, is_adv)
            keep = (~is_adv).nonzero().squeeze(1)
            left = len(keep) < len(remaining)
            remaining = remaining[keep] if left else remaining
            if gradient is None or len(remaining) == 0:
                break
            if left:
                clean, iterate, previous, gradient = (t[keep] for t in (clean, iterate, previous, gradient))
            step_size = FIRST_STEP * threat.radius * (1 + math.cos(math.pi * step / steps)) / 2
            sizes = per_sample(torch.full_like(lowest[remaining], step_size), iterate)
            moved = move(clean, iterate, previous, gradient, sizes, threat.radius, first=step == 0)
            iterate, previous = moved, iterate
        if eot > 1:
            keep_fewest_right(model, (best, iterate), labels, eot, (adv_images, lowest))
    return adv_images


def _look(
    model: nn.Module, iterate: Tensor, labels: Tensor, loss: RowLoss, index: Tensor, eot: int, *, gradient: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return (summed gradient of `eot` calls, if asked for, height, is_adv) of each sample.

    Of one call the height is the margin; of several it is that of `expectation`, and no sample is to leave.
    """
    total, margins = None, torch.zeros_like(iterate[:, 0, 0, 0])
    share = torch.zeros_like(margins)
    for _ in range(eot):
        if gradient:
            grad, _, logits = input_gradient(model, iterate, lambda logits, part: loss(logits, index[part]))
            grad = grad.nan_to_num_(0, 0, 0)
            total = grad if total is None else total.add_(grad)
        else:
            with torch.no_grad():
                logits = model(iterate)
        margins += margin(logits, labels[index]).to(margins) / eot
        is_adv = misclassified(logits, labels[index])
        share = share + ~is_adv / eot
    if eot == 1:
        return total, margins, is_adv
    return total, height(share, margins, eot).to(margins), torch.zeros_like(is_adv)
