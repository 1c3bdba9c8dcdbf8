"""Labels of any usual kind as class numbers, the same in all splits: text, true and false, whole floats, one-hot rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from robustdup.data.arrays import Arrays, class_numbers, make_arrays
from robustdup.data.classes import missing_note, number_classes
from robustdup.data.columns import Columns, find_columns, is_class_number
from robustdup.data.layouts.opened import Opened
from robustdup.errors import UserError

if TYPE_CHECKING:
    import datasets

    from robustdup.config import DataOptions


def with_class_numbers(opened: Opened, options: DataOptions, place: str) -> Opened:
    """Return splits whose labels are class numbers; text is numbered over all splits, so that a class has one number.

    Raises UserError for labels that are no classes, unless the options need no labels.
    """
    tables = {name: rows for name, rows in opened.splits.items() if not isinstance(rows, Arrays)}
    columns = {name: _columns(rows, options, place) for name, rows in tables.items()}
    odd = {name: found for name, found in columns.items() if found is not None and _is_odd(tables[name], found)}
    if not odd:
        return opened
    texts = {name: _texts(tables[name], found.label) for name, found in odd.items()}
    every = {word for words in texts.values() if words is not None for word in words if word is not None}
    names, numbers, told = number_classes(every)
    splits, notes, split_notes = dict(opened.splits), [*opened.notes, *told], dict(opened.split_notes)
    for name, found in odd.items():
        words = texts[name]
        if words is not None:
            codes: list[int | None] = [None if word is None else numbers[word] for word in words]
            splits[name] = _with_codes(tables[name], found.label, codes, names)
            split_notes[name] = (
                *split_notes.get(name, ()),
                *missing_note(name, names, (w for w in words if w is not None)),
            )
        else:
            try:
                splits[name], more = _numeric(tables[name], found.label, f"{place} ({name})")
            except UserError:
                if options.needs_labels:
                    raise
                continue  # fractions, lists of several labels: who needs no classes gets them as they are
            notes += more
    return replace(opened, splits=splits, notes=tuple(dict.fromkeys(notes)), split_notes=split_notes)


def numbered_labels(
    dataset: datasets.Dataset, options: DataOptions, place: str
) -> tuple[datasets.Dataset, tuple[str, ...]]:
    """Return one split alone with its labels as class numbers, and what to tell. Raises UserError."""
    opened = with_class_numbers(Opened({"": dataset}), options, place)
    return opened.splits[""], (*opened.notes, *opened.split_notes.get("", ()))


def _columns(dataset: Any, options: DataOptions, place: str) -> Columns | None:
    """Return the columns of a split; None where they cannot be told, which is said when it is read."""
    try:
        found = find_columns(
            dataset.features, image=options.image_column, label=options.label_column, place=place, needs_labels=False
        )
    except UserError:
        return None
    return found if found.label else None


def _is_odd(dataset: Any, columns: Columns) -> bool:
    return not is_class_number(dataset.features[columns.label])


def _column(dataset: Any, name: str) -> Any:
    return dataset.select_columns([name]).with_format("arrow")[:][name]


def _texts(dataset: Any, name: str) -> list[str | None] | None:
    """Return the labels as text, None for a row without one; None for labels of another kind."""
    if getattr(dataset.features[name], "dtype", "") not in ("string", "large_string"):
        return None
    values: list[str | None] = _column(dataset, name).to_pylist()
    return values


def _numeric(dataset: Any, name: str, place: str) -> tuple[Any, list[str]]:
    values = _column(dataset, name).to_pylist()
    known = [value for value in values if value is not None]
    if not known:
        return dataset, []
    try:
        array = np.array(known)
    except ValueError:
        raise UserError(
            f"Column {name!r} of {place} has lists of labels: one class an image is needed.", code="bad-labels"
        ) from None
    codes, names, told = class_numbers(array, place)
    numbers = iter(codes.tolist())
    return _with_codes(dataset, name, [None if value is None else next(numbers) for value in values], names), told


def _with_codes(dataset: Any, name: str, codes: list[int | None], names: list[str]) -> Any:
    import datasets

    feature = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    place = list(dataset.column_names)
    changed = dataset.remove_columns([name]).add_column(name, codes, feature=feature)
    return changed.select_columns(place)


def as_arrays(dataset: Any, columns: Columns, place: str) -> Arrays:
    """Return a split whose images are columns of numbers (Array3D, nested lists) as arrays. Raises UserError."""
    values = dataset.select_columns([columns.image]).with_format("numpy")[:][columns.image]
    try:
        images = np.stack(list(values)) if not isinstance(values, np.ndarray) or values.dtype == object else values
    except ValueError:
        raise UserError(
            f"The images in column {columns.image!r} of {place} differ in shape.", code="different-sizes"
        ) from None
    labels = None
    if columns.label:
        column = _column(dataset, columns.label)
        if column.null_count:
            row = column.to_pylist().index(None)
            raise UserError(f"Row {row} of {place} has no label in column {columns.label!r}.", code="no-label")
        labels = column.to_numpy()
    return make_arrays(images, labels, place, class_names=columns.class_names)
