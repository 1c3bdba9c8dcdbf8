"""Every attack on the contract: conformance, what it breaks against noise, and what happens when something fails."""

import importlib.util
import random
import sys

import numpy as np
import pytest
import robustdup_foolbox
import torch
from torch import nn

from robustdup import Passes, Registry, RunError, SampleRng, ThreatModel, UserError
from robustdup.config import DataOptions
from robustdup.data.digits import load_builtin as load_digits
from robustdup.models.load import ModelOptions, load_builtin
from robustdup.testing import check_attack

REGISTRY = Registry()
robustdup_foolbox.register(REGISTRY)
SPECS = {name.removeprefix("foolbox:"): spec for name, spec in REGISTRY.attacks.items()}
RUNNING = sorted(name for name, spec in SPECS.items() if spec.available and name != "BinarizationRefinementAttack")

# Shorter than the quick options: conformance is about the contract; the demonstration has tests of its own below.
SHORT = {
    "BoundaryAttack": {"steps": 100},
    "HopSkipJumpAttack": {"steps": 2, "initial_gradient_eval_steps": 20},
    "L2CarliniWagnerAttack": {"steps": 30},
    "EADAttack": {"steps": 30},
    "GenAttack": {"steps": 3},
    "GaussianBlurAttack": {"steps": 30},
    "LinearSearchContrastReductionAttack": {"steps": 30},
    "LinearSearchBlendedUniformNoiseAttack": {"steps": 30},
}
# Weak attacks need a larger eps than the conformance test gives to break anything, and the short ones more steps.
SHOWN_ELSEWHERE = {
    "BinarySearchContrastReductionAttack", "LinearSearchContrastReductionAttack", "L2ContrastReductionAttack",
    "GaussianBlurAttack", "LinearSearchBlendedUniformNoiseAttack", "BoundaryAttack", "HopSkipJumpAttack", "GenAttack",
    "SaltAndPepperNoiseAttack", "EADAttack", "L2CarliniWagnerAttack",
    *(name for name in SPECS if "Repeated" in name),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    """The built-in standard network and 20 test digits (20, 1, 8, 8) that it gets right, two a class."""
    model = load_builtin("digits-standard", ModelOptions())
    rows = load_digits("digits", DataOptions(split="test"))
    images, labels = rows.fetch(range(len(rows)))
    with torch.no_grad():
        right = model(images).argmax(dim=1) == labels
    chosen = torch.cat([(right & (labels == k)).nonzero()[:2, 0] for k in range(10)])
    return model, images[chosen], labels[chosen]


def attack(name, model, images, labels, norm="L2", eps="1", seed=0, **options):
    spec = SPECS[name]
    rng = SampleRng(seed, torch.arange(len(images)))
    return spec.function(model, images, labels, ThreatModel(norm, eps), rng=rng, **spec.check_options(options))


def broken(model, images, labels):
    with torch.no_grad():
        return model(images).argmax(dim=1) != labels


# Brendel-Bethge: half a minute to more than one each, most of it compiling; Pointwise asks for each pixel, a dozen seconds.
# The quick lane sees that the wrapper gives them what they need, and that they come nearer than where they start.
LONG = tuple(name for name in SPECS if "BrendelBethge" in name or name == "PointwiseAttack")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in RUNNING])
def test_conformance(name):
    spec = SPECS[name]
    norm = "L1" if name == "PointwiseAttack" else None
    report = check_attack(spec, norm=norm, options=SHORT.get(name))
    assert report.ok, [finding for finding in report.findings if not finding.ok]
    if not spec.undemonstrated and name not in SHOWN_ELSEWHERE:
        assert report.demonstrated, report.evidence
    if spec.undemonstrated:
        assert report.n_broken <= report.n_noise, "it is demonstrated after all: say so in the table"


def test_brendel_bethge_goes_along_the_boundary(digits, monkeypatch):
    """In Linf, its optimiser interpreted: numba would compile it for half a minute."""
    import foolbox.attacks
    import numba

    source = importlib.util.find_spec("foolbox.attacks.brendel_bethge")
    plain = importlib.util.module_from_spec(source)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "numba.experimental", None)
        source.loader.exec_module(plain)
    plain.NUMBA_IMPORT_ERROR, plain.numba = None, numba
    monkeypatch.setattr(foolbox.attacks, "LinfinityBrendelBethgeAttack", plain.LinfinityBrendelBethgeAttack)
    model, images, labels = (part if isinstance(part, nn.Module) else part[:6] for part in digits)
    adv_images = attack("LinfinityBrendelBethgeAttack", model, images, labels, norm="Linf", steps=5, lr=0.01)
    assert broken(model, adv_images, labels).all()
    assert float((adv_images - images).abs().amax(dim=(1, 2, 3)).max()) < 0.3


def test_at_least_45_attacks_run():
    assert len(RUNNING) >= 45
    assert sum(not SPECS[name].undemonstrated for name in RUNNING) >= 45


def noise_like(images, adv, norm, rng, draw):
    """Random noise as far from each image as `adv` is, in L2 or Linf."""
    threat = ThreatModel(norm, 1)
    delta = rng.normal(images.shape[1:], draw=draw) if norm == "L2" else rng.signs(images.shape[1:], draw=draw)
    ratio = threat.distance(images, adv).to(delta.dtype)
    return (images + threat.sphere_scale(delta) * ratio.view(-1, 1, 1, 1)).clamp(0, 1)


@pytest.mark.parametrize(
    ("name", "norm", "eps", "options"),
    [
        ("L2ContrastReductionAttack", "L2", "3", {}),
        ("BinarySearchContrastReductionAttack", "L2", "1", {}),
        ("LinearSearchContrastReductionAttack", "L2", "1", {"steps": 100}),
        ("GaussianBlurAttack", "L2", "1", {"steps": 50}),
        ("SaltAndPepperNoiseAttack", "L2", "1", {"steps": 100}),
        ("LinearSearchBlendedUniformNoiseAttack", "L2", "1", {"steps": 50, "directions": 20}),
        ("BoundaryAttack", "L2", "1", {"steps": 300}),
        ("HopSkipJumpAttack", "L2", "1", {"steps": 4}),
        ("HopSkipJumpAttack", "Linf", "0.2", {"steps": 4}),
        ("EADAttack", "L1", "1", {"steps": 60, "binary_search_steps": 3, "initial_const": 1.0}),
        ("L2CarliniWagnerAttack", "L2", "1", {"steps": 60, "binary_search_steps": 3, "initial_const": 1.0}),
        ("GenAttack", "Linf", "0.3", {"steps": 30}),
        ("DatasetAttack", "L2", "1", {}),
    ],
)
def test_beats_noise_of_equal_length(digits, name, norm, eps, options):
    model, images, labels = digits
    adv = attack(name, model, images, labels, norm, eps, **options)
    rng, shape = SampleRng(1, torch.arange(len(images))), "Linf" if norm == "Linf" else "L2"
    by_noise = [broken(model, noise_like(images, adv, shape, rng, k), labels).sum() for k in range(20)]
    assert broken(model, adv, labels).sum() > max(by_noise)


@pytest.mark.parametrize("name", [name for name in SPECS if "Repeated" in name])
def test_repeated_noise_beats_a_single_draw(digits, name):
    model, images, labels = digits
    norm, eps = SPECS[name].norms[0], {"L2": "3", "Linf": "0.5"}[SPECS[name].norms[0]]
    single = [
        broken(model, attack(name.replace("Repeated", ""), model, images, labels, norm, eps, seed=k), labels).sum()
        for k in range(10)
    ]
    repeated = attack(name, model, images, labels, norm, eps, repeats=50)
    assert broken(model, repeated, labels).sum() > max(single)


class Binarised(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model((images >= 0.5).to(images.dtype))


def test_binarization_refinement_on_a_network_that_binarises(digits):
    model, images, labels = digits
    model = Binarised(model)
    right = ~broken(model, images, labels)
    images, labels = images[right], labels[right]
    adv = attack("BinarizationRefinementAttack", model, images, labels, "Linf", "0.5")
    start = attack("LinearSearchBlendedUniformNoiseAttack", model, images, labels, "Linf", "0.5", steps=50)
    threat = ThreatModel("L2", 1)
    assert len(images) >= 10
    assert broken(model, adv, labels).all()
    assert (threat.distance(images, adv) < threat.distance(images, start)).float().mean() > 0.9
    with pytest.raises(UserError, match="binarise"):
        attack("BinarizationRefinementAttack", model.model, images, labels, "Linf", "0.5")


@pytest.mark.parametrize(
    ("name", "norm", "options"),
    [
        ("LinfProjectedGradientDescentAttack", "Linf", {"steps": 3}),
        ("VirtualAdversarialAttack", "L2", {"steps": 3}),
        ("DDNAttack", "L2", {"steps": 4}),
        ("L2DeepFoolAttack", "L2", {"steps": 3}),
        ("NewtonFoolAttack", "L2", {"steps": 4}),
        ("LInfFMNAttack", "Linf", {"steps": 4}),
        ("GenAttack", "Linf", {"steps": 4}),
        ("SpatialAttack", "L2", {}),
        ("GaussianBlurAttack", "L2", {"steps": 6}),
        ("SaltAndPepperNoiseAttack", "L2", {"steps": 6}),
        ("L2RepeatedAdditiveGaussianNoiseAttack", "L2", {"repeats": 7}),
        ("LinearSearchBlendedUniformNoiseAttack", "L2", {"directions": 3, "steps": 4}),
        ("BinarySearchContrastReductionAttack", "L2", {}),
        ("SparseL1DescentAttack", "L1", {}),
    ],
)
def test_the_stated_cost_is_that_of_a_point_that_survives(digits, name, norm, options):
    _, images, labels = digits

    class Stubborn(nn.Module):  # always right, with a gradient
        def forward(self, inputs):
            return nn.functional.one_hot(labels, 10) * 50.0 + inputs.flatten(1)[:, :10]

    passes = Passes(Stubborn())
    attack(name, passes, images, labels, norm, "0.1" if norm == "Linf" else "1", **options)
    assert (passes.count.forward / 20, passes.count.backward / 20) == SPECS[name].passes(options)


@pytest.mark.parametrize("name", ["HopSkipJumpAttack", "BoundaryAttack", "PointwiseAttack"])
def test_a_row_without_a_starting_point_does_not_lose_the_others(digits, monkeypatch, name):
    from robustdup_foolbox import adapter

    model, images, labels = digits
    images, labels = images[:6], labels[:6]
    real = adapter.starting_points

    def without_the_second(*arguments):
        starts, found = real(*arguments)
        assert found.all()
        return starts, found & (torch.arange(len(found)) != 1)

    monkeypatch.setattr(adapter, "starting_points", without_the_second)
    options = {
        "HopSkipJumpAttack": {"steps": 2},
        "BoundaryAttack": {"steps": 50},
        "PointwiseAttack": {"l2_binary_search": False},
    }[name]
    adv = attack(name, model, images, labels, **options)
    others = torch.arange(6) != 1
    assert broken(model, adv, labels)[others].all()
    start = attack("DatasetAttack", model, images, labels)
    threat = ThreatModel("L2", 1)
    assert threat.distance(images, adv)[others].mean() < threat.distance(images, start)[others].mean()
    assert not (adv == images).flatten(1).all(dim=1).any()


def test_starting_points_come_from_the_batch_where_noise_does_not_fool(digits):
    from robustdup_foolbox import adapter
    from robustdup_foolbox.table import ENTRIES

    model, images, labels = digits

    class NoiseIsZero(nn.Module):  # anything that is not one of the images counts as the first class
        def forward(self, inputs):
            known = (inputs.flatten(1)[:, None] == images.flatten(1)[None]).all(dim=2).any(dim=1)
            return torch.where(known[:, None], model(inputs), nn.functional.one_hot(torch.tensor(0), 10) * 50.0)

    entry = next(entry for entry in ENTRIES if entry.name == "BoundaryAttack")
    torch.manual_seed(0)
    starts, found = adapter.starting_points(entry, NoiseIsZero(), images, labels, ThreatModel("L2", 1))
    assert found.all()
    zero = labels == 0
    assert all(any(torch.equal(start, image) for image in images[~zero]) for start in starts[zero])


def test_without_any_starting_point_it_says_so(digits):
    _, images, _ = digits

    class Constant(nn.Module):
        def forward(self, inputs):
            return inputs.flatten(1)[:, :1] * 0 + nn.functional.one_hot(torch.tensor(3), 10) * 1.0

    labels = torch.full((len(images),), 3)
    for name in ("BoundaryAttack", "HopSkipJumpAttack", "PointwiseAttack"):
        with pytest.raises(UserError, match="misclassified image to start from"):
            attack(name, Constant(), images, labels)
    with pytest.raises(UserError, match="no image of another class"):
        attack("DatasetAttack", Constant(), images, labels)


class Flat(nn.Module):
    """The digits model, but without any gradient where the first pixel is white."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        flat = (inputs[:, 0, 0, 0] > 0.99)[:, None]
        return torch.where(flat, self.model(inputs).detach() + 0 * inputs.flatten(1).sum(1, True), self.model(inputs))


def test_a_row_without_gradient_does_not_stop_virtual_adversarial_for_the_others(digits):
    model, images, labels = digits
    images = images.clone()
    images[5, 0, 0, 0] = 1
    adv = attack("VirtualAdversarialAttack", Flat(model), images, labels, eps="2", xi=0.01)
    alone = attack("VirtualAdversarialAttack", model, images, labels, eps="2", xi=0.01)
    others = torch.arange(len(images)) != 5
    assert torch.allclose(adv[others], alone[others], atol=1e-4)  # foolbox divides by zero in row 5 alone
    assert broken(model, adv, labels)[others].any()
    assert adv[others].isfinite().all()


def test_what_foolbox_gives_up_comes_back_as_its_best_iterate(digits):
    model, images, labels = digits
    for name, norm, options in (
        ("NewtonFoolAttack", "L2", {}),
        ("EADAttack", "L1", {"steps": 20, "binary_search_steps": 1, "initial_const": 100.0}),
        ("L2CarliniWagnerAttack", "L2", {"steps": 5, "binary_search_steps": 1}),
        ("L2RepeatedAdditiveUniformNoiseAttack", "L2", {"repeats": 3}),
    ):
        adv = attack(name, model, images, labels, norm, "0.5", **options)
        assert adv.isfinite().all()
        assert not (adv == images).flatten(1).all(dim=1).any(), name
        assert not (adv == 0).flatten(1).all(dim=1).any(), name


def test_everything_is_put_back_when_the_model_raises(digits):
    model, images, labels = digits

    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.calls = model, 0

        def forward(self, inputs):
            self.calls += 1
            if self.calls == 3:
                raise ValueError("broken on purpose")
            return self.model(inputs)

    for name in ("LinfBasicIterativeAttack", "DDNAttack", "HopSkipJumpAttack", "L2CarliniWagnerAttack"):
        breaking = Breaks()
        breaking.train()
        model.eval()
        weight = next(model.parameters())
        weight.grad = torch.ones_like(weight)
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        with pytest.raises(RunError, match="broken on purpose"):
            attack(name, breaking, images, labels, SPECS[name].norms[0], "0.1")
        assert breaking.training
        assert not model.training
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert torch.equal(weight.grad, torch.ones_like(weight))
        weight.grad = None
        assert random.getstate() == states[0]
        assert np.random.get_state()[1].tolist() == states[1]
        assert torch.equal(torch.get_rng_state(), states[2])


def test_a_memory_error_passes_through_for_the_caller_to_halve_the_batch(digits):
    _, images, labels = digits

    class Full(nn.Module):
        def forward(self, inputs):
            raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        attack("LinfFastGradientAttack", Full(), images, labels, "Linf", "0.1")


def test_a_norm_that_the_attack_does_not_have_is_refused(digits):
    with pytest.raises(UserError, match="attacks in L2, not in Linf"):
        attack("DDNAttack", *digits, "Linf", "0.1")


def test_random_attacks_follow_the_seed(digits):
    model, images, labels = digits
    for name in ("LinfProjectedGradientDescentAttack", "SaltAndPepperNoiseAttack", "DatasetAttack"):
        norm, options = SPECS[name].norms[0], {"steps": 5} if name != "DatasetAttack" else {}
        one, same, other = (attack(name, model, images, labels, norm, "0.2", seed=s, **options) for s in (0, 0, 1))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
