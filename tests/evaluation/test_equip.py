"""What native attacks run on: shapes that give the same bits, and a micro-batch that a resumed run keeps."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from robustdup.attacks.passes import Count, Passes
from robustdup.config import EvalConfig
from robustdup.evaluation import equip as module
from robustdup.evaluation.bench import Bench, CleanVerdict
from robustdup.evaluation.calls import PlannedStage
from robustdup.evaluation.equip import equip, same_bits
from robustdup.evaluation.referee import judge_images
from robustdup.evaluation.sizing import Measured
from robustdup.plugins import AttackSpec


class Crowd(nn.Module):
    """Logits that depend on how many rows share a batch."""

    def forward(self, images):
        mean = images.flatten(1).mean(dim=1)
        return torch.stack([mean, 1 - mean + 1e-4 * (images.shape[0] > 16)], dim=1)


def pool_stage(cost=(8000, 2000)) -> PlannedStage:
    spec = AttackSpec("pool", lambda *_, rng: None, ("Linf",), batching="pool", cost=cost)
    return PlannedStage(spec, {}, {})


def set_up(model, points, **config):
    images, labels = points
    judged = Passes(model, 32)
    clean = CleanVerdict(judge_images(judged, images, labels), 2, randomized=False)
    bench = Bench(judged, model, torch.device("cpu"), 128, 32, draws=1, seed=0)
    return bench, EvalConfig(**config), images, clean


def test_only_shapes_that_give_the_same_bits_are_used(linear, points):
    images, _ = points
    assert same_bits(linear, images, 64) == (8, 16, 32)
    assert same_bits(Crowd(), images, 64) == (32,)
    assert same_bits(Crowd(), images, 16) == (8,)


def test_the_last_micro_batch_is_padded_to_the_smallest_shape_that_holds_it(linear, points):
    images, _ = points
    model = Passes(linear, 16, smaller=(4, 8))
    plain = Passes(linear, 16)
    for rows, padding in ((16, 0), (17, 3), (21, 3), (25, 7), (3, 1)):
        model.count, linear.calls[:] = Count(), []
        logits = model(images[:rows])
        assert torch.equal(logits, plain(images[:rows]))
        assert (model.count.forward, model.count.padding) == (rows, padding)


def test_a_resumed_run_keeps_the_shapes_that_it_was_started_with(linear, points, tmp_path, monkeypatch):
    slow = [Measured(32, 0.01, 0.03), Measured(64, 0.002, 0.005)]
    monkeypatch.setattr(module, "choose_micro_batch", lambda *_, candidates, **__: (64 if candidates else 32, slow))
    bench, config, images, clean = set_up(linear, points)
    monkeypatch.setattr(module, "CANDIDATES", {"cpu": (16, 32)})
    equip(bench, config, images, clean, [pool_stage()], tmp_path)
    assert (bench.micro_batch, bench.smaller, bench.seconds) == (64, (8, 16, 32), (0.002, 0.005))
    assert bench.longest == pytest.approx(40 * (6000 * 0.002 + 2000 * 0.005))
    (saved,) = tmp_path.rglob("*.json")
    assert json.loads(saved.read_text()) == {"micro_batch": 64, "smaller": [8, 16, 32]}
    again, config, images, clean = set_up(linear, points)
    monkeypatch.setattr(module, "choose_micro_batch", lambda *_, **__: pytest.fail("measured again"))
    equip(again, config, images, clean, [pool_stage()], tmp_path)
    assert (again.micro_batch, again.smaller) == (64, (8, 16, 32))


def test_what_is_given_is_kept_and_a_short_run_is_not_measured_further(linear, points):
    bench, config, images, clean = set_up(linear, points, micro_batch=32, batch_size=8)
    equip(bench, config, images, clean, [pool_stage()], None)
    assert (bench.micro_batch, bench.smaller, bench.seconds) == (32, (), None)
    bench, config, images, clean = set_up(linear, points)
    equip(bench, config, images, clean, [pool_stage(cost=(2, 1))], None)
    assert (bench.micro_batch, bench.smaller) == (32, ())
    assert bench.longest < 5


def test_a_model_without_gradients_and_stages_without_a_pool_are_left_alone(linear, points):
    class NoGradient(nn.Module):
        def forward(self, images):
            return linear(images).detach()

    bench, config, images, clean = set_up(NoGradient().eval(), points)
    equip(bench, config, images, clean, [pool_stage()], None)
    assert (bench.micro_batch, bench.seconds) == (32, None)
    bench, config, images, clean = set_up(linear, points)
    spec = AttackSpec("batch", lambda *_, rng: None, ("Linf",))
    assert equip(bench, config, images, clean, [PlannedStage(spec, {}, {})], None) == []
    assert bench.prepared is None


def test_a_run_is_as_long_as_the_stages_that_most_runs_make(linear, points, monkeypatch):
    seen = [Measured(32, 0.001, 0.003)]
    monkeypatch.setattr(module, "choose_micro_batch", lambda *_, **__: (32, seen))
    bench, config, images, clean = set_up(linear, points)
    fifth, masked = replace(pool_stage((50, 10)), take=0.2), replace(pool_stage(), when="masked")
    equip(bench, config, images, clean, [pool_stage((20, 20)), fifth, masked], None)
    assert bench.longest == pytest.approx(40 * (20 * 0.003 + 0.2 * (40 * 0.001 + 10 * 0.003)))
