"""SPSA: signed ascent along a gradient that is estimated from differences of the margin across wide random probes.

For models whose own gradient is zero or leads nowhere while their scores still have a slope at large: rounded inputs,
thermometer codes, fast ripples. It follows https://arxiv.org/abs/1802.05666 in the estimate (all pixels move at once, by
random signs, both ways) and PGD in the rest: steps with momentum, which fall along half a cosine, projected onto ball and
box; the published attack steps with Adam. All probes are points of the ball, so that one that fools the model counts.

It is a `pool` attack: a row leaves the moment it is fooled, and all randomness is the row's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.losses import margin, misclassified
from robustdup.attacks.pgd import ascent, unit_l1
from robustdup.errors import UserError
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

PAIRS = 32  # of probes whose signs are drawn at once, one bit of a word for each
ROWS, PIXELS = 1024, 2**24  # of probes that are held at once, about: few rows of large images


def spsa(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng,
    steps: int = 60, probes: int = 64, restarts: int = 1, reach: float = 0.25, first_step: float = 0.5,
    momentum: float = 0.75,
) -> Tensor:  # fmt: skip
    """Lower the margin by estimated gradients; rows that survive return their point with the smallest margin.

    Images (N, C, H, W) in [0, 1], labels (N,) -> images of the same shape, inside the Linf or L2 ball and the box. No
    gradient is asked for. A step looks at `probes` points, in pairs on both sides, `reach` eps away in the threat model's
    norm, and moves by `first_step` eps, less as time goes on. Follows https://arxiv.org/abs/1802.05666. Raises UserError for
    a setting that cannot work.
    """
    _check(steps, probes, restarts, reach, first_step, momentum)
    best, lowest = images.clone(), images.new_full((len(images),), torch.inf)
    remaining = torch.arange(len(images), device=images.device)
    with torch.no_grad():
        for restart in range(restarts):
            if len(remaining) == 0:
                break
            streams = rng.fold("restart").fold(restart)
            signs = streams[remaining].fold("start").signs(images.shape[1:], dtype=images.dtype)
            active, clean, truth = remaining, images[remaining], labels[remaining]
            point = threat.project(clean, clean + threat.sphere_scale(signs))
            velocity = torch.zeros_like(point)
            for step in range(steps + 1):
                margins, done = _look(model, point, truth)
                better = (margins < lowest[active]) | done
                best[active[better]], lowest[active[better]] = point[better], margins[better]
                active, clean, truth, point, velocity = (t[~done] for t in (active, clean, truth, point, velocity))
                if step == steps or len(active) == 0:
                    break
                estimate, found, at = _estimate(
                    model, clean, point, truth, threat, streams[active].fold("probes"), step, probes, reach
                )
                best[active[found]] = at[found]
                velocity = momentum * velocity + unit_l1(estimate)
                size = first_step * threat.radius * (1 + math.cos(math.pi * step / steps)) / 2
                point = threat.project(clean, point + size * ascent(clean, velocity, threat))
                active, clean, truth, point, velocity = (t[~found] for t in (active, clean, truth, point, velocity))
            remaining = active
    return best


def spsa_cost(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (forward, backward) passes that a surviving point costs under these options."""
    steps, pairs = options["steps"], options["probes"] // 2
    return options["restarts"] * (steps * 2 * pairs + steps + 1), 0


def _estimate(
    model: nn.Module, clean: Tensor, point: Tensor, labels: Tensor, threat: ThreatModel, rng: SampleRng, step: int,
    probes: int, reach: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return (gradient of minus the margin (n, ...), rows of which a probe fooled the model (n,), those probes (n, ...))."""
    shape, n, pairs = point.shape[1:], len(point), probes // 2
    length = 1.0 if threat.norm == "Linf" else math.prod(shape) ** -0.5
    size = reach * threat.radius * length  # of each pixel's change
    gradient, found, at = torch.zeros_like(point), torch.zeros(n, dtype=torch.bool, device=point.device), point.clone()
    at_once = max(1, min(ROWS, PIXELS // math.prod(shape)) // (2 * n))
    for first in range(0, pairs, PAIRS):
        words = rng.bits(shape, draw=step * -(-pairs // PAIRS) + first // PAIRS)
        for start in range(first, min(first + PAIRS, pairs), at_once):
            these = range(start, min(start + at_once, first + PAIRS, pairs))
            shifts = [(((words >> (pair - first)) & 1) * 2 - 1).to(point.dtype) * size for pair in these]
            both = torch.cat([point + way * shift for shift in shifts for way in (1, -1)])
            both = threat.project(clean.repeat(2 * len(these), *[1] * len(shape)), both)
            margins, wrong = _look(model, both, labels.repeat(2 * len(these)))
            for i in range(len(these)):  # pair by pair: the same sums whatever is looked at at once
                (up, down), (risen, fallen) = (part.view(-1, n)[2 * i : 2 * i + 2] for part in (margins, wrong))
                ends = both.view(-1, n, *shape)[2 * i : 2 * i + 2]
                gradient += (down - up).nan_to_num(0, 0, 0).view(-1, *[1] * len(shape)) * (ends[0] - ends[1])
                for hit, end in ((risen, ends[0]), (fallen, ends[1])):
                    new = hit & ~found
                    at[new] = end[new]
                    found |= hit
    return gradient, found, at


def _look(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return (margin (N,), fooled (N,) bool) at the images."""
    logits = model(images)
    return margin(logits, labels), misclassified(logits, labels)


def _check(steps: int, probes: int, restarts: int, reach: float, first_step: float, momentum: float) -> None:
    for name, count, least in (("steps", steps, 1), ("probes", probes, 2), ("restarts", restarts, 1)):
        if count < least:
            raise UserError(f"spsa: {name} must be at least {least}, got {count}.", code="bad-option")
    if probes % 2:
        raise UserError(
            f"spsa: probes come in pairs, so that their number must be even; got {probes}.", code="bad-option"
        )
    for name, share in (("reach", reach), ("first_step", first_step)):
        if not 0 < share < math.inf:
            raise UserError(f"spsa: {name} is a share of eps and must be above 0, got {share}.", code="bad-option")
    if not 0 <= momentum < 1:
        raise UserError(f"spsa: momentum must be at least 0 and below 1, got {momentum}.", code="bad-option")
