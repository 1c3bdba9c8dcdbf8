"""Sparse-RS: what a linear model makes known, company, cost, the published schedule, and settings that cannot be."""

import pytest
import torch

from robustdup import Passes, SampleRng, ThreatModel, UserError
from robustdup.attacks.sparse_rs import moved_places, sparse_rs
from tests.attacks.test_minimum_norm import Linear, Stubborn, linear_problem, points, shortest
from tests.raising import raises

__all__ = ["points"]
NORMS = ("L0", "L0-pixels")


def run(norm, eps, model, images, labels, *, index=None, micro_batch=16, **options):
    passes = Passes(model, micro_batch)
    rng = SampleRng(0, torch.arange(len(images)) if index is None else index)
    return sparse_rs(passes, images, labels, ThreatModel(norm, eps), rng=rng, **options), passes


@pytest.mark.parametrize("norm", NORMS)
def test_on_a_linear_model_it_breaks_exactly_what_can_be_broken_and_comes_as_near_as_possible(norm):
    model, images, labels, gap = linear_problem()
    needed = shortest(model, images, gap, norm)
    eps = int(needed.median())
    adv_images, _ = run(norm, eps, model, images, labels, queries=400)
    assert 0 < int((needed <= eps).sum()) < len(images)
    assert torch.equal(model(adv_images).argmax(dim=1) == 1, needed <= eps)
    left = needed > eps
    weight = model.weight.detach().float()
    gains = weight.abs() * torch.where(weight > 0, 1 - images.flatten(1), images.flatten(1))
    gains = gains.view(len(images), 3, -1).sum(dim=1) if norm == "L0-pixels" else gains
    most = gains.sort(dim=1, descending=True).values[:, :eps].sum(dim=1)
    margin = (model(adv_images)[:, 0] - model(adv_images)[:, 1]).detach()
    assert margin[left].tolist() == pytest.approx((gap - most)[left].tolist(), abs=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_a_row_is_bit_equal_in_any_order_and_company(points, norm):
    model, images, labels, index = points
    images = images.expand(-1, 1, -1, -1)
    everyone, _ = run(norm, 4, model, images, labels, index=index, queries=20)
    assert (ThreatModel(norm, 4).distance(images, everyone) <= 4).all()
    assert not torch.equal(everyone, images)
    for rows in (torch.randperm(24, generator=torch.Generator().manual_seed(1)), torch.tensor([17, 2, 9])):
        some, _ = run(norm, 4, model, images[rows], labels[rows], index=index[rows], queries=20)
        assert torch.equal(some, everyone[rows])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [1, 5, 9])  # 9: every pixel of nine changes, none is left to go to
def test_a_survivor_costs_all_queries_and_has_exactly_eps_changed_places_at_bounds(norm, eps):
    images = torch.rand(
        8, 3, 3, 3, generator=torch.Generator().manual_seed(0)
    ).round()  # places are often clean by chance
    adv_images, passes = run(norm, eps, Stubborn(), images, torch.zeros(8, dtype=torch.int64), queries=30)
    assert (passes.count.forward, passes.count.backward) == (8 * 31, 0)
    assert ThreatModel(norm, eps).distance(images, adv_images).tolist() == [eps] * 8
    assert ((adv_images == 0) | (adv_images == 1)).all()


def test_more_places_than_there_are_all_change():
    images = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    adv_images, _ = run("L0", 9, Stubborn(), images, torch.zeros(2, dtype=torch.int64), queries=5)
    assert ThreatModel("L0", 9).distance(images, adv_images).tolist() == [4, 4]


def test_the_share_that_moves_is_the_published_one():
    published = {0: 45, 1: 22, 50: 22, 51: 11, 201: 9, 501: 7, 1001: 5, 2001: 4, 4001: 3, 6001: 3, 8001: 2, 9999: 2}
    assert {query: moved_places(query, 10_000, 150, 0.3) for query in published} == published
    assert [moved_places(query, 100, 150, 0.3) for query in (0, 1, 3, 81)] == [
        45,
        11,
        9,
        2,
    ]  # as after 0, 100, 300, 8,100
    assert moved_places(9000, 10_000, 3, 0.3) == 1


def test_all_places_are_equally_likely_to_be_taken():
    model = Linear(torch.zeros(16), -1.0)  # nothing helps: the first choice stays
    images = torch.full((4000, 1, 4, 4), 0.5)
    adv_images, _ = run("L0", 4, model, images, torch.zeros(4000, dtype=torch.int64), queries=1, micro_batch=4000)
    share = (adv_images != images).float().mean(dim=0).flatten()
    assert float((share - 0.25).abs().max()) < 0.03  # four standard deviations
    assert float((adv_images == 1).float().mean()) == pytest.approx(0.125, abs=0.01)


@pytest.mark.parametrize("options", [{"queries": 0}, {"first_share": 0.0}, {"first_share": 1.5}])
def test_settings_that_cannot_work_are_refused(points, options):
    model, images, labels, _ = points
    with raises("bad-option", UserError, "sparse-rs"):
        run("L0", 4, model, images, labels, **options)
