"""Statistics of paired differences over seeds: intervals, equivalence, power, and the seeds that a question needs.

A seed is the unit: everything here takes one number for each seed, a difference between two runs that share it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special, stats

Values = npt.NDArray[np.float64]

MOST_SEEDS = 1000  # more are "beyond counting"


@dataclass(frozen=True)
class Estimate:
    """The mean of `n` differences, their standard deviation, the t interval of the mean, and the two-sided p value.

    `sd`, `low`, `high` and `p` are None for one seed; where all differences are equal, the interval has no width and p is
    None, because the seeds show no variation to judge by.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    p: float | None

    @property
    def varies(self) -> bool:
        """Whether there is any spread to judge by."""
        return self.sd is not None and self.sd > 0


def estimate(differences: Sequence[float], level: float = 0.95) -> Estimate:
    """Return the mean of paired differences with its t interval at `level`. Raises ValueError where there are none."""
    values = np.asarray(differences, dtype=np.float64)
    n = len(values)
    if n == 0:
        raise ValueError("There are no differences.")
    mean = float(values.mean())
    if n == 1:
        return Estimate(1, mean, None, None, None, None)
    # Equal shares subtract to differences in the last bit: that is no spread.
    sd = 0.0 if np.ptp(values) <= 1e-12 * max(1.0, abs(mean)) else float(values.std(ddof=1))
    if sd == 0:
        return Estimate(n, mean, 0.0, mean, mean, None)
    error = sd / math.sqrt(n)
    half = float(special.stdtrit(n - 1, (1 + level) / 2)) * error
    return Estimate(n, mean, sd, mean - half, mean + half, float(2 * special.stdtr(n - 1, -abs(mean) / error)))


def bootstrap(
    differences: Sequence[float], level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return the bias-corrected and accelerated bootstrap interval of the mean over seeds.

    With few seeds it is too narrow: it is meant beside the t interval, not in its place.
    https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.bootstrap.html
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    result = stats.bootstrap(
        (values,), np.mean, n_resamples=draws, confidence_level=level, method="BCa", rng=np.random.default_rng(seed)
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def tost_p(differences: Sequence[float], margin: float) -> float | None:
    """Return the p value of "the mean lies within ±margin": the larger of two one-sided t tests; None without spread.

    Schuirmann 1987, https://doi.org/10.1007/BF01068419
    """
    found = estimate(differences)
    if not found.varies:
        return None
    assert found.sd is not None
    error = found.sd / math.sqrt(found.n)
    above = special.stdtr(found.n - 1, -(found.mean + margin) / error)
    below = special.stdtr(found.n - 1, (found.mean - margin) / error)
    return float(max(above, below))


def holm(p_values: Sequence[float], alpha: float = 0.05) -> list[float]:
    """Return p values corrected by Holm's step-down method, in their order."""
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(list(p_values), alpha=alpha, method="holm")[1]]


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


def half_width(sd: float, n: int, level: float = 0.95) -> float:
    """Return half the width of the t interval that `n` seeds give where the standard deviation is `sd`."""
    return float(special.stdtrit(n - 1, (1 + level) / 2)) * sd / math.sqrt(n)


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


def anova_terms(
    response: npt.NDArray[np.float64], names: Sequence[str], levels: Sequence[Sequence[str]], seeds: Sequence[int]
) -> list[tuple[str, float, float, float, float, float]]:
    """Return (term, df, df of error, F, p, lower-bound p) of a repeated-measures ANOVA with seeds as subjects.

    `response` has a row for each cell; `levels[i]` are the factor levels of row i, `seeds[i]` its seed. Each cell of the
    design holds one value for each seed. https://www.statsmodels.org/stable/generated/statsmodels.stats.anova.AnovaRM.html
    The lower-bound p uses F(1, seeds - 1): it holds without sphericity (Greenhouse and Geisser 1959).
    """
    import pandas as pd  # type: ignore[import-untyped]  # statsmodels takes its tables
    from statsmodels.stats.anova import AnovaRM

    columns = [f"f{i}" for i in range(len(names))]  # names of factors may be anything, those of columns may not
    frame = pd.DataFrame({column: [row[i] for row in levels] for i, column in enumerate(columns)})
    frame["response"], frame["subject"] = response, list(seeds)
    table = AnovaRM(frame, "response", "subject", within=columns).fit().anova_table
    n = len(set(seeds))
    found = []
    for term, row in table.iterrows():
        text = " × ".join(names[int(column[1:])] for column in str(term).split(":"))
        f = float(row["F Value"])
        found.append(
            (text, float(row["Num DF"]), float(row["Den DF"]), f, float(row["Pr > F"]), float(stats.f.sf(f, 1, n - 1)))
        )
    return found
