"""The engine called as a library user would: from a model, images and stages, without a configuration."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from robustdup.data.dataset import from_tensors
from robustdup.errors import UserError
from robustdup.evaluation.context import EngineOptions
from robustdup.evaluation.engine import evaluate_model, save_result
from robustdup.evaluation.record import RunInfo
from robustdup.evaluation.stages import plan_stages
from robustdup.plugins import load_plugins
from robustdup.records import Outcome, load_record, load_samples
from robustdup.threat import ThreatModel
from tests.raising import raises

THREAT = ThreatModel("Linf", "0.1")
OPTIONS = EngineOptions(micro_batch=8, batch_size=16, threads=1)


def stages(*attacks, **options):
    return plan_stages(attacks, load_plugins(), THREAT, **options)


@pytest.fixture
def gap(points):
    return (points[0][:, 0, 0, 0] - 0.5).abs()


def test_a_model_is_evaluated_without_a_configuration(linear, points, gap, tmp_path):
    planned, notes = stages(("fgsm", {}), ("pgd", {"steps": 5}))
    data = from_tensors(*points)
    result = evaluate_model(linear, data, planned, [THREAT], OPTIONS)
    assert notes == []
    assert result.record.robust_accuracy.value == pytest.approx(float((gap > 0.1).double().mean()))
    assert torch.equal(result.outcomes == Outcome.BROKEN, gap < 0.1)
    assert torch.equal(result.outcomes == Outcome.ROBUST, gap > 0.1)
    assert THREAT.distance(points[0], result.adv_images).max() <= 0.1 + THREAT.tolerance
    assert (result.record.config, result.record.run_id, result.record.model.spec) == ({}, "in-memory", "python")
    save_result(tmp_path, result, data)
    assert load_record(tmp_path) == result.record
    assert set(load_samples(tmp_path)["outcome"].to_pylist()) == {"correct", "broken", "robust"}


def test_a_sample_that_is_wrong_already_is_not_attacked_and_a_failed_attack_leaves_samples_undecided(
    linear, points, gap
):
    def fails(model, images, labels, threat, *, rng):
        raise RuntimeError("no")

    (stage,), _ = stages(("fgsm", {}))
    from dataclasses import replace

    broken_stage = replace(stage, spec=replace(stage.spec, function=fails, name="fails"))
    images, labels = points
    labels = labels.clone()
    labels[0] = 1
    result = evaluate_model(linear, from_tensors(images, labels), [broken_stage], [THREAT], OPTIONS)
    assert result.outcomes[0] == Outcome.NOT_ATTACKED
    assert (result.outcomes[1:] == Outcome.UNDECIDED).all()
    assert result.record.status == "failed"


def test_calls_are_kept_where_a_folder_is_named_and_taken_from_there(linear, points, tmp_path):
    planned, _ = stages(("pgd", {"steps": 3}))
    about, data = RunInfo(state=tmp_path), from_tensors(*points)
    first = evaluate_model(linear, data, planned, [THREAT], OPTIONS, about=about)
    calls = list((tmp_path / "eps-0.1").rglob("*.safetensors"))
    linear.rows = 0
    again = evaluate_model(linear, data, planned, [THREAT], OPTIONS, about=about)
    assert len(calls) == 3
    assert torch.equal(first.adv_images, again.adv_images)
    assert again.record.passes == first.record.passes


def test_mistakes_are_named_before_anything_runs(linear, points):
    with raises("unknown-attack", UserError, "pgd"):
        stages(("pgdd", {}))
    with raises("bad-option", UserError, "autoattack", "bf16"):
        stages(("autoattack", {}), precision="bf16")
    assert (
        len(stages(("autoattack", {}), precision="tf32")[0]) == 4
    )  # as torch computes convolutions by default on a GPU
    with raises("not-a-module", UserError, "function"):
        evaluate_model(lambda images: images, from_tensors(*points), [], [THREAT])


def test_the_engine_knows_no_configuration_of_a_run():
    code = (
        "import sys, robustdup.evaluation.engine, robustdup.evaluation.stages, robustdup.evidence.recheck\n"
        "print([name for name in ('robustdup.config.evaluation', 'robustdup.config.training') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
