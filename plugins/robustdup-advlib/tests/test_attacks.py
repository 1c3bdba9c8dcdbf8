"""Every attack on the contract: conformance in each norm, equality with adv-lib itself, and what happens when something fails."""

import random

import numpy as np
import pytest
import robustdup_advlib
import torch
from robustdup_advlib.adapter import load
from robustdup_advlib.table import ENTRIES
from torch import nn

from robustdup import Passes, Registry, RunError, SampleRng, ThreatModel, UserError
from robustdup.testing import check_attack

REGISTRY = Registry()
robustdup_advlib.register(REGISTRY)
SPECS = {name.removeprefix("advlib:"): spec for name, spec in REGISTRY.attacks.items()}
EVERY = [(entry.name, norm) for entry in ENTRIES for norm in entry.norms]
FIRST = [(entry.name, entry.norms[0]) for entry in ENTRIES if entry.name != "str_attack"]


class Small(nn.Module):
    """Four classes, untrained, smooth, row by row in float64."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(48, 20, generator=generator, dtype=torch.float64) / 3)
        self.second = nn.Parameter(torch.randn(20, 4, generator=generator, dtype=torch.float64))

    def forward(self, images):
        return (torch.tanh(images.double().flatten(1) @ self.first) @ self.second).float()


def problem(n=6, channels=3):
    images = torch.rand(n, channels, 4, 48 // channels // 4, generator=torch.Generator().manual_seed(1))
    model = Small()
    return model, images, model(images).argmax(dim=1).detach()


def attack(name, model, images, labels, norm="L2", eps="1", seed=0, **options):
    spec = SPECS[name]
    rng = SampleRng(seed, torch.arange(len(images)))
    return spec.function(model, images, labels, ThreatModel(norm, eps), rng=rng, **spec.check_options(options))


@pytest.mark.parametrize(("name", "norm"), FIRST)
def test_conformance(name, norm):
    report = check_attack(SPECS[name], norm=norm)
    assert report.ok, [finding for finding in report.findings if not finding.ok]
    assert report.demonstrated, (report.n_broken, report.n_noise)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm"), [pair for pair in EVERY if pair not in FIRST])
def test_conformance_in_the_other_norms(name, norm):
    report = check_attack(SPECS[name], norm=norm)
    assert report.ok, [finding for finding in report.findings if not finding.ok]
    assert report.demonstrated, (report.n_broken, report.n_noise)


@pytest.mark.parametrize(
    ("name", "norm", "options", "own"),
    [
        ("ddn", "L2", {"steps": 15, "levels": 0}, {"steps": 15, "levels": None}),
        ("fmn", "L0", {"steps": 15, "alpha_init": 2.0}, {"steps": 15, "α_init": 2.0, "norm": 0}),
        ("fmn", "Linf", {"steps": 15}, {"steps": 15, "norm": float("inf")}),
        ("alma", "L1", {"num_steps": 15, "mu_init": 2}, {"num_steps": 15, "μ_init": 2, "distance": "l1"}),
        ("sigma_zero", "L0", {"num_steps": 15, "tau_0": 0.2}, {"num_steps": 15, "τ_0": 0.2}),
        ("tr", "Linf", {"iter": 9}, {"iter": 9, "p": float("inf"), "eps": 0.01}),
        ("pgd_linf", "Linf", {"random_init": False}, {"random_init": False, "ε": 1.0}),
    ],
)
def test_the_result_is_that_of_adv_lib_itself(name, norm, options, own):
    model, images, labels = problem()
    entry = next(entry for entry in ENTRIES if entry.name == name)
    expected = load(entry)(model, images.clone(), labels, **own).detach()
    assert torch.allclose(attack(name, model, images, labels, norm, **options), expected.clamp(0, 1), atol=1e-6)
    assert not torch.equal(expected, images)


@pytest.mark.parametrize(
    ("name", "norm", "options"),
    [("fmn", "L2", {"steps": 7}), ("ddn", "L2", {"steps": 5}), ("sigma_zero", "L0", {"num_steps": 6}),
     ("pdgd", "L2", {"num_steps": 4}), ("pdpgd", "L1", {"num_steps": 4}), ("alma", "L2", {"num_steps": 5})],
)  # fmt: skip
def test_the_stated_cost_is_what_it_takes(name, norm, options):
    model, images, labels = problem()
    passes = Passes(model)
    attack(name, passes, images, labels, norm, **options)
    assert (passes.count.forward / 6, passes.count.backward / 6) == SPECS[name].passes(options)


def test_everything_is_put_back_when_the_model_raises():
    model, images, labels = problem()

    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.calls = model, 0

        def forward(self, inputs):
            self.calls += 1
            if self.calls == 3:
                raise ValueError("broken on purpose")
            return self.model(inputs)

    weight = next(model.parameters())
    for name in ("ddn", "fmn", "apgd", "carlini_wagner_l2", "vfga"):
        breaking = Breaks()
        breaking.train()
        weight.grad = torch.ones_like(weight)
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        with pytest.raises(RunError, match="broken on purpose"):
            attack(name, breaking, images, labels, SPECS[name].norms[0], "1")
        assert breaking.training
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert torch.equal(weight.grad, torch.ones_like(weight))
        assert random.getstate() == states[0]
        assert np.random.get_state()[1].tolist() == states[1]
        assert torch.equal(torch.get_rng_state(), states[2])


def test_a_memory_error_passes_through_for_the_caller_to_halve_the_batch():
    _, images, labels = problem()

    class Full(nn.Module):
        def forward(self, inputs):
            raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        attack("ddn", Full(), images, labels)


def test_what_cannot_be_is_refused():
    model, images, labels = problem()
    with pytest.raises(UserError, match="attacks in Linf, not in L2"):
        attack("pgd_linf", model, images, labels, "L2", "1")
    grey = problem(channels=1)
    with pytest.raises(UserError, match="3 channels"):
        attack("perc_al", *grey)

    class Two(nn.Module):
        def forward(self, inputs):
            return model(inputs)[:, :2]

    for name in ("apgd", "apgd_targeted", "minimal_apgd"):
        with pytest.raises(UserError, match="loss_function=ce"):
            attack(name, Two(), images, labels * 0, "Linf", "0.1")
    assert attack("apgd", Two(), images, labels * 0, "Linf", "0.1", loss_function="ce", n_iter=3).shape == images.shape


def test_no_samples_are_no_work():
    model, images, labels = problem()
    assert attack("alma", model, images[:0], labels[:0]).shape == images[:0].shape


def test_random_attacks_follow_the_seed():
    model, images, labels = problem()
    one, same, other = (
        attack("pgd_linf", model, images, labels, "Linf", "0.5", seed=seed, steps=1, restarts=1) for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
