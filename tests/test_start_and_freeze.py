"""Training that starts from other weights: the same network, other classes, timm, the Hub; and parts that are not trained."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from robustdup.config import TrainConfig, build
from robustdup.errors import UserError
from robustdup.jobs import run_training
from robustdup.models.architectures import build_network
from robustdup.models.load import load_model
from robustdup.models.start import head_names, head_of, start_from
from robustdup.plugins import load_plugins
from robustdup.training.frozen import freeze
from robustdup.training.modes import inner_mode
from tests.networks import resnet
from tests.raising import raises

QUICK = (
    "model=small-cnn(width=4)", "epochs=null", "steps=3", "batch_size=32", "lr=0.01", "attack=pgd(steps=1)",
    "validation=20", "validation_attack=pgd(steps=1)", "evaluate=none",
)  # fmt: skip
REGISTRY = load_plugins()


def train(folder, *words):
    return run_training(build(TrainConfig, overrides=[*QUICK, *words]), folder=folder)


def network(classes=10, *, spec="small-cnn(width=4)", channels=1, size=8, seed=0):
    return build_network(
        spec, channels=channels, size=size, classes=classes, mean=(0.5,), std=(0.5,), seed=seed, registry=REGISTRY
    )


def weights_of(model, path, **metadata):
    save_file({name: value.clone() for name, value in model.state_dict().items()}, path)
    return path


def test_the_same_network_is_taken_whole_from_a_file_or_a_run(tmp_path):
    start, ours = network(seed=1), network()
    assert start_from(ours, str(weights_of(start, tmp_path / "w.safetensors")), classes=10, registry=REGISTRY) == []
    assert all(torch.equal(value, start.state_dict()[name]) for name, value in ours.state_dict().items())
    torch.save({"epoch": 3, "state_dict": {f"module.{n}": v for n, v in start.state_dict().items()}}, tmp_path / "w.pt")
    again = network()
    start_from(again, str(tmp_path / "w.pt"), classes=10, registry=REGISTRY)
    assert torch.equal(again.head.weight, start.head.weight)


def test_other_classes_get_a_new_head_and_the_rest_is_kept(tmp_path):
    start, ours, drawn = network(7, seed=1), network(), network()
    (note,) = start_from(ours, str(weights_of(start, tmp_path / "w.safetensors")), classes=10, registry=REGISTRY)
    assert "head" in note
    assert "7 classes" in note
    assert torch.equal(ours.head.weight, drawn.head.weight)  # as the seed of the run draws it
    body = {name: value for name, value in ours.state_dict().items() if not name.startswith("head.")}
    assert all(torch.equal(value, start.state_dict()[name]) for name, value in body.items())


def test_a_new_head_can_be_asked_for(tmp_path):
    start, ours, drawn = network(seed=1), network(), network()
    file = weights_of(start, tmp_path / "w.safetensors")
    (note,) = start_from(ours, str(file), classes=10, registry=REGISTRY, new_head=True)
    assert note == "The last layer (head.bias, head.weight) is new."
    assert torch.equal(ours.head.weight, drawn.head.weight)
    assert torch.equal(ours.body[0].weight, start.body[0].weight)


@pytest.mark.parametrize("change", ["wider", "deeper", "nothing"])
def test_weights_of_another_network_are_refused(tmp_path, change):
    start = {
        "wider": network(spec="small-cnn(width=6)"),
        "deeper": nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(4, 10)),
        "nothing": nn.Linear(2, 2),
    }[change]
    with raises("bad-weights", UserError, "another network", "w.safetensors"):
        start_from(network(), str(weights_of(start, tmp_path / "w.safetensors")), classes=10, registry=REGISTRY)


def test_timm_weights_with_other_classes_and_another_size(tmp_path):
    timm = pytest.importorskip("timm")
    net = timm.create_model("test_vit", num_classes=7, img_size=32)
    torch.save(net.state_dict(), tmp_path / "w.pt")
    ours = network(5, spec="timm:test_vit", channels=3, size=64)
    drawn = ours.net.head.weight.clone()
    spec = f"timm:test_vit(num_classes=7,img_size=32)@{tmp_path / 'w.pt'}"
    notes = start_from(ours, spec, classes=5, registry=REGISTRY)
    assert any("resampled to 4x4" in note for note in notes)
    assert any("7 classes" in note for note in notes)
    assert torch.equal(ours.net.blocks[0].attn.qkv.weight, net.blocks[0].attn.qkv.weight)
    assert torch.equal(ours.net.head.weight, drawn)
    assert ours(torch.rand(1, 3, 64, 64)).shape == (1, 5)


def test_a_network_of_the_hub_is_trained_with_other_classes_and_loaded_again(tmp_path):
    transformers = pytest.importorskip("transformers")
    settings = transformers.ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )
    start = transformers.ResNetForImageClassification(settings)
    start.save_pretrained(tmp_path / "hub")
    processor = {"image_processor_type": "ConvNextImageProcessor", "do_resize": False, "do_normalize": False}
    (tmp_path / "hub" / "preprocessor_config.json").write_text(json.dumps(processor))
    spec = f"hf:{tmp_path / 'hub'}"
    record = train(tmp_path / "run", f"model={spec}", f"init={spec}", "freeze=backbone")
    assert any("3 classes" in event for event in record.events)
    trained = load_model(f"run:{tmp_path / 'run'}@last", registry=REGISTRY)
    assert trained(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    ours, theirs = trained.model.state_dict(), start.state_dict()
    kept = [name for name in ours if not name.startswith("classifier.")]
    assert kept
    assert all(torch.equal(ours[name], theirs[name]) for name in kept)  # statistics of BatchNorm too


def test_parts_that_are_frozen_as_they_were_drawn_are_said_to_be(tmp_path):
    drawn = train(tmp_path / "drawn", "model=small-cnn(width=4)", "freeze=body")
    assert any("drawn at random" in event for event in drawn.events)


def test_a_run_trains_the_head_alone_and_says_so(tmp_path):
    record = train(
        tmp_path / "run", "init=builtin:digits-robust", "model=small-cnn(width=16)", "new_head=yes", "freeze=body"
    )
    start = load_model("builtin:digits-robust", registry=REGISTRY).state_dict()
    last = load_file(tmp_path / "run" / "last.safetensors")
    changed = [name for name, value in last.items() if not torch.equal(value, start[name])]
    assert sorted(changed) == ["head.bias", "head.weight"]
    assert any("5,130 of" in event and "frozen: body" in event for event in record.events)


def test_frozen_layers_stay_in_eval_mode_while_others_train():
    model = resnet(4)
    model.train()
    frozen = freeze(model, "backbone", head_of(model, 10))
    for module in frozen:
        module.eval()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert {name for name, value in model.named_parameters() if value.requires_grad} == head_names(model, 10)
    with inner_mode(model, "train"):
        assert not any(norm.training for norm in norms)  # the inner attack sees what is trained on


def test_names_and_patterns_of_frozen_parts():
    model = network()
    freeze(model, "body.0, body.4.weight", None)
    assert {name for name, value in model.named_parameters() if not value.requires_grad} == {
        "body.0.weight", "body.0.bias", "body.4.weight",
    }  # fmt: skip
    other = network()
    assert len(freeze(other, "body.*", None)) == 7
    assert {name for name, value in other.named_parameters() if value.requires_grad} == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("words", "code", "names"),
    [
        (["freeze=bodi"], "unknown", ["body"]),
        (["freeze=body,head"], "bad-value", ["nothing to train"]),
        (["freeze=body", "swa=0.5"], "options-conflict", ["ema"]),
        (["new_head=yes"], "missing-option", ["init"]),
        (["init=nothing.pt"], "missing-file", ["There is no file 'nothing.pt'"]),
        (["init=there/nothing.safetensors#ema"], "missing-file", ["There is no file 'there/nothing.safetensors'"]),
        (["objective=n_fgsm", "steps_schedule=0:2,0.5:10"], "options-conflict", ["n_fgsm does not run"]),
        (["init=builtin:digits-robust"], "bad-weights", ["another network"]),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, words, code, names):
    folder = tmp_path / "run"
    with pytest.raises(UserError) as error:
        train(folder, *words)
    assert all(name in str(error.value) for name in names)
    assert error.value.code.startswith(code)
    assert not (folder / "record.json").exists()
