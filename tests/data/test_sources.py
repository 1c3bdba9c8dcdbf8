"""Built-in digits, choosing rows, hashes and fingerprints, tensors from Python, and plugin sources."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import robustdup.data
from robustdup.config import DataOptions
from robustdup.data.dataset import fingerprint, from_tensors, image_hashes
from robustdup.data.selection import select
from robustdup.data.sources import load_images
from robustdup.errors import UserError
from robustdup.plugins import Registry
from tests.raising import raises


@pytest.fixture
def registry():
    registry = Registry()
    robustdup.data.register(registry)
    return registry


def test_digits_are_scikit_learns(registry):
    test, train = (load_images("builtin:digits", DataOptions(split=s), registry=registry) for s in ("test", "train"))
    assert (len(train), len(test), test.n_total, test.selection) == (1297, 500, 500, "all")
    both, digits = torch.cat([train.images, test.images]), load_digits()
    assert torch.equal(both[:, 0] * 16, torch.from_numpy(digits.images).float())
    assert torch.cat([train.labels, test.labels]).tolist() == digits.target.tolist()
    assert (test.images.dtype, test.labels.dtype, test.index.dtype) == (torch.float32, torch.int64, torch.int64)
    assert test.index.tolist() == list(range(500))
    assert test.class_names == list("0123456789")
    assert test.fingerprint == "a0ad776b95fbeb0122637be656bb35f170efddf6cc6d8f1f452e76f6f51d4f2f"


def test_digits_resized(registry):
    data = load_images("builtin:digits", DataOptions(resize=16, crop=12), n=3, registry=registry)
    assert data.images.shape == (3, 1, 12, 12)
    with raises("bad-option", UserError, "crop = 9"):
        load_images("builtin:digits", DataOptions(crop=9), registry=registry)


def test_first_and_sample(registry):
    first = load_images("builtin:digits", n=7, registry=registry)
    assert (first.index.tolist(), first.selection) == (list(range(7)), "first")
    whole = load_images("builtin:digits", registry=registry)
    sample = load_images("builtin:digits", sample=40, seed=3, registry=registry)
    rows = sample.index
    assert sample.selection == "sample"
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == 40
    assert torch.equal(sample.images, whole.images[rows])
    assert sample.hashes == [whole.hashes[row] for row in rows]
    assert torch.equal(rows, select(500, sample=40, seed=3)[0])
    assert not torch.equal(rows, select(500, sample=40, seed=4)[0])
    assert set(select(500, sample=20, seed=3)[0].tolist()) < set(rows.tolist())  # a larger sample extends a smaller one


def test_samples_are_uniform():
    counts = torch.zeros(20)
    for seed in range(500):
        counts[select(20, sample=5, seed=seed)[0]] += 1
    chi_square = ((counts - 125).square() / 125).sum() / (1 - 5 / 20)
    assert chi_square < 43.8  # 0.1% point of chi-square with 19 degrees


@pytest.mark.parametrize(
    ("wanted", "code", "named"),
    [
        ({"n": 3, "sample": 3}, "bad-option", ("n = 3", "sample = 3")),
        ({"n": 501}, "bad-value", ("n = 501", "builtin:digits (test)", "500 rows")),
        ({"sample": 501}, "bad-value", ("sample = 501",)),
        ({"n": 0}, "bad-value", ("at least 1, got 0",)),
        ({"sample": -1}, "bad-value", ("at least 1, got -1",)),
    ],
)
def test_wrong_numbers_of_samples(registry, wanted, code, named):
    with raises(code, UserError, *named):
        load_images("builtin:digits", registry=registry, **wanted)


@pytest.mark.parametrize(
    ("spec", "options", "code", "named"),
    [
        ("builtin:digit", {}, "unknown-built-in-data", "Did you mean 'builtin:digits'"),
        ("builtn:digits", {}, "unknown-data", "Did you mean 'builtin:digits'"),
        ("builtin:digits", {"split": "tests"}, "unknown-split", "Did you mean 'test'"),
        ("builtin:digits", {"config": "x"}, "bad-option", "'x'"),
        ("./no/such/folder", {}, "unknown-data", "'./no/such/folder'"),
        ("", {}, "unknown-data", "''"),
        ("a/b/c", {}, "unknown-data", "'a/b/c'"),
    ],
)
def test_wrong_specs(registry, spec, options, code, named):
    with raises(code, UserError, named):
        load_images(spec, DataOptions(**options), registry=registry)


def test_hashes_of_8_bit_and_float_images():
    levels = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2) * 20
    images = levels.float() / 255
    raw = levels[0].permute(1, 2, 0).contiguous().numpy().tobytes()
    assert image_hashes(images) == [hashlib.sha256(b"2x2x3" + raw).hexdigest()]
    assert image_hashes(images + 2e-7) == image_hashes(images)  # within 1e-4 of a level
    grid = torch.full((1, 1, 2, 1), 0.3)
    raw = np.full(2, 0.3, dtype="<f4").tobytes()
    assert image_hashes(grid) == [hashlib.sha256(b"2x1x1:float32" + raw).hexdigest()]


def test_fingerprint_covers_pixels_labels_and_order():
    images, labels = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    changed = images.clone()
    changed[2, 0, 3, 3] = 1 - changed[2, 0, 3, 3]
    order = torch.tensor([1, 0, 2])
    prints = [
        fingerprint(images, labels), fingerprint(changed, labels), fingerprint(images, torch.tensor([0, 1, 1])),
        fingerprint(images[order], labels[order]), fingerprint(images[:2], labels[:2]),
    ]  # fmt: skip
    assert len(set(prints)) == 5
    assert from_tensors(images, labels).fingerprint == prints[0]


def test_tensors_of_any_float_and_integer_type():
    images = np.linspace(0, 1, 32).reshape(2, 1, 4, 4)
    data = from_tensors(images, np.array([1, 0], dtype=np.int32), class_names=["a", "b"])
    assert (data.images.dtype, data.labels.dtype, data.selection, data.n_total) == (
        torch.float32,
        torch.int64,
        "given",
        2,
    )
    assert torch.equal(data.images, torch.from_numpy(images).float())
    given = from_tensors(images, [1, 0], index=torch.tensor([9, 4]))
    assert given.index.tolist() == [9, 4]


IMAGES, LABELS = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("images", "labels", "code", "named"),
    [
        (IMAGES * 255, LABELS, "bad-images", ("from 127.5 to 127.5", "images / 255")),
        (IMAGES - 1, LABELS, "bad-images", ("from -0.5 to -0.5", "normalisation")),
        ((IMAGES * 255).to(torch.uint8), LABELS, "bad-images", ("uint8", "images.float() / 255")),
        (IMAGES[:, 0], LABELS, "bad-images", ("(N, C, H, W)", "(2, 4, 4)")),
        (IMAGES / 0 * 0, LABELS, "bad-images", ("2 images", "number 0")),
        (IMAGES[:0], LABELS[:0], "bad-images", ("(0, 1, 4, 4)",)),
        (IMAGES, LABELS[:1], "bad-labels", ("2 images but 1 labels",)),
        (IMAGES, LABELS.float(), "bad-labels", ("float32",)),
        (IMAGES, torch.eye(2).long(), "bad-labels", ("one-hot",)),
        (IMAGES, LABELS - 1, "bad-labels", ("-1",)),
        (IMAGES, LABELS + 1, "bad-labels", ("2; got 2",)),
        ("images", LABELS, "bad-value", ("got a str",)),
    ],
)
def test_wrong_tensors(images, labels, code, named):
    with raises(code, UserError, *named):
        from_tensors(images, labels, class_names=["a", "b"])


def test_a_plugins_source(registry):
    class Rows:
        class_names = ("dark", "light")

        def __len__(self):
            return 10

        def fetch(self, rows):
            return torch.stack([torch.full((3, 2, 2), row / 10) for row in rows]), torch.tensor(
                [row // 5 for row in rows]
            )

    registry.add_data_source("mine", lambda rest, options: Rows())
    data = load_images("mine:anything", n=6, registry=registry)
    assert data.labels.tolist() == [0, 0, 0, 0, 0, 1]
    assert data.images[5, 0, 0, 0] == 0.5
    assert data.class_names == ["dark", "light"]


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    from robustdup.data.digits import read_digits

    images, labels = read_digits()
    theirs = load_digits()
    assert torch.equal(images[:, 0], torch.from_numpy(theirs.images).float())
    assert torch.equal(labels, torch.from_numpy(theirs.target).long())
