"""Certified training: bounds against closed forms and those of the certificates, and what the objective minimises."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustdup import SampleRng, ThreatModel, UserError
from robustdup.certification.crown import interval_bounds
from robustdup.certification.graph import read_network
from robustdup.certification.region import Region
from robustdup.models.attack_copy.compile import TrainedModel
from robustdup.models.networks import digits_classifier
from robustdup.plugins import Registry
from robustdup.training import register
from robustdup.training.curriculum import make_curriculum
from robustdup.training.inner import prepare_inner
from robustdup.training.objectives import find_objective
from robustdup.training.objectives.intervals import ibp, interval_logits
from tests.networks import resnet
from tests.raising import raises

LABELS = torch.arange(6) % 3


def images(*shape, seed=0):
    return torch.rand(6, *shape, generator=torch.Generator().manual_seed(seed))


def attack(norm="Linf", eps="0.1", share=1.0, schedule=None):
    threat = ThreatModel(norm, eps)
    inner = prepare_inner("pgd", Registry(), threat)
    inner.curriculum = make_curriculum(schedule, None, threat, attack="pgd", objective="ibp")
    return inner.batch(SampleRng(0, torch.arange(6)), share=share)


@pytest.mark.parametrize("name", ["digits", "resnet"])
def test_bounds_are_those_of_the_certificates_and_hold_the_clean_logits(name):
    torch.manual_seed(0)
    model = digits_classifier().eval() if name == "digits" else resnet(4).eval()
    few = images(1, 8, 8) if name == "digits" else images(3, 8, 8)
    box = interval_logits(model, few, 0.03)
    bounds = interval_bounds(read_network(model, few), Region(few, "Linf", 0.03))
    assert torch.allclose(box.low, bounds.low[-1], rtol=1e-4, atol=1e-4)
    assert torch.allclose(box.high, bounds.high[-1], rtol=1e-4, atol=1e-4)
    assert torch.allclose(box.clean, model(few), atol=1e-5)
    noisy = (few + 0.03 * (2 * torch.rand(few.shape) - 1)).clamp(0, 1)
    logits = model(noisy)
    assert bool(((logits >= box.low - 1e-5) & (logits <= box.high + 1e-5)).all())


def test_batch_norm_takes_and_keeps_the_statistics_of_the_clean_images():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).train()
    other = nn.Sequential(
        *(type(part)(*args) for part, args in zip(model, [(1, 4, 3), (4,), (), (), (4 * 36, 3)], strict=True))
    )
    other.load_state_dict(model.state_dict())
    few = images(1, 8, 8)
    box = interval_logits(model, few, 0.0)
    assert torch.allclose(box.clean, other.train()(few), atol=1e-5)
    assert torch.allclose(box.low, box.high, atol=1e-5)
    assert torch.allclose(box.low, box.clean, atol=1e-4)
    assert torch.equal(model[1].running_mean, other[1].running_mean)
    assert int(model[1].num_batches_tracked) == 1


def test_rows_are_counted_of_the_model_as_the_trainer_gives_it():
    trained = TrainedModel(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    for times in (1, 2):
        box = interval_logits(trained, images(1, 2, 2), 0.1)
        assert (trained.forward_rows, trained.backward_rows) == (18 * times, 18 * times)
    assert torch.allclose(box.clean, trained.net(images(1, 2, 2)), atol=1e-6)


def test_the_loss_of_a_linear_model_is_the_closed_form():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    few = 0.3 + 0.4 * images(1, 2, 2)
    loss, metrics = ibp(model, few, LABELS, attack=attack(), rng=SampleRng(0, torch.arange(6)), kappa=0.25)
    reach = 0.1 * model[1].weight.abs().sum(1)
    logits = model(few)
    worst = torch.where(F.one_hot(LABELS, 3).bool(), logits - reach, logits + reach)
    mixed = 0.25 * F.cross_entropy(logits, LABELS, reduction="none") + 0.75 * F.cross_entropy(
        worst, LABELS, reduction="none"
    )
    assert torch.allclose(loss, mixed, atol=1e-6)
    assert torch.equal(metrics["correct"], (worst.argmax(1) == LABELS).float())
    assert torch.equal(metrics["correct_clean"], (logits.argmax(1) == LABELS).float())
    (gradient,) = torch.autograd.grad(loss.sum(), model[1].weight)
    (by_hand,) = torch.autograd.grad(mixed.sum(), model[1].weight)
    assert torch.allclose(gradient, by_hand, atol=1e-5)


def test_radius_and_clean_term_follow_the_schedule():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    few = 0.3 + 0.4 * images(1, 2, 2)
    clean = F.cross_entropy(model(few), LABELS, reduction="none")

    def at(share):
        now = attack(share=share, schedule="0:0,0.5:0.1")
        return ibp(model, few, LABELS, attack=now, rng=SampleRng(0, torch.arange(6)), kappa=0.0)[0]

    assert torch.allclose(at(0.0), clean, atol=1e-3)
    assert bool((at(1.0) > at(0.25)).all())
    assert torch.equal(at(0.6), at(1.0))


def test_what_has_no_bounds_is_refused_in_words():
    rng = SampleRng(0, torch.arange(6))
    with raises("not-boundable", UserError, "SiLU"):
        interval_logits(nn.Sequential(nn.Flatten(), nn.SiLU()), images(1, 2, 2), 0.1)
    with raises("bad-norm", UserError, "--norm Linf"):
        ibp(nn.Flatten(), images(1, 2, 2), LABELS, attack=attack("L2"), rng=rng)
    registry = Registry()
    register(registry)
    with raises("bad-value", UserError, "kappa"):
        find_objective("ibp(kappa=2)", registry)


def test_a_few_epochs_make_a_network_whose_answers_are_proven():
    """Two kinds of images that differ by far: after some steps the bounds prove every answer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    labels = torch.arange(6) % 2
    few = (0.2 + 0.6 * labels).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).float()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(100):
        loss, metrics = ibp(model, few, labels, attack=attack(), rng=SampleRng(0, torch.arange(6)))
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
    assert float(metrics["correct"].mean()) == 1.0
