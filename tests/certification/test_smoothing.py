"""Randomised smoothing on a linear model, where the radius has a closed form, and its bad inputs."""

import pytest
import torch
from torch import nn

import robustdup
from robustdup.certification.smoothing import certify_smoothed
from robustdup.errors import UserError
from robustdup.rng import SampleRng
from tests.raising import raises


def linear(bias=0.0):
    """Two classes, told by one pixel: the distance to the boundary is |pixel - 0.5|."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).requires_grad_(False)
    model[1].weight.copy_(torch.tensor([[-1.0, 0, 0, 0], [1.0, 0, 0, 0]]))
    model[1].bias.copy_(torch.tensor([0.5, -0.5]))
    return model


def test_the_radius_is_the_closed_form_within_its_confidence():
    pixels = torch.tensor([0.1, 0.3, 0.45, 0.55, 0.8, 0.95])
    images = torch.rand(6, 1, 2, 2)
    images[:, 0, 0, 0] = pixels
    true = (pixels - 0.5).abs().double()
    found = certify_smoothed(linear(), images, SampleRng(0, torch.arange(6)), sigma=0.25, draws=2000)
    assert (found.radii <= true).all()  # each wrong with probability 0.001
    certified = found.predictions >= 0
    assert (found.predictions[certified] == (pixels > 0.5)[certified].long()).all()
    assert (found.radii >= true - 0.09)[certified & (true < 0.5)].all()
    assert certified[[0, 1, 4, 5]].all()


def test_samples_have_their_own_noise():
    images = torch.rand(3, 1, 2, 2)
    whole = certify_smoothed(linear(), images, SampleRng(1, torch.arange(3)), sigma=0.3, draws=100, first_draws=20)
    last = certify_smoothed(linear(), images[2:], SampleRng(1, torch.tensor([2])), sigma=0.3, draws=100, first_draws=20)
    assert float(whole.radii[2]) == float(last.radii[0])


def test_from_python_and_bad_input():
    images, labels = torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])
    images[:, 0, 0, 0] = torch.tensor([0.1, 0.9, 0.9])
    result = robustdup.certify(linear(), images, labels, eps=0.2, norm="L2", method="smoothing", sigma=0.2, draws=500)
    assert result.certified.tolist() == [True, True, False]
    assert "confidence 0.999" in str(result)
    with raises("bad-option", UserError, "L2"):
        robustdup.certify(linear(), images, labels, eps=0.2, method="smoothing")
    with raises("bad-option", UserError, "'magic'"):
        robustdup.certify(linear(), images, labels, eps=0.2, method="magic")
    for keys in ({"sigma": 0}, {"alpha": 1}, {"draws": 0}):
        with raises("bad-value", UserError):
            robustdup.certify(linear(), images, labels, eps=0.2, norm="L2", method="smoothing", **keys)


@pytest.mark.parametrize(
    "words",
    [
        ["--n", "4", "--eps", "8/255"],
        ["--n", "2", "--smoothing", "0.1", "--norm", "L2", "--eps", "0.1", "--draws", "50"],
    ],
)
def test_the_command(words, capsys):
    import json

    from robustdup.cli.main import main

    assert main(["certify", "--model", "builtin:digits-robust", *words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n"] == len(result["samples"]) == int(words[1])
    assert result["certified_accuracy"]["value"] <= 1
    assert main(["certify", "--model", "builtin:digits-robust", *words]) == 0
    assert "certified" in capsys.readouterr().out


@pytest.mark.parametrize("method", [{"method": "smoothing", "norm": "L2", "draws": 20}, {}])
def test_the_given_model_keeps_its_mode(method):
    model = linear().train()
    model[1].requires_grad_(True)
    robustdup.certify(model, (torch.rand(2, 1, 2, 2), torch.tensor([0, 1])), eps="0.1", **method)
    assert all(module.training for module in model.modules())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
