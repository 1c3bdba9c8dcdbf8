"""Intervals and tests, each in one place: shares, paired shares, paired differences, and corrections for many tests.

What scipy and statsmodels have is theirs; they are imported by the call that needs them. Two closed forms are written out:
Wilson's interval, so that an evaluation does not import statsmodels for four lines (a test compares the two), and Tango's,
which no library has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class MeanEstimate:
    """The mean of `n` differences, their standard deviation, the t interval of the mean, and the two-sided p value.

    `sd`, `low`, `high` and `p` are None for one difference; where all are equal, the interval has no width and p is None,
    because there is no variation to judge by.
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


def mean_estimate(differences: Sequence[float], level: float = 0.95) -> MeanEstimate:
    """Return the mean of paired differences with its t interval.

    Args:
        differences: One number for each pair.
        level: Of the interval, in (0, 1).

    Raises:
        ValueError: There are no differences.
    """
    values = np.asarray(differences, dtype=np.float64)
    n = len(values)
    if n == 0:
        raise ValueError("There are no differences.")
    mean = float(values.mean())
    if n == 1:
        return MeanEstimate(1, mean, None, None, None, None)
    # Equal shares subtract to differences in the last bit: that is no spread.
    sd = 0.0 if np.ptp(values) <= 1e-12 * max(1.0, abs(mean)) else float(values.std(ddof=1))
    if sd == 0:
        return MeanEstimate(n, mean, 0.0, mean, mean, None)
    from scipy import special

    error = sd / math.sqrt(n)
    half = half_width(sd, n, level)
    return MeanEstimate(n, mean, sd, mean - half, mean + half, float(2 * special.stdtr(n - 1, -abs(mean) / error)))


def half_width(sd: float, n: int, level: float = 0.95) -> float:
    """Return half the width of the t interval of a mean of `n` >= 2 numbers whose standard deviation is `sd`."""
    from scipy import special

    return float(special.stdtrit(n - 1, (1 + level) / 2)) * sd / math.sqrt(n)


def crossed_interval(differences: Sequence[Sequence[float]], level: float = 0.95) -> tuple[float, float] | None:
    """Return the interval of a mean difference over seeds and samples, both drawn from more than there were.

    Two-way random effects without replication: the variance of the grand mean is (MS_seeds + MS_samples - MS_rest) / (S N),
    its degrees of freedom are Satterthwaite's (https://doi.org/10.2307/3002019). Where samples add nothing it is the t
    interval over seeds, and it is never narrower than that one.

    Args:
        differences: One number for each seed and sample, (S, N): after minus before, for instance of 0 and 1.
        level: Of the interval, in (0, 1).

    Returns:
        Both ends; None for fewer than two seeds or samples, or without any spread over seeds.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 2 or min(values.shape) < 2:
        return None
    n_seeds, n_samples = values.shape
    mean = float(values.mean())
    seeds, samples = values.mean(axis=1), values.mean(axis=0)
    over_seeds = n_samples * float(((seeds - mean) ** 2).sum()) / (n_seeds - 1)
    if over_seeds <= 1e-24:
        return None
    over_samples = n_seeds * float(((samples - mean) ** 2).sum()) / (n_samples - 1)
    df = (n_seeds - 1) * (n_samples - 1)
    rest = float(((values - seeds[:, None] - samples[None, :] + mean) ** 2).sum()) / df
    parts = [(over_seeds, n_seeds - 1), (over_samples, n_samples - 1), (rest, df)]
    variance = over_seeds + max(over_samples - rest, 0.0)
    if over_samples <= rest:
        parts = parts[:1]
    degrees = variance**2 / sum(part**2 / free for part, free in parts)
    from scipy import special

    half = float(special.stdtrit(degrees, (1 + level) / 2)) * math.sqrt(variance / values.size)
    half = max(half, half_width(float(seeds.std(ddof=1)), n_seeds, level))
    return mean - half, mean + half


def bootstrap_interval(
    differences: Sequence[float], level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return the bias-corrected and accelerated bootstrap interval of the mean.

    Of a few numbers it is too narrow: it is meant beside the t interval, not in its place.
    https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.bootstrap.html
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values.mean()), float(values.mean())
    from scipy import stats

    result = stats.bootstrap(
        (values,), np.mean, n_resamples=draws, confidence_level=level, method="BCa", rng=np.random.default_rng(seed)
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def tost(differences: Sequence[float], margin: float) -> float | None:
    """Return the p value of "the mean lies within ±margin", by two one-sided paired t tests; None without spread.

    https://www.statsmodels.org/stable/generated/statsmodels.stats.weightstats.ttost_paired.html
    """
    if not mean_estimate(differences).varies:
        return None
    from statsmodels.stats.weightstats import ttost_paired

    values = np.asarray(differences, dtype=np.float64)
    return float(ttost_paired(values, np.zeros_like(values), -margin, margin)[0])


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected by Holm's step-down method, in their order.

    statsmodels' `multipletests` is the same (a test compares the two), but collects the garbage of the whole process at
    each call, which takes a second where much is loaded. https://www.jstor.org/stable/4615733
    """
    values = np.asarray(p_values, dtype=np.float64)
    order, places = np.argsort(values), np.arange(len(values))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * (len(values) - places)), 1.0)
    return [float(p) for p in corrected]
