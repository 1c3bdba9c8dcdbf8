"""What an adversary may do: a ball of radius eps around a clean image, inside the [0, 1] box."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction

from torch import Tensor

from robustdup.errors import UserError, unknown
from robustdup.exact import exact_number
from robustdup.projections import COUNTS, per_sample, project, row_distance, row_length

NORMS = ("Linf", "L2", "L1", *COUNTS)
PLACE = {"L0": "values", "L0-pixels": "pixels"}  # what is counted
LINF_TOLERANCE = 1e-6  # absolute, in pixel units
RELATIVE_TOLERANCE = 1e-5  # of eps, for L2 and L1; what is counted is exact

Eps = str | float | int | Fraction


def _readable(written: str, value: Fraction) -> str:
    """Return eps as it was written, where others can read that too: '8./255.' is 8/255."""
    text = written.replace(" ", "")
    try:
        Fraction(text)
    except ValueError:
        return str(value)
    return text


def eps_as_text(eps: Eps) -> str:
    """Return eps as people write it: the float of 8 / 255 is '8/255', not 0.03137254901960784."""
    number = round(eps * 255) if isinstance(eps, float) and 0 < eps < 10**6 else 0
    return f"{number}/255" if number and number / 255 == eps and len(repr(float(eps))) > 10 else str(eps)


def counted_places(norm: str) -> str:
    """Return what L0 or L0-pixels counts, in words."""
    explained = {"L0": "one channel of one pixel is one value", "L0-pixels": "a pixel with all of its channels is one"}
    return f"{PLACE[norm]} ({explained[norm]})"


def parse_eps(eps: Eps) -> Fraction:
    """Return eps as an exact fraction: `8/255` is kept exactly, and so is `0.031`. Raises UserError."""
    if ((far := re.search(r"[eE]([-+]?\d+)\s*$", str(eps)[:100])) and len(far[1]) > 4) or len(str(eps)) > 100:
        raise UserError(f"eps {str(eps)[:50]!r} is no size of a pixel: write '8/255' or 0.5.", code="bad-eps")
    try:
        value = exact_number(eps_as_text(eps)) if not isinstance(eps, Fraction) else eps
    except OverflowError:
        raise UserError(f"eps = {eps} is larger than any image of pixels in [0, 1].", code="bad-eps") from None
    except (ValueError, ZeroDivisionError):
        raise UserError(
            f"eps {eps!r} is not a number. Write a fraction such as '8/255' or a decimal such as 0.5.", code="bad-eps"
        ) from None
    if value > 10**9:
        raise UserError(f"eps = {eps} is larger than any image of pixels in [0, 1].", code="bad-eps")
    if value <= 0:
        raise UserError(
            f"eps must be above 0, got {eps}. (The accuracy at eps = 0 is the clean accuracy.)", code="bad-eps"
        )
    if float(value) < 1e-30:
        raise UserError(f"eps = {eps} is smaller than any difference of two pixels.", code="bad-eps")
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

    `norm` is one of Linf, L2, L1, L0, L0-pixels; `eps` is in pixel units of [0, 1] and is given as text (`8/255`), number or
    fraction. In L0 it is a whole number: how many values may change, where a value is one channel of one pixel; in L0-pixels
    how many pixels, each in all of its channels. `eps_text` keeps what was written. Raises UserError for another norm,
    eps <= 0, eps > 1 in Linf, or a fraction where places are counted.
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
                f"Did you mean '{eps}/255'?",
                code="bad-eps",
            )
        if name in COUNTS and value.denominator != 1:
            raise UserError(
                f"eps in {name} counts the {counted_places(name)} that may change: write a whole number such as "
                f"{max(round(value), 1) if value > 1 else 10}, not {eps}.",
                code="bad-eps",
            )
        object.__setattr__(self, "norm", name)
        object.__setattr__(self, "eps", value)
        object.__setattr__(self, "eps_text", eps_text if eps_text is not None else _readable(eps_as_text(eps), value))

    def __str__(self) -> str:
        return f"{self.norm}, eps = {self.eps_text}"

    @property
    def radius(self) -> float:
        """eps as the nearest float."""
        return float(self.eps)

    @property
    def tolerance(self) -> float:
        """How far over eps a distance may lie before it is a violation, in pixel units."""
        if self.norm in COUNTS:
            return 0.0
        return LINF_TOLERANCE if self.norm == "Linf" else RELATIVE_TOLERANCE * self.radius

    def with_eps(self, eps: Eps) -> ThreatModel:
        """Return the threat model of the same norm with another eps."""
        return ThreatModel(self.norm, eps)

    def scaled(self, factor: Fraction | int) -> ThreatModel:
        """Return the threat model with `factor` times its eps; counts are rounded down, and at least 1."""
        eps = self.eps * factor
        return ThreatModel(self.norm, max(eps.__floor__(), 1) if self.norm in COUNTS else eps)

    def copy(self) -> ThreatModel:
        """Return the same threat model as another object that shares no part with it, for code that may write into it."""
        return ThreatModel(self.norm, Fraction(self.eps.numerator, self.eps.denominator), self.eps_text)

    def distance(self, clean: Tensor, adv_images: Tensor) -> Tensor:
        """Return the distance of each sample in this norm: (N, ...) images -> (N,) float64."""
        return row_distance(adv_images, clean, self.norm)

    def violations(self, clean: Tensor, adv_images: Tensor) -> Violations:
        """Measure in float64 which samples of `adv` (N, C, H, W) are not finite, leave [0, 1], or leave the ball."""
        flat = adv_images.flatten(1)
        finite = flat.isfinite().all(dim=1)
        box = finite & ((flat < 0).any(dim=1) | (flat > 1).any(dim=1))
        ball = finite & (self.distance(clean, adv_images) > self.radius + self.tolerance)
        return Violations(not_finite=~finite, box=box, ball=ball)

    def project(self, clean: Tensor, adv_images: Tensor) -> Tensor:
        """Return the nearest images (Euclidean) to `adv` inside the ball around `clean` and inside [0, 1].

        Shapes (N, ...), any floating dtype; pixels that are not finite count as unchanged. `clean` must be in [0, 1].
        In L1 and L2 the intersection of ball and box is projected onto exactly, as
        https://arxiv.org/abs/2103.01208 does for L1, and not one after the other. In L0 the eps values stay changed that
        bring the image nearest, in L0-pixels the eps pixels; of equal ones the first.
        """
        return project(clean, adv_images, self.norm, self.radius)

    def sphere_scale(self, delta: Tensor) -> Tensor:
        """Scale each sample of `delta` (N, ...) to length eps in this norm; zeros stay zeros. Counts have no scale."""
        scale = self.radius / row_length(delta, self.norm).clamp(min=1e-30)
        return delta * per_sample(scale.to(delta.dtype), delta)
