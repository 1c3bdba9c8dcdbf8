"""Paired differences: known tables, known intervals, and refusals that name what differs."""

import math

import numpy as np
import pytest

from robustdup.errors import UserError
from robustdup.leaderboard import compare, paired_difference
from robustdup.leaderboard.compare import sample_outcomes
from robustdup.statistics import Z95
from tests.raising import raises


@pytest.fixture
def runs(make_record, make_table):
    """Two runs from (clean, broken_by) each."""

    def build(a, b, rows_a=None, rows_b=None, **changes_b):
        rows_b = rows_b or {}
        keep = {k: changes_b[k] for k in ("attacks", "eps", "undecided") if k in changes_b}
        first = make_record(*a), make_table(*a, **(rows_a or {}))
        return *first, make_record(*b, **{"run_id": "run-b", **changes_b}), make_table(*b, **rows_b, **keep)

    return build


def test_differences_changed_points_and_the_exact_p_value(runs):
    clean = np.ones(20, dtype=bool)
    a, b = np.full(20, -1), np.full(20, -1)
    a[:2], b[2:10] = 0, 3  # A loses 2 samples, B loses 8 others
    wrong_in_b = clean.copy()
    wrong_in_b[19] = False
    result = compare(*runs((clean, a), (wrong_in_b, b)))
    assert (result.n_common, result.robust.only_a, result.robust.only_b) == (20, 9, 2)
    assert round(result.robust.difference, 9) == 0.35
    assert (result.robust.a, result.robust.b) == (0.9, 0.55)
    # 11 discordant points: twice the chance of at most 2 heads in 11 tosses.
    assert result.robust.p_value == pytest.approx(2 * sum(math.comb(11, k) for k in range(3)) / 2**11)
    assert (result.clean.only_a, result.clean.only_b, result.clean.p_value) == (1, 0, 1.0)
    assert [point.index for point in result.changed] == [*range(10), 19]
    last = result.changed[-1]
    assert (last.clean_a, last.clean_b, last.robust_a, last.robust_b) == (True, False, True, False)


def test_a_run_compared_with_itself_does_not_differ(runs, points):
    same = points(50, 40, 20)
    result = compare(*runs(same, same))
    assert result.robust.difference == result.clean.difference == 0
    assert result.robust.p_value == 1.0
    assert result.changed == []
    assert result.robust.low == pytest.approx(-(Z95**2) / (50 + Z95**2))


def test_undecided_points_are_left_out_and_counted(runs, points):
    result = compare(*runs(points(30, 30, 20), points(30, 30, 20), undecided=[4, 7]))
    assert result.n_undecided == 2
    assert result.robust.n == 28
    assert result.robust.difference == 0
    assert result.clean.n == 30
    assert any("2 undecided samples" in note for note in result.notes)
    nothing = compare(*runs(points(3, 3, 3), points(3, 3, 3), undecided=[0, 1, 2]))
    assert nothing.robust is None


def test_broken_at_a_smaller_radius_is_broken(make_record, make_table, points):
    import pyarrow as pa

    clean, broken = points(4, 4, 4)
    rows = make_table(clean, broken, attacks=("pgd",)).to_pylist()
    rows = [row for row in rows if not (row["attack"] == "pgd" and row["index"] == 2)]
    smaller = {**rows[-1], "index": 2, "eps": "4/255", "outcome": "broken"}
    larger = {**rows[-1], "index": 1, "eps": "16/255", "outcome": "broken"}
    found = sample_outcomes(make_record(clean, broken), pa.Table.from_pylist([*rows, smaller, larger]))
    assert found.robust.tolist() == [1, 1, 0, 1]


def test_points_are_matched_by_index_in_any_order(runs, make_table, make_record, points):
    clean, broken = points(10, 10, 6)
    turned = np.arange(10)[::-1]
    result = compare(*runs((clean, broken), (clean[::-1], broken[::-1]), rows_b={"index": turned}))
    assert result.n_common == 10
    assert result.changed == []
    fewer = compare(*runs(points(10, 10, 6), points(4, 4, 4)))
    assert (fewer.n_common, fewer.n_only_a, fewer.n_only_b) == (4, 6, 0)
    assert any("4 samples that both runs have" in note for note in fewer.notes)


@pytest.mark.parametrize(
    ("rows", "changes", "names"),
    [
        ({}, {"eps": "4/255"}, ["8/255 in A", "4/255 in B"]),
        ({}, {"norm": "L2"}, ["Linf 8/255 in A", "L2 8/255 in B"]),
        ({"hashes": ["d" * 64] * 10}, {}, ["images", "10 of 10", "index 0"]),
        ({"labels": [9] * 10}, {}, ["labels", "index 0"]),
        ({"index": np.arange(100, 110)}, {}, ["indices"]),
    ],
)
def test_other_points_and_other_threats_are_refused(runs, points, rows, changes, names):
    with raises("not-comparable", UserError, *names):
        compare(*runs(points(10, 10, 6), points(10, 10, 6), rows_b=rows, **changes))


def test_other_attacks_and_seeds_are_noted(runs, points):
    result = compare(*runs(points(10, 10, 6), points(10, 10, 6), attacks=("pgd",), asked="pgd", seed=5))
    assert any(note.startswith("the attacks differ") for note in result.notes)
    assert any(note.startswith("the seeds differ") for note in result.notes)


def test_a_damaged_table_is_named(make_record, make_table, points):
    clean, broken = points(3, 3, 3)
    rows = make_table(clean, broken, index=[0, 1, 1])
    with raises("damaged-record", UserError, "index 1"):
        sample_outcomes(make_record(clean, broken), rows)


@pytest.mark.timing
def test_ten_thousand_points_are_quick(runs, points, within):
    made = runs(points(10_000, 9000, 5900), points(10_000, 8900, 6000, stage=3))
    paired_difference(np.ones(2, dtype=bool), np.ones(2, dtype=bool))  # imports statsmodels
    with within(1):
        result = compare(*made)
    assert result.robust.only_b == 100
