"""`robustdup train` from a configuration to a record: what is kept, what is paired, what is refused."""

from __future__ import annotations

import json

import pytest
import torch

from robustdup.config import DataOptions, TrainConfig, build
from robustdup.data.sources import load_images
from robustdup.errors import UserError
from robustdup.jobs import run_training, training_data
from robustdup.jobs import training as jobs
from robustdup.jobs.training import trainer_options
from robustdup.models.load import fingerprint, load_model
from robustdup.plugins import load_plugins
from robustdup.records import load_record, load_training_record
from robustdup.training.options import TrainerOptions
from tests.raising import raises

QUICK = (
    "model=small-cnn(width=4)", "epochs=2", "batch_size=64", "optimizer=adamw", "lr=0.01", "attack=pgd(steps=2)",
    "augment=none", "validation=97", "validation_attack=pgd(steps=3)", "validate_every=10", "evaluate=fgsm", "test_n=50",
)  # fmt: skip


def train(folder, *words, **options):
    return run_training(build(TrainConfig, overrides=[*QUICK, *words]), folder=folder, **options)


def test_a_run_leaves_a_record_two_checkpoints_and_their_evaluations(tmp_path):
    folder = tmp_path / "run"
    record = train(folder)
    assert record.status == "complete"
    # 1,297 images less 97 of validation and their exact duplicates; two epochs of what is left, in batches of 64.
    entries = 1200 - record.n_excluded
    assert (record.samples_seen, record.unique_samples_seen) == (2 * entries, entries)
    assert record.steps == -(-2 * entries // 64)
    assert record.n_validation == 97
    assert [point.step for point in record.validation] == [10, 20, 30, record.steps]
    assert record.passes.attack_backward == 2 * record.samples_seen  # two steps of PGD
    assert record.passes.train_backward == record.samples_seen
    assert load_training_record(folder) == record
    registry = load_plugins()
    for result in record.checkpoints:
        model = load_model(f"run:{folder}@{result.name}", registry=registry)
        assert fingerprint(model) == result.fingerprint
        evaluation = load_record(folder / result.evaluation)
        assert evaluation.model.fingerprint == result.fingerprint
        assert evaluation.robust_accuracy == result.robust_accuracy
        assert (evaluation.n, evaluation.data.split) == (50, "test")
    best, last = record.checkpoints
    chosen = max(record.validation, key=lambda point: (point.robust_accuracy, point.clean_accuracy, -point.step))
    assert (best.step, last.step) == (chosen.step, record.steps)
    assert best.validation_robust == chosen.robust_accuracy
    assert not (folder / "state").exists()
    reached = {(time.kind, time.target): time.step for time in record.time_to}
    first = next((point.step for point in record.validation if point.clean_accuracy >= 0.3), None)
    assert reached["clean", 0.3] == first


def test_a_finished_run_is_not_run_again(tmp_path):
    record = train(tmp_path / "run", "epochs=0.2")
    assert train(tmp_path / "run", "epochs=0.2", resume=True) == record
    with raises("other-run", UserError, "lr=0.01", "0.02"):
        train(tmp_path / "run", "epochs=0.2", "lr=0.02", resume=True)
    with raises("not-empty", UserError, "run"):
        train(tmp_path / "run", "epochs=0.2")


def test_test_data_are_opened_once_and_their_evaluation_is_told_of(tmp_path, monkeypatch):
    opened, events = [], []
    open_samples = training_data.open_test_samples
    monkeypatch.setattr(training_data, "open_test_samples", lambda *given: opened.append(1) or open_samples(*given))
    config = build(TrainConfig, overrides=[*QUICK, "epochs=0.1", "evaluate=pgd(steps=2)", "test_n=8"])
    run_training(config, folder=tmp_path / "run", progress=events.append)
    assert len(opened) == 1
    told = [event for event in events if event.evaluation is not None]
    assert told[-1].evaluation.done == told[-1].evaluation.total > 0
    assert told[-1].message == "evaluating best with pgd(steps=2)"


def test_duplicated_data_is_paired_with_the_plain_set(tmp_path):
    plain = train(tmp_path / "plain", "epochs=null", "steps=4", "evaluate=null")
    copied = train(
        tmp_path / "copied", "epochs=null", "steps=4", "evaluate=null", "duplicate.scheme=uniform", "duplicate.dose=0.5"
    )
    assert plain.initial_fingerprint == copied.initial_fingerprint
    assert plain.data.fingerprint == copied.data.fingerprint
    assert plain.duplication is None
    assert copied.duplication.dose == pytest.approx(0.5, abs=0.001)
    assert copied.duplication.entries == 2 * copied.duplication.unique
    assert copied.epochs == pytest.approx(plain.epochs / 2, rel=0.01)  # as many steps over twice the entries
    assert plain.checkpoints[1].fingerprint != copied.checkpoints[1].fingerprint


def test_weights_in_place_of_copies(tmp_path):
    record = train(
        tmp_path / "run", "epochs=1", "evaluate=null", "as_weights=true", "duplicate.scheme=class_skewed",
        "duplicate.classes=[1]", "duplicate.fraction=0.1", "duplicate.copies=4",
    )  # fmt: skip
    assert record.duplication.as_weights
    assert record.duplication.dose > 0
    assert record.samples_seen == record.unique_samples_seen == record.duplication.unique


def test_images_of_the_test_split_can_leak_in(tmp_path):
    record = train(
        tmp_path / "run", "epochs=1", "evaluate=null", "duplicate.scheme=leak", "duplicate.fraction=0.2"
    )  # fmt: skip
    entries = 1200 - record.n_excluded
    assert record.duplication.entries == entries + 100  # a fifth of 500
    assert record.unique_samples_seen == entries + 100


def test_the_hardest_are_those_of_the_smallest_margin(tmp_path):
    from robustdup.attacks.losses import margin
    from robustdup.jobs.training_data import prepare_data

    words = ("duplicate.scheme=hardest", "duplicate.fraction=0.1", "score_model=builtin:digits-standard")
    config = build(TrainConfig, overrides=[*QUICK, *words])
    data = prepare_data(config, load_plugins(), torch.device("cpu"))
    copied = data.plan.source_index[data.plan.copy > 0]
    model = load_model("builtin:digits-standard", registry=load_plugins())
    with torch.no_grad():
        margins = margin(model(data.entries.pixels), data.entries.labels[: len(data.entries.pixels)])
    rest = torch.ones(len(margins), dtype=torch.bool)
    rest[copied] = False
    assert margins[copied].max() <= margins[rest].min()
    with raises("missing-option", UserError, "score_model"):
        train(tmp_path / "run", *words[:2])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    words = ("epochs=null", "steps=5", "evaluate=null", "threads=1")
    first, again = (train(tmp_path / name, *words) for name in ("a", "b"))
    other = train(tmp_path / "c", *words, "seed=1")
    assert first.checkpoints[1].fingerprint == again.checkpoints[1].fingerprint
    assert other.initial_fingerprint != first.initial_fingerprint


def test_validation_images_are_no_training_images():
    from robustdup.jobs.training_data import prepare_data

    config = build(TrainConfig, overrides=QUICK)
    data = prepare_data(config, load_plugins(), torch.device("cpu"))
    train_rows, held = set(data.entries.index.tolist()), set(data.validation.index.tolist())
    assert len(held) == 97
    assert not train_rows & held
    assert len(train_rows) + len(held) + data.n_excluded == 1297
    images = load_images("builtin:digits", DataOptions(split="train"), registry=load_plugins()).images
    torch.testing.assert_close(images[data.validation.index], data.validation.images)
    mean = images[sorted(train_rows)].mean()
    assert data.mean[0] == pytest.approx(float(mean), abs=1e-3)


@pytest.mark.parametrize(
    ("words", "code", "names"),
    [
        (["eps=8"], "bad-eps", ["eps = 8 in Linf", "'8/255'"]),
        (["steps=3"], "bad-budget", ["epochs, steps or samples", "epochs=", "steps=3"]),
        (["epochs=null", "samples=0"], "bad-budget", ["samples=0"]),
        (["validation=1297"], "no-data", ["holds out 1,297 images", "only 1,297"]),
        (["validation=10.5"], "bad-value", ["validation", "10.5"]),
        (["objective=tradess"], "unknown-objective", ["tradess", "trades"]),
        (["objective=trades(bet=3)"], "unknown-option", ["bet", "beta"]),
        (["update=swap"], "unknown-update-rule", ["swap"]),
        (["attack=foolbox:DDNAttack", "norm=L2", "eps=0.5"], "bad-attack", ["looks for the nearest adversarial image"]),
        (["attack=pgd(stepz=3)"], "unknown-option", ["stepz", "steps"]),
        (["model=small-cn"], "unknown-architecture", ["small-cn", "small-cnn"]),
        (["init=builtin:digits-robust"], "bad-weights", ["builtin:digits-robust", "another network"]),
        (["duplicate.scheme=unifrom"], "unknown-value", ["unifrom"]),
        (["norm=L7"], "unknown-norm", ["L7"]),
        (["track=tensorbord"], "unknown-tracker", ["'tensorbord'", "'tensorboard'"]),
        (["objective=n_fgsm(k=-1)"], "bad-value", ["k, the noise in units of eps", "-1"]),
        (["objective=free(replays=0)"], "bad-value", ["replays", "got 0"]),
        (["attack=torchattacks:CW", "norm=L2", "eps=0.5"], "bad-attack", ["such as pgd"]),
        (["evaluate=fats"], "unknown-attack", ["'fats'", "'fast'"]),
        (["evaluate=pgd(stepz=3)"], "unknown-option", ["stepz", "steps"]),
        (["evaluate=fgsm,none"], "unknown-attack", ["'none'"]),
        (["device=cuda:7"], "no-device", ["'cuda:7'", "--device auto"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_message(tmp_path, words, code, names):
    with raises(code, UserError, *names):
        train(tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()  # the corrected command may use it


def test_the_trainer_is_told_what_the_configuration_says():
    assert trainer_options(TrainConfig(data="given", steps=3), None, "fp32") == TrainerOptions(steps=3)
    words = ("data=given", "samples=5", "lr=0.3", "schedule=piecewise", "milestones=[0.2]", "clip=2", "precision=auto")
    assert trainer_options(build(TrainConfig, overrides=words), 2, "bf16") == TrainerOptions(
        samples=5, lr=0.3, schedule="piecewise", milestones=(0.2,), clip=2.0, precision="bf16", threads=2
    )


def test_a_run_goes_on_in_the_precision_that_it_was_started_with(tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def stop(progress):
        if progress.step >= 1:  # the first step is always shown, later ones when it is time
            raise Stop

    small = ("epochs=null", "steps=3", "evaluate=none", "checkpoint_every=1")
    monkeypatch.setattr(jobs, "training_precision", lambda *_, **__: "bf16")
    with pytest.raises(Stop):
        train(tmp_path / "run", *small, progress=stop)
    monkeypatch.setattr(jobs, "training_precision", lambda *_, **__: "fp32")  # a machine that computes otherwise
    assert train(tmp_path / "run", *small, resume=True).environment.precision == "bf16"
    assert train(tmp_path / "other", *small).environment.precision == "fp32"


def test_none_is_no_evaluation(tmp_path):
    record = train(tmp_path / "run", "epochs=null", "steps=1", "evaluate=none")
    assert record.config["evaluate"] is None
    assert [result.clean_accuracy for result in record.checkpoints] == [None, None]
    assert not list((tmp_path / "run").glob("evaluation-*"))


def test_a_misspelt_key_is_told_the_right_one():
    with raises("unknown-configuration-key", UserError, "batchsize", "batch_size"):
        build(TrainConfig, overrides=["batchsize=3"])


def test_the_command_prints_the_record(tmp_path, capsys):
    from robustdup.cli.main import main

    assert main(["train", *QUICK, "epochs=0.1", "evaluate=null", "--out", str(tmp_path / "run"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["schema_name"] == "robustdup.training"
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "robustdup train" in shown
    assert f"--model run:{tmp_path / 'run'}" in shown
    assert main(["train", "objektive=standard"]) == 2
    assert "objective" in capsys.readouterr().err


def test_images_left_on_disk_give_the_same_run(tmp_path):
    words = ("epochs=1", "evaluate=null", "threads=1", "keep_near_duplicates=true")
    memory = train(tmp_path / "memory", *words, "in_memory=yes")
    disk = train(tmp_path / "disk", *words, "in_memory=no")
    assert [point.loss for point in memory.curve] == [point.loss for point in disk.curve]
    assert memory.validation[-1].clean_accuracy == disk.validation[-1].clean_accuracy
    with raises("options-conflict", UserError, "leak", "in_memory"):
        train(tmp_path / "c", *words, "in_memory=no", "duplicate.scheme=leak", "duplicate.fraction=0.2")


def test_training_from_python(tmp_path):
    import robustdup

    record = robustdup.train(
        out=tmp_path / "run", model="small-cnn(width=4)", samples=64, evaluate=None,
        duplicate={"scheme": "uniform", "dose": 0.5},
    )  # fmt: skip
    assert record.samples_seen == 64
    assert record.duplication.dose == pytest.approx(0.5, abs=0.01)
    assert load_training_record(tmp_path / "run") == record
    with raises("unknown-configuration-key", UserError, "objektive", "objective"):
        robustdup.train(objektive="standard")


def test_small_models_take_one_thread(tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        record = train(tmp_path / "run", "epochs=0.1", "evaluate=null")
        assert record.environment.threads == 1
        assert torch.get_num_threads() == 2
        large = train(tmp_path / "large", "epochs=null", "steps=1", "evaluate=null", "model=small-resnet(width=48)")
        assert large.environment.threads == 2
    finally:
        torch.set_num_threads(before)
