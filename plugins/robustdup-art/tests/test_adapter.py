"""The adapter against answers that are known: closed forms on linear models, and what ART must not touch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustdup import Passes, Registry, RunError, SampleRng, ThreatModel, UserError
from tests.lanes import each_once

PGD = "ProjectedGradientDescent"


class Linear(nn.Module):
    """Logits w_k . x for images (N, 3, 5, 5): distances to its decision boundaries are known."""

    def __init__(self, classes: int = 4, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(classes, 75, generator=generator) * scale)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight.T - 0.5 * self.weight.sum(dim=1)


@pytest.fixture
def linear() -> Linear:
    return Linear().eval()


def attack(registry: Registry, name: str, model: nn.Module, images: Tensor, labels: Tensor, eps: Any, **more: Any):
    """Run an attack on images whose rows are samples 0, 1, ...; `norm` and `seed` by keyword."""
    threat = ThreatModel(more.pop("norm", "Linf"), eps)
    rng = SampleRng(more.pop("seed", 0), torch.arange(len(images)))
    spec = registry.attacks[f"art:{name}"]
    return spec.function(model, images, labels, threat, rng=rng, **spec.check_options(more))


def margin(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """True logit minus the other, of a model with two classes."""
    logits = model(images).detach()
    return logits.gather(1, labels[:, None])[:, 0] - logits.gather(1, 1 - labels[:, None])[:, 0]


@each_once(
    name=["FastGradientMethod", PGD, "ProjectedGradientDescentNumpy", "MomentumIterativeMethod"], norm=["Linf", "L2"]
)
def test_gradient_attacks_reach_the_optimum_of_a_linear_model(
    registry: Registry, grey: Tensor, name: str, norm: str
) -> None:
    model = Linear(classes=2).eval()
    labels = model(grey).argmax(dim=1)
    direction = (model.weight[0] - model.weight[1]).detach()
    reach = direction.abs().sum() if norm == "Linf" else direction.norm()
    eps = 0.03 if norm == "Linf" else 0.2
    steps = {} if name == "FastGradientMethod" else {"max_iter": 10}
    adv = attack(registry, name, model, grey, labels, eps, norm=norm, **steps)
    drop = margin(model, grey, labels) - margin(model, adv, labels)
    torch.testing.assert_close(drop, torch.full_like(drop, float(eps * reach)), rtol=1e-3, atol=1e-4)
    assert not ThreatModel(norm, eps).violations(grey, adv).any.any()


def test_deepfool_finds_the_distance_of_a_linear_model(registry: Registry, grey: Tensor) -> None:
    model = Linear(classes=2).eval()
    labels = model(grey).argmax(dim=1)
    adv = attack(registry, "DeepFool", model, grey, labels, 1, norm="L2")
    distance = margin(model, grey, labels) / (model.weight[0] - model.weight[1]).norm()
    torch.testing.assert_close((adv - grey).flatten(1).norm(dim=1), distance.detach(), rtol=1e-3, atol=1e-4)


def test_hop_skip_jump_comes_near_the_distance_of_a_linear_model(registry: Registry, grey: Tensor) -> None:
    model = Linear(classes=2).eval()
    labels = model(grey).argmax(dim=1)
    adv = attack(registry, "HopSkipJump", model, grey, labels, 1, norm="L2", max_iter=12, max_eval=500)
    assert (model(adv).argmax(dim=1) != labels).all()
    distance = margin(model, grey, labels) / (model.weight[0] - model.weight[1]).norm().detach()
    found = (adv - grey).flatten(1).norm(dim=1)
    assert (found >= distance - 1e-4).all()
    assert float((found / distance).median()) < 1.5


def test_jsma_is_given_targets_and_not_the_true_labels(registry: Registry, linear: Linear, grey: Tensor) -> None:
    labels = linear(grey).argmax(dim=1)
    adv = attack(registry, "SaliencyMapMethod", linear, grey, labels, 1)
    assert (linear(adv).argmax(dim=1) != labels).all()

    from art.attacks.evasion import SaliencyMapMethod
    from robustdup_art.estimator import build_classifier, to_art

    trap = SaliencyMapMethod(build_classifier(linear, grey, 4), verbose=False)
    assert np.array_equal(trap.generate(to_art(grey), labels.numpy()), to_art(grey))


def test_virtual_adversarial_looks_along_the_weights_of_a_linear_model(registry: Registry, grey: Tensor) -> None:
    model = Linear(classes=2, scale=0.1).eval()
    labels = model(grey).argmax(dim=1)
    adv = attack(registry, "VirtualAdversarialMethod", model, grey, labels, 0.3, norm="L2", max_iter=3)
    direction = (model.weight[0] - model.weight[1]).detach()
    cosine = nn.functional.cosine_similarity((adv - grey).flatten(1), direction[None])
    assert (cosine.abs() > 0.95).all()


class Raising(Linear):
    """Fails at its third call."""

    calls = 0

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error
        self.noise = nn.BatchNorm1d(4)

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise self.error
        return self.noise(super().forward(images))


@pytest.mark.parametrize("name", [PGD, "SquareAttack", "DeepFool", "GeoDA"])
def test_everything_is_put_back_after_an_exception(registry: Registry, grey: Tensor, name: str) -> None:
    import art.attacks.evasion.geometric_decision_based_attack as geoda

    model = Raising(ValueError("broke"))
    model.noise.train(name != "GeoDA")
    model.weight.requires_grad_(False)
    model.noise.weight.grad = torch.ones(4)
    statistics = model.noise.running_mean.clone()
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    norm = "Linf" if name in (PGD, "SquareAttack") else "L2"
    with pytest.raises(RunError, match=f"art:{name} failed inside ART: ValueError: broke") as caught:
        attack(registry, name, model, grey, torch.zeros(6, dtype=torch.int64), 0.1, norm=norm)
    assert isinstance(caught.value.__cause__, ValueError)
    assert model.training
    assert model.noise.training == (name != "GeoDA")
    assert not model.weight.requires_grad
    assert model.noise.weight.requires_grad
    assert torch.equal(model.noise.weight.grad, torch.ones(4))
    assert torch.equal(model.noise.running_mean, statistics)
    assert states[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(states[2], torch.get_rng_state())
    assert geoda.np is np


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), UserError("no")])
def test_errors_that_others_handle_pass_through(registry: Registry, grey: Tensor, error: Exception) -> None:
    with pytest.raises(type(error)):
        attack(registry, PGD, Raising(error), grey, torch.zeros(6, dtype=torch.int64), 0.1)


def test_the_model_keeps_its_mode_during_the_attack(registry: Registry, grey: Tensor) -> None:
    seen: list[bool] = []

    class Watched(Linear):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(self.training)
            return super().forward(images)

    model = Watched().train()
    attack(registry, PGD, model, grey, torch.zeros(6, dtype=torch.int64), 0.1, max_iter=2)
    assert seen
    assert all(seen)


@pytest.mark.parametrize("name", ["SquareAttack", "AutoProjectedGradientDescent", "UniversalPerturbation"])
def test_randomness_comes_from_rng_alone(registry: Registry, linear: Linear, grey: Tensor, name: str) -> None:
    labels = linear(grey).argmax(dim=1)

    def run(seed: int, entropy: int) -> Tensor:
        random.seed(entropy)
        np.random.seed(entropy)
        torch.manual_seed(entropy)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        adv = attack(registry, name, linear, grey, labels, 0.01, seed=seed, max_iter=3)
        assert before[:2] == (random.getstate(), np.random.get_state()[1].tolist())
        assert torch.equal(before[2], torch.get_rng_state())
        return adv

    first = run(0, 1)
    assert torch.equal(first, run(0, 2))
    if name != "UniversalPerturbation":
        assert not torch.equal(first, run(7, 1))


def test_single_image_attacks_do_not_depend_on_the_company(registry: Registry, linear: Linear, grey: Tensor) -> None:
    labels = linear(grey).argmax(dim=1)
    spec, threat = registry.attacks["art:HopSkipJump"], ThreatModel("L2", 1)
    options = {"max_iter": 2, "max_eval": 50, "init_eval": 20}
    every = spec.function(linear, grey, labels, threat, rng=SampleRng(0, torch.arange(6)), **options)
    some = torch.tensor([4, 1])
    part = spec.function(linear, grey[some], labels[some], threat, rng=SampleRng(0, some), **options)
    assert torch.equal(part, every[some])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_comes_back(registry: Registry, grey: Tensor, dtype: torch.dtype) -> None:
    model = Linear().eval().to(dtype)
    images, labels = grey.to(dtype), torch.zeros(6, dtype=torch.int64)
    for name, norm in ((PGD, "Linf"), ("BoundaryAttack", "L2")):
        adv = attack(registry, name, model, images, labels, 0.1, norm=norm, max_iter=2)
        assert (adv.dtype, adv.shape, adv.requires_grad) == (dtype, images.shape, False)


@pytest.mark.parametrize(
    "name",
    [
        PGD, "ProjectedGradientDescentNumpy", "BasicIterativeMethod", "MomentumIterativeMethod", "SquareAttack",
        "AutoProjectedGradientDescent", "AutoConjugateGradient", "RescalingAutoConjugateGradient",
        "FeatureAdversariesPyTorch", "ShadowAttack", "SimBA", "SpatialTransformation",
    ],
)  # fmt: skip
def test_cost_is_what_a_surviving_point_costs(registry: Registry, grey: Tensor, name: str) -> None:
    class Stubborn(Linear):
        """Nearly linear logits whose largest stays the first; where asked, one image is of another class."""

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * 1e-3 + torch.eye(4)[0]

    options = {
        "SquareAttack": {"max_iter": 7}, "FeatureAdversariesPyTorch": {"max_iter": 7}, "SimBA": {"max_iter": 7},
        "ShadowAttack": {"nb_steps": 3, "batch_size": 5},
        "SpatialTransformation": {"num_translations": 1, "num_rotations": 5},
    }.get(name, {"max_iter": 7})  # fmt: skip
    if name.startswith(("Auto", "Rescaling")):
        options["nb_random_init"] = 2
    spec, model = registry.attacks[f"art:{name}"], Passes(Stubborn().eval())
    labels = torch.zeros(6, dtype=torch.int64)
    if name == "FeatureAdversariesPyTorch":
        labels[:] = 1  # so that every image is a guide
    attack(registry, name, model, grey, labels, 1e-3, norm=(spec.norms or ("L2",))[0], **options)
    forward, backward = spec.passes(options)
    assert model.count.backward == 6 * backward
    assert 6 * forward <= model.count.forward <= 6 * forward + 3, (model.count.forward / 6, forward)


def test_options_reach_art(registry: Registry, linear: Linear, grey: Tensor) -> None:
    labels = linear(grey).argmax(dim=1)
    counts = []
    for steps in (3, 9):
        model = Passes(linear)
        attack(registry, PGD, model, grey, labels, 0.01, max_iter=steps)
        counts.append(model.count.backward)
    assert counts == [6 * 3, 6 * 9]
    small = attack(registry, PGD, linear, grey, labels, 0.1, max_iter=1, eps_step=0.004)
    assert float((small - grey).abs().max()) == pytest.approx(0.004, abs=1e-6)


def test_a_misspelt_option_and_a_wrong_norm_are_refused(registry: Registry, linear: Linear, grey: Tensor) -> None:
    spec = registry.attacks[f"art:{PGD}"]
    with pytest.raises(UserError, match="Did you mean 'max_iter'"):
        spec.check_options({"max_iters": 3})
    with pytest.raises(UserError, match="works in Linf, L2"):
        attack(registry, PGD, linear, grey, torch.zeros(6, dtype=torch.int64), 1, norm="L1")
    with pytest.raises(UserError, match="BasicIterativeMethod does not work in L2"):
        attack(registry, "BasicIterativeMethod", linear, grey, torch.zeros(6, dtype=torch.int64), 1, norm="L2")
    with pytest.raises(UserError, match="'fgms'"):
        registry.attacks["art:UniversalPerturbation"].check_options({"attacker": "fgms"})


def test_inputs_that_an_attack_cannot_take_are_refused(registry: Registry, linear: Linear, grey: Tensor) -> None:
    labels = torch.zeros(6, dtype=torch.int64)
    with pytest.raises(UserError, match="3 channels, got 1"):
        attack(registry, "LaserAttack", linear, grey[:, :1], labels, 1)
    with pytest.raises(UserError, match="square images, got 5 x 3"):
        attack(registry, "GeoDA", linear, grey[..., :3], labels, 1, norm="L2")
    with pytest.raises(UserError, match="at least 10 x 10, got 5 x 5"):
        attack(registry, "SquareAttack", linear, grey, labels, 1, norm="L2")
    with pytest.raises(UserError, match="at least 3 classes"):
        attack(registry, "AutoAttack", Linear(classes=2), grey, labels, 0.1)
    with pytest.raises(UserError, match="whole 8-bit levels"):
        attack(registry, "ThresholdAttack", linear, grey, labels, "1/255")


def test_threshold_attack_stays_within_eps_between_8_bit_levels(
    registry: Registry, linear: Linear, grey: Tensor
) -> None:
    labels, threat = linear(grey).argmax(dim=1), ThreatModel("Linf", "8/255")
    whole = (grey * 255).round() / 255
    for images in (grey, whole):
        adv = attack(registry, "ThresholdAttack", linear, images, labels, "8/255", max_iter=3)
        assert not threat.violations(images, adv).any.any()
    moved = (adv != whole).flatten(1).any(dim=1)
    assert moved.any()
    assert float((adv - whole).abs().max()) * 255 == pytest.approx(8, abs=0.01)


def test_geoda_ends_and_writes_nothing(
    registry: Registry, grey: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Constant(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.eye(3)[0].expand(len(images), 3) + 0 * images.flatten(1)[:, :3]

    monkeypatch.chdir(tmp_path)
    labels = torch.zeros(6, dtype=torch.int64)
    adv = attack(registry, "GeoDA", Constant(), grey, labels, 1, norm="L2", max_iter=1000, max_start=20)
    assert torch.equal(adv, grey)
    assert not list(tmp_path.iterdir())


def test_nothing_is_printed(
    registry: Registry, linear: Linear, grey: Tensor, capfd: pytest.CaptureFixture[str]
) -> None:
    labels = linear(grey).argmax(dim=1)
    attack(registry, "UniversalPerturbation", linear, grey, labels, 0.01, max_iter=2)
    attack(registry, "AutoProjectedGradientDescent", linear, grey, labels, 0.01, max_iter=2)
    attack(registry, "BoundaryAttack", linear, grey, labels, 0.01, norm="L2", max_iter=2)
    assert capfd.readouterr() == ("", "")


def test_a_violation_of_art_is_not_hidden(grey: Tensor) -> None:
    from robustdup_art.estimator import from_art

    array = grey.numpy().copy()
    array[0, 0, 0, 0], array[1, 0, 0, 0], array[2, 0, 0, 0] = 1 + 5e-7, 1.001, np.nan
    adv = from_art(array, grey)
    assert float(adv[0, 0, 0, 0]) == 1.0
    assert float(adv[1, 0, 0, 0]) == pytest.approx(1.001)
    assert adv[2, 0, 0, 0].isnan()
