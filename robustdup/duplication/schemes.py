"""Which samples are copied, and how often: each scheme as the number of copies of every sample.

A scheme puts the samples into an order that depends on the seed, the labels and the scores alone, and takes from its front.
So a higher dose with the same seed contains the copies of a lower one. Only integers, products, quotients and square roots
are used, which every platform rounds alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from robustdup.config.duplication import STEP, DuplicationOptions, exact
from robustdup.data.columns import class_name
from robustdup.errors import UserError, unknown
from robustdup.rng import SampleRng

_CHUNK = 8192  # rows whose random words are computed at once, which bounds the memory


def sample_words(n: int, seed: int) -> Tensor:
    """Return one random word in [0, 2^32) a row, int64 (n,), keyed by (seed, row): samples are chosen by its rank."""
    words = torch.empty(n, dtype=torch.int64)
    for start in range(0, n, _CHUNK):
        rows = torch.arange(start, min(start + _CHUNK, n))
        words[start : start + _CHUNK] = SampleRng(seed, rows).fold("duplicate").bits()
    return words


def count_copies(
    labels: Tensor, options: DuplicationOptions, *, n_entries: int, seed: int, scores: Tensor | None = None,
    class_names: Sequence[str] = (),
) -> Tensor:  # fmt: skip
    """Return the copies of each eligible sample, int64 (n,). Raises UserError for what cannot be.

    `labels` int64 (n,) are those of the samples to choose from, `n_entries` the rows of the split that the copies go into
    (the same number, but for `leak`), `scores` (n,) a margin for each sample, the lower the harder.
    """
    n, scheme = labels.shape[0], options.scheme
    counts = torch.zeros(n, dtype=torch.int64)
    if scheme == "none":
        return counts
    asked = options.canonical()
    copies = int(asked.get("copies") or 0)  # from the dose where a scheme is not told
    total = None if options.dose is None else _total(exact(options.dose), options.mode, n_entries)
    if scheme == "whole_set":
        return counts.fill_(copies if total is None else _whole(total, n, options.dose))
    if scheme == "power_law":
        assert total is not None
        counts[sample_words(n, seed).argsort(stable=True)] = power_law(n, options.exponent, _half_up(total))
        return counts
    if scheme == "single":
        counts[_single_row(options.row, n, seed)] = copies if total is None else _half_up(total)
        return counts
    chosen = _half_up(exact(asked["fraction"]) * n) if total is None else _half_up(total / copies)
    counts[_order(labels, options, chosen, seed, scores, class_names)[:chosen]] = copies
    return counts


def _total(dose: Fraction, mode: str, n_entries: int) -> Fraction:
    """Copies that make up this share of the entries."""
    return dose * n_entries if mode == "replace" else dose * n_entries / (1 - dose)


def _half_up(value: Fraction) -> int:
    return (2 * value + 1).__floor__() // 2


def _whole(total: Fraction, n: int, dose: float | None) -> int:
    whole = _half_up(total / n)
    if abs(total - whole * n) > 1:
        near = " or ".join(f"copies = {k} (dose {k / (k + 1):.6g})" for k in ((total / n).__floor__(), whole) if k)
        raise UserError(
            f"dose = {dose:g} is not a whole number of copies of the whole set. Give {near or 'copies = 1'}.",
            code="bad-dose",
        )
    return whole


def _single_row(row: int | None, n: int, seed: int) -> int:
    if row is None:
        return int(sample_words(n, seed).argmin())
    if row >= n:
        raise UserError(f"row = {row} is beyond the last row, {n - 1}.", code="bad-value")
    return row


def _order(
    labels: Tensor, options: DuplicationOptions, chosen: int, seed: int, scores: Tensor | None,
    class_names: Sequence[str],
) -> Tensor:  # fmt: skip
    """Return the rows in the order in which they are chosen. Raises UserError where there are fewer than `chosen`."""
    n = labels.shape[0]
    order = sample_words(n, seed).argsort(stable=True)
    if options.scheme == "class_skewed":
        shares = skewed_shares(labels, options, seed, class_names)
        sizes = torch.bincount(labels, minlength=len(shares)).tolist()
        for number, (share, size) in enumerate(zip(shares, sizes, strict=True)):
            if _half_up(share * chosen) > size:
                raise UserError(
                    f"{_size(options)} asks for {_half_up(share * chosen)} samples of class "
                    f"{class_name(number, class_names)!r}, which has {size}. Give more copies, another skew, or a "
                    f"lower {'dose' if options.dose is not None else 'fraction'}.",
                    code="too-many-copies",
                )
        return apportioned(order, labels, shares)
    if chosen > n:
        raise UserError(
            f"{_size(options)} asks for {chosen} samples, but there are {n} to choose from. "
            "Give more copies or a lower dose.",
            code="too-many-copies",
        )
    if options.scheme in ("hardest", "easiest"):
        return order[_scores(scores, options, n)[order].argsort(stable=True, descending=options.scheme == "easiest")]
    return order


def _size(options: DuplicationOptions) -> str:
    asked = options.canonical()
    key = "dose" if "dose" in asked else "fraction"
    return f"{key} = {asked[key]:g} with copies = {asked['copies']}"


def _scores(scores: Tensor | None, options: DuplicationOptions, n: int) -> Tensor:
    if scores is None:
        raise UserError(
            f"scheme = {options.scheme} needs a score for each sample, the lower the harder (a margin): score_column.",
            code="no-score",
        )
    if tuple(scores.shape) != (n,):
        raise UserError(f"scores must have the shape ({n},), got {tuple(scores.shape)}.", code="bad-score")
    bad = (~scores.isfinite()).nonzero().flatten()
    if len(bad):
        raise UserError(f"{len(bad)} scores are NaN or infinite, the first in row {int(bad[0])}.", code="bad-score")
    return scores


def skewed_shares(
    labels: Tensor, options: DuplicationOptions, seed: int, class_names: Sequence[str] = ()
) -> list[Fraction]:
    """Return the share of the chosen samples for each class: `skew` for the named classes, the rest for all in proportion."""
    sizes = torch.bincount(labels, minlength=len(class_names)).tolist()
    named = _named_classes(options.classes, sizes, class_names, seed)
    skew, in_named = exact(options.skew), sum(sizes[number] for number in named)
    return [
        (1 - skew) * Fraction(size, len(labels)) + skew * Fraction(size * (number in named), in_named)
        for number, size in enumerate(sizes)
    ]


def _named_classes(words: Sequence[str], sizes: Sequence[int], class_names: Sequence[str], seed: int) -> set[int]:
    present = [number for number, size in enumerate(sizes) if size]
    if not words:
        drawn = SampleRng(seed, torch.tensor(present)).fold("skewed class").bits()
        return {present[int(drawn.argmin())]}
    named = set()
    for word in words:
        if word in class_names:
            number = list(class_names).index(word)
        elif word.isdecimal() and int(word) < len(sizes):
            number = int(word)
        else:
            raise unknown("class", word, class_names or [str(number) for number in present])
        if not sizes[number]:
            raise UserError(f"There are no samples of class {word!r}.", code="bad-value")
        named.add(number)
    return named


def apportioned(order: Tensor, labels: Tensor, shares: Sequence[Fraction]) -> Tensor:
    """Return the rows of `order` so that the first m of them, for every m, are shared among classes by Webster's method.

    Classes without a share are left out. https://en.wikipedia.org/wiki/Sainte-Lagu%C3%AB_method
    """
    classes = labels[order]
    grouped = classes.argsort(stable=True)
    sizes = torch.bincount(classes, minlength=len(shares))
    rank = torch.empty_like(order)
    rank[grouped] = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[classes[grouped]]
    share = torch.tensor([float(share) for share in shares], dtype=torch.float64)[classes]
    key = (2 * rank + 1).double() / share
    ready = key.argsort(stable=True)
    return order[ready[: int((share > 0).sum())]]


def power_law(n: int, exponent: float, total: int) -> Tensor:
    """Return `total` copies shared among ranks 1..n in proportion to rank ** -exponent by Webster's method, int64 (n,)."""
    weights = 1 / power(torch.arange(1, n + 1, dtype=torch.float64), exponent)
    low, high = 0.0, 1.0
    while int(_scaled(weights, high).sum()) <= total:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if int(_scaled(weights, middle).sum()) <= total else (low, middle)
    counts = _scaled(weights, low)
    more = (_scaled(weights, high) - counts).cumsum(0)  # what is tied at the threshold goes to the front ranks
    left = total - int(counts.sum())
    return counts + more.clamp(max=left).diff(prepend=torch.zeros(1, dtype=torch.int64))


def _scaled(weights: Tensor, scale: float) -> Tensor:
    return (weights * scale + 0.5).floor().long()


def power(base: Tensor, exponent: float) -> Tensor:
    """Return `base` ** `exponent` (a multiple of 1/1024) from products and square roots, which all platforms round alike.

    The pow of a C library may differ in the last bit from another's, and with it a plan and its hash.
    """
    whole, part = divmod(round(exponent * STEP), STEP)
    result = torch.ones_like(base)
    for _ in range(whole):
        result = result * base
    root, bit = base, STEP // 2
    while part:
        root = root.sqrt()
        if part & bit:
            result, part = result * root, part - bit
        bit //= 2
    return result
