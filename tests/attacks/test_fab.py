"""FAB and FAB-T: against the published code, step by step and by verdict; closed-form distances; passes; company."""

import pytest
import torch
from pyautoattack.fab_pt import FABAttack_PT
from torch import nn

from robustdup import Passes, SampleRng, ThreatModel, UserError
from robustdup.attacks.fab import Nearest, Settings, fab, fab_cost, nearest_boundary, walk
from robustdup.attacks.fab_t import fab_t, fab_t_cost, toward
from robustdup.config import DataOptions
from robustdup.data.digits import load_builtin as digits
from robustdup.models.load import ModelOptions, load_builtin
from robustdup.projections import row_length
from tests.lanes import each_once
from tests.raising import raises

EPS = {"Linf": "0.15", "L2": "0.9", "L1": "1.8"}
NORMS = list(EPS)


class Recorder(nn.Module):
    """Keeps every batch that goes through a model, and counts its rows, forward and backward."""

    def __init__(self, model):
        super().__init__()
        self.model, self.inputs, self.forward_rows, self.backward_rows = model, [], 0, 0

    def forward(self, images):
        self.inputs.append(images.detach().clone())
        self.forward_rows += len(images)
        logits = self.model(images)
        if logits.requires_grad:
            logits.register_hook(self.count)
        return logits

    def count(self, grad):
        self.backward_rows += len(grad)


class Colour(nn.Module):
    """An untrained network with BatchNorm for 3x6x5 images, four classes, sharp enough to have boundaries nearby."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8),
            nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 3, 4),
        )  # fmt: skip
        with torch.no_grad():
            self.train()
            for _ in range(40):
                self.body(torch.rand(64, 3, 6, 5))
        self.eval()

    def forward(self, images):
        return 5 * self.body(images)


class Linear(nn.Module):
    """Any number of classes with affine logits; computes row by row in float64, so that company cannot matter."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.double()), nn.Parameter(bias.double())

    def forward(self, images):
        return (images.double().flatten(1) @ self.weight.T + self.bias).float()


def frozen(model):
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["digits-robust", "digits-standard", "colour"])
def network(request):
    """A frozen model with points that it gets right."""
    with torch.random.fork_rng():
        if request.param == "colour":
            model, images = frozen(Colour()), torch.rand(48, 3, 6, 5, generator=torch.Generator().manual_seed(5))
            top = model(images).topk(2, dim=1).values
            clear = (top[:, 0] - top[:, 1]).argsort(descending=True)[:24]  # else rounding decides the first steps
            return request.param, model, images[clear], model(images[clear]).argmax(dim=1)
    model = frozen(load_builtin(request.param, ModelOptions()))
    images, labels = digits("digits", DataOptions(split="test")).fetch(range(24))
    right = model(images).argmax(dim=1) == labels
    return request.param, model, images[right], labels[right]


@pytest.fixture(scope="module")
def robust():
    model = frozen(load_builtin("digits-robust", ModelOptions()))
    images, labels = digits("digits", DataOptions(split="test")).fetch(range(240))
    right = (model(images).argmax(dim=1) == labels).nonzero()[:200, 0]
    return model, images[right], labels[right], right + 1297


def published_walk(model, images, labels, norm, steps, target, random):
    """One run of the published code: its iterates before each step and as they are checked, and what it found."""
    recorder = Recorder(model)
    attack = FABAttack_PT(
        recorder, norm=norm, n_iter=steps, eps=float(EPS[norm]), targeted=target is not None, device="cpu"
    )
    attack.target_class = target
    with torch.random.fork_rng():
        torch.manual_seed(7)
        found = attack.attack_single_run(images, labels, use_rand_start=random, is_targeted=target is not None)
    first = 1 if target is None else 2  # calls on the clean images
    return recorder.inputs[first::2], recorder.inputs[first + 1 :: 2], found


@each_once(norm=NORMS, target__random=[(None, False), (2, True), (4, False)])
def test_iterates_equal_the_published_ones_for_20_steps(network, norm, target, random):
    """Step by step from the published iterates: all rows. Walking freely: all rows but those where a rounding error
    meets a kink of the network or a margin of zero, from where on two walks part."""
    _, model, images, labels = network
    before, after, found = published_walk(model, images, labels, norm, 20, target, random)
    rows, threat = torch.arange(len(images)), ThreatModel(norm, EPS[norm])
    if target is None:
        linearise = lambda points, rows: nearest_boundary(model, points, labels[rows], norm)  # noqa: E731
    else:
        linearise = toward(model, labels, model(images).argsort(dim=1)[:, -target])

    def walked(start, steps):
        nearest, iterates = Nearest.none(images), []
        settings = Settings(steps, stop_within_eps=False)
        watch = lambda step, index, points: iterates.append(points.clone())  # noqa: E731
        walk(model, images, labels, threat, start, rows, linearise, nearest, settings, watch)
        return nearest, iterates

    assert len(before) == len(after) == 20
    assert random == (not torch.equal(before[0], images))
    assert float((after[19] - images).abs().max()) > 0.02
    for start, expected in zip(before, after, strict=True):
        _, (iterate,) = walked(start, 1)
        assert float((iterate - expected).abs().max()) <= 1e-5
    nearest, iterates = walked(before[0], 20)
    apart = (torch.stack(iterates) - torch.stack(after)).abs().amax(dim=(0, 2, 3, 4))
    parted = {int(row): float(apart[row]) for row in (apart > 1e-5).nonzero()[:, 0]}
    assert len(parted) <= 1, parted
    if not random:  # a random start that is misclassified counts here, and not there
        same = (apart <= 1e-5) & nearest.distance.isfinite()
        # Two iterates may be as near as each other: then rounding says which one was kept, not how near it is.
        near, expected = row_length(nearest.images - images, norm), row_length(found - images, norm)
        assert float((near - expected)[same].abs().max()) <= 1e-5 * float(expected[same].max())
        assert int(same.sum()) > len(images) / 2


VERDICT_CASES = [(True, 3, 15), (False, 9, 8), pytest.param(True, 9, 100, marks=pytest.mark.slow)]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("targeted", "targets", "steps"), VERDICT_CASES)
def test_verdicts_equal_the_published_ones(robust, norm, targeted, targets, steps):
    model, images, labels, index = robust
    if steps < 50:
        images, labels, index = images[:80], labels[:80], index[:80]
    threat = ThreatModel(norm, EPS[norm])
    options = {"norm": norm, "n_iter": steps, "eps": threat.radius, "device": "cpu", "n_target_classes": targets}
    with torch.random.fork_rng():
        theirs = FABAttack_PT(model, targeted=targeted, **options).perturb(images, labels)
    rng = SampleRng(0, index)
    if targeted:
        ours = fab_t(Passes(model, 64), images, labels, threat, rng=rng, targets=targets, steps=steps)
    else:
        ours = fab(Passes(model, 64), images, labels, threat, rng=rng, steps=steps)

    def broken(adv_images):
        return (model(adv_images).argmax(dim=1) != labels) & (threat.distance(images, adv_images) <= threat.radius)

    ours, theirs = broken(ours), broken(theirs)
    discordant = {int(row): ("only ours" if ours[row] else "only theirs") for row in (ours != theirs).nonzero()[:, 0]}
    assert len(discordant) <= 1, discordant
    assert len(images) // 10 <= int(theirs.sum()) <= len(images) - len(images) // 10


def nearest_of_two(image, weight, value, norm):
    """The distance from an image to where value + weight · δ = 0 inside the box, by bisection on the dual in float64."""
    x, w = image.double().flatten(), (weight * value.sign()).double()
    room, size, goal = torch.where(w < 0, 1 - x, x), w.abs(), float(value.abs())
    if float((size * room).sum()) < goal:
        return float("inf")
    if norm == "L1":
        left, distance = goal, 0.0
        for pixel in size.argsort(descending=True).tolist():
            gain = min(left, float(size[pixel] * room[pixel]))
            left, distance = left - gain, distance + gain / float(size[pixel])
        return distance
    low, high = 0.0, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        move = torch.minimum(middle * (size if norm == "L2" else torch.ones_like(size)), room)
        low, high = (middle, high) if float((size * move).sum()) < goal else (low, middle)
    move = torch.minimum(low * (size if norm == "L2" else torch.ones_like(size)), room)
    return float(move.norm()) if norm == "L2" else float(move.max())


@each_once(norm=NORMS, boxed=[True, False], classes__shape=[(5, (3, 4, 4)), (2, (1, 6, 5))])
@pytest.mark.parametrize("attack", [fab, fab_t])
def test_the_distance_on_a_linear_model_is_within_a_hundredth_of_the_optimum(attack, norm, boxed, classes, shape):
    generator = torch.Generator().manual_seed(classes)
    images = torch.rand(12, *shape, generator=generator)
    images = (images * 3 - 1).clamp(0, 1) if boxed else 0.3 + 0.4 * images
    size = images[0].numel()
    weight = torch.randn(classes, size, generator=generator)
    bias = -weight.sum(dim=1) / 2 + (1 if boxed else 0.05) * torch.randn(classes, generator=generator)
    model = frozen(Linear(weight, bias))
    labels = model(images).argmax(dim=1)
    distances, logits = [], model(images)
    for row in range(12):
        mine = int(labels[row])
        others = [k for k in range(classes) if k != mine]
        gaps = [
            nearest_of_two(images[row], weight[k] - weight[mine], logits[row, k] - logits[row, mine], norm)
            for k in others
        ]
        distances.append(min(gaps))
    best = torch.tensor(distances, dtype=torch.float64)
    threat = ThreatModel(norm, "0.001")
    rng = SampleRng(0, torch.arange(12))
    adv_images = attack(model, images, labels, threat, rng=rng, steps=60, stop_within_eps=False)
    assert bool((model(adv_images).argmax(dim=1) != labels).all())
    assert float(adv_images.min()) >= 0
    assert float(adv_images.max()) <= 1
    ratio = threat.distance(images, adv_images) / best
    assert float(ratio.min()) > 1 - 1e-4, ratio
    # FAB chooses the class by the distance without the box, which in L1 need not be the nearest inside it.
    assert float(ratio.max()) < (1.03 if (attack, norm, classes) == (fab, "L1", 5) else 1.01), ratio


class Stubborn(nn.Module):
    """Cannot be fooled: ten classes, the first always far ahead, with a gradient."""

    def forward(self, images):
        score = images.flatten(1).mean(dim=1, keepdim=True)
        return torch.cat([score + 90, score * torch.linspace(-1, 1, 9)], dim=1)


@pytest.mark.parametrize(
    ("attack", "cost", "options", "passes"),
    [
        (fab_t, fab_t_cost, {"steps": 10}, (181, 90)),
        (fab_t, fab_t_cost, {"targets": 3, "steps": 5, "restarts": 2}, (61, 30)),
        (fab, fab_cost, {"steps": 10}, (20, 100)),
        (fab, fab_cost, {"steps": 4, "restarts": 3}, (24, 120)),
    ],
)
def test_a_surviving_row_pays_what_the_cost_says(attack, cost, options, passes):
    recorder = Recorder(Stubborn())
    images = torch.rand(6, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    labels, rng = torch.zeros(6, dtype=torch.int64), SampleRng(0, torch.arange(6))
    threat = ThreatModel("Linf", "0.1")
    counted = Passes(recorder, 6)
    adv_images = attack(counted, images, labels, threat, rng=rng, **options)
    defaults = {"targets": 9, "steps": 100, "restarts": 1}
    assert cost({**defaults, **options}) == passes
    assert (recorder.forward_rows, recorder.backward_rows) == (6 * passes[0], 6 * passes[1])
    assert (counted.count.forward, counted.count.backward) == (6 * passes[0], 6 * passes[1])
    assert not threat.violations(images, adv_images).any.any()
    assert float((adv_images - images).flatten(1).abs().amax(dim=1).min()) > 0  # the last iterate, not the clean image


def test_what_is_said_of_long_runs():
    defaults = {"targets": 9, "steps": 100, "restarts": 1}
    assert (fab_t_cost(defaults), fab_cost(defaults)) == ((1801, 900), (200, 1000))


ATTACKS = [(fab, {"steps": 4, "restarts": 2}), (fab_t, {"steps": 5, "targets": 3, "restarts": 2})]


@each_once(norm=NORMS, stop=[True, False])
@pytest.mark.parametrize(("attack", "options"), ATTACKS)
def test_a_row_is_bit_equal_in_any_order_and_company(robust, attack, options, norm, stop):
    model, images, labels, index = robust

    def attacked(rows):
        rng = SampleRng(3, index[rows])
        return attack(
            Passes(model, 16), images[rows], labels[rows], ThreatModel(norm, EPS[norm]), rng=rng, stop_within_eps=stop,
            **options,
        )  # fmt: skip

    everyone = attacked(torch.arange(24))
    shuffled = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    for rows in (shuffled, torch.arange(12, 24), torch.tensor([7])):
        assert torch.equal(attacked(rows), everyone[rows])


@pytest.mark.parametrize("norm", NORMS)
def test_restarts_find_more_or_the_same(robust, norm):
    model, images, labels, index = robust
    threat = ThreatModel(norm, EPS[norm])
    distances = []
    for restarts in (1, 3):
        options = {"steps": 5, "restarts": restarts, "stop_within_eps": False}
        adv_images = fab_t(model, images, labels, threat, rng=SampleRng(0, index), targets=1, **options)
        found = model(adv_images).argmax(dim=1) != labels
        distances.append(threat.distance(images, adv_images).where(found, torch.inf))
    once, thrice = distances
    assert bool((thrice <= once).all())
    assert bool((thrice < once).any())


@pytest.mark.parametrize("norm", NORMS)
def test_stopping_within_eps_saves_passes_and_keeps_the_verdict(robust, norm):
    model, images, labels, index = robust
    images, labels, index = images[:30], labels[:30], index[:30]
    threat, verdicts, passes = ThreatModel(norm, EPS[norm]), [], []
    for stop in (True, False):
        counted = Passes(model, 32)
        options = {"steps": 20, "targets": 3, "stop_within_eps": stop}
        adv_images = fab_t(counted, images, labels, threat, rng=SampleRng(0, index), **options)
        inside = threat.distance(images, adv_images) <= threat.radius
        verdicts.append(inside & (model(adv_images).argmax(dim=1) != labels))
        passes.append(counted.count.forward)
    assert torch.equal(*verdicts)
    assert 0 < int(verdicts[0].sum()) < 30
    assert passes[0] < 0.95 * passes[1] == 0.95 * 30 * 121


@pytest.mark.parametrize("attack", [fab, fab_t])
def test_misclassified_points_come_back_as_they_are(robust, attack):
    model, images, labels, index = robust
    wrong = labels.clone()
    wrong[:5] = (labels[:5] + 1) % 10
    threat = ThreatModel("Linf", "0.05")
    adv_images = attack(model, images[:12], wrong[:12], threat, rng=SampleRng(0, index[:12]), steps=3)
    assert torch.equal(adv_images[:5], images[:5])
    alone = attack(Passes(model), images[5:12], labels[5:12], threat, rng=SampleRng(0, index[5:12]), steps=3)
    assert torch.allclose(adv_images[5:], alone, atol=1e-5)


class Spoilt(nn.Module):
    """NaN logits for images whose first pixel is above 0.9, and NaN gradients for those where it is below 0.1."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        first = images[:, 0, 0, 0]
        logits = self.model(images)
        steep = torch.where(first < 0.1, first * 0, 1).sqrt()[:, None] * 0  # worth 0, with a gradient of 0 * inf
        return torch.where(first[:, None] > 0.9, torch.nan, logits + steep)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", [fab, fab_t])
def test_rows_that_give_nan_harm_no_other(attack, norm):
    generator = torch.Generator().manual_seed(8)
    weight = torch.randn(4, 20, generator=generator)
    model = frozen(Linear(weight, -weight.sum(dim=1) / 2))
    images = 0.3 + 0.4 * torch.rand(9, 1, 4, 5, generator=generator)
    labels = model(images).argmax(dim=1)
    spoilt = images.clone()
    spoilt[0, 0, 0, 0], spoilt[4, 0, 0, 0] = 1.0, 0.0
    labels[4] = model(spoilt)[4].argmax()
    threat = ThreatModel(norm, "0.001")
    options = {"steps": 10, "stop_within_eps": False}
    rng = SampleRng(0, torch.arange(9))
    adv_images = attack(Passes(Spoilt(model), 4), spoilt, labels, threat, rng=rng, **options)
    clean = torch.tensor([1, 2, 3, 5, 6, 7, 8])
    alone = attack(Passes(Spoilt(model), 4), images[clean], labels[clean], threat, rng=rng[clean], **options)
    assert torch.equal(adv_images[clean], alone)
    assert bool((model(alone).argmax(dim=1) != labels[clean]).all())
    assert torch.equal(adv_images[0], spoilt[0])  # NaN logits count as misclassified: found at once
    assert bool(adv_images.isfinite().all())


@pytest.mark.parametrize("attack", [fab, fab_t])
def test_no_rows_give_no_rows(attack):
    images = torch.rand(0, 1, 4, 4)
    labels = torch.zeros(0, dtype=torch.int64)
    rng = SampleRng(0, torch.arange(0))
    assert attack(Stubborn(), images, labels, ThreatModel("Linf", "0.1"), rng=rng).shape == (0, 1, 4, 4)


@pytest.mark.parametrize("attack", [fab, fab_t])
def test_what_cannot_work_is_said(attack):
    images, labels = torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)
    threat, rng = ThreatModel("Linf", "0.1"), SampleRng(0, torch.arange(2))
    one_class = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    with raises("too-few-classes", UserError, "2", "1"):
        attack(one_class, images, labels, threat, rng=rng)
    for option, value, message in (
        ("steps", 0, "steps must be at least 1, got 0"),
        ("restarts", 0, "restarts must be at least 1"),
        ("beta", 1.5, "beta must be between 0 and 1, got 1.5"),
        ("alpha_max", -0.1, "alpha_max must be between 0 and 1"),
        ("eta", 0.0, "eta must be above 0"),
    ):
        with pytest.raises(UserError, match=message):
            attack(Stubborn(), images, labels, threat, rng=rng, **{option: value})
