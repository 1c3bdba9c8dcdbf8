"""Loading models: built-in checkpoints, Python files with weights, transformers, and what is wrong with each."""

from __future__ import annotations

import re
import sys
import textwrap
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import robustdup.models
from robustdup import how_to_install
from robustdup.errors import Unavailable, UserError
from robustdup.models.load import count_parameters, fingerprint, load_model
from robustdup.plugins import Registry
from tests.raising import raises

MODEL = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(12, 3, dtype=torch.float64)
            self.drop = nn.Dropout()

        def forward(self, images):
            return self.layer(self.drop(images.flatten(1).to(self.layer.weight.dtype)))

    make_model = Net
    ready = Net()
    number = 3

    def make_text():
        return "a model"

    def fail():
        raise RuntimeError("no such luck")

    def needs(width):
        return Net()
"""


@pytest.fixture
def registry():
    registry = Registry()
    robustdup.models.register(registry)
    return registry


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_model.py"
    path.write_text(textwrap.dedent(MODEL))
    return path


def state(value=0.5):
    return {"layer.weight": torch.full((3, 12), value), "layer.bias": torch.arange(3.0)}


def test_file_with_weights(file, registry):
    save_file(state(), file.parent / "w.safetensors")
    model = load_model(f"{file}:make_model@{file.parent / 'w.safetensors'}", registry=registry)
    images = torch.ones(2, 3, 2, 2)
    assert model(images).tolist() == [[6, 7, 8]] * 2
    assert not any(module.training for module in model.modules())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in model.parameters())
    assert count_parameters(model) == 39
    for factory in ("Net", "ready"):
        assert isinstance(load_model(f"{file}:{factory}", registry=registry), nn.Module)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {"net": {"state_dict": s}}, lambda s: {"state_dict": {f"model._orig_mod.{k}": v for k, v in s.items()}},
    ],
)  # fmt: skip
def test_wrapped_checkpoints(file, registry, wrap):
    torch.save(wrap(state()), file.parent / "w.pt")
    model = load_model(f"{file}:Net@{file.parent / 'w.pt'}", registry=registry)
    assert torch.equal(model.layer.weight, state()["layer.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer.bias"), "1 keys are missing from it, the first is 'layer.bias'"),
        (lambda s: s.update(extra=torch.ones(1)), "1 keys are not in the model, the first is 'extra'"),
        (
            lambda s: s.update({"layer.bias": torch.ones(4)}),
            r"'layer.bias' has the shape \(4,\) in the file and \(3,\)",
        ),
    ],
)
def test_keys_that_do_not_fit(file, registry, change, message):
    content = state()
    change(content)
    save_file(content, file.parent / "w.safetensors")
    with pytest.raises(UserError, match=message):
        load_model(f"{file}:Net@{file.parent / 'w.safetensors'}", registry=registry)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_broken_checkpoints(file, registry, name):
    weights = file.parent / name
    spec = f"{file}:Net@{weights}"
    (save_file if name.endswith("safetensors") else torch.save)(state(), weights)
    whole = weights.read_bytes()
    for content, message in (
        (whole[: len(whole) // 2], "is not a whole checkpoint"), (b"", "is empty"),
        (b"\n<!DOCTYPE html><p>Quota exceeded", "is a web page"), (b"\x00garbage" * 50, "is not a (whole )?checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
    ):  # fmt: skip
        weights.write_bytes(content)
        with pytest.raises(UserError, match=message):
            load_model(spec, registry=registry)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickles_run_only_on_request(file, registry):
    spec = f"{file}:Net@{file.parent / 'w.pt'}"
    torch.save({"state_dict": state(), "extra": Bomb(str(file.parent / "ran"))}, file.parent / "w.pt")
    with raises("refused-pickle", UserError, "can run any code", "--allow-pickle"):
        load_model(spec, registry=registry)
    assert not (file.parent / "ran").exists()
    assert torch.equal(load_model(spec, registry=registry, allow_pickle=True).layer.bias, torch.arange(3.0))
    assert (file.parent / "ran").exists()


def test_checkpoint_without_weights(file, registry):
    torch.save({"epoch": 3}, file.parent / "w.pt")
    with raises("damaged-checkpoint", UserError):
        load_model(f"{file}:Net@{file.parent / 'w.pt'}", registry=registry)


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (":make_modle", "Did you mean 'make_text'|Did you mean 'make_model'"), (":make_text", "returned a str, not a torch"),
        (":fail", "failed with RuntimeError: no such luck"), (":needs", "needs the argument 'width'"),
        (":number", "is a int, not a function"), ("", "Write path/to/model.py:factory"), (":", "Write path/to/model.py:fac"),
        (":Net@nowhere.pt", "There is no weights file 'nowhere.pt'"),
    ],
)  # fmt: skip
def test_wrong_factories(file, registry, rest, message):
    with pytest.raises(UserError, match=message):
        load_model(f"{file}{rest}", registry=registry)


def test_wrong_files(tmp_path, registry):
    with raises("missing-file", UserError):
        load_model(f"{tmp_path / 'none.py'}:make", registry=registry)
    (tmp_path / "bad.py").write_text("import nothing_of_that_name")
    with raises("bad-file", UserError, "ModuleNotFoundError"):
        load_model(f"{tmp_path / 'bad.py'}:make", registry=registry)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("builtin:digits-robus", "Did you mean 'builtin:digits-robust'"), ("digits-robust", "'builtin:digits-robust'"),
        ("builtn:digits-standard", "Did you mean 'builtin:digits-standard'"), ("", r"path/to/model\.py:factory"),
        ("runs:folder", "builtin:…, hf:…, run:…, timm:… or"),
    ],
)  # fmt: skip
def test_wrong_specs(registry, spec, message):
    with pytest.raises(UserError, match=message):
        load_model(spec, registry=registry)


def test_a_plugins_model(registry):
    registry.add_model_source("mine", lambda rest, options: nn.BatchNorm2d(int(rest)).double())
    model = load_model("mine:3", registry=registry)
    assert not model.training
    assert model.weight.dtype == torch.float32
    registry.add_model_source("theirs", lambda rest, options: {"weights": 1})
    with raises("not-a-module", UserError, "dict"):
        load_model("theirs:x", registry=registry)


def test_fingerprint_covers_names_types_values_and_buffers():
    def net(value=1.0, running=0.0):
        module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        with torch.no_grad():
            for p in module.parameters():
                p.fill_(value)
            module[1].running_mean.fill_(running)
        return module

    base = fingerprint(net())
    assert base == fingerprint(net().eval())
    named = nn.Sequential()
    named.add_module("first", net()[0])
    named.add_module("1", net()[1])
    others = [fingerprint(m) for m in (net(1.0000001), net(running=1e-7), net().double(), named)]
    assert len({base, *others}) == 5


@pytest.fixture
def transformers(monkeypatch):
    """A stand-in with the two classes that are used: bytes are rescaled, then normalised by mean 0.5 and std 0.25."""
    calls, missing = [], []

    class Model(nn.Module):
        config = types.SimpleNamespace(num_channels=3)

        def forward(self, pixel_values):
            self.seen = pixel_values
            return types.SimpleNamespace(logits=pixel_values.mean(dim=(2, 3)))

    def auto(result):
        def from_pretrained(name, **options):
            calls.append(options)
            if name == "no/model":
                raise OSError("no/model is not a valid model identifier")
            return (result, {"missing_keys": missing}) if options.get("output_loading_info") else result

        return types.SimpleNamespace(from_pretrained=from_pretrained)

    processor = types.SimpleNamespace(
        do_normalize=True, image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.25, 0.25], do_rescale=True,
        rescale_factor=1 / 255, do_resize=True, size={"height": 6, "width": 4}, do_center_crop=False,
    )  # fmt: skip
    module = types.ModuleType("transformers")
    module.AutoModelForImageClassification, module.AutoImageProcessor = auto(Model()), auto(processor)
    monkeypatch.setitem(sys.modules, "transformers", module)
    return types.SimpleNamespace(processor=processor, calls=calls, missing=missing)


def test_transformers_model(registry, transformers):
    model = load_model("hf:some/model", registry=registry)
    images = torch.rand(2, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    logits = model(images)
    assert logits.shape == (2, 3)
    assert torch.allclose(model.model.seen, (images - 0.5) / 0.25, atol=1e-6)
    assert model(torch.rand(1, 3, 12, 12)).shape == (1, 3)
    assert model.model.seen.shape == (1, 3, 6, 4)
    assert all(options["trust_remote_code"] is False for options in transformers.calls)
    with raises("bad-model", UserError, "hf:no/model", "OSError"):
        load_model("hf:no/model", registry=registry)
    with raises("missing-file", UserError, "'./nowhere'"):
        load_model("hf:./nowhere", registry=registry)


def test_transformers_model_with_an_untrained_head(registry, transformers):
    transformers.missing.append("classifier.weight")
    with raises("missing-weights", UserError, "'classifier.weight'"):
        load_model("hf:some/model", registry=registry)


def test_transformers_rescaling_to_plus_minus_one(registry, transformers):
    transformers.processor.rescale_factor, transformers.processor.rescale_offset = 1 / 127.5, True
    transformers.processor.do_normalize = False
    model = load_model("hf:some/model", registry=registry)
    images = torch.rand(1, 3, 6, 4)
    model(images)
    assert torch.allclose(model.model.seen, images * 2 - 1, atol=1e-6)


def test_a_network_of_timm_with_weights_normalises_as_timm_says(registry, tmp_path):
    timm = pytest.importorskip("timm")
    net = timm.create_model("lcnet_035", num_classes=3).eval()
    torch.save({"state_dict": net.state_dict()}, tmp_path / "w.pth")
    model = load_model(f"timm:lcnet_035(num_classes=3)@{tmp_path / 'w.pth'}", registry=registry)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(net.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(model(images), net((images - mean) / std))
    with raises("unknown-network", UserError, "timm:lcnet_035"):
        load_model("timm:lcnet_03", registry=registry)


def test_a_timm_too_old_for_the_hub_that_is_there_is_said_to_be_so(registry, monkeypatch):
    timm = pytest.importorskip("timm")
    pytest.importorskip("huggingface_hub")

    def create(*args, **options):
        raise RuntimeError(
            "Hugging Face hub model specified but package not installed. Run `pip install huggingface_hub`."
        )

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(Unavailable, match="pip install -U timm"):
        load_model("timm:lcnet_035", registry=registry)


@pytest.mark.parametrize(
    ("file", "spec"),
    [("network.json", "run:{}"), ("modeling.py", "{}/modeling.py:load"), ("model.onnx", "{}/model.onnx")],
)
def test_a_folder_with_a_network_is_told_how_to_be_named(registry, tmp_path, file, spec):
    (tmp_path / file).write_text("")
    with raises("no-network", UserError, spec.format(tmp_path)):
        load_model(str(tmp_path), registry=registry)


@pytest.mark.parametrize("spec", ["nothing.pt", "there/nothing.onnx", "nothing.safetensors#ema"])
def test_a_file_that_is_not_there_is_said_to_be_missing(registry, spec):
    with raises("missing-file", UserError, f"There is no file '{spec.removesuffix('#ema')}'"):
        load_model(spec, registry=registry)


def test_a_torchscript_file_is_a_model_and_weights_alone_are_not(registry, tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    images = torch.rand(2, 3, 2, 2)
    torch.jit.trace(net, images).save(str(tmp_path / "script.pt"))
    torch.testing.assert_close(load_model(str(tmp_path / "script.pt"), registry=registry)(images), net(images))
    torch.save(net.state_dict(), tmp_path / "w.pt")
    with raises("no-network", UserError, "model.py:factory@"):
        load_model(str(tmp_path / "w.pt"), registry=registry)


def test_transformers_not_installed(registry, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(Unavailable, match=re.escape(how_to_install("robustdup[hf]"))):
        load_model("hf:some/model", registry=registry)


def test_a_model_whose_weights_have_no_values_is_named(tmp_path):
    file = tmp_path / "bare.py"
    file.write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10, device='meta'))\n"
    )
    with raises("no-values", ValueError, "on torch's device 'meta'"):
        robustdup.load_model(f"{file}:make")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, device="meta"))
    with raises("no-values", ValueError, "load them first"):
        robustdup.evaluate(model, torch.rand(2, 1, 8, 8), torch.tensor([0, 1]), eps="0.1", attacks="fast", device="cpu")
