"""Robust accuracy against passes: the passes of a run are shared out among its samples, none lost."""

import itertools

import pytest

from robustdup.records import AttackResult
from robustdup.report.passes_figure import passes_of_a_survivor, plot_passes, steps
from robustdup.report.runs import read_run


def attack(**keys):
    values = {"n_attacked": 10, "n_broken": 0, "seconds": 1.0, "forward_passes": 100, "backward_passes": 50}
    return AttackResult.model_construct(**{"broken_after": [], **values, **keys})


def test_passes_are_shared_out():
    assert passes_of_a_survivor(attack()) == 15  # (100 + 50) / 10
    # two left after 3 passes, three by 9: 150 = 2 * 3 + 1 * 9 + 7 * x
    assert passes_of_a_survivor(attack(broken_after=[(3, 2), (9, 3)])) == pytest.approx(135 / 7)
    assert passes_of_a_survivor(attack(n_attacked=3, broken_after=[(3, 2), (9, 3)])) == 9  # none survived


def test_what_was_dropped_is_a_running_total(run):
    record = run(broken_by=[1] * 20 + [-1] * 20, right=[True] * 40).record
    record.attacks[1].broken_after = [(1, 5), (2, 15), (3, 20)]
    shares = [share for _, share, words in steps(record) if words == record.attacks[1].name]
    assert shares == [35 / 40, 25 / 40, 0.5, 0.5]


def test_the_line_falls_from_clean_to_robust(run):
    made = run()
    line = steps(made.record)
    assert line[0][:2] == (0.0, made.record.clean_accuracy.value)
    assert line[-1][1] == pytest.approx(made.record.robust_accuracy.value)
    assert [passes for passes, _, _ in line] == sorted(passes for passes, _, _ in line)
    assert [share for _, share, _ in line] == sorted((share for _, share, _ in line), reverse=True)
    ends = {words: share for _, share, words in line[1:]}
    assert list(ends.values()) == pytest.approx([each.robust_accuracy_after for each in made.record.attacks])


def test_the_figure_is_drawn_of_one_run_and_of_several(run, tmp_path):
    from robustdup.report.plots import plot

    one = read_run(run().folder)
    chart = plot_passes([one], "one")
    assert [each.name for each in chart.series] == [each.name for each in one.record.attacks]  # each broke some
    for before, after in itertools.pairwise(chart.series):
        assert (before.points[-1].x, before.points[-1].y) == (after.points[0].x, after.points[0].y)
    assert len(chart.rows) == len(steps(one.record))
    assert plot([one, one], tmp_path / "passes.svg", kind="passes").read_text().count("<svg") >= 1


def test_attacks_that_broke_nothing_share_a_name(run):
    made = run(broken_by=[-1] * 20 + [1] * 20, right=[True] * 40)  # the second attack of four broke half of them
    series = plot_passes([read_run(made.folder)], "one").series
    idle = "attacks that broke nothing"
    assert [each.name for each in series] == [idle, "apgd-t", idle, idle]
    assert [{point.y for point in each.points} for each in series] == [{1.0}, {1.0, 0.5}, {0.5}, {0.5}]
