"""The gate: known counts, exact chances, and refusals in words."""

import itertools
import json
import math

import numpy as np
import pytest

from robustdup.errors import UserError
from robustdup.leaderboard import gate
from robustdup.leaderboard.gate import is_drop, parse_share
from robustdup.records import Accuracy, Diagnostic
from robustdup.statistics import detectable_drop, drop_p_value, drop_power
from tests.raising import raises


@pytest.fixture
def run(make_record, make_table):
    """A run of n samples in which the given ones break: (record, samples)."""

    def build(broken, n=1000, name="run", clean=None, rows=None, **changes):
        clean = np.ones(n, dtype=bool) if clean is None else clean
        place = np.where(np.isin(np.arange(n), list(broken)), 0, -1)
        undecided = {"undecided": changes["undecided"]} if "undecided" in changes else {}
        robust = clean & (place < 0) & ~np.isin(np.arange(n), changes.get("undecided", []))
        value = float(robust.mean())  # undecided samples are not in it
        changes = {"robust_accuracy": Accuracy(value=value, low=0.0, high=1.0), **changes}
        record = make_record(clean, place, run_id=name, **changes)
        return record, make_table(clean, place, **undecided, **(rows or {}))

    return build


def checks(result):
    return {check.name: check.passed for check in result.checks}


def test_a_drop_beyond_margin_and_chance_fails_and_names_the_lost(run):
    old, new = run(range(100), name="old"), run(range(3, 124), name="new")
    result = gate(*new, old)
    assert not result.passed
    assert checks(result) == {"believable": True, "no-drop": False}
    assert (result.paired.only_a, result.paired.only_b, result.baseline) == (24, 3, "old")
    assert result.p_value == pytest.approx(sum(math.comb(27, k) for k in range(24, 28)) / 2**27)
    assert [sample.index for sample in result.lost] == list(range(100, 124))
    assert {sample.cause for sample in result.lost} == {"robustbench:APGD-CE"}
    assert gate(*old, new).passed  # the other way round is a gain


def test_no_change_is_told_without_a_minus(run):
    new, old = run(range(100), name="new"), run(range(100), name="old")
    (told,) = [check.message for check in gate(*new, old).checks if check.name == "no-drop"]
    assert ": +0.00 points, 0 lost and 0 gained" in told


@pytest.mark.parametrize(("lost", "gained", "fails"), [(10, 0, False), (11, 0, True), (60, 49, False), (60, 20, True)])
def test_the_margin_is_exclusive_and_chance_is_let_pass(run, lost, gained, fails):
    old = run(range(100), name="old")
    new = run(range(gained, 100 + lost), name="new")
    assert gate(*new, old).passed is not fails
    assert is_drop(lost, gained, 1000, parse_share("1pt", "margin")) is fails


def test_seven_of_seven_are_more_than_chance_at_one_per_cent_and_six_are_not(run):
    old = run((), name="old")
    assert gate(*run(range(6)), old, margin=0).passed  # 1/64
    assert not gate(*run(range(7)), old, margin="0pt").passed  # 1/128


def test_the_minimum_counts_undecided_samples_as_lost(run):
    new = run(range(500), undecided=[900])
    assert not gate(*new, minimum="50%").passed
    result = gate(*new, minimum=0.499)
    assert result.passed
    assert result.robust_accuracy == 0.499
    assert any("1 undecided" in note for note in result.notes)
    assert any("inside the 95% interval" in note for note in result.notes)
    assert checks(gate(*run(range(500)), minimum=0.5)) == {"believable": True, "minimum": True}


def test_undecided_samples_of_the_new_run_are_lost_those_of_the_baseline_left_out(run):
    old, new = run((), name="old", undecided=[5]), run((), undecided=list(range(20)))
    result = gate(*new, old)
    assert not result.passed
    assert {sample.cause for sample in result.lost} == {"undecided"}
    assert (result.paired.n, result.paired.only_a) == (999, 19)
    assert any("undecided in the baseline" in note for note in result.notes)


def test_a_clean_image_that_is_now_wrong_is_lost_as_misclassified(run):
    wrong = np.arange(1000) >= 50
    result = gate(*run((), clean=wrong), run((), name="old"))
    assert not result.passed
    assert {sample.cause for sample in result.lost} == {"misclassified"}


def test_a_number_that_is_not_to_be_believed_does_not_pass(run):
    sign = Diagnostic(code="zero_gradients", severity="serious", message="no gradient", advice="-")
    masked = run((), diagnostics=[sign])
    result = gate(*masked, minimum=0.5)
    assert checks(result) == {"believable": False, "minimum": True}
    assert not result.passed
    assert "no gradient" in str(result)
    assert gate(*masked, minimum=0.5, accept_doubt=True).passed
    with raises("unusable-baseline", UserError, "not to be believed"):
        gate(*run(()), masked)


def test_a_baseline_that_cannot_be_used_is_refused_in_words(run):
    new = run(())
    refused = [
        (run((), eps="4/255", rows={"eps": "4/255"}), "4/255"),
        (run((), norm="L2"), "L2"),
        (run((), asked="fast"), "fast"),
        (run((), rows={"hashes": ["e" * 64] * 1000}), "other pixels"),
        (run((), n=1001), "1 of its 1001 samples are not in the new run"),
        (run((), n=10, rows={"index": range(2000, 2010)}), "no sample in common"),
        (run((), status="failed"), "failed"),
        (run((), n=3, undecided=[0, 1, 2]), "undecided"),
    ]
    for baseline, word in refused:
        with raises("unusable-baseline", UserError, word):
            gate(*new, baseline)
    assert gate(*run((), n=1000), run((), n=900)).passed  # more samples than the baseline are no harm


def test_nothing_to_hold_against_and_contradicting_records_are_refused(run):
    with raises("missing-argument", UserError, "--baseline", "--min"):
        gate(*run(()))
    record, _ = run(())
    with raises("damaged-record", UserError, "One of them was changed"):
        gate(record, run(range(10))[1], minimum=0.1)


def test_shares_are_read_exactly():
    assert [parse_share(text, "x") * 1000 for text in ("1pt", "1%", "0.01", 0.01, " 1 pp ", "0", ".5")] == [
        10, 10, 10, 10, 10, 0, 500
    ]  # fmt: skip
    for text in ("1", "45", "-1%", "nan", "inf", "", "1e-2", "100%", "1ptx"):
        with raises("bad-value", UserError, "0.02, 2% or 2pt"):
            parse_share(text, "min")


def test_a_result_is_plain_json(run):
    assert json.loads(gate(*run(range(30)), run(()), minimum=0.4).model_dump_json())["passed"] is False


def test_the_chance_of_a_drop_is_that_of_tossed_coins():
    for lost, gained in itertools.product(range(6), range(6)):
        tosses = list(itertools.product((0, 1), repeat=lost + gained))
        assert drop_p_value(lost, gained) == pytest.approx(np.mean([sum(toss) >= lost for toss in tosses]))


def test_the_power_is_the_sum_over_all_tables():
    n, drop, gained, margin, alpha = 30, 0.2, 0.05, 0.1, 0.1
    lost, rest = drop + gained, 1 - drop - 2 * gained
    total = 0.0
    for a in range(n + 1):
        for b in range(n + 1 - a):
            if a - b > margin * n and drop_p_value(a, b) <= alpha:
                ways = math.comb(n, a) * math.comb(n - a, b)
                total += ways * lost**a * gained**b * rest ** (n - a - b)
    assert drop_power(n, drop, gained, margin=margin, alpha=alpha) == pytest.approx(total, rel=1e-9)


def test_what_the_gate_promises_on_1000_samples_holds_by_simulation():
    """Power of 95% at 2 points up to 2.6% of samples that differ, false alarms of at most 1% at any share."""
    draw = np.random.default_rng(1)
    margin = parse_share("1pt", "margin")
    for gained, least in ((0.0, 0.95), (0.003, 0.95), (0.01, 0.7)):
        tables = draw.multinomial(1000, [0.02 + gained, gained, 0.98 - 2 * gained], size=3000)[:, :2]
        found = np.mean([is_drop(int(a), int(b), 1000, margin) for a, b in tables])
        exact = drop_power(1000, 0.02, gained, margin=0.01, alpha=0.01)
        assert exact >= least
        assert abs(found - exact) < 4 * math.sqrt(exact * (1 - exact) / 3000) + 1e-3
    for gained in (0.001, 0.01, 0.05, 0.2):
        assert drop_power(1000, 0.0, gained, margin=0.01, alpha=0.01) <= 0.01
    smallest = detectable_drop(1000, 0.003, margin=0.01, alpha=0.01)
    assert drop_power(1000, smallest, 0.003, margin=0.01, alpha=0.01) >= 0.95
    assert drop_power(1000, smallest - 0.001, 0.003, margin=0.01, alpha=0.01) < 0.95
    assert detectable_drop(3, 0.0, margin=0.01, alpha=0.01) is None
