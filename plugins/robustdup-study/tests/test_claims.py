"""Claims: judged by what they need, corrected where one of several is enough, attributed only where copies alone differ."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from robustdup_study.paper_2504_00638.claims import (
    ANY_HARMS,
    LESS_EFFICIENT,
    MAY_LOWER,
    NO_GAIN,
    NON_UNIFORM,
    judge_claims,
)
from robustdup_study.paper_2504_00638.judging import judged, no_harm
from robustdup_study.records import PairedComparison
from scipy import stats
from statsmodels.stats.multitest import multipletests


def comparison(difference, sd=0.001, n=5, *, kind="dose", metric="clean_accuracy", dose=0.5, differs=(), **factors):
    """A comparison of `n` seeds with exactly this mean and spread, its p values by scipy."""
    z = np.arange(n) - (n - 1) / 2
    values = difference + sd * z / z.std(ddof=1)
    what = {}
    if kind == "contrast":
        what = {"contrast": factors.pop("contrast"), "level": factors.pop("level"), "against": factors.pop("against")}
    margin = 0.01
    upper, lower = (
        stats.ttest_1samp(values, popmean=end, alternative=side).pvalue
        for end, side in ((margin, "less"), (-margin, "greater"))
    )
    half = stats.t.ppf(0.975, n - 1) * sd / math.sqrt(n)
    return PairedComparison(
        kind=kind, metric=metric, factors=factors, dose=dose, primary=False, seeds=list(range(n)), difference=difference,
        sd=sd, low=difference - half, high=difference + half, p=stats.ttest_1samp(values, 0).pvalue, margin=margin,
        tost_p=max(upper, lower), verdict="undecided", sentence=f"{kind} {difference:g} {metric}", also_differs=list(differs),
        **what,
    )  # fmt: skip


def claims(*comparisons, **analysis):
    record = SimpleNamespace(recipe={"analysis": analysis}, comparisons=list(comparisons), scope="two epochs")
    return {claim.claim: claim for claim in judge_claims(record)}


def test_lower_is_asked_before_equivalent():
    small = comparison(-0.004, sd=0.0005)
    assert small.tost_p < 0.05
    assert [word for word, _ in judged([small], 0.05)] == ["lower"]
    assert claims(small)[MAY_LOWER].verdict == "confirmed"


def test_one_of_six_equivalences_does_not_refute_any_harm_without_correction():
    """One duplication in six is within the margin at 0.0149; corrected for having looked at six it is 0.09."""
    sd = 0.0046
    near = comparison(-0.0032, sd, objective="pgd_at", scheme="s0")
    others = [comparison(-0.004, 0.02, objective="pgd_at", scheme=f"s{i}") for i in range(1, 6)]
    p = stats.ttest_1samp(
        np.array([-2, -1, 0, 1, 2]) * sd / np.std([-2, -1, 0, 1, 2], ddof=1) - 0.0032, -0.01, alternative="greater"
    ).pvalue
    assert p == pytest.approx(0.0149, abs=0.002)
    assert claims(near)[ANY_HARMS].verdict == "refuted"
    together = claims(near, *others)[ANY_HARMS]
    assert together.verdict == "undecided"
    p_values = [p, *([1.0] * 5)]
    assert multipletests(p_values, method="holm")[1][0] > 0.05
    assert no_harm([[("undecided", near)], *([("undecided", one)] for one in others)], 0.05) == 0
    sure = comparison(0.0, 0.001, objective="pgd_at", scheme="s0")
    assert claims(sure, *others)[ANY_HARMS].verdict == "refuted"
    # both metrics of a duplication have to be shown
    robust = comparison(-0.02, 0.03, metric="robust_accuracy", objective="pgd_at", scheme="s0")
    assert claims(sure, robust, *others)[ANY_HARMS].verdict == "undecided"


def test_one_verdict_for_each_claim_with_budgets_as_columns_and_the_largest_effect_first():
    steps, epochs = {"budget": "fixed-steps"}, {"budget": "fixed-epochs"}
    more = ["optimizer steps 372 → 743"]
    found = claims(
        comparison(0.01, scheme="uniform", objective="standard", differs=more, **epochs),
        comparison(-0.02, scheme="uniform", objective="standard", **steps),
        comparison(-0.05, scheme="uniform", objective="standard", dose=0.25, **steps),
        comparison(-0.03, scheme="uniform", objective="pgd_at", **steps),
    )
    assert list(found) == [LESS_EFFICIENT, MAY_LOWER, NON_UNIFORM, ANY_HARMS, NO_GAIN]
    claim = found[MAY_LOWER]
    assert claim.evidence == [f"dose {value} clean_accuracy" for value in ("-0.05", "-0.03", "-0.02", "0.01")]
    assert (claim.verdict, claim.effect, claim.attribution) == ("confirmed", "seen", "copies")
    assert set(claim.by_budget) == {"fixed-steps", "fixed-epochs"}
    assert claim.by_budget["fixed-epochs"].startswith("1 higher of 1; +1.0 points [0.9, 1.1]")
    assert (claim.scope, claim.cells) == ("two epochs", 35)  # two comparisons share their runs without copies
    assert found[NON_UNIFORM].verdict == "not tested"
    assert found[ANY_HARMS].verdict == "confirmed"
    assert "1 of 1 duplications lowers an accuracy" in found[ANY_HARMS].sentence


def test_a_gain_that_came_with_more_steps_refutes_nothing():
    more = ["optimizer steps 372 → 743"]
    gain = comparison(0.04, scheme="uniform", budget="fixed-epochs", differs=more)
    claim = claims(gain)[NO_GAIN]
    assert (claim.verdict, claim.effect, claim.attribution) == ("undecided", "opposite", "open")
    assert "optimizer steps 372 → 743" in claim.attribution_text
    same = comparison(0.0, scheme="uniform", budget="fixed-steps")
    assert claims(gain, same)[NO_GAIN].verdict == "undecided"
    assert claims(comparison(0.04, scheme="uniform", budget="fixed-steps"))[NO_GAIN].verdict == "refuted"


def test_harm_of_skewed_copies_is_attributed_by_a_fair_control_only():
    skewed = {"kind": "contrast", "contrast": "scheme", "level": "class_skewed", "against": "uniform"}
    harm = comparison(-0.05, **skewed, condition="copies", budget="steps", differs=["class shares"])

    def with_control(difference, sd=0.001, differs=(), budget="steps"):
        control = comparison(
            difference, sd, kind="contrast", contrast="condition", level="matched", against="copies", budget=budget,
            differs=differs, scheme="class_skewed",
        )  # fmt: skip
        claim = claims(harm, control)[NON_UNIFORM]
        return claim.verdict, claim.attribution, claim.evidence

    assert with_control(0.03)[:2] == ("confirmed", "copies")
    assert with_control(0.0)[:2] == ("undecided", "not copies")
    assert with_control(0.0, sd=0.05)[:2] == ("undecided", "open")
    # a third fewer images, or run under another budget: no control
    assert with_control(0.03, differs=["distinct images 4,750 → 3,159"])[:2] == ("undecided", "open")
    verdict, attribution, evidence = with_control(0.03, budget="epochs")
    assert (verdict, attribution) == ("undecided", "open")
    assert evidence == [harm.sentence]


def test_harm_of_skewed_copies_is_attributed_by_the_interaction_where_shares_and_copies_are_crossed():
    skewed = {"contrast": "scheme", "level": "class_skewed", "against": "uniform"}
    harm = comparison(-0.12, kind="contrast", **skewed, condition="copies", differs=["class shares"])
    control = comparison(
        0.03, kind="contrast", contrast="condition", level="matched", against="copies", scheme="class_skewed"
    )  # copies cost three points under skewed shares; under even ones nobody has said

    def crossed(difference, sd=0.001):
        skewed["contrast"] = "condition x scheme"
        interaction = comparison(difference, sd, kind="contrast", **skewed)
        claim = claims(harm, control, interaction.model_copy(update={"change": "from copies to matched"}))[NON_UNIFORM]
        return claim.effect, claim.attribution

    assert crossed(0.03) == ("seen", "copies")
    assert crossed(0.0) == ("seen", "not copies")
    assert crossed(-0.03) == ("seen", "not copies")
    assert crossed(0.0, sd=0.05) == ("seen", "open")


def test_floors_are_no_evidence_and_primary_comparisons_judge_alone():
    floor = comparison(0.0, metric="robust_accuracy", objective="pgd_at").model_copy(update={"verdict": "at floor"})
    assert claims(floor)[ANY_HARMS].verdict == "not tested"
    primary = comparison(-0.02, objective="pgd_at").model_copy(update={"primary": True})
    other = comparison(0.05, objective="pgd_at", dose=0.25)
    assert claims(primary, other)[LESS_EFFICIENT].verdict == "confirmed"


def test_time_to_a_target_is_harm_where_it_grows():
    slower = comparison(40.0, 5.0, metric="steps_to_clean_40", objective="standard", scheme="uniform")
    slower = slower.model_copy(update={"margin": 20.0, "tost_p": 1.0})
    claim = claims(slower, metrics=["steps_to_clean_40"])[LESS_EFFICIENT]
    assert (claim.verdict, claim.effect) == ("confirmed", "seen")
    assert claims(slower)[LESS_EFFICIENT].verdict == "not tested"  # not what the recipe asked


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        ({"a": (-0.03, -0.03), "b": (-0.03, 0.0)}, ("confirmed", "confirmed")),
        ({"a": (-0.03, -0.03), "b": (0.0, 0.03)}, ("confirmed", "refuted")),
        ({"a": (0.03, 0.03), "b": (0.0, 0.0)}, ("refuted", "refuted")),
        ({"a": (0.0, 0.0)}, ("equivalent", "refuted")),
    ],
)
def test_harm_of_some_and_of_all_are_told_apart(cells, wanted):
    found = claims(
        *(
            comparison(value, metric=metric, scheme=scheme, objective="pgd_at")
            for scheme, both in cells.items()
            for metric, value in zip(("clean_accuracy", "robust_accuracy"), both, strict=True)
        )
    )
    assert (found[MAY_LOWER].verdict, found[ANY_HARMS].verdict) == wanted


def test_equivalences_are_counted_one_by_one_and_so_corrected_where_not_all_are_shown():
    """At 0.03 each, three of six are not shown to be within the margin after Holm; six of six need no correction."""
    sd = 0.0046
    near = [comparison(-0.0026, sd, objective="pgd_at", scheme=f"s{i}") for i in range(3)]
    assert all(0.005 < one.tost_p < 0.05 for one in near)
    assert min(multipletests([*(one.tost_p for one in near), 1, 1, 1], method="holm")[1]) > 0.05
    wide = [comparison(-0.004, 0.02, objective="pgd_at", scheme=f"s{i}") for i in range(3, 6)]
    assert "Of 6 comparisons: 6 undecided" in claims(*near, *wide)[MAY_LOWER].sentence
    assert claims(*near)[MAY_LOWER].verdict == "equivalent"
    assert "Of 3 comparisons: 3 equivalent" in claims(*near)[MAY_LOWER].sentence


def test_a_run_that_several_comparisons_look_at_counts_once():
    doses = [comparison(-0.02, objective="pgd_at", dose=dose, metric=f"{kind}_accuracy")
             for dose in (0.25, 0.5) for kind in ("clean", "robust")]  # fmt: skip
    assert claims(*doses)[ANY_HARMS].cells == 3 * 5  # two doses and none, five seeds
