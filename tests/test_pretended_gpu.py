"""Training and evaluation as a GPU would run them: no tensors of two devices, no waits in a step, the CPU's results.

There is no GPU here: see `tests.pretended_gpu`. What it cannot show is time, kernels, and CUDA's own bits.
"""

from __future__ import annotations

import importlib

import pytest
import torch

import robustdup
from robustdup.attacks.isolation import isolated
from robustdup.config.base import parse_call
from robustdup.data.dataset import DataOptions
from robustdup.data.sources import load_images
from robustdup.evaluation import calls
from robustdup.models.attack_copy import following
from robustdup.models.load import load_model
from robustdup.plugins import load_plugins
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel
from robustdup.training import loop
from robustdup.training.averages import Averages
from robustdup.training.checkpoint import Checkpoints
from robustdup.training.events import View
from robustdup.training.trainer import Trainer
from tests.pretended_gpu import NAME, Elsewhere, PretendedGpu

TRAIN = {
    "model": "small-resnet(width=4)", "n": 80, "batch_size": 16, "attack": "pgd(steps=2)", "evaluate": None, "threads": 1,
    "compile": "off", "optimizer": "sgd", "validation_attack": "pgd(steps=2)", "augment": "crop-flip", "padding": 1,
    "validate_every": 4, "keep_near_duplicates": True,
}  # fmt: skip


@pytest.fixture
def gpu(monkeypatch):
    """Let `device="meta"` be a GPU for whatever asks torch about devices outside of its operations."""
    for name in ("training", "evaluation"):
        module = importlib.import_module(f"robustdup.jobs.{name}")
        monkeypatch.setattr(module, "choose_device", lambda text: torch.device("cpu" if text == "auto" else text))
    tensor, is_on, autocast = torch.tensor, torch.is_autocast_enabled, torch.autocast

    def made(data, *args, device=None, **kwargs):
        there = tensor(data, *args, **kwargs)
        return there if device is None else there.to(device)

    monkeypatch.setattr(torch, "tensor", made)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *kind: kind != ("meta",) and is_on(*kind))
    monkeypatch.setattr(torch, "autocast", lambda kind, *a, **k: autocast("cpu" if kind == "meta" else kind, *a, **k))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(Checkpoints, "save", lambda self, state: None)  # torch.save does not know these tensors
    # The engine takes no subclass of a tensor from an attack; these are the tensors of a device.
    monkeypatch.setattr(calls, "_attack", lambda stage, model, batch: stage.spec.function(
        model, batch.images, batch.labels, batch.threat, rng=batch.rng, **stage.call_options))  # fmt: skip
    monkeypatch.setattr(calls, "_checked", lambda returned, name, images: returned.detach().clone())
    monkeypatch.setattr(following, "can_go_unstrided", lambda layer: False)
    return PretendedGpu()


def test_the_pretended_gpu_computes_counts_and_refuses_what_a_gpu_refuses():
    here = torch.tensor([3.0, 1.0, 2.0])
    with PretendedGpu() as gpu:
        there = here.to(NAME, non_blocking=True)
        assert isinstance(there, Elsewhere)
        assert there.is_cuda
        assert (there + 1).device == NAME
        assert sum(gpu.waits.values()) == 0
        for mixed in (lambda: there + here, lambda: torch.cat([there, here[:0]]), lambda: there.add_(here)):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        assert ((there + 1) * 2).tolist() == [8.0, 4.0, 6.0]
        assert there[torch.tensor([0])].tolist() == [3.0]
        gpu.waits.clear()
        for waiting in (lambda: float(there[0]), lambda: there[there > 1], lambda: there.nonzero(), lambda: there.cpu(),
                        lambda: bool(there.any()), lambda: torch.equal(there, there), lambda: here.to(NAME)):  # fmt: skip
            before = sum(gpu.waits.values())
            waiting()
            assert sum(gpu.waits.values()) == before + 1


OBJECTIVES = [
    {"objective": "standard"},
    {},
    {"objective": "trades", "update": "awp"},
    {"objective": "mart", "norm": "L2", "eps": "0.5"},
    {"objective": "free(replays=2)"},
    {"objective": "n_fgsm"},
    {"objective": "morel"},
]
OPTIONS = [
    {"ema": 0.9},
    {"swa": 0.1},
    {"clip": 1.0, "norm": "L1", "eps": "2"},
    {"optimizer": "muon"},
    {"optimizer": "adamw", "inner_bn": "train"},
    {"in_memory": False},
    {"duplicate": {"scheme": "uniform", "dose": 0.3}, "as_weights": True},
    {"duplicate": {"scheme": "uniform", "dose": 0.3, "near": "noise"}},
    {"extra_data": "builtin:digits", "extra_share": 0.5},
]


QUICK = [{}, {"objective": "trades", "update": "awp"}, {"ema": 0.9, "clip": 1.0}, {"in_memory": False}]


def trained(folder, device, **options):
    return robustdup.train(out=folder, device=device, steps=4, validation=16, **{**TRAIN, **options})


def compared(gpu, monkeypatch, tmp_path, more):
    """Train here and there, and return how often the steps there waited, between the second's beginning and the last's."""
    there = trained(tmp_path / "cpu", "cpu", **more)
    seen, step = [], Trainer.train_on

    def watched(self, *arguments):
        seen.append(dict(gpu.waits))
        step(self, *arguments)

    monkeypatch.setattr(Trainer, "train_on", watched)
    monkeypatch.setattr(loop, "add_point", lambda trainer: None)  # now and then only, and it may wait
    monkeypatch.setattr(View, "show", lambda self, *_, **__: None)  # ten times a second
    with gpu:
        here = trained(tmp_path / "gpu", "meta", **more)
    assert here.environment.device == "meta"
    if more.get("optimizer") != "muon":  # its iterations are in bf16 on a GPU
        assert [p.robust_accuracy for p in here.validation] == [p.robust_accuracy for p in there.validation]
        assert [p.clean_accuracy for p in here.validation] == [p.clean_accuracy for p in there.validation]
    return {name: count - seen[1].get(name, 0) for name, count in seen[-1].items() if count != seen[1].get(name, 0)}


@pytest.mark.parametrize("more", QUICK, ids=str)
def test_training_goes_as_on_a_cpu_and_a_step_waits_for_nothing(gpu, monkeypatch, tmp_path, more):
    assert compared(gpu, monkeypatch, tmp_path, more) == {}


@pytest.mark.slow
@pytest.mark.parametrize("more", [*OBJECTIVES, *OPTIONS], ids=str)
def test_every_objective_and_option_goes_as_on_a_cpu_and_waits_for_nothing(gpu, monkeypatch, tmp_path, more):
    assert compared(gpu, monkeypatch, tmp_path, more) == {}


def test_a_wait_in_a_step_is_seen(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(Averages, "update", lambda self, model, step: float(next(model.parameters()).detach().sum()))
    assert compared(gpu, monkeypatch, tmp_path, {"objective": "standard"}) == {"_local_scalar_dense": 2}


# Waits of one more step of an attack (a target, a query), in a call of samples that are all in one micro-batch: at most.
CEILINGS = {
    "pgd": 2, "cosine-pgd": 2, "apgd-ce": 2, "fab-t(targets=1)": 5, "fab": 5, "square": 2, "spsa(probes=4)": 4,
    "cosine-pgd-t(targets=1)": 2, "apgd-t(targets=1)": 2,
}  # fmt: skip


@pytest.mark.parametrize("text", CEILINGS)
def test_a_step_of_an_attack_waits_no_more_often_than_it_must(gpu, text):
    registry = load_plugins([])
    name, options = parse_call(text, "attack")
    spec = registry.get_attack(name)
    data = load_images("builtin:digits", DataOptions(split="test"), n=12, registry=registry)
    model = load_model("builtin:digits-robust", registry=registry).eval().requires_grad_(False)
    count, counts = "queries" if name == "square" else "steps", []
    with gpu:
        model = model.to(NAME)
        images, labels = data.images.to(NAME), data.labels.to(NAME)
        rng = SampleRng(0, data.index.to(NAME))
        for more in (2, 4):
            gpu.waits.clear()
            written = spec.check_options({**options, count: more})
            adv_images = spec.function(model, images, labels, ThreatModel("Linf", "0.01"), rng=rng, **written)
            assert adv_images.device == NAME
            counts.append(sum(gpu.waits.values()))
    assert (counts[1] - counts[0]) / 2 <= CEILINGS[text]


ATTACKS = (
    "apgd-ce(steps=3),apgd-t(steps=3,targets=2),fab-t(steps=2,targets=2),square(queries=40),spsa(steps=1,probes=4),"
    "boundary-walk(steps=1,restarts=1),cosine-pgd(steps=3),fgsm,pgd(steps=3,restarts=2)"
)
L1 = "apgd-ce(steps=5,larger_eps=true),apgd-t(steps=3,targets=2),fab-t(steps=2,targets=2),square(queries=40),pgd(steps=3)"


@pytest.mark.parametrize(
    ("norm", "eps", "attacks"),
    [
        ("Linf", "0.15", "apgd-ce(steps=3),fab-t(steps=2,targets=1),square(queries=20)"),
        pytest.param("Linf", "0.15", ATTACKS, marks=pytest.mark.slow),
        pytest.param("L2", "0.8", ATTACKS, marks=pytest.mark.slow),
        pytest.param("L1", "3", L1, marks=pytest.mark.slow),
    ],
)
def test_every_native_attack_breaks_the_samples_that_it_breaks_on_a_cpu(gpu, norm, eps, attacks):
    registry = load_plugins([])
    data = load_images("builtin:digits", DataOptions(split="test"), n=12, registry=registry)
    model = load_model("builtin:digits-robust", registry=registry)
    settings = {"norm": norm, "eps": eps, "attacks": attacks, "micro_batch": 16, "individual": True, "compile": "off"}
    there = robustdup.evaluate(model, data.images, data.labels, device="cpu", **settings)
    with gpu:
        here = robustdup.evaluate(model, data.images, data.labels, device="meta", **settings)
    assert here.record.environment.device == "meta"
    assert [(a.name, a.n_broken, a.errors) for a in here.record.attacks] == [
        (a.name, a.n_broken, a.errors) for a in there.record.attacks
    ]
    assert any(attack.n_broken for attack in there.record.attacks)
    assert list(here.outcomes) == list(there.outcomes)


def test_what_an_attack_moved_is_put_back_with_one_wait(gpu):
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(3))
    with gpu:
        model = model.to(NAME)
        gpu.waits.clear()
        with isolated(model, seed=1):
            model[1].running_mean.add_(1)
        assert sum(gpu.waits.values()) == 1
        assert model[1].running_mean.tolist() == [0, 0]


def test_once_memory_ran_out_no_call_is_as_large_again(gpu, monkeypatch):
    """The whole run goes on with what fitted: each call would run out of memory again otherwise."""
    sizes, attack = [], calls._attack

    def limited(stage, model, batch):
        sizes.append(model.micro_batch)
        if model.micro_batch > 8:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return attack(stage, model, batch)

    monkeypatch.setattr(calls, "_attack", limited)
    registry = load_plugins([])
    data = load_images("builtin:digits", DataOptions(split="test"), n=12, registry=registry)
    model = load_model("builtin:digits-robust", registry=registry)
    with gpu:
        done = robustdup.evaluate(
            model, data.images, data.labels, device="meta", eps="0.1", attacks="fgsm,pgd(steps=1)", micro_batch=16,
            individual=True, compile="off", diagnostics=False,
        )  # fmt: skip
    assert sizes[0] == 16
    assert max(sizes[1:]) <= 8
    assert done.record.n_undecided == 0


def test_proofs_and_votes_are_those_of_a_cpu(gpu):
    """The model says where bounds are computed, also those of cases; the checker works on the CPU in either case."""
    from tests.certification.test_branching import small

    model, images, labels = small()
    bounds = {"eps": "0.2", "branch_seconds": 1e6}
    votes = {"eps": "0.05", "norm": "L2", "method": "smoothing", "draws": 40, "sigma": 0.05}
    there = [robustdup.certify(model, images, labels, **way) for way in (bounds, votes)]
    with gpu:
        here = [robustdup.certify(model.to(NAME), images, labels, **way) for way in (bounds, votes)]
    assert next(model.parameters()).device == NAME
    assert sum(gpu.waits.values()) > 0
    assert 0 < int(there[0].certified.sum()) < len(images)
    for mine, known in zip(here, there, strict=True):
        assert mine.certified.device.type == "cpu"
        assert mine.certified.tolist() == known.certified.tolist()
        torch.testing.assert_close(mine.margins, known.margins)
