"""Intervals and tests of paired differences, each in one place, and corrections for many tests.

Those of shares and of paired shares are the core's: `robustdup.statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


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
