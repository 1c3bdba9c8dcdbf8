"""Which samples of a split are taken: all, the first n, a random sample, or, where labels come in order, n in proportion."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustdup.data.dataset import Selection
from robustdup.errors import UserError
from robustdup.rng import SampleRng

DEVIATIONS = 6  # standard deviations from what chance gives, from which labels are not in random order
NOTICEABLE = (
    0.05  # share of samples in other classes, or of class changes that are missing, below which it does not matter
)
HARDLY = 0.01  # chance below which classes of a small set are taken to be in order
DRAWS = 200  # random subsets with which the classes of the first n are compared

IN_ORDER = (
    "The samples of {place} come in order of their classes ({sign}). In place of the first {n}, {n} were taken by chance, each "
    "class by its share (stratified, drawn from the seed)."
)
STREAM_IN_ORDER = (
    "The first {n} samples of {place} are in order of their classes ({sign}), so that they do not stand for the others. Shuffle "
    "the data, or give all of it."
)


def choose(
    samples: Any, *, n: int | None = None, sample: int | None = None, seed: int = 0, place: str = "the data"
) -> tuple[Tensor, Selection, list[str]]:
    """Return the indices that are taken (n,) int64 in rising order, how they were chosen, and what to tell of it.

    The first n are the samples that RobustBench takes (https://robustbench.github.io). Where the labels come in an order
    that chance does not give, as in folders of classes, the first n would be of a few classes: then n are drawn by chance,
    each class by its share. `samples` are those of a split; of a source that cannot say its labels without decoding
    images the order is not looked at. Raises UserError.
    """
    total = len(samples)
    index, selection = select(total, n=n, sample=sample, seed=seed, place=place)
    if selection != "first" or len(index) == total:
        return index, selection, []
    labels = known_labels(samples)
    sign = None if labels is None else order_sign(labels, len(index))
    if labels is None or sign is None:
        return index, selection, []
    note = IN_ORDER.format(place=place, n=len(index), sign=sign)
    return stratified(labels, len(index), seed), "stratified", [note]


def select(
    total: int, *, n: int | None = None, sample: int | None = None, seed: int = 0, place: str = "the data"
) -> tuple[Tensor, Selection]:
    """Return the first `n` indices of `total`, a random `sample` of them, or all; in rising order. Raises UserError.

    The sample takes the indices with the smallest random words, one word an index, keyed by (seed, index).
    """
    if total == 0:
        raise UserError(f"There are no rows in {place}.", code="no-data")
    for name, wanted in (("n", n), ("sample", sample)):
        if wanted is not None and wanted < 1:
            raise UserError(f"{name} must be at least 1, got {wanted}.", code="bad-value")
        if wanted is not None and wanted > total:
            raise UserError(f"{name} = {wanted} is more than {place} has: {total} rows.", code="bad-value")
    indices = torch.arange(total)
    if n is not None:
        return indices[:n], "first"
    if sample is None:
        return indices, "all"
    words = SampleRng(seed, indices).fold("data sample").bits()
    return words.argsort(stable=True)[:sample].sort().values, "sample"


def stratified(labels: Tensor, n: int, seed: int) -> Tensor:
    """Return `n` indices of labels (N,) in rising order, of each class its share, up to one sample.

    Samples are put in order of class and, within a class, of random words keyed by (seed, index); every N/n-th is taken, from
    a random start. So each sample is taken with the same chance n / N.
    """
    total = len(labels)
    words = SampleRng(seed, torch.arange(total)).fold("data sample").bits()
    by_word = words.argsort(stable=True)
    by_class = by_word[labels[by_word].argsort(stable=True)]
    start = int(SampleRng(seed, torch.zeros(1, dtype=torch.int64)).fold("data strata").integers(0, total))
    return by_class[(torch.arange(n) * total + start) // n].sort().values


def known_labels(samples: Any) -> Tensor | None:
    """Return the labels (N,) of all samples where the source says them without decoding images; None otherwise."""
    labels = getattr(samples, "labels", None)
    try:
        values = labels(range(len(samples))) if callable(labels) else labels
        return None if values is None else torch.as_tensor(values, dtype=torch.int64)
    except (UserError, TypeError, ValueError):  # a row without a label is told where it is read
        return None


def order_sign(labels: Tensor, n: int | None = None) -> str | None:
    """Say by what labels (N,) are not in random order, or None: too few changes of class, or other classes among the first n."""
    total = len(labels)
    counts = np.unique(labels.numpy(), return_counts=True)[1].astype(np.float64)
    if len(counts) < 2:
        return None
    changes = int((labels[1:] != labels[:-1]).sum())
    expected, deviation = _changes(counts, total)
    if changes < expected - DEVIATIONS * deviation and changes < (1 - NOTICEABLE) * expected:
        return f"the class changes {changes} times from one to the next, by chance it would some {expected:.0f} times"
    if _one_run_each(changes, counts):
        return f"{len(counts)} classes in {changes + 1} runs"
    if n is None or n >= total:
        return None
    return _other_classes(labels, n, counts)


def _one_run_each(changes: int, counts: np.typing.NDArray[np.float64]) -> bool:
    """Tell whether each class is one run where chance would hardly make that: of small sets the test above sees too little."""
    if changes != len(counts) - 1:
        return False
    orders = [math.lgamma(count + 1) for count in [len(counts), *counts]]
    return sum(orders) - math.lgamma(counts.sum() + 1) < math.log(HARDLY)


def _changes(counts: np.typing.NDArray[np.float64], total: int) -> tuple[float, float]:
    """Return mean and standard deviation of the changes of class between neighbours in random order.

    Barton and David's moments of the number of runs of several kinds, https://doi.org/10.1093/biomet/44.1-2.168.
    """
    squares, cubes = float((counts**2).sum()), float((counts**3).sum())
    mean = (total * (total + 1) - squares) / total - 1
    variance = (squares * (squares + total * (total + 1)) - 2 * total * cubes - total**3) / (total**2 * (total - 1))
    return mean, max(variance, 0.0) ** 0.5


def _other_classes(labels: Tensor, n: int, counts: np.typing.NDArray[np.float64]) -> str | None:
    """Say where the classes of the first n are not those of a random subset, by chi-square against drawn subsets."""
    values, places = np.unique(labels.numpy(), return_inverse=True)
    expected = counts * n / len(labels)
    first = np.bincount(places[:n], minlength=len(values))
    moved = float(np.abs(first - expected).sum()) / 2 / n
    drawn = np.random.default_rng(0).multivariate_hypergeometric(counts.astype(np.int64), n, size=DRAWS)
    chance = ((drawn - expected) ** 2 / expected).sum(axis=1)
    distance = float(((first - expected) ** 2 / expected).sum())
    far = chance.mean() + DEVIATIONS * chance.std()
    if moved < NOTICEABLE or distance <= max(far, float(chance.max())):
        return None
    return f"the first {n} have {int((first > 0).sum())} of {len(values)} classes, in shares that chance does not give"
