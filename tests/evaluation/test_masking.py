"""Signs of masked gradients: quiet on honest models, loud on models that hide theirs, and black-box success counted right."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.masked import masked
from benchmarks.zoo import wrapped
from robustdup import Passes, ThreatModel, load_data, load_model
from robustdup.config import DataOptions
from robustdup.data.digits import load_builtin as digits
from robustdup.evaluation.context import Context
from robustdup.evaluation.gradients import PLANTED_STEPS, evades, gradient_signs, misses_boundary, tells_sides
from robustdup.evaluation.masking import LOOKED_AT, black_box_wins, masking_signs
from robustdup.models.load import ModelOptions, load_builtin

EPS = {"Linf": "0.15", "L2": "0.8", "L1": "2"}
N = 40


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def correct_points(name="digits-robust", n=N):
    rows = digits("digits", DataOptions(split="test"))
    images, labels = rows.fetch(range(2 * n))
    model = load_builtin(name, ModelOptions()).eval()
    right = model(images).argmax(dim=1) == labels
    return model, images[right][:n], labels[right][:n]


def context_of(model):
    return Context(Passes(model, 32), model, torch.device("cpu"), 32, 32, draws=1, seed=0)


def look(model, images, labels, threat, stages=(), standing=None):
    standing = torch.ones(len(labels), dtype=torch.bool) if standing is None else standing
    return masking_signs(context_of(model), images, labels, images, standing, threat, stages)


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("name", ["digits-robust", "digits-standard"])
def test_honest_models_raise_no_suspicion(name, norm):
    model, images, labels = correct_points(name)
    found = look(model, images, labels, ThreatModel(norm, EPS[norm]))
    assert found.reasons == ()
    assert found.signs["zero_gradients"] == found.signs["erratic"] == 0.0


@pytest.mark.parametrize(("mask", "reason"), [("scaled", "the gradient is zero"), ("shattered", "does not follow")])
@pytest.mark.parametrize("norm", EPS)
def test_masked_gradients_are_noticed(mask, reason, norm):
    model, images, labels = correct_points()
    found = look(masked(mask, model), images, labels, ThreatModel(norm, EPS[norm]))
    assert any(reason in said for said in found.reasons)


class Flat(nn.Module):
    """An honest model whose images are rounded down for the points named by a bright first pixel: no gradient there."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        flat = (images[:, :, :1, :1] > 0.5).to(images.dtype)
        return self.model(flat * images.detach() + (1 - flat) * images)


@pytest.mark.parametrize(("flat", "suspected"), [(0, False), (1, False), (8, True)])
def test_zero_gradients_count_from_more_than_a_twentieth_of_the_points_on(flat, suspected):
    model, images, labels = correct_points()
    images[:, :, 0, 0] = 0.0
    images[:flat, :, 0, 0] = 1.0
    judged = Flat(model)
    found = look(judged, images, labels, ThreatModel("Linf", "0.1"))
    assert found.signs["zero_gradients"] == pytest.approx(flat / len(labels))
    assert bool(found.reasons) is suspected


class Stairs(nn.Module):
    """Two classes by the mean of the image, with short steep ramps: a gradient that holds over a tenth of a level."""

    def __init__(self, ramp):
        super().__init__()
        self.ramp = ramp

    def forward(self, images):
        height = 20 * images.mean(dim=(1, 2, 3))
        floor = height.floor().detach()
        score = floor + ((height - floor - 0.5) / self.ramp + 0.5).clamp(0, 1)
        return torch.stack([10.2 - score, score - 10.2], dim=1)


@pytest.mark.parametrize(("ramp", "erratic"), [(1.0, 0.0), (0.05, 1.0)])
def test_a_gradient_that_holds_over_small_steps_alone_is_erratic(ramp, erratic):
    images = torch.full((6, 1, 4, 4), 0.375) + torch.linspace(0, 0.001, 6).view(-1, 1, 1, 1)
    labels = torch.zeros(6, dtype=torch.int64)
    threat = ThreatModel("Linf", "0.02")  # half of it reaches over the ramp of 0.05 / 20, a sixteenth stays inside
    seen = gradient_signs(Stairs(ramp), images, images, labels, threat)
    assert (seen["erratic"], seen["unseen"]) == (erratic, 0.0)


class Slope(nn.Module):
    """Two classes by a weighted sum of the pixels; `follow` says which part of it passes a gradient on."""

    def __init__(self, follow):
        super().__init__()
        self.follow = follow

    def forward(self, images):
        score = (self.follow(images) * torch.linspace(0.5, 1.5, 16).view(1, 1, 4, 4)).sum(dim=(1, 2, 3)) - 9
        return torch.stack([-score, score], dim=1)


HALF = (torch.arange(16) % 2 == 0).view(1, 1, 4, 4)


@pytest.mark.parametrize(
    ("follow", "kept", "unseen", "named"),
    [
        (lambda images: images, 1.0, 0.0, False),
        (lambda images: 0.9 * images + 0.1 * images.detach(), 1 / 0.9, 0.0, False),
        (lambda images: 0.4 * images + 0.6 * images.detach(), 2.5, 0.0, True),
        (lambda images: 3 * images - 2 * images.detach(), 1 / 3, 0.0, True),
        (lambda images: 1e-30 * images + images.detach(), 1000.0, 0.0, True),
        (lambda images: torch.where(HALF, images, images.detach()), 1.0, 1.0, True),
        (lambda images: images * HALF, 1.0, 0.0, False),  # what is not looked at has no gradient, and does not matter
    ],
)
@pytest.mark.parametrize("norm", EPS)
def test_a_gradient_of_which_a_part_is_lost_is_noticed(follow, kept, unseen, named, norm):
    images, labels = torch.full((6, 1, 4, 4), 0.4), torch.zeros(6, dtype=torch.int64)
    threat = ThreatModel(norm, "0.1")
    seen = gradient_signs(Slope(follow), images, images, labels, threat)
    assert seen["kept_promise"] == pytest.approx(kept, rel=1e-3)
    assert seen["unseen"] == unseen
    assert ("partial_gradients" in look(Slope(follow), images, labels, threat).of_gradients) is named


class Backward(torch.autograd.Function):
    """The identity, whose backward pass is the gradient times what it was given."""

    @staticmethod
    def forward(ctx, images, factor):
        ctx.factor = factor
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.factor, None


def right_on_the_grid(images):
    """What follows images of 1/10 rightly, and turns every other pixel's gradient of all others."""
    on_grid = ((10 * images).round() == 10 * images).flatten(1).all(dim=1).view(-1, 1, 1, 1)
    return Backward.apply(images, torch.where(on_grid | HALF, 1.0, -0.5))


@pytest.mark.parametrize("norm", ["Linf", "L2"])  # in L1 a step goes along the largest pixels alone
def test_a_gradient_that_is_right_at_clean_images_alone_is_noticed(norm):
    images, labels = torch.full((6, 1, 4, 4), 0.4), torch.zeros(6, dtype=torch.int64)
    threat = ThreatModel(norm, "0.1")
    assert "partial_gradients" in look(Slope(right_on_the_grid), images, labels, threat).of_gradients


class Surface(nn.Module):
    """A slope, wrong from 0.03 above grey of 0.4 on, that answers as at that grey where images are `hidden`."""

    def __init__(self, hidden):
        super().__init__()
        self.slope, self.hidden = Slope(lambda images: images), hidden

    def forward(self, images):
        return self.slope(torch.where(self.hidden(images), 0.4, images)) + torch.tensor([-2.1, 2.1])


def any_pixel(there):
    return there.flatten(1).any(dim=1).view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("hidden", "moved", "share"),
    [
        (lambda images: any_pixel(images > 1), 0.01, 0.0),  # an honest model, not wrong there
        (lambda images: any_pixel(((images - 0.4).abs() - 0.1).abs() < 1e-6), 0.1, 1.0),  # knows the ball's surface
        (lambda images: any_pixel(((images - 0.4).abs() - 0.1).abs() < 1e-6), 0.02, 1.0),
        (lambda images: any_pixel((255 * images - (255 * images).round()).abs() > 1e-3), 0.0995, 1.0),  # and 8 bits
    ],
)
def test_models_that_answer_otherwise_where_attacks_end_are_noticed(hidden, moved, share):
    images, labels = torch.full((6, 1, 4, 4), 0.4), torch.zeros(6, dtype=torch.int64)
    model, threat = Surface(hidden), ThreatModel("Linf", "0.1")
    assert bool((model(images + moved).argmax(dim=1) == 0).all())
    seen = evades(model, images, images + moved, labels, threat)
    assert float(seen.double().mean()) == share


def test_a_margin_that_trembles_by_rounding_is_no_evasion():
    images, labels = torch.full((6, 1, 4, 4), 0.4), torch.zeros(6, dtype=torch.int64)

    def flat(images):  # a margin of 8, less a millionth but at the surface and at the clean image
        far = (images - 0.4).abs().amax(dim=(1, 2, 3))
        dip = ((far > 0.01) & (far < 0.0999)).float()
        return torch.stack([8 - 1e-5 * dip, torch.zeros_like(dip)], dim=1)

    assert not bool(evades(flat, images, images + 0.1, labels, ThreatModel("Linf", "0.1")).any())


class Plane(nn.Module):
    """Two classes, by the side of a plane through the middle of the unit square of images (N, 1, 1, 2)."""

    def __init__(self, *weight):
        super().__init__()
        self.weight = torch.tensor(weight)

    def forward(self, images):
        score = (images.flatten(1) - 0.5) @ self.weight
        return torch.stack([-score, score], dim=1)


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize(
    ("weight", "missed"), [((1.0, 0.0), 0), ((1e-6, 0.0), 0), ((-1.0, 0.0), 16), ((0.0, 0.0), 16), ((0.0, 1.0), None)]
)
def test_a_gradient_must_tell_on_which_side_of_the_boundary_steps_end(norm, weight, missed):
    across, along = torch.meshgrid(torch.tensor([0.3, 0.7]), torch.linspace(0.3, 0.7, 8), indexing="ij")
    images, labels = torch.stack([across, along], dim=2).view(16, 1, 1, 2), torch.arange(2).repeat_interleave(8)
    seen = misses_boundary(Plane(1.0, 0.0), Plane(*weight), images, labels, ThreatModel(norm, "0.1"))
    assert int(seen.sum()) == missed if missed is not None else int(seen.sum()) > 4
    alone = misses_boundary(Plane(1.0, 0.0), Plane(-1.0, 0.0), images[:8], labels[:8], ThreatModel(norm, "0.1"))
    assert not bool(alone.any())  # no other class to go to: nothing is said


class ThirdClass(nn.Module):
    """The plane x = 1/2 of `Plane`, and a third class that never wins, always by so much that it is the second far from there."""

    def __init__(self, behind):
        super().__init__()
        self.behind = behind

    def forward(self, images):
        score, along = (images.flatten(1) - 0.5).unbind(1)
        return torch.stack([-score, score, score.abs() - self.behind - 0.1 * along], dim=1)


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize(("behind", "missed"), [(10.0, 0), (0.05, 8)])
def test_a_gradient_must_lead_across_a_boundary_that_is_near(behind, missed, norm):
    across, along = torch.meshgrid(torch.tensor([0.3, 0.7]), torch.linspace(0.3, 0.7, 8), indexing="ij")
    images, labels = torch.stack([across, along], dim=2).view(16, 1, 1, 2), torch.arange(2).repeat_interleave(8)
    model, threat = ThirdClass(behind), ThreatModel(norm, "0.1")
    upon = torch.stack([torch.where(across < 0.5, 0.5001, 0.4999), along], dim=2).view(16, 1, 1, 2)
    told = tells_sides(model, model, upon, labels, threat, 1 / 16)
    assert bool(told.all())  # that it never wins is not seen upon the boundary
    seen = int(misses_boundary(model, model, images, labels, threat).sum())
    assert seen == 0 if missed == 0 else seen >= missed  # the others cross it at random


@pytest.mark.parametrize(("norm", "eps"), [("Linf", "8/255"), ("Linf", "16/255"), ("L2", "0.5"), ("L1", "12")])
def test_gradients_of_an_ordinary_network_for_photographs_tell_where_its_boundary_lies(norm, eps):
    """Over half of eps, in place of a sixteenth, 28% of these samples would be missed at Linf 8/255."""
    place = os.environ.get("ROBUSTDUP_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data"
    if not (Path(place) / "cifar10-lossless").is_dir():
        pytest.skip("needs cifar10-lossless in ../shared/data or ROBUSTDUP_TEST_DATA")
    rows = load_data(str(Path(place) / "cifar10-lossless"), n=100)
    nets = Path(__file__).parents[1] / "fixtures" / "first_edition"
    model = load_model(f"{nets / 'nets.py'}:cifar_net@{nets / 'cifar_net.safetensors'}")
    images, labels = torch.as_tensor(rows.images), torch.as_tensor(rows.labels)
    right = model(images).argmax(dim=1) == labels
    missed = misses_boundary(model, model, images[right], labels[right], ThreatModel(norm, eps))
    assert len(missed) > 40
    assert float(missed.double().mean()) <= 0.05


@pytest.mark.parametrize("mask", ["decoy", "steep-decoy", "few-directions", "turned-late", "crowd"])
@pytest.mark.parametrize("norm", EPS)
def test_a_gradient_of_what_does_not_decide_is_noticed(mask, norm):
    model, images, labels = correct_points()
    assert "misses_boundary" in look(wrapped(mask, model), images, labels, ThreatModel(norm, EPS[norm])).of_gradients


def black_box_won(stages):
    return max((share for _, _, share in black_box_wins(stages)), default=0)


def outcomes(*rows):
    return [(knowledge, torch.tensor(outcome)) for knowledge, outcome in rows]


def test_black_box_success_counts_only_on_what_white_box_attacks_left_standing():
    white = ("white-box", [1, 1, 0, 0, 0, 0, 3, 3])
    # Of the six left (two of them not attacked), the black-box attack tried five and broke two.
    assert black_box_won(outcomes(white, ("score-based", [1, 1, 1, 1, 0, 0, 0, 3]))) == pytest.approx(2 / 5)
    assert black_box_won(outcomes(white, ("score-based", [1, 1, 1, 0, 0, 0, 0, 3]))) == 0  # one is no sign
    assert black_box_won(outcomes(("score-based", [1] * 8), white)) == 0  # nothing white-box came before
    assert black_box_won(outcomes(white)) == 0


def test_of_a_finished_run_only_samples_that_every_white_box_attack_tried_count():
    black = ("score-based", [1, 1, 1, 1, 0, 0, 0, 3])
    white, later = ("white-box", [1, 1, 0, 0, 0, 0, 3, 3]), ("white-box", [3, 3, 3, 0, 0, 0, 0, 0])
    assert black_box_wins(outcomes(white, black), finished=True) == [(1, 2, 2 / 4)]
    assert black_box_wins(outcomes(black, white), finished=True) == [(0, 2, 2 / 4)]  # the order does not matter
    assert black_box_wins(outcomes(white, black, later), finished=True) == []  # one is left of two, and one is no sign


def test_black_box_success_is_a_reason_and_a_rare_one_is_not():
    model, images, labels = correct_points()
    threat, nobody = ThreatModel("Linf", "0.1"), torch.zeros(N, dtype=torch.bool)
    white = ("white-box", torch.zeros(N, dtype=torch.int64))
    for broken, suspected in ((2, False), (3, True)):  # of 40: 5% is not yet enough
        stages = [white, ("score-based", (torch.arange(N) < broken).long())]
        found = look(model, images, labels, threat, stages, standing=nobody)
        assert bool(found.reasons) is suspected
    assert "black-box attacks broke 7.5% of what white-box attacks left standing" in found.reasons[0]


def test_looking_is_cheap_and_counted():
    model, images, labels = correct_points(n=100)
    found = look(model, images, labels, ThreatModel("Linf", "0.1"))
    halvings = 13  # as near as a tenth of what a random step goes along a gradient
    least = torch.tensor([14 + halvings + 7, 5]) * LOOKED_AT
    most = least + PLANTED_STEPS * LOOKED_AT  # of an attack that samples leave once it breaks them, as all do
    spent = torch.tensor([found.passes.forward, found.passes.backward])
    assert bool(((least <= spent) & (spent < most)).all())
    assert look(model, images, labels, ThreatModel("Linf", "0.1"), standing=torch.zeros(100).bool()).passes.forward == 0
