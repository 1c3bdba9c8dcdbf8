"""The analysis on synthetic tables whose effects are known."""

from __future__ import annotations

import numpy as np
import pytest
from robustdup_study.analysis import analyse, duplication_rate
from robustdup_study.recipe import AnalysisConfig
from robustdup_study.records import StudyRun
from robustdup_study.sides import answers_of
from robustdup_study.statistics import crossed_interval
from scipy import stats
from statsmodels.stats.power import TTestPower

from robustdup.errors import UserError
from tests.raising import raises


def table(effect, *, seeds=6, noise=0.004, doses=(0, 0.25, 0.5), objectives=("standard", "pgd_at"), rng=0):
    """Rows whose robust accuracy is a level of the seed, plus effect(objective, dose), plus noise."""
    draws = np.random.default_rng(rng)
    level = draws.normal(0.4, 0.05, size=seeds)  # far larger than the effects: pairing must take it out
    return [
        StudyRun(
            factors={"objective": objective, "dose": dose},
            seed=seed,
            cell=f"{objective}-{dose}-{seed}",
            status="complete",
            metrics={"robust_accuracy": level[seed] + effect(objective, dose) + noise * draws.normal()},
        )
        for objective in objectives
        for dose in doses
        for seed in range(seeds)
    ]


def config(**options):
    return AnalysisConfig(metrics=["robust_accuracy"], margins={"robust_accuracy": 1.0}, **options)


def by_place(analysis, **wanted):
    return [
        one
        for one in analysis.comparisons
        if all(getattr(one, k, None) == v or one.factors.get(k) == v for k, v in wanted.items())
    ]


def test_known_effects_come_back_with_intervals_around_them():
    rows = table(lambda objective, dose: -0.06 * dose if objective == "pgd_at" else 0.0)
    found = analyse(rows, config())
    [half] = by_place(found, objective="pgd_at", dose=0.5)
    assert half.low < -0.03 < half.high
    assert (half.verdict, half.primary, half.seeds) == ("lower", True, [0, 1, 2, 3, 4, 5])
    assert half.after - half.before == pytest.approx(half.difference)
    assert half.p < half.p_holm < 0.05
    assert half.sentence.startswith("Robust accuracy fell by 2.8 points [2.2, 3.5] at")
    assert "at dose 0.5 (pgd_at), 6 paired seeds (p " in half.sentence
    [none] = by_place(found, objective="standard", dose=0.25)
    assert none.verdict in ("equivalent", "undecided")
    assert none.sentence.startswith("Robust accuracy is ")
    assert len(found.comparisons) == 4
    assert len(found.means) == 6


def test_a_small_effect_can_be_seen_and_within_the_margin_at_once():
    found = analyse(table(lambda o, d: 0.006 * (d > 0), noise=0.0005), config())
    [one] = by_place(found, objective="standard", dose=0.5)
    assert (one.verdict, one.also_equivalent) == ("higher", True)
    assert "yet within ±1.0 points" in one.sentence


def test_equivalence_says_so_with_its_margin():
    found = analyse(table(lambda o, d: 0.0, noise=0.001), config())
    one = by_place(found, objective="standard", dose=0.5)[0]
    assert one.verdict == "equivalent"
    assert "Robust accuracy is equivalent within ±1.0 points (" in one.sentence
    assert "TOST p < 0.001, Holm" in one.sentence


def test_undecided_names_the_seeds_that_would_settle_it():
    found = analyse(table(lambda o, d: 0.0, noise=0.02, seeds=3), config())
    undecided = [one for one in found.comparisons if one.verdict == "undecided"]
    assert undecided
    for one in undecided:
        assert one.power < 0.5
        if one.seeds_needed is not None:
            assert one.seeds_needed > 3
            ends = one.seeds_needed_low, one.seeds_needed_high or "more than 1,000"
            told = f"about {one.seeds_needed} seeds (95% range {ends[0]} to {ends[1]}) would settle it under this correction"
            assert told in one.sentence
            assert one.seeds_needed_low <= one.seeds_needed <= (one.seeds_needed_high or 1001)
        assert one.seeds_for_precision > 3


def test_curves_that_are_not_monotone_are_told_dose_by_dose():
    found = analyse(table(lambda o, d: -0.05 * (d == 0.25), noise=0.002), config())
    quarter, half = by_place(found, objective="standard")
    assert (quarter.dose, quarter.verdict) == (0.25, "lower")
    assert (half.dose, half.verdict) == (0.5, "equivalent")


def test_seeds_that_are_missing_in_one_of_the_pair_are_left_out_and_said():
    rows = table(lambda o, d: -0.05 * (d > 0), seeds=5)
    for row in rows:
        if row.factors == {"objective": "standard", "dose": 0.5} and row.seed in (1, 3):
            row.metrics, row.status = {}, "failed"
    found = analyse(rows, config())
    [one] = by_place(found, objective="standard", dose=0.5)
    assert (one.seeds, one.missing_seeds) == ([0, 2, 4], [1, 3])
    assert "3 paired seeds of 5 (without 1, 3)" in one.sentence
    # The mean before is that of the seeds that are compared, not of all five.
    before = [r.metrics["robust_accuracy"] for r in rows if r.factors["dose"] == 0 and r.seed in (0, 2, 4)]
    assert one.before == pytest.approx(np.mean(before[:3]))
    assert any("seeds 1, 3 were left out" in remark for remark in found.remarks)
    assert {term.seeds[0] for term in found.anova} == {0}
    assert found.anova[0].seeds == [0, 2, 4]


def test_one_seed_gives_no_interval_and_no_verdict():
    found = analyse(table(lambda o, d: -0.05 * d, seeds=1), config())
    one = found.comparisons[0]
    assert (one.verdict, one.low, one.p_holm) == ("one seed", None, None)
    assert "one seed and so no interval" in one.sentence
    contrasts = analyse(
        table(lambda o, d: -0.05 * d * (o == "pgd_at"), seeds=1, noise=0), config(contrasts=["objective"])
    )
    [one] = by_place(contrasts, kind="contrast", dose=0.5)
    assert one.sentence == (
        "The effect on robust accuracy under pgd_at differed by −2.5 points from that under standard, one seed and so no "
        "interval, at dose 0.5, 1 paired seed."
    )
    assert found.means[0].low is None


def test_no_variation_is_said_and_nothing_is_claimed():
    rows = table(lambda o, d: 0.0)
    for row in rows:
        row.metrics["robust_accuracy"] = 0.0
    found = analyse(rows, config())
    assert {one.verdict for one in found.comparisons} == {"no variation"}
    assert found.comparisons[0].sentence == (
        "Robust accuracy did not change in any seed at dose 0.25 (standard), 6 paired seeds."
    )


def test_contrasts_compare_effects_and_not_levels():
    rows = table(lambda o, d: (0.3 if o == "pgd_at" else 0) - (0.08 if o == "pgd_at" else 0.02) * d, noise=0.001)
    found = analyse(rows, config(contrasts=["objective"], primary=[{"contrast": "objective", "dose": 0.5}]))
    [one] = by_place(found, kind="contrast", dose=0.5)
    assert one.difference == pytest.approx(-0.03, abs=0.003)
    assert (one.level, one.against, one.verdict, one.primary) == ("pgd_at", "standard", "lower", True)
    assert one.sentence.startswith("The effect on robust accuracy under pgd_at is 3.")
    assert "lower than under standard at dose 0.5, 6 paired seeds" in one.sentence
    assert [c.primary for c in found.comparisons].count(True) == 1


def test_holm_is_taken_over_the_primary_comparisons_only():
    rows = table(lambda o, d: -0.004 * (d > 0), noise=0.004, rng=4)
    alone = analyse(rows, config(primary=[{"objective": "standard", "dose": 0.5}]))
    [one] = [c for c in alone.comparisons if c.primary]
    assert one.p_holm == one.p
    together = analyse(rows, config())
    assert all(c.p_holm >= c.p for c in together.comparisons)
    smallest = min(together.comparisons, key=lambda c: c.p)
    assert smallest.p_holm == pytest.approx(min(4 * smallest.p, 1))


def test_a_primary_comparison_that_names_nothing_is_told():
    found = analyse(table(lambda o, d: 0.0), config(primary=[{"objective": "trades"}]))
    assert found.remarks[0] == "A primary comparison has no results yet, or names what is not there: objective trades."


def test_other_metrics_are_compared_but_not_corrected():
    rows = table(lambda o, d: 0.0)
    for row in rows:
        row.metrics["samples_to_clean_50"] = 1000.0 + 400 * row.factors["dose"] + row.seed
    found = analyse(rows, config())
    extra = by_place(found, metric="samples_to_clean_50")
    assert extra[0].primary is False
    assert extra[0].p_holm is None
    assert "Training entries until 50% clean validation accuracy differed by +100 in every seed" in extra[0].sentence


def test_anova_finds_the_interaction():
    found = analyse(table(lambda o, d: -0.2 * d * (o == "pgd_at"), doses=(0, 0.25, 0.5, 0.75)), config())
    p = {term.term: term.p for term in found.anova}
    assert set(p) == {"objective", "dose", "objective × dose"}
    assert max(p.values()) < 0.001


def test_anova_leaves_out_levels_that_do_not_meet_all_others_and_says_so():
    def rows_without(*holes, **options):
        rows = table(lambda o, d: -0.1 * d * (o == "pgd_at"), doses=(0, 0.25, 0.5, 0.75), **options)
        return [row for row in rows if (row.factors["objective"], row.factors["dose"]) not in holes]

    full = analyse(rows_without(), config())
    assert not [remark for remark in full.remarks if "ANOVA" in remark]
    found = analyse(rows_without(("standard", 0.5)), config())
    assert "ANOVA of robust accuracy without dose 0.5: there the factors are not fully crossed." in found.remarks
    # What is left is the analysis of a study that never had the dose.
    never = analyse(rows_without(("standard", 0.5), ("pgd_at", 0.5)), config())
    assert found.anova == never.anova
    assert {term.term for term in found.anova} == {"objective", "dose", "objective × dose"}


def test_anova_without_a_control_condition_that_stands_beside_one_dose_only():
    rows = table(lambda o, d: -0.1 * d, doses=(0, 0.25, 0.5))
    beside = table(lambda o, d: 0.0, doses=(0, 0.5), objectives=("pgd_at",))
    for condition, some in (("copies", rows), ("prior-matched", beside)):
        for row in some:
            row.factors = {**row.factors, "condition": condition}
    found = analyse(rows + beside, config())
    assert (
        "ANOVA of robust accuracy without condition prior-matched: there the factors are not fully crossed."
        in found.remarks
    )
    assert {term.term for term in found.anova} == {"objective", "dose", "objective × dose"}
    for row in rows:
        del row.factors["condition"]
    assert found.anova == analyse(rows, config()).anova


def test_no_anova_where_nothing_is_crossed():
    rows = [r for r in table(lambda o, d: -0.1 * d) if r.factors not in (
        {"objective": "standard", "dose": 0.5}, {"objective": "pgd_at", "dose": 0.25},
    )]  # fmt: skip
    found = analyse(rows, config())
    assert "No ANOVA of robust accuracy: the factors are not fully crossed." in found.remarks
    assert not found.anova


def test_doses_must_be_numbers():
    rows = table(lambda o, d: 0.0)
    rows[0].factors["dose"] = "half"
    with raises("bad-value", UserError, "'dose'", "'half'"):
        analyse(rows, config())


def test_every_dose_is_stated_in_all_usual_ways():
    eleven = duplication_rate(10 / 11)
    assert eleven.entries_per_original == pytest.approx(11)
    assert "would call this 100% in its standard arm, 1000% in its adversarial arm" in eleven.text
    double = duplication_rate(0.5)
    assert "100% of the originals are added, 2 entries" in double.text
    assert "10% in its standard arm, 100% in its adversarial arm" in double.text
    replaced = duplication_rate(0.25, "replace")
    assert (replaced.entries_per_original, replaced.unique_percent_of_originals) == (1.0, 75.0)
    assert duplication_rate(0).text == "no copies"


def test_the_published_percentages_mean_different_things_in_the_two_arms():
    rows = [StudyRun(factors={"percent": p}, seed=0, cell="c", status="missing") for p in (0, 60, 100)]
    found = {(one.dose, one.mode): one for one in analyse(rows, config(dose="percent")).duplication_rates}
    assert len(found) == 6
    assert found[100, "standard arm"].share_of_copies == pytest.approx(10 / 11)
    assert found[100, "standard arm"].text == (
        "in the standard arm 10 further copies of every image are added: 90.91% of the entries are copies"
    )
    assert found[100, "adversarial arm"].text == (
        "in the adversarial arm 100% of the images are added once more: 50% of the entries are copies"
    )
    assert found[60, "adversarial arm"].share_of_copies == pytest.approx(0.375)


def test_without_doses_the_levels_themselves_are_compared():
    rows = [row for row in table(lambda o, d: -0.05 * (o == "pgd_at"), noise=0.001) if row.factors["dose"] == 0]
    found = analyse(rows, config())
    [one] = found.comparisons
    assert (one.kind, one.level, one.against, one.primary, one.verdict) == (
        "contrast",
        "pgd_at",
        "standard",
        True,
        "lower",
    )
    assert one.sentence.startswith("Robust accuracy under pgd_at is 5.01 points [4.96, 5.06] ")
    assert "lower than under standard, 6 paired seeds (p < 0.001, Holm)." in one.sentence


def test_crossed_levels_without_doses_give_their_interaction_by_seed():
    rng = np.random.default_rng(3)
    values = {(c, k): 0.5 + rng.normal(0, 0.004, 20) for c in ("copies", "matched") for k in ("uniform", "skewed")}
    values["matched", "skewed"] += 0.02  # distinct images gain two points more under skewed shares
    rows = [
        StudyRun(
            factors={"scheme": scheme, "condition": condition}, seed=seed, cell=f"{condition}-{scheme}-{seed}",
            status="complete", metrics={"robust_accuracy": float(value)},
        )
        for (condition, scheme), by_seed in values.items() for seed, value in enumerate(by_seed)
        if seed < 18 or scheme == "uniform"
    ]  # fmt: skip
    found = analyse(rows, config(contrasts=["condition", "scheme"], primary=[{"contrast": "condition"}]))
    [one] = [comparison for comparison in found.comparisons if comparison.change]
    change = {scheme: values["matched", scheme] - values["copies", scheme] for scheme in ("uniform", "skewed")}
    difference = (change["skewed"] - change["uniform"])[:18]
    low, high = stats.t.interval(0.95, 17, difference.mean(), stats.sem(difference))
    assert (one.difference, one.low, one.high) == pytest.approx((difference.mean(), low, high))
    assert one.p == pytest.approx(stats.ttest_1samp(difference, 0).pvalue)
    assert (one.contrast, one.level, one.against, one.primary) == ("condition x scheme", "skewed", "uniform", False)
    assert one.sentence.startswith("The change of robust accuracy from copies to matched under skewed is ")
    assert "higher than under uniform, 18 paired seeds of 20 (without 18, 19)" in one.sentence
    assert [comparison.contrast for comparison in found.comparisons if comparison.primary] == ["condition"] * 2


def test_seeds_that_are_missing_in_a_row_are_told_as_a_range():
    rows = [
        row for row in table(lambda o, d: 0.0, seeds=12) if row.seed < 4 or row.factors["dose"] == 0 or row.seed == 9
    ]
    [half] = by_place(analyse(rows, config()), objective="pgd_at", dose=0.5)
    assert "5 paired seeds of 12 (without 4 to 8, 10, 11)" in half.sentence


def test_seeds_are_planned_under_the_correction_that_the_verdict_uses():
    """Of 15 comparisons 8 are decided: the seven that are left are each tested at a seventh of the level.

    A fall of 1.32 points with a spread of 0.867 is seen with p < 0.05 by six seeds, and after correction is not.
    """
    z = np.array([-2.0, -1, 0, 1, 2]) / np.std([-2, -1, 0, 1, 2], ddof=1)
    effects = {f"s{i}": (-0.1, 0.002) for i in range(8)} | {"asked": (-0.0132, 0.00867)}
    effects |= {f"t{i}": (0.0, 0.03) for i in range(6)}
    rows = [
        StudyRun(
            factors={"scheme": scheme, "dose": dose}, seed=seed, cell=f"{scheme}{dose}{seed}", status="complete",
            metrics={"robust_accuracy": 0.5 + (mean + sd * z[seed] if dose else 0.0)},
        )
        for scheme, (mean, sd) in effects.items() for dose in (0, 0.5) for seed in range(5)
    ]  # fmt: skip
    found = analyse(rows, config(anova=False))
    [one] = by_place(found, scheme="asked")
    assert (one.verdict, round(one.p_holm / one.p)) == ("undecided", 7)
    assert TTestPower().solve_power(1.32 / 0.867, alpha=0.05 / 7, power=0.8) == pytest.approx(9.06, abs=0.01)
    assert one.seeds_needed == 10
    assert 5 <= one.seeds_needed_low <= 7
    assert 60 <= one.seeds_needed_high <= 120
    t = 1.32 / (0.867 / np.sqrt(6))
    assert 7 * 2 * stats.t.sf(t, 5) > 0.05 > 2 * stats.t.sf(t, 5)
    alone = analyse([row for row in rows if row.factors["scheme"] == "asked"], config(anova=False))
    assert by_place(alone, scheme="asked")[0].verdict == "lower"


@pytest.mark.parametrize(("level", "limit"), [(0.001, "at floor"), (0.9995, "at ceiling")])
def test_what_cannot_move_is_neither_equivalent_nor_an_effect_of_the_anova(level, limit):
    """Standard models are robust on one image in a thousand; their robust accuracy cannot fall by a point."""
    rows = table(lambda o, d: -0.1 * d * (o == "pgd_at"), noise=0.001, doses=(0, 0.25, 0.5))
    draw = np.random.default_rng(2)
    for row in rows:
        if row.factors["objective"] == "standard":
            row.metrics["robust_accuracy"] = level + 0.0003 * draw.random()
    found = analyse(rows, config(contrasts=["objective"]))
    standard = by_place(found, objective="standard", kind="dose")
    assert [(one.verdict, one.also_equivalent, one.seeds_needed) for one in standard] == [(limit, False, None)] * 2
    assert standard[0].tost_p < 0.001
    assert "on both sides: " in standard[0].sentence
    assert {one.verdict for one in by_place(found, kind="contrast")} == {limit}
    assert {term.term for term in found.anova} == {"dose"}
    assert (
        "ANOVA of robust accuracy without objective standard: both sides lie at the end of its range." in found.remarks
    )
    # a fall to the floor is a fall
    rows = table(lambda o, d: 0.0, noise=0.0001, doses=(0, 0.5), objectives=("standard",))
    for row in rows:
        row.metrics["robust_accuracy"] *= 0.002 if row.factors["dose"] else 1
    assert {one.verdict for one in analyse(rows, config()).comparisons} == {"lower"}


def test_distinct_images_and_what_else_differs_are_said():
    rows = table(lambda o, d: 0.0, noise=0.001, doses=(0, 0.5), objectives=("standard",))
    for row in rows:
        half = row.factors["dose"] > 0
        row.metrics |= {"unique_samples": 3159.0 if half else 4750.0, "steps": 743.0 if half else 372.0}
    one = by_place(analyse(rows, config()), metric="robust_accuracy")[0]
    assert (one.unique_before, one.unique_after) == (4750, 3159)
    assert one.also_differs == ["optimizer steps 372 → 743", "distinct images 4,750 → 3,159"]
    assert "6 paired seeds, 3,159 distinct images against 4,750 (" in one.sentence
    assert "also different: optimizer steps 372 → 743, distinct images 4,750 → 3,159)." in one.sentence
    steps = by_place(analyse(rows, config()), metric="steps")[0]
    assert steps.sentence.startswith("Optimizer steps differed by +371 in every seed")


def test_the_interval_over_seeds_and_images_stands_beside_the_one_over_seeds():
    draw = np.random.default_rng(8)
    rows, answers = [], []
    hard = draw.random(400)
    for dose in (0, 0.5):
        for seed in range(5):
            right = hard + 0.1 * draw.normal(size=400) < 0.6 - 0.1 * (dose > 0) * (hard < 0.55)
            rows.append(
                StudyRun(
                    factors={"dose": dose}, seed=seed, cell=f"{dose}{seed}", status="complete",
                    metrics={"robust_accuracy": float(right.mean())},
                )
            )  # fmt: skip
            text = "".join(str(int(one)) for one in right)
            answers.append((((), float(dose)), seed, {"robust_accuracy": text}))
    [one] = analyse(rows, config(), answers_of(answers)).comparisons
    signs = [np.array([int(right) for right in text["robust_accuracy"]]) for _, _, text in answers]
    matrix = np.array([after - before for before, after in zip(signs[:5], signs[5:], strict=True)])
    assert (one.crossed_low, one.crossed_high, one.test_images) == (*crossed_interval(matrix), 400)
    assert one.crossed_low <= one.low + 1e-12
    assert "over seeds and 400 test images" in one.sentence
    # answers that are not those of the accuracies give no interval
    rows[0].metrics["robust_accuracy"] += 0.01
    assert analyse(rows, config(), answers_of(answers)).comparisons[0].crossed_low is None
