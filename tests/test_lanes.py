"""What the quick lane leaves to the night."""

from tests.lanes import each_once


def test_each_value_is_in_the_quick_lane_and_every_combination_in_one_of_them():
    names, cases = each_once(norm__eps=[("Linf", 1), ("L2", 2), ("L1", 3)], stop=[True, False]).args
    assert list(names) == ["norm", "eps", "stop"]
    everything = [case.values for case in cases]
    assert everything == [(n, e, s) for n, e in (("Linf", 1), ("L2", 2), ("L1", 3)) for s in (True, False)]
    quick = [case.values for case in cases if not case.marks]
    assert quick == [("Linf", 1, True), ("L2", 2, False), ("L1", 3, True)]
    assert all(mark.name == "slow" for case in cases for mark in case.marks)
