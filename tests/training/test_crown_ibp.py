"""Certified training by linear bounds: against the bounds of the certificates and closed forms, and what it minimises."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustdup import SampleRng, ThreatModel, UserError
from robustdup.certification.crown import interval_bounds, margin_rows, pull_back
from robustdup.certification.graph import read_network
from robustdup.certification.region import Region
from robustdup.models.attack_copy.compile import TrainedModel
from robustdup.plugins import Registry
from robustdup.training import register
from robustdup.training.curriculum import make_curriculum
from robustdup.training.inner import prepare_inner
from robustdup.training.objectives import find_objective
from robustdup.training.objectives.crown_ibp import crown_ibp
from robustdup.training.objectives.intervals import Tape, ibp, interval_logits
from tests.certification.test_bounds import Plain, Residual, least_seen, network
from tests.raising import raises

LABELS = torch.arange(4) % 3


def attack(norm="Linf", eps="0.02", share=1.0, schedule=None):
    threat = ThreatModel(norm, eps)
    inner = prepare_inner("pgd", Registry(), threat)
    inner.curriculum = make_curriculum(schedule, None, threat, attack="pgd", objective="crown_ibp")
    return inner.batch(SampleRng(0, torch.arange(4)), share=share)


def objective(model, images, labels, *, at=None, **options):
    return crown_ibp(model, images, labels, attack=at or attack(), rng=SampleRng(0, torch.arange(4)), **options)


@pytest.mark.parametrize("kind", [Residual, Plain])
def test_linear_bounds_are_those_of_the_certificates_and_below_what_attacks_find(kind):
    model, images, labels = network(kind, 2)
    tape, rows, region = Tape(), margin_rows(labels, 3), Region(images, "Linf", 0.02)
    box = interval_logits(model, images, 0.02, tape)
    linear = pull_back(tape.operations, box.number, rows, tape.bounds, region)
    operations = read_network(model, images)
    expected = pull_back(operations, len(operations) - 1, rows, interval_bounds(operations, region), region)
    assert torch.allclose(linear, expected, rtol=1e-3, atol=1e-3)
    assert bool(
        (linear.amin(1) <= least_seen(model, images, labels, ThreatModel("Linf", "0.02"), tries=25) + 1e-4).all()
    )


def test_the_loss_of_a_linear_model_is_the_closed_form():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    images = 0.3 + 0.4 * torch.rand(4, 1, 2, 2)
    weight, logits = model[1].weight, model(images)
    reach = 0.02 * (weight[LABELS].unsqueeze(1) - weight).abs().sum(
        2
    )  # of the difference of two logits: intervals lose more
    by_hand = 0.25 * F.cross_entropy(logits, LABELS, reduction="none") + 0.75 * F.cross_entropy(
        logits + reach, LABELS, reduction="none"
    )
    loss, metrics = objective(model, images, LABELS, kappa=0.25, beta=1.0)
    assert torch.allclose(loss, by_hand, atol=1e-6)
    assert torch.equal(metrics["correct"], ((logits + reach).argmax(1) == LABELS).float())
    (gradient,) = torch.autograd.grad(loss.sum(), weight, retain_graph=True)
    (expected,) = torch.autograd.grad(by_hand.sum(), weight)
    assert torch.allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("kind", [Residual, Plain])
def test_at_full_radius_and_beta_0_it_is_ibp_and_gradients_are_those_of_differences(kind):
    model, images, labels = network(kind, 3)
    model.requires_grad_()
    rng = SampleRng(0, torch.arange(4))
    loss, _ = objective(model, images, labels, beta=0.0)
    assert torch.allclose(loss, ibp(model, images, labels, attack=attack(), rng=rng)[0], rtol=1e-4, atol=1e-5)
    model.double()
    total = objective(model, images.double(), labels, beta=1.0)[0].sum()
    chosen = [parameter for parameter in model.parameters() if parameter.ndim > 1 and parameter.numel() > 2]
    gradients = torch.autograd.grad(total, chosen)
    for parameter, gradient in zip(chosen, gradients, strict=True):
        place, ends = int(gradient.abs().argmax()), []
        with torch.no_grad():
            for way in (1e-6, -2e-6):
                parameter.view(-1)[place] += way
                ends.append(float(objective(model, images.double(), labels, beta=1.0)[0].sum()))
            parameter.view(-1)[place] += 1e-6
        assert float(gradient.flatten()[place]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-3)


def test_radius_clean_term_and_linear_share_follow_the_schedule():
    model, images, labels = network(Plain, 4)
    clean = F.cross_entropy(model(images), labels, reduction="none")

    def at(share, **options):
        return objective(model, images, labels, at=attack(share=share, schedule="0:0,0.5:0.02"), kappa=0.0, **options)[
            0
        ]

    assert torch.allclose(at(0.0), clean, atol=1e-2)
    assert torch.equal(at(0.6), at(1.0))
    assert bool((at(1.0, beta=0.0) > at(1.0, beta=1.0)).all())  # intervals are looser
    assert bool((at(1.0, beta=1.0) > at(0.25, beta=1.0)).all())


def test_a_network_that_is_dead_gives_no_nan_and_rows_are_counted():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([-1.0, 0.0, 1.0]))
    trained = TrainedModel(model)
    loss, _ = objective(trained, torch.rand(4, 1, 2, 2), LABELS % 2, beta=1.0)
    loss.sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())
    assert (trained.forward_rows, trained.backward_rows) == (12 + 4, 12 + 4)


def test_what_has_no_bounds_is_refused_in_words():
    images = torch.rand(4, 1, 2, 2)
    for layer, name in ((nn.Sigmoid(), "Sigmoid"), (nn.SiLU(), "SiLU"), (nn.Softplus(), "Softplus")):
        with raises("not-boundable", UserError, name):
            objective(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), layer), images, LABELS)
    with raises("bad-norm", UserError, "--norm Linf"):
        objective(nn.Flatten(), images, LABELS, at=attack("L2"))
    registry = Registry()
    register(registry)
    for options in ("kappa=2", "beta=-1"):
        with raises("bad-value", UserError, options.partition("=")[0]):
            find_objective(f"crown_ibp({options})", registry)
