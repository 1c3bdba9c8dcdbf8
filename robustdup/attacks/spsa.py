"""SPSA: signed ascent along a gradient that is estimated from differences of the margin across wide random probes.

For models whose own gradient is zero or leads nowhere while their scores still have a slope at large: rounded inputs,
thermometer codes, fast ripples. It follows https://arxiv.org/abs/1802.05666 in the estimate (all pixels move at once, by
random signs, both ways) and PGD in the rest: steps with momentum, which fall along half a cosine, projected onto the ball
inside [0, 1]; the published attack steps with Adam. All probes lie in the ball, so that one that is misclassified counts.

It is a `pool` attack: a sample leaves the moment it is misclassified, and all randomness is its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.losses import margin, misclassified
from robustdup.attacks.nearest import kept
from robustdup.attacks.pgd import ascent, unit_l1
from robustdup.errors import UserError, check_counts
from robustdup.projections import per_sample
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

PAIRS = 32  # of probes whose signs are drawn at once, one bit of a word for each
ROWS, PIXELS = 1024, 2**24  # of probes that are held at once, about: few rows of large images


def spsa(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    rng: SampleRng,
    steps: int = 60,
    probes: int = 64,
    restarts: int = 1,
    reach: float = 0.25,
    first_step: float = 0.5,
    momentum: float = 0.75,
) -> Tensor:
    """Lower the margin by estimated gradients; samples that survive return their iterate of smallest margin.

    No gradient is asked for. https://arxiv.org/abs/1802.05666

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: clean images (N, C, H, W) in [0, 1].
        labels: true classes (N,).
        threat: the ball to stay in: Linf or L2.
        rng: the samples' streams.
        steps: for each start.
        probes: images that a step looks at, in pairs on both sides of the iterate; an even number.
        restarts: number of random starts.
        reach: distance of the probes from the iterate, as a share of eps.
        first_step: length of the first step, as a share of eps; steps fall along half a cosine.
        momentum: of the accumulated gradient.

    Returns:
        Images (N, C, H, W) inside the ball and [0, 1].

    Raises:
        UserError: a setting that cannot work.
    """
    _check(steps, probes, restarts, reach, first_step, momentum)
    adv_images, lowest = images.clone(), images.new_full((len(images),), torch.inf)
    remaining = torch.arange(len(images), device=images.device)
    with torch.no_grad():
        for restart in range(restarts):
            if len(remaining) == 0:
                break
            streams = rng.fold("restart").fold(restart)
            signs = streams[remaining].fold("start").signs(images.shape[1:], dtype=images.dtype)
            active, clean, true = remaining, images[remaining], labels[remaining]
            iterate = threat.project(clean, clean + threat.sphere_scale(signs))
            velocity = torch.zeros_like(iterate)
            for step in range(steps + 1):
                margins, is_adv = _look(model, iterate, true)
                improved = ((margins < lowest[active]) | is_adv).nonzero()[:, 0]  # one wait for a GPU; each mask waits
                place = active[improved]
                adv_images[place], lowest[place] = iterate[improved], margins[improved]
                active, clean, true, iterate, velocity = kept(~is_adv, active, clean, true, iterate, velocity)
                if step == steps or len(active) == 0:
                    break
                gradient, is_adv, probed = _estimate(
                    model, clean, iterate, true, threat, streams[active].fold("probes"), step, probes, reach
                )
                rows = is_adv.nonzero()[:, 0]
                adv_images[active[rows]] = probed[rows]
                velocity = momentum * velocity + unit_l1(gradient)
                size = first_step * threat.radius * (1 + math.cos(math.pi * step / steps)) / 2
                iterate = threat.project(clean, iterate + size * ascent(clean, velocity, threat))
                active, clean, true, iterate, velocity = kept(~is_adv, active, clean, true, iterate, velocity)
            remaining = active
    return adv_images


def spsa_cost(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (forward, backward) passes that a surviving sample costs under these options."""
    steps, pairs = options["steps"], options["probes"] // 2
    return options["restarts"] * (steps * 2 * pairs + steps + 1), 0


def _estimate(
    model: nn.Module,
    clean: Tensor,
    iterate: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    rng: SampleRng,
    step: int,
    probes: int,
    reach: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (gradient of minus the margin (n, ...), is_adv (n,): whether any probe is, and the first that is (n, ...))."""
    shape, n, pairs = iterate.shape[1:], len(iterate), probes // 2
    length = 1.0 if threat.norm == "Linf" else math.prod(shape) ** -0.5
    size = reach * threat.radius * length  # of each pixel's change
    gradient, probed = torch.zeros_like(iterate), iterate.clone()
    is_adv = torch.zeros(n, dtype=torch.bool, device=iterate.device)
    at_once = max(1, min(ROWS, PIXELS // math.prod(shape)) // (2 * n))
    for first in range(0, pairs, PAIRS):
        words = rng.bits(shape, draw=step * -(-pairs // PAIRS) + first // PAIRS)
        for start in range(first, min(first + PAIRS, pairs), at_once):
            these = range(start, min(start + at_once, first + PAIRS, pairs))
            shifts = [(((words >> (pair - first)) & 1) * 2 - 1).to(iterate.dtype) * size for pair in these]
            both = torch.cat([iterate + way * shift for shift in shifts for way in (1, -1)])
            both = threat.project(clean.repeat(2 * len(these), *[1] * len(shape)), both)
            margins, probes_adv = _look(model, both, labels.repeat(2 * len(these)))
            for i in range(len(these)):  # pair by pair: the same sums whatever is looked at at once
                up, down = margins.view(-1, n)[2 * i : 2 * i + 2]
                ends = both.view(-1, n, *shape)[2 * i : 2 * i + 2]
                gradient += per_sample((down - up).nan_to_num(0, 0, 0), gradient) * (ends[0] - ends[1])
                for end_adv, end in zip(probes_adv.view(-1, n)[2 * i : 2 * i + 2], ends, strict=True):
                    probed = torch.where(per_sample(end_adv & ~is_adv, end), end, probed)
                    is_adv |= end_adv
    return gradient, is_adv, probed


def _look(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return (margin (N,), is_adv (N,) bool) at the images."""
    logits = model(images)
    return margin(logits, labels), misclassified(logits, labels)


def _check(steps: int, probes: int, restarts: int, reach: float, first_step: float, momentum: float) -> None:
    check_counts("spsa", steps=steps, restarts=restarts)
    check_counts("spsa", least=2, probes=probes)
    if probes % 2:
        raise UserError(
            f"spsa: probes come in pairs, so that their number must be even; got {probes}.", code="bad-option"
        )
    for name, share in (("reach", reach), ("first_step", first_step)):
        if not 0 < share < math.inf:
            raise UserError(f"spsa: {name} is a share of eps and must be above 0, got {share}.", code="bad-option")
    if not 0 <= momentum < 1:
        raise UserError(f"spsa: momentum must be at least 0 and below 1, got {momentum}.", code="bad-option")
