from __future__ import annotations

import math

import numpy as np
import pytest

from robustdup.evaluation.metrics import accuracy, wilson


def test_wilson_known_values():
    # Newcombe (1998), Table I: 81 of 263 gives 0.2553 to 0.3662, 0 of 20 gives 0 to 0.1611.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (7, 7), (3, 11), (481, 500), (9999, 10000)])
def test_wilson_equals_statsmodels(successes, n):
    from statsmodels.stats.proportion import proportion_confint

    assert wilson(successes, n) == pytest.approx(proportion_confint(successes, n, method="wilson"), abs=1e-12)


def test_no_points_say_nothing():
    assert wilson(0, 0) == (0.0, 1.0)
    assert math.isnan(accuracy(np.zeros(0)).value)


def test_finite_population_narrows_and_nearly_closes():
    plain, half, most = wilson(50, 100), wilson(50, 100, population=200), wilson(50, 100, population=101)
    width = [high - low for low, high in (plain, half, most)]
    assert width[0] > width[1] > width[2]
    assert width[1] == pytest.approx(width[0] * math.sqrt(100 / 199), rel=0.02)


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    split = rng.random(1000) < 0.6
    hits = 0
    for _ in range(2000):
        part = rng.choice(split, 300, replace=False)
        low, high = wilson(part.sum(), 300, population=1000)
        hits += low <= split.mean() <= high
    assert 0.93 <= hits / 2000 <= 0.97


def test_undecided_points_are_not_in_the_value_but_in_the_upper_end():
    correct = np.array([1.0] * 50 + [0.0] * 50)
    plain, open_ = accuracy(correct), accuracy(correct, undecided=30)
    assert open_.value == plain.value == 0.5
    assert open_.low == plain.low
    assert open_.high == pytest.approx(wilson(80, 100)[1])
