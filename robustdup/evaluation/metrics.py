"""Accuracies with intervals.

An interval speaks of the images only: which accuracy other images of the same kind, or the rest of the split, would
give. It says nothing of stronger attacks or other seeds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing

from robustdup.records import Accuracy

Z = 1.959963984540054  # two-sided 95% point of the standard normal


def wilson(successes: float, n: int, *, population: int | None = None) -> tuple[float, float]:
    """Return the 95% Wilson interval of a share, both ends in [0, 1].

    With `population` (the size of the split that n of its points predict) the sample size is corrected for a finite
    population: n (N - 1) / (N - n). Follows https://doi.org/10.1080/01621459.1927.10502953 and, for the correction,
    Cochran, Sampling Techniques (1977), section 3.6.
    """
    if n == 0:
        return 0.0, 1.0
    size = float(n)
    if population is not None and n < population:
        size = n * (population - 1) / (population - n)
    share = successes / n
    centre = (share + Z**2 / (2 * size)) / (1 + Z**2 / size)
    half = Z / (1 + Z**2 / size) * math.sqrt(share * (1 - share) / size + Z**2 / (4 * size**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy(correct: np.typing.NDArray[Any], *, population: int | None = None, undecided: int = 0) -> Accuracy:
    """Return the mean of `correct` (N,) in [0, 1] with its interval; `undecided` points may yet turn out right."""
    n = len(correct)
    total = float(np.sum(correct))
    low, _ = wilson(total, n, population=population)
    _, high = wilson(min(total + undecided, n), n, population=population)
    value = total / n if n else math.nan
    return Accuracy(value=value, low=min(low, value), high=max(high, value))
