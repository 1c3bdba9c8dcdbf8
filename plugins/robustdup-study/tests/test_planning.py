"""What seeds can show, and the ANOVA of paired effects: statsmodels' answers, and what seeded simulation sees."""

from __future__ import annotations

import math

import numpy as np
import pytest
from robustdup_study.anova import anova_terms
from robustdup_study.planning import power, seeds_for_precision, seeds_to_settle, tost_power
from robustdup_study.statistics import half_width, mean_estimate, tost
from scipy import stats
from statsmodels.stats.power import TTestPower

RUNS = 4000


def monte_carlo(rate: float, runs: int = RUNS) -> float:
    """Four standard errors of a rate seen in so many runs: a true rate leaves this once in 16,000 tests."""
    return 4 * math.sqrt(rate * (1 - rate) / runs)


@pytest.mark.parametrize(("effect", "sd", "n"), [(0.5, 1.0, 5), (1.0, 0.8, 8), (-0.3, 0.2, 4)])
def test_power_is_the_noncentral_t_and_what_simulation_sees(effect, sd, n):
    predicted = power(effect, sd, n)
    # statsmodels' own two-sided formula; it too counts both tails
    assert predicted == pytest.approx(TTestPower().power(abs(effect) / sd, n, 0.05), abs=1e-6)
    draws = np.random.default_rng(5).normal(effect, sd, size=(RUNS, n))
    p = stats.ttest_1samp(draws, 0, axis=1).pvalue
    assert [mean_estimate(row).p for row in draws[:40]] == pytest.approx(p[:40], rel=1e-6)
    assert abs(np.mean(p < 0.05) - predicted) < monte_carlo(predicted)


@pytest.mark.parametrize(("effect", "n"), [(1.0, 2), (9 / math.sqrt(3), 3), (30.0, 3), (0.05, 1000), (0.0, 4)])
def test_power_holds_at_the_ends(effect, n):
    """Nine standard errors with three seeds is where scipy's noncentral t gives NaN."""
    simulated = np.random.default_rng(1).normal(effect, 1, size=(2000, n))
    t = simulated.mean(axis=1) / simulated.std(axis=1, ddof=1) * math.sqrt(n)
    seen = np.mean(np.abs(t) > stats.t.ppf(0.975, n - 1))
    assert power(effect, 1.0, n) == pytest.approx(seen, abs=monte_carlo(0.5, 2000))
    assert 0.0499 <= power(effect, 1.0, n) <= 1


@pytest.mark.parametrize(("sd", "published"), [(0.3, 0.84), (0.5, 0.30), (0.7, 0.09)])
def test_power_of_tost_is_what_is_known_for_five_seeds(sd, published):
    assert tost_power(0.5, sd, 5) == pytest.approx(published, abs=0.01)


@pytest.mark.parametrize("effect", [0.0, 0.1, -0.3])
def test_power_of_tost_is_what_simulation_sees(effect):
    draws = np.random.default_rng(7).normal(effect, 0.35, size=(RUNS, 6))
    below, above = (
        stats.ttest_1samp(draws, end, axis=1, alternative=side).pvalue
        for end, side in ((0.5, "less"), (-0.5, "greater"))
    )
    p = np.maximum(below, above)
    assert [tost(row, 0.5) for row in draws[:40]] == pytest.approx(p[:40], rel=1e-6)
    predicted = tost_power(0.5, 0.35, 6, effect=effect)
    assert abs(np.mean(p < 0.05) - predicted) < monte_carlo(predicted)


def test_needed_seeds_are_the_fewest():
    n = seeds_for_precision(1.0, 0.5)
    assert n == 18
    assert half_width(1.0, n) <= 0.5 < half_width(1.0, n - 1)
    n = seeds_to_settle(1.0, 1.0, 10, margin=0.0).number
    assert power(1.0, 1.0, n) >= 0.8 > power(1.0, 1.0, n - 1)
    n = seeds_to_settle(0.1, 0.4, 10, margin=0.5).number
    assert tost_power(0.5, 0.4, n, effect=0.1) >= 0.8 > tost_power(0.5, 0.4, n - 1, effect=0.1)
    n = seeds_to_settle(0.5, 0.4, 10, margin=0.5).number  # as large as the margin: a difference alone can be shown
    assert power(0.5, 0.4, n) >= 0.8 > power(0.5, 0.4, n - 1)
    assert seeds_to_settle(0.0, 1.0, 10, margin=0.0).number is None
    assert seeds_for_precision(100.0, 0.5) is None


def test_anova_sees_a_factor_and_keeps_its_error_where_cells_share_noise():
    names, levels = ["objective", "dose"], [(o, d) for o in ("standard", "pgd_at") for d in ("0.25", "0.5", "0.75")]
    rng, seeds = np.random.default_rng(11), 5
    rejected, runs = 0, 100  # of plain ANOVA half would be rejected
    for _ in range(runs):
        # Effects of an objective share the noise of its baseline: plain ANOVA would take that for an effect.
        shared = rng.normal(size=(2, seeds))
        rows = [(cell, seed) for cell in levels for seed in range(seeds)]
        values = np.array([shared[("standard", "pgd_at").index(c[0]), s] + 0.3 * rng.normal() for c, s in rows])
        terms = {t[0]: t for t in anova_terms(values, names, [c for c, _ in rows], [s for _, s in rows])}
        rejected += terms["objective"][4] < 0.05
    assert abs(rejected / runs - 0.05) < monte_carlo(0.05, runs)
    values = np.array([-2.0 * (c[0] == "pgd_at") + 0.3 * rng.normal() for c, s in rows])
    terms = {t[0]: t for t in anova_terms(values, names, [c for c, _ in rows], [s for _, s in rows])}
    assert list(terms) == ["objective", "dose", "objective × dose"]
    assert terms["objective"][4] < 0.001 < 0.01 < terms["dose"][4]
    assert terms["dose"][1:3] == (2.0, 8.0)
