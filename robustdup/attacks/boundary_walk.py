"""Boundary walk: from a misclassified image far away along the decision boundary, until it lies inside the ball.

For models whose scores are flat around an image, such as clipped logits: near the boundary two classes are about to tie,
and there even such a model has a gradient, or at least a decision. The walk is that of HopSkipJump
(https://arxiv.org/abs/1904.02144): bisect to the boundary, step along the gradient there as far as the iterate stays on the
wrong side, bisect again. The gradient is the model's own, averaged over probes around it, near ones and far ones,
instead of one that is estimated from decisions: a few gradients do the work of hundreds of decisions where there are any.

It is a `pool` attack: a sample leaves the moment its iterate inside the ball is misclassified, and all randomness is its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.losses import cw, fools
from robustdup.attacks.passes import input_gradient
from robustdup.attacks.pgd import ascent, unit_l1
from robustdup.errors import UserError, check_counts
from robustdup.projections import per_sample
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

AMPLITUDES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # of the noise among which a start is looked for, in pixel units
DRAWS = 10  # of noise at each amplitude
HALVINGS = 12  # of the way to the clean image, and of a step
NEAREST = 0.01  # the distance of the nearest probes, as a share of the farthest's
PIXELS = 2**24  # of probes that are held at once, about


def boundary_walk(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    rng: SampleRng,
    steps: int = 30,
    probes: int = 8,
    restarts: int = 8,
    reach: float = 0.25,
) -> Tensor:
    """Walk along the boundary from random starts; samples that survive return their nearest iterate, projected.

    A start is noise that the model misclassifies; where there is none, or the gradient is zero throughout, the walk from it
    ends. https://arxiv.org/abs/1904.02144

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: clean images (N, C, H, W) in [0, 1].
        labels: true classes (N,).
        threat: the ball to stay in: Linf or L2.
        rng: the samples' streams.
        steps: along the boundary, for each start.
        probes: images around the iterate over which the gradient is averaged.
        restarts: number of starts.
        reach: how far probes lie from the iterate in every pixel, at most, as a share of eps.

    Returns:
        Images (N, C, H, W) inside the ball and [0, 1].

    Raises:
        UserError: a setting that cannot work.
    """
    check_counts("boundary-walk", steps=steps, probes=probes, restarts=restarts)
    if not 0 < reach < float("inf"):
        raise UserError(f"boundary-walk: reach is a share of eps and must be above 0, got {reach}.", code="bad-option")
    walk = _Walk(model, images, labels, threat)
    for restart in range(restarts):
        streams = rng.fold("restart").fold(restart)
        rows = walk.start(streams.fold("start"))
        if len(rows):
            rows = walk.pull(rows, walk.iterate[rows])
        for step in range(steps):
            if len(rows) == 0:
                break
            rows, direction = walk.uphill(rows, streams[rows].fold("probes"), step, probes, reach)
            if len(rows):
                rows = walk.pull(rows, walk.hop(rows, direction, 1 / (step + 1) ** 0.5))
    return walk.result()


def boundary_walk_cost(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (forward, backward) passes that a sample which survives every hop costs, at most."""
    steps, probes = options["steps"], options["probes"]
    look = 1 + HALVINGS
    return options["restarts"] * (DRAWS * len(AMPLITUDES) + look + steps * (probes + HALVINGS + look)), (
        options["restarts"] * steps * probes
    )


class _Walk:
    """Where the iterates of a restart are: misclassified, at `distance` (N,) of the images, for all samples."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> None:
        self.model, self.images, self.labels, self.threat = model, images, labels, threat
        self.iterate, self.best = images.clone(), images.clone()
        self.distance = torch.full((len(images),), torch.inf, dtype=torch.float64, device=images.device)
        self.nearest = self.distance.clone()

    def is_adv(self, rows: Tensor, images: Tensor) -> Tensor:
        """Return which images (n, ...) of the rows are misclassified: (n,) bool."""
        return fools(self.model, images, self.labels[rows])

    def outside(self) -> Tensor:
        """Return for which samples nothing inside the ball is known: (N,) bool."""
        return self.nearest > self.threat.radius + self.threat.tolerance

    def start(self, rng: SampleRng) -> Tensor:
        """Put what is left onto misclassified noise, as weak as may be: by turns signs and uniform; return those rows."""
        rows = missing = self.outside().nonzero()[:, 0]
        for level, amplitude in enumerate(AMPLITUDES):
            for draw in range(DRAWS):
                if len(missing) == 0:
                    return rows
                stream, shape, dtype = rng[missing], self.images.shape[1:], self.images.dtype
                number = level * DRAWS + draw
                if draw % 2:
                    unit = stream.uniform(shape, draw=number, low=-1.0, high=1.0, dtype=dtype)
                else:
                    unit = stream.signs(shape, draw=number, dtype=dtype)
                noisy = (self.images[missing] + amplitude * unit).clamp(0, 1)
                is_adv = self.is_adv(missing, noisy)
                self.iterate[missing[is_adv]], self.distance[missing[is_adv]] = noisy[is_adv], torch.inf
                missing = missing[~is_adv]
        return rows[~torch.isin(rows, missing)]

    def pull(self, rows: Tensor, images: Tensor) -> Tensor:
        """Bisect from misclassified images to the boundary, keep what is nearer than before, return who is not in the ball.

        In Linf the way to the clean image clips the change, in L2 it is straight. The ball itself is tried first.
        """
        clean, high = self.images[rows], self.threat.distance(self.images[rows], images)
        low, nearest = torch.zeros_like(high), images.clone()
        for halving in range(HALVINGS + 1):
            middle = (low + high) / 2 if halving else high.clamp(max=self.threat.radius)
            between = _toward(clean, images, middle, self.threat)
            if not halving:
                between = self.threat.project(clean, between)  # to the last bit
            is_adv = self.is_adv(rows, between)
            nearest[is_adv] = between[is_adv]
            high, low = torch.where(is_adv, middle, high), torch.where(is_adv, low, middle)
        distance = self.threat.distance(clean, nearest)
        nearer = distance < self.distance[rows]
        self.iterate[rows[nearer]], self.distance[rows[nearer]] = nearest[nearer], distance[nearer]
        improved = distance < self.nearest[rows]
        self.best[rows[improved]], self.nearest[rows[improved]] = nearest[improved], distance[improved]
        return rows[self.outside()[rows]]

    def uphill(self, rows: Tensor, rng: SampleRng, step: int, probes: int, reach: float) -> tuple[Tensor, Tensor]:
        """Return the rows where the margin falls anywhere around the points, and the direction (n, ...) in which it does."""
        at_once = max(1, PIXELS // (probes * self.images[0].numel()))
        parts = [slice(i, i + at_once) for i in range(0, len(rows), at_once)]
        total = torch.cat([self.slope(rows[part], rng[part], step, probes, reach) for part in parts])
        rises = total.flatten(1).abs().amax(dim=1) > 0
        rows = rows[rises]
        return rows, ascent(self.images[rows], unit_l1(total[rises]), self.threat)

    def slope(self, rows: Tensor, rng: SampleRng, step: int, probes: int, reach: float) -> Tensor:
        """Return minus the sum of the margin's gradients at all probes around the iterates: (n, ...)."""
        iterate, shape = self.iterate[rows], self.images.shape[1:]
        offset = rng.uniform((probes, *shape), draw=step, low=-1.0, high=1.0, dtype=iterate.dtype)
        scale = NEAREST ** rng.fold("scale").uniform((probes,), draw=step, dtype=iterate.dtype)
        offset *= reach * self.threat.radius * scale.view(-1, probes, *[1] * len(shape))
        around = (iterate[:, None] + offset).clamp_(0, 1).flatten(0, 1)
        labels = self.labels[rows].repeat_interleave(probes)
        gradient, _, _ = input_gradient(self.model, around, lambda logits, part: cw(logits, labels[part]))
        total = torch.zeros_like(iterate)
        for probe in gradient.nan_to_num(0, 0, 0).view(-1, probes, *shape).unbind(1):
            total += probe
        return total

    def hop(self, rows: Tensor, direction: Tensor, share: float) -> Tensor:
        """Return misclassified images along the direction, at most `share` of the distance away: halved until they are."""
        length, hopped = self.distance[rows] * share, self.iterate[rows].clone()
        trying = torch.arange(len(rows), device=rows.device)
        for _ in range(HALVINGS):
            if len(trying) == 0:
                break
            move = per_sample(length[trying].to(hopped.dtype), hopped) * direction[trying]
            there = (self.iterate[rows[trying]] + move).clamp(0, 1)
            is_adv = self.is_adv(rows[trying], there)
            hopped[trying[is_adv]] = there[is_adv]
            trying = trying[~is_adv]
            length = length / 2
        return hopped

    def result(self) -> Tensor:
        """Return the images inside the ball, and the nearest ones projected onto it where there are none."""
        outside = self.outside()
        self.best[outside] = self.threat.project(self.images[outside], self.best[outside])
        return self.best


def _toward(clean: Tensor, images: Tensor, distance: Tensor, threat: ThreatModel) -> Tensor:
    """Return the images on the way to the clean ones (n, ...) at most `distance` (n,) from them."""
    size = per_sample(distance.to(clean.dtype), clean)
    if threat.norm == "Linf":
        return torch.minimum(torch.maximum(images, clean - size), clean + size)
    whole = threat.distance(clean, images).clamp(min=1e-30).to(clean.dtype).view_as(size)
    return clean + (images - clean) * (size / whole).clamp(max=1)
