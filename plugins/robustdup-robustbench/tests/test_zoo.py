"""`robustbench:NAME`: what is said when something is missing, and that a model comes out when all is there.

Most tests use a small package `robustbench` with the same faults as the published one (it imports `autoattack` and
`pkg_resources`) and the same interface; the last ones use the real package where the extra `zoo` is installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from robustdup_robustbench import clash, zoo
from torch import nn

from robustdup import Unavailable, UserError, how_to_install

SAFE, TRUSTING = SimpleNamespace(allow_pickle=False), SimpleNamespace(allow_pickle=True)
INIT = "from autoattack import AutoAttack\nfrom autoattack.state import EvaluationState\nimport pkg_resources\n"
UTILS = """
import enum, pathlib, types
import torch
from torch import nn
print("Downloading things to standard output")
D = enum.Enum("D", {"a": "cifar10", "b": "cifar100"})
T = enum.Enum("T", {"a": "Linf", "b": "L2"})
net = lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
all_models = {
    D.a: {T.a: {"Small2020Net": {"model": net, "gdrive_id": "ID1"}, "Deck": {"model": net, "gdrive_id": ["A", "B"]}},
          T.b: {"Other2020Net": {"model": net, "gdrive_id": "ID2"}}},
    D.b: {T.a: {"Small2020Net": {"model": net, "gdrive_id": "ID3"}}},
}
timm = types.SimpleNamespace(is_model=lambda name: False)
served = {}
def download(id, output):
    if id not in served:
        raise ConnectionError("no network here")
    pathlib.Path(output).write_bytes(served[id])
gdown = types.SimpleNamespace(download=download)
def load_model(name, model_dir, dataset, threat_model):
    print("loading", name)
    model = all_models[D(dataset)][T(threat_model)][name]["model"]()
    content = torch.load(pathlib.Path(model_dir) / dataset / threat_model / f"{name}.pt", map_location="cpu")
    model.load_state_dict(content.get("state_dict", content))
    return model
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A stand-in for the robustbench package, imported afresh; returns its module `utils`."""
    site = tmp_path / "site"
    (site / "robustbench").mkdir(parents=True)
    (site / "robustbench/__init__.py").write_text(INIT)
    (site / "robustbench/utils.py").write_text(UTILS)
    monkeypatch.syspath_prepend(str(site))
    for name in [name for name in sys.modules if name.split(".")[0] in ("robustbench", "pkg_resources", "autoattack")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(clash, "check", lambda: [clash.Finding(True, "well", "")])
    monkeypatch.setenv("ROBUSTBENCH_MODEL_DIR", str(tmp_path / "zoo"))
    yield zoo.import_zoo()
    for name in [name for name in sys.modules if name.split(".")[0] == "robustbench"]:
        del sys.modules[name]


@pytest.fixture
def place(tmp_path) -> Path:
    file = tmp_path / "zoo/cifar10/Linf/Small2020Net.pt"
    file.parent.mkdir(parents=True)
    return file


def weights() -> dict[str, torch.Tensor]:
    return {"1.weight": torch.full((10, 12), 0.5), "1.bias": torch.arange(10.0)}


def test_stand_ins_serve_the_import_and_are_gone_after_it(package):
    robustbench = sys.modules["robustbench"]
    assert robustbench.AutoAttack.__module__.startswith("pyautoattack")
    found = robustbench.pkg_resources.resource_filename("robustbench.utils", "data.txt")
    assert Path(found) == Path(package.__file__).parent / "data.txt"
    assert "autoattack" not in sys.modules
    if importlib.util.find_spec("pkg_resources") is None:
        assert "pkg_resources" not in sys.modules


def test_a_checkpoint_in_its_place_is_loaded(package, place, capsys):
    torch.save({"state_dict": weights()}, place)
    capsys.readouterr()
    model = zoo.load("Small2020Net", SAFE)
    assert isinstance(model, nn.Module)
    assert not model.training
    assert torch.equal(model(torch.zeros(1, 3, 2, 2)), torch.arange(10.0)[None])
    assert capsys.readouterr().out == "", "standard output belongs to the record"


def test_a_missing_checkpoint_names_file_source_and_place(package, tmp_path):
    with pytest.raises(UserError) as caught:
        zoo.load("cifar10/Linf/Small2020Net", SAFE)
    message = str(caught.value)
    assert "could not be downloaded (ConnectionError: no network here)" in message
    assert f"https://drive.google.com/uc?id=ID1 -> {tmp_path}/zoo/cifar10/Linf/Small2020Net.pt" in message


def test_all_missing_files_of_an_ensemble_are_named(package):
    with pytest.raises(UserError, match=r"(?s)id=A -> .*/Deck\.pt_m0\.pt.*id=B -> .*/Deck\.pt_m1\.pt"):
        zoo.load("Deck", SAFE)


def test_a_checkpoint_is_downloaded_where_there_is_a_network(package, place):
    torch.save(weights(), place)
    package.served["ID1"] = place.read_bytes()
    place.unlink()
    assert zoo.load("Small2020Net", SAFE)(torch.zeros(1, 3, 2, 2)).argmax() == 9
    assert [file.name for file in place.parent.iterdir()] == [place.name]


def test_a_web_page_is_refused_and_not_kept(package, place):
    package.served["ID1"] = b"\n <!DOCTYPE html><html>Quota exceeded</html>"
    with pytest.raises(UserError, match="is a web page, not a checkpoint"):
        zoo.load("Small2020Net", SAFE)
    assert list(place.parent.iterdir()) == []
    place.write_bytes(b"<html>kept from an earlier download")
    with pytest.raises(UserError, match=r"Small2020Net\.pt is a web page"):
        zoo.load("Small2020Net", SAFE)


def test_a_truncated_checkpoint(package, place):
    torch.save(weights(), place)
    place.write_bytes(place.read_bytes()[:500])
    with pytest.raises(
        UserError, match=r"Small2020Net\.pt\) cannot be loaded: .*truncated, damaged, or not this model's"
    ):
        zoo.load("Small2020Net", SAFE)


def test_a_pickle_is_refused_without_the_flag(package, place):
    torch.save({"state_dict": weights(), "arguments": SimpleNamespace(lr=0.1)}, place)
    with pytest.raises(UserError, match="give --allow-pickle"):
        zoo.load("Small2020Net", SAFE)
    before = dict(os.environ)
    assert zoo.load("Small2020Net", TRUSTING)(torch.zeros(1, 3, 2, 2)).argmax() == 9
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("small2020nets", "Unknown RobustBench model 'small2020nets' for cifar10, Linf. Did you mean 'Small2020Net'?"),
        ("Other2020Net", "no 'Other2020Net' for cifar10, Linf. Write robustbench:cifar10/L2/Other2020Net."),
        ("mnist/Small2020Net", "'mnist' is neither a dataset"),
    ],
)
def test_wrong_names(package, rest, message):
    with pytest.raises(UserError) as caught:
        zoo.load(rest, SAFE)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("rest", "parts"),
    [
        ("X", ("cifar10", "Linf", "X")),
        ("l2/X", ("cifar10", "L2", "X")),
        ("CIFAR100/X", ("cifar100", "Linf", "X")),
        ("imagenet/corruptions/X", ("imagenet", "corruptions", "X")),
    ],
)
def test_names_are_read(rest, parts):
    assert zoo.parse(rest) == parts


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(clash, "check", lambda: [clash.Finding(True, "Not installed.", clash.INSTALL)])
    with pytest.raises(Unavailable, match=re.escape(f"Not installed. Run: {how_to_install('robustdup[zoo]')}")):
        zoo.load("Wong2020Fast", SAFE)


def test_overwritten_files_stop_the_load_with_the_command(monkeypatch):
    monkeypatch.setattr(clash, "check", lambda: [clash.Finding(False, "Damaged.", "repair it")])
    with pytest.raises(Unavailable, match=r"Damaged\. Run: repair it"):
        zoo.load("Wong2020Fast", SAFE)


@pytest.fixture
def real():
    finding = clash.check()[0]
    if finding.command:
        pytest.skip(finding.message)
    return zoo.import_zoo()


def test_the_real_zoo_is_imported_and_names_its_checkpoints(real, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTBENCH_MODEL_DIR", str(tmp_path))
    monkeypatch.setattr(real.gdown, "download", lambda **_: (_ for _ in ()).throw(ConnectionError("offline")))
    with pytest.raises(UserError, match=r"id=1Re--_lf3jCEw9bnQqGkjw3J7v2tSZKrv -> .*cifar10/Linf/Wong2020Fast\.pt"):
        zoo.load("Wong2020Fast", SAFE)


def test_the_real_zoo_loads_a_checkpoint_in_its_place(real, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTBENCH_MODEL_DIR", str(tmp_path))
    from robustbench.model_zoo.cifar10 import linf

    expected = linf["Wong2020Fast"]["model"]().eval()
    file = tmp_path / "cifar10/Linf/Wong2020Fast.pt"
    file.parent.mkdir(parents=True)
    torch.save(expected.state_dict(), file)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(zoo.load("Wong2020Fast", SAFE)(images), expected(images))
