"""Metrics: which are shares, and how their numbers are written."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from robustdup_study.metrics import is_share, write
from robustdup_study.records import DoseMean
from robustdup_study.report import cells_of_table


@pytest.mark.parametrize(
    "name",
    [f"{what}_to_{target}" for what in ("steps", "samples", "seconds") for target in ("clean_40", "robust_15")]
    + ["nll", "steps", "forward_passes"],
)
def test_steps_to_a_robust_target_are_no_share(name):
    assert not is_share(name)
    assert write(name, 48.0) == "48"


@pytest.mark.parametrize(
    "name", ["clean_accuracy", "robust_accuracy", "ece", "memorisation_gap", "test_adv_acc", "effective_robustness"]
)
def test_shares_are_written_in_points(name):
    assert is_share(name)
    assert write(name, 0.48) == "48.0"


def test_the_table_of_a_study_writes_steps_as_they_are():
    means = [
        DoseMean(metric=name, factors={}, dose=0.0, n=10, mean=mean, sd=None, low=None, high=None)
        for name, mean in (("steps_to_robust_15", 48.0), ("robust_accuracy", 0.21))
    ]
    analysis = {"metrics": ["steps_to_robust_15", "robust_accuracy"]}
    header, rows, _ = cells_of_table(SimpleNamespace(recipe={"analysis": analysis}, means=means, comparisons=[]))
    assert header[2::2] == analysis["metrics"]
    assert rows == [["0", "10", "48", "", "21.00", ""]]
