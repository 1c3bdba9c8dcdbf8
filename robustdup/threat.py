"""What an adversary may do: a ball of radius eps around a clean image, inside the [0, 1] box."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import torch
from torch import Tensor

from robustdup.errors import UserError, unknown

NORMS = ("Linf", "L2", "L1")
LINF_TOLERANCE = 1e-6  # absolute, in pixel units
RELATIVE_TOLERANCE = 1e-5  # of eps, for L2 and L1
DOUBLES = 2**20  # pixels whose distances are summed at once, in float64

Eps = str | float | int | Fraction


def row_sum(values: Tensor) -> Tensor:
    """Sum each row of (N, D) -> (N,) in float64, to the same bits whatever the other rows are.

    A plain sum may split a row differently when N changes; a running sum goes through each row in order.
    """
    return values.double().cumsum(dim=1)[:, -1]


def row_length(delta: Tensor, norm: str) -> Tensor:
    """Return the length of each sample of (N, ...) in Linf, L2 or L1: (N,) float64, the same bits in any company."""
    return _in_parts(lambda part: _row_length(part, norm), delta)


def _in_parts(length: Callable[..., Tensor], *images: Tensor) -> Tensor:
    """Return the lengths (N,) of rows of the images (N, ...), worked out for few rows at once."""
    rows = max(1, DOUBLES // max(images[0][:1].numel(), 1))
    return torch.cat([length(*part) for part in zip(*(torch.split(each, rows) for each in images), strict=True)])


def _row_length(delta: Tensor, norm: str) -> Tensor:
    flat = delta.flatten(1).double()
    if norm == "Linf":
        return flat.abs().amax(dim=1)
    return row_sum(flat.square()).sqrt() if norm == "L2" else row_sum(flat.abs())


def parse_eps(eps: Eps) -> Fraction:
    """Return eps as an exact fraction: `8/255` is kept exactly, and so is `0.031`. Raises UserError."""
    try:
        value = Fraction(str(eps).replace(" ", "")) if not isinstance(eps, Fraction) else eps
    except (ValueError, ZeroDivisionError):
        raise UserError(
            f"eps {eps!r} is not a number. Write a fraction such as '8/255' or a decimal such as 0.5."
        ) from None
    if value > 10**9:
        raise UserError(f"eps = {eps} is larger than any image of pixels in [0, 1].")
    if value <= 0:
        raise UserError(f"eps must be above 0, got {eps}. (The accuracy at eps = 0 is the clean accuracy.)")
    return value


@dataclass(frozen=True)
class Violations:
    """Per sample (N,) bool: what an attack returned that its threat model does not allow."""

    not_finite: Tensor
    box: Tensor
    ball: Tensor

    @property
    def any(self) -> Tensor:
        """(N,) bool: any violation at all."""
        return self.not_finite | self.box | self.ball


@dataclass(frozen=True)
class ThreatModel:
    """The images within `eps` of a clean one, in `norm`, inside [0, 1].

    `norm` is one of Linf, L2, L1; `eps` is in pixel units of [0, 1] and is given as text (`8/255`), number or fraction.
    `eps_text` keeps what was written. Raises UserError for another norm, eps <= 0, or eps > 1 in Linf.
    """

    norm: str
    eps: Fraction
    eps_text: str = field(compare=False)

    def __init__(self, norm: str, eps: Eps, eps_text: str | None = None) -> None:
        by_lower = {name.lower(): name for name in NORMS}
        if str(norm).lower() not in by_lower:
            raise unknown("norm", str(norm), NORMS)
        value = parse_eps(eps)
        name = by_lower[str(norm).lower()]
        if name == "Linf" and value > 1:
            raise UserError(
                f"eps = {eps} in Linf is larger than the whole range of pixels: images are in [0, 1]. "
                f"Did you mean '{eps}/255'?"
            )
        object.__setattr__(self, "norm", name)
        object.__setattr__(self, "eps", value)
        object.__setattr__(self, "eps_text", eps_text if eps_text is not None else str(eps).replace(" ", ""))

    def __str__(self) -> str:
        return f"{self.norm}, eps = {self.eps_text}"

    @property
    def radius(self) -> float:
        """eps as the nearest float."""
        return float(self.eps)

    @property
    def tolerance(self) -> float:
        """How far over eps a distance may lie before it is a violation, in pixel units."""
        return LINF_TOLERANCE if self.norm == "Linf" else RELATIVE_TOLERANCE * self.radius

    def with_eps(self, eps: Eps) -> ThreatModel:
        """Return the threat model of the same norm with another eps."""
        return ThreatModel(self.norm, eps)

    def distance(self, clean: Tensor, adv: Tensor) -> Tensor:
        """Return the distance of each sample in this norm: (N, ...) images -> (N,) float64."""
        return _in_parts(lambda one, other: _row_length(one.double() - other.double(), self.norm), adv, clean)

    def violations(self, clean: Tensor, adv: Tensor) -> Violations:
        """Measure in float64 which samples of `adv` (N, C, H, W) are not finite, leave [0, 1], or leave the ball."""
        flat = adv.flatten(1)
        finite = flat.isfinite().all(dim=1)
        box = finite & ((flat < 0).any(dim=1) | (flat > 1).any(dim=1))
        ball = finite & (self.distance(clean, adv) > self.radius + self.tolerance)
        return Violations(not_finite=~finite, box=box, ball=ball)

    def project(self, clean: Tensor, adv: Tensor) -> Tensor:
        """Return the nearest images (Euclidean) to `adv` inside the ball around `clean` and inside [0, 1].

        Shapes (N, ...), any floating dtype; pixels that are not finite count as unchanged. `clean` must be in [0, 1].
        In L1 and L2 the intersection of ball and box is projected onto exactly, as
        https://arxiv.org/abs/2103.01208 does for L1, and not one after the other.
        """
        if self.norm == "Linf":
            adv = torch.where(adv.isfinite(), adv, clean)
            return torch.minimum(torch.maximum(adv, clean - self.radius), clean + self.radius).clamp(0, 1)
        origin = clean.flatten(1)
        delta = torch.nan_to_num(adv.flatten(1) - origin, nan=0.0, posinf=0.0, neginf=0.0)
        size, room = delta.abs(), torch.where(delta >= 0, 1 - origin, origin).clamp(min=0)
        clipped = torch.minimum(size, room)
        outside = row_length(clipped, self.norm) > self.radius
        if outside.any():
            shrink = _shrink_l1 if self.norm == "L1" else _shrink_l2
            clipped[outside] = shrink(size[outside].double(), room[outside].double(), self.radius).to(clipped.dtype)
        return (origin + delta.sign() * clipped).clamp(0, 1).view_as(adv)

    def sphere_scale(self, delta: Tensor) -> Tensor:
        """Scale each sample of `delta` (N, ...) to length eps in this norm; zeros stay zeros."""
        scale = self.radius / row_length(delta, self.norm).clamp(min=1e-30)
        return delta * scale.to(delta.dtype).view(-1, *[1] * (delta.ndim - 1))


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
    at, fall = kinks.gather(1, last), slope.gather(1, last)
    t = at + (value.gather(1, last) - eps) / (-fall).clamp(min=1)
    return torch.minimum((size - t).clamp(min=0), room)


def _shrink_l2(size: Tensor, room: Tensor, eps: float) -> Tensor:
    """Find min(s * size, room) with the s in (0, 1] at which its length is eps: (N, D) -> (N, D).

    The squared length is a sum of quadratics in s with one kink a pixel, at room / size.
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
