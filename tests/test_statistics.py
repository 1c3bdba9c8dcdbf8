"""Statistics of shares whose answers are known: published formulas, other libraries, and coverage in seeded simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize_scalar
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar

from robustdup.statistics import (
    Z95,
    mcnemar,
    tango_interval,
    wilson,
)


def test_wilson_known_values():
    # Newcombe (1998), Table I: 81 of 263 gives 0.2553 to 0.3662, 0 of 20 gives 0 to 0.1611.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (7, 7), (3, 11), (481, 500), (9999, 10000)])
def test_wilson_equals_statsmodels(successes, n):
    from statsmodels.stats.proportion import proportion_confint

    assert wilson(successes, n) == pytest.approx(proportion_confint(successes, n, method="wilson"), abs=1e-12)


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


def test_no_samples_say_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (3, 9), (25, 20), (0, 7)])
def test_mcnemar_is_the_binomial_test_of_the_samples_that_differ(only_a, only_b):
    expected = 1.0 if only_a + only_b == 0 else stats.binomtest(only_a, only_a + only_b).pvalue
    assert mcnemar(only_a, only_b) == pytest.approx(expected)
    with_ties = statsmodels_mcnemar([[40, only_a], [only_b, 7]], exact=True).pvalue
    assert mcnemar(only_a, only_b) == pytest.approx(min(1.0, with_ties))


def restricted_score(b, c, n, delta):
    """The score statistic by numerical maximum likelihood: multinomial with p_b - p_c = delta."""

    def negative(p_c):
        p_b = p_c + delta
        rest = 1 - p_b - p_c
        if min(p_b, p_c, rest) < 0 or (b and p_b <= 0) or (c and p_c <= 0) or (n - b - c and rest <= 0):
            return 1e9
        terms = ((b, p_b), (c, p_c), (n - b - c, rest))
        return -sum(count * math.log(p) for count, p in terms if count)

    low, high = max(0.0, -delta), (1 - delta) / 2
    p_c = minimize_scalar(negative, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (b - c - n * delta) / math.sqrt(n * (2 * p_c + delta - delta**2))


@pytest.mark.parametrize(("b", "c", "n"), [(12, 2, 50), (3, 9, 40), (0, 5, 30), (25, 20, 60)])
def test_tango_interval_against_numerical_likelihood(b, c, n):
    low, high = tango_interval(b, c, n)
    assert low < (b - c) / n < high
    assert restricted_score(b, c, n, low) == pytest.approx(Z95, abs=1e-4)
    assert restricted_score(b, c, n, high) == pytest.approx(-Z95, abs=1e-4)
    assert tango_interval(c, b, n) == pytest.approx((-high, -low))


def test_tango_interval_at_its_edges():
    assert tango_interval(0, 0, 100) == pytest.approx((-(Z95**2) / (100 + Z95**2), Z95**2 / (100 + Z95**2)))
    low, high = tango_interval(10, 0, 10)
    assert high == 1.0
    assert 0.3 < low < 1.0


def test_tango_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    counts = rng.multinomial(60, [0.2, 0.1, 0.7], size=600)
    hits = 0
    for b, c, _ in counts:
        low, high = tango_interval(int(b), int(c), 60)
        hits += low <= 0.1 <= high
    assert 0.92 <= hits / 600 <= 0.98
