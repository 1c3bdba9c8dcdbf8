"""Hostile attacks in whole runs: in two workers, in a model that cannot be copied, and across --resume."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.evaluation.test_guard import EVIL
from tests.evaluation.test_held import EPS, QUIET
from tests.forked import run

ROOT = Path(__file__).parent.parent
KINDS = ("eps_of_all", "a_function_of_torch", "eps_of_the_threat_model")  # for the quick run
EVERY = ["nothing", *EVIL, *(does.__name__ for does in QUIET)]

# Each hostile attack under its own name, one that does nothing, and one that stops the run at its first call.
PLUGIN = """
import os, signal, robustdup, torch
from tests.evaluation.test_guard import EVIL
from tests.evaluation.test_held import QUIET, attack_that

for does in QUIET:  # what later calls go by
    globals()[does.__name__] = robustdup.register_attack(does.__name__, norms=["Linf", "L2"])(attack_that(does))

for name in EVIL.keys() - {"a_finetuned_model"}:  # for two classes
    function = EVIL[name]
    globals()[name] = robustdup.register_attack(name, norms=["Linf"])(function)

@robustdup.register_attack("nothing", norms=["Linf"])
def nothing(model, images, labels, threat, *, rng):
    return images

@robustdup.register_attack("a_finetuned_model", norms=["Linf"])
def finetunes(model, images, labels, threat, *, rng):
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), (labels + 1) % 10).backward()
        optimizer.step()
    return images

@robustdup.register_attack("stop", norms=["Linf"])
def stop(model, images, labels, threat, *, rng):
    if "GO" not in os.environ:
        signal.raise_signal(signal.SIGINT)
    return images
"""

UNCOPYABLE = """
import threading, torch
from robustdup.models.load import load_model
from robustdup.plugins import load_plugins

class Locked(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.lock = inner, threading.Lock()

    def forward(self, images):
        with self.lock:
            return self.inner(images)

def make():
    return Locked(load_model("builtin:digits-robust", registry=load_plugins()))
"""


def command(folder, *words, go=True):
    place = os.pathsep.join([str(ROOT), *sys.path])
    environment = {**os.environ, "PYTHONPATH": place, **({"GO": "1"} if go else {})}
    return run(["robustdup", "eval", *words, "--plugin", "plugin.py", "--json"], folder=folder, env=environment)


def evaluate(folder, names, *words, go=True):
    (folder / "plugin.py").write_text(PLUGIN)
    options = ["--n", "20", "--batch-size", "10", "--threads", "1", "--no-diagnostics", "--out", "run"]
    if "--threat" not in words:
        options += ["--eps", ",".join(EPS[:2])]
    return command(folder, *options, "--attacks", ",".join(names), *words, go=go)


def check(done):
    """None of the attacks broke a sample, and all of them ran to their end."""
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(done.stdout)
    assert {attack["name"]: attack["errors"] for attack in record["attacks"] if attack["errors"]} == {}
    assert {attack["name"]: attack["n_broken"] for attack in record["attacks"] if attack["n_broken"]} == {}
    assert record["n_undecided"] == 0
    assert record["robust_accuracy"]["value"] == record["clean_accuracy"]["value"] > 0.8
    assert {point["value"] for point in record["curve"].values()} <= {record["clean_accuracy"]["value"]}


def test_a_run_that_was_interrupted_among_hostile_attacks(tmp_path):
    stopped = evaluate(tmp_path, [KINDS[0], "stop", *KINDS[1:]], "--workers", "1", go=False)
    assert stopped.returncode == 130, stopped.stderr[-3000:]
    check(command(tmp_path, "--resume", "run"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("model", ["builtin:digits-robust", "locked.py:make"])
def test_all_of_them_in_two_workers(model, tmp_path):
    (tmp_path / "locked.py").write_text(UNCOPYABLE)
    check(evaluate(tmp_path, EVERY, "--model", model, "--workers", "2"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_later_calls_go_by_in_a_union(workers, tmp_path):
    names = ["eps_of_all", "lists_of_threats", "what_else_is_held"]
    check(evaluate(tmp_path, names, "--threat", f"Linf {EPS[0]} + L2 {EPS[2]}", "--workers", workers))
