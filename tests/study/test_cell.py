"""One real cell, small; and what is measured on it against numbers that are known."""

from __future__ import annotations

import math

import pytest
import torch

from robustdup.jobs.study import calibration, data_fingerprint, run_cell
from robustdup.records import CellOrder
from robustdup.registry import load_plugins

SETTINGS = {
    "data": "builtin:digits", "model": "small-cnn(width=4)", "objective": "standard", "n": 400, "epochs": 1, "batch_size": 32,
    "augment": "none", "validation": 50, "evaluate": "pgd(steps=2)", "test_n": 60, "validation_attack": "pgd(steps=2)",
    "duplicate": {"scheme": "uniform", "dose": 0.3}, "optimizer": "adamw", "lr": 0.01, "targets": [0.2, 0.99],
}  # fmt: skip


def test_calibration_by_hand():
    # Two answers with chance 3/4: one right, one wrong. Off by 3/4 - 1/2; the loss is the mean of -log 3/4 and -log 1/4.
    logits = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0]])
    ece, nll = calibration(logits, torch.tensor([0, 1]))
    assert ece == pytest.approx(0.25)
    assert nll == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)


def test_a_cell_is_trained_measured_and_not_run_twice(tmp_path):
    order = CellOrder(
        key="k",
        settings={**SETTINGS, "seed": 1},
        folder=str(tmp_path),
        measure={"metrics_on": 40},
        device="cpu",
        threads=1,
    )
    result = run_cell(order)
    metrics = result.measured[0].metrics
    assert result.status == "complete"
    copies = result.readings["copies"]
    assert copies == 150  # 0.3 of 500 entries, 350 of which are originals
    assert (metrics["samples"], metrics["unique_samples"], metrics["steps"]) == (500, 350, 16)
    assert 0 <= metrics["robust_accuracy"] <= metrics["clean_accuracy"] <= 1
    assert metrics["worst_class_clean"] <= metrics["clean_accuracy"]
    assert metrics["memorisation_gap"] == pytest.approx(metrics["train_accuracy"] - metrics["clean_accuracy"])
    difference = metrics["duplicated_accuracy"] - metrics["single_accuracy"]
    assert metrics["duplicated_minus_single"] == pytest.approx(difference)
    assert {"ece", "nll", "best_minus_last_robust", "steps_to_clean_20", "samples_to_robust_99"} <= set(metrics)
    assert not list(tmp_path.rglob("*.safetensors"))  # weights are not kept unless asked for
    record = (tmp_path / "train" / "record.json").read_bytes()
    torch.manual_seed(0)
    keep = order.model_copy(update={"folder": str(tmp_path / "again"), "keep_weights": True})
    again = run_cell(keep).measured[0].metrics
    timed = {"seconds"}
    assert {k: v for k, v in again.items() if k not in timed} == {k: v for k, v in metrics.items() if k not in timed}
    assert list((tmp_path / "again").rglob("last.safetensors"))
    assert (tmp_path / "train" / "record.json").read_bytes() == record


def test_data_are_told_apart_by_what_they_hold():
    registry = load_plugins()
    plain = data_fingerprint({"data": "builtin:digits"}, registry)
    assert data_fingerprint({"data": "builtin:digits", "lr": 1.0}, registry) == plain
    assert data_fingerprint({"data": "builtin:digits", "test_split": "train"}, registry) != plain
