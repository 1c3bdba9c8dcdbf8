"""The shipped digits classifiers do what their recipe says, and the recipe makes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

import robustdup.models
from robustdup.data.digits import TRAIN_ROWS as DATA_TRAIN_ROWS
from robustdup.data.digits import load_builtin
from robustdup.data.options import DataOptions
from robustdup.models.digits_recipe import MEAN, STD, TRAIN_ROWS, pgd_examples, train, training_digits
from robustdup.models.load import load_model
from robustdup.registry import Registry


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The networks are too small to gain from threads, which cost much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model(name):
    registry = Registry()
    robustdup.models.register(registry)
    return load_model(f"builtin:{name}", registry=registry)


@pytest.fixture(scope="module")
def test_digits():
    digits = load_digits()
    return torch.from_numpy(digits.images[1297:]).float().unsqueeze(1) / 16, torch.from_numpy(digits.target[1297:])


def accuracy(network, images, labels):
    with torch.no_grad():
        return float((network(images).argmax(dim=1) == labels).double().mean())


def under_pgd(network, images, labels, eps):
    generator = torch.Generator().manual_seed(0)
    adv_images = pgd_examples(network, images, labels, eps, steps=20, generator=generator)
    assert (adv_images - images).abs().max() <= eps + 1e-6
    return accuracy(network, adv_images, labels)


def test_accuracies_stated_by_the_recipe(test_digits):
    standard, robust = model("digits-standard"), model("digits-robust")
    assert accuracy(standard, *test_digits) == pytest.approx(0.934, abs=0.004)
    assert accuracy(robust, *test_digits) == pytest.approx(0.966, abs=0.004)
    assert under_pgd(standard, *test_digits, 0.15) < 0.2  # without perturbation it stands at 0.93: PGD breaks it
    assert under_pgd(robust, *test_digits, 0.15) == pytest.approx(0.684, abs=0.02)
    assert under_pgd(robust, *test_digits, 0.4) < 0.05  # and enough eps breaks this one too


def test_the_training_split_alone_is_used():
    images, labels = training_digits()
    data = load_builtin("digits", DataOptions(split="train"))
    assert TRAIN_ROWS == DATA_TRAIN_ROWS == len(labels)
    assert torch.equal(images, data.images)
    assert torch.equal(labels, data.labels)
    assert (float(images.mean()), float(images.std())) == pytest.approx((MEAN[0], STD[0]), abs=1e-4)


def test_recipe_is_deterministic_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    one, two = (train(0.1, epochs=1, batch_size=256, steps=1).state_dict() for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_checkpoints_are_small_and_logits_have_ten_classes(test_digits):
    weights = Path(robustdup.models.__file__).parent / "weights"
    assert sum(file.stat().st_size for file in weights.iterdir()) < 2**20
    network = model("digits-robust")
    assert network(test_digits[0][:3]).shape == (3, 10)
    assert torch.equal(network.head(network.features(test_digits[0][:3])), network(test_digits[0][:3]))
