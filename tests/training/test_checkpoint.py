"""A run that was cut off goes on to the same weights, bit for bit; a checkpoint is whole, of this run, or refused."""

import functools
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from robustdup.data.batches import EntryOptions, Stream, TrainingSet
from robustdup.errors import RunError, UserError
from robustdup.plugins import Registry
from robustdup.threat import ThreatModel
from robustdup.training.averages import Averages
from robustdup.training.checkpoint import CHECKPOINT_FILE, Checkpoints
from robustdup.training.inner import prepare_inner
from robustdup.training.loop import fit
from robustdup.training.objectives.adversarial import pgd_at
from robustdup.training.options import TrainerOptions
from robustdup.training.parts import Parts
from robustdup.training.state import State
from robustdup.training.updates import Awp, Free, Plain
from tests.forked import Forked
from tests.lanes import each_once
from tests.raising import raises

PLACE = f"state/{CHECKPOINT_FILE}"
THREAT = ThreatModel("Linf", "0.1")
UPDATES = {"plain": Plain, "awp": lambda: Awp(warmup=5), "free": lambda: Free(THREAT, replays=3)}


class Cut(BaseException):
    """What a kill is to a run in the same process: nothing of it is caught."""


def make_parts(update="plain", width=4):
    generator = torch.Generator().manual_seed(5)
    images, labels = torch.rand(40, 1, 6, 6, generator=generator), torch.arange(40) % 3
    entries = TrainingSet(images, labels, options=EntryOptions(padding=1))
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(16 * width, 3),
    )
    inner = prepare_inner("pgd(steps=2)", Registry(), THREAT)
    return Parts(model, pgd_at, UPDATES[update](), inner, functools.partial(Stream, entries), 40)


def config(**options):
    usual = {"steps": 40, "batch_size": 16, "checkpoint_every": 4, "validate_every": 9, "ema": 0.9, "swa": 0.5}
    return TrainerOptions(**(usual | options))


def validate(model):
    """Prefer some weights in the middle."""
    value = float(next(model.parameters()).double().sum().sin().abs())
    return value, value, 5, 7


def train(parts, options=None, **more):
    return fit(parts, options or config(), device=torch.device("cpu"), validate=validate, **more)


def cut_at(step):
    def progress(view):
        if view.step >= step:
            raise Cut

    return progress


def equal(some, others):
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


@each_once(update=UPDATES, optimizer=["sgd", "adamw"])
def test_a_run_that_was_cut_off_ends_in_the_same_bits(update, optimizer, tmp_path):
    options = config(optimizer=optimizer, lr=0.02)
    whole = train(make_parts(update), options)
    for step in (1, 6, 17, 18, 33, 39):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("robustdup.training.events.SHOWN", 0.0)
            with pytest.raises(Cut):
                train(make_parts(update), options, folder=tmp_path, resume=True, progress=cut_at(step))
    out = train(make_parts(update), options, folder=tmp_path, resume=True)
    assert equal(out.last, whole.last)
    assert equal(out.best, whole.best)
    assert [point.model_copy(update={"seconds": 0}) for point in out.curve] == [
        point.model_copy(update={"seconds": 0}) for point in whole.curve
    ]
    assert [(p.step, p.robust_accuracy, p.best) for p in out.validation] == [
        (p.step, p.robust_accuracy, p.best) for p in whole.validation
    ]
    assert (out.steps, out.samples, out.best_step, out.passes) == (40, whole.samples, whole.best_step, whole.passes)
    assert out.seconds > 0
    assert "Resumed after step" in out.events[-1]


def test_what_was_measured_since_the_last_point_goes_on():
    def begun():
        model = torch.nn.Linear(2, 2)
        return State(
            model, torch.optim.SGD(model.parameters(), lr=0.1), Averages(model, ema=0.9), Awp(), torch.device("cpu")
        )

    state, other = begun(), begun()
    state.meter.add(1, torch.tensor(6.0), {"correct": torch.tensor(2.0)}, rows=4)
    state.averages.update(state.model, 1)
    state.update.taken = 3
    other.load_state_dict(state.state_dict())
    assert other.meter.means() == {"loss": 1.5, "correct": 0.5}
    assert (other.averages.n_ema, other.update.taken) == (1, 3)
    assert torch.equal(other.model.weight, state.model.weight)


def test_a_run_goes_on_where_checkpoints_come_by_the_clock(tmp_path, monkeypatch):
    """The first checkpoint, then one at each candidate, and none for a while after the run went on."""
    options = config(checkpoint_every=None)
    whole = train(make_parts(), options)
    monkeypatch.setattr("robustdup.training.events.SHOWN", 0.0)
    for step in (3, 12, 30):
        with pytest.raises(Cut):
            train(make_parts(), options, folder=tmp_path, resume=True, progress=cut_at(step))
    assert equal(train(make_parts(), options, folder=tmp_path, resume=True).last, whole.last)


def test_a_run_that_was_cut_off_right_after_each_checkpoint(tmp_path, monkeypatch):
    whole = train(make_parts(), config(steps=12, validate_every=5))
    save = Checkpoints.save

    def save_and_cut(self, state):
        save(self, state)
        raise Cut

    monkeypatch.setattr(Checkpoints, "save", save_and_cut)
    cuts = 0
    while True:
        try:
            out = train(make_parts(), config(steps=12, validate_every=5), folder=tmp_path, resume=True)
            break
        except Cut:
            cuts += 1
    assert cuts == 6  # steps 0, 4, 5, 8, 10, 12
    assert equal(out.last, whole.last)
    assert equal(out.best, whole.best)
    assert [(p.step, p.loss, p.accuracy) for p in out.curve] == [(p.step, p.loss, p.accuracy) for p in whole.curve]
    assert [p.model_copy(update={"seconds": 0}) for p in out.validation] == [
        p.model_copy(update={"seconds": 0}) for p in whole.validation
    ]


def test_a_run_that_is_done_is_done_at_once(tmp_path):
    first = train(make_parts(), folder=tmp_path)
    parts = make_parts()
    parts.objective = None
    again = train(parts, folder=tmp_path, resume=True)
    assert equal(first.last, again.last)
    assert equal(first.best, again.best)
    assert (again.passes, again.curve, again.validation) == (first.passes, first.curve, first.validation)


def test_without_resume_a_run_begins_anew(tmp_path):
    train(make_parts(), folder=tmp_path)
    parts = make_parts()
    out = train(parts, config(steps=1), folder=tmp_path)
    assert out.steps == 1


def start_again(tmp_path, options=None, **more):
    return train(make_parts(**more), options, folder=tmp_path, resume=True)


def test_the_checkpoint_of_another_architecture(tmp_path):
    train(make_parts(), config(steps=2), folder=tmp_path)
    with pytest.raises(UserError) as error:
        start_again(tmp_path, config(steps=2), width=5)
    assert str(error.value) == (
        f"The checkpoint '{tmp_path / PLACE}' is of another architecture: 0.weight is [4, 1, 3, 3] there and "
        "[5, 1, 3, 3] here. Resume with what the run was started with, or choose another --out."
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.3}, "lr is 0.1 there and 0.3 here"),
        ({"clip": 1.0}, "clip is None there and 1.0 here"),
    ],
)
def test_the_checkpoint_of_another_configuration(options, message, tmp_path):
    train(make_parts(), config(steps=2), folder=tmp_path)
    with raises("other-checkpoint", UserError, "configuration", message):
        start_again(tmp_path, config(steps=2, **options))


def test_the_checkpoint_of_other_data(tmp_path):
    train(make_parts(), config(steps=2), folder=tmp_path)
    parts = make_parts()
    parts.data = {"plan": "abc"}
    with raises("other-checkpoint", UserError, "data", "plan is missing there and abc here"):
        train(parts, config(steps=2), folder=tmp_path, resume=True)


def test_what_does_not_change_the_weights_may_change(tmp_path):
    train(make_parts(), config(steps=2), folder=tmp_path)
    parts = make_parts()
    parts.settings = {"out": "elsewhere", "evaluate": "fgsm"}
    result = train(parts, config(steps=2, checkpoint_every=1, threads=1), folder=tmp_path, resume=True)
    assert result.status == "complete"
    parts.settings = {"padding": 1}
    with raises("other-checkpoint", UserError, "padding is missing there and 1 here"):
        train(parts, config(steps=2), folder=tmp_path, resume=True)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file"])
def test_a_broken_checkpoint(content, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / PLACE).write_bytes(content)
    with raises("damaged-checkpoint", RunError, "checkpoint.pt"):
        start_again(tmp_path)


def test_a_checkpoint_runs_no_code(tmp_path):
    (tmp_path / "state").mkdir()
    torch.save({"version": 1, "identity": {}, "state": nn.Linear(1, 1)}, tmp_path / PLACE)
    with raises("damaged-checkpoint", RunError):
        start_again(tmp_path)


def test_no_space_left_keeps_the_last_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save({"step": 1, "weights": torch.zeros(10)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(RunError, match="Cannot write .*Nothing that was already saved is lost"):
            checkpoints.save({"step": 2, "weights": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    state = checkpoints.load()
    assert state is not None
    assert state["step"] == 1
    assert [path.name for path in (tmp_path / "state").iterdir()] == [CHECKPOINT_FILE]


def test_checkpoints_come_after_a_minute_of_work(monkeypatch, tmp_path):
    now, saves = [0.0], []
    parts = make_parts()
    inner = parts.objective

    def slow(*arguments, **options):
        now[0] += 7.0  # seconds that a step takes
        return inner(*arguments, **options)

    parts.objective = slow
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(Checkpoints, "save", lambda self, state: saves.append(state["step"]))
    fit(parts, config(checkpoint_every=None), device=torch.device("cpu"), folder=tmp_path)
    assert saves == [0, 9, 18, 27, 36, 40]


def slow_run(folder):
    """What the killed processes run: about a second and a half of training, and the weights at its end."""
    torch.set_num_threads(1)
    parts = make_parts("awp")
    inner = parts.objective

    def slow(*arguments, **options):
        time.sleep(0.01)
        return inner(*arguments, **options)

    parts.objective = slow
    out = train(parts, config(steps=60), folder=folder, resume=True)
    save_file(out.last, folder / "last.safetensors")
    save_file(out.best, folder / "best.safetensors")


def start(folder):
    folder.mkdir(exist_ok=True)
    return Forked([__file__, str(folder)])


def killed_and_resumed(folder, kills, seed):
    """Kill the run `kills` times at random moments of its training, then let it end."""
    rng, done = random.Random(seed), 0
    while done < kills:
        before = (folder / PLACE).stat().st_mtime_ns if (folder / PLACE).exists() else 0
        process = start(folder)
        while process.poll() is None:  # until it has moved on from where the last one was killed
            if (folder / PLACE).exists() and (folder / PLACE).stat().st_mtime_ns > before:
                break
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.15))
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        done += 1
    assert start(folder).wait() == 0
    return done


def check_kills(tmp_path, kills, at_least):
    (tmp_path / "whole").mkdir()
    slow_run(tmp_path / "whole")
    assert killed_and_resumed(tmp_path / "killed", kills, seed=kills) >= at_least
    for name in ("last.safetensors", "best.safetensors"):
        assert equal(load_file(tmp_path / "killed" / name), load_file(tmp_path / "whole" / name)), name


def test_killed_and_resumed(tmp_path):
    check_kills(tmp_path, 1, 1)


@pytest.mark.slow
def test_killed_ten_times_and_resumed(tmp_path):
    check_kills(tmp_path, 10, 6)


if __name__ == "__main__":
    slow_run(Path(sys.argv[1]))
