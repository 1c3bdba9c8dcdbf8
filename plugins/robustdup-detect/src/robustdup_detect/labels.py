"""The labels of both sides of a search as class numbers with names that hold in both, whatever they are stored as.

Classes are numbered where a dataset is opened (`robustdup.data.labels`). What is left for this module: labels that are no classes
(fractions, several an image), rows without one, and classes that two datasets number otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from robustdup.data.columns import LABEL_NAMES, MORE_LABEL_NAMES, NO_LABELS, Columns, find_columns
from robustdup.errors import unknown

if TYPE_CHECKING:
    from robustdup.config import DataOptions

UNKNOWN = -1  # the number of no class


def open_columns(dataset: Any, options: DataOptions, place: str) -> tuple[Any, Columns]:
    """Return a split whose images are known as such, and its columns; `label` is empty where there are no labels.

    Labels are in the column that is named, in one that says so by its type, or in one with a usual name. What was chosen
    among several is told in the notes. Raises UserError for a column that is not there or holds no images.
    """
    import datasets

    features, named = dataset.features, options.label_column
    if named is not None and named not in features:
        raise unknown(f"label column of {place}:", named, features)
    looked_at = {
        name: feature for name, feature in features.items() if named is None or not getattr(feature, "names", None)
    }
    columns = find_columns(looked_at, image=options.image_column, label=None, place=place, needs_labels=False)
    lower = {name.lower(): name for name in features}
    label = (
        named or columns.label or next((lower[name] for name in (*LABEL_NAMES, *MORE_LABEL_NAMES) if name in lower), "")
    )
    notes = [note for note in columns.notes if not label or NO_LABELS not in note]
    if label and not (named or columns.label):
        notes.append(f"{place}: labels are taken from column {label!r}; another could be named with label_column.")
    opened = dataset.cast_column(columns.image, datasets.Image()) if columns.raw else dataset
    return opened, replace(columns, label=label, notes=tuple(notes))


def read_labels(datasets: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return the labels of each split, int64 (n,), UNKNOWN where there is none, and the names of the classes.

    `columns` names the column of each split, "" for none. Numbers from 0 stay what they are. Text, truth values, other
    numbers and lists are numbered in the order of their names; so are classes that two splits call by other numbers.
    """
    read = {name: _values(dataset, columns[name]) for name, dataset in datasets.items()}
    names = {name: class_names for name, (_, _, class_names) in read.items() if columns[name]}
    kept = next(iter(names.values()), [])
    numbers = {value for _, values, _ in read.values() for value in values if value is not None}
    whole = all(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 for value in numbers)
    if whole and all(each == kept for each in names.values()):
        return {name: _numbered(codes, values) for name, (codes, values, _) in read.items()}, list(kept)
    called = {
        name: [None if value is None else _name(value, class_names) for value in values]
        for name, (_, values, class_names) in read.items()
    }
    every = sorted({name for part in called.values() for name in part if name is not None}, key=_natural)
    if kept and set(every) <= set(kept):
        every = list(kept)
    number = {name: place for place, name in enumerate(every)}
    made = {
        name: _numbered(codes, [None if value is None else number[value] for value in called[name]])
        for name, (codes, _, _) in read.items()
    }
    return made, every


def _values(dataset: Any, column: str) -> tuple[Any, list[Any], list[str]]:
    """Return the code of each row, the value of each code (None: no label), and the names of a ClassLabel."""
    if not column:
        return np.zeros(len(dataset), np.int64), [None], []
    import pyarrow as pa

    feature = dataset.features[column]
    names = list(getattr(feature, "names", None) or [])
    values = dataset.select_columns([column]).with_format("arrow")[:][column]
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if isinstance(values, pa.ChunkedArray):
        values = pa.concat_arrays(values.chunks)
    if pa.types.is_nested(values.type):  # several labels of one image, in any order
        values = pa.array([_text(row) if row else None for row in values.to_pylist()], pa.string())
    encoded = values.dictionary_encode("encode")
    unique = [_plain(value, bool(names)) for value in encoded.dictionary.to_pylist()]
    codes = encoded.indices.fill_null(len(unique)).to_numpy(zero_copy_only=False).astype(np.int64)
    if {-1, 0} <= {value for value in unique if type(value) is int}:  # beside 0, 1, …, the usual number of no class
        unique = [None if value == -1 else value for value in unique]
    return codes, [*unique, None], names


def _natural(name: str) -> tuple[bool, float, str]:
    """Sort numbers by value, before text."""
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name


def _text(row: Any) -> str:
    parts = sorted(str(part) for part in row) if isinstance(row, list) else [str(row)]
    return ", ".join(parts)


def _plain(value: Any, named: bool) -> Any:
    """Return a label as it is compared: whole floats as numbers; None for what says that there is none."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if named and value < 0:  # a ClassLabel that is not known
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _name(value: Any, class_names: list[str]) -> str:
    known = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(class_names)
    return class_names[value] if known else str(value)


def _numbered(codes: Any, values: list[int | None]) -> Any:
    return np.array([UNKNOWN if value is None else value for value in values], np.int64)[codes]
