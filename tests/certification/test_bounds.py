"""Bounds are below what any image in the ball gives, equal closed forms where there are some, and each rule matters."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

import robustdup
from robustdup.certification import checker, crown, proofs
from robustdup.certification.checker import proven_margin
from robustdup.certification.crown import interval_bounds, margins, pull_back
from robustdup.certification.graph import read_network, run
from robustdup.certification.matrices import checker_steps
from robustdup.certification.proofs import certify_samples
from robustdup.certification.region import region_of
from robustdup.errors import UserError
from robustdup.threat import ThreatModel
from tests.lanes import each_once
from tests.raising import raises

DUAL = {"Linf": 1, "L2": 2, "L1": float("inf")}
EPS = {"Linf": "0.05", "L2": "0.2", "L1": "0.4"}


class Residual(nn.Module):
    """Every kind of operation: normalisation, convolution, BatchNorm, rectifiers, a sum, pooling, flatten, linear."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([0.4, 0.5]).view(1, 2, 1, 1))
        self.first = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.leaky = nn.LeakyReLU(0.1)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, images):
        x = torch.relu(self.norm(self.first((images - self.mean) / 0.25)))
        x = self.pool(self.leaky(self.second(x) + x))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Flatten(), nn.Linear(2 * 5 * 5, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)
        )


def network(kind, seed):
    torch.manual_seed(seed)
    model = kind()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    images = torch.rand(4, 2, 5, 5)
    return model.eval().requires_grad_(False), images, model(images).argmax(1)


def least_seen(model, images, labels, threat, tries=150):
    """Return the least margin (N,) over random and pushed images in the ball, by the float32 network."""
    generator = torch.Generator().manual_seed(0)
    least = torch.full((len(images),), torch.inf)
    adv = images.clone()
    for attempt in range(tries):
        if attempt % 25 == 0:
            noise = torch.randn(images.shape, generator=generator)
            adv = threat.project(images, images + threat.sphere_scale(noise))
        adv = adv.detach().requires_grad_()
        logits = model(adv)
        own = logits.gather(1, labels[:, None]).squeeze(1)
        margin = own - logits.scatter(1, labels[:, None], -torch.inf).amax(1)
        least = torch.minimum(least, margin.detach())
        (gradient,) = torch.autograd.grad(margin.sum(), adv)
        adv = threat.project(
            images, adv - 0.5 * threat.sphere_scale(gradient.sign() if threat.norm == "Linf" else gradient)
        )
    return least


def proven(model, images, labels, threat):
    operations = read_network(model, images)
    steps, region = checker_steps(operations), region_of(images, threat)
    least, slopes = margins(operations, region, labels, steps=5)
    return least, [
        proven_margin(
            steps, images[i].double().flatten().numpy(), int(labels[i]), norm=threat.norm, radius=region.radius,
            slopes={number: slope[i].double().flatten().numpy() for number, slope in slopes.items()},
        )
        for i in range(len(images))
    ]  # fmt: skip


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_a_linear_model_has_its_closed_form(norm):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(50, 2)).eval().requires_grad_(False)
    images = torch.rand(4, 2, 5, 5) * 0.2 + 0.4  # far from the edges of [0, 1]
    labels = model(images).argmax(1)
    threat = ThreatModel(norm, "0.05")
    weights = (model[1].weight[labels] - model[1].weight[1 - labels]).double()
    clean = model(images).double()
    gap = clean.gather(1, labels[:, None]).squeeze(1) - clean.gather(1, 1 - labels[:, None]).squeeze(1)
    expected = gap - (0.05 + threat.tolerance) * weights.norm(p=DUAL[norm], dim=1)
    least, checked = proven(model, images, labels, threat)
    torch.testing.assert_close(least.double(), expected, atol=1e-5, rtol=0)
    assert (np.array(checked) <= expected.numpy() + 1e-6).all()
    assert np.allclose(checked, expected.numpy(), atol=1e-3)


@pytest.mark.parametrize("kind", [Residual, Plain])
@each_once(norm=["Linf", "L2", "L1"], seed=range(3))
def test_no_image_in_the_ball_is_below_the_bound(kind, norm, seed):
    model, images, labels = network(kind, seed)
    threat = ThreatModel(norm, EPS[norm])
    least, checked = proven(model, images, labels, threat)
    seen = least_seen(model, images, labels, threat)
    assert (np.array(checked) <= seen.numpy()).all()
    assert (least <= seen + 1e-4).all()
    given_away = least.double().numpy() - np.array(checked)
    assert (given_away < 0.1 + 0.05 * least.abs().numpy()).all()
    bounds = interval_bounds(read_network(model, images), region_of(images, threat))
    assert (bounds.low[-1] <= model(images)).all()
    assert (bounds.high[-1] >= model(images)).all()


def exact_margin(model, image, label, radius):
    """Return the least margin of a network of one hidden layer in Linf, by a linear program for each pattern of signs."""
    first, last = (module for module in model if isinstance(module, nn.Linear))
    w, b = first.weight.double().numpy(), first.bias.double().numpy()
    v, c = last.weight.double().numpy(), last.bias.double().numpy()
    x = image.double().flatten().numpy()
    box = list(zip(np.maximum(x - radius, 0), np.minimum(x + radius, 1), strict=True))
    least = np.inf
    for signs in itertools.product([0.0, 1.0], repeat=len(b)):
        on = np.array(signs)
        sides = np.where(on[:, None] > 0, -w, w), np.where(on > 0, b, -b)
        for other in set(range(len(c))) - {label}:
            row = v[label] - v[other]
            found = linprog((row * on) @ w, A_ub=sides[0], b_ub=sides[1], bounds=box)
            if found.status == 0:
                least = min(least, found.fun + (row * on) @ b + c[label] - c[other])
    return least


def test_the_exact_minimum_is_not_below_the_bound_and_near_it():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)).eval().requires_grad_(False)
    images = torch.rand(3, 2, 2, 2)
    labels = model(images).argmax(1)
    threat = ThreatModel("Linf", "0.08")
    exact = np.array(
        [exact_margin(model, image, int(label), 0.08) for image, label in zip(images, labels, strict=True)]
    )
    _, checked = proven(model, images, labels, threat)
    assert (np.array(checked) <= exact).all()
    assert (np.array(checked) >= exact - 0.05).all()


def test_transposed_layers_are_those_of_gradients():
    """Convolutions of every stride, padding, dilation and grouping, dense layers and scales."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (2, 3), stride=(3, 2), padding=(0, 2), groups=2),
        nn.Conv2d(6, 2, 2, dilation=2, padding=1),
        nn.Flatten(),
        nn.Linear(30, 3),
    )
    operations = read_network(model.eval().requires_grad_(False), torch.rand(2, 2, 17, 14))
    transposed = [operation for operation in operations if operation.transposed is not None]
    assert len(transposed) == 5
    for operation in transposed:
        inputs = torch.rand(2, *operations[operation.inputs[0]].shape, requires_grad=True)
        outputs = torch.randn(2, *operation.shape)
        (expected,) = torch.autograd.grad(operation.linear(inputs), inputs, outputs)
        torch.testing.assert_close(operation.transposed(outputs), expected)


def test_intervals_that_are_exact_are_not_tightened_and_others_are(monkeypatch):
    model, images, _ = network(Residual, 0)
    operations, region, asked = read_network(model, images), region_of(images, ThreatModel("Linf", "0.05")), []
    exact = [number for number in range(1, len(operations)) if crown._is_exact(operations, number)]
    assert [operations[number].name for number in exact] == ["sub", "truediv", "first", "norm"]
    bounds = interval_bounds(operations, region)
    for number in exact:
        eye = torch.eye(bounds.low[number][0].numel()).view(1, -1, *operations[number].shape).expand(4, -1, -1, -1, -1)
        least = pull_back(operations, number, eye, bounds, region)
        torch.testing.assert_close(least.view_as(bounds.low[number]), bounds.low[number], atol=1e-5, rtol=1e-5)
    steps = checker_steps(operations)
    assert [number for number in range(1, len(steps)) if checker._is_exact(steps, number)] == exact
    tighten = checker._tighten
    monkeypatch.setattr(checker, "_tighten", lambda *given: (asked.append(given[1]), tighten(*given)))
    proven(model, images[:1], torch.tensor([0]), ThreatModel("Linf", "0.05"))
    in_linf, _ = set(asked), asked.clear()
    proven(model, images[:1], torch.tensor([0]), ThreatModel("L2", "0.05"))  # a box holds more than a ball
    assert set(asked) - in_linf == {4}


def test_where_most_are_proven_the_checker_is_asked_at_once(monkeypatch):
    model, _, _ = network(Plain, 0)
    images = torch.rand(40, 2, 5, 5)
    labels, threat, asked = model(images).argmax(1), ThreatModel("Linf", "0.005"), []

    def claims(operations, region, own, steps=0):
        asked.append((len(own), steps))
        return margins(operations, region, own, steps=steps)

    monkeypatch.setattr(proofs, "margins", claims)
    found = certify_samples(model, images, labels, threat)
    assert [n for n, steps in asked if not steps] == [16]
    monkeypatch.setattr(proofs, "EASY", 2.0)
    slow = certify_samples(model, images, labels, threat)
    assert [n for n, steps in asked if not steps] == [16, 16, 16, 8]
    assert found.certified.tolist() == slow.certified.tolist()
    assert found.certified.sum() >= 20
    torch.testing.assert_close(found.margins, slow.margins)


@pytest.mark.parametrize("slope", [-0.5, 1.5])
def test_rectifiers_that_fall_or_bend_down_are_refused(slope):
    step = checker.Step("rectifier", (0,), slope=slope)
    assert proven_margin([checker.Step("image"), step], np.array([0.9, 0.1]), 0, norm="Linf", radius=0.01) == -np.inf
    with raises("not-boundable", UserError, "slope"):
        robustdup.certify(Odd(nn.LeakyReLU(slope)), torch.rand(2, 2, 5, 5), torch.tensor([0, 1]), eps="0.1")


def off_by(function, change):
    return lambda *args, **keys: change(function(*args, **keys))


WRONG = {
    "offset of the upper line": ("_through_rectifier", lambda result: (0 * result[0], result[1])),
    "slopes of the lines": ("_through_rectifier", lambda result: (result[0], 0.5 * result[1])),
    "maximum": ("_through_maximum", lambda result: (0 * result[0], result[1])),
    "the ball": ("_least", lambda result: result + 0.3),
    "the sum": ("_pull_back", lambda result: result + 0.5),
}


def hinge():
    """A network whose least margin is reached where the upper lines of its rectifier and of its maximum touch it."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1, 2))
    model[0].weight.data.fill_(1.0)
    model[0].bias.data.fill_(-0.5)
    model[4].weight.data.copy_(torch.tensor([[-1.0], [0.0]]))
    model[4].bias.data.copy_(torch.tensor([0.3, 0.0]))
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("rule", [None, *WRONG])
def test_a_wrong_rule_would_be_seen(rule, monkeypatch):
    """Where pixels are 0.5 +- 0.1 the margin is 0.3 - 0.1 at the least, and any rule of the checker that is broken says more."""
    if rule is not None:
        name, change = WRONG[rule]
        monkeypatch.setattr(checker, name, off_by(getattr(checker, name), change))
    images, labels, threat = torch.full((1, 1, 2, 2), 0.5), torch.tensor([0]), ThreatModel("Linf", "0.1")
    _, checked = proven(hinge(), images, labels, threat)
    exact = 0.3 - 0.1 - threat.tolerance
    assert (checked[0] <= exact) == (rule is None)
    if rule is None:
        assert checked[0] == pytest.approx(exact, abs=1e-4)


def test_a_dishonest_claim_is_not_certified(monkeypatch):
    model, images, labels = network(Residual, 0)
    threat = ThreatModel("Linf", "0.3")
    broken = least_seen(model, images, labels, threat) < 0
    assert broken.any()
    monkeypatch.setattr(proofs, "margins", lambda operations, region, labels, steps=0: (torch.ones(len(labels)), {}))
    found = certify_samples(model, images, labels, threat)
    assert not (found.certified & broken).any()
    steps = checker_steps(read_network(model, images))
    hints = {n: np.full(step.matrix.shape[0], 1e9) for n, step in enumerate(steps) if step.kind == "affine"}
    hints |= {n: np.nan for n, step in enumerate(steps) if step.kind == "rectifier"}
    seen = least_seen(model, images, labels, threat)
    for i in range(len(images)):
        image = images[i].double().flatten().numpy()
        assert proven_margin(steps, image, int(labels[i]), norm="Linf", radius=0.3, slopes=hints) <= float(seen[i])


def test_built_in_digits_are_certified_and_no_certified_sample_is_broken():
    data = robustdup.load_data("builtin:digits", n=6)
    model = robustdup.load_model("builtin:digits-robust")
    proof = robustdup.certify(model, data, eps="8/255")
    attacked = robustdup.evaluate(model, data, eps="8/255", attacks="pgd(steps=10)", progress=False)
    assert int(proof.certified.sum()) >= 5
    assert not (proof.certified & attacked.is_adv).any()
    assert proof.certified_accuracy.value <= attacked.robust_accuracy.value <= proof.clean_accuracy.value
    assert "certified" in str(proof)


def test_an_eps_that_is_hopeless_is_given_up_early():
    data = robustdup.load_data("builtin:digits", n=20)
    proof = robustdup.certify("builtin:digits-standard", data, eps="0.3")
    assert not proof.certified.any()
    assert any("far from proving" in note for note in proof.notes)


class Odd(nn.Module):
    def __init__(self, step):
        super().__init__()
        self.step = step
        self.head = nn.Linear(50, 3)

    def forward(self, images):
        return self.head(self.step(images).flatten(1))


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (nn.SiLU(), "SiLU"),
        (torch.sigmoid, "sigmoid"),
        (lambda x: x * x, "mul of two values"),
        (lambda x: x if x.mean() > 0 else -x, "traced"),
        (nn.InstanceNorm2d(2), "InstanceNorm2d"),
        (lambda x: x.view(-1, 25, 2), "view"),
    ],
)
def test_what_cannot_be_bounded_is_named(step, name):
    with raises("not-boundable", UserError, name):
        robustdup.certify(Odd(step), torch.rand(2, 2, 5, 5), torch.tensor([0, 1]), eps="0.1")


@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_other_precisions_are_refused_and_the_model_stays_as_it_is(kind):
    model = Plain().to(kind)
    with raises("not-certifiable", UserError, str(kind).removeprefix("torch.")):
        robustdup.certify(model, torch.rand(2, 2, 5, 5), torch.tensor([0, 1]), eps="0.1")
    assert next(model.parameters()).dtype == kind


def test_operations_give_the_models_logits():
    for kind in (Residual, Plain):
        model, images, _ = network(kind, 7)
        torch.testing.assert_close(run(read_network(model, images), images), model(images), atol=1e-5, rtol=1e-5)
