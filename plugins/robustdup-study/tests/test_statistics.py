"""Statistics whose answers are known: published formulas, other libraries, and coverage in seeded simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from robustdup_study import statistics as stat
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

RUNS = 4000


def monte_carlo(rate: float, runs: int = RUNS) -> float:
    """Four standard errors of a rate seen in so many runs: a true rate leaves this once in 16,000 tests."""
    return 4 * math.sqrt(rate * (1 - rate) / runs)


def test_interval_of_five_differences_by_hand():
    found = stat.estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.n, found.mean) == (5, 3.0)
    assert found.sd == pytest.approx(math.sqrt(2.5))
    half = 2.7764451051977987 * math.sqrt(2.5 / 5)  # the t quantile of any table
    assert (found.low, found.high) == (pytest.approx(3 - half), pytest.approx(3 + half))
    assert found.p == pytest.approx(stats.ttest_1samp([1, 2, 3, 4, 5], 0).pvalue)


def test_one_seed_has_no_interval_and_equal_differences_have_no_p_value():
    one = stat.estimate([0.3])
    assert (one.sd, one.low, one.p, one.varies) == (None, None, None, False)
    # 0.9 - 0.7 and 0.8 - 0.6 differ in the last bit only: no spread.
    same = stat.estimate([0.9 - 0.7, 0.8 - 0.6, 0.7 - 0.5])
    assert (same.sd, same.p, same.varies) == (0.0, None, False)
    assert stat.tost_p([0.0, 0.0, 0.0], 0.01) is None
    with pytest.raises(ValueError, match="no differences"):
        stat.estimate([])


@pytest.mark.parametrize("n", [3, 5, 8])
def test_intervals_cover_at_the_nominal_rate(n):
    rng = np.random.default_rng(n)
    draws = rng.normal(-1.2, 0.7, size=(RUNS, n))
    inside = 0
    for row in draws:
        found = stat.estimate(row)
        inside += found.low <= -1.2 <= found.high
    assert abs(inside / RUNS - 0.95) < monte_carlo(0.95)


def test_bootstrap_covers_for_many_seeds_and_is_too_narrow_for_few():
    rng = np.random.default_rng(2)
    many = [stat.bootstrap(rng.exponential(1.0, 40) - 1, draws=400, seed=i) for i in range(300)]
    covered = np.mean([low <= 0 <= high for low, high in many])
    assert 0.88 < covered <= 1
    few = [stat.bootstrap(rng.normal(size=4), draws=400, seed=i) for i in range(300)]
    assert np.mean([low <= 0 <= high for low, high in few]) < 0.9  # why it stands beside the t interval only
    assert stat.bootstrap([2.0, 2.0, 2.0]) == (2.0, 2.0)


@pytest.mark.parametrize(("n", "edge"), [(5, 1.0), (8, -1.0)])
def test_tost_keeps_its_error_at_the_edge_of_the_margin(n, edge):
    rng = np.random.default_rng(17)
    draws = rng.normal(edge, 0.4, size=(RUNS, n))
    claimed = np.mean([(p := stat.tost_p(row, 1.0)) is not None and p < 0.05 for row in draws])
    assert claimed <= 0.05 + monte_carlo(0.05)
    assert claimed > 0.02  # and it is not simply never claimed: with this spread the test is almost exact


def test_tost_is_statsmodels():
    rng = np.random.default_rng(3)
    before, after = rng.normal(size=6), rng.normal(0.2, size=6)
    p, *_ = ttost_paired(after, before, -1.5, 1.5)
    assert stat.tost_p(after - before, 1.5) == pytest.approx(p)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12))
def test_holm_is_the_step_down_rule(p_values):
    corrected = stat.holm(p_values)
    order = np.argsort(p_values, kind="stable")
    running, n = 0.0, len(p_values)
    for rank, place in enumerate(order):  # the rule as Holm 1979 wrote it down
        running = max(running, min(1.0, (n - rank) * p_values[place]))
        assert corrected[place] == pytest.approx(running)


def test_holm_of_nothing_and_of_a_table():
    assert stat.holm([]) == []
    p_values = [0.01, 0.04, 0.03, 0.005]
    assert stat.holm(p_values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stat.holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


@pytest.mark.parametrize(("effect", "sd", "n"), [(0.5, 1.0, 5), (1.0, 0.8, 8), (-0.3, 0.2, 4)])
def test_power_is_the_noncentral_t_and_what_simulation_sees(effect, sd, n):
    predicted = stat.power(effect, sd, n)
    # statsmodels' own two-sided formula; it too counts both tails
    assert predicted == pytest.approx(TTestPower().power(abs(effect) / sd, n, 0.05), abs=1e-6)
    draws = np.random.default_rng(5).normal(effect, sd, size=(RUNS, n))
    seen = np.mean([stat.estimate(row).p < 0.05 for row in draws])
    assert abs(seen - predicted) < monte_carlo(predicted)


@pytest.mark.parametrize(("effect", "n"), [(1.0, 2), (9 / math.sqrt(3), 3), (30.0, 3), (0.05, 1000), (0.0, 4)])
def test_power_holds_at_the_ends(effect, n):
    """Nine standard errors with three seeds is where scipy's noncentral t gives NaN."""
    simulated = np.random.default_rng(1).normal(effect, 1, size=(2000, n))
    t = simulated.mean(axis=1) / simulated.std(axis=1, ddof=1) * math.sqrt(n)
    seen = np.mean(np.abs(t) > stats.t.ppf(0.975, n - 1))
    assert stat.power(effect, 1.0, n) == pytest.approx(seen, abs=monte_carlo(0.5, 2000))
    assert 0.0499 <= stat.power(effect, 1.0, n) <= 1


@pytest.mark.parametrize(("sd", "published"), [(0.3, 0.84), (0.5, 0.30), (0.7, 0.09)])
def test_power_of_tost_is_what_is_known_for_five_seeds(sd, published):
    assert stat.tost_power(0.5, sd, 5) == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize("effect", [0.0, 0.1, -0.3])
def test_power_of_tost_is_what_simulation_sees(effect):
    draws = np.random.default_rng(7).normal(effect, 0.35, size=(RUNS, 6))
    seen = np.mean([stat.tost_p(row, 0.5) < 0.05 for row in draws])
    predicted = stat.tost_power(0.5, 0.35, 6, effect=effect)
    assert abs(seen - predicted) < monte_carlo(predicted)


def test_needed_seeds_are_the_fewest():
    n = stat.seeds_for_precision(1.0, 0.5)
    assert n == 18
    assert stat.half_width(1.0, n) <= 0.5 < stat.half_width(1.0, n - 1)
    n = stat.seeds_for_difference(1.0, 1.0)
    assert stat.power(1.0, 1.0, n) >= 0.8 > stat.power(1.0, 1.0, n - 1)
    n = stat.seeds_for_equivalence(0.5, 0.4, effect=0.1)
    assert stat.tost_power(0.5, 0.4, n, effect=0.1) >= 0.8 > stat.tost_power(0.5, 0.4, n - 1, effect=0.1)
    assert stat.seeds_for_equivalence(0.5, 0.4, effect=0.5) is None
    assert stat.seeds_for_difference(0.0, 1.0) is None
    assert stat.seeds_for_precision(100.0, 0.5) is None


def test_anova_sees_a_factor_and_keeps_its_error_where_cells_share_noise():
    names, levels = ["objective", "dose"], [(o, d) for o in ("standard", "pgd_at") for d in ("0.25", "0.5", "0.75")]
    rng, seeds = np.random.default_rng(11), 5
    rejected, runs = 0, 250
    for _ in range(runs):
        # Effects of an objective share the noise of its baseline: plain ANOVA would take that for an effect.
        shared = rng.normal(size=(2, seeds))
        rows = [(cell, seed) for cell in levels for seed in range(seeds)]
        values = np.array([shared[("standard", "pgd_at").index(c[0]), s] + 0.3 * rng.normal() for c, s in rows])
        terms = {t[0]: t for t in stat.anova_terms(values, names, [c for c, _ in rows], [s for _, s in rows])}
        rejected += terms["objective"][4] < 0.05
    assert abs(rejected / runs - 0.05) < monte_carlo(0.05, runs)
    values = np.array([-2.0 * (c[0] == "pgd_at") + 0.3 * rng.normal() for c, s in rows])
    terms = {t[0]: t for t in stat.anova_terms(values, names, [c for c, _ in rows], [s for _, s in rows])}
    assert list(terms) == ["objective", "dose", "objective × dose"]
    assert terms["objective"][4] < 0.001 < 0.01 < terms["dose"][4]
    assert terms["dose"][1:3] == (2.0, 8.0)
