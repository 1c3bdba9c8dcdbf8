"""Which samples are taken: the first n, or where labels come in order, n in proportion; and what the interval says of it."""

from __future__ import annotations

import math

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import robustdup
from robustdup.api import given
from robustdup.api.given import as_dataset
from robustdup.data.selection import _changes, choose, order_sign, stratified
from robustdup.errors import UserError
from robustdup.evaluation.metrics import accuracy
from tests.raising import raises

SORTED = torch.arange(10).repeat_interleave(50)
MIXED = SORTED[torch.randperm(500, generator=torch.Generator().manual_seed(0))]


class Labelled:
    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)


def test_first_n_of_random_order_and_a_share_of_each_class_in_order():
    index, selection, notes = choose(Labelled(MIXED), n=50)
    assert (index.tolist(), selection, notes) == (list(range(50)), "first", [])
    index, selection, notes = choose(Labelled(SORTED), n=50, place="the folder")
    assert selection == "stratified"
    assert torch.bincount(SORTED[index]).tolist() == [5] * 10
    assert index.tolist() == sorted(set(index.tolist()))
    assert "the folder" in notes[0]
    assert torch.equal(choose(Labelled(SORTED), n=50)[0], index)  # the same again
    assert not torch.equal(choose(Labelled(SORTED), n=50, seed=1)[0], index)
    assert choose(Labelled(SORTED), n=500)[1:] == ("first", [])  # all of them
    assert choose(Labelled(SORTED), sample=50)[1] == "sample"


@pytest.mark.parametrize(
    ("labels", "n"),
    [
        (SORTED, 3),
        (SORTED.flip(0), 100),
        (torch.cat([SORTED, SORTED]), 100),  # two folders, one after the other
        (torch.cat([MIXED % 5, MIXED % 5 + 5]), 500),  # five classes first, then the other five, each at random
        (torch.tensor([0] * 8 + [1] * 8), 8),
        (torch.arange(200).repeat_interleave(3), 60),
        (torch.tensor([0] * 900 + [1] * 100), 300),
    ],
)
def test_orders_that_are_noticed(labels, n):
    assert order_sign(labels, n)
    index = choose(Labelled(labels), n=n)[0]
    shares = torch.bincount(labels[index], minlength=int(labels.max()) + 1) / n
    assert (shares - torch.bincount(labels) / len(labels)).abs().max() < 1 / n + 1e-6


def test_random_orders_are_left_as_they_are():
    random = np.random.default_rng(0)
    for _ in range(200):
        total, classes = int(random.integers(5, 400)), int(random.integers(2, 60))
        shares = random.dirichlet(np.ones(classes))
        labels = torch.from_numpy(random.choice(classes, total, p=shares))
        assert order_sign(labels, int(random.integers(1, total))) is None
    assert order_sign(torch.arange(10).repeat(40), 50) is None  # one of each class in turn


def test_moments_of_class_changes_are_those_of_all_orders():
    labels, drawn = np.repeat([0, 1, 2], [4, 3, 1]), []
    random = np.random.default_rng(0)
    for _ in range(20_000):
        order = random.permutation(labels)
        drawn.append((order[1:] != order[:-1]).sum())
    mean, deviation = _changes(np.array([4.0, 3.0, 1.0]), 8)
    assert mean == pytest.approx(np.mean(drawn), abs=0.03)
    assert deviation == pytest.approx(np.std(drawn), abs=0.03)


def test_each_sample_is_taken_with_the_same_chance():
    labels = torch.tensor([0] * 7 + [1] * 12 + [2])
    counts = torch.zeros(20)
    for seed in range(500):
        counts[stratified(labels, 6, seed)] += 1
    assert (counts / 500 - 0.3).abs().max() < 4 * math.sqrt(0.3 * 0.7 / 500)


def test_the_interval_is_the_same_kind_for_a_part_and_for_all():
    """Among 10,000 images, 9,999 and 10,000 have the same interval but for the one image."""
    right = np.ones(10_000) * (np.arange(10_000) < 5700)
    part, whole = accuracy(right[1:]), accuracy(right)
    assert whole.high - whole.low == pytest.approx(2 * 1.96 * math.sqrt(0.57 * 0.43 / 10_000), rel=1e-3)
    assert part.high - part.low == pytest.approx(whole.high - whole.low, rel=1e-3)


def pixels(labels):
    return torch.stack([torch.full((1, 2, 2), float(label) / 20) for label in labels])


def test_forms_from_python_are_looked_at_too():
    images = pixels(SORTED)
    data = as_dataset(images, SORTED, n=20)
    assert (data.selection, data.n_total, torch.bincount(data.labels).tolist()) == ("stratified", 500, [2] * 10)
    assert torch.equal(data.images, images[data.index])
    assert "order of their classes" in data.notes[0]
    whole = as_dataset(images.numpy(), SORTED.numpy())
    assert torch.equal(as_dataset(whole, n=20).index, data.index)
    table = datasets.Dataset.from_dict(
        {"image": [np.full((2, 2), 12 * int(label), np.uint8) for label in SORTED], "label": SORTED.tolist()},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )
    assert as_dataset(table, n=20).index.tolist() == data.index.tolist()
    first = as_dataset(images, MIXED, n=20)
    assert (first.selection, first.labels.tolist(), first.notes) == ("given", MIXED[:20].tolist(), ())


def test_streams_whose_rest_is_not_known_are_told():
    loader = DataLoader(TensorDataset(pixels(SORTED), SORTED), batch_size=25)
    data = as_dataset(loader, n=100)
    assert (data.selection, data.labels.tolist()) == ("given", SORTED[:100].tolist())
    assert "do not stand for the others" in data.notes[0]
    assert as_dataset(DataLoader(TensorDataset(pixels(MIXED), MIXED), batch_size=25), n=100).notes == ()
    assert as_dataset(loader).notes == ()  # all of it
    rows = datasets.Dataset.from_dict(
        {"image": [np.zeros((2, 2), np.uint8)] * 500, "label": SORTED.tolist()},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    ).to_iterable_dataset()
    data = as_dataset(rows, n=40)
    assert (len(data), data.selection) == (40, "given")
    assert "all are of one class" in data.notes[0]


def test_streams_without_a_length_are_read_to_their_end_if_they_have_one(monkeypatch):
    class Stream(IterableDataset):
        def __init__(self, n):
            self.n = n

        def __iter__(self):
            return ((image, label) for image, label in zip(pixels(MIXED)[: self.n], MIXED[: self.n], strict=True))

    rows = datasets.Dataset.from_dict(
        {"image": [np.full((2, 2), i, np.uint8) for i in range(12)], "label": MIXED[:12].tolist()},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    ).to_iterable_dataset()
    monkeypatch.setattr(given, "MOST_STREAMED", 12)
    assert as_dataset(rows).labels.tolist() == MIXED[:12].tolist()
    assert as_dataset(Stream(12)).labels.tolist() == MIXED[:12].tolist()
    assert as_dataset(DataLoader(Stream(12), batch_size=5)).labels.tolist() == MIXED[:12].tolist()
    monkeypatch.setattr(given, "MOST_STREAMED", 11)
    for stream in (rows, Stream(12), DataLoader(Stream(12), batch_size=5)):
        with raises("bad-value", UserError, "n="):
            as_dataset(stream)
        assert len(as_dataset(stream, n=3)) == 3


def test_torch_datasets_say_their_targets_and_classes():
    class Pairs:
        targets, classes = SORTED.tolist(), [f"class {k}" for k in range(10)]

        def __len__(self):
            return 500

        def __getitem__(self, i):
            return torch.full((1, 2, 2), float(self.targets[i]) / 20), self.targets[i]

    data = as_dataset(Pairs(), n=20)
    assert (torch.bincount(data.labels).tolist(), data.selection) == ([2] * 10, "stratified")
    assert data.class_names[3] == "class 3"
    batch = {"pixel_values": pixels(MIXED[:4]), "labels": MIXED[:4]}
    assert as_dataset([batch]).labels.tolist() == MIXED[:4].tolist()


def test_an_evaluation_says_what_its_interval_is_about(tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 10))
    order = {"given": (pixels(MIXED), MIXED, None), "stratified": (pixels(SORTED), SORTED, 20)}
    for selection, (images, labels, n) in order.items():
        record = robustdup.evaluate(
            model, images, labels, n=n, eps="1/255", attacks="fgsm", workers=1, progress=False, diagnostics=False
        ).record
        assert record.data.selection == selection
        assert "whole split" not in record.interval_about
        assert ("by its share" in record.interval_about) == (selection == "stratified")
