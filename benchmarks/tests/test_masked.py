"""The masks hide gradients without changing answers, and come as model specs."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import benchmarks.masked
from benchmarks.masked import AFTER, BEFORE, MASKS, masked, stand_in
from robustdup.attacks.losses import cw, dlr
from robustdup.attacks.passes import Passes
from robustdup.attacks.pgd import pgd
from robustdup.config import DataOptions
from robustdup.data.digits import load_builtin
from robustdup.errors import UserError
from robustdup.models.load import load_model
from robustdup.plugins import load_plugins
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel
from tests.raising import raises


@pytest.fixture(scope="module")
def digits():
    registry = load_plugins()
    data = load_builtin("digits", DataOptions(split="test"))
    return load_model("builtin:digits-robust", registry=registry).eval(), data.images[:200], data.labels[:200]


def gradients(network, images, labels, loss=None):
    images = images.detach().requires_grad_(True)
    values = (
        F.cross_entropy(network(images), labels, reduction="none") if loss is None else loss(network(images), labels)
    )
    return torch.autograd.grad(values.sum(), images)[0]


def predictions(network, images):
    with torch.no_grad():
        return network(images).argmax(dim=1)


@pytest.mark.parametrize("name", MASKS)
def test_masks_keep_the_predictions_and_the_wrapped_model(name, digits):
    network, images, _ = digits
    state = copy.deepcopy(network.state_dict())
    wrapped = masked(name, network)
    same = (predictions(wrapped, images) == predictions(network, images)).double().mean()
    assert same == 1 if name in ("scaled", "clipped", "quantised", "thermometer") else same >= 0.98
    assert torch.equal(predictions(wrapped, images), predictions(wrapped, images))
    assert torch.equal(predictions(stand_in(name, network), images), predictions(wrapped, images))
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert wrapped.model is network


# How each mask hides the gradient of the cross-entropy, at images with some noise that are still classified rightly.
# zero rows: share of rows without any gradient; agree: share of pixels with a gradient whose sign is the unmasked one's.
def hidden(name, digits, loss=None):
    network, images, labels = digits
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    noisy = (images + 0.2 * noise).abs().clamp(max=0.99)  # away from 0 and 1, where pixels stand in line
    right = (predictions(network, noisy) == labels) & (predictions(masked(name, network), noisy) == labels)
    noisy, labels = noisy[right], labels[right]
    honest, seen = gradients(network, noisy, labels, loss), gradients(masked(name, network), noisy, labels, loss)
    zero_rows = (seen.flatten(1) == 0).all(dim=1).double().mean()
    zero_pixels = (seen == 0).double().mean()
    agree = ((seen.sign() == honest.sign()) & (seen != 0)).double().sum() / (seen != 0).sum().clamp(min=1)
    return float(zero_rows), float(zero_pixels), float(agree)


def test_scaled_underflows_in_the_cross_entropy_alone(digits):
    assert hidden("scaled", digits)[0] > 0.9
    zero_rows, _, agree = hidden("scaled", digits, dlr)
    assert zero_rows == 0
    assert agree > 0.99


def test_quantised_has_no_gradient_for_any_loss(digits):
    assert hidden("quantised", digits)[0] == 1
    assert hidden("quantised", digits, cw)[0] == 1


def test_clipped_is_flat_for_any_loss(digits):
    assert hidden("clipped", digits)[0] > 0.8
    assert hidden("clipped", digits, cw)[0] > 0.8


def test_thermometer_shows_a_gradient_at_few_pixels(digits):
    zero_rows, zero_pixels, agree = hidden("thermometer", digits)
    assert zero_rows < 0.2
    assert zero_pixels > 0.8
    assert agree > 0.9  # where there is one it is right: what is hidden is the rest


def test_shattered_points_the_wrong_way_nearly_half_of_the_time(digits):
    for loss in (None, cw):
        zero_rows, zero_pixels, agree = hidden("shattered", digits, loss)
        assert zero_rows == 0
        assert zero_pixels < 0.2
        assert 0.4 < agree < 0.6


def test_no_mask_agrees_with_itself_so_that_the_measure_can_fail(digits, monkeypatch):
    monkeypatch.setitem(AFTER, "scaled", nn.Identity)
    zero_rows, _, agree = hidden("scaled", digits)
    assert zero_rows == 0
    assert agree == 1


@pytest.mark.parametrize("name", MASKS)
def test_pgd_is_fooled_by_the_mask_and_the_stand_in_undoes_it(name, digits):
    network, images, labels = digits
    threat = ThreatModel("Linf", "0.2")

    def survivors(attacked):
        judged = masked(name, network)
        rng = SampleRng(0, torch.arange(len(labels)))
        adv_images = pgd(Passes(attacked, 64), images, labels, threat, rng=rng, steps=10)
        return float((predictions(judged, adv_images) == labels).double().mean())

    behind, honest = survivors(masked(name, network)), survivors(stand_in(name, network))
    assert behind > honest + 0.15  # the mask makes the network look more robust than it is


@pytest.mark.parametrize("name", BEFORE)
def test_masks_of_images_stay_near_them(name):
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (BEFORE[name]()(images) - images).abs().max() <= 0.5 / 16 + 1e-6


def test_specs_and_the_nearest_name(digits):
    network, images, _ = digits
    assert set(MASKS) == set(BEFORE) | set(AFTER)
    registry = load_plugins([benchmarks.masked.__file__])
    behind = load_model("masked:quantised/builtin:digits-robust", registry=registry).eval()
    assert torch.equal(predictions(behind, images), predictions(masked("quantised", network), images))
    known = load_model("unmasked:scaled/builtin:digits-robust", registry=registry).eval()
    with torch.no_grad():
        assert torch.equal(known(images), network(images))
    with raises("unknown-mask", UserError, "quantised"):
        masked("quantized", network)
    with raises("user-error", UserError, "masked:MASK/MODEL"):
        load_model("masked:quantised", registry=registry)
