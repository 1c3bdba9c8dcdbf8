"""SPSA and the boundary walk: against closed-form optima, on models that hide their gradients, and row by row."""

import pytest
import torch
from torch import nn

from benchmarks.masked import masked
from robustdup import Passes, SampleRng, ThreatModel, UserError
from robustdup.attacks.apgd_t import apgd_t
from robustdup.attacks.boundary_walk import boundary_walk, boundary_walk_cost
from robustdup.attacks.losses import misclassified
from robustdup.attacks.spsa import spsa, spsa_cost
from robustdup.attacks.square import square
from robustdup.config import DataOptions
from robustdup.data.digits import load_builtin as digits
from robustdup.models.load import ModelOptions, load_builtin
from robustdup.projections import row_length
from tests.lanes import each_once

EPS = {"Linf": "0.1", "L2": "0.6"}
BOTH = pytest.mark.parametrize("attack", [spsa, boundary_walk])
QUICK = {spsa: {"steps": 5, "probes": 8, "restarts": 2}, boundary_walk: {"steps": 4, "probes": 3, "restarts": 2}}


class Linear(nn.Module):
    """Two classes, logits (0, w·x - b) with a `b` for each image, told by its first pixel, which has no weight."""

    def __init__(self, weight, bias):
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, images):
        flat = images.flatten(1)
        score = flat[:, 1:] @ self.weight - self.bias
        return torch.stack([torch.zeros_like(score), score], dim=1)


def optimum(weight, norm, eps):
    """The most that w·δ can be for δ in the ball: eps times the dual norm."""
    return eps * float(row_length(weight[None], {"Linf": "L1", "L2": "L2"}[norm]))


def linear(norm, share, seed=0, n=4):
    """Images in the middle of the box, and a model that falls to `share` of the best perturbation."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(24, generator=generator)
    image = 0.4 + 0.2 * torch.rand(1, 1, 5, 5, generator=generator)
    images = image.repeat(n, 1, 1, 1)
    clean = float(image.flatten()[1:] @ weight)
    bias = torch.tensor(clean + share * optimum(weight, norm, float(EPS[norm])))
    return Linear(weight, bias), images, torch.zeros(n, dtype=torch.int64), SampleRng(seed, torch.arange(n))


@each_once(norm=EPS, attack__near=[(spsa, 0.9), (boundary_walk, 0.95)])
def test_linear_models_fall_below_the_optimum_and_never_above(attack, near, norm):
    threat, options = ThreatModel(norm, EPS[norm]), {"restarts": 2} if attack is boundary_walk else {}
    for share, falls in ((near, True), (1.001, False)):
        for seed in range(1 if attack is boundary_walk else 2):
            model, images, labels, rng = linear(norm, share, seed)
            adv_images = attack(model, images, labels, threat, rng=rng, **options)
            assert not threat.violations(images, adv_images).any.any()
            assert misclassified(model(adv_images), labels).tolist() == [falls] * 4


@pytest.fixture(scope="module")
def points():
    rows = digits("digits", DataOptions(split="test"))
    images, labels = rows.fetch(range(40))
    model = load_builtin("digits-robust", ModelOptions()).eval()
    right = ~misclassified(model(images), labels)
    return model, images[right], labels[right]


def broken(attack, model, points, **options):
    _, images, labels = points
    threat, rng = ThreatModel("Linf", "0.15"), SampleRng(0, torch.arange(len(images)))
    adv_images = attack(Passes(model, 64), images, labels, threat, rng=rng, **options)
    assert not threat.violations(images, adv_images).any.any()
    return int(misclassified(model(adv_images), labels).sum())


@pytest.mark.slow
def test_the_walk_sees_what_clipped_logits_hide(points):
    """Without the clipping APGD-T breaks a dozen of 40; behind it next to nothing, and random search little more."""
    open_, hidden = points[0], masked("clipped", points[0])
    truth = broken(apgd_t, open_, points, steps=50, targets=3)
    assert truth >= 10
    assert broken(apgd_t, hidden, points, steps=50, targets=3) <= truth / 4
    assert broken(square, hidden, points, queries=500) <= truth / 2
    assert broken(boundary_walk, hidden, points, restarts=3) >= truth - 2


@pytest.mark.parametrize("mask", ["quantised", "shattered"])
def test_probes_see_what_rounding_and_ripples_hide(points, mask):
    hidden = masked(mask, points[0])
    found = broken(spsa, hidden, points, steps=40)
    assert found >= 6
    assert broken(apgd_t, hidden, points, steps=50, targets=3) <= found / 2


@each_once(attack=[spsa, boundary_walk], norm=EPS)
def test_a_row_ends_the_same_to_the_bit_in_any_company(points, attack, norm):
    model, images, labels = (points[0], points[1][:12], points[2][:12])
    threat, rng = ThreatModel(norm, EPS[norm]), SampleRng(3, torch.arange(12))

    def run(rows):
        return attack(Passes(model, 8), images[rows], labels[rows], threat, rng=rng[rows], **QUICK[attack])

    together = run(torch.arange(12))
    assert bool((together != images).any())
    order = torch.arange(12).flip(0).roll(5)
    assert torch.equal(run(order), together[order])
    assert torch.equal(run(torch.tensor([11])), together[11:])
    assert run(torch.arange(0)).shape == (0, 1, 8, 8)


@BOTH
def test_how_much_is_held_at_once_changes_no_bit(points, attack, monkeypatch):
    model, images, labels = (points[0], points[1][:7], points[2][:7])
    threat, rng = ThreatModel("Linf", EPS["Linf"]), SampleRng(3, torch.arange(7))
    whole = attack(Passes(model, 8), images, labels, threat, rng=rng, **QUICK[attack])
    monkeypatch.setattr(f"{attack.__module__}.PIXELS", 400)
    assert torch.equal(attack(Passes(model, 8), images, labels, threat, rng=rng, **QUICK[attack]), whole)


class Counting(nn.Module):
    """Counts rows; class 0 wherever the mean is below `bound`."""

    def __init__(self, bound):
        super().__init__()
        self.bound, self.forward_rows, self.backward_rows = bound, 0, 0

    def forward(self, images):
        self.forward_rows += len(images)
        score = images.flatten(1).mean(dim=1) - self.bound
        logits = torch.stack([torch.zeros_like(score), score, score - 9], dim=1)
        if logits.requires_grad:
            logits.register_hook(self.count)
        return logits

    def count(self, gradient):
        self.backward_rows += len(gradient)


@pytest.mark.parametrize("options", [{"steps": 4, "probes": 6}, {"steps": 2, "probes": 80, "restarts": 3}])
def test_a_survivor_of_spsa_pays_what_is_said_and_asks_for_no_gradient(options):
    model, images = Counting(5.0), torch.rand(4, 1, 3, 3)
    labels, rng = torch.zeros(4, dtype=torch.int64), SampleRng(0, torch.arange(4))
    spsa(model, images, labels, ThreatModel("Linf", "0.1"), rng=rng, **options)
    said = spsa_cost({"restarts": 1, **options})
    assert (model.forward_rows, model.backward_rows) == (4 * said[0], 0)
    assert said[1] == 0


def test_a_survivor_of_the_walk_pays_no_more_than_is_said():
    """The boundary lies out of reach of the ball but not of the noise that the walk starts from."""
    model, images, options = Counting(0.6), torch.full((4, 1, 3, 3), 0.3), {"steps": 5, "probes": 3, "restarts": 2}
    labels, rng = torch.zeros(4, dtype=torch.int64), SampleRng(0, torch.arange(4))
    adv_images = boundary_walk(model, images, labels, ThreatModel("Linf", "0.1"), rng=rng, **options)
    assert not misclassified(model(adv_images), labels).any()
    forward, backward = boundary_walk_cost(options)
    assert 0.6 * 4 * backward < model.backward_rows <= 4 * backward
    assert 2 * forward < model.forward_rows <= 4 * forward
    assert torch.allclose(adv_images, images + 0.1)  # the nearest point of the boundary is brighter everywhere


def test_where_nothing_is_misclassified_the_walk_does_not_start():
    model, images = Counting(5.0), torch.rand(4, 1, 3, 3)
    labels, rng = torch.zeros(4, dtype=torch.int64), SampleRng(0, torch.arange(4))
    adv_images = boundary_walk(model, images, labels, ThreatModel("Linf", "0.1"), rng=rng, restarts=1)
    assert torch.equal(adv_images, images)
    assert model.backward_rows == 0


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        (spsa, {"steps": 0}, "spsa: steps must be at least 1, got 0"),
        (spsa, {"probes": 7}, "come in pairs, so that their number must be even; got 7"),
        (spsa, {"probes": 0}, "probes must be at least 2, got 0"),
        (spsa, {"reach": 0.0}, "reach is a share of eps and must be above 0, got 0.0"),
        (spsa, {"first_step": -1.0}, "first_step is a share of eps and must be above 0, got -1.0"),
        (spsa, {"momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0"),
        (boundary_walk, {"restarts": 0}, "boundary-walk: restarts must be at least 1, got 0"),
        (boundary_walk, {"reach": -0.5}, "reach is a share of eps and must be above 0, got -0.5"),
    ],
)
def test_settings_that_cannot_work_are_refused(attack, options, message):
    model, images, labels, rng = linear("Linf", 0.5)
    with pytest.raises(UserError, match=message):
        attack(model, images, labels, ThreatModel("Linf", "0.1"), rng=rng, **options)
