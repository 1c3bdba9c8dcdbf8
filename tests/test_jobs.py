"""The whole evaluation, from configuration to record, on models whose optimum is known."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

import robustdup
from robustdup import UserError, jobs
from robustdup.config import EvalConfig, build
from robustdup.errors import RunError
from robustdup.jobs import parse_threats, plan
from robustdup.plugins import load_plugins
from robustdup.records import load_record, load_samples
from tests.raising import raises


class Mean(nn.Module):
    """Two classes by the mean of the image, boundary at one half; counts the rows that it sees."""

    def __init__(self, scale: float = 10.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.rows = [0]  # shared by copies on purpose, so that copies made for attacking are counted too

    def __deepcopy__(self, memo):
        twin = type(self)(self.scale.item())
        twin.rows = self.rows
        return twin.train(self.training)

    def forward(self, images):
        self.rows[0] += len(images)
        signal = self.scale * (images.double().flatten(1).mean(dim=1) - 0.5).float()
        return torch.stack([-signal, signal], dim=1)


VALUES = torch.linspace(0.3, 0.7, 40)
IMAGES = VALUES.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
LABELS = (VALUES > 0.5).long()
GAP = (VALUES - 0.5).abs()
ROBUST = float((GAP > 0.1).double().mean())


def run(model=None, **options):
    options = {"eps": "0.1", "attacks": "pgd(steps=10)", "batch_size": 16, "micro_batch": 8, **options}
    return robustdup.evaluate(model or Mean().eval(), IMAGES, LABELS, **options).record


def test_verified_accuracy_is_the_closed_form():
    record = run()
    assert record.clean_accuracy.value == 1.0
    assert record.robust_accuracy.value == pytest.approx(ROBUST)
    assert record.robust_accuracy.low < ROBUST < record.robust_accuracy.high
    assert record.n == 40
    assert record.threat.model_dump() == {"norm": "Linf", "eps": 0.1, "eps_text": "0.1"}
    assert [a.name for a in record.attacks] == ["pgd"]
    assert record.attacks[0].n_attacked == 40
    assert record.status == "complete"
    assert [c.robust_accuracy for c in record.per_class] == pytest.approx([ROBUST, ROBUST])


def test_passes_are_those_that_the_model_saw():
    model = Mean().eval()
    before = model.rows[0]
    record = run(model, attacks="fgsm,pgd(steps=10)", diagnostics=False, fold=False)
    p = record.passes
    # One image twice to count operations, a micro-batch to see the form of the answers, and one to look at the logits. To
    # find out whether the model repeats itself: 8 halvings between samples, 16 asks, 3 for the company, 2 for the place in a
    # batch and its size, 3 of copies for the memory, and all clean images a second time.
    preliminary = 2 + 2 * 8 + (8 + 16 + 3 + 2 + 3) * 8 + 40
    final = math.ceil(int((GAP <= 0.1).sum()) / 8) * 8  # the broken examples after rounding to 8 bits, in micro-batches
    assert model.rows[0] - before == preliminary + final + p.clean + p.attacks_forward + p.referee + p.padding
    assert sum(a.forward_passes for a in record.attacks) == p.attacks_forward
    assert record.attacks[0].forward_passes == record.attacks[0].backward_passes == 40


# --- dishonest attacks: none gains a point that its projection does not earn, each is reported ---


def away(labels, size):
    return torch.where(labels == 1, -size, size).view(-1, 1, 1, 1)


@robustdup.register_attack("honest", norms=["Linf"])
def honest(model, images, labels, threat, *, rng):
    return images + away(labels, threat.radius)


@robustdup.register_attack("over", norms=["Linf"])
def over(model, images, labels, threat, *, rng):
    return images + away(labels, threat.radius + 1e-3)


@robustdup.register_attack("outside", norms=["Linf"])
def outside(model, images, labels, threat, *, rng):
    return images + away(labels, 5.0)


@robustdup.register_attack("nan", norms=["Linf"])
def nan(model, images, labels, threat, *, rng):
    return torch.full_like(images, float("nan"))


@robustdup.register_attack("swap", norms=["Linf"])
def swap(model, images, labels, threat, *, rng):
    return torch.where(labels == 1, 0.0, 1.0).view(-1, 1, 1, 1).expand_as(images).clone()


@robustdup.register_attack("noop", norms=["Linf"])
def noop(model, images, labels, threat, *, rng):
    return images


@robustdup.register_attack("halfway", norms=["Linf"])
def halfway(model, images, labels, threat, *, rng):
    if rng.index.min() >= 16:
        raise RuntimeError("gave up")
    return images + away(labels, threat.radius)


@robustdup.register_attack("liar", norms=["Linf"])
def liar(model, images, labels, threat, *, rng):
    """Claims success for everything, and makes its model agree."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.neg_()
    model.forward = lambda images: nn.functional.one_hot(1 - labels, 2).float()
    return images


@pytest.mark.parametrize("attack", [honest, over, outside, swap])
def test_what_lies_outside_earns_what_its_projection_earns(attack):
    record = run(attacks=[attack])
    assert record.robust_accuracy.value == pytest.approx(ROBUST)
    assert record.attacks[0].violations == (0 if attack is honest else 40)
    if attack is not honest:
        assert record.attacks[0].worst_excess > 9e-4
        assert (record.attacks[0].rejected_claims > 0) == (attack is not over)  # no point lies between 0.1 and 0.101
        assert "ball" in record.attacks[0].violation_kinds or "box" in record.attacks[0].violation_kinds


@pytest.mark.parametrize(("attack", "kind"), [(nan, "not_finite"), (noop, None), (liar, None)])
def test_what_earns_nothing_breaks_nothing_and_is_named(attack, kind):
    record = run(attacks=[attack])
    assert record.robust_accuracy.value == 1.0
    assert record.attacks[0].n_broken == 0
    if kind:
        assert record.attacks[0].violation_kinds == {kind: 40}
    if attack is noop:
        assert "no_op" in [d.code for d in record.diagnostics]
    if attack is liar:
        assert "changed the weights" in record.events[0]


def test_an_attack_that_fails_half_way_leaves_points_undecided_and_only_in_the_upper_end():
    record = run(attacks=[halfway])
    assert record.n_undecided == 24
    assert record.attacks[0].n_undecided == 24
    decided = float((GAP[:16] > 0.1).sum()) / 40
    assert record.robust_accuracy.value == pytest.approx(decided)
    assert record.robust_accuracy.high > decided + 24 / 40
    assert "attack_failed" in [d.code for d in record.diagnostics]
    assert "gave up" in record.attacks[0].errors[0]
    rescued = run(attacks=[halfway, "pgd(steps=10)"])
    assert rescued.n_undecided == int((GAP[16:] > 0.1).sum())


def test_a_run_in_which_no_call_finishes_is_a_failure():
    @robustdup.register_attack("never", norms=["Linf"])
    def never(model, images, labels, threat, *, rng):
        raise RuntimeError("no")

    assert run(attacks=[never]).status == "failed"


# --- models that are hard to handle ---


class InPlace(Mean):
    """Shifts its input in place, as careless normalisation does."""

    def forward(self, images):
        return super().forward(images.sub_(0.25).add_(0.25))


class Flat(Mean):
    """Takes contiguous images only."""

    def forward(self, images):
        return super().forward(images.view(len(images), -1))


class Stubborn(Mean):
    """Cannot be copied."""

    def __deepcopy__(self, memo):
        raise ValueError("no copies")


@robustdup.register_attack("strided", norms=["Linf"])
def strided(model, images, labels, threat, *, rng):
    moved = honest(model, images, labels, threat, rng=rng)
    return moved.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)


@pytest.mark.parametrize("micro_batch", [8, 40])
def test_a_model_that_works_in_place_changes_no_image(micro_batch):
    images = IMAGES.clone()
    record = robustdup.evaluate(
        InPlace().eval(), images, LABELS, eps="0.1", attacks="fgsm,pgd(steps=10)", micro_batch=micro_batch
    ).record
    assert record.robust_accuracy.value == pytest.approx(ROBUST)
    assert record.n_undecided == 0
    assert torch.equal(images, IMAGES)


def test_what_an_attack_returns_in_strides_is_judged_by_a_model_that_needs_contiguous_images():
    assert run(Flat().eval(), attacks=[strided]).robust_accuracy.value == pytest.approx(ROBUST)


def test_a_model_that_cannot_be_copied_is_named_restored_and_checked_at_the_end():
    model = Stubborn().train()
    record = run(model)
    assert record.robust_accuracy.value == pytest.approx(ROBUST)
    assert "cannot be copied" in record.events[0]
    assert model.training

    @robustdup.register_attack("patch", norms=["Linf"])
    def patch(model, images, labels, threat, *, rng):
        model.model.forward = lambda images: torch.eye(2)[torch.zeros(len(images), dtype=torch.int64)]
        return images

    for attack in (patch, liar):  # the attacks run on the very model that is judged: it is put back, and that is said
        record = run(Stubborn().eval(), attacks=[attack])
        assert record.attacks[0].n_broken == 0
        assert any("put back" in event for event in record.events)


def test_weights_in_another_precision_are_judged_as_float32_and_that_is_said():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double().eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 16))
        model[1].bias.copy_(torch.tensor([8.0, -8.0]))
    record = run(model)
    assert record.robust_accuracy.value == pytest.approx(ROBUST)
    assert record.events == ["The model's weights came as float64; they are judged as float32."]
    assert model[1].weight.dtype == torch.float64


class _NoWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images):
        return images.clone()

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError("no way back")


class OneWay(Mean):
    def forward(self, images):
        return super().forward(_NoWayBack.apply(images))


def test_a_model_whose_backward_pass_fails_keeps_what_black_box_attacks_found():
    record = run(OneWay().eval(), attacks="noise")
    assert record.attacks[0].n_broken > 0
    (sign,) = [d for d in record.diagnostics if d.code == "probe_failed"]
    assert "no way back" in sign.message


def test_an_attack_that_exits_leaves_its_points_undecided():
    @robustdup.register_attack("leaves", norms=["Linf"])
    def leaves(model, images, labels, threat, *, rng):
        raise SystemExit(3)

    assert run(attacks=[leaves, honest]).n_undecided == int((GAP > 0.1).sum())


# --- curves, diagnostics, adaptive attacks ---


def test_a_curve_falls_and_its_largest_eps_is_the_verdict():
    record = run(eps="0.15,0.05,0.1")
    assert list(record.curve) == ["0.05", "0.1", "0.15"]
    for text, point in record.curve.items():
        assert point.value == pytest.approx(float((float(text) < GAP).double().mean()))
    assert record.threat.eps_text == "0.15"
    assert record.robust_accuracy.value == record.curve["0.15"].value
    assert list(record.curve_attacks) == ["0.05", "0.1", "0.15"]


@robustdup.register_attack("shy", norms=["Linf"])
def shy(model, images, labels, threat, *, rng):
    """Works at small eps only."""
    return images + away(labels, threat.radius if threat.radius < 0.12 else 0.0)


def test_more_eps_and_more_accuracy_is_seen_before_the_union_and_the_union_does_not_rise():
    record = run(attacks=[shy], eps="0.1,0.15")
    assert record.curve["0.15"].alone == 1.0
    assert record.curve["0.15"].value == record.curve["0.1"].value == pytest.approx(ROBUST)
    assert record.robust_accuracy.value == pytest.approx(ROBUST)
    assert "more_eps_more_accuracy" in [d.code for d in record.diagnostics]


class Masked(Mean):
    """The same decisions as Mean, with gradients that are exactly zero."""

    def forward(self, images):
        return super().forward((images * 64).round() / 64)


def test_zero_gradients_and_black_box_wins_are_named():
    @robustdup.register_attack("guess", norms=["Linf"], knowledge="score-based")
    def guess(model, images, labels, threat, *, rng):
        return images + away(labels, threat.radius)

    record = run(Masked().eval(), attacks=["pgd(steps=5,random_start=false)", guess])
    codes = [d.code for d in record.diagnostics]
    assert "zero_gradients" in codes
    assert "black_box_beats_white_box" in codes
    clean = run(attacks=["pgd(steps=5,random_start=false)", guess])
    assert not {"zero_gradients", "black_box_beats_white_box"} & {d.code for d in clean.diagnostics}


def test_attack_model_lets_bpda_break_what_hides_its_gradients(tmp_path):
    plain = run(Masked().eval(), attacks="pgd(steps=10,random_start=false)")
    file = tmp_path / "stand_in.py"
    file.write_text(
        "import torch\n"
        "class Mean(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        s = 10 * (x.flatten(1).mean(1) - 0.5)\n"
        "        return torch.stack([-s, s], 1)\n"
        "def make(): return Mean()\n"
    )
    adaptive = run(Masked().eval(), attacks="pgd(steps=10,random_start=false)", attack_model=f"{file}:make")
    assert plain.robust_accuracy.value > adaptive.robust_accuracy.value
    assert adaptive.robust_accuracy.value == pytest.approx(ROBUST, abs=0.11)
    assert adaptive.model.attack_model.endswith("stand_in.py:make")
    for workers in (1, 2):  # given as an object
        given = run(
            Masked().eval(), attacks="pgd(steps=10,random_start=false)", attack_model=Mean().eval(), workers=workers
        )
        assert given.robust_accuracy.value == adaptive.robust_accuracy.value
        assert given.model.attack_model == "python"
    with raises("not-a-module", UserError, "attack model", "int"):
        run(Masked().eval(), attacks="pgd", attack_model=3)


def test_a_custom_loss_registered_like_an_attack_is_used(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "CALLS = []\n"
        "def backwards(logits, labels):\n"
        "    CALLS.append(len(labels))\n"
        "    return logits.gather(1, labels[:, None])[:, 0]\n"
        "def register(registry):\n"
        "    registry.add_loss('backwards', backwards)\n"
    )
    options = {"plugin": [str(file)], "attacks": "pgd(steps=3,random_start=false)"}
    assert run(loss="backwards", **options).robust_accuracy.value == 1.0  # it climbs the wrong way
    assert run(**options).robust_accuracy.value == pytest.approx(ROBUST)
    with raises("unknown-loss", UserError, "'backward'", "'backwards'"):
        run(loss="backward", **options)


def test_loss_goes_to_every_stage_of_an_ensemble_that_takes_one_and_not_over_what_is_written():
    attacks = "pgd(steps=2),apgd(steps=2),pgd(steps=2,loss=dlr),apgd-ce(steps=2)"
    record = run(attacks=attacks, loss="probability-margin", diagnostics=False)
    losses = [attack.options.get("loss") for attack in record.attacks]
    assert losses == ["probability-margin", "probability-margin", "dlr", None]


def test_autoattack_is_refused_in_low_precision():  # TF32 is how published figures were computed on GPUs
    with raises("bad-option", UserError, "'autoattack'", "bf16"):
        run(attacks="autoattack", precision="bf16")


def test_stages_of_another_norm_are_not_planned():
    for norm, restarts in (("Linf", [1, 1, 1, 1]), ("L1", [5, 1, 1, 1])):
        config = build(EvalConfig, overrides=[f"norm={norm}", "attacks=autoattack"])
        stages, notes = plan(config, load_plugins(), parse_threats(config)[-1])
        assert [stage.spec.name for stage in stages] == ["apgd-ce", "apgd-t", "fab-t", "square"]
        assert [stage.options.get("restarts", 1) for stage in stages] == restarts
        assert notes == []


def test_min_distance_gives_the_closed_form_curve_from_one_run():
    record = run(attacks="fab-t(steps=20)", min_distance=True)
    found = record.min_distance
    assert (found.n, found.n_found) == (40, 40)
    assert found.median == pytest.approx(float(GAP.median()), abs=0.01)
    for eps, left in found.curve.items():
        near = (GAP - float(eps)).abs() < 2e-3
        assert abs(left - float((float(eps) < GAP).double().mean())) <= float(near.double().mean()) + 1e-9
    assert record.robust_accuracy.value == pytest.approx(ROBUST)


def test_min_distance_adds_an_attack_that_can_tell_where_none_is_named():
    record = run(attacks="fgsm", min_distance=True, diagnostics=False)
    assert [attack.name for attack in record.attacks] == ["fgsm", "superdeepfool", "fmn"]
    assert [a.n_attacked for a in record.attacks[1:]] == [40, 40]  # of all points, also those that fgsm broke
    assert record.min_distance.median == pytest.approx(float(GAP.quantile(0.5)), rel=0.01)
    assert any("superdeepfool and fmn were added" in event for event in record.events)


class Softmax(Mean):
    def forward(self, images):
        return super().forward(images).softmax(dim=1)


def test_softmax_outputs_training_mode_and_chance_are_named():
    assert "softmax_outputs" in [d.code for d in run(Softmax().eval()).diagnostics]
    training = Mean().train()
    assert "not_eval_mode" in [d.code for d in run(training).diagnostics]
    assert training.training
    reversed_labels = robustdup.evaluate(Mean().eval(), IMAGES, 1 - LABELS, eps="0.1", attacks="fgsm").record
    assert "clean_near_chance" in [d.code for d in reversed_labels.diagnostics]
    assert run().diagnostics == []


def test_a_model_that_gives_all_images_the_same_class_is_named():
    """Also where that class is that of most images, so that the accuracy is far from chance."""
    model = Mean().eval()
    labels = torch.ones_like(LABELS)
    labels[0] = 0
    always_one = nn.Sequential(model, nn.Linear(2, 2)).eval().requires_grad_(False)
    always_one[1].weight.zero_()
    always_one[1].bias.copy_(torch.tensor([0.0, 1.0]))
    record = robustdup.evaluate(always_one, IMAGES, labels, eps="0.1", attacks="fgsm").record
    (sign,) = [sign for sign in record.diagnostics if sign.code == "same_answer"]
    assert sign.severity == "serious"
    assert record.clean_accuracy.value == 1 - 1 / len(labels)


class Noisy(Mean):
    def forward(self, images):
        return super().forward(images + 0.05 * torch.randn(len(images), 1, 1, 1))


def test_a_randomised_model_is_judged_by_fresh_draws_and_reported_as_expected_accuracy():
    record = run(Noisy().eval(), attacks="pgd(steps=10)", eot=4, judge_draws=50)
    assert record.model.randomized
    assert record.model.judge_draws == 50
    assert "randomized" in [d.code for d in record.diagnostics]
    # Expected accuracy of the optimal example: the chance that noise keeps a sample on its side.
    normal = torch.distributions.Normal(0, 1)
    best, untouched = (normal.cdf((GAP - size) / 0.05).mean().item() for size in (0.1, 0.0))
    assert record.robust_accuracy.value == pytest.approx(best, abs=0.02)
    assert record.clean_accuracy.value == pytest.approx(untouched, abs=0.02)
    assert record.attacks[0].robust_accuracy_after == record.robust_accuracy.value
    assert record.attacks[0].options["eot"] == 4


class Grid(nn.Module):
    """Changes its mind within less than a grey level, so that rounding to 8 bits undoes it."""

    def forward(self, images):
        off = (images * 255 - (images * 255).round()).flatten(1).abs().amax(dim=1)
        wrong = (off > 0.2).float()
        return torch.stack([1 - wrong, wrong], dim=1)


def test_accuracy_after_rounding_to_8_bits_is_reported_beside_the_raw_one():
    @robustdup.register_attack("subtle", norms=["Linf"])
    def subtle(model, images, labels, threat, *, rng):
        return images + 0.4 / 255

    images = torch.randint(0, 200, (10, 1, 2, 2)) / 255
    record = robustdup.evaluate(Grid().eval(), images, torch.zeros(10).long(), eps="8/255", attacks=[subtle]).record
    assert record.robust_accuracy.value == 0.0
    assert record.robust_accuracy_8bit == 1.0


# --- run folders, resuming, bundles ---


def small(folder=None, **values):
    return build(EvalConfig, values={"n": 60, "eps": "0.1", "attacks": "fgsm,pgd(steps=3)", "batch_size": 16, **values})


def test_a_record_alone_reruns_to_the_same_result(tmp_path):
    first = jobs.run_evaluation(small(), folder=tmp_path / "a").record
    config = EvalConfig.model_validate(load_record(tmp_path / "a").config)
    second = jobs.run_evaluation(config, folder=tmp_path / "b").record
    assert first.robust_accuracy == second.robust_accuracy
    a, b = load_samples(tmp_path / "a"), load_samples(tmp_path / "b")
    assert a.equals(b)
    assert not (tmp_path / "a" / "state").exists()
    assert first.data.fingerprint == second.data.fingerprint
    assert first.model.fingerprint == second.model.fingerprint


def test_batch_size_changes_nothing_for_native_attacks(tmp_path):
    jobs.run_evaluation(small(batch_size=60), folder=tmp_path / "a")
    jobs.run_evaluation(small(batch_size=7), folder=tmp_path / "b")
    drop = ["forward_passes", "backward_passes"]
    a, b = (
        load_samples(tmp_path / f).drop_columns(drop).sort_by([("stage", "ascending"), ("position", "ascending")])
        for f in "ab"
    )
    assert a.equals(b)


def test_samples_tell_every_point_and_agree_with_the_record(tmp_path):
    record = jobs.run_evaluation(small(), folder=tmp_path / "run").record
    rows = load_samples(tmp_path / "run").to_pylist()
    clean = [row for row in rows if row["attack"] == "clean"]
    assert [row["index"] for row in clean] == list(range(60))
    assert sum(row["outcome"] == "correct" for row in clean) / 60 == record.clean_accuracy.value
    for number, attack in enumerate(record.attacks):
        mine = [row for row in rows if row["stage"] == number]
        assert len(mine) == attack.n_attacked
        assert sum(row["outcome"] == "broken" for row in mine) == attack.n_broken
        assert mine[-1]["forward_passes"] == attack.forward_passes
        assert all((row["margin"] < 0) == (row["outcome"] == "broken") for row in mine)
        assert all(row["distance"] <= 0.1 + 1e-6 for row in mine)
    broken = {row["position"] for row in rows if row["outcome"] == "broken"}
    correct = {row["position"] for row in clean if row["outcome"] == "correct"}
    assert len(correct - broken) / 60 == record.robust_accuracy.value


def test_an_unfinished_run_is_not_overwritten_and_resumes_only_as_it_was_started(tmp_path):
    folder = tmp_path / "run"

    def stop(progress):
        if progress.stage == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.run_evaluation(small(), folder=folder, progress=stop)
    with raises("unfinished-run", UserError, "--resume"):
        jobs.run_evaluation(small(), folder=folder)
    with raises("other-run", UserError, "seed=0", "1"):
        jobs.run_evaluation(small(seed=1), folder=folder, resume=True)
    resumed = jobs.run_evaluation(small(), folder=folder, resume=True).record
    whole = jobs.run_evaluation(small(), folder=tmp_path / "whole").record
    assert load_samples(folder).equals(load_samples(tmp_path / "whole"))
    assert resumed.passes == whole.passes
    with raises("not-empty", UserError, "--out"):
        jobs.run_evaluation(small(), folder=folder)


def test_bundle_is_accepted_and_refused_with_any_single_byte_changed(tmp_path):
    from robustdup.evidence.bundle import write_bundle

    record = jobs.run_evaluation(small(), folder=tmp_path / "run").record
    bundle = write_bundle(tmp_path / "run", tmp_path / "bundle")
    found = jobs.verify_bundle(bundle)
    assert found.accepted
    assert found.robust_accuracy == pytest.approx(record.robust_accuracy.value)
    assert found.n_broken == sum(a.n_broken for a in record.attacks) > 0
    for file in sorted(bundle.iterdir()):
        whole = file.read_bytes()
        for place in {0, len(whole) // 2, len(whole) - 1}:
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with raises("refused-bundle", UserError, file.name.split(".")[0]):
                jobs.verify_bundle(bundle)
        file.write_bytes(whole)
    (bundle / "extra.txt").write_text("x")
    with raises("refused-bundle", UserError, "extra.txt"):
        jobs.verify_bundle(bundle)


def test_a_forger_who_recomputes_the_hashes_is_caught_by_the_referee(tmp_path):
    from safetensors.torch import load_file, save_file

    from robustdup.evidence import bundle as bundles

    jobs.run_evaluation(small(), folder=tmp_path / "run")
    images = tmp_path / "run" / "images" / "adversarial.safetensors"
    content = load_file(images)
    content["images"] = torch.full_like(content["images"], 0.5)
    save_file(content, images)
    forged = bundles.write_bundle(tmp_path / "run", tmp_path / "forged")
    found = jobs.verify_bundle(forged)
    assert not found.accepted
    assert "lies outside the threat model" in " ".join(found.problems)


def stopped(tmp_path, **values):
    """An unfinished run: stopped in its second stage."""

    def stop(progress):
        if progress.stage == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.run_evaluation(small(**values), folder=tmp_path / "run", progress=stop)
    return tmp_path / "run"


def test_a_run_does_not_go_on_with_a_changed_plugin_or_attack_model(tmp_path):
    plugin = tmp_path / "extra.py"
    plugin.write_text("def register(registry):\n    registry.add_loss('mine', lambda logits, labels: logits[:, 0])\n")
    folder = stopped(tmp_path, plugin=[str(plugin)])
    plugin.write_text(plugin.read_text() + "# changed\n")
    with raises("other-run", UserError, "plugin files"):
        jobs.run_evaluation(small(plugin=[str(plugin)]), folder=folder, resume=True)

    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(
        "import torch\ntorch.manual_seed(0)\n"
        "def make(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    (tmp_path / "second").mkdir()
    values = {"attack_model": f"{stand_in}:make"}
    folder = stopped(tmp_path / "second", **values)
    stand_in.write_text(stand_in.read_text().replace("manual_seed(0)", "manual_seed(1)"))
    with raises("other-run", UserError, "weights of the attacked model"):
        jobs.run_evaluation(small(**values), folder=folder, resume=True)


def test_two_processes_do_not_share_a_folder(tmp_path):
    folder = stopped(tmp_path)
    code = (
        "import sys, time; from pathlib import Path; from robustdup.records.folder import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with raises("folder-in-use", UserError, "--out"):
            jobs.run_evaluation(small(), folder=folder, resume=True)
        other.kill()
    assert jobs.run_evaluation(small(), folder=folder, resume=True).record.status == "complete"


def test_individual_results_are_each_attack_alone():
    record = run(attacks=[honest, noop], individual=True)
    assert [a.robust_accuracy_after for a in record.attacks] == pytest.approx([ROBUST, 1.0])
    assert record.robust_accuracy.value == pytest.approx(ROBUST)


def test_damaged_state_is_one_message(tmp_path):
    folder = stopped(tmp_path)
    saved = folder / "state" / "clean.safetensors"
    saved.write_bytes(saved.read_bytes()[:20])
    with raises("damaged-run", UserError, "clean.safetensors"):
        jobs.run_evaluation(small(), folder=folder, resume=True)
    (folder / "state" / "config.json").write_text("[]")
    with raises("damaged-record", UserError, "config.json"):
        jobs.run_evaluation(small(), folder=folder, resume=True)


def bundle_of(tmp_path, model, **options):
    from robustdup.evidence.bundle import write_bundle

    record = run(model, out=tmp_path / "run", **options)
    return record, write_bundle(tmp_path / "run", tmp_path / "bundle")


def test_the_bundle_of_a_randomised_model_is_accepted(tmp_path):
    model = Noisy().eval()
    record, bundle = bundle_of(tmp_path, model, attacks="pgd(steps=10)", eot=4)
    majority = sum(share > 0.5 for share in load_samples(bundle)["correct_share"].to_pylist()[-40:]) / 40
    assert abs(majority - record.robust_accuracy.value) > 0.02  # counting samples would refuse it
    found = robustdup.verify(bundle, model, IMAGES, LABELS)
    assert (found.accepted, found.problems) == (True, [])
    assert found.robust_accuracy == pytest.approx(record.robust_accuracy.value)


@pytest.mark.parametrize("options", [{"eps": "0.05,0.1"}, {"min_distance": True}])
def test_the_bundle_of_a_randomised_model_is_accepted_with_a_curve_too(tmp_path, options):
    model = Noisy().eval()
    record, bundle = bundle_of(tmp_path, model, attacks="pgd(steps=5)", eot=2, judge_draws=30, **options)
    assert record.robust_accuracy.value <= record.clean_accuracy.value
    found = robustdup.verify(bundle, model, IMAGES, LABELS)
    assert (found.accepted, found.problems) == (True, [])


class Company(Mean):
    """Looks at an image beside the mean of its batch."""

    def forward(self, images):
        return super().forward(images - 0.5 * (images.mean() - 0.5))


def test_the_bundle_of_a_model_that_depends_on_its_batch_is_accepted(tmp_path):
    model = Company().eval()
    record, bundle = bundle_of(tmp_path, model, attacks="pgd(steps=5)")
    assert record.model.judged_in_batches_of == 8
    found = robustdup.verify(bundle, model, IMAGES, LABELS)
    assert (found.accepted, found.problems) == (True, [])
    assert found.robust_accuracy == record.robust_accuracy.value


def test_the_examples_of_a_union_over_eps_are_those_that_broke_each_point(tmp_path):
    record, bundle = bundle_of(tmp_path, Mean().eval(), attacks=[shy], eps="0.1,0.15")
    found = robustdup.verify(bundle, Mean().eval(), IMAGES, LABELS)
    assert (found.accepted, found.problems) == (True, [])
    assert found.n_broken == 40 - round(40 * record.robust_accuracy.value) > 0


def test_points_undecided_at_a_smaller_eps_alone_do_not_refuse_a_bundle(tmp_path):
    @robustdup.register_attack("clumsy", norms=["Linf"])
    def clumsy(model, images, labels, threat, *, rng):
        if threat.radius < 0.07:
            raise RuntimeError("too small for me")
        return images + away(labels, threat.radius)

    record, bundle = bundle_of(tmp_path, Mean().eval(), attacks=[clumsy], eps="0.05,0.1")
    assert record.n_undecided == 0
    assert "more_eps_more_accuracy" not in [d.code for d in record.diagnostics]
    found = robustdup.verify(bundle, Mean().eval(), IMAGES, LABELS)
    assert (found.accepted, found.problems) == (True, [])
    assert found.robust_accuracy == pytest.approx(ROBUST)


@pytest.mark.parametrize(
    ("part", "value", "text"),
    [
        ("n", 4000, "a number of samples of 4000"),
        ("n_undecided", 3, "undecided samples of 3"),
        ("threat", {"norm": "Linf", "eps": 0.01, "eps_text": "0.1"}, "an eps of 0.01"),
        ("clean_accuracy", {"value": 0.7, "low": 0.6, "high": 0.8}, "a clean accuracy of 0.7; the evidence shows 1"),
        ("robust_accuracy", {"value": 0.9, "low": 0.8, "high": 1.0}, "a robust accuracy of 0.9"),
    ],
)
def test_a_record_that_states_what_its_evidence_does_not_show_is_refused(tmp_path, part, value, text):
    from robustdup.evidence.bundle import write_bundle

    run(out=tmp_path / "run", attacks="fgsm")
    place = tmp_path / "run" / "record.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), part: value}))
    found = robustdup.verify(write_bundle(tmp_path / "run", tmp_path / "bundle"), Mean().eval(), IMAGES, LABELS)
    assert not found.accepted
    assert text in " ".join(found.problems)


def test_claims_of_breaking_that_do_not_hold_are_named(tmp_path):
    from robustdup.evidence import bundle as bundles
    from robustdup.records import save_samples

    run(out=tmp_path / "run", attacks="fgsm")
    rows = load_samples(tmp_path / "run").to_pydict()
    rows["outcome"] = ["broken" if word == "robust" else word for word in rows["outcome"]]
    save_samples(rows, tmp_path / "run")
    forged = bundles.write_bundle(tmp_path / "run", tmp_path / "bundle")
    found = robustdup.verify(forged, Mean().eval(), IMAGES, LABELS)
    assert any("is claimed to be broken, but the model classifies it right" in problem for problem in found.problems)
    rows["outcome"] = ["misclassified" if word == "correct" else word for word in rows["outcome"]]
    save_samples(rows, tmp_path / "run")
    forged = bundles.write_bundle(tmp_path / "run", tmp_path / "second")
    found = robustdup.verify(forged, Mean().eval(), IMAGES, LABELS)
    assert any("the clean prediction is not the one" in problem for problem in found.problems)


def test_a_bundle_cannot_make_the_verifier_load_files_or_pickles(tmp_path):
    from robustdup.evidence.bundle import write_bundle

    jobs.run_evaluation(small(), folder=tmp_path / "run")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    place = tmp_path / "run" / "record.json"
    content = json.loads(place.read_text())
    content["config"] |= {"plugin": [str(tmp_path / "evil.py")], "allow_pickle": True}
    place.write_text(json.dumps(content))
    assert jobs.verify_bundle(write_bundle(tmp_path / "run", tmp_path / "bundle")).accepted
    assert not (tmp_path / "ran").exists()


def test_a_bundle_is_refused_on_other_data_or_weights(tmp_path):
    from robustdup.evidence.bundle import write_bundle

    jobs.run_evaluation(small(), folder=tmp_path / "run")
    bundle = write_bundle(tmp_path / "run", tmp_path / "bundle")
    with raises("refused-bundle", UserError, "the weights"):
        jobs.verify_bundle(bundle, {"model": "builtin:digits-standard"})
    with raises("refused-bundle", UserError, "the data"):
        jobs.verify_bundle(bundle, {"n": 59})


def test_verify_judges_a_file_of_examples_from_any_tool(tmp_path):
    import numpy as np

    run = jobs.run_evaluation(small())
    np.savez(tmp_path / "adv.npz", images=run.adv_images.numpy())
    found = jobs.verify_examples(tmp_path / "adv.npz", small(n=None))
    assert found.accepted
    assert found.n == 60
    assert found.robust_accuracy == pytest.approx(run.record.robust_accuracy.value)
    np.savez(tmp_path / "far.npz", images=(run.adv_images + 0.2).numpy())
    assert jobs.verify_examples(tmp_path / "far.npz", small(n=None)).violations == 60
    np.savez(tmp_path / "labels.npz", images=run.adv_images.numpy(), labels=np.zeros(60, dtype=np.int64))
    with raises("other-samples", UserError, "labels"):
        jobs.verify_examples(tmp_path / "labels.npz", small(n=None))


# --- bad input: one clear message ---


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"attacks": "pdg"}, r"Unknown attack 'pdg'. Did you mean 'pgd'\?"),
        ({"attacks": "pgd(stps=3)"}, r"Unknown option of attack 'pgd': 'stps'. Did you mean 'steps'\?"),
        ({"attacks": "pgd(steps=0.5)"}, "must be a whole number"),
        ({"attacks": "pgd(steps=.inf)"}, "must be a whole number"),
        ({"attacks": "pgd(steps=.nan)"}, "must be a whole number"),
        ({"attacks": "pgd(loss=3)"}, "must be a word such as 'ce', got 3"),
        ({"attacks": ""}, "No attack is named"),
        ({"eps": "-0.1"}, "eps must be above 0"),
        ({"eps": "0"}, "eps must be above 0"),
        ({"eps": "8"}, r"Did you mean '8/255'\?"),
        ({"eps": "lots"}, "is not a number"),
        ({"norm": "L3"}, "Unknown norm 'L3'"),
        ({"device": "gpu"}, "Unknown device 'gpu'"),
        ({"attacks": "noise", "loss": "ce"}, "--loss is for native gradient attacks"),
        ({"attacks": "pgd(loss=cee)"}, r"Unknown loss 'cee'. Did you mean 'ce'\?"),
        ({"norm": "L2", "eps": "1e400"}, "larger than any image"),
        ({"n": 41}, "above the 40 images"),
        ({"step": 3}, r"Unknown configuration key 'step'"),
        ({"options": {"pdg": {"steps": 3}}}, "Unknown attack in options"),
    ],
)
def test_mistakes_in_settings(options, text):
    with pytest.raises(UserError, match=text):
        run(**options)


def test_mistakes_in_model_and_data():
    model = Mean().eval()

    def evaluate(images=IMAGES, labels=LABELS, model=model):
        return robustdup.evaluate(model, images, labels, eps="0.1", attacks="fgsm").record

    with raises("model-and-data", UserError, "5", "2 outputs"):
        evaluate(labels=LABELS + 4)
    with pytest.raises(UserError, match=r"\[0, 1\]"):
        evaluate(images=IMAGES * 255)
    with pytest.raises(UserError, match="(?i)nan|finite"):
        evaluate(images=IMAGES * float("nan"))
    with pytest.raises(UserError, match="(?i)no images|empty|at least one"):
        evaluate(images=IMAGES[:0], labels=LABELS[:0])

    class Broken(nn.Module):
        def __init__(self, answer):
            super().__init__()
            self.answer = answer

        def forward(self, images):
            return self.answer(images)

    with raises("no-logits", UserError, "tuple"):  # (features, logits) or (logits, features)?
        evaluate(model=Broken(lambda x: (model(x), x.flatten(1))))
    with raises("no-logits", UserError, "dict"):
        evaluate(model=Broken(lambda x: {"a": model(x), "b": model(x)}))
    with raises("not-finite", UserError, "logits"):
        evaluate(model=Broken(lambda x: model(x) * float("nan")))
    with raises("model-and-data", UserError, "(1, 4, 4)", "--grey"):
        evaluate(model=nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten()).eval())
    with raises("not-a-module", UserError, "function"):
        evaluate(model=lambda images: model(images))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())", r"--attack-model\) cannot take images of shape"),
    ],
)
def test_an_attack_model_that_does_not_fit_is_refused_before_anything_runs(tmp_path, body, text):
    file = tmp_path / "other.py"
    file.write_text(f"from torch import nn\ndef make(): return {body}\n")
    with pytest.raises(UserError, match=text):
        run(attack_model=f"{file}:make")


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises((RunError, UserError), match="Cannot write|is not"):
        jobs.run_evaluation(small(), folder=tmp_path / "file" / "run")


def test_state_is_readable_json(tmp_path):
    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.run_evaluation(small(), folder=tmp_path / "run", progress=stop)
    assert json.loads((tmp_path / "run" / "state" / "config.json").read_text())["n"] == 60


def test_a_refused_run_stays_refused(tmp_path, monkeypatch):
    """The model of the judge changed at the end, seen by nothing that could put it back."""
    from robustdup.evaluation import engine

    def changed(*_):
        raise RunError("The judged model's answers changed.", code="model-changed")

    monkeypatch.setattr(engine, "check_unchanged", changed)
    with raises("model-changed", RunError):
        jobs.run_evaluation(small(), folder=tmp_path / "run")
    monkeypatch.undo()
    with raises("refused-run", RunError, "stays so", "answers changed"):
        jobs.run_evaluation(small(), folder=tmp_path / "run", resume=True)


MODEL_FILE = """
import torch, helper
class Net(torch.nn.Module):
    def forward(self, images):
        signal = helper.SCALE * (images.flatten(1).mean(1) - 0.5)
        return torch.stack([-signal, signal] + [signal * 0 - 9] * 8, 1)
def make():
    return Net()
"""


@pytest.mark.parametrize("edited", ["model.py", "helper.py"])
def test_model_code_that_is_edited_between_kill_and_resume_is_noticed(tmp_path, edited, monkeypatch):
    (tmp_path / "model.py").write_text(MODEL_FILE)
    (tmp_path / "helper.py").write_text("SCALE = 10.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "helper", raising=False)
    config = small(model=f"{tmp_path / 'model.py'}:make", attacks="noise,noise", n=20)

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.run_evaluation(config, folder=tmp_path / "run", progress=stop)
    with (tmp_path / edited).open("a") as file:
        file.write("\n# another model now\n")
    with raises("other-run", UserError, "code of the model"):
        jobs.run_evaluation(config, folder=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("eps", "attacks"),
    [
        ("0.1", "fast"),
        ("0.05,0.1", "fgsm"),
        ("0.1", "pgd(steps=5),fab-t(steps=10)"),
        *(
            pytest.param(*rest, marks=pytest.mark.slow)
            for rest in [("0.05,0.1", "fast"), ("0.1", "fgsm"), ("0.05,0.1", "pgd(steps=5),fab-t(steps=10)")]
        ),
    ],
)
def test_the_curve_of_distances_is_the_verdict_at_eps_and_falls(attacks, eps):
    record = run(attacks=attacks, eps=eps, min_distance=True, diagnostics=False)
    assert record.robust_accuracy.value == pytest.approx(ROBUST)
    curve = record.min_distance.curve
    assert curve["0.1"] == record.robust_accuracy.value
    assert list(curve.values()) == sorted(curve.values(), reverse=True)
    for text, point in record.curve.items():  # an example at most so far away, found at whichever eps, counts
        assert point.value == pytest.approx(float((float(text) < GAP).double().mean()), abs=1 / 40)
        assert curve.get(text, point.value) == point.value
    assert any(a.kind == "minimum-norm" and a.n_attacked == 40 for a in record.attacks)


def test_a_distance_of_eps_that_rounding_has_lengthened_is_not_beyond_it():
    # Every sample lies 0.15 from the boundary and is broken just behind it: in float32 at 0.15000000596.
    images = torch.full((6, 1, 4, 4), 0.65)
    labels = torch.ones(6, dtype=torch.int64)
    record = robustdup.evaluate(
        Mean().eval(), images, labels, eps="0.15001", attacks="fgsm", min_distance=True, diagnostics=False
    ).record
    assert record.robust_accuracy.value == record.min_distance.curve["0.15001"] == 0.0
