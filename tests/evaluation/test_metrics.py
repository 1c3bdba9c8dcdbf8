from __future__ import annotations

import math

import numpy as np
import pytest

from robustdup.evaluation.metrics import accuracy
from robustdup.statistics import wilson


def test_no_points_say_nothing():
    assert math.isnan(accuracy(np.zeros(0)).value)


def test_undecided_points_are_not_in_the_value_but_in_the_upper_end():
    correct = np.array([1.0] * 50 + [0.0] * 50)
    plain, open_ = accuracy(correct), accuracy(correct, undecided=30)
    assert open_.value == plain.value == 0.5
    assert open_.low == plain.low
    assert open_.high == pytest.approx(wilson(80, 100)[1])
