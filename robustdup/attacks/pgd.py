"""PGD: ascend the loss step by step, projecting onto the ball inside [0, 1] after each. The clear example of an attack.

It is a `pool` attack: it sees any number of samples at once, drops a sample the moment it is misclassified, and draws its
randomness from the sample's own stream, so that a result does not depend on which others are there. With `eot` it drops
none, and looks for the image that is right in the fewest draws: see `expectation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.expectation import asked_again, height, keep_fewest_right
from robustdup.attacks.losses import Loss, find_loss, margin, misclassified
from robustdup.attacks.noise import ball_noise
from robustdup.attacks.passes import input_gradient
from robustdup.errors import UserError, check_counts
from robustdup.projections import per_sample, row_length, row_sum
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel, parse_eps

# Steps times step size in eps. In L2 and L1 a direction is found by turning on the sphere, and short paths end early:
# on a linear model 2.5 eps end up to 6% below the optimum, 10 eps within 1%.
PATH = {"Linf": 2.5, "L2": 10.0, "L1": 10.0}


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    rng: SampleRng,
    steps: int = 40,
    step_size: str | float | None = None,
    restarts: int = 1,
    loss: str | Loss = "ce",
    momentum: float = 0.0,
    random_start: bool = True,
    eot: int = 1,
) -> Tensor:
    """Maximise `loss` by projected gradient ascent; samples that survive return their iterate of smallest margin.

    https://arxiv.org/abs/1706.06083; for L1 see `ascent`.

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: clean images (N, C, H, W) in [0, 1].
        labels: true classes (N,).
        threat: the ball to stay in.
        rng: the samples' streams.
        steps: for each start.
        step_size: in pixel units, in the threat model's norm; by default 2.5 eps / steps in Linf and 10 eps / steps in L2
            and L1.
        restarts: number of starts.
        loss: the name of a loss, or a function (logits (N, K), labels (N,)) -> (N,).
        momentum: of the accumulated gradient, https://arxiv.org/abs/1710.06081.
        random_start: whether to start in the ball at random, or at the clean image.
        eot: calls over which a gradient is averaged, for randomised models. Above 1 no sample leaves: of its iterate that was
            right in the fewest calls and its last one, the one is returned that is right less often when asked again.

    Returns:
        Images (N, C, H, W) inside the ball and [0, 1].

    Raises:
        UserError: an unknown loss, or a setting that cannot work.
    """
    check_counts("pgd", steps=steps, restarts=restarts, eot=eot)
    if restarts > 1 and not random_start:
        raise UserError(
            "pgd: restarts above 1 need random_start=True; without it each repeats the first.", code="bad-option"
        )
    step = PATH[threat.norm] * threat.radius / steps if step_size is None else float(parse_eps(step_size))
    function = find_loss(loss)
    adv_images, lowest = images.clone(), images.new_full((len(images),), torch.inf)
    remaining = torch.arange(len(images), device=images.device)
    for restart in range(restarts):
        if len(remaining) == 0:
            break
        active, clean, true = remaining, images[remaining], labels[remaining]
        iterate = clean
        if random_start:
            iterate = threat.project(clean, clean + ball_noise(clean, threat, rng[active].fold("start"), draw=restart))
        velocity = torch.zeros_like(iterate)
        best, best_height = (adv_images, lowest) if eot == 1 else (clean.clone(), torch.full_like(lowest, torch.inf))
        for taken in range(steps + 1):
            last = taken == steps
            gradient, heights, is_adv = _look(model, iterate, true, function, eot, gradient=not last)
            keep_improved((best, best_height), (iterate, heights), active, is_adv)
            keep = (~is_adv).nonzero().squeeze(1)
            if len(keep) < len(active):
                kept = (active, clean, true, iterate, velocity, gradient)
                active, clean, true, iterate, velocity, gradient = (values[keep] for values in kept)
            if last or len(active) == 0:
                break
            velocity = momentum * velocity + unit_l1(gradient)
            iterate = threat.project(clean, iterate + step * ascent(clean, velocity, threat))
        if eot > 1:
            keep_fewest_right(model, (best, iterate), labels, eot, (adv_images, lowest))
        else:
            adv_images, lowest = best, best_height
        remaining = active
    return adv_images


def keep_improved(best: tuple[Tensor, Tensor], now: tuple[Tensor, Tensor], active: Tensor, is_adv: Tensor) -> None:
    """Keep, in place, the iterates that are misclassified or lower than the best so far: (images, heights) each.

    `active` (n,) are the places of the n iterates among the best. A GPU is waited for once.
    """
    rows = ((now[1] < best[1][active]) | is_adv).nonzero().squeeze(1)
    places = active[rows]
    best[0][places], best[1][places] = now[0][rows], now[1][rows]


def pgd_cost(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (forward, backward) passes that a surviving sample costs under these options."""
    steps, eot, restarts = options["steps"], options["eot"], options["restarts"]
    return restarts * ((steps + 1) * eot + 2 * asked_again(eot)), restarts * steps * eot


def ascent(images: Tensor, gradient: Tensor, threat: ThreatModel) -> Tensor:
    """Return the direction, of length 1 in the norm of `threat`, in which `gradient` rises: both (N, ...).

    Linf: the sign. L2: the gradient itself. L1: the gradient on its k largest entries, where k is how many pixels the
    best answer to a linear model would change: enough for their room inside [0, 1] to add up to eps. The choice of k
    stands in for the sparsity that https://arxiv.org/abs/1904.13000 (SLIDE) and https://arxiv.org/abs/2103.01208 tune.
    """
    if threat.norm == "Linf":
        return gradient.sign()
    if threat.norm == "L1":
        flat, clean = gradient.flatten(1), images.flatten(1)
        order = flat.abs().argsort(dim=1, descending=True, stable=True)
        room = torch.where(flat > 0, 1 - clean, clean).gather(1, order).double()
        used_before = room.cumsum(dim=1) - room
        mask = torch.zeros_like(flat).scatter(1, order, (used_before < threat.radius).to(flat.dtype))
        gradient = (flat * mask).view_as(gradient)
    length = row_length(gradient, threat.norm).clamp(min=1e-30).to(gradient.dtype)
    return gradient / per_sample(length, gradient)


def unit_l1(gradient: Tensor) -> Tensor:
    """Scale each sample (N, ...) to an absolute sum of 1, so that momentum weighs steps alike; zeros stay zeros."""
    length = row_sum(gradient.flatten(1).abs()).clamp(min=1e-30).to(gradient.dtype)
    return gradient / per_sample(length, gradient)


def _look(
    model: nn.Module, images: Tensor, labels: Tensor, loss: Loss, eot: int, *, gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (gradient, height (N,), is_adv (N,) bool) at `images`, over `eot` calls; the gradient only where asked.

    Of one call the height is the margin; of several it is that of `expectation`, and no sample is to leave.
    """
    total, margins = torch.zeros_like(images), torch.zeros_like(images[:, 0, 0, 0])
    share = torch.zeros_like(margins)
    for _ in range(eot):
        if gradient:
            grad, _, logits = input_gradient(model, images, lambda logits, rows: loss(logits, labels[rows]))
            total += grad.nan_to_num(0, 0, 0)
        else:
            with torch.no_grad():
                logits = model(images)
        margins += margin(logits, labels) / eot
        is_adv = misclassified(logits, labels)
        share = share + ~is_adv / eot
    if eot == 1:
        return total, margins, is_adv
    return total, height(share, margins, eot).to(margins), torch.zeros_like(is_adv)
