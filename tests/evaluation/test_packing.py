"""What native attacks run on: shapes that give the same bits, and a micro-batch that a resumed run keeps."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from robustdup.attacks.passes import Count, Passes, in_micro_batches
from robustdup.evaluation import micro_batch as module
from robustdup.evaluation.calls import PlannedStage
from robustdup.evaluation.clean import CleanAnswers
from robustdup.evaluation.context import Context, EngineOptions
from robustdup.evaluation.micro_batch import Measured, choose_packing, other_sizes, same_bits
from robustdup.evaluation.referee import judge_images
from robustdup.plugins import AttackSpec
from robustdup.records.sealed import read_sealed


class Crowd(nn.Module):
    """Logits that depend on how many rows share a batch."""

    def forward(self, images):
        mean = images.flatten(1).mean(dim=1)
        return torch.stack([mean, 1 - mean + 1e-4 * (images.shape[0] > 16)], dim=1)


class Pairs(nn.Module):
    """A gradient, of equal logits, that depends on whether the number of rows is even."""

    def forward(self, images):
        mean = images.flatten(1).mean(dim=1)
        uneven = 1e-4 * (mean - mean.detach()) * (images.shape[0] % 2)
        return torch.stack([mean, 1 - mean + uneven], dim=1)


def pool_stage(cost=(8000, 2000)) -> PlannedStage:
    spec = AttackSpec("pool", lambda *_, rng: None, ("Linf",), batching="pool", cost=cost)
    return PlannedStage(spec, {}, {})


def set_up(model, points, **options):
    images, labels = points
    original = Passes(model, 32)
    clean = CleanAnswers(judge_images(original, images, labels), 2, randomized=False)
    context = Context(original, model, torch.device("cpu"), 128, 32, draws=1, seed=0)
    return context, EngineOptions(**options), images, clean


def test_only_shapes_that_give_the_same_bits_are_used(linear, points):
    images, _ = points
    sparse = (20, 24, 28, 32, 40, 48, 56)
    longer = (65, 66, 68, 72, 80)
    assert same_bits(linear, images, 64) == (*range(1, 17), *sparse, *longer)
    assert same_bits(Crowd(), images, 64) == (*sparse, *longer)
    assert same_bits(Crowd(), images, 16) == tuple(range(1, 16))
    assert same_bits(Pairs(), images, 16) == (2, 4, 6, 8, 10, 12, 14, 18, 20)


def test_no_more_than_a_fifth_of_a_batch_is_padding_whatever_is_left_over(linear):
    model = Passes(linear, 256, sizes=other_sizes(256))
    for rows in range(1, 257):
        model.count = Count()
        model(torch.zeros(rows, 1, 1, 1))
        assert model.count.padding <= rows / 4 * (rows > 16)


def test_the_last_micro_batch_is_padded_to_the_smallest_shape_that_holds_it(linear, points):
    images, _ = points
    model = Passes(linear, 16, sizes=(4, 8))
    plain = Passes(linear, 16)
    for rows, padding in ((16, 0), (17, 3), (21, 3), (25, 7), (3, 1)):
        model.count, linear.calls[:] = Count(), []
        logits = model(images[:rows])
        assert torch.equal(logits, plain(images[:rows]))
        assert (model.count.forward, model.count.padding) == (rows, padding)


def test_few_rows_that_are_left_over_share_the_last_micro_batch(linear, points):
    images, _ = points
    model, plain = Passes(linear, 16, sizes=(4, 17, 20)), Passes(linear, 16)
    for rows, made in ((20, [20]), (19, [20]), (17, [17]), (36, [16, 20]), (21, [16, 16]), (37, [16, 16, 16])):
        linear.calls[:] = []
        logits = model(images[:rows])
        assert linear.calls == made
        assert torch.equal(logits, plain(images[:rows]))
        assert [part.stop - part.start for part in in_micro_batches(model, rows)] == [
            size - (index == len(made) - 1) * (sum(made) - rows) for index, size in enumerate(made)
        ]
    model.micro_batch = 8  # halved, where memory ran out: longer calls are not made any more
    linear.calls[:] = []
    model(images[:20])
    assert linear.calls == [8, 8, 4]
    assert other_sizes(32, largest=39)[-4:] == [28, 33, 34, 36]
    assert max(other_sizes(32)) < 32


def test_a_resumed_run_keeps_the_shapes_that_it_was_started_with(linear, points, tmp_path, monkeypatch):
    slow = [Measured(32, 0.01, 0.03), Measured(64, 0.002, 0.005)]
    monkeypatch.setattr(module, "choose_micro_batch", lambda *_, candidates, **__: (64 if candidates else 32, slow))
    context, options, images, clean = set_up(linear, points)
    monkeypatch.setattr(module, "CANDIDATES", {"cpu": (16, 32)})
    monkeypatch.setattr(module, "worth_filling", lambda *_: 8)
    choose_packing(context, options, images, clean, [pool_stage()], tmp_path)
    assert (context.micro_batch, context.sizes, context.seconds) == (
        64,
        tuple(other_sizes(64, largest=80)),
        (0.002, 0.005),
    )
    assert context.longest == pytest.approx(40 * (6000 * 0.002 + 2000 * 0.005))
    (saved,) = tmp_path.rglob("*.json")
    assert json.loads(read_sealed(saved)) == {
        "micro_batch": 64,
        "sizes": other_sizes(64, largest=80),
        "fill": 8,
        "worth_compiling": True,
    }
    again, options, images, clean = set_up(linear, points)
    monkeypatch.setattr(module, "choose_micro_batch", lambda *_, **__: pytest.fail("measured again"))
    choose_packing(again, options, images, clean, [pool_stage()], tmp_path)
    assert (again.micro_batch, again.fill, again.sizes) == (64, 8, tuple(other_sizes(64, largest=80)))


def test_what_is_given_is_kept_and_a_short_run_is_not_measured_further(linear, points):
    context, options, images, clean = set_up(linear, points, micro_batch=32, batch_size=8)
    choose_packing(context, options, images, clean, [pool_stage()], None)
    assert (context.micro_batch, context.sizes, context.seconds, context.fill) == (32, (), None, 32)
    context, options, images, clean = set_up(linear, points)
    choose_packing(context, options, images, clean, [pool_stage(cost=(2, 1))], None)
    assert (context.micro_batch, context.sizes) == (32, ())
    assert context.longest < 5


def test_a_model_without_gradients_and_stages_without_a_pool_are_left_alone(linear, points):
    class NoGradient(nn.Module):
        def forward(self, images):
            return linear(images).detach()

    context, options, images, clean = set_up(NoGradient().eval(), points)
    choose_packing(context, options, images, clean, [pool_stage()], None)
    assert (context.micro_batch, context.seconds) == (32, None)
    context, options, images, clean = set_up(linear, points)
    spec = AttackSpec("batch", lambda *_, rng: None, ("Linf",))
    assert choose_packing(context, options, images, clean, [PlannedStage(spec, {}, {})], None) == []
    assert context.attack_copy is None


def test_a_run_is_as_long_as_the_stages_that_most_runs_make(linear, points, monkeypatch):
    seen = [Measured(32, 0.001, 0.003)]
    monkeypatch.setattr(module, "choose_micro_batch", lambda *_, **__: (32, seen))
    context, options, images, clean = set_up(linear, points)
    fifth, masked = replace(pool_stage((50, 10)), take=0.2), replace(pool_stage(), when="masked")
    choose_packing(context, options, images, clean, [pool_stage((20, 20)), fifth, masked], None)
    assert context.longest == pytest.approx(40 * (20 * 0.003 + 0.2 * (40 * 0.001 + 10 * 0.003)))


def test_few_samples_in_many_looks_are_worth_smaller_calls_though_the_run_is_short_by_rows(linear, points, monkeypatch):
    asked = []

    def measured(*_, candidates, **__):
        asked.append(candidates)
        return 32, [Measured(32, 0.0001, 0.0003)]

    monkeypatch.setattr(module, "choose_micro_batch", measured)
    monkeypatch.setattr(module, "worth_filling", lambda *_: 8)
    for take, passes, sizes in ((0.02, 1000, tuple(other_sizes(32, largest=40))), (0.02, 300, ())):
        context, options, images, clean = set_up(linear, points)
        choose_packing(context, options, images, clean, [replace(pool_stage((2 * passes, passes)), take=take)], None)
        assert context.longest == pytest.approx(
            0.8 * passes * 0.0004
        )  # of 0.8 samples; in whole calls 40 times as long
        assert (context.micro_batch, context.sizes) == (32, sizes)
    assert not any(asked)  # the micro-batch, on which bits hang, is looked for in long runs alone


def test_calls_are_filled_up_to_where_rows_become_no_cheaper(linear, monkeypatch):
    seconds = {1: 10.0, 2: 6.0, 4: 3.0, 8: 1.1, 16: 1.0, 32: 1.3}
    monkeypatch.setattr(module, "measure", lambda model, image, rows, _: Measured(rows, seconds[rows], seconds[rows]))
    assert module.worth_filling(linear, torch.zeros(1, 4, 4), 32, (1, 2, 3, 4, 6, 8, 12, 16)) == 8
    assert module.worth_filling(linear, torch.zeros(1, 4, 4), 32, (3, 4, 6)) == 32
    assert module.worth_filling(linear, torch.zeros(1, 4, 4), 32, ()) == 32


@pytest.mark.parametrize("how", ["randomized", "batch_dependent", "remembers", "stand_in"])
def test_nothing_is_asked_ahead_of_a_model_that_does_not_repeat_itself(linear, points, how, monkeypatch):
    monkeypatch.setattr(module, "choose_micro_batch", lambda *_, **__: (32, [Measured(32, 0.1, 0.3)]))
    context, options, images, clean = set_up(linear, points)
    if how == "stand_in":
        context.stand_in = True
    else:
        clean = replace(clean, **{how: True})
    choose_packing(context, options, images, clean, [pool_stage()], None)
    assert context.fill == 0
