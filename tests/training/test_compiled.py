"""Compiled code in training: how many graphs are made for a run, what happens where compiling fails, and precision."""

from __future__ import annotations

import functools

import pytest
import torch
import torch._dynamo as dynamo
from torch import nn

from robustdup.data.batches import EntryOptions, Stream, TrainingSet
from robustdup.models.architectures import build_network
from robustdup.models.attack_copy import compile as compiling
from robustdup.plugins import load_plugins
from robustdup.threat import ThreatModel
from robustdup.training.inner import prepare_inner
from robustdup.training.loop import fit
from robustdup.training.objectives import find_objective
from robustdup.training.options import TrainerOptions
from robustdup.training.parts import Parts
from robustdup.training.updates import make_update
from tests.lanes import each_once

THREAT = ThreatModel("Linf", "0.1")


@pytest.fixture(scope="module")
def registry():
    return load_plugins([])


def net(channels=4):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, channels, 3, bias=False), nn.BatchNorm2d(channels), nn.ReLU(), nn.Flatten())
    return nn.Sequential(body, nn.Linear(16 * channels, 3))


def parts_of(registry, objective="pgd_at", update="plain", attack="pgd(steps=2)", n=20, bn="eval"):
    spec, options = find_objective(objective, registry)
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.rand(n, 1, 6, 6, generator=generator), torch.randint(0, 3, (n,), generator=generator)
    entries = TrainingSet(images, labels, options=EntryOptions(augment="none", channels_last=True))
    return Parts(
        model=net(),
        objective=functools.partial(spec.function, **options),
        update=make_update(update, spec, options, THREAT),
        inner=prepare_inner(attack, registry, THREAT, bn=bn),
        stream=functools.partial(Stream, entries),
        entries=n,
    )


def trained(parts, **options):
    usual = {"samples": 20, "batch_size": 8, "lr": 0.05, "compile": "on", "schedule": "constant"}
    return fit(parts, TrainerOptions(**{**usual, **options}), device=torch.device("cpu"))


@pytest.fixture
def graphs(monkeypatch):
    """Compile with a backend that needs no compiler, and note of each graph whether it was made with gradients on."""
    made = []

    def backend(graph, examples):
        made.append(torch.is_grad_enabled())
        return dynamo.lookup_backend("aot_eager")(graph, examples)

    dynamo.reset()
    monkeypatch.setattr(compiling, "compiled", lambda net, mode: torch.compile(net, dynamic=False, backend=backend))
    yield made
    dynamo.reset()


# A last batch of four images is not compiled for, neither by the model nor by its attack copy. TRADES makes a
# graph of the copy without gradients too, for the clean answer; AWP one of the model with its statistics frozen.
COUNTS = [
    ({"objective": "standard"}, 1), ({}, 2), ({"objective": "trades"}, 3), ({"objective": "trades", "update": "awp"}, 4),
    ({"objective": "mart"}, 2), ({"objective": "n_fgsm"}, 2), ({"attack": "apgd-ce(steps=2)"}, 3), ({"attack": "fgsm"}, 2),
]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "count"), [pytest.param(*c, marks=[] if i in (1,) else pytest.mark.slow) for i, c in enumerate(COUNTS)]
)
def test_a_run_compiles_no_more_graphs_than_it_has_kinds_of_passes(registry, graphs, more, count):
    out = trained(parts_of(registry, **more))
    assert out.compiled == "default"
    assert out.events == []
    assert len(graphs) <= count
    assert dynamo.utils.counters["graph_break"] == {}


def test_features_are_compiled_and_what_is_not_is_told(registry, graphs):
    network = build_network(
        "small-cnn", channels=1, size=(8, 8), classes=3, mean=(0.5,), std=(0.5,), seed=0, registry=registry
    )
    model = compiling.TrainedModel(network.train(), compiled="default", rows=4)
    images = torch.rand(4, 1, 8, 8)
    plain = network.features(images)
    for rows in (4, 4, 3):  # a last, smaller batch is not compiled for
        assert model.features(images[:rows]).shape == (rows, plain.shape[1])
    torch.testing.assert_close(model.features(images), plain)
    assert (len(graphs), model.compiled, model.notes) == (1, "default", [])
    events = trained(parts_of(registry, bn="train")).events
    assert events == ["inner_bn=train: inner passes are not compiled."]


def test_where_compiling_fails_training_goes_on_without(registry, monkeypatch):
    def failing(net, mode):
        def call(images):
            raise torch._dynamo.exc.BackendCompilerFailed(failing, RuntimeError("no compiler here"), None)

        return call

    plain = trained(parts_of(registry), compile="off")
    monkeypatch.setattr(compiling, "compiled", failing)
    out = trained(parts_of(registry))
    assert out.compiled == "off"
    assert sorted(event.split(",")[0] for event in out.events) == [
        "The inner attack ran without torch.compile", "The model was trained without torch.compile",
    ]  # fmt: skip
    assert all(torch.equal(out.last[name], value) for name, value in plain.last.items())


def test_a_backward_pass_that_cannot_be_compiled_is_found_in_the_first_call(monkeypatch):
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return values.clone()

        @staticmethod
        def backward(ctx, *grads):
            raise RuntimeError("out of resources: shared memory")

    calls = []

    def half(net, mode):
        return lambda images: calls.append(1) or Fails.apply(net(images))

    monkeypatch.setattr(compiling, "compiled", half)
    notes, model = [], net().eval().requires_grad_(False)
    copy = compiling.CompiledCopy(model, "default", 3, notes)
    images = torch.rand(3, 1, 6, 6, requires_grad=True)
    copy(images).sum().backward()
    copy(images).sum().backward()
    assert len(calls) == 1
    assert notes == ["The inner attack ran without torch.compile, which failed: out of resources: shared memory."]


def test_only_whole_micro_batches_run_on_compiled_code(monkeypatch):
    rows = []
    monkeypatch.setattr(compiling, "compiled", lambda net, mode: lambda images: rows.append(len(images)) or net(images))
    model = net().eval()
    copy = compiling.CompiledCopy(model, "default", 4, [])
    for count in (4, 3, 4, 1):
        assert torch.equal(copy(torch.full((count, 1, 6, 6), 0.5)), model(torch.full((count, 1, 6, 6), 0.5)))
    assert set(rows) == {4}


@each_once(
    attack=["apgd-ce(steps=2)", "fgsm", "pgd(steps=2)"], precision=["fp32", "bf16"], objective=["pgd_at", "trades"]
)
def test_any_inner_attack_goes_with_any_precision(registry, precision, attack, objective):
    out = trained(parts_of(registry, objective, attack=attack), precision=precision, compile="off")
    assert out.status == "complete"
    assert out.curve[-1].loss < 10


def test_short_runs_are_not_compiled_unasked():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert compiling.compile_mode("auto", cuda, []) == "default"
    assert compiling.compile_mode("auto", cuda, [], worth_it=False) == "off"
    assert compiling.compile_mode("on", cuda, [], worth_it=False) == "default"
    assert compiling.compile_mode("auto", cpu, []) == "off"
