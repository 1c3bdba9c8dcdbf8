"""Labels of any usual kind as class numbers, the same in all splits: text, true and false, whole floats, one-hot rows.

Training and evaluation need classes (`with_class_numbers`). To compare images only what is equal counts (`open_with_any_labels`,
`read_labels`): labels that are no classes (fractions, several an image, dates), rows without one, and classes that two datasets
number otherwise will do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from robustdup.data.arrays import Arrays, class_numbers, make_arrays
from robustdup.data.classes import missing_note, names_of_numbers, number_classes
from robustdup.data.columns import (
    LABEL_NAMES,
    MORE_LABEL_NAMES,
    NO_LABELS,
    Columns,
    arrow_column,
    find_columns,
    is_class_number,
    label_feature,
    usual_form,
    whole_labels,
)
from robustdup.data.layouts.opened import Opened
from robustdup.errors import UserError, unknown

if TYPE_CHECKING:
    import datasets

    from robustdup.config import DataOptions

UNKNOWN = -1  # the number of no class


def with_class_numbers(opened: Opened, options: DataOptions, place: str) -> Opened:
    """Return splits whose labels are class numbers; text is numbered over all splits, so that a class has one number.

    Raises UserError for labels that are no classes, unless the options need no labels.
    """
    opened = _named_by_columns(opened, options, place)
    tables = {name: rows for name, rows in opened.splits.items() if not isinstance(rows, Arrays)}
    columns = {name: _columns(rows, options, place) for name, rows in tables.items()}
    odd = {name: pair for name, pair in columns.items() if pair is not None and _is_odd(tables[name], pair)}
    if not odd:
        return opened
    texts = {name: _texts(tables[name], pair.label) for name, pair in odd.items()}
    every = {word for words in texts.values() if words is not None for word in words if word is not None}
    names, numbers, remarks = number_classes(every)
    splits, notes, split_notes = dict(opened.splits), [*opened.notes, *remarks], dict(opened.split_notes)
    for name, pair in odd.items():
        words = texts[name]
        if words is not None:
            codes: list[int | None] = [None if word is None else numbers[word] for word in words]
            splits[name] = _with_codes(tables[name], pair.label, codes, names)
            split_notes[name] = (
                *split_notes.get(name, ()),
                *missing_note(name, names, (w for w in words if w is not None)),
            )
        else:
            try:
                splits[name], more = _numeric(tables[name], pair.label, f"{place} ({name})")
            except UserError:
                if options.needs_labels:
                    raise
                continue  # fractions, lists of several labels: who needs no classes gets them as they are
            notes += more
    return replace(opened, splits=splits, notes=tuple(dict.fromkeys(notes)), split_notes=split_notes)


def _named_by_columns(opened: Opened, options: DataOptions, place: str) -> Opened:
    """Return splits whose class numbers have the names that another column of a usual name gives each of them, where one does.

    Text beside numbers is numbered as these say, unless it is named as the label.
    """
    tables = {name: rows for name, rows in opened.splits.items() if not isinstance(rows, Arrays)}
    pairs = {name: _columns(rows, options, place) for name, rows in tables.items()}
    if not tables or None in pairs.values() or len({(pair.label, pair.image) for pair in pairs.values() if pair}) != 1:
        return opened
    (label,) = {pair.label for pair in pairs.values() if pair}
    first = next(iter(tables.values())).features
    if getattr(first[label], "names", None):
        return opened
    texts: list[str] = []
    numbers: list[str] = []
    for name in (*LABEL_NAMES, *MORE_LABEL_NAMES):
        if all(name in rows.features for rows in tables.values()):
            kind = getattr(first[name], "dtype", "")
            (texts if kind in ("string", "large_string") else numbers if is_class_number(first[name]) else []).append(
                name
            )
    numbers = [label] if label in numbers else [] if options.label_column is not None else numbers
    for number, text in ((number, text) for number in numbers for text in texts if label in (number, text)):
        found = names_of_numbers(
            (str(code), str(word))
            for rows in tables.values()
            for code, word in zip(
                arrow_column(rows, number).to_pylist(), arrow_column(rows, text).to_pylist(), strict=True
            )
        )
        if found:
            names, places, remarks = number_classes(found)
            class_names = [found.get(name, name) for name in names]
            splits = {
                name: _with_codes(
                    rows, label, [places[str(code)] for code in arrow_column(rows, number).to_pylist()], class_names
                )
                for name, rows in tables.items()
            }
            told = f"Class numbers are those of column {number!r}, and their names those of {text!r}."
            return replace(opened, splits={**opened.splits, **splits}, notes=(*opened.notes, told, *remarks))
    return opened


def numbered_labels(
    dataset: datasets.Dataset, options: DataOptions, place: str
) -> tuple[datasets.Dataset, tuple[str, ...]]:
    """Return one split alone with its labels as class numbers, and what to tell. Raises UserError."""
    opened = with_class_numbers(Opened({"": dataset}), options, place)
    return opened.splits[""], (*opened.notes, *opened.split_notes.get("", ()))


def _columns(dataset: Any, options: DataOptions, place: str) -> Columns | None:
    """Return the columns of a split; None where they cannot be told, which is said when it is read."""
    try:
        pair = find_columns(
            dataset.features, image=options.image_column, label=options.label_column, place=place, needs_labels=False
        )
    except UserError:
        return None
    return pair if pair.label else None


def _is_odd(dataset: Any, columns: Columns) -> bool:
    return not is_class_number(dataset.features[columns.label])


def _texts(dataset: Any, name: str) -> list[str | None] | None:
    """Return the labels as text, None for a row without one; None for labels of another kind."""
    if getattr(dataset.features[name], "dtype", "") not in ("string", "large_string"):
        return None
    values: list[str | None] = arrow_column(dataset, name).to_pylist()
    return values


def _numeric(dataset: Any, name: str, place: str) -> tuple[Any, list[str]]:
    values = arrow_column(dataset, name).to_pylist()
    known = [value for value in values if value is not None]
    if not known:
        return dataset, []
    try:
        array = np.array(known)
    except ValueError:
        raise UserError(
            f"Column {name!r} of {place} has lists of labels: one class an image is needed.", code="bad-labels"
        ) from None
    codes, names, remarks = class_numbers(array, place)
    numbers = iter(codes.tolist())
    return _with_codes(dataset, name, [None if value is None else next(numbers) for value in values], names), remarks


def _with_codes(dataset: Any, name: str, codes: list[int | None], names: list[str]) -> Any:
    place = list(dataset.column_names)
    changed = dataset.remove_columns([name]).add_column(name, codes, feature=label_feature(names))
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
        labels = whole_labels(dataset, columns.label, place).to_numpy()
    return make_arrays(images, labels, place, class_names=columns.class_names)


def open_with_any_labels(dataset: Any, options: DataOptions, place: str) -> tuple[Any, Columns]:
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
    forms = {usual_form(name): name for name in features}
    label = (
        named or columns.label or next((forms[name] for name in (*LABEL_NAMES, *MORE_LABEL_NAMES) if name in forms), "")
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
    values = arrow_column(dataset, column)
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
