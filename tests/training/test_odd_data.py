"""Data that cannot be trained and tested on are refused before anything is trained, and odd ones that can be are trained on."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import robustdup
from robustdup.errors import UserError
from tests.raising import raises

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


def pixels(n, side=16, channels=3):
    return np.random.default_rng(0).integers(0, 256, (n, side, side, channels), dtype=np.uint8)


def folders(root, split, names, *, side=16, grey=False):
    """Write two images of each class."""
    for name in names:
        for i, image in enumerate(pixels(2, side)):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0] if grey else image).save(root / split / name / f"{i}.png")


def train(data, out, **settings):
    usual = {
        "model": "small-cnn",
        "objective": "standard",
        "epochs": 1,
        "batch_size": 8,
        "validation": 0,
        "device": "cpu",
    }
    return robustdup.train(data=str(data), out=out, **{**usual, **settings})


REFUSED = {
    "one class": (("bad-data", "at least two classes"), lambda root: (folders(root, "train", "a"), folders(root, "test", "a"))),
    "classes of other names": (
        ("model-and-data", "No class of", "(Cat, Dog) is trained on"),
        lambda root: (folders(root, "train", ["cat", "dog"]), folders(root, "test", ["Cat", "Dog"])),
    ),
    "test labels above those of training": (
        ("model-and-data", "go up to 3", "up to 1"),
        lambda root: np.savez(root / "a.npz", x_train=pixels(4), y_train=[0, 1] * 2, x_test=pixels(4), y_test=[0, 1, 2, 3]),
    ),
    "grey to train on, colour to test on": (
        ("model-and-data", "(3, 16, 16)", "(1, 16, 16)"),
        lambda root: (folders(root, "train", "ab", grey=True), folders(root, "test", "ab")),
    ),
    "test images of another size": (
        ("model-and-data", "(3, 10, 10)", "--resize"),
        lambda root: (folders(root, "train", "ab"), folders(root, "test", "ab", side=10)),
    ),
    "no test images": (("no-test-data", "has no split 'test'"), lambda root: folders(root, "train", "ab")),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_data_that_cannot_be_tested_on_are_refused_before_training(tmp_path, kind, monkeypatch):
    (code, *words), write = REFUSED[kind]
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")
    monkeypatch.setattr("robustdup.jobs.training.fit", lambda *_, **__: pytest.fail("it was trained"))
    with raises(code, UserError, *words):
        train(tmp_path / "data", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_images_in_a_larger_batch_and_validation_data_for_test_data(tmp_path):
    folders(tmp_path / "data", "train", "ab")
    folders(tmp_path / "data", "val", "ab")
    record = train(tmp_path / "data", tmp_path / "run", batch_size=128, n=2, evaluate="fgsm", eps="1/255")
    assert record.data.class_names == ["a", "b"]
    assert record.data.n_total == 4
