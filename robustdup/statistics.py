"""Intervals and tests of shares and of paired shares, each in one place.

What scipy and statsmodels have is theirs; they are imported by the call that needs them. Two closed forms are written out:
Wilson's interval, so that an evaluation does not import statsmodels for four lines (a test compares the two), and Tango's,
which no library has.
"""

from __future__ import annotations

import math

import numpy as np

Z95 = 1.959963984540054  # two-sided 95% point of the standard normal


def wilson(successes: float, n: int, *, population: int | None = None) -> tuple[float, float]:
    """Return the 95% Wilson interval of a share.

    With `population` the sample size is corrected for a finite population: n (N - 1) / (N - n).
    Sources: https://doi.org/10.1080/01621459.1927.10502953; Cochran, Sampling Techniques (1977), section 3.6.

    Args:
        successes: From 0 to `n`; a sum of shares need not be whole.
        n: Number of samples. With none, nothing is known: (0, 1).
        population: Size of the split of which the n samples are a part, and whose share is predicted.

    Returns:
        Both ends, in [0, 1].
    """
    if n == 0:
        return 0.0, 1.0
    size = float(n)
    if population is not None and n < population:
        size = n * (population - 1) / (population - n)
    share = successes / n
    centre = (share + Z95**2 / (2 * size)) / (1 + Z95**2 / size)
    half = Z95 / (1 + Z95**2 / size) * math.sqrt(share * (1 - share) / size + Z95**2 / (4 * size**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided p value of McNemar's exact test.

    https://www.statsmodels.org/stable/generated/statsmodels.stats.contingency_tables.mcnemar.html

    Args:
        only_a: Samples on which A alone is right.
        only_b: Samples on which B alone is right. Those on which both agree do not matter.

    Returns:
        The p value, in [0, 1].
    """
    from statsmodels.stats.contingency_tables import mcnemar as exact

    return min(1.0, float(exact([[0, only_a], [only_b, 0]], exact=True).pvalue))


def drop_p_value(lost: int, gained: int) -> float:
    """Return the one-sided p value of McNemar's exact test against "nothing was lost but by chance".

    Args:
        lost: Samples on which only the old model is right.
        gained: Samples on which only the new one is.

    Returns:
        The probability of so many lost or more among `lost + gained`, where either side is as likely; in [0, 1].
    """
    from scipy import special

    return 1.0 if lost == 0 else float(special.bdtrc(lost - 1, lost + gained, 0.5))


def share_p_value(fewer: int, more: int, n: int) -> float:
    """Return the one-sided p value of Fisher's exact test that `fewer` of n and `more` of n differ by chance alone, in [0, 1]."""
    from scipy import stats

    return float(stats.hypergeom.cdf(fewer, 2 * n, fewer + more, n))


def drop_power(n: int, drop: float, gained: float, *, margin: float, alpha: float) -> float:
    """Return how often a drop is found: more than `margin` is seen lost, and `drop_p_value` is at most `alpha`.

    Args:
        n: Samples, at least 1.
        drop: True difference of the shares, old minus new, in [0, 1].
        gained: True share of samples on which only the new model is right; `drop + gained` is that of the lost ones.
        margin: Drop of the shares that is let pass.
        alpha: Level of the test.

    Returns:
        The exact probability, in [0, 1].
    """
    from scipy.stats import binom

    differ = min(1.0, drop + 2 * gained)
    if differ <= 0:
        return 0.0
    counts = np.arange(n + 1)
    chance = binom.pmf(counts, n, differ)
    counts, chance = counts[chance > 1e-15], chance[chance > 1e-15]
    by_chance = binom.isf(alpha, counts, 0.5)  # as many may be lost
    by_margin = np.floor((counts + margin * n) / 2 + 1e-9)
    detected = binom.sf(np.maximum(by_chance, by_margin), counts, min(1.0, (drop + gained) / differ))
    return float((chance * detected).sum())


def detectable_drop(n: int, gained: float, *, margin: float, alpha: float, power: float = 0.95) -> float | None:
    """Return the smallest drop that is found with a given power (see `drop_power`); None where none is."""
    low, high = 0.0, 1.0 - 2 * gained
    if high <= 0 or drop_power(n, high, gained, margin=margin, alpha=alpha) < power:
        return None
    while high - low > 1e-4:
        middle = (low + high) / 2
        is_found = drop_power(n, middle, gained, margin=margin, alpha=alpha) >= power
        low, high = (low, middle) if is_found else (middle, high)
    return high


def tango_interval(only_a: int, only_b: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Return Tango's score interval of a difference of paired shares, (only_a - only_b) / n.

    https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B

    Args:
        only_a: Samples on which A alone is right.
        only_b: Samples on which B alone is right.
        n: Number of samples that both were asked about, at least 1.
        z: Point of the standard normal; that of a 95% interval by default.

    Returns:
        Both ends, in [-1, 1].
    """
    return -_tango_upper(only_b, only_a, n, z), _tango_upper(only_a, only_b, n, z)


def _tango_upper(b: int, c: int, n: int, z: float) -> float:
    """Return the difference above the estimate at which the score statistic reaches z, by bisection."""

    def score(delta: float) -> float:
        linear = (2 * n - b + c) * delta - b - c
        root = max(linear**2 + 8 * n * c * delta * (1 - delta), 0.0)
        q = (math.sqrt(root) - linear) / (4 * n)
        variance = n * (2 * q + delta * (1 - delta))
        return math.inf if variance <= 0 else (n * delta - (b - c)) / math.sqrt(variance)

    low, high = (b - c) / n, 1.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if score(middle) < z else (low, middle)
    return high
