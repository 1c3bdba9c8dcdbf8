"""A clean process judges the examples of others' attacks once more: what an attack did to its own process is not there."""

import json

import pytest

from tests.forked import run

HARMLESS = """
import robustdup

@robustdup.register_attack("mine", norms=["Linf"])
def mine(model, images, labels, threat, *, rng):
    return threat.project(images, images + threat.radius * rng.uniform(images.shape[1:], low=-1.0))
"""

# A kernel of torch itself answers otherwise from the first call on: no object in Python was changed that one could look at.
EVIL = """
import robustdup, torch
KEPT = []

@robustdup.register_attack("mine", norms=["Linf"])
def mine(model, images, labels, threat, *, rng):
    if not KEPT:
        KEPT.append(torch._C._dispatch_library("IMPL", "aten", "", __file__, 1))  # as torch.library does, unseen by it
        zeros = lambda bias, a, b, *, beta=1, alpha=1: a.new_zeros(len(a), b.shape[1])
        KEPT[0].impl("addmm", "CPU", zeros, False)
    return threat.project(images, images + 1e-3)
"""


def evaluate(folder, code):
    (folder / "plugin.py").write_text(code)
    words = ["eval", "--n", "10", "--plugin", "plugin.py", "--attacks", "mine", "--no-diagnostics", "--workers", "1"]
    return run(["robustdup", *words, "--threads", "1", "--out", "run", "--json"], folder=folder)


def test_a_harmless_attack_is_judged_twice_alike(tmp_path):
    done = evaluate(tmp_path, HARMLESS)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert not [event for event in record["events"] if "clean process" in event]  # it could be judged again


def test_a_kernel_that_was_replaced_is_refused(tmp_path):
    done = evaluate(tmp_path, EVIL)
    if "in torch" in done.stderr and "override" in done.stderr:
        pytest.skip("this torch does not let a kernel be replaced")
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "A clean process" in " ".join(done.stderr.split())
    again = run(["robustdup", "eval", "--resume", "run", "--plugin", "plugin.py"], folder=tmp_path)
    assert again.returncode not in (0, None)
