"""Two processes that share each batch train as one does: same curve, same weights, to rounding."""

import functools
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from robustdup.data.batches import EntryOptions, Stream, TrainingSet
from robustdup.errors import UserError
from robustdup.plugins import Registry
from robustdup.threat import ThreatModel
from robustdup.training.inner import prepare_inner
from robustdup.training.loop import fit
from robustdup.training.objectives.adversarial import free, pgd_at, trades
from robustdup.training.options import TrainerOptions
from robustdup.training.parts import Parts
from robustdup.training.processes import Processes, open_processes, whole_batch_norm
from robustdup.training.updates import Awp, Free, Plain
from tests.forked import Forked
from tests.raising import raises

CPU = torch.device("cpu")


def replayed():
    return Free(ThreatModel("Linf", "0.1"), replays=3)


RUNS = {
    "without BatchNorm": {"norm": False},
    "with BatchNorm": {"norm": True},
    "averaged, clipped": {"norm": True, "ema": 0.9, "swa": 0.5, "clip": 0.5},
    "TRADES with AWP": {"norm": True, "objective": trades, "update": Awp},
    "free": {"norm": True, "objective": free, "update": replayed, "samples": 45},
    "free, a last batch of one": {"norm": False, "objective": free, "update": replayed, "samples": 33},
    "a last batch of one": {"norm": False, "samples": 33},
    "odd shares": {"norm": True, "batch_size": 7, "samples": 45},
}


def train(processes, *, norm, objective=pgd_at, update=Plain, folder=None, broken=0, **options):
    generator = torch.Generator().manual_seed(5)
    images, labels = torch.rand(40, 1, 6, 6, generator=generator), torch.arange(40) % 3
    entries = TrainingSet(images, labels, options=EntryOptions(padding=1))
    torch.manual_seed(processes.rank)  # the weights are those of the first process
    layers = [
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    ]
    model = nn.Sequential(*layers)
    inner = prepare_inner("pgd(steps=2)", Registry(), ThreatModel("Linf", "0.1"))
    seen = []

    def watched(model, images, labels, *, attack, rng):
        seen.append(len(images))
        loss, metrics = objective(model, images, labels, attack=attack, rng=rng)
        return loss * (float("nan") if broken and len(seen) >= broken and not processes.first else 1.0), metrics

    parts = Parts(model, watched, update(), inner, functools.partial(Stream, entries), 40, processes=processes)
    options = {"batch_size": 16, "lr": 0.05, "validate_every": 5} | options
    if "samples" not in options:
        options["steps"] = 10

    def validate(model):
        assert processes.first
        return 0.5, float(next(model.parameters()).detach().double().sum()), 3, 2

    out = fit(parts, TrainerOptions(**(options)), device=CPU, validate=validate, folder=folder)
    return {
        "losses": [point.loss for point in out.curve], "accuracies": [point.accuracy for point in out.curve],
        "robust": [point.robust_accuracy for point in out.validation], "last": out.last, "best": out.best,
        "steps": out.steps, "samples": out.samples, "passes": out.passes.model_dump(), "rows": seen,
        "status": out.status, "reason": out.reason,
    }  # fmt: skip


def norms_of_both(processes):
    """BatchNorm on halves of a batch by two processes: outputs, gradients and running statistics."""
    torch.manual_seed(0)
    norm, values = nn.BatchNorm2d(3), torch.randn(7, 3, 2, 2) * 3 + 1
    share = values[:4] if processes.rank == 0 else values[4:]
    share = (values if processes.count == 1 else share).clone().requires_grad_(True)
    with whole_batch_norm(norm, processes):
        out = norm(share)
        (out.square() * torch.arange(3).view(1, 3, 1, 1)).sin().sum().backward()
        copied = torch.load(save(norm), weights_only=False) if processes.count == 1 else None
    processes.sum_gradients(norm.parameters())
    assert copied is None or "forward" not in vars(copied)
    return {"out": out.detach(), "input": share.grad, "weight": norm.weight.grad, **norm.state_dict()}


def save(module):
    import io

    memory = io.BytesIO()
    torch.save(module, memory)
    memory.seek(0)
    return memory


def all_of_it(folder):
    """What each of two processes runs."""
    torch.set_num_threads(1)
    with open_processes("cpu") as processes:
        assert (processes.count, processes.device) == (2, CPU)
        found = {name: train(processes, **options) for name, options in RUNS.items()}
        found["norms"] = norms_of_both(processes)
        found["nan"] = train(processes, norm=True, folder=folder, broken=6, checkpoint_every=2)
        found["resumed"] = train(processes, norm=True, folder=folder / "whole", checkpoint_every=2)
        found["patience"] = dist.group.WORLD._get_backend(CPU).options._timeout.total_seconds()
        found["from_first"] = processes.from_first(["the first", processes.rank])
        torch.save(found, folder / f"{processes.rank}.pt")
    assert not dist.is_initialized()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    started = [Forked([__file__, str(folder)], env={**os.environ, **place, **rank}) for rank in ranks]
    assert [process.wait() for process in started] == [0, 0], "\n".join(process.stderr for process in started)
    return folder, [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one(name, pair):
    one = train(Processes(), **RUNS[name])
    _, two = pair
    for found in (rank[name] for rank in two):
        assert found["losses"] == pytest.approx(one["losses"], rel=1e-4)
        assert found["accuracies"] == pytest.approx(one["accuracies"], abs=1e-6)
        assert found["robust"] == pytest.approx(one["robust"], rel=1e-4, abs=1e-4)
        assert (found["steps"], found["samples"]) == (one["steps"], one["samples"])
        for key in ("last", "best"):
            for part, value in one[key].items():
                torch.testing.assert_close(found[key][part], value, rtol=2e-3, atol=2e-4)
    for part, value in two[0][name]["last"].items():
        assert torch.equal(value, two[1][name]["last"][part]), part


def test_each_process_has_its_share_and_rows_are_counted_together(pair):
    one = train(Processes(), **RUNS["with BatchNorm"])
    first, second = (rank["with BatchNorm"] for rank in pair[1])
    assert one["rows"] == [16] * 10
    assert first["rows"] == second["rows"] == [8] * 10
    assert first["passes"] == one["passes"]


def test_batch_norm_sees_the_whole_batch(pair):
    one = norms_of_both(Processes())
    first, second = (rank["norms"] for rank in pair[1])
    for name in ("out", "input"):
        torch.testing.assert_close(torch.cat([first[name], second[name]]), one[name], rtol=1e-4, atol=1e-5)
    for name in ("weight", "running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(first[name], one[name], rtol=1e-4, atol=1e-5)


def test_what_is_not_finite_in_one_process_stops_all(pair):
    for found in (rank["nan"] for rank in pair[1]):
        assert found["status"] == "stopped"
        assert found["reason"].startswith("The loss was not finite at step 6 of 10")
        assert found["steps"] == 5  # a candidate, which is a checkpoint too
        assert all(value.isfinite().all() for value in found["last"].values())


def test_the_first_process_speaks_for_all(pair):
    assert [rank["from_first"] for rank in pair[1]] == [["the first", 0]] * 2


def test_others_wait_longer_than_any_validation_takes(pair):
    assert [found["patience"] for found in pair[1]] == [86_400, 86_400]


def test_one_process_alone_needs_no_other():
    with open_processes("cpu") as processes:
        assert processes == Processes()


def test_several_processes_do_not_share_a_numbered_gpu(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with raises("bad-device", UserError, "'cuda:1'"), open_processes("cuda:1"):
        pass


if __name__ == "__main__":
    all_of_it(Path(sys.argv[1]))
