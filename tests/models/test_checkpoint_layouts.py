"""Layouts of checkpoints that people bring: each is built here, and the network must answer as the saved one does."""

from __future__ import annotations

import argparse
import collections
import copy
import datetime
import decimal
import enum
import gzip
import json
import pathlib
import pickle
import subprocess
import sys
import textwrap
import types
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

import robustdup.models
from robustdup.errors import UserError
from robustdup.models.adapt import names_of, notes_of
from robustdup.models.load import load_model
from robustdup.plugins import Registry
from tests.raising import raises

NETWORK = """
    import torch
    from torch import nn

    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1))

        def forward(self, images):
            return images - self.mean

    class Net(nn.Module):
        def __init__(self, width=4):
            super().__init__()
            self.normalise = Norm()
            self.body = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width * 4, 2))

        def forward(self, images):
            return self.body(self.normalise(images))

    def make(width=4):
        return Net(width)
"""
IMAGES = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    (folder / "net.py").write_text(textwrap.dedent(NETWORK))
    return folder


@pytest.fixture(scope="module")
def registry():
    registry = Registry()
    robustdup.models.register(registry)
    return registry


@pytest.fixture(scope="module")
def net(place, registry):
    """Return a network with weights of its own, statistics and all."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = load_model(f"{place / 'net.py'}:make", registry=registry)
        network.body[1].running_mean.normal_()
        network.body[1].running_var.uniform_(0.5, 2)
    return network


def prefixed(state, prefix):
    return collections.OrderedDict((prefix + key, value) for key, value in state.items())


class Settings(dict):
    """As EasyDict, CfgNode and AttributeDict are: a mapping with attributes."""

    def __init__(self, **values):
        super().__init__(values)
        self.__dict__.update({"frozen": True})


class Mode(enum.Enum):
    FAST = 1


def others(state):
    return {key: value + 1 for key, value in state.items()}


def matrices(state):
    """Yield the weights of layers."""
    yield from ((key, value) for key, value in state.items() if key.endswith(".weight") and value.ndim > 1)


def without_matrices(state):
    return {key: value for key, value in state.items() if key not in dict(matrices(state))}


def weight_norm(state, first, second):
    """Return a state with lengths and directions in place of weights, which are three times as long as they should be."""
    made = without_matrices(state)
    for key, value in matrices(state):
        lengths = value.flatten(1).norm(dim=1).view(-1, *[1] * (value.ndim - 1))
        made |= {key.replace("weight", first): lengths, key.replace("weight", second): 3 * value}
    return made


def nested(state):
    tree = {}
    for key, value in state.items():
        *folders, name = key.split(".")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
    return tree


def parts(net):
    """Return parameters and buffers apart."""
    return dict(net.named_parameters()), dict(net.named_buffers())


LAYOUTS = {
    "a state dict": lambda s, n: s,
    "DataParallel": lambda s, n: {"state_dict": prefixed(s, "module."), "best_acc": 0.9, "epoch": 3},
    "numpy numbers": lambda s, n: {"net": s, "acc": np.float64(91.2), "step": np.int64(3), "curve": np.float32(2)},
    "settings": lambda s, n: {"model": s, "args": argparse.Namespace(lr=0.1, out=pathlib.PosixPath("/tmp/x"))},
    "compiled": lambda s, n: prefixed(s, "_orig_mod.module."),
    "compiled parts": lambda s, n: {k.replace("body.", "body._orig_mod."): v for k, v in s.items()},
    "Lightning": lambda s, n: {"state_dict": prefixed(s, "net."), "hyper_parameters": {"lr": 0.1}, "epoch": 1},
    "Lightning and a loss": lambda s, n: {"state_dict": {**prefixed(s, "model."), "criterion.weight": torch.ones(2)}},
    "AveragedModel": lambda s, n: AveragedModel(n).state_dict(),
    "before counters": lambda s, n: {k: v for k, v in s.items() if "num_batches" not in k},
    "without constants": lambda s, n: {k: v for k, v in s.items() if "normalise" not in k},
    "the body alone": lambda s, n: n.body.state_dict(),
    "constants of another shape": lambda s, n: {**s, "normalise.mean": s["normalise.mean"].flatten()},
    "a Sequential": lambda s, n: nn.Sequential(n.normalise, n.body).state_dict(),
    "an attacker around it": lambda s, n: {
        "model": {
            **prefixed(n.body.state_dict(), "module.model."), **prefixed(n.body.state_dict(), "module.attacker.model."),
            "module.normalizer.new_mean": torch.zeros(3), "module.attacker.normalize.new_mean": torch.zeros(3),
        },
        "epoch": 150,
    },
    "a wrapper of any name": lambda s, n: {
        "best_state_dict_of_all": s, "optimizer": {"state": {0: torch.ones(2)}, "param_groups": []},
    },
    "wrappers in wrappers": lambda s, n: {"checkpoint": {"state": {"model": s}}},
    "a list": lambda s, n: [s, {"epoch": 3}],
    "averaged alone": lambda s, n: {"model_ema": prefixed(s, "module."), "epoch": 3},
    "raw and averaged": lambda s, n: {"state_dict": s, "state_dict_ema": others(s)},
    "averaged first": lambda s, n: {"ema": {"shadow": others(s), "decay": 0.9}, "model": s},
    "the same twice": lambda s, n: {"best": s, "last": s},
    "thop's counters": lambda s, n: {**s, "total_ops": torch.zeros(1), "body.total_params": torch.zeros(1)},
    "arrays of numpy": lambda s, n: {"weights": {key: value.numpy() for key, value in s.items()}, "curve": np.ones(3)},
    "values of Python": lambda s, n: {
        "model": s, "when": datetime.datetime(2024, 1, 1), "lr": decimal.Decimal("0.1"), "seen": frozenset([1]),
        "losses": collections.deque([1.0, 2.0], maxlen=3), "random": np.random.RandomState(0).get_state(),
    },
    "parameters and buffers apart": lambda s, n: dict(zip(("params", "buffers"), parts(n), strict=True)),
    "parameters and statistics in a state": lambda s, n: {
        "epoch": 3, "state": dict(zip(("parameters", "batch_stats"), parts(n), strict=True)),
    },
    "a pair of mappings": lambda s, n: parts(n),
    "nested by layer": lambda s, n: {"model": nested(s)},
    "nested, parameters and buffers apart": lambda s, n: {
        name: nested(part) for name, part in zip(("params", "batch_stats"), parts(n), strict=True)
    },
    "slashes": lambda s, n: {key.replace(".", "/"): value for key, value in s.items()},
    "gamma and beta": lambda s, n: {
        key.replace("1.weight", "1.gamma").replace("1.bias", "1.beta"): value for key, value in s.items()
    },
    "weight norm": lambda s, n: {"state_dict": prefixed(weight_norm(s, "weight_g", "weight_v"), "module.")},
    "weight norm as parametrization": lambda s, n: weight_norm(
        s, "parametrizations.weight.original0", "parametrizations.weight.original1"
    ),
    "pruned": lambda s, n: {
        **without_matrices(s), **{f"{key}_mask": (value > 0).float() for key, value in matrices(s)},
        **{f"{key}_orig": torch.where(value > 0, value, 7.0) for key, value in matrices(s)},
    },
    "sparse weights": lambda s, n: {**s, **{key: value.to_sparse() for key, value in matrices(s)}},
    "averaged, in one word": lambda s, n: {"stateDict": s, "stateDictEma": others(s)},
    "under many wrappers": lambda s, n: {"a": {"b": {"c": {"d": {"e": s}}}}},
    "settings of a class that is not here": lambda s, n: {"model": s, "config": Settings(lr=0.1, mode=Mode.FAST)},
    "weights in a mapping of a class that is not here": lambda s, n: Settings(model=s),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_without_a_pickle(place, registry, net, layout, monkeypatch):
    for kind in (Settings, Mode):  # as if they had stood elsewhere
        monkeypatch.setattr(kind, "__module__", "elsewhere")
    monkeypatch.setitem(sys.modules, "elsewhere", sys.modules[__name__])
    torch.save(LAYOUTS[layout](net.state_dict(), net), place / "w.pt")
    monkeypatch.undo()
    model = load_model(f"{place / 'net.py'}:make@{place / 'w.pt'}", registry=registry)
    wanted = net if layout != "pruned" else with_matrices(net, lambda value: value.clamp(min=0))
    torch.testing.assert_close(model(IMAGES), wanted(IMAGES))


def with_matrices(net, change):
    """Return a copy of a network with its weights of layers changed."""
    other = copy.deepcopy(net)
    other.load_state_dict({**net.state_dict(), **{key: change(value) for key, value in matrices(net.state_dict())}})
    return other


def of_unit_norm(value):
    """Return a weight whose largest singular value is 1, and the singular vectors of that."""
    left, sizes, right = torch.linalg.svd(value.flatten(1))
    return value / sizes[0], left[:, 0], right[0]


SPECTRAL = {
    "hooks": ("weight_orig", "weight_u", "weight_v"),
    "parametrization": (
        "parametrizations.weight.original",
        "parametrizations.weight.0._u",
        "parametrizations.weight.0._v",
    ),
}


@pytest.mark.parametrize("kind", SPECTRAL)
def test_spectral_norm(place, registry, net, kind):
    """What is saved is 2.5 times a weight of largest singular value 1: that weight is the network's."""
    wanted = with_matrices(net, lambda value: of_unit_norm(value)[0])
    saved = without_matrices(net.state_dict())
    for key, value in matrices(net.state_dict()):
        unit, u, v = of_unit_norm(value)
        saved |= {
            key.replace("weight", name): each for name, each in zip(SPECTRAL[kind], (2.5 * unit, u, v), strict=True)
        }
    torch.save(saved, place / "w.pt")
    model = load_model(f"{place / 'net.py'}:make@{place / 'w.pt'}", registry=registry)
    torch.testing.assert_close(model(IMAGES), wanted(IMAGES))


@pytest.mark.parametrize("new", [True, False])
def test_weight_norm_of_the_other_kind_is_loaded_into_a_network_that_has_it(place, registry, net, new):
    kinds = (nn.utils.weight_norm, nn.utils.parametrizations.weight_norm)
    (place / "normed.py").write_text(
        f"import torch\nfrom net import Net\n\ndef make():\n    net = Net()\n"
        f"    torch.nn.utils.{'parametrizations.' if new else ''}weight_norm(net.body[0])\n    return net\n"
    )
    saved = copy.deepcopy(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        kinds[not new](saved.body[0])
        torch.save(saved.state_dict(), place / "w.pt")
        model = load_model(f"{place / 'normed.py'}:make@{place / 'w.pt'}", registry=registry)
    torch.testing.assert_close(model(IMAGES), net(IMAGES))


@pytest.mark.parametrize("wrap", [lambda n: n, lambda n: {"model": n, "epoch": 3}], ids=["itself", "wrapped"])
def test_a_whole_model_whose_class_stood_in_the_training_script_is_the_given_files(
    place, registry, net, monkeypatch, wrap
):
    import __main__

    for kind in (type(net), type(net.normalise)):  # as torch.save(model) writes them from a script
        monkeypatch.setattr(kind, "__module__", "__main__")
        monkeypatch.setattr(__main__, kind.__name__, kind, raising=False)
    torch.save(wrap(net), place / "w.pt")
    monkeypatch.undo()
    model = load_model(f"{place / 'net.py'}:make@{place / 'w.pt'}", registry=registry)
    torch.testing.assert_close(model(IMAGES), net(IMAGES))


def test_half_precision(place, registry, net):
    torch.save(
        {key: v.half() if v.is_floating_point() else v for key, v in net.state_dict().items()}, place / "half.pt"
    )
    model = load_model(f"{place / 'net.py'}:make@{place / 'half.pt'}", registry=registry)
    torch.testing.assert_close(model(IMAGES), net(IMAGES), atol=0.02, rtol=0.01)
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_raw_and_averaged_weights_are_told_apart_and_either_can_be_named(place, registry, net):
    state = net.state_dict()
    torch.save({"state_dict": state, "state_dict_ema": others(state)}, place / "ema.pt")
    spec = f"{place / 'net.py'}:make@{place / 'ema.pt'}"
    (note,) = notes_of(load_model(spec, registry=registry))
    assert "'state_dict' was taken" in note
    assert "@FILE#state_dict_ema" in note
    averaged = load_model(f"{spec}#state_dict_ema", registry=registry)
    torch.testing.assert_close(averaged.body[0].weight, state["body.0.weight"] + 1)
    assert not notes_of(averaged)
    with raises("unknown-weights", ValueError, "'state_dict_ema'"):
        load_model(f"{spec}#state_dict_emma", registry=registry)
    torch.save({**prefixed(state, "net."), **prefixed(others(state), "ema_net.")}, place / "ema.pt")
    torch.testing.assert_close(load_model(spec, registry=registry)(IMAGES), net(IMAGES))
    ema = load_model(f"{spec}#ema_net", registry=registry)
    torch.testing.assert_close(ema.body[0].weight, state["body.0.weight"] + 1)


def test_several_networks_that_nobody_can_choose_between_are_refused(place, registry, net):
    state = net.state_dict()
    torch.save({**prefixed(state, "student."), **prefixed(others(state), "teacher.")}, place / "two.pt")
    spec = f"{place / 'net.py'}:make@{place / 'two.pt'}"
    with raises("several-weights", ValueError, "'student'", "'teacher'"):
        load_model(spec, registry=registry)
    torch.testing.assert_close(load_model(f"{spec}#student", registry=registry)(IMAGES), net(IMAGES))


def test_what_was_kept_from_the_factory_or_left_in_the_file_is_said(place, registry, net):
    state = {key: value for key, value in net.state_dict().items() if "normalise" not in key}
    torch.save({**prefixed(state, "net."), "loss.weight": torch.ones(2)}, place / "w.pt")
    notes = " ".join(notes_of(load_model(f"{place / 'net.py'}:make@{place / 'w.pt'}", registry=registry)))
    assert "lacks 'normalise.mean': the factory's values were kept" in notes
    assert "'loss.weight'" in notes


def test_statistics_and_weights_are_never_made_up(place, registry, net):
    for gone in ("body.1.running_mean", "body.0.weight"):
        torch.save({key: value for key, value in net.state_dict().items() if key != gone}, place / "w.pt")
        with raises("other-network", ValueError, gone):
            load_model(f"{place / 'net.py'}:make@{place / 'w.pt'}", registry=registry)


def test_names_of_classes_in_a_checkpoint_go_with_the_model(place, registry, net):
    kept = [
        {"class_to_idx": {"cat": 1, "ant": 0}}, {"meta": {"CLASSES": ("ant", "cat")}},
        {"hyper_parameters": {"class_names": ["ant", "cat"]}}, {"args": argparse.Namespace(classes=["ant", "cat"])},
    ]  # fmt: skip
    for beside in kept:
        torch.save({"state_dict": net.state_dict(), **beside}, place / "w.pt")
        assert names_of(load_model(f"{place / 'net.py'}:make@{place / 'w.pt'}", registry=registry)) == ["ant", "cat"]


def test_factories_with_arguments(place, registry):
    for written, width in (("make(6)", 6), ("make(width=5)", 5), ("Net(7)", 7), ("make()", 4), ("make", 4)):
        model = load_model(f"{place / 'net.py'}:{written}", registry=registry)
        assert model.body[0].out_channels == width
    torch.save(model.state_dict(), place / "w.pt")
    load_model(f"{place / 'net.py'}:make(width=4)@{place / 'w.pt'}", registry=registry)
    for written, code in (("make(depth=3)", "bad-factory"), ("make(1 +)", "bad-spec"), ("make(open('x'))", "bad-spec")):
        with raises(code, ValueError, written):
            load_model(f"{place / 'net.py'}:{written}", registry=registry)


def test_a_whole_model_of_a_class_that_is_not_here_gives_its_weights(place, registry, net):
    """Its class stood in a module that the training script imported."""

    module = sys.modules["elsewhere"] = types.ModuleType("elsewhere")
    try:
        exec(textwrap.dedent(NETWORK), vars(module))
        whole = module.make()
        whole.load_state_dict(net.state_dict())
        torch.save({"epoch": 3, "net": nn.DataParallel(whole)}, place / "w.pt")
    finally:
        del sys.modules["elsewhere"]
    spec = f"{place / 'net.py'}:make@{place / 'w.pt'}"
    torch.testing.assert_close(load_model(spec, registry=registry)(IMAGES), net(IMAGES))


def test_functions_that_a_file_names_are_never_run(place, registry, net):
    class Bomb:
        def __reduce__(self):
            return subprocess.Popen, (["touch", str(place / "ran")],)

    torch.save({"model": net.state_dict(), "bomb": Bomb()}, place / "w.pt")
    with raises("refused-pickle", ValueError, "Popen"):
        load_model(f"{place / 'net.py'}:make@{place / 'w.pt'}", registry=registry)
    assert not (place / "ran").exists()


def test_parts_are_put_together_by_their_list(place, registry, net):
    state, folder = {key: value.contiguous() for key, value in net.state_dict().items()}, place / "split"
    folder.mkdir()
    parts = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    weight_map = {name: parts[number % 2] for number, name in enumerate(state)}
    for part in parts:
        save_file({name: state[name] for name in state if weight_map[name] == part}, folder / part)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for name in ("split", "split/model.safetensors.index.json"):
        model = load_model(f"{place / 'net.py'}:make@{place / name}", registry=registry)
        torch.testing.assert_close(model(IMAGES), net(IMAGES))
    with raises("part-of-checkpoint", UserError, "index.json"):
        load_model(f"{place / 'net.py'}:make@{folder / parts[0]}", registry=registry)
    for odd in ("[]", "{}", '{"weight_map": {"a": 1}}', "[" * 100_000, '{"weight_map": []}'):
        index.write_text(odd)
        with raises("damaged-checkpoint", ValueError):
            load_model(f"{place / 'net.py'}:make@{index}", registry=registry)
    for odd in ("../net.py", "gone.bin", "model.safetensors.index.json"):
        index.write_text(json.dumps({"weight_map": {"a": odd}}))
        with raises("missing-file", ValueError, "beside"):
            load_model(f"{place / 'net.py'}:make@{index}", registry=registry)


def test_files_are_told_by_their_content_not_by_their_ending(place, registry, net):
    state, folder = {key: value.contiguous() for key, value in net.state_dict().items()}, place / "folder"
    folder.mkdir()
    save_file(prefixed(state, "model."), folder / "model.safetensors", metadata={"format": "pt"})
    save_file(state, place / "weights.bin")
    torch.save(state, place / "odd.safetensors")
    torch.save(state, place / "old.pth.tar", _use_new_zipfile_serialization=False)
    np.savez(place / "w.npz", **{key: value.numpy() for key, value in state.items()})
    for name in ("folder", "folder/model.safetensors", "weights.bin", "odd.safetensors", "old.pth.tar", "w.npz"):
        model = load_model(f"{place / 'net.py'}:make@{place / name}", registry=registry)
        torch.testing.assert_close(model(IMAGES), net(IMAGES))
    (place / "w.pkl").write_bytes(pickle.dumps({key: value.numpy() for key, value in state.items()}))
    spec = f"{place / 'net.py'}:make@{place / 'w.pkl'}"
    with raises("refused-pickle", ValueError):
        load_model(spec, registry=registry)
    torch.testing.assert_close(load_model(spec, registry=registry, allow_pickle=True)(IMAGES), net(IMAGES))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"x" * 600, mtime=0), "is compressed"),
        (b"\x89HDF" + b"0" * 600, "HDF5"),
        (b"0" * 257 + b"ustar" + b"0" * 300, "tar archive"),
        (b"GGUF\3\0\0\0" + b"0" * 300, "quantised"),
    ],
)
def test_what_is_no_checkpoint_is_named(place, registry, content, said):
    (place / "w.pt").write_bytes(content)
    with raises("damaged-checkpoint", ValueError, said):
        load_model(f"{place / 'net.py'}:make@{place / 'w.pt'}", registry=registry)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("flax_model.msgpack", "Flax"), ("m.keras", "Keras"), ("tf_model.h5", "Keras"), ("saved_model.pb", "TensorFlow"),
        ("m.ckpt.data-00000-of-00001", "TensorFlow"), ("m.tflite", "TensorFlow Lite"), ("m.pdparams", "Paddle"),
        ("m.engine", "without gradients"), ("__0_0.distcp", "dcp_to_torch"), ("m.caffemodel", "Caffe"),
    ],
)  # fmt: skip
def test_files_of_other_programs_are_named(place, registry, name, said):
    """A zip as .keras, a pickle as .pdparams, bytes elsewhere; also in a folder, and in place of the model."""
    folder = place / f"of {name}"
    folder.mkdir()
    if name == "m.pdparams":
        (folder / name).write_bytes(pickle.dumps({"weight": np.zeros(3)}))
    else:
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("config.json", "{}")
        if name != "m.keras":
            (folder / name).write_bytes(b"\1" * 300)
    for spec in (f"{place / 'net.py'}:make@{folder / name}", f"{place / 'net.py'}:make@{folder}", str(folder / name)):
        with raises("other-program", UserError, said):
            load_model(spec, registry=registry)


def test_a_file_of_torch_under_another_programs_ending_is_loaded(place, registry, net):
    torch.save(net.state_dict(), place / "mine.params")
    same = load_model(f"{place / 'net.py'}:make@{place / 'mine.params'}", registry=registry)
    assert torch.equal(same(IMAGES), net(IMAGES))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: {"base_model.model.body.3.lora_A.weight": torch.ones(2, 16)}, "adapter"),
        (lambda state: {**state, "body.3.lora_A": torch.ones(2, 16), "body.3.lora_B": torch.ones(2, 2)}, "adapter"),
        (lambda state: {**state, "body.3.SCB": torch.ones(2)}, "quantised"),
        (lambda state: {**without(state, "body.3.weight"), "body.3.qweight": torch.ones(2, 2)}, "quantised"),
        (lambda state: {"_flat_param": torch.ones(9)}, "FSDP"),
    ],
    ids=["adapter alone", "adapter beside weights", "8 bits", "4 bits", "flat"],
)
def test_what_does_not_fit_is_called_by_what_it_is(place, registry, net, change, said):
    torch.save(change(net.state_dict()), place / "odd.pt")
    with raises("other-network", UserError, said):
        load_model(f"{place / 'net.py'}:make@{place / 'odd.pt'}", registry=registry)


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize("name", ["body.3.weight", "body.1.running_var"])
def test_weights_that_are_no_numbers_are_refused_by_name(place, registry, net, name):
    state = {key: value.clone() for key, value in net.state_dict().items()}
    state[name].view(-1)[0] = torch.nan
    torch.save(state, place / "nan.pt")
    with raises("damaged-checkpoint", UserError, name, "NaN"):
        load_model(f"{place / 'net.py'}:make@{place / 'nan.pt'}", registry=registry)


def test_folders_without_one_file_of_weights_are_refused(place, registry):
    (place / "several").mkdir()
    with raises("missing-file", ValueError, "several"):
        load_model(f"{place / 'net.py'}:make@{place / 'several'}", registry=registry)
    for name in ("a.pt", "b.pt"):
        (place / "several" / name).touch()
    with raises("several-weights", ValueError, "a.pt, b.pt"):
        load_model(f"{place / 'net.py'}:make@{place / 'several'}", registry=registry)


def test_averaged_weights_without_names_are_told(place, registry, net):
    shadow = [value + 1 for value in net.parameters()]
    torch.save({"model": net.state_dict(), "ema": {"decay": 0.9, "shadow_params": shadow}}, place / "w.pt")
    (note,) = notes_of(load_model(f"{place / 'net.py'}:make@{place / 'w.pt'}", registry=registry))
    assert "'ema.shadow_params'" in note
    assert "'model' was taken" in note


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda tensor: (10 * tensor).to(torch.int8), "other-network", "quantised"),
        (lambda tensor: tensor.to("meta"), "damaged-checkpoint", "without its values"),
        (lambda tensor: tensor.to(torch.complex64), "other-network", "complex"),
    ],
    ids=["whole numbers", "no values", "complex numbers"],
)
def test_whole_numbers_and_missing_values_are_no_weights(place, registry, net, change, code, words):
    state = net.state_dict()
    name = next(name for name, parameter in net.named_parameters() if parameter.ndim > 1)
    torch.save({**state, name: change(state[name])}, place / "odd.pt")
    with raises(code, UserError, words, name):
        load_model(f"{place / 'net.py'}:make@{place / 'odd.pt'}", registry=registry)
