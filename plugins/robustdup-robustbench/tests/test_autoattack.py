"""The reference AutoAttack through robustdup equals a direct call of pyautoattack."""

from __future__ import annotations

import importlib.util
import random
import re
import subprocess
import sys

import numpy as np
import pyautoattack
import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from robustdup_robustbench import register
from torch import Tensor, nn

from robustdup import Registry, SampleRng, Stage, ThreatModel, Unavailable, UserError, how_to_install, jobs
from robustdup.config import EvalConfig, build
from robustdup.data.dataset import from_tensors
from robustdup.testing import check_attack
from tests.lanes import each_once

ATTACKS = ("APGD-CE", "APGD-DLR", "APGD-T", "FAB", "FAB-T", "Square")
EPS = {"Linf": 0.12, "L2": 0.6, "L1": 2.0}
SHORT = {
    "APGD-CE": {"n_iter": 5}, "APGD-DLR": {"n_iter": 10, "n_restarts": 2}, "APGD-T": {"n_iter": 10, "n_target_classes": 2},
    "FAB": {"n_iter": 5, "n_restarts": 2}, "FAB-T": {"n_iter": 10, "n_target_classes": 3}, "Square": {"n_queries": 100},
}  # fmt: skip


@pytest.fixture(scope="module")
def registry() -> Registry:
    registry = Registry()
    register(registry)
    return registry


def correct(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).argmax(1) == labels


def cascade(registry, stages, model, images, labels, threat, seed, batch_size):
    """Run stages on survivors in dataset order, in calls of `batch_size`; return (robust, adversarial images, log)."""
    rng = SampleRng(seed, torch.arange(len(images)))
    robust, result, broken_by = correct(model, images, labels), images.clone(), []
    for number, stage in enumerate(stages):
        before = int(robust.sum())
        for rows in robust.nonzero()[:, 0].split(batch_size):
            attack = registry.get_attack(stage.attack)
            adv = attack.function(
                model, images[rows], labels[rows], threat, rng=rng[rows].fold(number), **stage.options
            )
            assert not adv.requires_grad
            broken = rows[~correct(model, adv, labels[rows])]
            result[broken] = adv[~correct(model, adv, labels[rows])]
            robust[broken] = False
        broken_by.append(before - int(robust.sum()))
    return robust, result, broken_by


def direct(model, images, labels, threat, seed, batch_size, version="standard", shorten=False):
    """Call pyautoattack itself; return (robust, adversarial images)."""
    attack = pyautoattack.AutoAttack(model, norm=threat.norm, eps=threat.radius, seed=seed, version=version)
    if shorten:
        attack.attacks_to_run = [name.lower() for name in shorten]
        common = {"eps": threat.radius, "norm": threat.norm, "seed": seed, "device": "cpu", "eot_iter": 1, "rho": 0.75}
        apgd, dlr, apgd_t, fab, fab_t, square = (shorten.get(name, {}) for name in ATTACKS)
        attack.apgd = APGDAttack(
            model, use_largereps=attack.apgd.use_largereps, **common,
            **{"n_restarts": attack.apgd.n_restarts, **(apgd or dlr)},
        )  # fmt: skip
        attack.apgd_targeted = APGDAttack_targeted(
            model, use_largereps=attack.apgd_targeted.use_largereps, **common, **apgd_t
        )
        for name, value in (fab or fab_t).items():
            setattr(attack.fab, name, value)
        attack.square.n_queries = square.get("n_queries", 5000)
    adv, predicted = attack.run_standard_evaluation(images, labels, batch_size=batch_size)
    return predicted == labels, adv


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_cascade_equals_a_direct_call(registry, digits, norm):
    model, images, labels = digits[0], digits[1][:44], digits[2][:44]
    threat = ThreatModel(norm, EPS[norm])
    options = {name: SHORT[name] for name in ("APGD-CE", "APGD-T", "FAB-T", "Square")}
    stages = [Stage(f"robustbench:{name}", value) for name, value in options.items()]
    robust, adv, broken_by = cascade(registry, stages, model, images, labels, threat, seed=3, batch_size=16)
    expected_robust, expected_adv = direct(model, images, labels, threat, 3, 16, shorten=options)
    assert torch.equal(robust, expected_robust)
    assert torch.equal(adv, expected_adv)
    assert broken_by[0] > 0
    assert sum(broken_by[1:]) > 0
    assert robust.any()
    other = cascade(registry, stages, model, images, labels, threat, seed=4, batch_size=16)[1]
    assert not torch.equal(other, adv), "the seed must matter"


def evaluated(model, images, labels, norm, attacks, batch_size, seed):
    """Run `robustdup eval` itself on given points; return (robust, adversarial images of broken points, the record)."""
    config = build(
        EvalConfig,
        values={
            "model": "python", "data": "python", "norm": norm, "eps": str(EPS[norm]), "attacks": attacks,
            "batch_size": batch_size, "seed": seed, "diagnostics": False,
        },
    )  # fmt: skip
    run = jobs.run_evaluation(config, model=model, data=from_tensors(images, labels))
    rows = zip(run.samples["position"], run.samples["outcome"], strict=True)
    lost = {position for position, outcome in rows if outcome in ("broken", "misclassified")}
    return torch.tensor([row not in lost for row in range(len(labels))]), run.adv_images, run.record


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_eval_equals_a_direct_call(digits, norm):
    model, images, labels = digits[0].eval(), digits[1][:44], digits[2][:44]
    options = {name: SHORT[name] for name in ("APGD-CE", "APGD-T", "FAB-T", "Square")}
    attacks = ",".join(
        f"robustbench:{name}({','.join(f'{key}={value}' for key, value in value.items())})"
        for name, value in options.items()
    )
    robust, worst, record = evaluated(model, images, labels, norm, attacks, 16, 3)
    expected_robust, expected_adv = direct(model, images, labels, ThreatModel(norm, EPS[norm]), 3, 16, shorten=options)
    assert torch.equal(robust, expected_robust)
    assert record.robust_accuracy.value == pytest.approx(float(expected_robust.double().mean()))
    broken = correct(model, images, labels) & ~robust
    assert torch.equal(worst[broken], expected_adv[broken])
    assert 0 < int(broken.sum()) == sum(attack.n_broken for attack in record.attacks)
    assert all(attack.violations == 0 for attack in record.attacks)


@pytest.mark.slow
def test_eval_with_the_whole_ensemble_equals_a_direct_call(digits):
    model, images, labels = digits[0].eval(), digits[1][:20], digits[2][:20]
    robust, worst, _ = evaluated(model, images, labels, "Linf", "robustbench:AutoAttack", 16, 1)
    expected_robust, expected_adv = direct(model, images, labels, ThreatModel("Linf", EPS["Linf"]), 1, 16)
    assert torch.equal(robust, expected_robust)
    broken = correct(model, images, labels) & ~robust
    assert torch.equal(worst[broken], expected_adv[broken])


@each_once(name=ATTACKS, norm=["Linf", "L2", "L1"])
def test_each_attack_alone_equals_a_direct_call(registry, digits, name, norm):
    model, images, labels = digits[0], digits[1][:24], digits[2][:24]
    threat = ThreatModel(norm, EPS[norm] * (2 if name == "Square" else 1))
    stage = Stage(f"robustbench:{name}", {**SHORT[name], "seed": 5})
    # In L1 the standard version, which has no DLR stage, would give DLR the larger eps of its other APGDs.
    version = "plus" if name == "APGD-DLR" else "standard"
    robust, adv, broken_by = cascade(registry, [stage], model, images, labels, threat, 0, 24)
    expected_robust, expected_adv = direct(model, images, labels, threat, 5, 24, version, {name: SHORT[name]})
    assert torch.equal(robust, expected_robust)
    assert torch.equal(adv, expected_adv)
    assert broken_by[0] > 0
    assert not threat.violations(images, adv).any.any()


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_ensembles_have_the_settings_of_the_versions(registry, digits, monkeypatch, version, norm):
    calls = []

    def note(self, x, y):
        skip = ("model", "predict", "logger", "verbose", "target_class")
        settings = {k: str(v) for k, v in vars(self).items() if k not in skip and not k.startswith("n_iter_orig")}
        for unused in (
            ("n_target_classes",) if not getattr(self, "targeted", isinstance(self, APGDAttack_targeted)) else ()
        ):
            settings.pop(unused, None)
        calls.append((type(self).__name__, settings))
        (getattr(self, "predict", None) or self.model)(x)  # as every attack does before it starts
        if "n_target_classes" in settings:
            settings["n_target_classes"] = str(self.n_target_classes)
        return x

    for kind in (APGDAttack, APGDAttack_targeted, FABAttack_PT, SquareAttack):
        monkeypatch.setattr(kind, "perturb", note)
    model, images, labels = digits[0], digits[1][:8], digits[2][:8]
    threat = ThreatModel(norm, EPS[norm])
    direct(model, images, labels, threat, 7, 8, version)
    expected = list(calls)
    calls.clear()
    ensemble = {"standard": "robustbench:AutoAttack"}.get(version, f"robustbench:AutoAttack-{version}")
    cascade(registry, registry.stages(ensemble), model, images, labels, threat, 7, 8)
    assert len(expected) == {"standard": 4, "plus": 6, "rand": 2}[version]
    assert calls == expected


@each_once(name=ATTACKS, norm=["Linf", "L1"])
def test_cost_is_what_a_surviving_point_costs(registry, digits, name, norm):
    model, images, labels = digits
    rows = correct(model, images, labels).nonzero()[:6, 0]
    count = {"forward": 0, "backward": 0}

    class Counting(nn.Module):
        def forward(self, x):
            count["forward"] += len(x)
            logits = model(x)
            if logits.requires_grad:
                logits.register_hook(lambda grad: count.__setitem__("backward", count["backward"] + len(grad)))
            return logits

    spec = registry.get_attack(f"robustbench:{name}")
    options = {**SHORT[name], **({"use_largereps": True} if norm == "L1" and name in ("APGD-CE", "APGD-T") else {})}
    threat = ThreatModel(norm, 1e-3)
    adv = spec.function(
        Counting(), images[rows], labels[rows], threat, rng=SampleRng(0, torch.arange(6)), **spec.check_options(options)
    )
    assert correct(model, adv, labels[rows]).all()
    assert (count["forward"] / 6, count["backward"] / 6) == spec.passes(options)


def test_costs_of_the_standard_version_are_the_published_counts(registry):
    """7,857 forward and 1,910 backward passes a survivor: here without the clean pass and the four checks of results."""
    passes = [
        registry.get_attack(stage.attack).passes(stage.options) for stage in registry.stages("robustbench:AutoAttack")
    ]
    assert [forward for forward, _ in passes] == [102, 919, 1828, 5003]
    assert [backward for _, backward in passes] == [101, 909, 900, 0]


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_is_touched(registry, digits, name):
    model, images, labels = digits[0], digits[1][:6].clone(), digits[2][:6]
    model.zero_grad()
    model[5].weight.grad = torch.ones_like(model[5].weight)  # a backward pass would add to it
    model[0].bias.requires_grad_(False)
    model[7].train()  # dropout on: one module in another mode than the rest
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    try:
        before = images.clone()
        registry.get_attack(f"robustbench:{name}").function(
            model, images, labels, ThreatModel("Linf", 0.1), rng=SampleRng(0, torch.arange(6)), **SHORT[name]
        )
        assert torch.equal(images, before)
        assert [m.training for m in model] == [False] * 7 + [True, False]
        assert not model[0].bias.requires_grad
        assert model[0].weight.requires_grad
        assert (model[5].weight.grad == 1).all()
        assert all(p.grad is None for p in model.parameters() if p is not model[5].weight)
        assert random.getstate() == states[0]
        assert (np.random.get_state()[1] == states[1]).all()
        assert torch.equal(torch.get_rng_state(), states[2])
    finally:
        model.zero_grad()
        model[0].bias.requires_grad_(True)
        model.eval()


@pytest.mark.parametrize("name", ["APGD-T", "FAB-T"])
def test_fewer_than_ten_classes_make_all_others_targets(registry, four_classes, name):
    model, images, labels = four_classes[0], four_classes[1][:24], four_classes[2][:24]
    threat = ThreatModel("Linf", 0.2)
    options = {"n_iter": 10}
    robust, adv, broken_by = cascade(
        registry, [Stage(f"robustbench:{name}", options)], model, images, labels, threat, 0, 24
    )
    reference = {name: {**options, "n_target_classes": 3}}
    expected_robust, expected_adv = direct(model, images, labels, threat, 0, 24, shorten=reference)
    assert broken_by[0] > 0
    assert torch.equal(robust, expected_robust)
    assert torch.equal(adv, expected_adv)


def test_too_few_classes_for_the_targeted_dlr_loss(registry, three_classes):
    model, images, labels = three_classes[0], three_classes[1][:4], three_classes[2][:4]
    with pytest.raises(UserError, match=r"APGD-T.*at least 4 classes; this model has 3"):
        cascade(registry, [Stage("robustbench:APGD-T")], model, images, labels, ThreatModel("Linf", 0.1), 0, 4)
    stages = [Stage("robustbench:APGD-DLR", {"n_iter": 10}), Stage("robustbench:FAB-T", {"n_iter": 5})]
    assert sum(cascade(registry, stages, model, images, labels, ThreatModel("Linf", 0.4), 0, 4)[2]) > 0


@pytest.mark.parametrize(
    ("name", "norm", "options", "message"),
    [
        ("APGD-CE", "Linf", {"n_restarts": 0}, "'n_restarts' must be a whole number of at least 1, such as 1; got 0"),
        ("APGD-T", "L1", {"n_target_classes": "many"}, "such as 5; got 'many'"),
        ("APGD-CE", "L2", {"use_largereps": True}, "exists in L1 only; the norm is L2"),
        ("FAB", "L2", {"n_iter": 0}, "'n_iter' must be a whole number of at least 1"),
    ],
)
def test_wrong_options_are_user_errors(registry, digits, name, norm, options, message):
    model, images, labels = digits[0], digits[1][:2], digits[2][:2]
    with pytest.raises(UserError, match=message):
        cascade(registry, [Stage(f"robustbench:{name}", options)], model, images, labels, ThreatModel(norm, 0.1), 0, 2)


def test_square_needs_five_pixels_in_l2(registry):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 10))
    with pytest.raises(UserError, match="at least 5 pixels high"):
        registry.get_attack("robustbench:Square").function(
            model,
            torch.rand(2, 1, 4, 4),
            torch.tensor([0, 1]),
            ThreatModel("L2", 0.5),
            rng=SampleRng(0, torch.arange(2)),
        )


def test_without_pyautoattack_the_attacks_are_listed_as_unavailable(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "pyautoattack" else find(name, *a)
    )
    registry = Registry()
    register(registry)
    assert len(registry.attacks) == 6
    assert not any(spec.available for spec in registry.attacks.values())
    with pytest.raises(Unavailable, match=re.escape(how_to_install("robustdup[robustbench]"))):
        registry.get_attack("robustbench:APGD-CE")


def test_registering_imports_no_toolkit():
    code = (
        "import sys, robustdup_robustbench, robustdup; robustdup_robustbench.register(robustdup.Registry());"
        "sys.exit(bool({'pyautoattack', 'robustbench', 'timm', 'gdown'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("norm", ["Linf", *(pytest.param(norm, marks=pytest.mark.slow) for norm in ("L2", "L1"))])
@pytest.mark.parametrize("name", ATTACKS)
def test_conformance(registry, name, norm):
    report = check_attack(registry.get_attack(f"robustbench:{name}"), norm=norm)
    assert report.ok, [finding.message for finding in report.findings if not finding.ok]
    assert report.demonstrated, report.evidence


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("version", "norm"),
    [("standard", "Linf"), ("standard", "L2"), ("standard", "L1"), ("plus", "Linf"), ("plus", "L1"), ("rand", "L2")],
)
def test_full_versions_equal_a_direct_call(registry, digits, version, norm):
    model, images, labels = digits[0], digits[1][:20], digits[2][:20]
    threat = ThreatModel(norm, EPS[norm])
    ensemble = {"standard": "robustbench:AutoAttack"}.get(version, f"robustbench:AutoAttack-{version}")
    robust, adv, broken_by = cascade(
        registry, registry.stages(ensemble), model, images, labels, threat, seed=11, batch_size=16
    )
    expected_robust, expected_adv = direct(model, images, labels, threat, 11, 16, version)
    assert broken_by[0] > 0
    assert robust.any()
    assert torch.equal(robust, expected_robust)
    assert torch.equal(adv, expected_adv)
