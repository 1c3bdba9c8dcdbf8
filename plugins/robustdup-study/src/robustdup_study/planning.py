"""What seeds can show: the power of a test, and the fewest seeds that settle a question or give a wished precision.

A seed is the unit: a paired study has one difference for each. statsmodels' `TTestPower.solve_power` is the same where it
answers; with few seeds and large effects it gives NaN, and the power of TOST no library has. So both are one integral here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from robustdup.statistics import half_width

Values = npt.NDArray[np.float64]

MOST_SEEDS = 1000  # more are "beyond counting"


def power(effect: float, sd: float, n: int, alpha: float = 0.05) -> float:
    """Return the chance that a two-sided paired t test sees a true mean difference `effect`: that of the noncentral t.

    The test sees it where |mean| > t s / sqrt(n): the normal chance of that, integrated over the spread s, which holds where
    libraries' noncentral t gives NaN.
    """
    if n < 2:
        return 0.0
    critical, shift = float(special.stdtrit(n - 1, 1 - alpha / 2)), abs(effect) / sd * math.sqrt(n)
    return _over_spread(
        n, math.inf, lambda spread: special.ndtr(shift - critical * spread) + special.ndtr(-shift - critical * spread)
    )


def tost_power(margin: float, sd: float, n: int, alpha: float = 0.05, effect: float = 0.0) -> float:
    """Return the chance that TOST shows |mean| < margin where the true mean is `effect`.

    Both tests pass where |mean| < margin - t s / sqrt(n): the normal chance of that, integrated over the spread s.
    """
    if n < 2:
        return 0.0
    critical, scale = float(special.stdtrit(n - 1, 1 - alpha)), math.sqrt(n) / sd

    def inside(spread: Values) -> Values:
        room = margin * scale - critical * spread
        return special.ndtr(room - effect * scale) - special.ndtr(-room - effect * scale)  # type: ignore[no-any-return]

    return _over_spread(n, margin * scale / critical, inside)


def _over_spread(n: int, most: float, chance: Callable[[Values], Values]) -> float:
    """Return the mean of `chance` over the sample's standard deviation in units of the true one, up to `most`."""
    most = min(most, math.sqrt(stats.chi2.ppf(1 - 1e-12, n - 1) / (n - 1)))
    nodes, weights = _gauss()
    spread = most * (nodes + 1) / 2
    density = 2 * spread * (n - 1) * stats.chi2.pdf((n - 1) * spread**2, n - 1)
    return float(np.clip(np.sum(weights * density * chance(spread)) * most / 2, 0, 1))


@functools.cache
def _gauss() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Nodes and weights of Gauss-Legendre quadrature on [-1, 1]."""
    return np.polynomial.legendre.leggauss(256)


def fewest(enough: Callable[[int], bool], most: int = MOST_SEEDS) -> int | None:
    """Return the smallest n >= 2 for which `enough` holds, where it then holds for all larger n; None beyond `most`."""
    high = 2
    while not enough(high):
        if high >= most:
            return None
        high = min(2 * high, most)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def seeds_for_precision(sd: float, half: float, level: float = 0.95) -> int | None:
    """Return how many seeds give an interval of ±`half`; None beyond MOST_SEEDS."""
    return fewest(lambda n: half_width(sd, n, level) <= half)


def seeds_for_difference(effect: float, sd: float, wished: float = 0.8, alpha: float = 0.05) -> int | None:
    """Return how many seeds see a true difference `effect` with the wished power; None beyond MOST_SEEDS."""
    return None if effect == 0 else fewest(lambda n: power(effect, sd, n, alpha) >= wished)


def seeds_for_equivalence(
    margin: float, sd: float, wished: float = 0.8, alpha: float = 0.05, effect: float = 0.0
) -> int | None:
    """Return how many seeds show |mean| < margin with the wished power where the mean is `effect`; None if it cannot be."""
    if abs(effect) >= margin:
        return None
    return fewest(lambda n: tost_power(margin, sd, n, alpha, effect) >= wished)
