"""One real cell, small; and what is measured on it against numbers that are known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from robustdup_study.answers import answers_to_test_images, calibration, of_class_shares
from robustdup_study.cell import _last_evaluation, data_fingerprint, run_cell
from robustdup_study.cell_record import CellOrder

from robustdup.plugins import load_plugins

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
    metrics = result.measurements[0].metrics
    assert result.status == "complete"
    copies = result.duplication["copies"]
    assert copies == 150  # 0.3 of 500 entries, 350 of which are originals
    assert (metrics["samples"], metrics["unique_samples"], metrics["steps"]) == (500, 350, 16)
    assert 0 <= metrics["robust_accuracy"] <= metrics["clean_accuracy"] <= 1
    assert metrics["worst_class_clean"] <= metrics["clean_accuracy"]
    assert metrics["memorisation_gap"] == pytest.approx(metrics["train_accuracy"] - metrics["clean_accuracy"])
    difference = metrics["duplicated_accuracy"] - metrics["single_accuracy"]
    assert metrics["duplicated_minus_single"] == pytest.approx(difference)
    samples = result.samples
    assert len(samples["index"]) == len(set(samples["index"])) == 80  # 40 with and 40 without copies
    assert sorted(copies > 0 for copies in samples["copies"]) == [False] * 40 + [True] * 40
    for name, wanted in (("duplicated", True), ("single", False)):
        mine = [i for i in range(80) if (samples["copies"][i] > 0) == wanted]
        assert metrics[f"{name}_accuracy"] == sum(samples["correct"][i] for i in mine) / 40
        assert metrics[f"{name}_robust"] == sum(samples["robust"][i] for i in mine) / 40
    assert all(held <= right for held, right in zip(samples["robust"], samples["correct"], strict=True))
    assert {"ece", "nll", "best_minus_last_robust", "steps_to_clean_20", "samples_to_robust_99"} <= set(metrics)
    answers = result.answers
    assert {name: len(text) for name, text in answers.items()} == {"clean_accuracy": 60, "robust_accuracy": 60}
    for name, text in answers.items():
        assert text.count("1") / 60 == pytest.approx(metrics[name])
    pairs = zip(answers["robust_accuracy"], answers["clean_accuracy"], strict=True)
    assert all(held <= right for held, right in pairs)
    assert not list(tmp_path.rglob("*.safetensors"))  # weights are not kept unless asked for
    torch.manual_seed(0)
    keep = order.model_copy(update={"folder": str(tmp_path / "again"), "keep_weights": True})
    again = run_cell(keep).measurements[0].metrics
    timed = {name for name in metrics if name.startswith("seconds")}
    assert {k: v for k, v in again.items() if k not in timed} == {k: v for k, v in metrics.items() if k not in timed}
    assert list((tmp_path / "again").rglob("last.safetensors"))
    # Where the result was lost though the weights had been dropped, the cell runs again.
    lost = run_cell(order).measurements[0].metrics
    assert {k: v for k, v in lost.items() if k not in timed} == {k: v for k, v in metrics.items() if k not in timed}


def test_class_shares_and_the_accuracy_without_them_by_hand():
    """Three of four entries are of class 0: its logit loses log 3 against that of class 1."""
    entries = SimpleNamespace(labels=torch.tensor([0, 0, 0, 1]), weights=None)
    logits = torch.tensor([[1.0, 0.0], [1.2, 0.0], [0.0, 1.0]])
    found = of_class_shares(logits, torch.tensor([1, 0, 1]), entries)
    assert found == {"class_imbalance": pytest.approx(0.25), "prior_adjusted_accuracy": 1.0}
    weighted = SimpleNamespace(labels=torch.tensor([0, 1]), weights=torch.tensor([1.5, 0.5]))
    assert of_class_shares(logits, torch.tensor([1, 0, 1]), weighted) == found


def test_answers_are_those_of_the_last_checkpoint_also_where_it_is_the_best_one(tmp_path):
    """Then it was evaluated once, in the folder of the other."""
    both = [SimpleNamespace(name=name, evaluation="evaluation-best") for name in ("best", "last")]
    assert _last_evaluation(SimpleNamespace(checkpoints=both), tmp_path) == tmp_path / "evaluation-best"
    none = [SimpleNamespace(name="last", evaluation=None)]
    assert _last_evaluation(SimpleNamespace(checkpoints=none), tmp_path) is None
    right = torch.tensor([True, False, True])
    assert answers_to_test_images(right, None) == {"clean_accuracy": "101"}


def test_data_are_told_apart_by_what_they_hold():
    registry = load_plugins()
    plain = data_fingerprint({"data": "builtin:digits"}, registry)
    assert data_fingerprint({"data": "builtin:digits", "lr": 1.0}, registry) == plain
    assert data_fingerprint({"data": "builtin:digits", "test_split": "train"}, registry) != plain


def test_cells_of_a_seed_share_weights_subset_and_held_out_images_and_clean_accuracy_may_be_of_more_images(tmp_path):
    def run(name, measure=None, **settings):
        short = {**SETTINGS, "sample": 300, "n": None, "epochs": None, "steps": 2, "evaluate": None, "seed": 1}
        order = CellOrder(
            key=name, settings={**short, **settings}, folder=str(tmp_path / name), measure=measure or {"metrics_on": 300},
            device="cpu", threads=1,
        )  # fmt: skip
        return run_cell(order)

    plain = run("plain", duplicate={})
    double = run("double", duplicate={"scheme": "uniform", "dose": 0.5}, objective="pgd_at", attack="pgd(steps=1)")
    other = run("other", duplicate={}, seed=2)
    for key in ("initial_fingerprint", "data"):
        assert plain.training[key] == double.training[key]
    assert set(plain.samples["index"]) == set(double.samples["index"]) != set(other.samples["index"])
    assert plain.training["initial_fingerprint"] != other.training["initial_fingerprint"]
    assert "clean_accuracy" in plain.measurements[0].metrics
    more = run("more", duplicate={}, measure={"metrics_on": 0, "clean_on": 137}).measurements[0].metrics
    assert more["clean_accuracy"] * 137 == pytest.approx(round(more["clean_accuracy"] * 137), abs=1e-9)
    assert "train_accuracy" not in more


def test_test_images_that_are_near_a_training_image_are_left_out():
    if not load_plugins().duplicate_finders:
        pytest.skip("no plugin here finds near-duplicates")
    from types import SimpleNamespace

    from robustdup_study.cell import without_near

    from robustdup.data.batches import TrainingSet

    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(24, 3, 8, 8, generator=draw)
    images = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    trained, tested = images[:12], torch.cat([images[:3] * 0.98, images[12:]])
    data = SimpleNamespace(
        entries=TrainingSet((trained * 255).round().to(torch.uint8), torch.zeros(12, dtype=torch.long))
    )
    right = torch.tensor([True] * 3 + [True] * 8 + [False] * 4)
    assert without_near(right, tested, data, load_plugins()) == pytest.approx(
        8 / 12
    )  # without the three that were trained on
    assert without_near(right, tested[:, :, :8, :8], data, load_plugins()) is None  # too small to tell
