"""What `auto` means on which device, and torch's two sets of float32 switches, read and put back whichever was used."""

import pytest
import torch

from robustdup import precision
from robustdup.attacks.process_state import ProcessState
from robustdup.config import EvalConfig, TrainConfig, build
from robustdup.device import count_operations
from robustdup.evaluation.referee import exact_fp32
from robustdup.models.architectures import build_network
from robustdup.models.attack_copy.layout import AttackCopy
from robustdup.plugins import load_plugins
from robustdup.precision import (
    attack_precision,
    cpu_computes_bf16,
    fp32_switches,
    put_back,
    set_tf32,
    training_precision,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def as_before():
    """Put the switches back whatever a test does."""
    before = fp32_switches()
    yield
    put_back(before)
    assert fp32_switches() == before


@pytest.mark.parametrize(("capability", "trains", "attacks"), [((7, 5), "fp32", "fp32"), ((8, 0), "bf16", "tf32"),
                                                              ((9, 0), "bf16", "tf32")])  # fmt: skip
def test_auto_on_a_gpu_follows_what_it_computes_in(monkeypatch, capability, trains, attacks):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert training_precision("auto", CUDA) == training_precision("auto", CUDA, operations=1) == trains
    assert attack_precision("auto", CUDA) == attacks
    assert training_precision("tf32", CUDA) == attack_precision("tf32", CUDA) == "tf32"


@pytest.mark.parametrize("has", ["_is_avx512_bf16_supported", "_is_amx_tile_supported", None])
def test_auto_on_a_cpu_is_bf16_where_the_chip_has_it_and_the_network_is_not_small(monkeypatch, has):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == has, raising=False)
    assert cpu_computes_bf16() is (has is not None)
    assert training_precision("auto", CPU) == ("bf16" if has else "fp32")
    assert training_precision("auto", CPU, operations=1) == attack_precision("auto", CPU) == "fp32"
    assert training_precision("bf16", CPU, operations=1) == attack_precision("bf16", CPU) == "bf16"


@pytest.mark.parametrize(
    ("model", "size", "expected"),
    [("small-cnn", (1, 8, 8), "fp32"), ("small-resnet(width=8)", (3, 32, 32), "fp32"),
     ("small-resnet(width=12)", (3, 32, 32), "bf16"), ("small-resnet", (3, 32, 32), "bf16")],
)  # fmt: skip
def test_auto_on_a_cpu_with_bf16_follows_what_was_measured(monkeypatch, model, size, expected):
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: True)
    shape = {"channels": size[0], "size": size[1:], "classes": 10, "mean": [0.5] * size[0], "std": [0.25] * size[0]}
    network = build_network(model, **shape, seed=0, registry=load_plugins([]))
    assert training_precision("auto", CPU, operations=count_operations(network, torch.zeros(size))) == expected


def test_auto_is_the_default():
    assert TrainConfig().precision == EvalConfig().precision == "auto"


@pytest.mark.parametrize(
    ("word", "kept"), [("on", "on"), ("off", "off"), ("auto", "auto"), ("cudagraphs", "cudagraphs")]
)
@pytest.mark.parametrize("kind", [EvalConfig, TrainConfig])
def test_words_that_yaml_takes_for_booleans_are_words(tmp_path, kind, word, kept):
    (tmp_path / "run.yaml").write_text(f"compile: {word}\n")
    assert build(kind, tmp_path / "run.yaml").compile == build(kind, overrides=[f"compile={word}"]).compile == kept


def test_a_field_that_takes_booleans_keeps_them():
    assert build(TrainConfig, overrides=["in_memory=no"]).in_memory is False
    assert build(TrainConfig, overrides=["in_memory=auto"]).in_memory == "auto"


def _new(place, value):
    def switch():
        backend = torch.backends
        for name in place:
            backend = getattr(backend, name)
        backend.fp32_precision = value

    return pytest.param(switch, id=".".join([*place, value]))


NEW = [_new(place, value) for place in ((), ("cuda", "matmul"), ("cudnn",), ("cudnn", "conv"), ("mkldnn", "matmul"))
       for value in ("tf32", "ieee")]  # fmt: skip
OLD = [pytest.param(lambda word=word: torch.set_float32_matmul_precision(word), id=word) for word in ("high", "medium")]
OLD += [pytest.param(lambda on=on: torch._C._set_cudnn_allow_tf32(on), id=f"cudnn {on}") for on in (True, False)]
HAS_NEW = hasattr(torch.backends, "fp32_precision")


@pytest.mark.parametrize("switch", [*(NEW if HAS_NEW else []), *OLD])
def test_the_judge_computes_in_strict_fp32_whichever_switches_were_used(switch):
    switch()
    before = fp32_switches()
    with exact_fp32():
        now = fp32_switches()
        assert precision.is_tf32(False)
        assert {value for backend, op, value in now.operations if op != "all"} <= {"ieee", "none"}
        assert now.matmul in ("highest", None)
    assert fp32_switches() == before


@pytest.mark.parametrize("switch", [*(NEW if HAS_NEW else []), *OLD])
@pytest.mark.parametrize("allowed", [True, False])
def test_switches_are_set_and_put_back_from_anywhere(switch, allowed):
    switch()
    before, state = fp32_switches(), ProcessState()
    set_tf32(allowed)
    assert precision.is_tf32(allowed)
    assert state.put_back() in ([], ["precision of float32"])
    assert fp32_switches() == before


@pytest.mark.parametrize("switch", [*(NEW if HAS_NEW else []), *OLD])
def test_an_attack_copy_is_strict_in_fp32_whichever_switches_were_used(switch):
    switch()
    before, seen = fp32_switches(), []
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    net.register_forward_hook(lambda *_: seen.append(precision.is_tf32(False, cuda=False)))
    images = torch.rand(3, 1, 2, 2).requires_grad_(True)
    AttackCopy(net)(images).sum().backward()
    assert seen == [True]
    assert fp32_switches() == before
