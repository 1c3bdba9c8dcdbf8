"""The loop against answers that are known: closed forms, counts, recursions; and what it leaves as it was."""

import functools
import itertools
import random
import time

import numpy as np
import pytest
import torch
from torch import nn

from robustdup import how_to_install
from robustdup.data.batches import EntryOptions, Stream, TrainingSet
from robustdup.errors import RunError, Unavailable, UserError
from robustdup.plugins import AttackSpec, Registry
from robustdup.threat import ThreatModel
from robustdup.training.checkpoint import Checkpoints
from robustdup.training.inner import prepare_inner
from robustdup.training.loop import fit
from robustdup.training.objectives.adversarial import pgd_at, standard
from robustdup.training.options import TrainerOptions
from robustdup.training.parts import Parts
from robustdup.training.schedule import rate_over
from robustdup.training.trainer import Trainer
from robustdup.training.updates import Awp, Free, Plain
from tests.raising import raises

CPU = torch.device("cpu")
THREAT = ThreatModel("Linf", "0.1")


def images_and_labels(n=48):
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(n, 1, 6, 6, generator=generator)
    return images, (images[:, 0, :, :3].mean((1, 2)) > images[:, 0, :, 3:].mean((1, 2))).long()


def make_parts(model=None, objective=standard, update=None, n=48, weights=None, **options):
    images, labels = images_and_labels(n)
    entries = TrainingSet(images, labels, weights=weights, options=EntryOptions(**({"augment": "none"} | options)))
    torch.manual_seed(0)
    model = model or nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(288, 2)
    )
    inner = prepare_inner("pgd(steps=2)", Registry(), THREAT)
    return Parts(model, objective, update or Plain(), inner, functools.partial(Stream, entries), n)


def config(**options):
    usual = {"batch_size": 16, "lr": 0.05, "compile": "off", "weight_decay": 0.0}
    return TrainerOptions(**(usual | ({} if {"epochs", "samples"} & set(options) else {"steps": 12}) | options))


def train(parts, options=None, **more):
    return fit(parts, options or config(), device=CPU, **more)


def linear():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    return model


def test_one_step_of_a_linear_model_is_the_closed_form():
    images, labels = images_and_labels()
    parts = make_parts(linear())
    out = train(parts, config(steps=1, batch_size=48, momentum=0.0, lr=0.5, schedule="constant"))
    # At zero weights both classes have probability 1/2: the gradient is the mean of (1/2 - onehot) times the input.
    slope = 0.5 - nn.functional.one_hot(labels, 2).float()
    torch.testing.assert_close(out.last["1.weight"], -0.5 * slope.T @ images.flatten(1) / 48)
    torch.testing.assert_close(out.last["1.bias"], -0.5 * slope.mean(0))
    assert out.curve[0].loss == pytest.approx(np.log(2))
    assert (out.status, out.steps, out.samples, out.epochs) == ("complete", 1, 48, 1.0)


def test_weights_of_the_loss_count_as_copies_do():
    images, labels = images_and_labels(4)
    weights = torch.tensor([2.0, 0.5, 0.0, 1.5])
    out = train(make_parts(linear(), n=4, weights=weights), config(steps=1, batch_size=4, momentum=0.0, lr=1.0,
                                                                   schedule="constant"))  # fmt: skip
    slope = (0.5 - nn.functional.one_hot(labels, 2).float()) * weights[:, None]
    torch.testing.assert_close(out.last["1.weight"], -slope.T @ images.flatten(1) / 4)


@pytest.mark.parametrize(
    ("options", "rows", "steps"),
    [
        ({"epochs": 2}, [16] * 6, 6),
        ({"epochs": 0.5}, [16, 8], 2),
        ({"samples": 50}, [16, 16, 16, 2], 4),
        ({"steps": 5, "batch_size": 7}, [7] * 5, 5),
    ],
)
def test_the_budget_is_kept_to_the_sample(options, rows, steps):
    seen = []

    def counted(model, images, labels, *, attack, rng):
        seen.append(len(images))
        return standard(model, images, labels, attack=attack, rng=rng)

    out = train(make_parts(objective=counted), config(**options))
    assert seen == rows
    assert (out.steps, out.samples, out.passes.train_forward) == (steps, sum(rows), sum(rows))
    assert out.curve[-1].samples == sum(rows)


@pytest.mark.parametrize(("options", "steps"), [({"epochs": 1}, 12), ({"steps": 10}, 10), ({"samples": 17}, 8)])
def test_replays_are_steps_and_the_last_batch_may_have_fewer(options, steps):
    made = []
    update = Free(THREAT, replays=4)
    parts = make_parts(update=update)
    hook = torch.optim.SGD.step

    def counted(self, *arguments):
        made.append(self.param_groups[0]["lr"])
        return hook(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", counted)
        out = train(parts, config(schedule="linear", **options))
    assert out.steps == len(made) == steps
    assert made == pytest.approx([0.05 * (1 - step / steps) for step in range(steps)])
    assert update.steps == 4


class Watched(Plain):
    """Keeps the weights after each optimizer step."""

    def __init__(self):
        self.seen = []

    def step(self, batch):
        found = super().step(batch)
        self.seen.append({name.removeprefix("net."): v.clone() for name, v in batch.model.state_dict().items()})
        return found


def test_ema_is_the_recursion():
    update = Watched()
    out = train(make_parts(update=update), config(ema=0.9))
    for name in ("0.weight", "1.running_var"):
        average = update.seen[0][name]
        for n, state in enumerate(update.seen[1:], start=1):
            decay = min(0.9, (1 + n) / (10 + n))
            average = decay * average + (1 - decay) * state[name]
        torch.testing.assert_close(out.last[name], average)


def test_swa_is_the_mean_of_the_last_weights_with_statistics_of_its_own():
    update = Watched()
    out = train(make_parts(update=update), config(swa=0.5))
    mean = torch.stack([state["0.weight"] for state in update.seen[6:]]).mean(0)
    torch.testing.assert_close(out.last["0.weight"], mean)
    images, _ = images_and_labels()
    bias = torch.stack([state["0.bias"] for state in update.seen[6:]]).mean(0)
    values = nn.functional.conv2d(images, mean, bias, padding=1)
    torch.testing.assert_close(out.last["1.running_mean"], values.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_clipping_limits_the_length_of_a_step():
    before = linear()[1].weight.detach()
    out = train(make_parts(linear()), config(steps=1, clip=0.01, lr=1.0, momentum=0.0, schedule="constant"))
    moved = torch.cat([(out.last["1.weight"] - before).flatten(), out.last["1.bias"]])
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-4)


def scripted(pairs):
    """Return a validation that gives these (clean, robust) accuracies one after the other."""
    left = iter(pairs)
    return lambda model: (*next(left), 10, 3)


def test_the_best_is_the_most_robust_then_the_most_accurate_then_the_earliest():
    update = Watched()
    given = []
    parts = make_parts(update=update)
    parts.on_best = given.append
    pairs = [(0.9, 0.3), (0.8, 0.4), (0.85, 0.4), (0.85, 0.4), (0.99, 0.39), (0.1, 0.1)]
    out = train(parts, config(validate_every=2), validate=scripted(pairs))
    assert [(p.step, p.clean_accuracy, p.robust_accuracy) for p in out.validation] == [
        (2 * (place + 1), *pair) for place, pair in enumerate(pairs)
    ]
    assert [p.step for p in out.validation if p.best] == [6] == [out.best_step]
    for name, value in update.seen[5].items():
        assert torch.equal(out.best[name], value), name
    assert out.last_step == 12
    assert not torch.equal(out.best["0.weight"], out.last["0.weight"])
    assert len(given) == 3
    assert (out.passes.validation_forward, out.passes.validation_backward) == (60, 18)


def test_candidates_come_twenty_times_and_at_the_end():
    out = train(make_parts(), config(steps=45), validate=lambda model: (0.5, 0.5, 1, 1))
    assert [p.step for p in out.validation] == [*range(2, 45, 2), 45]


def test_validation_sees_averaged_weights_in_eval_mode_and_changes_nothing():
    parts, plain = make_parts(), make_parts()
    modes = []

    def validate(model):
        modes.append(any(module.training for module in model.modules()))
        model.requires_grad_(False)
        torch.manual_seed(1)
        model[1].running_mean.add_(7)
        return 0.5, 0.5, 0, 0

    out = train(parts, config(ema=0.5), validate=validate)
    assert not any(modes)
    assert float(out.best["1.running_mean"].abs().max()) < 3
    without = train(plain, config(ema=0.5))
    for name, value in without.last.items():
        assert torch.equal(out.last[name], value), name


def failing_at(number):
    """Return an objective whose loss is NaN from batch `number` (the first is 1) on."""
    calls = []

    def objective(model, images, labels, *, attack, rng):
        calls.append(1)
        loss, metrics = standard(model, images, labels, attack=attack, rng=rng)
        return loss * (float("nan") if len(calls) >= number else 1.0), metrics

    return objective


@pytest.mark.parametrize("on_disk", [False, True])
def test_nan_ends_the_run_at_the_checkpoint_before(on_disk, tmp_path):
    whole = Watched()
    train(make_parts(update=whole), config(steps=400))
    update = Watched()
    out = train(
        make_parts(update=update, objective=failing_at(10)), config(steps=400, checkpoint_every=3),
        folder=tmp_path if on_disk else None,
    )  # fmt: skip
    assert (out.status, out.steps, out.last_step, out.best_step) == ("stopped", 9, 9, 9)
    rate = rate_over(config(), 400)(9)
    assert out.reason == (
        f"The loss was not finite at step 10 of 400 (learning rate {rate:.3g}). Try a lower lr (now 0.05) or clip=1."
    )
    for name, value in whole.seen[8].items():
        assert torch.equal(out.last[name], value), name
    assert all(np.isfinite(point.loss) for point in out.curve)
    assert len(update.seen) < 20  # a look each 400 / 150 steps is soon enough


def test_the_time_after_the_last_checkpoint_was_spent(monkeypatch):
    now, failing = [0.0], failing_at(10)

    def slow(*arguments, **options):
        now[0] += 7.0  # seconds that a step takes
        return failing(*arguments, **options)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    out = train(make_parts(objective=slow), config(steps=400, checkpoint_every=8))
    assert (out.status, out.steps) == ("stopped", 8)
    assert out.seconds == now[0] >= 70


def test_a_step_that_ruins_the_weights_is_not_saved():
    parts = make_parts(linear())
    out = train(parts, config(lr=1e38, clip=None, checkpoint_every=1, schedule="constant", momentum=0.0))
    assert out.status == "stopped"
    assert all(value.isfinite().all() for value in out.last.values())


def test_the_advice_fits_the_settings():
    parts = make_parts(objective=failing_at(1))
    out = train(parts, config(clip=2.0, schedule="cosine", precision="bf16"))
    assert out.reason.endswith("Try a lower lr (now 0.05), warmup=0.1, a smaller clip (now 2) or precision=fp32.")
    assert (out.steps, out.curve) == (0, [])


@pytest.mark.parametrize(
    ("device", "error", "message"),
    [
        ("cuda", "CUDA error: unspecified launch failure", "The device failed at step 3: CUDA error: unspecified launch failure"),
        ("cuda", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", "The device failed at step 3: cuDNN error"),
        ("cuda", "CUDA driver error: unknown error", "The device failed at step 3: CUDA driver error"),
        ("cuda", "NCCL error in: ProcessGroupNCCL.cpp:77, unhandled cuda error", "The device failed at step 3: NCCL error"),
        ("cuda", "CUBLAS_STATUS_NOT_INITIALIZED when calling cublasCreate", "The device failed at step 3: CUBLAS_STATUS"),
        ("cpu", "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.", "Out of memory at step 3: Default"),
    ],
)  # fmt: skip
def test_a_device_that_is_gone_leaves_the_last_checkpoint(device, error, message, tmp_path, monkeypatch):
    calls = []

    def objective(model, images, labels, *, attack, rng):
        calls.append(1)
        if len(calls) >= 4:
            started[0].device = torch.device(device)  # no GPU is needed to see what is said of one
            raise RuntimeError(f"{error}\nCUDA kernel errors might be reported asynchronously")
        return standard(model, images, labels, attack=attack, rng=rng)

    def remember(trainer):
        started.append(trainer)
        start(trainer)

    started, start = [], Trainer.start
    monkeypatch.setattr(Trainer, "start", remember)
    with pytest.raises(RunError) as caught:
        train(make_parts(objective=objective), config(checkpoint_every=2), folder=tmp_path)
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith("The last checkpoint is kept: go on with --resume.")
    assert "asynchronously" not in str(caught.value)
    monkeypatch.setattr(Trainer, "start", start)
    out = train(make_parts(), config(checkpoint_every=2), folder=tmp_path, resume=True)
    assert "Resumed after step 2." in out.events
    whole = train(make_parts(), config()).last
    assert all(torch.equal(value, whole[name]) for name, value in out.last.items())


def test_initial_weights_that_are_not_finite():
    model = linear()
    model[1].weight.data[0, 0] = float("nan")
    with raises("bad-weights", UserError, "not finite"):
        train(make_parts(model))


def test_progress_comes_ten_times_a_second_and_ends_at_the_end():
    shown = []
    began = time.perf_counter()
    out = train(make_parts(), config(steps=300), progress=shown.append, validate=lambda model: (0.75, 0.5, 1, 1))
    seconds = time.perf_counter() - began
    views = [view for view in shown if not view.message]
    assert len(views) <= 10 * seconds + 2
    assert {view.message for view in shown} == {"", "validating"}
    last = shown[-1]
    assert (last.step, last.n_steps, last.epoch, last.seconds_left) == (300, 300, out.epochs, 0)
    assert (last.clean_accuracy, last.robust_accuracy) == (0.75, 0.5)
    assert last.loss == pytest.approx(out.curve[-1].loss)
    assert 100 <= len(out.curve) <= 200
    assert [point.step for point in out.curve] == sorted({point.step for point in out.curve})
    assert out.images_per_second > 0
    assert out.peak_memory > 2**20


def test_curve_points_are_means_over_their_steps():
    update = Watched()
    seen = []

    def objective(model, images, labels, *, attack, rng):
        loss, metrics = standard(model, images, labels, attack=attack, rng=rng)
        seen.append((loss.detach().sum().item(), metrics["correct"].sum().item()))
        return loss, metrics

    out = train(make_parts(update=update, objective=objective), config(steps=450))
    assert [point.step for point in out.curve] == list(range(3, 451, 3))
    for place in (0, 70):
        loss, correct = (sum(values) / 48 for values in zip(*seen[3 * place : 3 * place + 3], strict=True))
        assert out.curve[place].loss == pytest.approx(loss, rel=1e-5)
        assert out.curve[place].accuracy == pytest.approx(correct, rel=1e-5)


def global_state():
    return (
        torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state()), torch.get_num_threads(),
        torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark,
        torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"),
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_what_is_global_is_as_before(precision):
    parts = make_parts(objective=pgd_at)
    before = global_state()
    train(parts, config(precision=precision, threads=2, steps=2))
    assert global_state() == before

    def broken(*_, **__):
        torch.manual_seed(3)
        raise RuntimeError("objective failed")

    with pytest.raises(UserError, match="objective failed"):
        train(make_parts(objective=broken), config(precision=precision, threads=2))
    assert global_state() == before


def reseeding(model, images, labels, threat, *, rng, seed: int = 0):
    """An attack that does what toolkits do: it seeds every global generator, and leaves images as they are."""
    for sow in (torch.manual_seed, np.random.seed, random.seed):
        sow(seed)
    torch.rand(3)
    return images.clone()


def test_an_attack_that_reseeds_globally_changes_no_draw():
    """Order, augmentation, dropout and weights are those of a run with another seed in the attack, and with none."""
    registry, found = Registry(), []
    registry.add_attack(AttackSpec("reseeding", reseeding, ("Linf",)))
    for text in (None, "reseeding(seed=1)", "reseeding(seed=2)"):
        seen = []

        def objective(model, images, labels, *, attack, rng, attacked=text is not None, seen=seen):
            seen.extend([images.clone(), labels.clone()])
            moved = attack(images, labels) if attacked else images
            seen.append(torch.rand(2))  # what dropout would draw
            return standard(model, moved, labels, attack=attack, rng=rng)

        parts = make_parts(objective=objective, augment="crop-flip", padding=1)
        if text is not None:
            parts.inner = prepare_inner(text, registry, THREAT)
        last = train(parts).last
        found.append([*seen, *(last[name] for name in sorted(last))])
    assert all(len(one) == len(found[0]) for one in found)
    for one in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(one, found[0], strict=True))
    assert not torch.equal(found[0][2], found[0][5])  # and draws differ from batch to batch


def test_bf16_computes_the_objective_in_bf16_and_keeps_fp32_weights():
    kinds = []

    def objective(model, images, labels, *, attack, rng):
        kinds.append(model(images).dtype)
        return standard(model, images, labels, attack=attack, rng=rng)

    out = train(make_parts(objective=objective), config(precision="bf16"))
    assert set(kinds) == {torch.bfloat16}
    assert out.last["0.weight"].dtype == torch.float32
    assert out.curve[-1].loss < 0.7


def test_fp16_makes_no_step_of_a_gradient_that_overflows_and_goes_on_with_a_smaller_scale():
    weights = []

    def objective(model, images, labels, *, attack, rng):
        weights.append(next(model.parameters()).detach().clone())
        loss, metrics = standard(model, images, labels, attack=attack, rng=rng)
        return (loss * 1e37 if len(weights) == 3 else loss), metrics  # times 65,536 this is infinite

    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", lambda self, state: kept.append(state["scaler"]))
        out = train(make_parts(objective=objective), config(precision="fp16", steps=6))
    assert out.status == "complete"
    assert out.last["0.weight"].dtype == torch.float32
    same = [torch.equal(one, other) for one, other in itertools.pairwise(weights)]
    assert same.index(True) == 2
    assert sum(same) == 1
    assert (kept[0]["scale"], kept[-1]["scale"]) == (2.0**16, 2.0**15)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_training_inside_a_block_of_autocast_uses_the_weights_of_each_step(precision):
    """torch keeps its low-precision copies of weights until the outermost block ends."""
    alone = train(make_parts(objective=pgd_at), config(precision=precision, steps=8))
    with torch.autocast("cpu", enabled=False):
        inside = train(make_parts(objective=pgd_at), config(precision=precision, steps=8))
    assert [point.loss for point in inside.curve] == [point.loss for point in alone.curve]


@pytest.mark.parametrize("update", [Plain, Awp, lambda: Free(THREAT, replays=2)])
def test_fp16_learns_what_fp32_learns(update):
    """Steps, perturbed weights and replayed images do not depend on the scale of the loss."""
    curves = []
    for precision in ("fp32", "fp16"):
        out = train(make_parts(objective=pgd_at, update=update()), config(precision=precision, steps=8, clip=1.0))
        curves.append(out.curve[-1].loss)
    assert curves[1] == pytest.approx(curves[0], rel=0.02)


def test_inner_passes_are_counted_apart():
    out = train(make_parts(objective=pgd_at), config(steps=3))
    assert (out.passes.train_forward, out.passes.train_backward) == (48, 48)
    assert (out.passes.attack_forward, out.passes.attack_backward) == (96, 96)


def test_trackers(tmp_path):
    out = train(make_parts(), config(track="tensorboard"), folder=tmp_path, validate=lambda model: (0.5, 0.25, 1, 1))
    (events,) = (tmp_path / "tracking" / "robustdup").glob("events.out.tfevents.*")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(events.parent))
    found.Reload()
    losses = found.Scalars("loss")
    assert [event.step for event in losses] == [point.step for point in out.curve]
    assert [event.value for event in losses] == pytest.approx([point.loss for point in out.curve])
    assert {event.value for event in found.Scalars("robust_accuracy")} == {0.25}


def test_trackers_that_cannot_be():
    with raises("unknown-tracker", UserError, "'tensorbord'", "'tensorboard'"):
        train(make_parts(), config(track="tensorbord"))
    with raises("unavailable", Unavailable, "'wandb'", how_to_install("wandb")):
        train(make_parts(), config(track="wandb"))


def test_a_module_of_the_objective_is_trained_and_is_no_part_of_the_model():
    module = nn.Linear(2, 2)
    before = module.weight.detach().clone()

    def objective(model, images, labels, *, attack, rng):
        logits = module(model(images))
        return nn.functional.cross_entropy(logits, labels, reduction="none"), {"correct": labels.float()}

    parts = make_parts(objective=objective)
    parts.module = module
    out = train(parts)
    assert not torch.equal(module.weight, before)
    assert set(out.last) == set(parts.model.state_dict())


def test_a_batch_in_parts_takes_the_step_of_the_whole():
    whole = train(make_parts(linear()), config(steps=3))
    parts = train(make_parts(linear()), config(steps=3, accumulate=3))
    for name, value in whole.last.items():
        torch.testing.assert_close(parts.last[name], value)
    assert parts.curve[-1].loss == pytest.approx(whole.curve[-1].loss, rel=1e-5)
    assert parts.curve[-1].accuracy == whole.curve[-1].accuracy
    assert parts.passes.train_forward == whole.passes.train_forward


@pytest.mark.parametrize("update", [Plain, Awp, functools.partial(Free, THREAT, replays=2)])
def test_what_runs_out_of_memory_goes_on_in_parts(update):
    seen = []

    def objective(model, images, labels, *, attack, rng):
        seen.append(len(images))
        if len(images) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return pgd_at(model, images, labels, attack=attack, rng=rng)

    plain = train(make_parts(linear(), pgd_at, update()), config(steps=4))
    out = train(make_parts(linear(), objective, update()), config(steps=4))
    assert out.status == "complete"
    assert seen[:3] == [16, 8, 4]
    assert set(seen[3:]) == {4}
    assert [number for number in (2, 4, 8) if any(f"in {number} parts" in event for event in out.events)] == [2, 4]
    for name, value in plain.last.items():
        torch.testing.assert_close(out.last[name], value, rtol=1e-3, atol=1e-4)


def test_memory_that_does_not_hold_one_sample_ends_the_run():
    def objective(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with raises("out-of-memory", RunError, "smaller batch_size"):
        train(make_parts(linear(), objective), config(steps=4))


def test_deterministic_kernels_are_asked_for_while_a_run_trains():
    seen = []

    def objective(model, images, labels, *, attack, rng):
        seen.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic))
        return standard(model, images, labels, attack=attack, rng=rng)

    before = torch.backends.cudnn.deterministic
    train(make_parts(objective=objective), config(steps=2, deterministic=True))
    assert seen == [(True, True)] * 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic == before


@pytest.mark.slow
def test_compiled_training_gives_the_same_curve():
    plain = train(make_parts(objective=pgd_at), config(samples=100))
    compiled = train(make_parts(objective=pgd_at), config(samples=100, compile="on"))
    assert (plain.compiled, compiled.compiled) == ("off", "default")
    assert compiled.events == []
    assert [p.loss for p in compiled.curve] == pytest.approx([p.loss for p in plain.curve], rel=1e-2)
