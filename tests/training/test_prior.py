"""FGSM-PGI and what it keeps for each image; schedules of the inner attack; the watch for catastrophic overfitting."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustdup import SampleRng, ThreatModel
from robustdup.config import TrainConfig, build
from robustdup.data.augment import augment_images, moves_of
from robustdup.data.batches import EntryOptions, TrainingSet
from robustdup.errors import UserError
from robustdup.jobs import run_training
from robustdup.plugins import Registry
from robustdup.records import ValidationPoint
from robustdup.training import register
from robustdup.training.curriculum import make_curriculum
from robustdup.training.events import catastrophic_overfitting
from robustdup.training.inner import prepare_inner
from robustdup.training.memory import Memory
from robustdup.training.objectives.prior import fgsm_pgi
from tests.raising import raises

THREAT = ThreatModel("Linf", "0.1")
QUICK = (
    "model=small-cnn(width=4)", "epochs=null", "steps=6", "batch_size=400", "lr=0.01", "validation=97",
    "validation_attack=pgd(steps=1)", "evaluate=none",
)  # fmt: skip


def train(folder, *words, **options):
    return run_training(build(TrainConfig, overrides=[*QUICK, *words]), folder=folder, **options)


@pytest.mark.parametrize("augment", ["crop-flip", "crop", "flip", "none"])
def test_moves_are_those_of_the_augmentation_and_are_undone(augment):
    images = torch.rand(9, 2, 6, 5)
    rng = SampleRng(0, torch.arange(9)).fold("augment")
    moves = moves_of(rng, augment=augment, padding=2)
    pad = [moves.padding] * 4
    assert torch.equal(moves.take(F.pad(images, pad)), augment_images(images, rng, augment=augment, padding=2))
    frames, values = torch.rand(9, 2, 6 + 2 * pad[0], 5 + 2 * pad[0]), torch.rand(9, 2, 6, 5)
    put = moves.put(frames, values)
    assert torch.equal(moves.take(put), values)
    assert int((put != frames).sum()) == values.numel()  # all else stays


def test_what_is_kept_comes_back_for_the_same_entries():
    entries = TrainingSet(torch.rand(6, 1, 4, 4), torch.arange(6) % 2, options=EntryOptions(padding=1))
    entries.keep_moves = True
    memory = Memory(6, (1, 4, 4), padding=1, device=torch.device("cpu"))
    rows, epochs = torch.tensor([4, 1]), torch.zeros(2, dtype=torch.int64)
    batch = entries.batch(rows, epochs)
    values = torch.tensor([0.5, -0.25])[:, None, None, None].expand(2, 1, 4, 4)
    assert memory.read("a", batch.position, batch.moves).abs().max() == 0
    memory.write("a", batch.position, batch.moves, values)
    assert torch.equal(memory.read("a", batch.position, batch.moves), values)
    other = Memory(6, (1, 4, 4), padding=1, device=torch.device("cpu"))
    other.load_state_dict(memory.state_dict())
    assert torch.equal(other.read("a", batch.position, batch.moves), values)
    assert other.read("a", torch.tensor([0, 2]), batch.moves).abs().max() == 0
    with raises("out-of-memory", UserError, "n_fgsm"):
        Memory(2_000_000, (3, 224, 224), padding=4, device=torch.device("cpu"))


class Linear(nn.Module):
    """Logits W images: the gradient of the cross-entropy has a closed form."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 16, generator=torch.Generator().manual_seed(2)))

    def forward(self, images):
        return images.flatten(1) @ self.weight.T


def gradient_of(model, images, labels):
    answer = model(images).softmax(dim=1) - F.one_hot(labels, 3)
    return (answer @ model.weight).detach().reshape(images.shape)


def test_the_attack_starts_where_that_of_the_epoch_before_would_have_gone_on():
    registry = Registry()
    register(registry)
    inner = prepare_inner("pgd", registry, THREAT)
    entries = TrainingSet(
        torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 2]), options=EntryOptions(augment="none", classes=3)
    )
    entries.keep_moves = True
    inner.memory = Memory(2, (1, 4, 4), padding=0, device=torch.device("cpu"))
    model = Linear()
    inner.attach(model, torch.rand(2, 1, 4, 4))
    momentum, start = None, None
    for epoch in range(3):
        batch = entries.batch(torch.arange(2), torch.full((2,), epoch))
        attack = inner.batch(batch.rng, batch=batch)
        loss, metrics = fgsm_pgi(
            model, batch.images, batch.labels, attack=attack, rng=batch.rng, strength=2.0, decay=0.5, step_size="0.04"
        )
        if epoch:
            gradient = gradient_of(model, batch.images + start, batch.labels)
            delta = (start + 0.04 * gradient.sign()).clamp(-0.1, 0.1)
            after, before = model(batch.images + delta), model(batch.images + start)
            wanted = F.cross_entropy(after, batch.labels, reduction="none") + 2 * (after - before).square().mean(dim=1)
            assert torch.allclose(loss, wanted, atol=1e-3)  # what is kept has 16 bits
            momentum = 0.5 * momentum + gradient / gradient.abs().mean(dim=(1, 2, 3), keepdim=True)
            start = (start + 0.04 * momentum.sign()).clamp(-0.1, 0.1)
        again, _ = fgsm_pgi(
            model, batch.images, batch.labels, attack=attack, rng=batch.rng, strength=2.0, decay=0.5, step_size="0.04"
        )
        assert torch.equal(again, loss)  # a second call of an update rule changes nothing
        kept = attack.recall("start"), attack.recall("momentum")
        if epoch:
            assert torch.allclose(kept[0], start, atol=1e-4)
            assert torch.allclose(kept[1], momentum, atol=2e-2)
        start, momentum = kept
        assert start.abs().max() <= 0.1001
    assert set(metrics) == {"correct", "correct_start", "drift"}


def test_a_run_goes_on_to_the_same_weights_with_what_is_kept(tmp_path, monkeypatch):
    words = ("objective=fgsm_pgi", "augment=crop-flip", "padding=1", "checkpoint_every=4")
    whole = train(tmp_path / "whole", *words)
    from robustdup.training.trainer import Trainer

    honest = Trainer.train_on

    def killed(self, number, batch, share):
        if number == 4:
            raise KeyboardInterrupt
        honest(self, number, batch, share)

    monkeypatch.setattr(Trainer, "train_on", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "part", *words)
    monkeypatch.setattr(Trainer, "train_on", honest)
    rest = train(tmp_path / "part", *words, resume=True)
    assert rest.checkpoints[1].fingerprint == whole.checkpoints[1].fingerprint
    with raises("options-conflict", UserError, "transforms"):
        train(tmp_path / "other", *words, "transforms=erasing")


def test_radius_and_steps_over_the_budget():
    made = make_curriculum(
        "0:0, 0.5:8/255", "0:2,0.5:7", ThreatModel("Linf", "8/255"), attack="pgd", objective="pgd_at"
    )
    eight = ThreatModel("Linf", "8/255")
    radii = [made.threat_at(share, eight).radius * 255 for share in (0, 0.25, 0.5, 0.9, 1)]
    assert radii == pytest.approx([0.008, 4, 8, 8, 8])
    assert [made.steps_at(share) for share in (0, 0.49, 0.5, 1)] == [2, 2, 7, 7]
    none = make_curriculum(None, None, eight, attack="pgd", objective="pgd_at")
    assert none.threat_at(0.3, eight) is eight
    assert none.steps_at(0.3) is None


def test_the_inner_attack_follows_its_schedules():
    registry = Registry()
    register(registry)
    inner = prepare_inner("pgd(steps=3,random_start=false)", registry, THREAT)
    inner.curriculum = make_curriculum("0:0,0.5:0.2", "0:1,0.5:4", THREAT, attack="pgd", objective="pgd_at")
    inner.attach(Linear(), torch.rand(2, 1, 4, 4))
    images, labels, rng = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 2]), SampleRng(0, torch.arange(2))
    for share, radius, steps in ((0.25, 0.1, 1), (0.5, 0.2, 4)):
        before = inner.count.forward
        adv_images = inner.batch(rng, share=share)(images, labels)
        assert (adv_images - images).abs().max().item() == pytest.approx(radius, abs=1e-6)
        assert inner.count.forward - before == 2 * steps


@pytest.mark.parametrize(
    ("eps", "steps", "attack", "objective", "code"),
    [
        ("0.1:1/255", None, "pgd", "pgd_at", "bad-value"),
        ("0:1/255,0.5", None, "pgd", "pgd_at", "bad-value"),
        ("0:8", None, "pgd", "pgd_at", "bad-eps"),
        ("0:1/255", None, "pgd", "free", "options-conflict"),
        (None, "0:2.5", "pgd", "pgd_at", "bad-value"),
        (None, "0:2", "apgd-ce", "pgd_at", "options-conflict"),
    ],
)
def test_schedules_that_cannot_be(eps, steps, attack, objective, code):
    with raises(code, UserError):
        make_curriculum(eps, steps, THREAT, attack=attack, objective=objective)


def test_a_run_with_schedules_makes_the_steps_they_say(tmp_path):
    record = train(tmp_path / "run", "attack=pgd(steps=5)", "steps_schedule=0:1,0.5:3", "eps_schedule=0:0,0.5:0.15")
    full, last = 400, 400
    assert record.passes.attack_backward == 3 * full * 1 + 2 * full * 3 + last * 3


def point(step, clean, robust):
    return ValidationPoint(step=step, samples=0, epoch=0, seconds=0, clean_accuracy=clean, robust_accuracy=robust)


@pytest.mark.parametrize(
    ("clean", "robust", "found"),
    [(0.8, 0.02, True), (0.75, 0.3, False), (0.8, 0.2, False), (0.3, 0.02, False), (0.9, 0.17, True)],
)
def test_robust_accuracy_that_collapses_while_clean_accuracy_stays_is_said(clean, robust, found):
    said = catastrophic_overfitting([point(1, 0.5, 0.1), point(2, 0.76, 0.35)], point(3, clean, robust), 200)
    assert bool(said) == found
    if found:
        assert "step 3" in said
        assert "35.0% (step 2)" in said
    assert catastrophic_overfitting([], point(3, clean, robust), 200) == ""


@pytest.mark.parametrize(("n", "found"), [(20, False), (40, False), (200, True)])
def test_a_fall_that_few_images_show_by_chance_is_no_collapse(n, found):
    # Fisher's one-sided p of 4 and 2 of 20 is 0.33, of 8 and 4 of 40 0.17, of 40 and 20 of 200 0.004 (scipy's fisher_exact)
    assert bool(catastrophic_overfitting([point(1, 0.8, 0.2)], point(2, 0.8, 0.1), n)) == found


def test_fractions_stay_exact():
    made = make_curriculum("0:2/255", None, THREAT, attack="pgd", objective="pgd_at")
    assert made.eps == ((0.0, Fraction(2, 255)),)
