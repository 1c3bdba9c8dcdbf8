"""What torchattacks does wrong or cannot do, one test a trap, each failing without the plugin's repair."""

import copy
import inspect
import random

import numpy as np
import pytest
import torch
from torch import nn

from robustdup import Passes, RunError, SampleRng, ThreatModel, UserError

WHITE_BOX = ("PGD", "CW", "JSMA", "EADL1", "PIFGSM", "SparseFool", "FAB", "APGD", "DeepFool")
SHORT = {"JSMA": {"gamma": 0.02}, "EADL1": {"max_iterations": 10, "binary_search_steps": 2}, "SparseFool": {"steps": 1}}


class Logits(nn.Module):
    """A model whose logits are changed by a function."""

    def __init__(self, model, change):
        super().__init__()
        self.model, self.change = model, change
        self.training = model.training

    def forward(self, images):
        return self.change(self.model(images))


class Stops(Logits):
    """A model that raises at its third call."""

    def __init__(self, model):
        super().__init__(model, self.count)
        self.calls = 0

    def count(self, logits):
        self.calls += 1
        if self.calls == 3:
            raise ValueError("third call")
        return logits


def raw(name, task, *, model=None, **options):
    """Run torchattacks itself, to show that the trap is there."""
    import torchattacks

    model = copy.deepcopy(task.model if model is None else model)
    return getattr(torchattacks, name)(model, **options)(task.images, task.labels)


def state(model):
    return (
        torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()),
        [part.training for part in model.modules()],
        [(p.requires_grad, p.grad, p.tolist()) for p in model.parameters()],
        [b.tolist() for b in model.buffers()],
    )  # fmt: skip


@pytest.mark.parametrize("name", [*WHITE_BOX, "Square", "LGV"])
def test_an_exception_leaves_everything_as_it_was(name, task, attack):
    model = Stops(task.model)
    model.train()
    model.model[1].eval()  # a frozen BatchNorm, which torchattacks thaws
    try:
        before = state(model)
        with pytest.raises(RunError, match="third call") as caught:
            attack(name, task.rows(4), "L1" if name == "EADL1" else "Linf", model=model)
        assert isinstance(caught.value.__cause__, ValueError)
        assert state(model) == before
    finally:
        model.eval()


def test_out_of_memory_is_passed_on(task, attack):
    def full(logits):
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        attack("PGD", task, model=Logits(task.model, full))


def test_weights_get_no_gradients_and_runs_under_no_grad(task, attack):
    for name in WHITE_BOX:
        with torch.no_grad():
            attack(name, task.rows(2), **SHORT.get(name, {}))
        assert all(p.grad is None and p.requires_grad for p in task.model.parameters())


def merge(classes):
    """Sum the ten classes' evidence into fewer, or repeat it for more."""
    if classes <= 10:
        return lambda logits: torch.stack([logits[:, k::classes].logsumexp(dim=1) for k in range(classes)], dim=1)
    return lambda logits: torch.cat([logits, logits[:, :1].expand(-1, classes - 10) - 50], dim=1)


@pytest.mark.parametrize("classes", [3, 5, 100])
@pytest.mark.parametrize("name", ["APGDT", "FAB", "AutoAttack", "JSMA", "UPGD", "CW", "DeepFool", "MultiAttack"])
def test_any_number_of_classes(name, classes, task, attack, registry):
    task = task.rows(3)
    model = Logits(task.model, merge(classes))
    options = {"FAB": {"multi_targeted": True, "steps": 2}, "APGDT": {"steps": 4}, "JSMA": {"gamma": 0.05},
               "AutoAttack": {"version": "rand" if classes > 5 else "standard"}, "UPGD": {"loss": "dlr"},
               "DeepFool": {"steps": 4}, "CW": {"c": 10.0, "lr": 0.05}}.get(name, {})  # fmt: skip
    small = type(task)(model, task.images, task.labels % classes)
    if name in ("APGDT", "AutoAttack") and classes == 3:
        with pytest.raises(UserError, match="at least 4 classes; this one has 3"):
            attack(name, small, **options)
        return
    threat = ThreatModel("L2", "4") if name in ("CW", "DeepFool", "JSMA") else ThreatModel("Linf", "0.4")
    adv = attack(name, small, threat, **options)
    assert small.broken(adv).any() or name == "JSMA"
    assert not torch.equal(adv, small.images)


def test_too_few_classes_for_the_dlr_losses(task, attack):
    two = type(task)(Logits(task.model, merge(2)), task.images, task.labels % 2)
    for name, options in (("APGD", {"loss": "dlr"}), ("UPGD", {"loss": "dlr"}), ("AutoAttack", {"version": "rand"})):
        with pytest.raises(UserError, match="at least 3 classes; this one has 2"):
            attack(name, two, **options)
    with pytest.raises(UserError, match="at least 4 classes; this one has 2"):
        attack("MultiAttack", two, attacks="APGD+APGDT")
    with pytest.raises(UserError, match="from 2 to the model's 10 classes, got 11"):
        attack("APGDT", task, n_classes=11)


def test_apgdt_goes_through_every_class_of_the_model(task, attack):
    counts = {}
    for classes in (5, 10, 20):
        passes = Passes(Logits(task.model, merge(classes)))
        small = type(task)(passes.model, task.images[:1], task.labels[:1] % classes)
        attack("APGDT", small, ThreatModel("Linf", "0.0001"), model=passes, steps=2)
        counts[classes] = passes.count.backward
    assert counts == {5: 4 * 3, 10: 9 * 3, 20: 19 * 3}


@pytest.mark.parametrize("name", ["TIFGSM", "PIFGSM", "PIFGSMPP"])
def test_one_channel_is_refused(name, attack, task):
    grey = type(task)(nn.Flatten(), task.images[:, :1], task.labels)
    with pytest.raises(UserError, match="3 channels and cannot run on images with 1"):
        attack(name, grey)


def test_images_that_are_not_square(attack, task):
    wide = type(task)(nn.Flatten(), torch.rand(2, 3, 4, 8), task.labels[:2])
    for name in ("Pixle", "DIFGSM", "TIFGSM"):
        with pytest.raises(UserError, match="square images"):
            attack(name, wide)
    for name in ("Square", "AutoAttack"):
        with pytest.raises(UserError, match="do not fit into images of 4 x 8"):
            attack(name, wide)
    huge = type(task)(nn.Flatten(), torch.rand(1, 3, 224, 224), task.labels[:1])
    with pytest.raises(UserError, match="150528 x 150528 pairs"):
        attack("JSMA", huge)


def negative(logits):
    """Shift all logits below zero: no classifier changes its answer."""
    return logits - 1000


def test_cw_with_negative_logits(task, attack):
    options = {"c": 10.0, "steps": 60, "lr": 0.05}
    below = Logits(task.model, negative)
    assert torch.equal(raw("CW", task, model=below, **options), task.images)  # the trap: a silent no-op
    adv = attack("CW", task, "L2", model=below, **options)
    assert task.broken(adv).float().mean() > 0.9


def test_margin_of_upgd_with_negative_logits(task, attack):
    below = Logits(task.model, negative)
    assert torch.equal(raw("UPGD", task, model=below, loss="margin", eps=0.15, alpha=0.04), task.images)  # the trap
    adv = attack("UPGD", task, model=below, loss="margin")
    assert task.broken(adv).float().mean() > 0.5
    assert task.broken(attack("UPGD", task, loss="margin")).float().mean() > 0.5


def test_zero_gradients_do_not_become_nan(task, attack):
    flat = Logits(task.model, lambda logits: logits * 0 + logits.detach())
    for name in ("MIFGSM", "NIFGSM", "SINIFGSM", "VMIFGSM", "VNIFGSM", "DIFGSM", "TIFGSM", "UPGD", "PGDL2", "APGD"):
        adv = attack(name, task.rows(3), "L2" if name == "PGDL2" else "Linf", model=flat)
        assert adv.isfinite().all(), name


def test_cw_moves_pixels_at_the_ends_of_the_range(task, attack):
    options = {"c": 10.0, "steps": 60, "lr": 0.05}
    ends = (task.images == 0) | (task.images == 1)
    assert ends.float().mean() > 0.3
    moved = (raw("CW", task, **options) - task.images).abs() > 0.01
    assert not (moved & ends).any()  # the trap
    adv = attack("CW", task, "L2", **options)
    assert (((adv - task.images).abs() > 0.01) & ends).any()
    bound = raw("CW", task, **options)
    won = task.broken(adv) & task.broken(bound)
    assert won.sum() > 10
    assert (adv - task.images)[won].norm() < (bound - task.images)[won].norm()


@pytest.mark.parametrize("name", ["EADL1", "EADEN"])
def test_ead_stays_in_the_box_and_measures_from_the_clean_image(name, task, attack):
    steep = Logits(task.model, lambda logits: 50 * logits)
    options = {"max_iterations": 20, "binary_search_steps": 3}
    outside = raw(name, task, model=steep, **options)
    assert outside.min() < -1e-5  # the trap: its first step moves the clean image
    adv = attack(name, task, "L1", model=steep, **options)
    assert adv.min() >= 0
    assert adv.max() <= 1
    with pytest.raises(UserError, match="at least 10"):
        attack(name, task, "L1", max_iterations=9)
    sure = attack(name, task.rows(3), "L1", kappa=1.0, initial_const=1.0, **options)
    assert torch.equal(sure[:1], attack(name, task.rows(1), "L1", kappa=1.0, initial_const=1.0, **options))


def test_deepfool_ends_beyond_the_boundary(task, attack):
    task = task.rows(8)

    def margin(adv):
        logits = task.model.double()(adv.double())
        task.model.float()
        true = logits.gather(1, task.labels[:, None])[:, 0]
        return true - logits.scatter(1, task.labels[:, None], -torch.inf).amax(dim=1)

    with torch.no_grad():
        bare, pushed = margin(attack("DeepFool", task, "L2", push=0.0)), margin(attack("DeepFool", task, "L2"))
    assert bare.max() > -1e-5  # the trap: rounding decides
    assert pushed.max() < -1e-5


@pytest.mark.parametrize(("target", "offset"), [("next", 1), ("runner-up", None), ("least-likely", None)])
def test_jsma_attacks_the_true_label_towards_the_named_class(target, offset, task, attack):
    task = task.rows(12)
    adv = attack("JSMA", task, gamma=0.4, target=target)
    with torch.no_grad():
        clean, reached = task.model(task.images), task.model(adv).argmax(dim=1)
    ranked = clean.scatter(1, task.labels[:, None], -torch.inf).argsort(dim=1)
    wanted = (task.labels + 1) % 10 if offset else ranked[:, -1 if target == "runner-up" else 1]
    assert (reached == wanted).float().mean() > (0.5 if target == "runner-up" else 0.1)
    assert set(reached[reached != task.labels].tolist()) <= set(wanted.tolist()) | set(reached.tolist())
    assert task.broken(adv).float().mean() > 0.1


def test_pixle_updates_each_iteration_on_a_batch(task, attack):
    adv = attack("Pixle", task.rows(6), update_each_iteration=True, max_iterations=30)
    assert task.rows(6).broken(adv).any()


def test_spsa_uses_eps_where_its_own_defaults_do_not(task, attack):
    threat = ThreatModel("Linf", "0.3")
    assert (raw("SPSA", task.rows(4), eps=0.3) - task.images[:4]).abs().max() < 0.011  # the trap
    adv = attack("SPSA", task.rows(4), threat)
    assert float((adv - task.images[:4]).abs().max()) == pytest.approx(0.3, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["FAB", "TIFGSM", "CW", "PGD"])
def test_other_dtypes(name, dtype, task, attack):
    other = type(task)(copy.deepcopy(task.model).to(dtype), task.images[:4].to(dtype), task.labels[:4])
    adv = attack(name, other, "L2" if name == "CW" else "Linf")
    assert adv.dtype == dtype
    assert not torch.equal(adv, other.images)


def test_an_empty_batch_and_channels_last(task, attack):
    assert attack("PGD", task.rows(0)).shape == (0, 3, 8, 8)
    last = copy.deepcopy(task.model).to(memory_format=torch.channels_last)
    images = task.images.contiguous(memory_format=torch.channels_last)
    adv = attack("PGDL2", type(task)(last, images, task.labels), "L2")
    assert task.broken(adv).any()


def test_options_that_would_do_nothing_are_refused(task, attack):
    for name, options, text in (
        ("PGD", {"steps": 0}, "'steps' of attack 'torchattacks:PGD' must be at least 1, got 0"),
        ("Square", {"n_queries": -5}, "must be at least 1"),
        ("PGD", {"alpha": 0}, "above 0 in pixel units"),
        ("PGD", {"alpha": "fast"}, "such as 2/255, got 'fast'. Left out it is eps / 4"),
        ("PGD", {"step_size": 0.1}, "Unknown option of attack 'torchattacks:PGD'"),
        ("DIFGSM", {"resize_rate": 1.0}, "Choose a resize_rate of at most 0.875"),
    ):
        with pytest.raises(UserError) as caught:
            attack(name, task, **options)
        assert text in str(caught.value)
    with pytest.raises(UserError, match="works in L2; the threat model is Linf"):
        attack("PGDL2", task)
    written = attack("PGD", task.rows(2), alpha="2/255", steps=1)
    assert torch.equal(written, attack("PGD", task.rows(2), alpha=2 / 255, steps=1))


def test_multi_attack_takes_named_bounded_members(task, attack):
    adv = attack("MultiAttack", task, attacks="FGSM+PGD")
    fgsm = attack("FGSM", task)
    assert task.broken(fgsm).any()
    assert torch.equal(adv[task.broken(fgsm)], fgsm[task.broken(fgsm)])
    assert task.broken(adv).sum() > task.broken(fgsm).sum()
    for members, text in (
        ("FGSM+CW", "'CW'"),
        ("PGDL2+PGD", "'PGDL2'"),
        ("PGD", "at least two"),
        ("PDG+FGSM", "'PDG'"),
    ):
        with pytest.raises(UserError, match=text):
            attack("MultiAttack", task, attacks=members)


def test_lgv_trains_copies_and_counts_their_passes(task, attack):
    passes = Passes(task.model)
    before = [p.clone() for p in task.model.parameters()]
    options = {"epochs": 2, "nb_models_epoch": 2, "steps": 5, "train_batch": 12, "n_grad": -1}
    adv = attack("LGV", task, model=passes, **options)
    assert all(torch.equal(p, q) for p, q in zip(before, task.model.parameters(), strict=True))
    trained, attacked = 2 * 2 * 12, 5 * 4 * len(task.images)  # an epoch goes through the images once, in two parts
    assert (passes.count.forward, passes.count.backward) == (trained + attacked,) * 2
    assert task.broken(adv).any()


def test_autoattack_standard_runs_its_four_members(task, attack, registry):
    passes = Passes(task.model)
    adv = attack("AutoAttack", task, ThreatModel("Linf", "0.4"), model=passes)
    assert task.broken(adv).all()
    assert "rng" in inspect.signature(registry.attacks["torchattacks:AutoAttack"].function).parameters
    assert isinstance(task.rng(), SampleRng)
