"""Every attack: keeps the contract, touches nothing, and beats noise of equal norm on a network that it can break."""

import random

import numpy as np
import pytest
import torch
from robustdup_torchattacks.table import ROWS

from robustdup import ThreatModel

EPS = {"Linf": "0.15", "L2": "1.5", "L1": "12", "L0": "1.5"}
CASES = [pytest.param(row, norm, id=f"{row.name}-{norm}") for row in ROWS for norm in row.norms]
CONTROLS = ("VANILA", "GN")
SLOW = {"SparseFool": 8, "DeepFool": 8, "JSMA": 8, "OnePixel": 8, "AutoAttack": 8}  # points
RANDOM = {
    "GN": {}, "FFGSM": {}, "RFGSM": {"steps": 1}, "PGD": {"steps": 1}, "EOTPGD": {"steps": 1}, "TPGD": {"steps": 1},
    "Jitter": {"steps": 1}, "PGDRS": {"steps": 2}, "VMIFGSM": {"steps": 3}, "VNIFGSM": {"steps": 3},
    "DIFGSM": {"steps": 4, "resize_rate": 0.6}, "TIFGSM": {"steps": 4, "resize_rate": 0.6}, "SPSA": {"nb_sample": 8},
    "PGDL2": {"steps": 1}, "PGDRSL2": {"steps": 2}, "APGD": {"steps": 2}, "APGDT": {"steps": 2, "n_classes": 3},
    "FAB": {"steps": 1, "n_restarts": 5}, "Square": {"n_queries": 20}, "OnePixel": {"steps": 2}, "Pixle": {"restarts": 1},
    "LGV": {"epochs": 1, "steps": 2},
}  # fmt: skip
KEEPS_ONLY_SUCCESS = ("APGD", "APGDT", "FAB", "Square")  # the others return their last iterate


def noise_of_length(adv, clean, norm):
    """Random directions as long as each perturbation: signs in Linf, Gaussian in L2 (and L0), Laplace-like in L1."""
    delta = (adv - clean).flatten(1)
    draw = torch.randn(delta.shape, generator=torch.Generator().manual_seed(0))
    if norm == "Linf":
        return draw.sign() * delta.abs().amax(dim=1, keepdim=True)
    order = 1 if norm == "L1" else 2
    return draw * (delta.norm(p=order, dim=1) / draw.norm(p=order, dim=1))[:, None]


def state(model):
    rng = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]
    parameters = [(p.requires_grad, p.grad, p.detach().clone().tolist()) for p in model.parameters()]
    buffers = [b.clone().tolist() for b in model.buffers()]
    return rng, parameters, buffers, [part.training for part in model.modules()]


@pytest.mark.parametrize(("row", "norm"), CASES)
def test_keeps_the_contract_and_beats_noise(row, norm, task, attack, capfd):
    task = task.rows(SLOW.get(row.name, 24))
    threat = ThreatModel("L2" if norm == "L0" else norm, EPS[norm])
    task.model[3].train()  # a mode that no toolkit would think of: Dropout alone in train mode
    task.model[3].p = 0.0
    try:
        before = state(task.model)
        with torch.no_grad():
            adv = attack(row.name, task, threat, **row.quick)
        assert state(task.model) == before
    finally:
        task.model.eval()
    assert capfd.readouterr() == ("", "")
    assert adv.shape == task.images.shape
    assert adv.dtype == task.images.dtype
    assert not adv.requires_grad
    violations = threat.violations(task.images, adv)
    assert not violations.not_finite.any()
    assert not violations.box.any()
    if row.kind == "bounded":
        assert not violations.ball.any()
    if row.name in CONTROLS:
        assert row.undemonstrated
        return
    noise = (task.images + noise_of_length(adv, task.images, norm).view_as(adv)).clamp(0, 1)
    success, by_noise = task.broken(adv).float().mean(), task.broken(noise).float().mean()
    assert success >= by_noise + 0.2, f"{row.name}: {success:.2f} against {by_noise:.2f} of noise"


def test_vanila_is_a_control_that_changes_nothing(task, attack):
    assert torch.equal(attack("VANILA", task), task.images)


@pytest.mark.parametrize("name", RANDOM)
def test_seed_decides_and_global_state_does_not(name, task, attack, registry):
    task = task.rows(6)
    norm = registry.attacks[f"torchattacks:{name}"].norms[0]
    threat = ThreatModel("L2" if norm == "L0" else norm, "0.3" if name in KEEPS_ONLY_SUCCESS else "0.02")
    first = attack(name, task, threat, seed=1, **RANDOM[name])
    torch.rand(7), np.random.rand(7), random.random()
    again = attack(name, task, threat, seed=1, **RANDOM[name])
    other = attack(name, task, threat, seed=2, **RANDOM[name])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("name", "norm"), [
    (row.name, norm) for row in ROWS if row.kind == "bounded" and row.name not in ("VANILA", "AutoAttack", "Square")
    for norm in row.norms
])  # fmt: skip
def test_more_eps_is_used_and_never_exceeded(name, norm, task, attack, registry):
    small, large = (ThreatModel(norm, eps) for eps in (("0.004", "0.4") if norm == "Linf" else ("0.05", "4")))
    quick = registry.attacks[f"torchattacks:{name}"].quick
    near, far = (attack(name, task.rows(6), threat, **quick) for threat in (small, large))
    clean = task.images[:6]
    assert not small.violations(clean, near).any.any()
    assert not large.violations(clean, far).any.any()
    assert large.distance(clean, far).max() > small.radius * 2
    assert task.rows(6).broken(far).sum() > task.rows(6).broken(near).sum()
