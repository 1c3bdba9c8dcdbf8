"""APGD against the published code step by step, against closed-form optima, and its passes counted by a model of its own."""

import contextlib
import sys
import warnings
from functools import partial
from unittest import mock

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import nn

from robustdup import Passes, SampleRng, ThreatModel, UserError
from robustdup.attacks.apgd import Settings, apgd, apgd_ce, apgd_cost, apgd_dlr
from robustdup.attacks.apgd_run import Phase, ascend, run_phases
from robustdup.attacks.apgd_steps import random_start
from robustdup.attacks.apgd_t import apgd_t, apgd_t_cost, target_order
from robustdup.attacks.losses import ce, cw, dlr, dlr_targeted, misclassified
from robustdup.config import DataOptions
from robustdup.data.digits import load_builtin as digits
from robustdup.errors import AttackWarning
from robustdup.models.load import ModelOptions, load_builtin
from robustdup.projections import fold_sum, project_l1, row_length
from tests.lanes import each_once
from tests.raising import raises

pytestmark = pytest.mark.filterwarnings("ignore:there are .* points with zero gradient")
N = 24
EPS = {
    "digits-robust": {"Linf": "0.1", "L2": "0.7", "L1": "1.2"},
    "digits-standard": {"Linf": "0.05", "L2": "0.4", "L1": "1.5"},
    "batchnorm": {"Linf": "0.02", "L2": "0.15", "L1": "1"},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def correct_points(name, n, dtype=torch.float32):
    """Return a model in eval mode, images that it gets right, and their labels."""
    if name == "batchnorm":
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
                nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
                nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 6),
            ).train()  # fmt: skip
            for _ in range(5):
                model(torch.rand(64, 3, 12, 12))
            images = torch.rand(n, 3, 12, 12).to(dtype)
        model = model.eval().to(dtype)
        return model, images, model(images).argmax(dim=1)
    rows = digits("digits", DataOptions(split="test"))
    images, labels = rows.fetch(range(min(2 * n + 20, len(rows))))
    model, images = load_builtin(name, ModelOptions()).eval().to(dtype), images.to(dtype)
    right = model(images).argmax(dim=1) == labels
    return model, images[right][:n], labels[right][:n]


class Enough(Exception):
    """The first looks are all that a test wants to see."""


class Recorded(nn.Module):
    """Shows the reference a model, and keeps each iterate that it looks at with the step sizes that led there."""

    def __init__(self, model, looks):
        super().__init__()
        self.model, self.looks, self.points, self.step_sizes = model, looks, [], []

    def forward(self, images):
        frame = sys._getframe()
        while frame is not None and frame.f_code.co_name != "attack_single_run":
            frame = frame.f_back
        if frame is not None:
            self.points.append(images.detach().clone())
            step_size = frame.f_locals.get("step_size")
            self.step_sizes.append(None if step_size is None else step_size.detach().flatten().clone())
            if len(self.points) == self.looks:
                raise Enough
        return self.model(images)


def both_paths(name, norm, loss, start, *, dtype=torch.float32, looks=1000):
    """Run the reference, then ours from its start, both for 100 steps or until so many looks.

    Returns the reference's record, our list of (rows, points, step sizes), and which rows each fooled, if it finished.
    """
    model, images, labels = correct_points(name, N, dtype)
    threat, recorded, ours = ThreatModel(norm, EPS[name][norm]), Recorded(model, looks), []
    options = {"norm": norm, "eps": threat.radius, "n_iter": 100, "use_largereps": start == "larger eps"}
    if loss == "dlr-targeted":
        targets = target_order(model(images).detach(), labels, 2)[:, 1]
        reference = APGDAttack_targeted(recorded, **options)
        reference.y_target = targets

        def row_loss(logits, rows):
            return dlr_targeted(logits, labels[rows], targets[rows])
    else:
        reference = APGDAttack(recorded, loss=loss, **options)

        def row_loss(logits, rows):
            return (ce if loss == "ce" else dlr)(logits, labels[rows])

    def watch(step, rows, points, step_size):
        ours.append((rows.clone(), points.clone(), step_size.clone()))
        if len(ours) == looks:
            raise Enough

    reference.init_hyperparam(images)
    found = run = None
    with torch.random.fork_rng(), contextlib.suppress(Enough):
        torch.manual_seed(0)
        if start == "larger eps":
            found = reference.decr_eps_pgd(images, labels, [c * threat.radius for c in (3, 2, 1)], [30, 30, 40])
        elif start == "given":
            given = threat.project(images, images + torch.randn_like(images))
            found = reference.attack_single_run(images, labels, x_init=given)
        else:
            found = reference.attack_single_run(images, labels)
    passes, first = Passes(model, N), recorded.points[0]  # padded to N rows: the same arithmetic as the reference's
    with contextlib.suppress(Enough):
        if start == "larger eps":
            run = run_phases(
                passes,
                images,
                labels,
                Settings(100, 1, 1, 0.75, larger_eps=True).phases(threat),
                row_loss,
                first,
                watch=watch,
            )
        else:
            phase = Phase(threat, 100, resumed=start == "given")
            run = ascend(passes, images, labels, phase, row_loss, first, watch=watch)
    return recorded, ours, run and run.is_adv, found and ~found[1]


def departures(recorded, ours, tolerance):
    """Return for each row the first step at which ours is not the reference's point, or step size; 999 where none."""
    first = torch.full((N,), 999)
    for step, (rows, points, step_size) in enumerate(ours):
        off = (points - recorded.points[step][rows]).abs().flatten(1).amax(dim=1) > tolerance
        if recorded.step_sizes[step] is not None:
            off |= (step_size - recorded.step_sizes[step][rows]).abs() > tolerance
        first[rows[off]] = first[rows[off]].clamp(max=step)
    return first


@each_once(name=EPS, loss=["ce", "dlr", "dlr-targeted"])
def test_linf_iterates_and_step_sizes_are_the_references_for_all_100_steps(name, loss):
    recorded, ours, by_us, by_them = both_paths(name, "Linf", loss, "random")
    assert len(ours) == len(recorded.points) == 101
    assert int(departures(recorded, ours, 1e-6).min()) == 999
    assert len({float(size) for _, _, sizes in ours for size in sizes}) >= 4  # steps were halved along the way
    assert torch.equal(by_us, by_them)


@each_once(name=EPS, loss=["ce", "dlr-targeted"])
def test_l2_iterates_and_step_sizes_are_the_references_for_all_100_steps_in_double_precision(name, loss):
    """In single precision some row's loss, saturated, rises or falls by its last bit: see the next test."""
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            recorded, ours, by_us, by_them = both_paths(name, "L2", loss, "random", dtype=torch.float64)
    finally:
        torch.set_default_dtype(torch.float32)
    assert int(departures(recorded, ours, 1e-9).min()) == 999
    assert torch.equal(by_us, by_them)


@each_once(
    name=EPS,
    norm__loss__start=[
        ("L2", "ce", "random"), ("L2", "dlr-targeted", "random"), ("L1", "ce", "random"), ("L1", "dlr", "random"),
        ("L1", "dlr-targeted", "random"), ("L1", "ce", "given"),
    ],
)  # fmt: skip
def test_l2_and_l1_iterates_are_the_references_for_25_steps(name, norm, loss, start):
    """But for a row or two, where the last bit decides: a tie of losses, or a pixel that differs from x by rounding."""
    recorded, ours, _, _ = both_paths(name, norm, loss, start, looks=26)
    first = departures(recorded, ours, 1e-5)
    assert len(ours) >= 8
    assert int((first > 25).sum()) >= N - 2
    assert int(first.min()) > 8


def test_larger_radii_are_the_references():
    """The iterates at 3 eps, the step sizes in all phases, and which rows fall."""
    recorded, ours, by_us, by_them = both_paths("digits-standard", "L1", "ce", "larger eps")
    first = departures(recorded, ours, 1e-5)
    assert len(ours) == len(recorded.points) == 31 + 31 + 41
    assert int((first > 30).sum()) >= N - 1
    assert int((first == 999).sum()) >= N - 6
    assert 2 < int(by_them.sum()) < N - 2
    assert int((by_us != by_them).sum()) <= 1


@pytest.mark.parametrize("loss", ["ce", "dlr", "dlr-targeted"])
def test_verdicts_on_digits_are_the_references(loss):
    """Each attack alone on 32 samples, three seeds: the same number broken within the seeds' spread, few discordant."""
    model, images, labels = correct_points("digits-robust", 32)
    threat = ThreatModel("Linf", "0.12")
    ours, theirs = [], []
    for seed in range(3):
        rng, passes = SampleRng(seed, torch.arange(len(images))), Passes(model, 32)
        options = {"norm": "Linf", "eps": threat.radius, "n_iter": 30, "seed": seed}
        if loss == "dlr-targeted":
            adv_images = apgd_t(passes, images, labels, threat, rng=rng, steps=30, targets=2)
            reference = APGDAttack_targeted(model, n_target_classes=2, **options)
        else:
            adv_images = (apgd_ce if loss == "ce" else apgd_dlr)(passes, images, labels, threat, rng=rng, steps=30)
            reference = APGDAttack(model, loss=loss, **options)
        with torch.random.fork_rng():
            theirs.append(misclassified(model(reference.perturb(images, labels)), labels))
        ours.append(misclassified(model(adv_images), labels))
        assert not threat.violations(images, adv_images).any.any()
    by_us, by_them = torch.stack(ours), torch.stack(theirs)
    assert 4 < int(by_them[0].sum()) < 28
    assert abs(float(by_us.double().sum(dim=1).mean() - by_them.double().sum(dim=1).mean())) <= 1.5
    assert int((by_us.any(dim=0) != by_them.any(dim=0)).sum()) <= 2


class Counting(nn.Module):
    """Linear, and counts its own rows, forward and backward; fooled where an image's mean is above `limit`."""

    def __init__(self, classes=12, limit=9.0):
        super().__init__()
        self.forward_rows = self.backward_rows = 0
        self.classes, self.limit = classes, limit

    def forward(self, images):
        self.forward_rows += len(images)
        score = images.flatten(1).mean(dim=1) - self.limit
        logits = torch.stack([score * 0, *(score - c for c in range(self.classes - 1))], dim=1)
        if logits.requires_grad:
            logits.register_hook(self.count)
        return logits

    def count(self, grad):
        self.backward_rows += len(grad)


DEFAULTS = {"steps": 100, "restarts": 1, "eot": 1, "larger_eps": False}


@pytest.mark.parametrize(
    ("attack", "norm", "options", "cost"),
    [
        (apgd_ce, "Linf", {}, (101, 100)),
        (apgd_dlr, "L2", {"restarts": 2}, (202, 200)),
        (apgd, "L1", {"steps": 7, "eot": 3}, (3 * 8 + 4 * 3, 21)),
        (apgd_ce, "L1", {"larger_eps": True, "restarts": 2, "steps": 30}, (2 * 33, 60)),
        (apgd_t, "Linf", {"steps": 5}, (1 + 9 * 6, 45)),
        (apgd_t, "L1", {"steps": 10, "targets": 2, "larger_eps": True}, (1 + 2 * 13, 20)),
    ],
)
def test_a_surviving_row_pays_what_is_said(attack, norm, options, cost):
    model, images = Counting(), torch.rand(4, 1, 3, 3)
    labels, rng = torch.zeros(4, dtype=torch.int64), SampleRng(0, torch.arange(4))
    attack(Passes(model, 4), images, labels, ThreatModel(norm, "0.1"), rng=rng, **options)
    assert (model.forward_rows, model.backward_rows) == (4 * cost[0], 4 * cost[1])
    said = apgd_t_cost if attack is apgd_t else apgd_cost
    assert said({**DEFAULTS, "targets": 9, **options}) == cost


def test_what_is_said_of_long_runs():
    assert apgd_t_cost({**DEFAULTS, "targets": 9}) == (1 + 9 * 101, 900)
    assert apgd_cost({**DEFAULTS, "larger_eps": True, "restarts": 5}) == (5 * 103, 500)


@pytest.mark.parametrize(("attack", "cost"), [(apgd_ce, (1, 1)), (apgd_t, (1, 0))])
def test_a_row_that_is_fooled_at_once_pays_one_look(attack, cost):
    model, images = Counting(limit=0.0), torch.full((4, 1, 3, 3), 0.5)
    threat, labels, rng = ThreatModel("Linf", "0.1"), torch.zeros(4, dtype=torch.int64), SampleRng(0, torch.arange(4))
    adv_images = attack(Passes(model, 4), images, labels, threat, rng=rng)
    assert (model.forward_rows, model.backward_rows) == (4 * cost[0], 4 * cost[1])
    assert bool(misclassified(model(adv_images), labels).all())


def test_a_row_leaves_with_the_iterate_that_fooled_it():
    images = torch.full((2, 1, 3, 3), 0.5)
    images[1] = 0.1
    model, labels = Counting(limit=0.55), torch.zeros(2, dtype=torch.int64)
    passes = Passes(model, 2)
    apgd_ce(passes, images, labels, ThreatModel("Linf", "0.1"), rng=SampleRng(0, torch.arange(2)), steps=20)
    assert 22 + 1 <= passes.count.forward <= 22 + 4  # 21 looks for the one that survives, two or so for the other


class Linear(nn.Module):
    """Label 0 far ahead of the others, which all rise along one direction: so do CE, DLR and targeted DLR."""

    def __init__(self, weight, classes):
        super().__init__()
        self.weight, self.classes = weight, classes

    def forward(self, images):
        score = images.flatten(1) @ self.weight - 7
        return torch.stack([score * 0, *(score - k for k in range(self.classes - 1))], dim=1)


def best_gain(image, weight, norm, eps):
    """The largest w·δ with x + δ in the ball and the box, by search along the dual variable in fp64."""
    x, w = image.double().flatten(), weight.double()
    room, size = torch.where(w > 0, 1 - x, x), w.abs()
    if norm == "Linf":
        return float((size * room.clamp(max=eps)).sum())
    if norm == "L1":
        left, gain = eps, 0.0
        for pixel in size.argsort(descending=True).tolist():
            take = min(left, float(room[pixel]))
            left, gain = left - take, gain + take * float(size[pixel])
        return gain
    low, high = 0.0, 1e9
    for _ in range(200):
        s = (low + high) / 2
        low, high = (s, high) if float(torch.minimum(s * size, room).norm()) < eps else (low, s)
    return float((size * torch.minimum(low * size, room)).sum())


LINEAR_EPS = {"Linf": "0.1", "L2": "1.2", "L1": "4"}


def linear_problem(classes):
    generator = torch.Generator().manual_seed(classes)
    images = torch.rand(8, 1, 6, 7, generator=generator)
    images[:4] = (images[:4] * 3 - 1).clamp(0, 1)  # many pixels at the bounds: the box is active
    weight = 0.3 * torch.randn(42, generator=generator)
    labels, rng = torch.zeros(8, dtype=torch.int64), SampleRng(0, torch.arange(8))
    return Linear(weight, classes), weight, images, labels, rng


def gains(images, adv_images, weight, threat):
    """Return the gain of each row and the largest possible, (8,) each."""
    gain = (adv_images - images).flatten(1).double() @ weight.double()
    assert not threat.violations(images, adv_images).any.any()
    return gain, torch.tensor([best_gain(image, weight, threat.norm, threat.radius) for image in images])


@each_once(classes=[2, 3, 10], norm__tolerance=[("Linf", 1e-5), ("L2", 0.02)])  # L2: ball and box are cut in turn
@pytest.mark.parametrize("attack", [apgd_ce, apgd_dlr, partial(apgd_t, targets=2)], ids=["ce", "dlr", "t"])
@pytest.mark.filterwarnings("ignore::robustdup.errors.AttackWarning")
def test_the_optimum_of_a_linear_model_is_reached(norm, tolerance, classes, attack):
    model, weight, images, labels, rng = linear_problem(classes)
    threat = ThreatModel(norm, LINEAR_EPS[norm])
    gain, best = gains(images, attack(model, images, labels, threat, rng=rng), weight, threat)
    assert gain.tolist() == pytest.approx(best.tolist(), rel=tolerance)


@each_once(classes=[10, 3, 2], attack=[apgd_ce, apgd_dlr, partial(apgd_t, targets=2)])
@pytest.mark.filterwarnings("ignore::robustdup.errors.AttackWarning")
def test_in_l1_the_optimum_is_reached_where_the_best_pixels_have_room(classes, attack):
    """Six pixels count far more than the rest: all of eps must go there, however it is shared among them."""
    model, weight, images, labels, rng = linear_problem(classes)
    images, threat = 0.4 + 0.2 * images, ThreatModel("L1", "0.8")
    weight.copy_(torch.where(torch.arange(42) % 7 == 3, weight.sign(), 0.1 * weight))
    gain, best = gains(images, attack(model, images, labels, threat, rng=rng), weight, threat)
    assert best.tolist() == pytest.approx([0.8] * 8)
    assert gain.tolist() == pytest.approx([0.8] * 8, rel=1e-4)


def test_in_l1_where_pixels_are_full_it_comes_as_close_as_the_reference():
    """The published sparsity gets stuck where its pixels have reached the box: restarts and larger radii help."""
    model, weight, images, labels, rng = linear_problem(10)
    threat = ThreatModel("L1", LINEAR_EPS["L1"])
    for options in ({"restarts": 5}, {"larger_eps": True}):
        gain, best = gains(images, apgd_ce(model, images, labels, threat, rng=rng, **options), weight, threat)
        assert float((gain / best).min()) > 0.85
        assert float((gain / best).mean()) > 0.96
        assert float((gain / best).max()) < 1 + 1e-5


RUNS = [
    (apgd_ce, {"steps": 12}), (apgd_dlr, {"steps": 6, "restarts": 2}), (apgd_t, {"steps": 8, "targets": 2}),
    (apgd_ce, {"steps": 20, "larger_eps": True}),
]  # fmt: skip


@each_once(norm=["Linf", "L2", "L1"], attack__options=RUNS[:3])
def test_a_row_is_bit_equal_in_any_order_and_company(attack, options, norm):
    model, images, labels = correct_points("digits-standard", 40)
    threat = ThreatModel(norm, EPS["digits-standard"][norm])

    def attacked(rows):
        rng = SampleRng(3, 1000 + rows)
        return attack(Passes(model, 16), images[rows], labels[rows], threat, rng=rng, **options)

    everyone = attacked(torch.arange(40))
    some_fooled = misclassified(model(everyone), labels)
    assert 0 < int(some_fooled.sum()) < 40
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    for rows in (shuffled, shuffled[:20], shuffled[20:], torch.tensor([39, 0]), torch.tensor([7])):
        assert torch.equal(attacked(rows), everyone[rows])


def test_a_row_is_bit_equal_with_larger_radii_too():
    test_a_row_is_bit_equal_in_any_order_and_company(*RUNS[3], "L1")


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_wide_rows_are_bit_equal_in_company_too(norm):
    """3x32x32: sums over many pixels, the projection and the sparsity."""
    model, images, labels = correct_points("batchnorm", 1)
    images = torch.rand(9, 3, 31, 33, generator=torch.Generator().manual_seed(0))
    labels, threat = model(images).argmax(dim=1), ThreatModel(norm, {"Linf": "0.01", "L2": "0.3", "L1": "5"}[norm])

    def attacked(rows):
        return apgd_ce(Passes(model, 4), images[rows], labels[rows], threat, rng=SampleRng(0, rows), steps=12)

    everyone = attacked(torch.arange(9))
    for rows in (torch.arange(9).flip(0), torch.tensor([4])):
        assert torch.equal(attacked(rows), everyone[rows])
    assert not threat.violations(images, everyone).any.any()


def test_fold_sum_is_the_sum():
    for width in (1, 2, 63, 64, 65, 127, 3 * 31 * 33, 3072):
        values = torch.rand(5, width)
        assert torch.allclose(fold_sum(values).double(), values.double().sum(dim=1), rtol=1e-6)
        assert torch.equal(fold_sum(values)[2:3], fold_sum(values[2:3]))


@pytest.mark.parametrize(
    ("shape", "eps"), [((1, 8, 8), "5"), ((3, 16, 17), "12"), ((1, 5, 3), "0.5"), ((3, 9, 9), "200")]
)
@pytest.mark.parametrize("scale", [0.01, 0.3, 2.0])
def test_the_l1_projection_is_exact(shape, eps, scale):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(32, *shape, generator=generator)
    images[:16] = (images[:16] * 3 - 1).clamp(0, 1)
    moved = images + scale * torch.randn(images.shape, generator=generator)
    moved[0], threat = images[0], ThreatModel("L1", eps)
    projected = project_l1(images, moved, threat.radius)
    assert not threat.violations(images, projected).any.any()
    assert float((projected - threat.project(images.double(), moved.double())).abs().max()) < 2e-6


@pytest.mark.parametrize("pixels", [1, 2, 3, 5, 40])
def test_the_l1_projection_is_exact_where_few_long_steps_meet_the_box(pixels):
    """Coarse values make ties of kinks, on which Newton's steps alone go round in circles."""
    generator = torch.Generator().manual_seed(pixels)
    images = torch.randint(0, 17, (3000, 1, 8, 8), generator=generator) / 16
    steps = torch.randint(-27, 28, images.shape, generator=generator) / 16
    chosen = torch.rand(3000, 64, generator=generator).argsort(dim=1).view_as(images) < pixels
    moved, threat = images + steps * chosen, ThreatModel("L1", "1.5")
    projected = project_l1(images, moved, threat.radius)
    assert not threat.violations(images, projected).any.any()
    assert float((projected - threat.project(images.double(), moved.double())).abs().max()) < 2e-6


@pytest.mark.parametrize(("norm", "length"), [("Linf", 0.2), ("L2", 0.2), ("L1", 0.2)])
def test_starts_lie_on_the_sphere_and_belong_to_the_row(norm, length):
    images, rng = torch.full((6, 1, 4, 5), 0.5), SampleRng(0, torch.arange(6))
    start = random_start(images, ThreatModel(norm, "0.2"), rng, draw=0)
    assert row_length(start - images, norm).tolist() == pytest.approx([length] * 6, rel=1e-5)
    assert torch.equal(random_start(images[2:3], ThreatModel(norm, "0.2"), rng[2:3], draw=0), start[2:3])
    assert not torch.equal(random_start(images, ThreatModel(norm, "0.2"), rng, draw=1), start)


def test_survivors_return_their_highest_loss_and_the_worst_of_their_runs():
    model, images, labels = correct_points("digits-robust", 30)
    threat, rng = ThreatModel("Linf", "0.05"), SampleRng(0, torch.arange(30))
    values = []
    for restarts in (1, 4):
        adv_images = apgd_ce(model, images, labels, threat, rng=rng, steps=10, restarts=restarts)
        values.append(cw(model(adv_images), labels))
    assert bool((values[1] >= values[0] - 1e-5)[values[0] < 0].all())
    assert bool((values[1] > values[0] + 1e-3).any())
    assert bool((values[0] > cw(model(images), labels) + 0.1).all())


def test_targets_are_the_most_likely_wrong_classes():
    logits = torch.tensor([[5.0, 1.0, 4.0, 2.0], [0.0, 3.0, 3.0, 1.0]])
    assert target_order(logits, torch.tensor([0, 1]), 9).tolist() == [[2, 3, 1], [2, 3, 0]]
    assert target_order(logits, torch.tensor([0, 1]), 1).tolist() == [[2], [2]]


@pytest.mark.parametrize(
    ("attack", "classes", "message"),
    [
        (apgd_dlr, 2, "apgd-dlr: DLR needs at least 3 classes, the model has 2; the margin was used instead."),
        (lambda *a, **k: apgd(*a, loss="dlr", **k), 2, "apgd: DLR needs at least 3 classes, the model has 2"),
        (apgd_t, 3, "apgd-t: targeted DLR needs at least 4 classes, the model has 3; the targeted margin was used"),
    ],
)
def test_too_few_classes_for_dlr_are_said_once(attack, classes, message):
    model, images = Counting(classes, limit=0.55), torch.full((3, 1, 3, 3), 0.5)
    labels, rng = torch.zeros(3, dtype=torch.int64), SampleRng(0, torch.arange(3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adv_images = attack(Passes(model, 2), images, labels, ThreatModel("Linf", "0.1"), rng=rng, steps=10)
    said = [str(warning.message) for warning in caught if warning.category is AttackWarning]
    assert len(said) == 1
    assert said[0].startswith(message)
    assert bool(misclassified(model(adv_images), labels).all())


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        (apgd_ce, {"larger_eps": True}, "apgd-ce: larger_eps works in L1 only, the threat model is Linf, eps = 0.1"),
        (apgd_t, {"larger_eps": True}, "apgd-t: larger_eps works in L1 only"),
        (apgd_ce, {"steps": 0}, "apgd-ce: steps must be at least 1, got 0"),
        (apgd_t, {"targets": 0}, "apgd-t: targets must be at least 1, got 0"),
        (apgd_dlr, {"rho": 1.5}, "apgd-dlr: rho is a share of steps between 0 and 1, got 1.5"),
        (apgd, {"loss": "dlrr"}, "Unknown loss 'dlrr'. Did you mean 'dlr'"),
    ],
)
def test_settings_that_cannot_work_are_refused(attack, options, message):
    images, labels = torch.rand(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(UserError, match=message):
        attack(Counting(), images, labels, ThreatModel("Linf", "0.1"), rng=SampleRng(0, torch.arange(2)), **options)


def test_larger_eps_needs_steps_for_three_radii():
    images, labels, rng = torch.rand(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64), SampleRng(0, torch.arange(2))
    with raises("bad-option", UserError, "larger_eps", "5", "4"):
        apgd_ce(Counting(), images, labels, ThreatModel("L1", "1"), rng=rng, steps=4, larger_eps=True)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_nan_for_some_rows_harms_no_other(norm):
    class Sick(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, images):
            sick = (images[:, 0, 7, 7] - 0.9).abs() < 0.3
            return torch.where(sick[:, None], torch.nan, self.model(images))

    model, images, labels = correct_points("digits-standard", 12)
    images = images.clone()
    images[:, 0, 7, 7] = torch.where(torch.arange(12) % 3 == 0, 0.9, 0.1)
    threat, rng = ThreatModel(norm, "0.05"), SampleRng(0, torch.arange(12))
    whole = apgd_ce(Passes(Sick(model), 4), images, labels, threat, rng=rng, steps=10)
    healthy = torch.arange(12) % 3 != 0
    alone = apgd_ce(Passes(model, 4), images[healthy], labels[healthy], threat, rng=rng[healthy], steps=10)
    assert torch.equal(whole[healthy], alone)
    assert bool(whole.isfinite().all())
    assert bool(misclassified(Sick(model)(whole), labels)[~healthy].all())


def test_a_nan_loss_is_never_the_best():
    def loss(logits, labels):
        return torch.where(logits[:, 0] > logits[:, 1] + 5, torch.nan, ce(logits, labels))

    model, images, labels = correct_points("digits-standard", 8)
    threat, rng = ThreatModel("Linf", "0.01"), SampleRng(0, torch.arange(8))
    adv_images = apgd(model, images, labels, threat, rng=rng, steps=10, loss=loss)
    assert bool(adv_images.isfinite().all())


@pytest.mark.parametrize(("attack", "options"), RUNS)
def test_no_rows_give_no_rows(attack, options):
    model, images, labels = correct_points("digits-standard", 3)
    passes, rng = Passes(model, 4), SampleRng(0, torch.arange(0))
    adv_images = attack(passes, images[:0], labels[:0], ThreatModel("L1", "1"), rng=rng, **options)
    assert adv_images.shape == (0, 1, 8, 8)
    assert passes.count.forward == 0
