"""The networks of arXiv 2504.00638: their numbers of parameters, any image size, and folding."""

import pytest
import torch
from robustdup_study.paper_2504_00638 import register
from torch import nn

from robustdup.errors import UserError
from robustdup.models.architectures import build_network
from robustdup.models.attack_copy.fold import fold_batchnorm
from robustdup.models.load import count_parameters
from robustdup.plugins import Registry

NAMES = ["paper-standard", "paper-robust"]


@pytest.fixture(scope="module")
def registry():
    registry = Registry()
    register(registry)
    return registry


@pytest.fixture
def build(registry):
    def build(spec, *, channels=3, size=32, classes=10, mean=(0.5,), std=(0.25,)):
        settings = {"channels": channels, "size": size, "classes": classes, "mean": mean, "std": std}
        return build_network(spec, **settings, seed=0, registry=registry)

    return build


@pytest.mark.parametrize(
    ("spec", "parameters"),
    [
        # Counted by hand: weights and biases of both convolutions, the hidden layer and the head.
        ("paper-standard", 448 + 4_640 + 262_272 + 1_290),
        ("paper-robust", 896 + 18_496 + 1_048_832 + 2_570),
    ],
)
def test_numbers_of_parameters(build, spec, parameters):
    with torch.device("meta"):
        network = build(spec)
    assert count_parameters(network) == parameters


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 8, 10), (3, 32, 2), (4, (9, 30), 7), (3, (100, 70), 5)])
def test_any_image(build, name, channels, size, classes):
    network = build(name, channels=channels, size=size, classes=classes, mean=[0.4] * channels, std=[0.3] * channels)
    assert network.training
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.rand(3, channels, height, width)
    with torch.no_grad():
        logits, features = network.eval()(images), network.features(images)
        assert logits.shape == (3, classes)
        assert torch.equal(network.head(features), logits)
        folded, layers = fold_batchnorm(network)
        assert torch.allclose(folded(images), logits, atol=1e-4)
    assert layers == 0


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_weight_and_the_images(build, name):
    images = torch.rand(4, 3, 16, 16, requires_grad=True)
    network = build(name, size=16)
    network(images).square().sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_normalisation_dropout_and_small_images(build):
    network = build("paper-robust", mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])
    assert network.normalise(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2)).unique().tolist() == [-1, 1]
    assert [m.p for m in build("paper-standard").modules() if isinstance(m, nn.Dropout)] == [0.5]
    with pytest.raises(UserError, match="need images of 4x4 pixels or more, got 3x32"):
        build("paper-standard", size=(3, 32))
