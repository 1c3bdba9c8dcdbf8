"""A plan of duplication: an index array over the source. Images are never copied.

A plan is a pure function of labels, options, seed and scores. Its entries are the originals that stay, in the order of the
source, and then the first copies, the second copies, and so on; nothing may depend on that order.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from robustdup.config import DuplicationOptions
from robustdup.data.columns import class_name
from robustdup.data.dataset import check_labels
from robustdup.data.describe import effective_sample_size
from robustdup.duplication.near_copies import NearTransform, entry_rng, parse_near
from robustdup.duplication.schemes import apportioned, count_copies, sample_words
from robustdup.errors import UserError

FORMAT = "robustdup.plan/1"
_LEVELS = 1024  # copy numbers, and
_BLOCK = 8192  # entries, that are written at once


@dataclass(frozen=True)
class DoseReadings:
    """One plan in the words of everybody: each paper states the dose in another one.

    `dose` is the share of the entries that are copies, `percent_of_source` the copies as a percentage of the source's
    rows, `size_factor` the entries over the source's rows (steps of an epoch), `extra_passes` what that is above one.
    `multiplicity` are entries a sample: the most, and the mean over the copied samples. `unique` are distinct images, and
    `effective_sample_size` is Kish's, (sum e)^2 / sum e^2 over the entries e of each sample.
    """

    n_source: int
    entries: int
    originals: int
    copies: int
    copied_samples: int
    dropped: int
    unique: int
    dose: float
    percent_of_source: float
    size_factor: float
    extra_passes: float
    max_multiplicity: int
    mean_multiplicity_of_copied: float
    effective_sample_size: float


@dataclass(frozen=True, eq=False)
class DuplicationPlan:
    """Which rows of the source make up the training set, and which of its entries are copies.

    `source_index` int64 (M,): the row of the source; `n_source + r` means row r of the other split (`leak`). `copy` int64
    (M,): 0 for an original, 1.. for its copies. `labels` int64 (M,) where copies carry other labels than their source,
    else None. `near` changes the images of entries with `copy` > 0. The rest says how the plan was made.
    """

    source_index: Tensor
    copy: Tensor
    n_source: int
    labels: Tensor | None = None
    near: NearTransform | None = None
    scheme: str = "none"
    mode: str = "append"
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.source_index.shape[0]

    @property
    def dose(self) -> float:
        """The share of the entries that are copies."""
        return float((self.copy > 0).sum()) / len(self)

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the entries, their labels and the transform of near copies, the same on every platform.

        Two ways to ask for the same entries have the same hash.
        """
        near = "" if self.near is None else f"{self.near.text} {self.near.seed}"
        head = f"{FORMAT}\n{self.n_source} {len(self)} {int(self.labels is not None)}\n{near}\n"
        digest = hashlib.sha256(head.encode())
        for part in (self.source_index, self.copy, self.labels):
            if part is not None:
                digest.update(_little_endian(part))
        return digest.hexdigest()

    def entries_per_sample(self) -> Tensor:
        """Return how many entries each sample has, int64 (n_source,); longer where another split leaks in."""
        return torch.bincount(self.source_index, minlength=self.n_source)

    def weights(self) -> Tensor:
        """Return loss weights equivalent to the plan in expectation, float32 (n_source,), mean 1 over the samples kept.

        A sample with e of the M entries weighs e * kept / M, and 0 where it left: the weighted mean of the loss over the
        kept samples is then the mean over the entries. The batches, augmentation draws and BatchNorm statistics differ.
        Raises UserError where copies are not the sample itself (near, conflicting, leak).
        """
        if self.near is not None or self.labels is not None or int(self.source_index.max()) >= self.n_source:
            what = "near copies" if self.near is not None else f"scheme = {self.scheme}"
            raise UserError(
                f"{what[0].upper()}{what[1:]} cannot be expressed as loss weights: its copies are other points."
            )
        counts = self.entries_per_sample().double()
        return (counts * ((counts > 0).sum() / counts.sum())).float()

    def readings(self) -> DoseReadings:
        """Return the dose in all the ways in which it is stated elsewhere."""
        counts = self.entries_per_sample()
        copies = int((self.copy > 0).sum())
        copied = torch.bincount(self.source_index[self.copy > 0], minlength=len(counts)) > 0
        originals = len(self) - copies
        return DoseReadings(
            n_source=self.n_source, entries=len(self), originals=originals, copies=copies,
            copied_samples=int(copied.sum()), dropped=self.n_source - originals, unique=int((counts > 0).sum()),
            dose=self.dose, percent_of_source=100 * copies / self.n_source, size_factor=len(self) / self.n_source,
            extra_passes=(len(self) - self.n_source) / self.n_source, max_multiplicity=int(counts.max()),
            mean_multiplicity_of_copied=float(counts[copied].double().mean()) if copies else 0.0,
            effective_sample_size=effective_sample_size(counts),
        )  # fmt: skip

    def without(self, rows: Tensor) -> DuplicationPlan:
        """Return the plan without the copies of these source rows, (k,) int64: for images that cannot be changed."""
        keep = (self.copy == 0) | ~torch.isin(self.source_index, rows)
        labels = None if self.labels is None else self.labels[keep]
        return replace(self, source_index=self.source_index[keep], copy=self.copy[keep], labels=labels)


def _little_endian(values: Tensor) -> Any:
    """The bytes of int64 values, without a copy where the machine already has them so."""
    array = values.cpu().contiguous().numpy()
    return (array if sys.byteorder == "little" else array.byteswap()).data.cast("B")


def entry_labels(plan: DuplicationPlan, labels: Tensor, other_labels: Tensor | None = None) -> Tensor:
    """Return the label of each entry, int64 (M,), from those of the source (n_source,) and of the other split."""
    if plan.labels is not None:
        return plan.labels
    return (labels if other_labels is None else torch.cat([labels, other_labels]))[plan.source_index]


def make_plan(
    labels: Tensor, options: DuplicationOptions, *, seed: int, scores: Tensor | None = None,
    class_names: Sequence[str] = (), n_other: int = 0, other_labels: Tensor | None = None,
) -> DuplicationPlan:  # fmt: skip
    """Return the plan for a split with these labels, int64 (n,). A pure function of its arguments. Raises UserError.

    `options.seed` wins over `seed`. `scores` (n,) are for hardest and easiest: a margin, the lower the harder. `n_other`
    (and `other_labels`) describe the split that leaks in. A dose is met to within half of `copies` entries, since every
    chosen sample gets all of its copies.
    """
    n = labels.shape[0]
    if n == 0:
        raise UserError("There are no rows to duplicate: the split is empty.")
    check_labels(labels, n, len(class_names) or None)
    labels, seed = labels.cpu().long(), options.seed if options.seed is not None else seed
    leak = options.scheme == "leak"
    counts = count_copies(
        _other(n_other, other_labels) if leak else labels, options, n_entries=n, seed=seed,
        scores=None if scores is None else scores.cpu(), class_names=class_names,
    )  # fmt: skip
    keep = None
    if options.mode == "replace" or options.control == "fewer_unique":
        free = counts == 0 if not leak else torch.ones(n, dtype=torch.bool)
        keep = _staying(free, int(counts.sum()), labels, seed, class_names)
    if options.control == "class_prior":
        keep = _same_prior(labels, counts, keep, seed)
    if options.control != "none":
        counts = torch.zeros_like(counts)
    levels = _levels(counts)
    del counts  # a plan is little more than its entries in memory
    source_index, copy = _entries(n, keep, *levels, offset=n if leak else 0)
    wrong = options.scheme == "conflicting" and options.control == "none"
    near = parse_near(options.near, seed) if options.near and options.control == "none" else None
    return DuplicationPlan(
        source_index=source_index, copy=copy, n_source=n,
        labels=_wrong_labels(labels, source_index, copy, seed, len(class_names)) if wrong else None,
        near=near, scheme=options.scheme, mode=options.mode, seed=seed,
        options=options.canonical() | ({} if near is None else {"near": near.text}),
    )  # fmt: skip


def _other(n_other: int, other_labels: Tensor | None) -> Tensor:
    if n_other < 1:
        raise UserError("scheme = leak needs the rows of another split (leak_from); there are none.")
    if other_labels is None:
        return torch.zeros(n_other, dtype=torch.int64)
    check_labels(other_labels, n_other)
    return other_labels.cpu().long()


def _staying(free: Tensor, leaving: int, labels: Tensor, seed: int, class_names: Sequence[str]) -> Tensor:
    """Return a mask of the samples that stay when `leaving` of the free ones make room. Raises UserError.

    They leave from the back of the order that copies are chosen in from the front, so that those who stay at a higher dose
    stayed at a lower one (where the scheme follows that order).
    """
    order = sample_words(len(free), seed).argsort(stable=True).flip(0)
    order = order[free[order]]
    if leaving > len(order):
        raise UserError(
            f"mode = replace has no room: {leaving} copies would take the places of {leaving} samples without copies, "
            f"but there are {len(order)}. Give a lower dose or more copies of fewer samples."
        )
    keep = torch.ones(len(free), dtype=torch.bool)
    keep[order[:leaving]] = False
    emptied = (torch.bincount(labels) > 0) & (torch.bincount(labels[keep], minlength=int(labels.max()) + 1) == 0)
    if bool(emptied.any()):
        name = class_name(int(emptied.nonzero()[0]), class_names)
        raise UserError(f"mode = replace would leave no sample of class {name!r}. Give a lower dose or mode = append.")
    return keep


def _same_prior(labels: Tensor, counts: Tensor, keep: Tensor | None, seed: int) -> Tensor:
    """Return a mask of the largest set of distinct samples with the class shares of the plan; copied ones stay first."""
    entries = counts + (1 if keep is None else keep.long())
    sizes = torch.bincount(labels).tolist()
    wanted = [int(total) for total in torch.bincount(labels, weights=entries.double()).tolist()]
    total = sum(wanted)
    most = min(size * total // want for size, want in zip(sizes, wanted, strict=True) if want)
    order = sample_words(len(labels), seed).argsort(stable=True)
    order = order[(counts[order] == 0).long().argsort(stable=True)]
    chosen = apportioned(order, labels, [Fraction(want, total) for want in wanted])[:most]
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[chosen] = True
    return mask


def _levels(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the samples, int32 (n,), by falling number of copies, and how many have more than 0, 1, … copies.

    Those that have a k-th copy are a front part of those that have a (k - 1)-th.
    """
    return counts.argsort(descending=True, stable=True).int(), len(counts) - torch.bincount(counts).cumsum(0)


def _entries(n: int, keep: Tensor | None, rows: Tensor, having: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """Return (source_index, copy), each int64 (M,), written in place: nothing of the size of the plan is made besides."""
    originals = torch.arange(n) if keep is None else keep.nonzero().flatten()
    size = len(originals) + int(having.sum())
    source_index, copy = torch.empty(size, dtype=torch.int64), torch.zeros(size, dtype=torch.int64)
    source_index[: (at := len(originals))] = originals
    del originals
    first, last = 1, len(having) - 1
    while first <= last:
        levels = torch.arange(first, min(first + _LEVELS, last + 1))
        sizes = having[levels - 1]
        levels = levels[: max(1, int((sizes.cumsum(0) <= _BLOCK).sum()))]
        if len(levels) == 1:  # as many entries as the source has rows, perhaps: nothing is made for them
            source_index[at : at + int(sizes[0])] = rows[: int(sizes[0])]
            copy[at : (at := at + int(sizes[0]))] = first
        else:
            sizes = sizes[: len(levels)]
            until = at + int(sizes.sum())
            starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
            source_index[at:until] = rows[torch.arange(until - at) - starts].long()
            copy[at:until] = levels.repeat_interleave(sizes)
            at = until
        first += len(levels)
    if offset:
        source_index[copy > 0] += offset
    return source_index, copy


def _wrong_labels(labels: Tensor, source_index: Tensor, copy: Tensor, seed: int, classes: int) -> Tensor:
    """Return the labels of the entries, those of copies drawn from the other classes by (seed, source, copy)."""
    classes = classes or int(labels.max()) + 1
    if classes < 2:
        raise UserError("scheme = conflicting needs at least two classes: there is no wrong label to give.")
    found = labels[source_index]
    copies = copy > 0
    rng = entry_rng(seed, source_index[copies], copy[copies]).fold("wrong label")
    found[copies] = (found[copies] + 1 + rng.integers(0, classes - 1)) % classes
    return found
