"""Statistics of paired differences whose answers are known: published formulas, other libraries, coverage in simulation."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from robustdup_study.statistics import (
    bootstrap_interval,
    crossed_interval,
    holm,
    mean_estimate,
    tost,
)
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

RUNS = 4000


def monte_carlo(rate: float, runs: int = RUNS) -> float:
    """Four standard errors of a rate seen in so many runs: a true rate leaves this once in 16,000 tests."""
    return 4 * math.sqrt(rate * (1 - rate) / runs)


def test_interval_of_five_differences_by_hand():
    found = mean_estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.n, found.mean) == (5, 3.0)
    assert found.sd == pytest.approx(math.sqrt(2.5))
    half = 2.7764451051977987 * math.sqrt(2.5 / 5)  # the t quantile of any table
    assert (found.low, found.high) == (pytest.approx(3 - half), pytest.approx(3 + half))
    assert found.p == pytest.approx(stats.ttest_1samp([1, 2, 3, 4, 5], 0).pvalue)


def test_one_seed_has_no_interval_and_equal_differences_have_no_p_value():
    one = mean_estimate([0.3])
    assert (one.sd, one.low, one.p, one.varies) == (None, None, None, False)
    # 0.9 - 0.7 and 0.8 - 0.6 differ in the last bit only: no spread.
    same = mean_estimate([0.9 - 0.7, 0.8 - 0.6, 0.7 - 0.5])
    assert (same.sd, same.p, same.varies) == (0.0, None, False)
    assert tost([0.0, 0.0, 0.0], 0.01) is None
    with pytest.raises(ValueError, match="no differences"):
        mean_estimate([])


@pytest.mark.parametrize("n", [3, 5, 8])
def test_intervals_cover_at_the_nominal_rate(n):
    rng = np.random.default_rng(n)
    draws = rng.normal(-1.2, 0.7, size=(RUNS, n))
    inside = 0
    for row in draws:
        found = mean_estimate(row)
        inside += found.low <= -1.2 <= found.high
    assert abs(inside / RUNS - 0.95) < monte_carlo(0.95)


def test_bootstrap_covers_for_many_seeds_and_is_too_narrow_for_few():
    rng = np.random.default_rng(2)
    many = [bootstrap_interval(rng.exponential(1.0, 40) - 1, draws=400, seed=i) for i in range(300)]
    covered = np.mean([low <= 0 <= high for low, high in many])
    assert 0.88 < covered <= 1
    few = [bootstrap_interval(rng.normal(size=4), draws=400, seed=i) for i in range(300)]
    assert np.mean([low <= 0 <= high for low, high in few]) < 0.9  # why it stands beside the t interval only
    assert bootstrap_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)


@pytest.mark.parametrize(("n", "edge"), [(5, 1.0), (8, -1.0)])
def test_tost_keeps_its_error_at_the_edge_of_the_margin(n, edge):
    rng = np.random.default_rng(17)
    draws = rng.normal(edge, 0.4, size=(RUNS, n))
    claimed = np.mean([(p := tost(row, 1.0)) is not None and p < 0.05 for row in draws])
    assert claimed <= 0.05 + monte_carlo(0.05)
    assert claimed > 0.02  # and it is not simply never claimed: with this spread the test is almost exact


def test_tost_is_statsmodels():
    rng = np.random.default_rng(3)
    before, after = rng.normal(size=6), rng.normal(0.2, size=6)
    p, *_ = ttost_paired(after, before, -1.5, 1.5)
    assert tost(after - before, 1.5) == pytest.approx(p)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12))
def test_holm_is_the_step_down_rule(p_values):
    corrected = holm(p_values)
    order = np.argsort(p_values, kind="stable")
    running, n = 0.0, len(p_values)
    for rank, place in enumerate(order):  # the rule as Holm 1979 wrote it down
        running = max(running, min(1.0, (n - rank) * p_values[place]))
        assert corrected[place] == pytest.approx(running)


def test_holm_of_nothing_and_of_a_table():
    assert holm([]) == []
    p_values = [0.01, 0.04, 0.03, 0.005]
    assert holm(p_values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_crossed_interval_is_the_two_way_anova_of_statsmodels():
    rng = np.random.default_rng(3)
    values = 0.05 + 0.03 * rng.normal(size=(5, 1)) + 0.4 * rng.normal(size=(1, 30)) + 0.2 * rng.normal(size=(5, 30))
    seed, image = (grid.ravel() for grid in np.indices(values.shape))
    frame = pd.DataFrame({"y": values.ravel(), "s": seed, "i": image})
    table = anova_lm(ols("y ~ C(s) + C(i)", frame).fit())
    mean_squares = [table.loc[name, "mean_sq"] for name in ("C(s)", "C(i)", "Residual")]
    df = [table.loc[name, "df"] for name in ("C(s)", "C(i)", "Residual")]
    variance = mean_squares[0] + mean_squares[1] - mean_squares[2]
    degrees = variance**2 / sum(m**2 / d for m, d in zip(mean_squares, df, strict=True))
    half = stats.t.ppf(0.975, degrees) * math.sqrt(variance / 150)
    assert crossed_interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=1e-10)


def test_crossed_interval_without_an_effect_of_samples_is_the_t_interval_over_seeds():
    values = np.array([[0.1, 0.2, 0.0], [0.2, 0.1, 0.3], [-0.1, 0.0, 0.1]])
    values = values - values.mean(axis=0)  # every sample the same mean
    values += np.array([[0.1], [0.2], [0.4]])
    over_seeds = mean_estimate(values.mean(axis=1).tolist())
    assert crossed_interval(values) == pytest.approx((over_seeds.low, over_seeds.high))
    assert crossed_interval([[0.0, 1.0]]) is None
    assert crossed_interval(np.zeros((3, 4))) is None


@pytest.mark.parametrize(("seed_sd", "sample_sd"), [(0.02, 0.1), (0.05, 0.0)])
def test_crossed_interval_covers_the_mean_over_other_seeds_and_samples(seed_sd, sample_sd):
    rng, hits, runs = np.random.default_rng(9), 0, 600
    for _ in range(runs):
        values = (
            seed_sd * rng.normal(size=(5, 1)) + sample_sd * rng.normal(size=(1, 40)) + 0.3 * rng.normal(size=(5, 40))
        )
        low, high = crossed_interval(values)
        hits += low <= 0 <= high
    assert hits / runs > 0.95 - monte_carlo(0.05, runs)
