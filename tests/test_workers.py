"""Workers make the calls of an evaluation: the same verdicts and images, to the bit, as one process."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

import robustdup
from robustdup.config import EvalConfig, build
from robustdup.errors import UserError
from robustdup.evaluation.calls import Work, lost_call
from robustdup.jobs import run_evaluation
from robustdup.records import Progress
from robustdup.threat import ThreatModel

SETTINGS = ["n=60", "micro_batch=16", "threads=1", "diagnostics=false"]
ATTACKS = "noise,apgd-ce(steps=10),apgd-t(steps=5,targets=2),fab-t(steps=5,targets=1),square(queries=50)"


def evaluated(*words: str, progress=lambda _: None):
    config = build(EvalConfig, overrides=[*SETTINGS, f"attacks={ATTACKS}", *words])
    return run_evaluation(config, progress=progress)


def assert_same(one, other):
    ignored = ("forward_passes", "backward_passes")  # running totals of a stage, by the call that a point was in
    for name, values in one.samples.items():
        if name not in ignored:
            assert values == other.samples[name], name
    assert torch.equal(one.adv_images, other.adv_images)
    assert one.record.robust_accuracy == other.record.robust_accuracy
    assert [(a.name, a.n_broken, a.forward_passes, a.backward_passes, a.broken_after) for a in one.record.attacks] == [
        (a.name, a.n_broken, a.forward_passes, a.backward_passes, a.broken_after) for a in other.record.attacks
    ]


def test_two_workers_and_odd_calls_say_to_the_bit_what_one_process_says():
    alone = evaluated()
    assert 0 < alone.record.robust_accuracy.value < alone.record.clean_accuracy.value
    seen: list[Progress] = []
    shared = evaluated("workers=2", "batch_size=7", progress=seen.append)
    inside = [event for event in seen if event.under_way]
    assert {"apgd-ce", "square"} <= {event.attack for event in inside}  # workers tell what they are at
    assert all(event.under_way <= 60 and 0 <= event.share <= 1 for event in inside)
    assert_same(alone, shared)
    assert (shared.record.environment.workers, shared.record.environment.runner) == (2, "local")


@pytest.mark.slow
@pytest.mark.usefixtures("cold_starts")
def test_five_workers_say_what_one_process_says():
    assert_same(evaluated(), evaluated("workers=5"))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (extra 'ray')")
def test_a_ray_cluster_says_what_one_process_says():
    assert_same(evaluated(), evaluated("runner=ray", "workers=2"))


def test_a_model_that_cannot_be_sent_is_refused_in_one_message():
    class Local(nn.Module):
        def forward(self, images):
            return torch.stack([images.mean((1, 2, 3)), 1 - images.mean((1, 2, 3))], 1)

    images = torch.linspace(0, 1, 8).view(8, 1, 1, 1).expand(8, 1, 4, 4).contiguous()
    labels = (images[:, 0, 0, 0] < 0.5).long()
    with pytest.raises(UserError, match="workers"):
        robustdup.evaluate(Local().eval(), images, labels, eps="0.1", attacks="fgsm", workers=2)


KILLER = """
import ctypes, os, pathlib, signal, robustdup

@robustdup.register_attack("deadly", norms=["Linf"])
def deadly(model, images, labels, threat, *, rng, always: bool = True):
    marker = pathlib.Path(__file__).with_name(f"tried-{int(rng.index[0])}")
    if always or not marker.exists():
        marker.touch()
        ctypes.CDLL(None).kill(os.getpid(), signal.SIGKILL)
    return images
"""


def test_a_call_whose_workers_all_die_leaves_its_samples_undecided():
    numbers = torch.arange(3)
    work = Work(0, ThreatModel("Linf", "0.1"), numbers, torch.zeros(3, 1, 4, 4), numbers, numbers + 7)
    call = lost_call(work, "was killed by SIGKILL")
    assert call.verdict is None
    assert torch.equal(call.positions, numbers)
    assert "was killed by SIGKILL" in call.error


@pytest.mark.slow
@pytest.mark.parametrize("always", [True, False])
def test_workers_that_are_killed_do_not_end_the_run(tmp_path, always):
    (tmp_path / "deadly.py").write_text(KILLER)
    attacks = f"attacks=fgsm,deadly(always={str(always).lower()})"
    words = ["n=20", "threads=1", "diagnostics=false", f"plugin=[{tmp_path / 'deadly.py'}]", attacks]
    record = run_evaluation(build(EvalConfig, overrides=[*words, "workers=2", "batch_size=10"])).record
    fgsm, deadly = record.attacks
    assert fgsm.n_broken > 0
    left = fgsm.n_attacked - fgsm.n_broken
    assert record.n_undecided == (left if always else 0)
    assert any("was killed by SIGKILL" in error for error in deadly.errors) == always
