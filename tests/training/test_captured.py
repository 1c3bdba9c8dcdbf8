"""Steps of the inner attack as one graph, on a tape in place of a GPU: it plays operations again in the same memory."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from robustdup.data.batches import EntryOptions, Stream, TrainingSet
from robustdup.models.attack_copy import compile as compiling
from robustdup.plugins import Registry
from robustdup.threat import ThreatModel
from robustdup.training import captured, trainer
from robustdup.training.captured import CapturedSteps
from robustdup.training.inner import prepare_inner
from robustdup.training.loop import fit
from robustdup.training.objectives.adversarial import pgd_at, trades
from robustdup.training.options import TrainerOptions
from robustdup.training.parts import Parts
from robustdup.training.updates import Plain


class Tape(TorchDispatchMode):
    """Notes every operation with the very tensors that it took and gave, as a CUDA graph notes kernels with their places."""

    def __init__(self):
        super().__init__()
        self.calls, self.replays = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, given))
        return given

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for func, args, kwargs, given in self.calls:
            for place, value in zip(tree_leaves(given), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(place, torch.Tensor) and place is not value:
                    place.copy_(value)


@pytest.fixture
def tapes(monkeypatch):
    """Let training on the CPU take the way of CUDA graphs; return the tapes that it records."""
    made = []

    def record(work):
        made.append(Tape())
        with made[-1]:
            work()
        return made[-1].replay

    monkeypatch.setattr(captured, "record", record)
    monkeypatch.setattr(compiling, "compiled", lambda net, mode: net)
    monkeypatch.setattr(trainer, "compile_mode", lambda asked, *_, **__: "cudagraphs" if asked == "on" else "off")
    return made


def trained(compile, norm="Linf", objective=pgd_at, **options):
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.rand(44, 1, 6, 6, generator=generator), torch.randint(0, 3, (44,), generator=generator)
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    entries = TrainingSet(images, labels, options=EntryOptions(augment="none"))
    inner = prepare_inner("pgd(steps=3)", Registry(), ThreatModel(norm, "0.2"))
    parts = Parts(
        nn.Sequential(body, nn.Linear(64, 3)), objective, Plain(), inner, functools.partial(Stream, entries), 44
    )
    usual = {"batch_size": 8, "lr": 0.1, "epochs": 1, "compile": compile}
    return fit(parts, TrainerOptions(**{**usual, **options}), device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("norm", "precision"), [("Linf", "fp32"), ("L2", "fp32"), ("L1", "fp32"), ("Linf", "bf16"), ("Linf", "fp16")]
)
def test_training_by_a_graph_gives_the_weights_of_training_without(tapes, norm, precision):
    """Weights move under the graph, and BatchNorm is folded anew; the last batch, of four images, has no graph."""
    there, here = (trained(compile, norm, precision=precision) for compile in ("off", "on"))
    assert here.events == []
    assert [tape.replays for tape in tapes] == [
        4
    ]  # of six batches: the first makes the kind known, the last is smaller
    assert all(torch.equal(here.last[name], value) for name, value in there.last.items())


def test_where_recording_fails_training_goes_on_without(tapes, monkeypatch):
    def refuse(work):
        work()
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(captured, "record", refuse)
    there, here = trained("off"), trained("on")
    assert here.events == [
        "The inner attack ran without a CUDA graph, which could not be recorded (operation not permitted when stream is "
        "capturing)."
    ]
    assert all(torch.equal(here.last[name], value) for name, value in there.last.items())


@pytest.mark.parametrize("right_at_first", [0, 1])
def test_a_graph_that_gives_other_images_is_not_used(tapes, monkeypatch, right_at_first):
    """So it would be if it had weights of its own: right for the first batch, wrong once they have moved."""
    real = captured.record

    def stale(work):
        replay, uses = real(work), []

        def wrong():
            uses.append(1)
            if len(uses) <= right_at_first:
                replay()

        return wrong

    monkeypatch.setattr(captured, "record", stale)
    there, here = trained("off"), trained("on")
    assert here.events == [
        "The inner attack ran without a CUDA graph, which gave other images than the steps made one by one."
    ]
    assert all(torch.equal(here.last[name], value) for name, value in there.last.items())


def test_a_loss_of_the_objectives_own_is_not_recorded(tapes):
    there, here = (trained(compile, objective=trades) for compile in ("off", "on"))
    assert tapes == []
    assert all(torch.equal(here.last[name], value) for name, value in there.last.items())


def test_steps_that_are_others_for_each_batch_are_not_recorded(tapes):
    notes, images, labels = [], torch.rand(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64)
    captures = CapturedSteps(notes)

    def steps(moving, clean, labels):
        moving.add_(1)

    moving = images.clone()
    for number in range(2 * captured.KINDS):
        captures(steps, moving, images, labels, key=number, weights=[])
    assert tapes == []
    assert notes == ["The inner attack ran without a CUDA graph, which would be another for each batch."]
    torch.testing.assert_close(moving, images + 2 * captured.KINDS)
