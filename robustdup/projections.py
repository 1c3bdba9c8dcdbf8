"""Lengths of perturbations, and projections onto a ball inside the valid range [0, 1], for each sample by itself.

Everything here gives a sample the same bits whatever other samples share its batch. There are two degrees of exactness:

- exact, in float64: `project` sorts the pixels and has the answer in closed form; `project_l1_changed` finds the same for
  the few pixels that a random search has changed, without sorting.
- to rounding, in the dtype of the images: `project_l1` for each step of a gradient attack.

`onto_l1_ball` leaves the range [0, 1] aside, as training does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Norms that count what changes: values (one channel of one pixel), or pixels in all channels.
COUNTS = ("L0", "L0-pixels")
DOUBLES = 2**20  # pixels whose distances are summed at once, in float64
COLUMNS = 64  # what `fold_sum` leaves to a running sum


def row_sum(values: Tensor) -> Tensor:
    """Sum each row of (N, D) -> (N,) in float64, to the same bits whatever the other rows are.

    A plain sum may split a row differently when N changes; a running sum goes through each row in order. That holds on a
    CPU; on CUDA neither keeps to one order, and the plain one, which reads each value once, is taken.
    """
    if values.is_cuda:
        return values.sum(dim=1, dtype=torch.float64)
    return values.double().cumsum(dim=1)[:, -1]


def fold_sum(values: Tensor) -> Tensor:
    """Sum each row of (N, D) -> (N,), to the same bits whatever the other rows are, in the dtype of `values`.

    The two halves are added until few columns are left; those are summed in order in float64. For thousands of columns
    it takes a fraction of the time of `row_sum` on a CPU, with an error of a few units in the last place.
    """
    dtype = values.dtype
    while values.shape[1] > COLUMNS:
        half = values.shape[1] // 2
        folded = values[:, :half] + values[:, half : 2 * half]
        if values.shape[1] % 2:
            folded[:, 0] += values[:, -1]
        values = folded
    return row_sum(values).to(dtype)


def row_length(delta: Tensor, norm: str) -> Tensor:
    """Return the length of each sample of (N, ...) in a norm: (N,) float64."""
    return _in_parts(lambda part: _row_length(part, norm), delta)


def row_distance(images: Tensor, others: Tensor, norm: str) -> Tensor:
    """Return the distance of each sample of two sets of images (N, ...) in a norm: (N,) float64."""
    return _in_parts(lambda part, other: _row_length(part.double() - other.double(), norm), images, others)


def fold_length(delta: Tensor, norm: str) -> Tensor:
    """Return the length of each sample of (N, ...) in a norm: (N,) in the dtype of `delta`, to rounding."""
    if norm in COUNTS:
        return count_changes(delta, norm).to(delta.dtype)
    flat = delta.flatten(1)
    if norm == "Linf":
        return flat.abs().amax(dim=1)
    return fold_sum(flat.square()).sqrt_() if norm == "L2" else fold_sum(flat.abs())


def count_changes(delta: Tensor, norm: str) -> Tensor:
    """Count what is not zero in each sample of (N, C, ...): values in L0, in L0-pixels pixels, whatever their channels: (N,)."""
    changed = delta != 0
    return (changed.any(dim=1) if norm == "L0-pixels" else changed).flatten(1).sum(dim=1)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """View one value per sample (N,) as (N, 1, ...), to go with `like` (N, ...)."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _in_parts(length: Callable[..., Tensor], *images: Tensor) -> Tensor:
    """Return the lengths (N,) of samples of the images (N, ...), worked out for few of them at once."""
    rows = max(1, DOUBLES // max(images[0][:1].numel(), 1))
    return torch.cat([length(*part) for part in zip(*(torch.split(each, rows) for each in images), strict=True)])


def _row_length(delta: Tensor, norm: str) -> Tensor:
    if norm in COUNTS:
        return count_changes(delta, norm).double()
    flat = delta.flatten(1).double()
    if norm == "Linf":
        return flat.abs().amax(dim=1)
    return row_sum(flat.square()).sqrt() if norm == "L2" else row_sum(flat.abs())


def project(images: Tensor, moved: Tensor, norm: str, radius: float) -> Tensor:
    """Return the nearest images (Euclidean) to `moved` inside the ball around `images` and inside [0, 1].

    In L1 and L2 the intersection of ball and range is projected onto exactly, as https://arxiv.org/abs/2103.01208 does for
    L1, and not one after the other.

    Args:
        images: clean images (N, ...) in [0, 1].
        moved: images (N, ...) of any floating dtype; pixels that are not finite count as unchanged.
        norm: Linf, L2, L1, L0 or L0-pixels.
        radius: of the ball, in pixel units of [0, 1]; in L0 how many values may change, in L0-pixels how many pixels.

    Returns:
        Images (N, ...).
    """
    if norm == "Linf":
        moved = torch.where(moved.isfinite(), moved, images)
        return torch.minimum(torch.maximum(moved, images - radius), images + radius).clamp(0, 1)
    if norm in COUNTS:
        return project_l0(images, moved, radius, norm)
    origin = images.flatten(1)
    delta = torch.nan_to_num(moved.flatten(1) - origin, nan=0.0, posinf=0.0, neginf=0.0)
    size, room = delta.abs(), torch.where(delta >= 0, 1 - origin, origin).clamp(min=0)
    clipped = torch.minimum(size, room)
    outside = row_length(clipped, norm) > radius
    if outside.any():
        shrink = _shrink_l1 if norm == "L1" else _shrink_l2
        clipped[outside] = shrink(size[outside].double(), room[outside].double(), radius).to(clipped.dtype)
    return (origin + delta.sign() * clipped).clamp(0, 1).view_as(moved)


def project_l0(images: Tensor, moved: Tensor, count: float | Tensor, norm: str = "L0") -> Tensor:
    """Return the nearest images (Euclidean) to `moved` in [0, 1] that differ from `images` in at most `count` places.

    A place that changes is clipped to [0, 1], one that does not is the clean one, to the bit. Those change that bring the
    image nearest; of equal ones the first.

    Args:
        images: clean images (N, C, ...) in [0, 1].
        moved: images (N, C, ...); values that are not finite count as unchanged.
        count: of places, for all samples or one a sample (N,).
        norm: L0, where a place is a value, or L0-pixels, where it is a pixel with all of its channels.

    Returns:
        Images (N, C, ...).
    """
    clipped = torch.where(moved.isfinite(), moved, images).clamp(0, 1)
    far, left = (moved - images).double().nan_to_num(0, 0, 0), (moved - clipped).double().nan_to_num(0, 0, 0)
    gain = far.square() - left.square()
    if norm == "L0-pixels":
        gain = gain.sum(dim=1, keepdim=True)
    flat = gain.flatten(1)
    rank = flat.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    limit = count.view(-1, 1) if isinstance(count, Tensor) else count
    changes = ((rank < limit) & (flat > 0)).view_as(gain)
    return torch.where(changes, clipped, images).view_as(moved)


def _shrink_l1(size: Tensor, room: Tensor, eps: float) -> Tensor:
    """Find min(max(size - t, 0), room) with the t > 0 at which it sums to eps: (N, D) -> (N, D).

    The sum is piecewise linear and falling in t, with kinks at size - room (a pixel leaves its bound) and at size (it
    reaches zero), so that sorting the kinks gives t in closed form.
    """
    starts = (size - room).clamp(min=0)
    kinks, order = torch.cat([starts, size], dim=1).sort(dim=1)
    turns = torch.cat([-torch.ones_like(starts), torch.ones_like(size)], dim=1).gather(1, order)
    slope = turns.cumsum(dim=1)
    steps = torch.diff(kinks, dim=1) * slope[:, :-1]
    total = row_sum(torch.minimum(size, room))[:, None]
    value = torch.cat([total, total + steps.cumsum(dim=1)], dim=1)  # the sum at each kink, before the first: total
    last = (value > eps).sum(dim=1, keepdim=True).clamp(min=1) - 1
    kink, fall = kinks.gather(1, last), slope.gather(1, last)
    t = kink + (value.gather(1, last) - eps) / (-fall).clamp(min=1)
    return torch.minimum((size - t).clamp(min=0), room)


def _shrink_l2(size: Tensor, room: Tensor, eps: float) -> Tensor:
    """Find min(s * size, room) with the s in (0, 1] at which its length is eps: (N, D) -> (N, D).

    The squared length is a sum of quadratics in s with one kink per pixel, at room / size.
    """
    kinks, order = (room / size.clamp(min=1e-300)).sort(dim=1)
    room_sorted, size_sorted = room.gather(1, order), size.gather(1, order)
    bounded = room_sorted.square().cumsum(dim=1)
    free_all = size_sorted.square()
    free = free_all.flip(1).cumsum(dim=1).flip(1) - free_all  # pixels after this kink
    value = bounded + free * kinks.square()  # squared length at each kink
    below = (value <= eps**2).sum(dim=1, keepdim=True)  # kinks passed before the length reaches eps
    bounded_sum = torch.cat([torch.zeros_like(bounded[:, :1]), bounded], dim=1).gather(1, below)
    free_sum = torch.cat([row_sum(free_all)[:, None], free], dim=1).gather(1, below)
    s = ((eps**2 - bounded_sum).clamp(min=0) / free_sum.clamp(min=1e-300)).sqrt().clamp(max=1)
    return torch.minimum(s * size, room)


def project_l1(images: Tensor, moved: Tensor, radius: float) -> Tensor:
    """Return what `project` does in L1 to rounding, several times faster. https://arxiv.org/abs/2103.01208

    Args:
        images: clean images (N, ...) in [0, 1].
        moved: images (N, ...) of the same dtype, all finite.
        radius: of the ball, in pixel units of [0, 1].

    Returns:
        Images (N, ...).
    """
    delta = moved - images
    candidate = images + delta
    size = delta.abs().flatten(1)
    over = torch.minimum(1 - images - delta, candidate).clamp_(max=0).neg_().flatten(1)  # what [0, 1] takes away
    threshold = _l1_threshold(size, over, radius)
    taken = torch.minimum(over.clamp_(min=threshold[:, None]), size)
    return candidate.sub_(delta.sign_().mul_(taken.view_as(delta))).clamp_(0, 1)


def _l1_threshold(size: Tensor, over: Tensor, radius: float) -> Tensor:
    """Return the t >= 0 (N,) at which size - clamp(t, over, size), (N, D) each, sums to `radius`; 0 where that is below.

    The sum is piecewise linear and falling in t: Newton's steps inside a shrinking bracket end on the right piece after
    a few, where sorting the kinks costs several times as much. It is neither convex nor concave, so that Newton's steps
    alone may go round in circles: every fourth halves the bracket.
    """
    room = size - over
    low, high = size.new_zeros(len(size)), size.amax(dim=1)
    t, settled = low, torch.zeros_like(low, dtype=torch.bool)
    close = 8 * torch.finfo(size.dtype).eps * radius
    for turn in range(1, 4 * 64):
        left = size - t[:, None]
        slope = ((left > 0) & (left < room)).sum(dim=1)
        excess = fold_sum(torch.minimum(left.clamp_(min=0), room)) - radius
        low, high = torch.where(excess > 0, t, low), torch.where(excess > 0, high, t)
        newton, middle = t + excess / slope.clamp(min=1), (low + high) / 2
        solved = (excess.abs() <= close) | ((t == 0) & (excess <= 0))
        inside = (slope > 0) & (newton > low) & (newton < high)
        following = torch.where(inside & (solved | (turn % 4 != 0)), newton, torch.where(solved, t, middle))
        exhausted = (middle <= low) | (middle >= high)  # no number between the two: take the one inside the ball
        following = torch.where(exhausted & ~solved, high, following)
        t = torch.where(settled, t, following)
        settled = settled | solved | exhausted
        if bool(settled.all()):
            return t
    return torch.where(settled, t, high)


def project_l1_changed(images: Tensor, moved: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Project onto the L1 ball inside [0, 1], looking only at the pixels that differ: exact, for sparse changes.

    The changed pixels are packed into (N, k), and the threshold is found without sorting them: several times faster than
    `project`. Zeros after a sample's own pixels change no bit of its sums.

    Args:
        images: clean images (N, D) in [0, 1].
        moved: images (N, D) of the same dtype, all finite.
        radius: of the ball, in pixel units of [0, 1].

    Returns:
        Images (N, D) and their L1 distances (N,), float64.
    """
    delta = moved - images
    row, pixel = delta.nonzero(as_tuple=True)
    counts = torch.bincount(row, minlength=len(images))
    column = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    origin, change = images[row, pixel].double(), delta[row, pixel].double()
    limit = torch.where(change > 0, 1 - origin, origin)
    size, room = (change.new_zeros(len(images), max(int(counts.max()), 1)) for _ in range(2))
    size[row, column], room[row, column] = change.abs(), limit
    shrunk, total = _shrink_l1_unsorted(size, room, radius)
    projected = moved.clone()
    projected[row, pixel] = (origin + change.sign() * shrunk[row, column]).to(images.dtype).clamp_(0, 1)
    return projected, total


def _shrink_l1_unsorted(size: Tensor, room: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return min(max(size - t, 0), room) (N, k) with the smallest t >= 0 at which rows sum to eps or less, and the sums.

    Newton's method on the sum, which is piecewise linear and falling in t, inside a bracket that bisection closes where
    Newton leaves it. A row stops moving once it is solved, so its bits do not depend on how long others take.
    """
    low = size.new_zeros(len(size))
    high, t = size.amax(dim=1), low
    for _ in range(100):
        above = size - t[:, None]
        shrunk = torch.minimum(above.clamp(min=0), room)
        total = row_sum(shrunk)
        excess = total - eps
        solved = (excess.abs() <= 1e-9 * eps) | ((t == 0) & (excess <= 0))
        if bool(solved.all()):
            break
        low, high = torch.where(excess > 0, t, low), torch.where(excess > 0, high, t)
        slope = ((above > 0) & (above < room)).sum(dim=1)
        newton = t + excess / slope.clamp(min=1)
        inside = (slope > 0) & (newton > low) & (newton < high)
        t = torch.where(solved, t, torch.where(inside, newton, (low + high) / 2))
    return shrunk, total


def onto_l1_ball(delta: Tensor, radius: float | Tensor) -> Tensor:
    """Return the nearest perturbations (N, ...) of L1 length `radius` or less: no pixel is bounded, nothing waits.

    `radius` may be one a sample (N,). All absolute values are lowered by what makes them sum to the radius. http://doi.org/10.1145/1390156.1390191
    """
    falling = delta.abs().flatten(1).double().sort(dim=1, descending=True).values
    limit = radius.view(-1, 1).double() if isinstance(radius, Tensor) else radius
    lowered = (falling.cumsum(dim=1) - limit) / torch.arange(1, falling.shape[1] + 1, device=delta.device)
    last = (falling > lowered).sum(dim=1, keepdim=True).clamp_(min=1) - 1
    by = per_sample(lowered.gather(1, last).clamp_(min=0).to(delta.dtype), delta)
    return delta.sign() * (delta.abs() - by).clamp_(min=0)
