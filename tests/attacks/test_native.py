"""Native attacks against closed-form optima, and against company, order and the size of micro-batches."""

import pytest
import torch
from torch import nn

from robustdup import Passes, Registry, SampleRng, ThreatModel, UserError
from robustdup.attacks import register
from robustdup.attacks.fgsm import fgsm, linear_maximum
from robustdup.attacks.noise import ball_noise, noise
from robustdup.attacks.pgd import pgd
from robustdup.config import DataOptions
from robustdup.data.digits import load_builtin as digits
from robustdup.models.load import ModelOptions, load_builtin
from robustdup.projections import row_length
from tests.lanes import each_once

EPS = {"Linf": "0.1", "L2": "1.2", "L1": "4"}


class Linear(nn.Module):
    """Two classes: logits (0, w·x + b), so that for label 0 the margin loss is w·x + b itself."""

    def __init__(self, weight, bias=-1000.0):
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), bias

    def forward(self, images):
        score = images.flatten(1) @ self.weight + self.bias
        return torch.stack([torch.zeros_like(score), score], dim=1)


def best_gain(image, weight, norm, eps):
    """The largest w·δ with x + δ in the ball and the box, by search along the dual variable in fp64."""
    x, w = image.double().flatten(), weight.double()
    room = torch.where(w > 0, 1 - x, x)
    size = w.abs()
    if norm == "Linf":
        return float((size * room.clamp(max=eps)).sum())
    if norm == "L1":  # fill the pixels of largest weight up to their room
        left, gain = eps, 0.0
        for pixel in size.argsort(descending=True).tolist():
            take = min(left, float(room[pixel]))
            left, gain = left - take, gain + take * float(size[pixel])
        return gain
    low, high = 0.0, 1e9  # δ = min(s |w|, room), s so that its length is eps
    for _ in range(200):
        s = (low + high) / 2
        low, high = (s, high) if float(torch.minimum(s * size, room).norm()) < eps else (low, s)
    return float((size * torch.minimum(low * size, room)).sum())


def linear_problem(n=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 1, 6, 6, generator=generator)
    images[: n // 2] = (images[: n // 2] * 3 - 1).clamp(0, 1)  # many pixels at the bounds: the box is active
    weight = torch.randn(36, generator=generator)
    return Linear(weight), images, torch.zeros(n, dtype=torch.int64), SampleRng(seed, torch.arange(n))


@pytest.mark.parametrize("norm", EPS)
def test_pgd_reaches_the_optimum_of_a_linear_model_inside_ball_and_box(norm):
    model, images, labels, rng = linear_problem()
    threat = ThreatModel(norm, EPS[norm])
    adv_images = pgd(model, images, labels, threat, rng=rng, loss="margin", steps=60, step_size=threat.radius)
    gain = ((adv_images - images).double().flatten(1) @ model.weight.detach().double()).tolist()
    best = [best_gain(image, model.weight.detach(), norm, threat.radius) for image in images]
    free = (
        float(row_length(model.weight.detach()[None], {"Linf": "L1", "L2": "L2", "L1": "Linf"}[norm])) * threat.radius
    )
    assert min(best) < 0.95 * free  # the box matters
    assert gain == pytest.approx(best, rel=2e-4)
    assert not threat.violations(images, adv_images).any.any()


@pytest.mark.parametrize("norm", EPS)
def test_pgd_with_its_default_step_comes_close_to_the_optimum(norm):
    model, images, labels, rng = linear_problem(seed=1)
    threat = ThreatModel(norm, EPS[norm])
    adv_images = pgd(model, images, labels, threat, rng=rng, loss="margin")
    gain = (adv_images - images).double().flatten(1) @ model.weight.detach().double()
    best = torch.tensor([best_gain(image, model.weight.detach(), norm, threat.radius) for image in images])
    assert float((gain / best).min()) > 0.98


@pytest.mark.parametrize("norm", EPS)
def test_fgsm_is_exact_on_a_linear_model(norm):
    model, images, labels, rng = linear_problem(seed=2)
    threat = ThreatModel(norm, EPS[norm])
    adv_images = fgsm(model, images, labels, threat, rng=rng, loss="margin")
    gain = ((adv_images - images).double().flatten(1) @ model.weight.detach().double()).tolist()
    assert gain == pytest.approx([best_gain(i, model.weight.detach(), norm, threat.radius) for i in images], rel=1e-5)


@pytest.mark.parametrize("norm", EPS)
def test_a_zero_gradient_moves_nothing(norm):
    images = torch.rand(3, 1, 4, 4)
    assert torch.equal(linear_maximum(images, torch.zeros_like(images), ThreatModel(norm, "0.3")), images)


@pytest.fixture(scope="module")
def points():
    rows = digits("digits", DataOptions(split="test"))
    images, labels = rows.fetch(range(40))
    return load_builtin("digits-standard", ModelOptions()).eval(), images, labels, torch.arange(1297, 1337)


ATTACKS = [
    (noise, {"draws": 4}), (fgsm, {}), (pgd, {"steps": 8}), (pgd, {"steps": 5, "restarts": 2, "momentum": 0.5, "loss": "dlr"}),
]  # fmt: skip


def attacked(points, rows, attack, options, norm, micro_batch=16):
    model, images, labels, index = points
    rng = SampleRng(3, index[rows])
    passes = Passes(model, micro_batch)
    return attack(passes, images[rows], labels[rows], ThreatModel(norm, EPS[norm]), rng=rng, **options), passes


@each_once(attack__options=ATTACKS, norm=EPS)
def test_a_row_is_bit_equal_in_any_order_and_company(points, attack, options, norm):
    everyone, _ = attacked(points, torch.arange(40), attack, options, norm)
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    for rows in (shuffled, shuffled[:17], shuffled[20:21], torch.tensor([39, 0])):
        some, _ = attacked(points, rows, attack, options, norm)
        assert torch.equal(some, everyone[rows])


@pytest.mark.parametrize("norm", EPS)
def test_random_draws_do_not_depend_on_the_micro_batch(points, norm):
    """With a loss that is flat, PGD stays at its random start: what is left is the randomness alone."""

    def flat(logits, labels):
        return logits.sum(dim=1) * 0

    options = {"steps": 1, "loss": flat, "restarts": 1}
    results = [attacked(points, torch.arange(40), pgd, options, norm, micro_batch)[0] for micro_batch in (1, 7, 16, 40)]
    assert all(torch.equal(result, results[0]) for result in results[1:])
    assert not torch.equal(results[0], points[1])


class Stubborn(nn.Module):
    """Cannot be fooled, and counts its own rows, forward and backward."""

    def __init__(self):
        super().__init__()
        self.forward_rows = self.backward_rows = 0

    def forward(self, images):
        self.forward_rows += len(images)
        score = images.flatten(1).mean(dim=1)
        logits = torch.stack([score, score * 0 - 9, score * 0 - 8], dim=1)
        if logits.requires_grad:
            logits.register_hook(self.count)
        return logits

    def count(self, grad):
        self.backward_rows += len(grad)


@pytest.mark.parametrize(
    ("name", "options"),
    [("noise", {"draws": 6}), ("fgsm", {}), ("pgd", {}), ("pgd", {"steps": 3, "restarts": 2, "eot": 2})],
)
def test_a_surviving_row_costs_what_the_spec_says(name, options):
    registry = Registry()
    register(registry)
    spec, model = registry.attacks[name], Stubborn()
    passes = Passes(model, 4)
    images = torch.rand(8, 1, 3, 3)
    threat = ThreatModel("Linf", "0.1")
    spec.function(
        passes, images, torch.zeros(8, dtype=torch.int64), threat, rng=SampleRng(0, torch.arange(8)), **options
    )
    forward, backward = spec.passes(options)
    assert (passes.count.forward, passes.count.backward) == (8 * forward, 8 * backward)
    assert (model.forward_rows, model.backward_rows) == (8 * forward, 8 * backward)


def test_a_fooled_row_leaves_at_once(points):
    _, passes = attacked(points, torch.arange(40), pgd, {"steps": 40}, "Linf")
    survivors_only = 40 * 41
    assert passes.count.forward < 0.9 * survivors_only


def test_pgd_beats_fgsm_beats_noise_on_a_network(points):
    model, _, labels, _ = points
    accuracy = []
    for attack, options in ((noise, {}), (fgsm, {}), (pgd, {"restarts": 2})):
        adv_images, _ = attacked(points, torch.arange(40), attack, options, "L2")
        accuracy.append(float((model(adv_images).argmax(dim=1) == labels).double().mean()))
    assert accuracy[0] > accuracy[1] > accuracy[2]


def test_survivors_return_their_worst_iterate(points):
    """A step far too long overshoots: the best iterate is at least as bad as the one that the same run ends with."""
    model, images, labels, index = points
    threat, rng = ThreatModel("Linf", "0.02"), SampleRng(3, index)
    from robustdup.attacks.losses import cw

    few = cw(model(pgd(model, images, labels, threat, rng=rng, steps=3, step_size="0.01")), labels)
    more = cw(model(pgd(model, images, labels, threat, rng=rng, steps=9, step_size="0.01")), labels)
    both_survive = (few < 0) & (more < 0)
    assert int(both_survive.sum()) >= 5
    assert bool((more >= few - 1e-5)[both_survive].all())


@pytest.mark.parametrize(("norm", "d", "power"), [("Linf", 5, 5), ("L2", 5, 5), ("L1", 5, 5)])
def test_noise_is_uniform_in_the_ball(norm, d, power):
    """The distance r of a uniform point of a ball in d dimensions has (r / eps)^d uniform in [0, 1]."""
    from scipy import stats

    images = torch.full((4000, 1, 1, d), 0.5, dtype=torch.float64)
    delta = ball_noise(images, ThreatModel(norm, "0.2"), SampleRng(1, torch.arange(4000)))
    radius = row_length(delta, norm) / 0.2
    assert stats.kstest((radius**power).numpy(), "uniform").pvalue > 1e-3
    assert float(delta.flatten(1).mean(dim=0).abs().max()) < 0.01


def test_eot_averages_the_gradients_of_a_randomised_model():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, images):
            self.calls += 1  # every second call turns the gradient round, and a little less
            score = images.flatten(1).sum(dim=1) * (1.0 if self.calls % 2 else -0.5)
            return torch.stack([score * 0 + 100, score], dim=1)

    images, labels = torch.full((2, 1, 2, 2), 0.5), torch.zeros(2, dtype=torch.int64)
    threat, rng = ThreatModel("Linf", "0.1"), SampleRng(0, torch.arange(2))
    adv_images = pgd(Noisy(), images, labels, threat, rng=rng, steps=6, eot=2, loss="margin", random_start=False)
    assert torch.allclose(adv_images, images + 0.1)


def test_the_mean_of_draws_has_the_mean_gradient_of_fresh_ones():
    class Cycle(nn.Module):
        weights = torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0, 30.0])
        calls = 0

        def forward(self, images):
            weight, self.calls = self.weights[self.calls % 6], self.calls + 1
            return weight * images.flatten(1) ** 2

    model = Passes(Cycle(), 2, draws=3)
    images = torch.rand(5, 1, 1, 2).requires_grad_(True)
    model.model.calls = -9  # micro-batches of 2, 2 and 1: each is asked once a draw
    flat = images.detach().flatten(1) ** 2
    logits = model(images)
    weights = Cycle.weights[torch.arange(-9, 0) % 6].view(3, 3).mean(dim=0)[[0, 0, 1, 1, 2]]
    torch.testing.assert_close(logits, weights[:, None] * flat)
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    weights = Cycle.weights[torch.arange(0, 9) % 6].view(3, 3).mean(dim=0)[[0, 0, 1, 1, 2]]
    torch.testing.assert_close(gradient.flatten(1), 2 * weights[:, None] * images.detach().flatten(1))
    assert (model.count.forward, model.count.backward) == (30, 15)
    with torch.no_grad():
        assert not model(images).requires_grad
    assert (model.count.forward, model.count.backward) == (45, 15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "dlrr"}, "Unknown loss 'dlrr'. Did you mean 'dlr'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"restarts": 2, "random_start": False}, "restarts above 1 need random_start"),
        ({"step_size": "x"}, "eps 'x' is not a number"),
        ({"step_size": -1}, "must be above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    model, images, labels, rng = linear_problem(n=2)
    with pytest.raises(UserError, match=message):
        pgd(model, images, labels, ThreatModel("Linf", "0.1"), rng=rng, **options)


@pytest.mark.parametrize(("attack", "options"), ATTACKS)
def test_no_rows_give_no_rows(points, attack, options):
    adv_images, passes = attacked(points, torch.arange(0), attack, options, "L2")
    assert adv_images.shape == (0, 1, 8, 8)
    assert passes.count.forward == 0


def test_the_ensembles_are_native_and_have_the_published_settings():
    registry = Registry()
    register(registry)
    for ensemble in registry.ensembles.values():
        for stage in ensemble.stages:
            registry.attacks[stage.attack].check_options(stage.options)
    names = {name: [s.attack for s in ensemble.stages] for name, ensemble in registry.ensembles.items()}
    assert names["autoattack-plus"] == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert [s.options.get("restarts", 1) for s in registry.ensembles["autoattack-plus"].stages] == [5, 5, 5, 1, 1, 1]
    assert [(s.attack, s.options) for s in registry.ensembles["autoattack-rand"].stages] == [
        ("apgd-ce", {"eot": 20}), ("apgd-dlr", {"eot": 20}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("norm", "forward", "backward"),
    [
        # Published: 7,857 and 1,910 with the clean pass; less what is not done twice (see each attack's cost).
        ("Linf", 101 + 910 + 1801 + 5001, 100 + 900 + 900),
        # Five restarts of APGD-CE, five targets; each of three phases looks once more.
        ("L1", 5 * 103 + (1 + 5 * 103) + 1801 + 5001, 5 * 100 + 5 * 100 + 900),
    ],
)
def test_what_a_survivor_of_autoattack_costs(norm, forward, backward):
    registry = Registry()
    register(registry)
    stages = [s for s in registry.ensembles["autoattack"].stages if not s.norms or norm in s.norms]
    assert [s.attack for s in stages] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    costs = [registry.attacks[s.attack].passes(s.options) for s in stages]
    assert tuple(sum(part) for part in zip(*costs, strict=True)) == (forward, backward)


def test_noise_in_l0_changes_as_many_values_as_eps_to_an_end_of_their_range():
    images = torch.full((6, 2, 4, 4), 0.5)
    threat = ThreatModel("L0", 7)
    drawn = images + ball_noise(images, threat, SampleRng(0, torch.arange(6)))
    changed = drawn != images
    assert changed.flatten(1).sum(dim=1).tolist() == [7] * 6
    assert set(drawn[changed].tolist()) == {0.0, 1.0}
    assert len({tuple(row.tolist()) for row in changed.flatten(1)}) == 6
