"""Another implementation of CROWN, with whole matrices, gives the same bounds."""

import pytest
import torch
from torch import nn

from benchmarks.tightness import dense_crown, dense_layers, measure
from robustdup.certification.crown import margins
from robustdup.certification.graph import read_network
from robustdup.certification.region import region_of
from robustdup.models.networks import SmallCNN
from robustdup.threat import ThreatModel


@pytest.mark.parametrize("eps", ["0.02", "0.1"])
def test_crown_is_as_tight_as_another_implementation(eps):
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(50, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)
    ).eval().requires_grad_(False)  # fmt: skip
    images, threat = torch.rand(4, 2, 5, 5), ThreatModel("Linf", eps)
    labels = model(images).argmax(1)
    least, _ = margins(read_network(model, images), region_of(images, threat), labels)
    radius = threat.radius + threat.tolerance
    flat = images.double().flatten(1).numpy()
    layers = dense_layers(list(model), (2, 5, 5))
    expected = [dense_crown(layers, x, int(y), radius) for x, y in zip(flat, labels, strict=True)]
    assert least.tolist() == pytest.approx(expected, abs=1e-4)


def test_convolutions_are_measured_too():
    torch.manual_seed(1)
    model = SmallCNN(channels=1, size=4, classes=3, width=2, mean=(0.5,), std=(0.25,)).eval().requires_grad_(False)
    images = torch.rand(3, 1, 4, 4)
    *rows, last = measure(model, images, model(images).argmax(1), "0.02")
    assert len({row["proven"] for row in rows}) == 1
    assert last["largest_difference"] < 1e-4
    assert 0 <= last["given_to_rounding"] < 0.05
