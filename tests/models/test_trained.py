"""Run folders as models: what is saved comes back; what is missing, does not fit, or would run code is refused."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import robustdup.models
from robustdup.errors import RunError, UserError
from robustdup.models.architectures import build_network
from robustdup.models.load import fingerprint, load_model
from robustdup.models.trained import describe_network, load_trained, read_description, save_network, save_weights
from robustdup.plugins import Registry
from tests.raising import raises


@pytest.fixture(scope="module")
def registry():
    registry = Registry()
    robustdup.models.register(registry)
    return registry


def trained(folder, registry, spec="small-resnet(width=4)", names=("best", "last")):
    """A run folder with networks of different seeds."""
    description = describe_network(spec, channels=3, size=(16, 12), classes=4, mean=[0.1, 0.2, 0.3], std=[0.4])
    save_network(folder, description)
    networks = {}
    for seed, name in enumerate(names):
        networks[name] = build_network(
            spec,
            channels=3,
            size=(16, 12),
            classes=4,
            mean=[0.1, 0.2, 0.3],
            std=[0.4],
            seed=seed + 5,
            registry=registry,
        )
        save_weights(folder, name, networks[name])
    return networks


def test_what_was_saved_comes_back(tmp_path, registry):
    folder = tmp_path / "run@home"
    networks = trained(folder, registry)
    for rest, name in (("", "best"), ("@best", "best"), ("@last", "last")):
        model = load_model(f"run:{folder}{rest}", registry=registry)
        assert fingerprint(model) == fingerprint(networks[name])
        assert not model.training
    images = torch.rand(2, 3, 16, 12)
    assert torch.equal(model(images), networks["last"].eval()(images))
    assert not list(folder.glob("*.part"))


def test_without_validation_the_last_is_taken(tmp_path, registry):
    networks = trained(tmp_path, registry, names=("last",))
    assert fingerprint(load_trained(str(tmp_path), registry)) == fingerprint(networks["last"])
    with raises("missing-file", UserError, "best.safetensors"):
        load_trained(f"{tmp_path}@best", registry)


def test_layouts_compilation_and_tied_weights_do_not_matter(tmp_path, registry):
    network = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    network[1].weight = network[0].weight
    network.to(memory_format=torch.channels_last)
    compiled = nn.Module()  # as torch.compile wraps it
    compiled._orig_mod = network
    save_weights(tmp_path, "best", compiled)
    save_weights(tmp_path, "last", network.state_dict())
    assert (tmp_path / "best.safetensors").read_bytes() == (tmp_path / "last.safetensors").read_bytes()
    from safetensors.torch import load_file

    found = load_file(tmp_path / "best.safetensors")
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "0.weight": (3, 3, 3, 3), "0.bias": (3,), "1.weight": (3, 3, 3, 3), "1.bias": (3,)
    }  # fmt: skip
    assert torch.equal(found["1.weight"], network[0].weight)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with raises("cannot-write", RunError, "best.safetensors"):
        save_weights(tmp_path / "file", "best", nn.Linear(1, 1))


def test_what_is_missing(tmp_path, registry):
    with raises("missing-file", UserError, "no folder"):
        load_trained(str(tmp_path / "none"), registry)
    with raises("missing-file", UserError, "network.json"):
        load_trained(str(tmp_path), registry)
    with raises("bad-spec", UserError, "run:"):
        load_trained("", registry)
    with raises("unknown-checkpoint", UserError, "'run:somewhere@bets'", "'run:somewhere@best'"):
        load_trained("somewhere@bets", registry)
    trained(tmp_path, registry, names=())
    with raises("missing-file", UserError, "best.safetensors"):
        load_trained(str(tmp_path), registry)


def test_weights_of_another_network_name_the_first_tensor(tmp_path, registry):
    trained(tmp_path, registry)
    trained(tmp_path / "other", registry, spec="small-resnet(width=6)")
    (tmp_path / "other" / "best.safetensors").rename(tmp_path / "best.safetensors")
    with raises("other-network", UserError, "'body.0.weight'"):
        load_trained(str(tmp_path), registry)
    trained(tmp_path / "third", registry, spec="wide-resnet(depth=10,width=1)")
    (tmp_path / "third" / "best.safetensors").rename(tmp_path / "best.safetensors")
    with raises("other-network", UserError, "keys are missing", "another architecture"):
        load_trained(str(tmp_path), registry)
    (tmp_path / "best.safetensors").write_bytes(b"\x80\x04pickle")
    with raises("damaged-checkpoint", UserError):
        load_trained(str(tmp_path), registry)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_name": "other"}, "schema_name input should be 'robustdup.network'"), ({"classes": "many"}, "classes"),
        ({"schema_version": 2}, "schema_version"), ({"spec": "small-renset"}, "Did you mean 'small-resnet'"),
        ({"more": 1}, "more extra inputs are not permitted"),
    ],
)  # fmt: skip
def test_wrong_descriptions(tmp_path, registry, change, message):
    trained(tmp_path, registry)
    file = tmp_path / "network.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load_trained(str(tmp_path), registry)
    file.write_text("{")
    with raises("damaged-record", UserError, "network.json"):
        load_trained(str(tmp_path), registry)


CODE = """
from pathlib import Path
from torch import nn

Path(__file__).with_name("ran").touch()

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 12, 4))
"""


def test_code_is_run_where_it_was_and_never_from_the_run_folder(tmp_path, registry, monkeypatch):
    code, folder = tmp_path / "mine.py", tmp_path / "run"
    code.write_text(CODE)
    monkeypatch.chdir(tmp_path)
    networks = trained(folder, registry, spec="mine.py:make")
    assert read_description(folder).spec == f"{code.resolve()}:make"
    (tmp_path / "ran").unlink()
    assert fingerprint(load_trained("run", registry)) == fingerprint(networks["best"])
    assert (tmp_path / "ran").exists()

    (folder / "evil.py").write_text(CODE)
    content = json.loads((folder / "network.json").read_text())
    for spec in (f"{folder}/evil.py:make", "run/evil.py:make", f"{folder}/../run/evil.py:make", "mine.py:make"):
        (folder / "network.json").write_text(json.dumps(content | {"spec": spec}))
        with raises("refused-code", UserError, "load it yourself"):
            load_trained("run", registry)
    assert not (folder / "ran").exists()

    (folder / "network.json").write_text(json.dumps(content))
    code.unlink()
    with raises("missing-file", UserError, "mine.py"):
        load_trained("run", registry)
