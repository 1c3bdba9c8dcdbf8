"""What seeds can show: the power of a test, and the fewest seeds that settle a question or give a wished precision.

A seed is the unit: a paired study has one difference for each. statsmodels' `TTestPower.solve_power` is the same where it
answers; with few seeds and large effects it gives NaN, and the power of TOST no library has. So both are one integral here,
over arrays, so that the uncertainty of a plan can be told too: mean and spread of a few seeds are themselves guesses.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from robustdup_study.statistics import half_width

Values = npt.NDArray[np.float64]
Given = float | Values

MOST_SEEDS = 1000  # more are "beyond counting"
NODES = 48  # of the quadrature
GUESSES = 10  # quantiles of the mean, and of the spread, that stand for what they may be


def power(effect: float, sd: float, n: int, alpha: float = 0.05) -> float:
    """Return the chance that a two-sided paired t test sees a true mean difference `effect`: that of the noncentral t.

    The test sees it where |mean| > t s / sqrt(n): the normal chance of that, integrated over the spread s, which holds where
    libraries' noncentral t gives NaN.
    """
    return 0.0 if n < 2 else float(_power(np.array(effect), np.array(sd), np.array(n), alpha))


def tost_power(margin: float, sd: float, n: int, alpha: float = 0.05, effect: float = 0.0) -> float:
    """Return the chance that TOST shows |mean| < margin where the true mean is `effect`.

    Both tests pass where |mean| < margin - t s / sqrt(n): the normal chance of that, integrated over the spread s.
    """
    return 0.0 if n < 2 else float(_tost_power(np.array(effect), np.array(sd), np.array(n), alpha, margin))


def _power(effect: Values, sd: Values, n: npt.NDArray[Any], alpha: float) -> Values:
    critical, shift = special.stdtrit(n - 1, 1 - alpha / 2)[..., None], (np.abs(effect) / sd * np.sqrt(n))[..., None]
    return _over_spread(
        n, np.inf, lambda spread: special.ndtr(shift - critical * spread) + special.ndtr(-shift - critical * spread)
    )


def _tost_power(effect: Values, sd: Values, n: npt.NDArray[Any], alpha: float, margin: float) -> Values:
    critical, scale = special.stdtrit(n - 1, 1 - alpha), np.sqrt(n) / sd

    def inside(spread: Values) -> Values:
        room = margin * scale[..., None] - critical[..., None] * spread
        shift = (effect * scale)[..., None]
        return special.ndtr(room - shift) - special.ndtr(-room - shift)  # type: ignore[no-any-return]

    return _over_spread(n, margin * scale / critical, inside)


def _over_spread(n: npt.NDArray[Any], most: Given, chance: Callable[[Values], Values]) -> Values:
    """Return the mean of `chance` over the sample's standard deviation in units of the true one, up to `most`.

    `chance` takes spreads (..., NODES) for an `n` (...).
    """
    df = np.asarray(n - 1, dtype=np.float64)
    low = np.sqrt(special.chdtri(df, 1 - 1e-13) / df)
    high = np.maximum(np.minimum(most, np.sqrt(special.chdtri(df, 1e-13) / df)), low)
    nodes, weights = _gauss()
    half = ((high - low) / 2)[..., None]
    spread = low[..., None] + half * (nodes + 1)
    df = df[..., None]
    square = df * spread**2
    log_density = special.xlogy(df / 2 - 1, square) - square / 2 - df / 2 * math.log(2) - special.gammaln(df / 2)
    density = 2 * spread * df * np.exp(log_density)
    return np.clip(np.sum(weights * density * chance(spread) * half, axis=-1), 0, 1)  # type: ignore[no-any-return]


@functools.cache
def _gauss() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Nodes and weights of Gauss-Legendre quadrature on [-1, 1]."""
    return np.polynomial.legendre.leggauss(NODES)


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


class SeedsNeeded(NamedTuple):
    """How many seeds settle a question, with a 95% range; None is beyond MOST_SEEDS."""

    number: int | None
    low: int | None
    high: int | None


def seeds_to_settle(
    effect: float, sd: float, n: int, margin: float, *, wished: float = 0.8, alpha: float = 0.05,
    alpha_equivalence: float | None = None,
) -> SeedsNeeded:  # fmt: skip
    """Return how many seeds show a difference or an equivalence, whichever needs fewer, and how far that number is known.

    The number takes mean and spread as they were seen. The range takes them as what n seeds leave open: the spread as
    s sqrt((n - 1) / chi2), the mean normal around the one seen with that spread (their fiducial distribution).

    Args:
        effect: Mean difference that was seen.
        sd: Its standard deviation over seeds, above 0.
        n: Seeds that were seen, at least 2.
        margin: Of equivalence, in the same unit.
        wished: Power, in (0, 1).
        alpha: Level of the test of a difference: divided, where the verdict is corrected.
        alpha_equivalence: That of TOST; `alpha` if not given.
    """
    levels = alpha, alpha if alpha_equivalence is None else alpha_equivalence
    number = _fewest_of(np.array([effect]), np.array([sd]), margin, wished, levels)[0]
    shares = (np.arange(GUESSES) + 0.5) / GUESSES
    spreads = sd * np.sqrt((n - 1) / stats.chi2.ppf(shares, n - 1))
    means = effect + spreads[:, None] * stats.norm.ppf(shares) / math.sqrt(n)
    all_of_them = _fewest_of(means.ravel(), np.repeat(spreads, GUESSES), margin, wished, levels)
    low, high = np.quantile(all_of_them, [0.025, 0.975], method="nearest")
    return SeedsNeeded(*(None if value > MOST_SEEDS else int(value) for value in (number, low, high)))


def _fewest_of(
    effects: Values, sds: Values, margin: float, wished: float, levels: tuple[float, float]
) -> npt.NDArray[np.int64]:
    """Return the fewest seeds (k,) for each mean and spread (k,), by bisection; MOST_SEEDS + 1 where they do not do."""
    different = _bisected(len(effects), lambda n: _power(effects, sds, n, levels[0]) >= wished)
    return np.minimum(
        different, _bisected(len(effects), lambda n: _tost_power(effects, sds, n, levels[1], margin) >= wished)
    )


def _bisected(size: int, enough: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]]) -> npt.NDArray[np.int64]:
    """Return the smallest n >= 2 of each of `size` questions for which `enough` holds; MOST_SEEDS + 1 where none does."""
    low, high = np.ones(size, dtype=np.int64), np.full(size, MOST_SEEDS + 1)
    while (high - low > 1).any():
        middle = np.maximum((low + high) // 2, 2)
        there = enough(middle)
        low, high = np.where(there, low, middle), np.where(there, middle, high)
    return high
