"""From labels, options and a seed to a plan: a pure function, so that the same words give the same plan everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from robustdup.config import DuplicationOptions
from robustdup.data.columns import class_name
from robustdup.data.dataset import check_labels
from robustdup.duplication.near_copies import entry_rng, parse_near
from robustdup.duplication.plan import DuplicationPlan
from robustdup.duplication.schemes import apportioned, count_copies, sample_words
from robustdup.errors import UserError

_LEVELS = 1024  # copy numbers, and
_BLOCK = 8192  # entries, that are written at once


BY_CLASS = ("class_skewed", "conflicting")  # schemes that look at labels


def looks_at_labels(options: DuplicationOptions) -> bool:
    """Return whether a plan depends on the labels; where it does not, data without labels will do."""
    scored = getattr(options, "score_model", None) is not None  # a margin is that of the true class
    return options.scheme in BY_CLASS or options.control == "class_prior" or scored


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
        raise UserError("There are no rows to duplicate: the split is empty.", code="no-data")
    check_labels(labels, n, len(class_names) or None)
    labels, seed = labels.cpu().long(), options.seed if options.seed is not None else seed
    if options.control == "fewer_unique":  # what is left at equal size, also where the plan itself would grow
        options = options.model_copy(update={"mode": "replace"})
    leak = options.scheme == "leak"
    counts = count_copies(
        _other(n_other, other_labels) if leak else labels, options, n_entries=n, seed=seed,
        scores=None if scores is None else scores.cpu(), class_names=class_names,
    )  # fmt: skip
    keep = None
    if options.mode == "replace":
        free = counts == 0 if not leak else torch.ones(n, dtype=torch.bool)
        asker = "control = fewer_unique" if options.control == "fewer_unique" else "mode = replace"
        keep = _staying(free, int(counts.sum()), labels, seed, class_names, asker)
    if options.control in ("class_prior", "matched"):
        keep = _same_prior(labels, counts, keep, seed, class_names, equal_number=options.control == "matched")
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
        raise UserError("scheme = leak needs the rows of another split (leak_from); there are none.", code="no-data")
    if other_labels is None:
        return torch.zeros(n_other, dtype=torch.int64)
    check_labels(other_labels, n_other)
    return other_labels.cpu().long()


def _staying(
    free: Tensor, leaving: int, labels: Tensor, seed: int, class_names: Sequence[str], asker: str
) -> Tensor:  # fmt: skip
    """Return a mask of the samples that stay when `leaving` of the free ones make room. Raises UserError, naming `asker`.

    They leave from the back of the order that copies are chosen in from the front, so that those who stay at a higher dose
    stayed at a lower one (where the scheme follows that order).
    """
    order = sample_words(len(free), seed).argsort(stable=True).flip(0)
    order = order[free[order]]
    if leaving > len(order):
        raise UserError(
            f"{asker} has no room: {leaving} copies would take the places of {leaving} samples without copies, "
            f"but there are {len(order)}. Give a lower dose or more copies of fewer samples.",
            code="too-many-copies",
        )
    keep = torch.ones(len(free), dtype=torch.bool)
    keep[order[:leaving]] = False
    emptied = (torch.bincount(labels) > 0) & (torch.bincount(labels[keep], minlength=int(labels.max()) + 1) == 0)
    if bool(emptied.any()):
        name = class_name(int(emptied.nonzero()[0]), class_names)
        raise UserError(
            f"{asker} would leave no sample of class {name!r}. Give a lower dose"
            + (" or mode = append." if asker.startswith("mode") else "."),
            code="too-many-copies",
        )
    return keep


def _same_prior(
    labels: Tensor, counts: Tensor, keep: Tensor | None, seed: int, class_names: Sequence[str], *, equal_number: bool
) -> Tensor:
    """Return a mask of the largest set of distinct samples with the class shares of the plan; copied ones stay first.

    With `equal_number` the set has as many samples as the plan has distinct ones. Raises UserError where a class has too few.
    """
    entries = counts + (1 if keep is None else keep.long())
    sizes = torch.bincount(labels).tolist()
    wanted = [int(total) for total in torch.bincount(labels, weights=entries.double()).tolist()]
    total = sum(wanted)
    most = min(size * total // want for size, want in zip(sizes, wanted, strict=True) if want)
    order = sample_words(len(labels), seed).argsort(stable=True)
    order = order[(counts[order] == 0).long().argsort(stable=True)]
    shares = [Fraction(want, total) for want in wanted]
    if equal_number:
        number = int((entries > 0).sum())
        if number > most:
            short = next(
                k for k, (size, want) in enumerate(zip(sizes, wanted, strict=True)) if want * number > size * total
            )
            raise UserError(
                f"control = matched needs {number} distinct samples with the class shares of the plan, and class "
                f"{class_name(short, class_names)!r} has only {sizes[short]} of the {wanted[short] * number // total} that are "
                "its share. Give mode = replace, which leaves others to take, or a lower dose.",
                code="too-few-samples",
            )
        most = number
    chosen = apportioned(order, labels, shares)[:most]
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
    source_index[: (filled := len(originals))] = originals
    del originals
    first, last = 1, len(having) - 1
    while first <= last:
        levels = torch.arange(first, min(first + _LEVELS, last + 1))
        sizes = having[levels - 1]
        levels = levels[: max(1, int((sizes.cumsum(0) <= _BLOCK).sum()))]
        if len(levels) == 1:  # as many entries as the source has rows, perhaps: nothing is made for them
            source_index[filled : filled + int(sizes[0])] = rows[: int(sizes[0])]
            copy[filled : (filled := filled + int(sizes[0]))] = first
        else:
            sizes = sizes[: len(levels)]
            until = filled + int(sizes.sum())
            starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
            source_index[filled:until] = rows[torch.arange(until - filled) - starts].long()
            copy[filled:until] = levels.repeat_interleave(sizes)
            filled = until
        first += len(levels)
    if offset:
        source_index[copy > 0] += offset
    return source_index, copy


def _wrong_labels(labels: Tensor, source_index: Tensor, copy: Tensor, seed: int, classes: int) -> Tensor:
    """Return the labels of the entries, those of copies drawn from the other classes by (seed, source, copy)."""
    classes = classes or int(labels.max()) + 1
    if classes < 2:
        raise UserError(
            "scheme = conflicting needs at least two classes: there is no wrong label to give.", code="bad-labels"
        )
    wrong = labels[source_index]
    copies = copy > 0
    rng = entry_rng(seed, source_index[copies], copy[copies]).fold("wrong label")
    wrong[copies] = (wrong[copies] + 1 + rng.integers(0, classes - 1)) % classes
    return wrong
