"""Stand-ins and answers alone: the network inside a wrapper is found, a student learns, rays meet the boundary."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustdup import Passes, SampleRng, ThreatModel, UserError
from robustdup.attacks.inner import Inner, find_inner
from robustdup.attacks.losses import misclassified
from robustdup.attacks.rays import rays, rays_cost
from robustdup.attacks.see_through import SeeThrough
from robustdup.attacks.student import fit_student
from robustdup.attacks.surrogate import surrogate
from robustdup.errors import AttackWarning
from tests.raising import raises

IMAGES = 0.3 + 0.4 * torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1))


class Linear(nn.Module):
    """Two classes, each sample's score at `share` of what the best signs within 0.1 can change."""

    def __init__(self, share, weight=None):
        super().__init__()
        self.register_buffer("weight", torch.ones(16) if weight is None else weight)
        self.register_buffer("clean", IMAGES.flatten(1) @ self.weight)
        self.slack = share * 0.1 * float(self.weight.abs().sum())

    def forward(self, images):
        sums = images.flatten(1) @ self.weight
        score = sums - self.clean[:1] - self.slack
        return torch.stack([torch.zeros_like(score), score], dim=1)


class OneHot(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        logits = self.model(images)
        return F.one_hot(logits.argmax(dim=1), logits.shape[1]).float()


class Unseen(nn.Module):
    """Answers through a list that no gradient and no hook can follow."""

    def __init__(self, model):
        super().__init__()
        self.function = model.forward

    def forward(self, images):
        answers = self.function(torch.tensor(images.tolist())).argmax(dim=1).tolist()
        return F.one_hot(torch.tensor(answers), 2).float()


ONE, LABEL, RNG = IMAGES[:1], torch.zeros(1, dtype=torch.int64), SampleRng(0, torch.arange(1))
THREAT = ThreatModel("Linf", "0.1")


@pytest.mark.parametrize(("share", "falls"), [(0.95, True), (1.01, False)])
def test_rays_meet_the_boundary_where_it_is_nearest(share, falls):
    model = OneHot(Linear(share))  # the best signs are those that the search begins with
    adv_images = rays(model, ONE, LABEL, THREAT, rng=RNG, queries=60)
    assert not THREAT.violations(ONE, adv_images).any.any()
    assert misclassified(model(adv_images), LABEL).tolist() == [falls]


def test_rays_find_the_signs_and_ask_no_more_than_stated():
    weight = torch.tensor([1.0, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1])
    model = Passes(OneHot(Linear(0.9, weight)))
    adv_images = rays(model, ONE, LABEL, THREAT, rng=RNG, queries=100)  # one flip of a half away
    assert bool(misclassified(model(adv_images), LABEL).all())
    assert model.count.forward <= 101
    hard = Passes(OneHot(Linear(1.2, weight)))
    rays(hard, ONE, LABEL, THREAT, rng=RNG, queries=100)
    assert 100 <= hard.count.forward <= rays_cost({"queries": 100})[0]


def test_rays_end_the_same_in_any_company():
    model = OneHot(Linear(0.9))
    labels, rng = torch.zeros(6, dtype=torch.int64), SampleRng(0, torch.arange(6))
    together = rays(model, IMAGES, labels, THREAT, rng=rng, queries=40)
    assert torch.equal(rays(model, IMAGES[2:4], labels[2:4], THREAT, rng=rng[2:4], queries=40), together[2:4])


def test_the_network_inside_is_found_and_followed():
    inner = Linear(0.9)
    model = OneHot(inner)
    assert find_inner(model, IMAGES) == Inner("model")
    logits = SeeThrough(model, inner=Inner("model"))
    assert torch.equal(logits(IMAGES), inner(IMAGES))
    images = IMAGES.clone().requires_grad_()
    (found,) = torch.autograd.grad(logits(images)[:, 1].sum(), images)
    assert torch.equal(found, torch.ones_like(images))
    assert find_inner(inner, IMAGES) is None
    adv_images = surrogate(model, ONE, LABEL, THREAT, rng=RNG, targets=0, queries=0)
    assert bool(misclassified(model(adv_images), LABEL).all())


def test_a_student_learns_what_no_gradient_tells():
    weight = torch.randn(16, generator=torch.Generator().manual_seed(3))
    model = Unseen(Linear(0.3, weight))
    student, agreement = fit_student(model, IMAGES, THREAT, steps=40, seed=0)
    assert agreement >= 0.8
    assert not any(parameter.requires_grad for parameter in student.parameters())
    adv_images = surrogate(model, ONE, LABEL, THREAT, rng=RNG, fit_steps=40, targets=0, queries=0)
    assert not THREAT.violations(ONE, adv_images).any.any()
    assert bool(misclassified(model(adv_images), LABEL).all())


def test_a_surrogate_that_cannot_be_fitted_says_so(monkeypatch):
    monkeypatch.setattr("robustdup.attacks.surrogate.POOR", 1.1)
    with pytest.warns(AttackWarning, match="the student gives the model's answer on"):
        surrogate(Unseen(Linear(3.0)), ONE, LABEL, THREAT, rng=RNG, fit_steps=1, targets=0, queries=0, steps=1)


def test_bad_input_is_named():
    with raises("bad-option", UserError, "queries", "at least 1"):
        rays(Linear(1), ONE, LABEL, THREAT, rng=RNG, queries=0)
    with raises("bad-option", UserError, "steps", "at least 1"):
        surrogate(Linear(1), ONE, LABEL, THREAT, rng=RNG, steps=0)
