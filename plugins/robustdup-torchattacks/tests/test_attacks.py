"""Every attack: keeps the contract, touches nothing, and beats noise of equal norm on a network that it can break."""

import random

import numpy as np
import pytest
import torch
from robustdup_torchattacks.table import ROWS

from robustdup import ThreatModel
from robustdup.testing import check_attack

SLOW = {"JSMA": pytest.mark.slow}  # tables of 768 x 768 pixel pairs; test_traps runs it on 8 x 8 images
CASES = [
    pytest.param(row, norm, id=f"{row.name}-{norm}", marks=SLOW.get(row.name, ())) for row in ROWS for norm in row.norms
]
RANDOM = {
    "GN": {}, "FFGSM": {}, "RFGSM": {"steps": 1}, "PGD": {"steps": 1}, "EOTPGD": {"steps": 1}, "TPGD": {"steps": 1},
    "Jitter": {"steps": 1}, "PGDRS": {"steps": 2}, "VMIFGSM": {"steps": 3}, "VNIFGSM": {"steps": 3},
    "DIFGSM": {"steps": 4, "resize_rate": 0.6}, "TIFGSM": {"steps": 4, "resize_rate": 0.6}, "SPSA": {"nb_sample": 8},
    "PGDL2": {"steps": 1}, "PGDRSL2": {"steps": 2}, "APGD": {"steps": 2}, "APGDT": {"steps": 2, "n_classes": 3},
    "FAB": {"steps": 1, "n_restarts": 5}, "Square": {"n_queries": 20}, "OnePixel": {"steps": 2}, "Pixle": {"restarts": 1},
    "LGV": {"epochs": 1, "steps": 2},
}  # fmt: skip
KEEPS_ONLY_SUCCESS = ("APGD", "APGDT", "FAB", "Square")  # the others return their last iterate


@pytest.mark.parametrize(("row", "norm"), CASES)
def test_conformance(row, norm, registry, capfd):
    report = check_attack(registry.attacks[f"torchattacks:{row.name}"], norm=norm)
    assert capfd.readouterr() == ("", "")
    failed = {finding.code for finding in report.findings if not finding.ok}
    assert failed == ({"unchanged", "eps"} if row.name == "VANILA" else set()), report.findings
    assert report.demonstrated == (not row.undemonstrated), report.evidence


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
