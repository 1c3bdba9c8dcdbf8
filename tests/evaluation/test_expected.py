"""Models that answer at random: expected accuracies whose right values are computed apart."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

import robustdup
from robustdup.evaluation.calls import PlannedStage
from robustdup.evaluation.draws import Draws, enough_draws
from robustdup.evaluation.stages import for_model, plan_stages
from robustdup.plugins import AttackSpec
from robustdup.threat import ThreatModel
from tests.lanes import each_once

VALUES = torch.linspace(0.3, 0.7, 24)
IMAGES = VALUES.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
LABELS = (VALUES > 0.5).long()
LABELS[[10, 13]] = (
    1 - LABELS[[10, 13]]
)  # near the boundary and on its wrong side: right in some draws, in fewer than half
GAP = torch.where(LABELS == 1, VALUES - 0.5, 0.5 - VALUES)  # how far on its own side each sample lies
EPS = 0.05


class NoiseAtTheInput(nn.Module):
    """Two classes by the mean of the image, which noise of deviation 0.05 shifts as a whole."""

    def forward(self, images):
        signal = 10 * (images.flatten(1).mean(dim=1) + 0.05 * torch.randn(len(images)) - 0.5)
        return torch.stack([-signal, signal], dim=1)

    @staticmethod
    def expected(gap):
        return torch.distributions.Normal(0, 1).cdf(gap / 0.05)


class Dropout(nn.Module):
    """Two classes by the sum of four parts of the image, each of which is left out with probability 0.3."""

    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])

    def forward(self, images):
        parts = images.flatten(1).view(-1, 4, 4).mean(dim=2) - 0.5
        kept = nn.functional.dropout(parts * self.weights, 0.3, training=True)
        signal = kept.sum(dim=1) + 0.004  # all four left out: class 1
        return torch.stack([-signal, signal], dim=1)

    @classmethod
    def expected(cls, gap):
        """Sum over the sixteen masks: all parts move alike, so that each mask is right or wrong by its own threshold."""
        share = torch.zeros_like(gap)
        for mask in itertools.product([0.0, 1.0], repeat=4):
            kept = torch.tensor(mask)
            chance = torch.where(kept == 1, 0.7, 0.3).prod()
            signal = (kept * cls.weights).sum() / 0.7 * torch.where(LABELS == 1, gap, -gap) + 0.004
            share += chance * ((signal > 0) == (LABELS == 1))
        return share


class Shift(nn.Module):
    """Two classes by a window of three by three pixels that is drawn for each call, as random cropping does it."""

    def forward(self, images):
        top, left = torch.randint(0, 2, (2,)).tolist()
        signal = images[:, 0, top : top + 3, left : left + 3].mean(dim=(1, 2)) - 0.5
        signal = signal + 0.06 * (top - left)
        return torch.stack([-signal, signal], dim=1)

    @staticmethod
    def expected(gap):
        signs = torch.where(LABELS == 1, 1.0, -1.0)
        return sum(((gap + 0.06 * offset * signs) > 0).float() for offset in (0, 0, 1, -1)) / 4


MODELS = [NoiseAtTheInput, Dropout, Shift]
ATTACKS = ["pgd(steps=10)", "apgd-ce(steps=10)", "cosine-pgd(steps=8)", "cosine-pgd-t(steps=8)"]


def evaluate(model, attacks="pgd(steps=5)", **options):
    options = {"eps": str(EPS), "diagnostics": False, "workers": 1, "judge_draws": 80, "eot": 6, **options}
    return robustdup.evaluate(model.eval(), IMAGES, LABELS, attacks=attacks, **options)


@each_once(attack=ATTACKS, model=MODELS)
def test_the_expected_accuracy_is_brought_to_its_minimum_on_every_sample(model, attack):
    record = evaluate(model(), attack).record
    assert record.model.randomized
    assert not record.model.batch_dependent
    clean, best = float(model.expected(GAP).mean()), float(model.expected(GAP - EPS).mean())
    assert clean - best > 0.08
    assert record.clean_accuracy.value == pytest.approx(clean, abs=0.03)
    assert record.robust_accuracy.value == pytest.approx(best, abs=0.03)


@robustdup.register_attack("of-a-toolkit", norms=["Linf"])
def of_a_toolkit(model, images, labels, threat, *, rng):
    """Take ten steps of signs from single answers, as toolkits do that know nothing of models that answer at random."""
    adv_images = images.clone()
    for _ in range(10):
        adv_images.requires_grad_(True)
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(adv_images), labels), adv_images)
        adv_images = threat.project(images, adv_images.detach() + threat.radius / 4 * gradient.sign())
    return adv_images


@pytest.mark.parametrize("attack", [of_a_toolkit, "fgsm"])
@pytest.mark.parametrize("model", [NoiseAtTheInput, Dropout])
def test_attacks_by_gradient_without_draws_of_their_own_get_the_mean_of_several(model, attack):
    record = evaluate(model(), [attack]).record
    assert record.robust_accuracy.value == pytest.approx(float(model.expected(GAP - EPS).mean()), abs=0.03)
    (said,) = [event for event in record.events if "answers at random" in event]
    assert "got the mean of 6 draws" in said
    steps = 10 if attack is of_a_toolkit else 1
    row = record.attacks[0]
    assert row.forward_passes == row.n_attacked * steps * 12  # six answers, and six for the gradient
    assert row.backward_passes == row.n_attacked * steps * 6


def test_a_number_of_draws_that_is_written_with_an_attack_is_believed():
    """Its own draws count, also those that it takes without being told, where they are enough."""

    def spec(name, eot):
        def function(model, images, labels, threat, *, rng, eot_iter: int = eot):
            return images

        return AttackSpec(name=name, function=function, norms=("Linf",))

    written = PlannedStage(spec("written", 2), {"eot_iter": 3}, {"eot_iter": 3})
    many, few = PlannedStage(spec("many", 20), {}, {}), PlannedStage(spec("few", 2), {}, {})
    stages, notes = for_model([written, many, few], randomized=True)
    assert [stage.draws for stage in stages] == [1, 1, 10]
    assert notes == ["The model answers at random: few got the mean of 10 draws for each answer (--eot)."]
    assert [stage.draws for stage in for_model(stages, randomized=False)[0]] == [1, 1, 1]


def test_samples_that_are_right_in_fewer_than_half_of_the_draws_are_attacked_too():
    result = evaluate(NoiseAtTheInput())
    few = [10, 13]
    assert 0.2 < float(NoiseAtTheInput.expected(GAP)[few].max()) < 0.5
    lowest = result.adv_images[few].flatten(1).mean(dim=1) - VALUES[few]
    assert torch.allclose(lowest, torch.where(LABELS[few] == 1, -EPS, EPS), atol=0.005)
    assert result.record.attacks[0].n_attacked >= 22


def test_the_draws_are_averaged_without_being_told():
    record = evaluate(NoiseAtTheInput(), eot=1).record
    eot = record.attacks[0].options["eot"]
    assert 10 <= eot <= 64
    assert any(f"averaged gradients over {eot} draws" in event for event in record.events)


def test_draws_are_added_until_the_error_of_a_mean_margin_is_small():
    """Margins of a known spread: the draws follow from it, and from nothing else."""
    margin = torch.linspace(-0.5, 1.5, 201, dtype=torch.float64)
    usual = float(margin.abs().median())
    for spread, wanted in ((0.2, 10), (0.5, math.ceil((0.5 / (0.25 * usual)) ** 2)), (5.0, 64)):
        share = torch.special.ndtr(margin / spread)
        found = enough_draws(margin, share)
        assert found.eot == wanted
        assert found.error == pytest.approx(spread / math.sqrt(wanted) / usual, rel=1e-6)
    assert enough_draws(margin, (margin > 0).double()) == Draws(10, None)  # nothing varies
    assert enough_draws(torch.full((3,), torch.nan), torch.full((3,), 0.3)) == Draws(10, None)


def test_attacks_that_look_at_single_draws_are_named():
    record = evaluate(NoiseAtTheInput(), "pgd(steps=2),square(queries=3,eot=1)").record
    (said,) = [event for event in record.events if "single draws" in event]
    assert "square" in said
    assert "pgd" not in said


@robustdup.register_attack("by-answers", norms=["Linf"], knowledge="score-based")
def by_answers(model, images, labels, threat, *, rng):
    """Try both ends of the ball for all pixels at once, and keep the one of the smaller margin."""
    ends = [(images + sign * threat.radius).clamp(0, 1) for sign in (-1, 1)]
    with torch.no_grad():
        right = [model(end).gather(1, labels[:, None]) for end in ends]
    return torch.where((right[0] < right[1])[:, :, None, None], *ends)


@pytest.mark.parametrize(("attack", "said"), [("square(queries=70,p_init=1)", "averaged answers over 6 draws"),
                                              (by_answers, "got the mean of 6 draws")])  # fmt: skip
def test_attacks_that_see_only_answers_look_at_the_mean_of_several(attack, said):
    """One draw of this noise hides what the ball holds; no sample leaves on a lucky one."""
    record = evaluate(NoiseAtTheInput(), [attack]).record
    assert record.robust_accuracy.value == pytest.approx(float(NoiseAtTheInput.expected(GAP - EPS).mean()), abs=0.03)
    assert any(said in event for event in record.events)
    if attack is not by_answers:
        row = record.attacks[0]
        assert row.forward_passes == row.n_attacked * 6 * (1 + 70 + 1)  # what is kept is asked again once


def test_sparse_search_looks_at_the_mean_of_several_draws():
    """Two pixels of sixteen, to their ends: by how much the mean moves is known."""
    record = evaluate(NoiseAtTheInput(), "sparse-rs(queries=20)", norm="L0-pixels", eps=2, eot=6).record
    ends = torch.where(LABELS == 1, VALUES, 1 - VALUES)  # how far a pixel can go to the wrong side
    best = float(NoiseAtTheInput.expected(GAP - 2 * ends / 16).mean())
    assert record.robust_accuracy.value == pytest.approx(best, abs=0.04)


def test_fast_brings_it_down_as_far_and_does_not_take_the_draws_for_masked_gradients():
    record = evaluate(NoiseAtTheInput(), "fast", eot=2, judge_draws=50).record
    best = float(NoiseAtTheInput.expected(GAP - EPS).mean())
    assert record.robust_accuracy.value == pytest.approx(best, abs=0.04)
    assert record.escalation is not None
    assert not record.escalation.escalated


class Coin(nn.Module):
    """Right in seven of ten draws, whatever the image."""

    def forward(self, images):
        right = torch.where(torch.rand(len(images)) < 0.7, 1.0, -1.0)
        signal = right * torch.where(images.flatten(1).mean(dim=1) > 0.5, 1.0, -1.0) * 4
        return torch.stack([-signal, signal], dim=1) + 0 * images.flatten(1)[:, :2]


def test_the_draws_that_chose_an_image_do_not_judge_it():
    images, labels = (
        torch.tensor([0.2, 0.8]).repeat(40).view(-1, 1, 1, 1).expand(-1, 1, 2, 2),
        torch.tensor([0, 1] * 40),
    )
    options = {"eps": "0.1", "judge_draws": 10, "diagnostics": False, "workers": 1}
    record = robustdup.evaluate(Coin(), images, labels, attacks=",".join(["noise(draws=1)"] * 6), **options).record
    # The lowest share of six times ten draws would be 0.47 on average.
    assert record.robust_accuracy.value == pytest.approx(0.7, abs=0.05)


@robustdup.register_attack("lazy", norms=["Linf"])
def lazy(model, images, labels, threat, *, rng):
    return images.clone()


@robustdup.register_attack("helpful", norms=["Linf"])
def helpful(model, images, labels, threat, *, rng):
    """Move each sample away from the boundary: the clean image is harder."""
    return (images + torch.where(labels == 1, threat.radius, -threat.radius).view(-1, 1, 1, 1)).clamp(0, 1)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@each_once(attacks=[[lazy], [helpful], [helpful, "noise(draws=2)"], ["fgsm"]], model=[*MODELS, Coin])
def test_no_model_is_more_accurate_under_attack_than_without(model, attacks, seed):
    record = evaluate(model(), attacks, eps="0.01,0.05", judge_draws=8, seed=seed, eot=1).record
    clean = record.clean_accuracy.value
    assert record.robust_accuracy.value <= clean
    assert record.robust_accuracy_8bit <= clean
    assert all(c.robust_accuracy <= c.clean_accuracy for c in record.per_class)
    assert all(attack.robust_accuracy_after <= clean for attack in record.attacks)
    points = [clean, *(point.value for point in record.curve.values())]
    assert points == sorted(points, reverse=True)
    assert points[-1] == record.robust_accuracy.value
    if attacks == [helpful]:
        assert record.robust_accuracy.value >= clean - 0.03  # of the same draws


def planned(norm, draws):
    stages, _ = plan_stages([("fast", {})], robustdup.load_plugins(), ThreatModel(norm, "0.1"))
    return for_model(stages, randomized=True, draws=Draws(draws))[0]


@pytest.mark.parametrize("draws", [10, 20, 64])
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_fast_plans_no_more_passes_than_autoattack_for_randomised_models(norm, draws):
    """Which takes two runs of 100 steps, each with a forward and a backward pass, and five last looks, 20 draws at least."""
    stages = planned(norm, draws)
    assert sum(stage.take * sum(stage.passes) for stage in stages) <= 2 * (100 + 100 + 5) * max(draws, 20) + 1e-6
    assert "straight-through" in [stage.spec.name for stage in stages]
