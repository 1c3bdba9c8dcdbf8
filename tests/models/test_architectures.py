"""Networks to train: published sizes, any image size, features and head, folding, seeds, and what is said of wrong specs."""

from __future__ import annotations

import re
import sys

import pytest
import torch
from torch import nn
from torchvision.models import resnet18 as torchvision_resnet18

import robustdup.models
from robustdup import how_to_install
from robustdup.errors import Unavailable, UserError
from robustdup.models.architectures import build_network
from robustdup.models.attack_copy.fold import fold_batchnorm
from robustdup.models.load import count_parameters
from robustdup.models.networks import digits_classifier
from robustdup.plugins import Registry
from tests.raising import raises

NATIVE = Registry()
robustdup.models.register(NATIVE)
NAMES = list(NATIVE.architectures)


@pytest.fixture
def build():
    def build(spec, *, channels=3, size=32, classes=10, mean=(0.5,), std=(0.25,), seed=0):
        return build_network(
            spec, channels=channels, size=size, classes=classes, mean=mean, std=std, seed=seed, registry=NATIVE
        )

    return build


def quick(name):
    """The smallest form of an architecture."""
    return "wide-resnet(depth=10,width=1)" if name == "wide-resnet" else name


@pytest.mark.parametrize(
    ("spec", "parameters"),
    [
        # 11.17 M: https://github.com/kuangliu/pytorch-cifar; here with the last BatchNorm of arXiv 1603.05027 (2 x 512).
        ("preact-resnet18", 11_171_146 + 1024),
        ("resnet18", 11_173_962),  # https://github.com/kuangliu/pytorch-cifar
        ("wide-resnet", 36_479_194),  # 36.5 M: table 4 of arXiv 1605.07146, as the next
        ("wide-resnet(depth=40,width=4)", 8_949_210),  # 8.9 M
    ],
)
def test_published_numbers_of_parameters(build, spec, parameters):
    with torch.device("meta"):
        network = build(spec)
    assert count_parameters(network) == parameters


def test_large_images_get_the_stem_of_imagenet(build):
    ours, theirs = build("resnet18", size=224, classes=1000), torchvision_resnet18()
    assert count_parameters(ours) == count_parameters(theirs) == 11_689_512
    # The same layers in the same order: with equal weights the logits are equal.
    state = dict(ours.state_dict())
    names = [name for name in ours.state_dict() if not name.startswith("normalise")]
    for name, value in zip(names, theirs.state_dict().values(), strict=True):
        assert state[name].shape == value.shape
        state[name] = value
    ours.load_state_dict(state)
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(ours.eval()(images), theirs.eval()((images - 0.5) / 0.25), atol=1e-4)


def test_small_resnet_is_small(build):
    assert count_parameters(build("small-resnet")) == 285_890
    assert count_parameters(build("small-resnet", classes=100)) <= 500_000
    assert count_parameters(build("small-resnet(width=16,blocks=2)")) < count_parameters(
        build("small-resnet(blocks=2)")
    )


def test_small_cnn_takes_the_shipped_weights(build):
    network, shipped = build("small-cnn", channels=1, size=8), digits_classifier()
    assert {k: v.shape for k, v in network.state_dict().items()} == {
        k: v.shape for k, v in shipped.state_dict().items()
    }
    source = NATIVE.models["builtin"].load("digits-robust", None)
    network.load_state_dict(source.state_dict())
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(network(images), source(images))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 8, 10), (3, 32, 2), (4, (9, 30), 7), (3, (100, 70), 5)])
def test_any_image_and_folding(build, name, channels, size, classes):
    network = build(
        quick(name), channels=channels, size=size, classes=classes, mean=[0.4] * channels, std=[0.3] * channels
    )
    assert network.training
    for module in network.modules():  # statistics of a network that has been trained
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    network.eval()
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.rand(3, channels, height, width)
    with torch.no_grad():
        logits, features = network(images), network.features(images)
        assert logits.shape == (3, classes)
        assert features.ndim == 2
        assert torch.equal(network.head(features), logits)
        folded, layers = fold_batchnorm(network)
        assert torch.allclose(folded(images), logits, atol=1e-4)
    norms = sum(isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) for module in network.modules())
    if name in ("resnet18", "small-resnet"):
        assert layers == norms
    assert (layers > 0) == (norms > 0)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_weight_and_the_images(build, name):
    network = build(quick(name), size=16)
    images = torch.rand(4, 3, 16, 16, requires_grad=True)
    network(images).square().sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_seeds_decide_weights_and_the_global_generator_is_left_alone(build):
    before = torch.get_rng_state()
    one, two, other = build("small-resnet", seed=1), build("small-resnet", seed=1), build("small-resnet", seed=2)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    again = build("small-resnet", seed=1)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
        assert torch.equal(value, again.state_dict()[name])
    assert not torch.equal(one.head.weight, other.head.weight)


def test_convolutions_start_as_he_et_al_draw_them(build):
    conv = build("preact-resnet18").body[1].conv2
    assert float(conv.weight.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


def test_normalisation_is_inside(build):
    network = build("wide-resnet(depth=10,width=1)", mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])
    assert network.normalise.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert network.normalise.std.flatten().tolist() == pytest.approx([0.5, 0.6, 0.7])


def test_options(build):
    silu = build("preact-resnet18(activation=silu)", size=8)
    assert any(isinstance(module, nn.SiLU) for module in silu.modules())
    assert not any(isinstance(module, nn.ReLU) for module in silu.modules())
    dropout = build("wide-resnet(depth=10,width=1,dropout=0.3)", size=8)
    assert [m.p for m in dropout.modules() if isinstance(m, nn.Dropout)] == [0.3] * 3
    images = torch.rand(2, 3, 8, 8)
    assert not torch.equal(dropout(images), dropout(images))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("preact-resnet-18", "Unknown architecture 'preact-resnet-18'. Did you mean 'preact-resnet18'"),
        ("wide-resnet(depht=28)", "Unknown option of architecture 'wide-resnet': 'depht'. Did you mean 'depth'"),
        ("wide-resnet(depth=27)", "depth of wide-resnet is 6 n \\+ 4: .*; got 27"),
        ("wide-resnet(dropout=1.0)", r"dropout in \[0, 1\)"), ("small-resnet(width=0)", "width and blocks from 1"),
        ("resnet18(activation=gelu)", "Allowed: relu, silu"), ("wide-resnet(width=wide)", "must be a whole number"),
        ("", "Give one architecture"), ("resnet18,small-cnn", "Give one architecture"),
    ],
)  # fmt: skip
def test_wrong_specs(build, spec, message):
    with pytest.raises(UserError, match=message):
        build(spec)


def test_wrong_data(build):
    with raises("bad-data", UserError, "3 channels", "32x32", "1 classes"):
        build("small-cnn", classes=1)
    with raises("bad-value", UserError, "mean", "3", "[0.1, 0.2]"):
        build("small-cnn", mean=[0.1, 0.2])
    with raises("bad-value", UserError, "std", "positive"):
        build("small-cnn", std=[0.0])


FILE = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

def frozen():
    net = make()
    net[1].eval()
    return net
"""


def test_networks_from_a_file(build, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    one, two = build(f"{file}:make", seed=4), build(f"{file}:make", seed=4)
    assert all(torch.equal(one.state_dict()[name], value) for name, value in two.state_dict().items())
    assert one.training
    assert one[1].num_batches_tracked == 0
    frozen = build(f"{file}:frozen")
    assert frozen.training
    assert not frozen[1].training
    with raises("model-and-data", UserError, "7 classes", "torch.Size([2, 10])"):
        build(f"{file}:make", classes=7)
    with raises("model-and-data", UserError, "1x32x32", "RuntimeError"):
        build(f"{file}:make", channels=1)
    with raises("unknown-model-factory", UserError, "'make'"):
        build(f"{file}:mak")


def test_an_architecture_of_a_plugin(build):
    def build_mine(*, channels, size, classes, mean, std, width=3):
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * size[0] * size[1], width), nn.Linear(width, classes))

    NATIVE.add_architecture("mine:net", build_mine)
    try:
        assert build("mine:net(width=5)", size=(4, 6))[1].weight.shape == (5, 72)
        with raises("unknown-option", UserError, "'width'"):
            build("mine:net(widht=5)")
    finally:
        del NATIVE.architectures["mine:net"]


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 32), ("vit_tiny_patch16_224(drop_path_rate=0.1)", 48), ("convnext_atto", (64, 32))]
)
def test_timm(build, name, size):
    pytest.importorskip("timm")
    network = build(f"timm:{name}", size=size, classes=7, seed=3)
    again = build(f"timm:{name}", size=size, classes=7, seed=3)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in network.state_dict().items())
    images = torch.rand(2, 3, *((size, size) if isinstance(size, int) else size))
    network.eval()
    with torch.no_grad():
        logits = network(images)
        assert logits.shape == (2, 7)
        assert torch.allclose(network.head(network.features(images)), logits, atol=1e-6)
        assert torch.equal(network.net((images - 0.5) / 0.25), logits)
    assert any(type(module).__name__ == "DropPath" for module in network.modules()) == ("drop_path" in name)


def test_timm_errors(build, monkeypatch):
    pytest.importorskip("timm")
    with raises("unknown-network", UserError, "'resnet19'", "timm:resnet"):
        build("timm:resnet19")
    with raises("bad-option", UserError, "32x32", "drop_paths"):
        build("timm:convnext_atto(drop_paths=0.1)")
    with raises("bad-option", UserError, "pretrained"):
        build("timm:resnet18(pretrained=true)")
    with raises("model-and-data", UserError, "vit_tiny_patch16_224", "3x8x8"):
        build("timm:vit_tiny_patch16_224", size=8)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(Unavailable, match=r"needs timm.*" + re.escape(how_to_install("robustdup[timm]"))):
        build("timm:resnet18")
