"""Networks as programs: exported, loaded in a process that never imports robustdup, attacked from their answers alone."""

from __future__ import annotations

import copy
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from robustdup.cli.main import main
from robustdup.config import DataOptions, TrainConfig, build
from robustdup.data.sources import load_images
from robustdup.errors import UserError
from robustdup.jobs import run_training
from robustdup.jobs.export import export_run
from robustdup.models.load import fingerprint, load_model
from robustdup.models.programs import in_batches, load_program, save_program
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


def linear_onnx(file, weight, *, rows="batch"):
    """Write logits = W images as an ONNX file, for batches of `rows`."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, [rows, 1, 8, 8])
    answer = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [rows, 10])
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(nodes, "linear", [given], [answer], [numpy_helper.from_array(weight.numpy(), "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
    return file


@onnx
@pytest.mark.parametrize("rows", ["batch", 5])
def test_an_onnx_file_is_a_classifier_with_a_fingerprint(tmp_path, rows):
    weight = torch.randn(10, 64, generator=torch.Generator().manual_seed(0))
    program = load_model(str(linear_onnx(tmp_path / "m.onnx", weight, rows=rows)), registry=REGISTRY)
    given = torch.rand(7, 1, 8, 8)
    assert torch.allclose(program(given), given.flatten(1) @ weight.T, atol=1e-5)
    same = load_model(str(linear_onnx(tmp_path / "same.onnx", weight, rows=rows)), registry=REGISTRY)
    other = load_model(str(linear_onnx(tmp_path / "other.onnx", weight + 1, rows=rows)), registry=REGISTRY)
    assert fingerprint(program) == fingerprint(same) != fingerprint(other)
    assert torch.equal(copy.deepcopy(program)(given), program(given))


@onnx
def test_an_onnx_file_names_the_files_of_its_weights(tmp_path):
    """Weights in a file of their own are part of the fingerprint, and asked for where they are missing."""
    import onnx

    weight = torch.arange(640.0).view(10, 64)
    model = onnx.load(linear_onnx(tmp_path / "m.onnx", weight))
    file = tmp_path / "parts.onnx"
    onnx.save(model, file, save_as_external_data=True, location="w.bin", size_threshold=0)
    one = fingerprint(load_model(str(file), registry=REGISTRY))
    (tmp_path / "w.bin").write_bytes(bytes((tmp_path / "w.bin").stat().st_size))
    assert fingerprint(load_model(str(file), registry=REGISTRY)) != one
    (tmp_path / "w.bin").unlink()
    with raises("missing-file", UserError, "w.bin is not beside it"):
        load_model(str(file), registry=REGISTRY)


@onnx
def test_an_onnx_file_is_attacked_from_its_answers_alone(tmp_path, capsys):
    start = load_model("builtin:digits-robust", registry=REGISTRY)
    data = load_images("builtin:digits", DataOptions(split="test"), n=12, registry=REGISTRY)
    some = torch.rand(400, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    weight = torch.linalg.lstsq(some.flatten(1), start(some).detach()).solution.T.contiguous()
    file = linear_onnx(tmp_path / "m.onnx", weight)
    right = float(((data.images.flatten(1) @ weight.T).argmax(dim=1) == data.labels).double().mean())
    words = ["eval", "--model", str(file), "--n", "12", "--eps", "0.1", "--class-names", "ignore"]
    assert main([*words, "--attacks", "fgsm", "--out", str(tmp_path / "white")]) == 2
    assert "gives no gradients" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "white").exists()
    assert main([*words, "--attacks", "square(queries=20)", "--out", str(tmp_path / "black"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["clean_accuracy"]["value"] == pytest.approx(right)
    assert record["attacks"][0]["backward_passes"] == 0
    assert record["robust_accuracy"]["value"] <= right


@pytest.mark.slow
def test_a_program_of_torch_export_has_gradients_and_is_opened_only_where_it_may_run_code(tmp_path):
    model = load_model("builtin:digits-robust", registry=REGISTRY)
    file = tmp_path / "model.pt2"
    save_program(model, images()[:2], file)
    with raises("refused-pickle", UserError, "--allow-pickle", "model.pt2"):
        load_model(str(file), registry=REGISTRY)
    program = load_model(str(file), registry=REGISTRY, allow_pickle=True)
    leaf, other = images().requires_grad_(True), images().requires_grad_(True)
    program(leaf).sum().backward()
    model(other).sum().backward()
    assert torch.allclose(leaf.grad, other.grad, atol=1e-6)


def test_a_pt2_archive_is_not_opened_unasked(tmp_path):
    (tmp_path / "model.pt2").write_bytes(b"PK")
    with raises("refused-pickle", UserError, "--allow-pickle"):
        load_model(str(tmp_path / "model.pt2"), registry=REGISTRY)


@pytest.mark.parametrize("suffix", [pytest.param("onnx", marks=onnx), "pt2"])
def test_a_file_that_is_no_program_is_said(tmp_path, suffix):
    file = tmp_path / f"model.{suffix}"
    file.write_bytes(b"nothing of the kind")
    with raises("damaged-checkpoint", UserError, f"model.{suffix}"):
        load_program(file, allow_pickle=True)


@pytest.mark.parametrize("n", [1, 4, 9])
def test_a_program_for_one_size_of_batch_is_asked_in_such_batches(n):
    sizes = []

    def run(part):
        sizes.append(len(part))
        return part.sum(dim=(1, 2, 3))[:, None]

    given = torch.rand(n, 1, 2, 2)
    assert torch.equal(in_batches(run, given, 4), run(given))
    assert set(sizes[:-1]) == {4}
