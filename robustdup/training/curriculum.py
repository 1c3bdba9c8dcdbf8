"""Schedules of the inner attack over the budget: a radius that grows, more steps later on."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from robustdup.errors import UserError
from robustdup.exact import exact_number
from robustdup.threat import ThreatModel

SMALLEST = 1000  # a radius of 0 stands for the run's over this


@dataclass(frozen=True)
class Curriculum:
    """The radius and the steps of the inner attack at each share of the budget; empty: those of the run.

    `eps` holds (share, radius) between which the radius is linear; `steps` (share, steps) from where so many are made.
    """

    eps: tuple[tuple[float, Fraction], ...] = ()
    steps: tuple[tuple[float, int], ...] = ()

    def threat_at(self, share: float, threat: ThreatModel) -> ThreatModel:
        """Return the threat model after a share in [0, 1] of the budget."""
        if not self.eps:
            return threat
        before = [point for point in self.eps if point[0] <= share]
        after = [point for point in self.eps if point[0] > share]
        low, high = before[-1], (after or before[-1:])[0]
        way = Fraction(share - low[0]) / Fraction(high[0] - low[0]) if high[0] > low[0] else Fraction(0)
        radius = low[1] + (high[1] - low[1]) * way
        return threat.with_eps(float(max(radius, threat.eps / SMALLEST)))

    def steps_at(self, share: float) -> int | None:
        """Return the steps after a share of the budget; None for those of the run."""
        return [steps for start, steps in self.steps if start <= share][-1] if self.steps else None


def make_curriculum(
    eps: str | None, steps: str | None, threat: ThreatModel, *, attack: str, objective: str
) -> Curriculum:
    """Read 'SHARE:EPS,…' and 'SHARE:STEPS,…', such as '0:0,0.3:8/255' and '0:2,0.5:10'. Raises UserError."""
    if eps and objective == "free":
        raise UserError("eps_schedule does not go with free, which carries perturbations on.", code="options-conflict")
    if steps and attack != "pgd":
        raise UserError(f"steps_schedule is for attack = pgd, not for {attack!r}.", code="options-conflict")
    radii = _points("eps_schedule", eps)
    counts = _points("steps_schedule", steps)
    for _, radius in radii:
        if radius < 0 or (threat.norm == "Linf" and radius > 1):
            raise UserError(f"eps_schedule: a radius of {float(radius):g} cannot be in {threat.norm}.", code="bad-eps")
    if any(count.denominator != 1 or not 1 <= count < 2**63 for _, count in counts):
        raise UserError(f"steps_schedule = {steps!r}: steps are whole numbers from 1.", code="bad-value")
    return Curriculum(tuple(radii), tuple((share, int(count)) for share, count in counts))


def _points(name: str, text: str | None) -> list[tuple[float, Fraction]]:
    """Return the (share, value) of a text; the first share is 0, and they rise. Raises UserError."""
    points: list[tuple[float, Fraction]] = []
    for part in (text or "").split(","):
        share, colon, value = part.partition(":")
        if not part.strip():
            continue
        try:
            points.append((float(exact_number(share)), Fraction(exact_number(value))))
        except (ValueError, ArithmeticError):
            colon = ""
        if not colon:
            raise UserError(
                f"{name}: cannot read {part.strip()!r}. Write SHARE:VALUE for shares of the budget: 0:0,0.3:8/255.",
                code="bad-value",
            )
    shares = [share for share, _ in points]
    if points and (shares[0] != 0 or shares != sorted(set(shares)) or shares[-1] > 1):
        raise UserError(f"{name} = {text!r}: shares of the budget begin at 0 and rise to 1 at most.", code="bad-value")
    return points
