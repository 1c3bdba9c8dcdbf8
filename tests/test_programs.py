"""Networks as programs: loaded from files of ONNX and torch.export, and attacked from their answers alone."""

from __future__ import annotations

import copy
import importlib.util
import json

import pytest
import torch

from robustdup.cli.main import main
from robustdup.config import DataOptions
from robustdup.data.sources import load_images
from robustdup.errors import UserError
from robustdup.models.load import fingerprint, load_model
from robustdup.models.programs import in_batches, load_program
from robustdup.plugins import load_plugins
from tests.raising import raises

REGISTRY = load_plugins()
onnx = pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed")


def images():
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(3))


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
    said = capsys.readouterr().out
    record = json.loads(said)
    assert "The model gives no gradient: it was only copied." in said
    assert record["clean_accuracy"]["value"] == pytest.approx(right)
    assert record["attacks"][0]["backward_passes"] == 0
    assert record["robust_accuracy"]["value"] <= right


@pytest.mark.slow
def test_a_program_of_torch_export_has_gradients_and_is_opened_only_where_it_may_run_code(tmp_path):
    model = load_model("builtin:digits-robust", registry=REGISTRY)
    file = tmp_path / "model.pt2"
    any_size = ({0: torch.export.Dim("batch", min=1)},)
    torch.export.save(torch.export.export(model, (images()[:2],), dynamic_shapes=any_size), file)
    with raises("refused-pickle", UserError, "--allow-pickle", "model.pt2"):
        load_model(str(file), registry=REGISTRY)
    program = load_model(str(file), registry=REGISTRY, allow_pickle=True)
    leaf, other = images().requires_grad_(True), images().requires_grad_(True)
    program(leaf).sum().backward()
    model(other).sum().backward()
    assert torch.allclose(leaf.grad, other.grad, atol=1e-6)
    assert not any(part.training for part in program.modules())  # or an evaluation says that it came in training mode


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
