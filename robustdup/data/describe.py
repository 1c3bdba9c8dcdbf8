"""What a dataset holds: classes, how often each sample occurs, how many samples that is worth, what cannot be read."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from robustdup.data.columns import Columns, arrow_column, class_name
from robustdup.data.decode import UNREADABLE, open_picture, why_unreadable
from robustdup.data.table import LONGEST_PATH
from robustdup.errors import plain
from robustdup.records.description import ClassCount, SplitDescription, UnreadableImage

if TYPE_CHECKING:
    import datasets

_CHUNK = 256  # rows whose encoded bytes are held at once
_LISTED = 1000  # unreadable images that are listed; all are counted
NO_LABEL = "(no label)"


def describe(
    dataset: datasets.Dataset, columns: Columns, place: str, *, images: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SplitDescription:  # fmt: skip
    """Return what a split holds. With `images`, every image is decoded: sizes, modes, exact duplicates, broken files.

    Images that cannot be read are counted and the first 1,000 listed; nothing is skipped in silence.
    """
    labels: list[Any] = [None] * len(dataset)
    if columns.label:
        labels = arrow_column(dataset, columns.label).to_pylist()
    sizes, modes, broken = Counter[str](), Counter[str](), list[UnreadableImage]()
    samples: list[int] | None = None
    seen: dict[bytes, int] = {}
    by_pixels = []
    if images:
        for done, (row, picture) in enumerate(_decoded(dataset, columns.image), start=1):
            if isinstance(picture, UnreadableImage):
                broken.append(picture)
                by_pixels.append(-1 - row)  # a sample of its own
            else:
                sizes[f"{picture.width}x{picture.height}"] += 1
                modes[picture.mode] += 1
                by_pixels.append(seen.setdefault(_pixels(picture), row))
            progress(done, len(dataset))
        samples = by_pixels
    same_by: Literal["source_index", "pixels", "rows"] = "pixels" if images else "rows"
    if "source_index" in dataset.column_names:
        column = arrow_column(dataset, "source_index")
        if not column.null_count:
            samples, same_by = column.to_pylist(), "source_index"
    groups = np.unique(samples if samples is not None else np.arange(len(labels)), return_inverse=True)[1]
    counts = np.bincount(groups)
    names = [class_name(label, columns.class_names) if label is not None else NO_LABEL for label in labels]
    return SplitDescription(
        place=place, entries=len(labels), same_by=same_by, unique=len(counts), copies=len(labels) - len(counts),
        dose=(len(labels) - len(counts)) / len(labels),
        effective_sample_size=effective_sample_size(torch.from_numpy(counts)),
        multiplicity={int(many): int(n) for many, n in zip(*np.unique(counts, return_counts=True), strict=True)},
        conflicts=_conflicts(groups, names), classes=_class_counts(groups, names, columns),
        sizes=dict(sizes.most_common()), modes=dict(modes.most_common()), n_unreadable=len(broken),
        unreadable=broken[:_LISTED], notes=list(columns.notes),
    )  # fmt: skip


def effective_sample_size(counts: Tensor) -> float:
    """Return Kish's effective sample size (sum c)^2 / sum c^2 of multiplicities (n,).

    https://en.wikipedia.org/wiki/Effective_sample_size#Weighted_samples
    """
    total, squares = float(counts.double().sum()), float(counts.double().square().sum())
    return total * total / squares if squares else 0.0


def _decoded(dataset: datasets.Dataset, image: str) -> Iterator[tuple[int, Any]]:
    """Yield (row, PIL image or UnreadableImage)."""
    import datasets

    encoded = dataset.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    for start in range(0, len(encoded), _CHUNK):
        for row, content in enumerate(encoded[start : start + _CHUNK][image], start=start):
            try:
                yield row, open_picture(content)
            except UNREADABLE as error:
                path = plain((content or {}).get("path") or "", LONGEST_PATH)
                yield row, UnreadableImage(row=row, path=path, reason=why_unreadable(error))


def _pixels(image: Any) -> bytes:
    head = f"{image.mode} {image.size} {bytes(image.getpalette() or [])!r}"
    return hashlib.blake2b(head.encode() + image.tobytes(), digest_size=16).digest()


def _conflicts(groups: Any, names: list[str]) -> int:
    """Return how many samples have entries with different labels."""
    number = np.unique(names, return_inverse=True)[1]
    pairs = np.unique(np.stack([groups, number]), axis=1)
    return int((np.bincount(pairs[0]) > 1).sum())


def _class_counts(groups: Any, names: list[str], columns: Columns) -> list[ClassCount]:
    """Return the classes in their order; a copy is an entry beyond the first of its sample in the class."""
    entries: Counter[str] = Counter(names)
    distinct: Counter[str] = Counter(name for _, name in set(zip(groups.tolist(), names, strict=True)))
    known = [*columns.class_names, *sorted((name for name in entries if name not in columns.class_names), key=_numeric)]
    return [
        ClassCount(
            name=name,
            entries=entries[name],
            copies=entries[name] - distinct[name],
            unique=distinct[name],
            share=entries[name] / len(names),
        )
        for name in known
    ]


def _numeric(name: str) -> tuple[int, str]:
    return (int(name), "") if name.lstrip("-").isdecimal() else (2**62, name)
