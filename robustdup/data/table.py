"""The samples of a `datasets.Dataset` as images and labels; only those that are asked for are decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustdup.data.columns import find_columns
from robustdup.data.decode import (
    UNREADABLE,
    check_options,
    open_picture,
    see_through,
    stack,
    to_tensor,
    why_unreadable,
)
from robustdup.data.hub import commit_of
from robustdup.errors import UserError, plain

if TYPE_CHECKING:
    import datasets

    from robustdup.config import DataOptions
    from robustdup.data.dataset import Samples

TWELVE_BITS = 4096 / 65535
LONGEST_PATH = 300  # letters of a path that a message shows
_CHUNK = 256  # rows whose encoded bytes are held at once


def open_rows(
    rows: Any, options: DataOptions, place: str, *, split: str | None = None, notes: tuple[str, ...] = ()
) -> Samples:
    """Return the samples of a split of that name, which lies in a table or in arrays. Raises UserError.

    `notes` come before those of the samples themselves.
    """
    from robustdup.data.arrays import Arrays, ArraySamples
    from robustdup.data.labels import as_arrays, numbered_labels

    samples: Any
    if isinstance(rows, Arrays):
        samples = ArraySamples(rows, options, place)
    else:
        rows, remarks = numbered_labels(rows, options, place)
        notes = (*notes, *remarks)
        columns = find_columns(rows.features, image=options.image_column, label=options.label_column, place=place)
        if columns.numbers:
            samples = ArraySamples(as_arrays(rows, columns, place), options, place)
            notes = (*notes, *columns.notes)
        else:
            samples = TableSamples(rows, options, place)
    samples.add_notes(notes)
    samples.split = split
    return samples  # type: ignore[no-any-return]


class TableSamples:
    """One split of a dataset. `revision` is the commit on the Hub, `notes` say which column was chosen where several fit."""

    split: str | None = None

    def __init__(self, dataset: datasets.Dataset, options: DataOptions, place: str) -> None:
        check_options(options)
        import datasets

        columns = find_columns(dataset.features, image=options.image_column, label=options.label_column, place=place)
        self.revision, self.class_names = commit_of(dataset), columns.class_names
        self._notes, self._see_through, self._deepest = columns.notes, set[int](), 0.0
        self._columns, self._options, self._place = columns, options, place
        if columns.raw:
            dataset = dataset.cast_column(columns.image, datasets.Image())
        dataset = dataset.select_columns([columns.image, columns.label])
        self._dataset = dataset.cast_column(columns.image, datasets.Image(decode=False)).with_format(None)

    def __len__(self) -> int:
        return len(self._dataset)

    def add_notes(self, notes: tuple[str, ...]) -> None:
        """Put notes before those of the columns."""
        self._notes = (*notes, *self._notes)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know, of the columns and of the pictures that were read so far."""
        remarks = list(self._notes)
        if self._see_through:
            remarks.append(
                f"{len(self._see_through)} pictures of {self._place} have transparent pixels; white is put behind them."
            )
        if 0 < self._deepest < TWELVE_BITS:
            remarks.append(
                f"The 16-bit pictures of {self._place} have values below 4,096 alone, as 12-bit ones have: they are read as "
                "dark as that. Scale them to 65,535 first."
            )
        return tuple(remarks)

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images float32 (n, C, H, W) in [0, 1] and labels int64 (n,) of these samples. Raises UserError."""
        images, labels = [], []
        for start in range(0, len(indices), _CHUNK):
            part = list(indices[start : start + _CHUNK])
            content = self._dataset[part]
            for row, image, label in zip(part, content[self._columns.image], content[self._columns.label], strict=True):
                images.append(self._decode(row, image))
                labels.append(self._label(row, label))
        return stack(images, indices, self._place), torch.tensor(labels, dtype=torch.int64)

    def labels(self, indices: Sequence[int]) -> list[int]:
        """Return the labels of these samples; no image is decoded. Raises UserError."""
        column = self._dataset.select_columns([self._columns.label]).select(indices)[self._columns.label]
        return [self._label(row, label) for row, label in zip(indices, column, strict=True)]

    def _decode(self, row: int, encoded: Any) -> Tensor:
        if encoded is None:
            raise UserError(
                f"Row {row} of {self._place} has no image in column {self._columns.image!r}.", code="unreadable-image"
            )
        try:
            image = open_picture(encoded)
            if see_through(image):
                self._see_through.add(row)
            tensor = to_tensor(image, self._options)
            if image.mode.startswith("I"):
                self._deepest = max(self._deepest, float(tensor.max()))
            return tensor
        except UNREADABLE as error:
            raise UserError(
                f"The image in row {row}{_name(encoded)} of {self._place} {_reason(error)}.", code="unreadable-image"
            ) from error

    def _label(self, row: int, label: Any) -> int:
        if label is None:
            raise UserError(
                f"Row {row} of {self._place} has no label in column {self._columns.label!r}.", code="no-label"
            )
        if not -(2**63) <= int(label) < 2**63:
            raise UserError(
                f"Row {row} of {self._place} has the label {label}: classes are numbered from 0.", code="bad-labels"
            )
        return int(label)


def _name(encoded: Any) -> str:
    path = encoded.get("path")
    return f" ({plain(path, LONGEST_PATH)})" if path else ""


def _reason(error: Exception) -> str:
    if type(error) is ValueError:
        return str(error)
    return f"cannot be read: {why_unreadable(error)}"
