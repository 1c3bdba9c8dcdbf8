from __future__ import annotations

import pytest
import torch

from robustdup.attacks.passes import Passes
from robustdup.evaluation.referee import BALL, BOX, NOT_FINITE, join, judge, judge_images
from robustdup.threat import ThreatModel

THREAT = ThreatModel("Linf", "0.1")


def shifted(images, labels, size):
    return images + torch.where(labels == 1, -size, size).view(-1, 1, 1, 1)


def test_an_honest_example_within_the_ball_counts_exactly_where_the_optimum_says_so(linear, points):
    images, labels = points
    verdict = judge(Passes(linear, 8), images, shifted(images, labels, 0.1), labels, THREAT)
    expected = (images[:, 0, 0, 0] - 0.5).abs() < 0.1
    assert torch.equal(verdict.is_adv, expected)
    assert 0 < int(expected.sum()) < len(labels)
    assert not verdict.violation.any()


def test_outside_the_ball_gains_nothing_and_is_reported(linear, points):
    images, labels = points
    honest = judge(Passes(linear, 8), images, shifted(images, labels, 0.1), labels, THREAT)
    cheat = judge(Passes(linear, 8), images, shifted(images, labels, 0.101), labels, THREAT)
    assert torch.equal(cheat.is_adv, honest.is_adv)
    assert (cheat.violation == BALL).all()
    assert cheat.excess == pytest.approx(torch.full((40,), 0.001, dtype=torch.float64), abs=1e-6)
    assert THREAT.distance(images, cheat.adv_images).max() <= 0.1 + THREAT.tolerance


def test_a_different_image_of_the_wrong_class_is_projected(linear, points):
    images, labels = points
    other = torch.where(labels == 1, 0.0, 1.0).view(-1, 1, 1, 1).expand_as(images)
    verdict = judge(Passes(linear, 8), images, other, labels, THREAT)
    honest = judge(Passes(linear, 8), images, shifted(images, labels, 0.1), labels, THREAT)
    assert torch.equal(verdict.is_adv, honest.is_adv)
    assert verdict.raw_is_adv.all()


def test_nan_and_box_are_violations_and_nan_pixels_count_as_unchanged(linear, points):
    images, labels = points
    nan = judge(Passes(linear, 8), images, torch.full_like(images, float("nan")), labels, THREAT)
    assert not nan.is_adv.any()
    assert (nan.violation == NOT_FINITE).all()
    edge = torch.full((2, 1, 4, 4), 0.95)
    out = judge(Passes(linear, 8), edge, edge + 0.1, torch.ones(2, dtype=torch.int64), THREAT)
    assert (out.violation == BOX).all()
    assert float(out.adv_images.max()) <= 1.0


def test_tolerance_is_not_a_violation(linear, points):
    images, labels = points
    verdict = judge(Passes(linear, 8), images, shifted(images.double(), labels, 0.1 + 5e-7).float(), labels, THREAT)
    assert not verdict.violation.any()


def test_minimum_norm_results_outside_eps_are_no_violation_and_do_not_count(linear, points):
    images, labels = points
    size = (images[:, :1, :1, :1] - 0.5).abs() + 0.001
    nearest = images + torch.where(labels.view(-1, 1, 1, 1) == 1, -size, size)
    verdict = judge(Passes(linear, 8), images, nearest, labels, THREAT, bounded=False)
    assert not verdict.violation.any()
    assert verdict.raw_is_adv.all()
    assert torch.equal(verdict.is_adv, (images[:, 0, 0, 0] - 0.5).abs() + 0.001 <= 0.1 + 1e-6)


def test_company_and_order_do_not_change_a_bit(points):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 5)
    ).eval()
    images, labels = torch.rand(50, 1, 4, 4), torch.randint(0, 5, (50,))
    whole = judge_images(Passes(model, 16), images, labels)
    order = torch.randperm(50)[:23]
    part = judge_images(Passes(model, 16), images[order], labels[order])
    assert torch.equal(part.margin, whole.margin[order])


def test_logits_that_are_not_finite_are_wrong_answers(points):
    class Nan(torch.nn.Module):
        def forward(self, images):
            return torch.full((len(images), 2), float("nan"))

    images, labels = points
    assert judge_images(Passes(Nan(), 8), images, labels).is_adv.all()


def test_a_randomised_model_is_judged_by_its_share_of_correct_draws_and_leaves_global_state_alone(points):
    class Coin(torch.nn.Module):
        def forward(self, images):
            heads = torch.rand(len(images)) < 0.75
            return torch.stack([heads.float(), 1 - heads.float()], dim=1)

    images, _ = points
    labels = torch.zeros(len(images), dtype=torch.int64)
    state = torch.get_rng_state()
    answers = judge_images(Passes(Coin(), None), images, labels, draws=200, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert float(answers.correct_share.mean()) == pytest.approx(0.75, abs=0.02)
    assert not answers.is_adv.any()
    assert torch.equal(
        answers.correct_share, judge_images(Passes(Coin(), None), images, labels, draws=200, seed=3).correct_share
    )


def test_join_keeps_rows_in_order(linear, points):
    images, labels = points
    adv = shifted(images, labels, 0.1)
    whole = judge(Passes(linear, 8), images, adv, labels, THREAT)
    parts = [judge(Passes(linear, 8), images[s], adv[s], labels[s], THREAT) for s in (slice(0, 7), slice(7, 40))]
    for name, tensor in join(parts).tensors().items():
        assert torch.equal(tensor, whole.tensors()[name])


def test_half_of_the_draws_wrong_is_broken():
    from robustdup.evaluation.referee import Answers

    shares = torch.tensor([0.0, 0.5, 0.55, 1.0], dtype=torch.float64)
    assert Answers(torch.zeros(4), shares, shares).is_adv.tolist() == [True, True, False, False]


def test_isolated_gives_back_the_gradients_that_were_there():
    from robustdup.attacks.isolation import isolated

    model = torch.nn.Linear(2, 2)
    model.weight.grad = torch.full((2, 2), 7.0)
    with isolated(model):
        model(torch.ones(1, 2)).sum().backward()
        assert (model.weight.grad == 1).all()
    assert (model.weight.grad == 7).all()
    assert model.bias.grad is None


def test_a_model_that_takes_no_empty_batch_is_never_given_one():
    class Refuses(torch.nn.Module):
        def forward(self, images):
            assert len(images)
            return images.flatten(1)[:, :3]

    answers = judge_images(Passes(Refuses(), 8), torch.zeros(0, 1, 2, 2), torch.zeros(0, dtype=torch.int64), draws=3)
    assert answers.correct_share.shape == answers.margin.shape == answers.prediction.shape == (0,)
