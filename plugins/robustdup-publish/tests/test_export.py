"""Trained networks as files for others: written, loaded in a process that never imports robustdup, compared."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from robustdup_publish.export import export_run
from safetensors.torch import load_file

from robustdup.cli.main import main
from robustdup.config import TrainConfig, build
from robustdup.errors import UserError
from robustdup.jobs import run_training
from robustdup.models.load import load_model
from robustdup.plugins import load_plugins
from tests.raising import raises

REGISTRY = load_plugins()
onnx = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
ALONE = """
import sys
import numpy as np
images = np.load(sys.argv[1])
{loading}
assert not any(name.split(".")[0] == "robustdup" for name in sys.modules)
np.save(sys.argv[2], logits)
"""
LOADING = {
    "safetensors": "import torch; from modeling import load; logits = load()(torch.from_numpy(images)).detach().numpy()",
    "pt2": "import torch; logits = torch.export.load('model.pt2').module()(torch.from_numpy(images)).detach().numpy()",
    "onnx": "import onnxruntime; s = onnxruntime.InferenceSession('model.onnx'); logits = s.run(None, {'images': images})[0]",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training run on the digits with an evaluation of its checkpoints."""
    words = (
        "model=small-resnet(width=8)", "epochs=null", "steps=2", "batch_size=64", "lr=0.01", "attack=pgd(steps=1)",
        "validation=50", "validation_attack=pgd(steps=1)", "evaluate=fgsm", "test_n=20",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("export") / "run"
    run_training(build(TrainConfig, overrides=words), folder=folder)
    return folder


def images():
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    "kind",
    ["safetensors", pytest.param("onnx", marks=[onnx, pytest.mark.slow]), pytest.param("pt2", marks=pytest.mark.slow)],
)
def test_what_is_exported_answers_as_the_network_in_a_process_without_robustdup(run, tmp_path, kind, capsys):
    out = tmp_path / "out"
    assert main(["export", f"{run}@last", "--to", kind, "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert sorted(told["files"]) == sorted(path.name for path in out.iterdir())
    np.save(tmp_path / "images.npy", images().numpy())
    script = ALONE.format(loading=LOADING[kind])
    command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "images.npy"), str(tmp_path / "logits.npy")]
    subprocess.run(command, check=True, cwd=out)
    wanted = load_model(f"run:{run}@last", registry=REGISTRY)(images()).detach()
    assert torch.allclose(torch.from_numpy(np.load(tmp_path / "logits.npy")), wanted, atol=1e-5)
    card = (out / "README.md").read_text()
    assert card.startswith("---\n")
    assert "Robust accuracy" in card  # of the evaluation
    assert "do not normalise" in card
    assert f"model.{kind}" in card
    assert "robustdup eval --model mod" in card
    if kind == "safetensors":
        assert load_file(out / "model.safetensors").keys() == load_file(run / "last.safetensors").keys()


def test_a_folder_for_the_hub_is_what_the_network_allows_and_nothing_is_overwritten(run, tmp_path):
    exported = export_run(str(run), "hub", tmp_path / "hub", REGISTRY)
    assert exported.kind == "safetensors"
    assert exported.difference == 0
    with raises("not-empty", UserError, "hub"):
        export_run(str(run), "hub", tmp_path / "hub", REGISTRY)
    assert main(["export", str(run), "--to", "onx", "--out", str(tmp_path / "x")]) == 2
    assert main(["export", str(tmp_path), "--to", "hub"]) == 2


def test_the_hub_is_given_the_folder(run, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    class Api:
        def create_repo(self, repo, exist_ok):
            asked.append((repo, exist_ok))

        def upload_folder(self, repo_id, folder_path):
            asked.append((repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    out = tmp_path / "out"
    assert main(["export", str(run), "--to", "hub", "--out", str(out), "--repo", "me/net"]) == 0
    assert asked == [
        ("me/net", True), ("me/net", ["README.md", "config.json", "model.safetensors", "modeling.py"]),
    ]  # fmt: skip
