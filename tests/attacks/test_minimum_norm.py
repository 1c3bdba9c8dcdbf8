"""FMN, DDN, SuperDeepFool and σ-zero: closed-form distances, company, cost, stopping, and settings that cannot be."""

import pytest
import torch
from torch import nn

from robustdup import Passes, Registry, SampleRng, ThreatModel, UserError
from robustdup.attacks import register
from robustdup.attacks.fmn import onto_ball
from robustdup.attacks.hyperplane import hyperplane_step
from robustdup.attacks.nearest import Nearest, cosine, pull_back, toward_clean
from robustdup.config import DataOptions
from robustdup.data.digits import load_builtin as digits
from robustdup.models.load import ModelOptions, load_builtin
from robustdup.projections import COUNTS, row_length
from tests.lanes import each_once
from tests.raising import raises

REGISTRY = Registry()
register(REGISTRY)
PAIRS = [
    ("fmn", "Linf"), ("fmn", "L2"), ("fmn", "L1"), ("fmn", "L0"), ("ddn", "L2"),
    ("superdeepfool", "Linf"), ("superdeepfool", "L2"), ("superdeepfool", "L1"), ("sigma-zero", "L0"),
    ("fmn", "L0-pixels"), ("sigma-zero", "L0-pixels"),
]  # fmt: skip
QUICK = {"fmn": {"steps": 6}, "ddn": {"steps": 6}, "superdeepfool": {"steps": 4}, "sigma-zero": {"steps": 8}}
EPS = {"Linf": "0.05", "L2": "0.5", "L1": "2", "L0": "5", "L0-pixels": "5"}


class Linear(nn.Module):
    """Two classes: logits (0, w·x + b), computed row by row in float64, so that company cannot matter."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.double()), bias

    def forward(self, images):
        score = ((images.double().flatten(1) * self.weight).sum(dim=1) + self.bias).float()
        return torch.stack([torch.zeros_like(score), score], dim=1)


def linear_problem(n=12):
    """A linear model and images (n, 3, 4, 3) of class 0, with many values at the bounds of [0, 1]; the gap to close (n,)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(n, 3, 4, 3, generator=generator)
    images[: n // 2] = (images[: n // 2] * 3 - 1).clamp(0, 1)
    weight = torch.randn(36, generator=generator)
    score = images.flatten(1) @ weight
    bias = -float(score.max()) - 1.5
    return Linear(weight, bias), images, torch.zeros(n, dtype=torch.int64), -(score + bias)


def shortest(model, images, gap, norm):
    """The least distance at which w·δ closes the gap with x + δ in [0, 1]: in L0 the largest gains, one after the other."""
    weight, flat = model.weight.detach().float(), images.flatten(1)
    if norm in COUNTS:
        gains = weight.abs() * torch.where(weight > 0, 1 - flat, flat)
        if norm == "L0-pixels":
            gains = gains.view(len(flat), 3, -1).sum(dim=1)
        gains = gains.sort(dim=1, descending=True).values
        return (gains.cumsum(dim=1) < gap[:, None]).sum(dim=1).double() + 1
    return row_length(hyperplane_step(flat, weight.expand_as(flat).contiguous(), -gap, norm), norm)


def run(name, norm, model, images, labels, *, index=None, eps=None, micro_batch=16, **options):
    passes = Passes(model, micro_batch)
    rng = SampleRng(0, torch.arange(len(images)) if index is None else index)
    threat = ThreatModel(norm, eps or EPS[norm])
    return REGISTRY.attacks[name].function(passes, images, labels, threat, rng=rng, **options), passes


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_the_distance_is_the_closed_form_on_a_linear_model_within_one_percent(name, norm):
    model, images, labels, gap = linear_problem()
    adv_images, _ = run(name, norm, model, images, labels, stop_within_eps=False)
    best, threat = shortest(model, images, gap, norm), ThreatModel(norm, EPS[norm])
    ratio = threat.distance(images, adv_images) / best
    assert (model(adv_images).argmax(dim=1) == 1).all()
    assert not threat.violations(images, adv_images).box.any()
    assert float(ratio.max()) < 1.01
    assert float(ratio.min()) > 1 - 1e-5  # no less than the optimum: the model is right up to there
    if norm not in COUNTS:
        free = gap.double() / float(
            row_length(model.weight.detach()[None], {"Linf": "L1", "L2": "L2", "L1": "Linf"}[norm])
        )
        assert float((best / free).max()) > 1.02  # the bounds of [0, 1] matter


@pytest.fixture(scope="module")
def points():
    images, labels = digits("digits", DataOptions(split="test")).fetch(range(24))
    return load_builtin("digits-standard", ModelOptions()).eval(), images, labels, torch.arange(1297, 1321)


@each_once(name__norm=PAIRS, stop=[True, False])
def test_a_row_is_bit_equal_in_any_order_and_company(points, name, norm, stop):
    model, images, labels, index = points
    options = {**QUICK[name], "stop_within_eps": stop}
    everyone, _ = run(name, norm, model, images, labels, index=index, **options)
    assert everyone.isfinite().all()
    assert not torch.equal(everyone, images)
    for rows in (torch.randperm(24, generator=torch.Generator().manual_seed(1)), torch.tensor([17, 2, 9])):
        some, _ = run(name, norm, model, images[rows], labels[rows], index=index[rows], **options)
        assert torch.equal(some, everyone[rows])


class Stubborn(nn.Module):
    """Cannot be fooled; three classes, with a gradient."""

    def forward(self, images):
        score = images.flatten(1).mean(dim=1)
        return torch.stack([score, score * 0.5 - 9, score * 0.2 - 8], dim=1)


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_a_surviving_row_costs_what_the_spec_says_and_stays_in_the_ball(name, norm):
    images = torch.rand(8, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    options = QUICK[name] | ({"classes": 3} if name == "superdeepfool" else {})
    adv_images, passes = run(
        name, norm, Stubborn(), images, torch.zeros(8, dtype=torch.int64), micro_batch=4, **options
    )
    forward, backward = REGISTRY.attacks[name].passes(options)
    halvings = 0 if name == "superdeepfool" else 10  # nothing was met that could be pulled back
    assert (passes.count.forward, passes.count.backward) == (8 * (forward - halvings), 8 * backward)
    assert not ThreatModel(norm, EPS[norm]).violations(images, adv_images).any.any()


@pytest.mark.parametrize(("name", "norm"), PAIRS)
def test_a_sample_leaves_within_eps_unless_it_is_to_go_on(points, name, norm):
    model, images, labels, _ = points
    far = {"Linf": "0.4", "L2": "3", "L1": "15", "L0": "40", "L0-pixels": "40"}[norm]
    stopped, short = run(name, norm, model, images, labels, eps=far, stop_within_eps=True, **QUICK[name])
    nearest, long = run(name, norm, model, images, labels, eps=far, stop_within_eps=False, **QUICK[name])
    threat = ThreatModel(norm, far)
    assert short.count.forward < long.count.forward
    is_adv = [model(images).argmax(dim=1) != labels for images in (stopped, nearest)]
    assert is_adv[0].sum() > 12
    assert (is_adv[1] | ~is_adv[0]).all()
    both = is_adv[0] & (threat.distance(images, stopped) <= threat.radius)
    assert (threat.distance(images, nearest) <= threat.distance(images, stopped))[both].all()
    assert (threat.distance(images, nearest) < threat.distance(images, stopped)).any()


@pytest.mark.parametrize("name", QUICK)
def test_a_sample_that_is_wrong_already_is_its_own_nearest_image(points, name):
    model, images, labels, _ = points
    norm = REGISTRY.attacks[name].norms[0]
    adv_images, _ = run(name, norm, model, images, (labels + 1) % 10, **QUICK[name], stop_within_eps=False)
    assert torch.equal(adv_images, images)


def test_ddn_takes_a_random_direction_where_the_gradient_is_zero():
    class Plateau(nn.Module):
        """No gradient at the very clean image; a boundary on every side of it."""

        def forward(self, images):
            far = (images - 0.5).square().flatten(1).sum(dim=1)
            return torch.stack([torch.full_like(far, 0.01), far], dim=1)

    images, labels = torch.full((4, 1, 4, 4), 0.5), torch.zeros(4, dtype=torch.int64)
    adv_images, _ = run("ddn", "L2", Plateau(), images, labels, steps=40, stop_within_eps=False)
    distance = ThreatModel("L2", 1).distance(images, adv_images)
    assert distance.tolist() == pytest.approx([0.1] * 4, rel=0.01)
    assert len({tuple(image.flatten().tolist()) for image in adv_images}) == 4  # each in a direction of its own


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fmn", {"steps": 0}), ("fmn", {"gamma": 1.0}), ("fmn", {"step_size": 0.0}), ("fmn", {"halvings": -1}),
        ("ddn", {"steps": 0}), ("ddn", {"gamma": 0.0}), ("ddn", {"init_norm": -1.0}), ("ddn", {"halvings": -1}),
        ("superdeepfool", {"steps": 0}), ("superdeepfool", {"classes": 1}), ("superdeepfool", {"overshoot": -0.1}),
        ("sigma-zero", {"steps": 0}), ("sigma-zero", {"sigma": 0.0}), ("sigma-zero", {"threshold": 2.0}),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(points, name, options):
    model, images, labels, _ = points
    with raises("bad-option", UserError, next(iter(options))):
        run(name, REGISTRY.attacks[name].norms[0], model, images, labels, **options)


def test_superdeepfool_needs_another_class():
    class Single(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :1]

    with raises("too-few-classes", UserError, "superdeepfool"):
        run("superdeepfool", "L2", Single(), torch.rand(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("norm", EPS)
def test_the_way_to_the_clean_image_is_as_long_as_it_says(norm):
    images, adv_images = torch.rand(2, 5, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    threat, share = ThreatModel(norm, 1), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    distance = threat.distance(images, toward_clean(images, adv_images, norm, share))
    assert distance.tolist() == pytest.approx(
        (threat.distance(images, adv_images) * share).tolist(), rel=1e-5, abs=1e-6
    )


def test_pulling_back_halves_down_to_the_boundary_of_a_linear_model():
    model, images, labels, _ = linear_problem()
    nearest = Nearest.none(images)
    moved = (images + 0.5 * model.weight.detach().float().view_as(images[:1])).clamp(0, 1)
    is_adv = model(moved).argmax(dim=1) == 1
    assert is_adv.sum() > 6
    nearest.offer(torch.arange(12), moved, (moved - images).flatten(1).norm(dim=1), is_adv)
    pull_back(model, images, labels, ThreatModel("L2", "0.1"), nearest, halvings=24, stop_within_eps=False)
    score = model(nearest.images)[is_adv, 1].detach()
    assert float(score.max()) < 1e-4
    assert float(score.min()) > 0
    assert torch.equal(nearest.images[~is_adv], images[~is_adv])


def test_pulling_back_finds_a_boundary_that_is_near_to_a_few_percent_of_the_way_there():
    model, images, labels, gap = linear_problem()
    images = images * 0.2 + 0.4
    weight = model.weight.detach().float().view_as(images[:1])
    gap = -model(images)[:, 1]
    boundary = weight * (gap / weight.square().sum())[:, None, None, None]
    nearest, index = Nearest.none(images), torch.arange(12)
    moved = images + 1.001 * boundary
    nearest.offer(index, moved, (moved - images).flatten(1).norm(dim=1), torch.ones(12, dtype=torch.bool))
    pull_back(model, images, labels, ThreatModel("L2", "0.1"), nearest, halvings=10, stop_within_eps=False)
    ratio = nearest.distance / boundary.flatten(1).norm(dim=1)
    assert float(ratio.max()) < 1.0001  # halving the whole way ten times ends at steps of 1/1,024
    assert float(ratio.min()) > 1 - 1e-5


def test_fmn_takes_steps_of_the_radius_in_l2_and_stays_inside_it_elsewhere():
    clean = torch.full((2, 1, 2, 2), 0.5)
    moved = clean + torch.tensor([0.1, 0.0, 0.0, 0.05]).view(1, 1, 2, 2)
    radius = torch.tensor([0.02, 0.3])
    for norm, second in (("L2", 0.3), ("Linf", 0.1), ("L1", 0.15)):
        distance = ThreatModel(norm, 1).distance(clean, onto_ball(clean, moved, norm, radius))
        assert distance.tolist() == pytest.approx([0.02, second], rel=1e-5)


def test_the_cosine_falls_from_the_first_to_the_last():
    assert [cosine(1.0, 0.0, step, 2) for step in range(3)] == pytest.approx([1.0, 0.5, 0.0])
