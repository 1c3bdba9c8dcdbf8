"""The conformance test finds what it says it finds: one dishonest or careless attack for each finding."""

import random

import numpy as np
import pytest
import torch

from robustdup import AttackSpec, Registry, UserError, isolated
from robustdup.attacks import register
from robustdup.attacks.fgsm import fgsm
from robustdup.plugins import register_attack
from robustdup.testing import check_attack
from robustdup.testing.trial import NOISE_DRAWS
from tests.raising import raises

NORMS = ("Linf", "L2", "L1")


def honest(model, images, labels, threat, *, rng, scale: float = 1.0):
    """FGSM through the public contract."""
    return threat.project(images, fgsm(model, images, labels, threat, rng=rng))


def failed(function, norm="Linf", **fields):
    report = check_attack(AttackSpec(**{"name": "x", "function": function, "norms": NORMS, **fields}), norm=norm)
    assert report.ok == (not [f for f in report.findings if not f.ok])
    return {finding.code for finding in report.findings if not finding.ok}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["noise", "fgsm", "pgd"])
def test_native_attacks_conform_and_beat_noise(name, norm):
    registry = Registry()
    register(registry)
    report = check_attack(registry.attacks[name], norm=norm, options={"steps": 10} if name == "pgd" else {})
    assert report.ok, [finding for finding in report.findings if not finding.ok]
    assert report.demonstrated == (name != "noise")
    if name == "noise":
        assert report.forward_passes <= report.n * NOISE_DRAWS
        assert report.n_broken <= 2
    else:
        assert report.n_broken >= 15
        assert report.backward_passes > 0


def wrong_shape(model, images, labels, threat, *, rng):
    return images[:-1]


def wrong_dtype(model, images, labels, threat, *, rng):
    return honest(model, images, labels, threat, rng=rng).double()


def returns_nothing(model, images, labels, threat, *, rng):
    return None


def holds_nan(model, images, labels, threat, *, rng):
    adv_images = honest(model, images, labels, threat, rng=rng)
    adv_images[1, 0, 0, 0] = float("nan")
    return adv_images


def leaves_box(model, images, labels, threat, *, rng):
    return images + threat.radius * (honest(model, images, labels, threat, rng=rng) - images).sign()


def leaves_ball(model, images, labels, threat, *, rng):
    wider = threat.with_eps(threat.radius * 1.001)
    return honest(model, images, labels, wider, rng=rng)


def keeps_graph(model, images, labels, threat, *, rng):
    return honest(model, images, labels, threat, rng=rng).requires_grad_(True)


def does_nothing(model, images, labels, threat, *, rng):
    return images


def sets_mode(model, images, labels, threat, *, rng):
    model.eval()
    return honest(model, images, labels, threat, rng=rng)


def trains_statistics(model, images, labels, threat, *, rng):
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    adv_images = honest(model, images, labels, threat, rng=rng)
    for module, training in modes:
        module.training = training
    return adv_images


def freezes_parameters(model, images, labels, threat, *, rng):
    model.requires_grad_(False)
    return honest(model, images, labels, threat, rng=rng)


def fills_grad(model, images, labels, threat, *, rng):
    with torch.enable_grad():
        model(images).sum().backward()
    return honest(model, images, labels, threat, rng=rng)


def clears_grad(model, images, labels, threat, *, rng):
    model.zero_grad()
    return honest(model, images, labels, threat, rng=rng)


def moves_weights(model, images, labels, threat, *, rng):
    with torch.no_grad():
        next(model.parameters()).add_(1e-4)
    return honest(model, images, labels, threat, rng=rng)


def leaves_hook(model, images, labels, threat, *, rng):
    next(model.children()).register_forward_hook(lambda *_: None)
    return honest(model, images, labels, threat, rng=rng)


def consumes_torch(model, images, labels, threat, *, rng):
    torch.rand(1)
    return honest(model, images, labels, threat, rng=rng)


def reseeds_numpy(model, images, labels, threat, *, rng):
    np.random.seed(0)
    return honest(model, images, labels, threat, rng=rng)


def consumes_random(model, images, labels, threat, *, rng):
    random.random()
    return honest(model, images, labels, threat, rng=rng)


def turns_grad_off(model, images, labels, threat, *, rng):
    adv_images = honest(model, images, labels, threat, rng=rng)
    torch.set_grad_enabled(False)
    return adv_images


def sets_cudnn(model, images, labels, threat, *, rng):
    torch.backends.cudnn.deterministic = not torch.backends.cudnn.deterministic
    return honest(model, images, labels, threat, rng=rng)


def overwrites_images(model, images, labels, threat, *, rng):
    images.copy_(honest(model, images, labels, threat, rng=rng))
    return images


def overwrites_labels(model, images, labels, threat, *, rng):
    adv_images = honest(model, images, labels, threat, rng=rng)
    labels.add_(1)
    return adv_images


def knows_no_eps(model, images, labels, threat, *, rng):
    fixed = threat.with_eps("0.03") if threat.norm == "Linf" else threat
    return honest(model, images, labels, fixed, rng=rng)


def forgets_quarter(model, images, labels, threat, *, rng):
    return honest(model, images, labels, threat.with_eps("0.15"), rng=rng)


def unseeded(model, images, labels, threat, *, rng):
    with isolated():
        noise = torch.rand(images.shape)
    return threat.project(images, images + threat.radius * (2 * noise - 1))


def looks_at_company(model, images, labels, threat, *, rng):
    return threat.project(images, images + threat.radius * (images.mean() - images).sign() * images.mean())


def fails(model, images, labels, threat, *, rng):
    raise IndexError("at step 3")


def exits(model, images, labels, threat, *, rng):
    raise UserError("needs 11 classes")


@pytest.mark.parametrize(
    ("function", "code"),
    [
        (wrong_shape, "shape"), (wrong_dtype, "dtype"), (returns_nothing, "type"), (holds_nan, "not_finite"),
        (leaves_box, "box"), (leaves_ball, "ball"), (keeps_graph, "detached"), (does_nothing, "unchanged"),
        (sets_mode, "mode"), (trains_statistics, "buffers"), (freezes_parameters, "requires_grad"),
        (fills_grad, "grad"), (clears_grad, "grad"), (moves_weights, "parameters"), (leaves_hook, "hooks"),
        (consumes_torch, "global_rng"), (reseeds_numpy, "global_rng"), (consumes_random, "global_rng"),
        (turns_grad_off, "flags"), (sets_cudnn, "flags"), (overwrites_images, "inputs"), (overwrites_labels, "inputs"),
        (knows_no_eps, "eps"), (forgets_quarter, "eps"), (unseeded, "deterministic"), (fails, "raises"),
        (exits, "raises"),
    ],
)  # fmt: skip
def test_each_fault_is_found(function, code):
    assert code in failed(function)


def test_an_honest_attack_has_no_fault():
    assert failed(honest) == set()


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_leaving_the_ball_by_a_thousandth_is_found_in_every_norm(norm):
    assert "ball" in failed(leaves_ball, norm=norm)


def test_dependence_on_company_fails_only_what_promises_otherwise():
    assert "composition" in failed(looks_at_company, batching="pool")
    assert "composition" not in failed(looks_at_company, batching="batch")


def test_a_raising_attack_says_what_it_raised():
    report = check_attack(AttackSpec(name="x", function=fails, norms=("L2",)))
    assert "IndexError: at step 3" in report.evidence
    assert not report.ok
    assert not report.demonstrated


def test_minimum_norm_attacks_may_leave_the_ball_but_win_only_within_eps():
    def far(model, images, labels, threat, *, rng):
        return 1 - images

    report = check_attack(AttackSpec(name="x", function=far, norms=("L2",), kind="minimum-norm"))
    assert report.ok
    free = check_attack(AttackSpec(name="x", function=far, norms=("L2",), kind="unbounded"))
    assert free.n_broken >= report.n_broken
    assert free.n_broken >= 10


def test_an_l0_attack_is_compared_with_as_many_random_values():
    def bar(model, images, labels, threat, *, rng):
        adv_images = images.clone()
        adv_images[:, :, 6:8] = 1 - adv_images[:, :, 6:8]
        return adv_images

    report = check_attack(AttackSpec(name="x", function=bar, norms=("L0",), kind="unbounded"))
    assert (report.norm, report.n) == ("L0", 20)
    assert report.ok


def test_quick_options_apply_and_options_go_over_them():
    seen = []

    def watched(model, images, labels, threat, *, rng, steps: int = 100, rate: float = 1.0):
        seen.append((steps, rate))
        return honest(model, images, labels, threat, rng=rng)

    check_attack(
        AttackSpec(name="x", function=watched, norms=("L2",), quick={"steps": 7, "rate": 2.0}), options={"rate": 3}
    )
    assert set(seen) == {(7, 3.0)}


def test_a_registered_loss_is_handed_over_as_a_function():
    registry, seen = Registry(), []
    register(registry)
    registry.add_loss("mine", lambda logits, labels: seen.append(1) or -logits.gather(1, labels[:, None])[:, 0])
    report = check_attack(registry.attacks["fgsm"], norm="Linf", options={"loss": "mine"}, registry=registry)
    assert seen
    assert report.demonstrated


def test_norms_and_options_that_are_not_there_are_the_users_mistake():
    spec = AttackSpec(name="x", function=honest, norms=("L2",))
    with raises("unknown-norm", UserError, "'x'", "Linf"):
        check_attack(spec, norm="Linf")
    with raises("unknown-option", UserError, "'scale'"):
        check_attack(spec, options={"scal": 1})


def test_an_attack_is_checked_by_name_by_spec_and_as_a_marked_function():
    registry = Registry()
    register(registry)
    marked = register_attack("mine", norms=["L2"])(honest)
    assert check_attack("fgsm", norm="Linf", registry=registry).demonstrated
    assert check_attack(marked).attack == "mine"
    with raises("unknown-attack", UserError, "fgsm"):
        check_attack("fgms", registry=registry)
    with raises("bad-attack", UserError, "register_attack"):
        check_attack(lambda images: images)


def test_the_check_leaves_the_process_as_it_was():
    torch.manual_seed(5)
    before = torch.get_rng_state(), torch.is_grad_enabled()
    failed(turns_grad_off)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.is_grad_enabled() == before[1]


def finds_nothing(model, images, labels, threat, *, rng):
    """Ask the model for decisions on noise too weak to break anything, and keep only what it gets wrong."""
    best = images.clone()
    for draw in range(3):
        candidates = threat.project(images, images + 1e-4 * (rng.uniform(images.shape[1:], draw=draw) - 0.5))
        wrong = model(candidates).argmax(dim=1) != labels
        best[wrong] = candidates[wrong]
    return best


@pytest.mark.parametrize("norm", NORMS)
def test_a_decision_based_attack_that_finds_nothing_is_not_demonstrated_but_conforms(norm):
    spec = AttackSpec("x", finds_nothing, NORMS, knowledge="decision-based", batching="pool")
    report = check_attack(spec, norm=norm)
    assert report.ok, [finding for finding in report.findings if not finding.ok]
    assert not report.demonstrated
    assert "found nothing in" in next(f.message for f in report.findings if f.code == "unchanged")
    assert {"unchanged", "eps"} <= failed(finds_nothing, norm, batching="pool")  # gradients always lead somewhere
    assert {"unchanged", "eps"} <= failed(does_nothing, norm, knowledge="decision-based")  # it did not even ask
