"""Accuracies with intervals.

An interval speaks of the images only: in which range the accuracy on images of this kind lies, from which the samples are
taken to be drawn. It says nothing of stronger attacks or other seeds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing

from robustdup.records import Accuracy
from robustdup.statistics import wilson


def accuracy(correct: np.typing.NDArray[Any], *, undecided: int = 0) -> Accuracy:
    """Return the mean of `correct` (N,) in [0, 1] with its interval; `undecided` samples may yet turn out right."""
    n = len(correct)
    total = float(np.sum(correct))
    low, _ = wilson(total, n)
    _, high = wilson(min(total + undecided, n), n)
    value = total / n if n else math.nan
    return Accuracy(value=value, low=min(low, value), high=max(high, value))
