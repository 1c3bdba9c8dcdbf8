"""The shortest step from a point onto a hyperplane inside the [0, 1] box, in Linf, L2 and L1.

In Linf and L2 the step is known up to one multiplier: each pixel moves by lambda (Linf) or lambda |w| (L2), but no
further than its bound. What that gains on the hyperplane is a concave, increasing, piecewise linear function of lambda;
Newton's method from lambda = 0 finds its root from below in a few elementwise passes, where the published code
(https://github.com/fra31/auto-attack, fab_projections.py) sorts the pixels. In L1 the pixels of largest weight are
filled one after the other, which takes one sort of the weights.

In float32 the step is the exact one for a value that differs by a few units in the last place. Where nearly every pixel is at
its bound, the others share a small difference of large sums, so that their moves are less exact than that (1e-5 where the
value is 99.9% of what the box can gain); in float64, twice as slow, they are not.

A row's step has the same bits whatever the other rows are. Masks are floats here, since selecting by booleans takes
ten times as long as a product on a CPU.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from robustdup.projections import fold_sum

SMALLEST = 1e-8  # weights up to here move nothing in L2 and L1, as published
FAR = 1e30  # a multiplier that takes every pixel to its bound; finite, so that a weight of 0 stays 0
BLOCK = 65_536  # values that a CPU core keeps in its cache: rows are worked through in blocks of about so many
LOOK = 4  # Newton steps between two looks at whether all rows are done, where a look waits for a GPU


def hyperplane_step(
    points: Tensor, normal: Tensor, value: Tensor, norm: str, *, order: Tensor | None = None
) -> Tensor:  # fmt: skip
    """Return the shortest `step` with value + normal · step = 0 and points + step in [0, 1]: (N, D) -> (N, D).

    `points` (N, D) in [0, 1], `normal` (N, D), `value` (N,) is what the affine function gives at the points. A
    hyperplane out of reach is approached as far as the box allows; a pixel of weight 0 stays. In L1 `order` may hold
    `largest_first(normal)`, to be computed once for several points. Follows https://arxiv.org/abs/1907.02044, section
    2.2.
    """
    if norm == "L1" and order is None:
        order = largest_first(normal)
    size = max(BLOCK // max(points.shape[1], 1), 1) if points.device.type == "cpu" else max(points.shape[0], 1)
    steps = torch.empty_like(points)
    for start in range(0, points.shape[0], size):
        rows = slice(start, start + size)
        part = order[rows] if norm == "L1" and order is not None else None
        steps[rows] = _step(points[rows], normal[rows], value[rows], norm, part)
    return steps


def largest_first(normal: Tensor) -> Tensor:
    """Return the pixels of each row by falling weight, equal ones in their order: (N, D) -> (N, D) int64."""
    return normal.abs().argsort(dim=1, descending=True, stable=True)


def _step(points: Tensor, normal: Tensor, value: Tensor, norm: str, order: Tensor | None) -> Tensor:
    weight = torch.where(value < 0, -1, 1).to(normal.dtype)[:, None] * normal  # the step must lose |value| on it
    size, goal = weight.abs(), value.abs()
    room = torch.lt(weight, 0, out=torch.empty_like(points)).sub_(points).abs_()  # to 1 where negative, else to 0
    if norm != "Linf":
        moves = torch.gt(size, SMALLEST, out=torch.empty_like(size))
        size, room = size.mul_(moves), room.mul_(moves)
    if order is not None:
        length = _fill(size, room, goal, order)
    else:
        multiplier = _multiplier(size, room, goal, norm)[:, None]
        length = torch.minimum(multiplier * size if norm == "L2" else multiplier, room)
    return weight.sign_().mul_(length).neg_()


def _multiplier(size: Tensor, room: Tensor, goal: Tensor, norm: str) -> Tensor:
    """Find the lambda (N,) at which the gain, the sum of size * min(lambda * (size or 1), room), is `goal`.

    The pixels that have not reached their bound only become fewer as lambda grows. Once a Newton step loses none, the
    next one computes the same lambda again: rows that are done keep their bits while others go on.
    """
    load = size * room
    curve = size.square() if norm == "L2" else size
    multiplier = torch.where(fold_sum(load) <= goal, FAR, 0).to(goal.dtype)
    known = torch.full_like(goal, torch.inf)
    both = size.new_empty(2, *size.shape)
    look = 1 if size.device.type == "cpu" else LOOK
    for newton_step in itertools.count(1):
        reach = multiplier[:, None] * size if norm == "L2" else multiplier[:, None]
        torch.gt(room, reach, out=both[0]).mul_(curve)
        torch.le(room, reach, out=both[1]).mul_(load)
        slope, used = fold_sum(both.flatten(0, 1)).view(2, -1)
        if newton_step % look == 0 and not bool((slope < known).any()):
            break
        known = slope
        multiplier = torch.where(slope > 0, torch.maximum(multiplier, (goal - used) / slope), multiplier)
    return multiplier


def _fill(size: Tensor, room: Tensor, goal: Tensor, order: Tensor) -> Tensor:
    """Return how far each pixel moves when those of largest weight are filled until the gain is `goal`: (N, D)."""
    heavy, bound = size.gather(1, order).double(), room.gather(1, order).double()
    load = heavy * bound
    left = (goal.double()[:, None] - (load.cumsum(dim=1) - load)).clamp_(min=0)
    length = torch.minimum(left / heavy.clamp_(min=SMALLEST), bound).to(size.dtype)
    return torch.empty_like(size).scatter_(1, order, length)
