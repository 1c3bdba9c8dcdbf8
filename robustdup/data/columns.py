"""Which columns of a dataset hold the images and the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustdup.errors import UserError, unknown

IMAGE_NAMES = ("image", "img", "images")
NUMBER_NAMES = (*IMAGE_NAMES, "pixels", "pixel_values", "x", "data", "input", "inputs")  # of lists of numbers
LABEL_NAMES = ("label", "labels", "fine_label")  # fine_label: CIFAR-100 as RobustBench ranks it
NO_LABELS = "has no labels"
MOST_NAMED = 5  # columns that a sentence names
MORE_LABEL_NAMES = (
    "target",
    "targets",
    "y",
    "class",
    "classes",
    "cls",
    "class_id",
    "class_label",
    "class_name",
    "label_name",
    "category",
    "category_id",
    "category_name",
    "classname",
    "gt",
    "ground_truth",
    "annotation",
)


@dataclass(frozen=True)
class Columns:
    """The columns to read; `label` is empty where there is none and none was needed.

    `raw` marks images that the dataset stores as bytes without saying that they are images, `numbers` those that are arrays or
    nested lists of numbers.
    """

    image: str
    label: str
    class_names: list[str]
    raw: bool
    numbers: bool = False
    notes: tuple[str, ...] = ()


def find_columns(
    features: Mapping[str, Any], *, image: str | None, label: str | None, place: str, needs_labels: bool = True
) -> Columns:
    """Return the columns of images and labels, found by feature type and usual name, or as named. Raises UserError.

    With `needs_labels` False, data without labels will do.
    """
    for kind, name in (("image", image), ("label", label)):
        if name is not None and name not in features:
            raise unknown(f"{kind} column of {place}:", name, features)
    named = image is not None
    image = image or _find_image(features, place)
    numbers = _is_numbers(features[image])
    if not (_is_image(features[image]) or _is_image_bytes(features[image]) or numbers):
        raise UserError(
            f"Column {image!r} of {place} does not hold images but {_describe(features[image])}.", code="bad-column"
        )
    raw = not _is_image(features[image]) and not numbers
    others = [name for name, feature in features.items() if name != image and _is_image(feature)]
    remarks: tuple[str, ...] = ()
    if others and not named and image in features:
        remarks = (f"{place}: images are taken from column {image!r}; image_column could also be {', '.join(others)}.",)
    if not (label or needs_labels or _labels_of(features, image)):
        return Columns(image, "", [], raw, numbers, (*remarks, _no_labels(features, image, place)))
    label, notes = (label, ()) if label else _find_label(features, image, place)
    feature = features[label]
    names = list(getattr(feature, "names", None) or [])
    if not names and not _is_label(feature):
        raise UserError(
            f"Column {label!r} of {place} does not hold classes (numbers, text, true and false, one-hot rows) but "
            f"{_describe(feature)}.",
            code="bad-column",
        )
    return Columns(image, label, names, raw=raw, numbers=numbers, notes=(*remarks, *notes))


def label_feature(class_names: Sequence[str]) -> Any:
    """Return the feature of a column of class numbers, with the names of the classes where they are known."""
    import datasets

    return datasets.ClassLabel(names=list(class_names)) if class_names else datasets.Value("int64")


def picture_table(
    images: Sequence[Any], labels: Sequence[int] | None, class_names: Sequence[str], split: str | None = None
) -> Any:
    """Return a `datasets.Dataset` of pictures, as paths, encoded or PIL's, with labels where they are known."""
    import datasets

    features, columns = {"image": datasets.Image()}, {"image": list(images)}
    if labels is not None:
        features["label"], columns["label"] = label_feature(class_names), list(labels)
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features), split=split)


def arrow_column(dataset: Any, name: str) -> Any:
    """Return a column of a `datasets.Dataset` as Arrow has it; nothing is decoded."""
    return dataset.select_columns([name]).with_format("arrow")[:][name]


def whole_labels(dataset: Any, name: str, place: str) -> Any:
    """Return the column of labels as Arrow has it. Raises UserError for a row without one."""
    column = arrow_column(dataset, name)
    if column.null_count:
        row = column.to_pylist().index(None)
        raise UserError(f"Row {row} of {place} has no label in column {name!r}.", code="no-label")
    return column


def usual_form(name: str) -> str:
    """Return the name of a column as the usual names are written: Class Name is class_name."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def class_name(number: int, class_names: Sequence[str]) -> str:
    """Return the name of a class, or its number where it has none."""
    return class_names[number] if 0 <= number < len(class_names) else str(number)


def _find_image(features: Mapping[str, Any], place: str) -> str:
    for test in (_is_image, _is_image_bytes):
        candidates = [name for name, feature in features.items() if test(feature)]
        if test is _is_image_bytes:  # bytes may be anything: believe them only under a usual name
            candidates = [name for name in candidates if name in IMAGE_NAMES]
        if candidates:
            return _choose(candidates, IMAGE_NAMES, "image", place)[0]
    candidates = [name for name in NUMBER_NAMES if name in features and _is_numbers(features[name])]
    if candidates:
        return candidates[0]
    raise UserError(
        f"No column of {place} holds images; it has {_listed(features)}. Name it with image_column if one of them does.",
        code="no-column",
    )


def _find_label(features: Mapping[str, Any], image: str, place: str) -> tuple[str, tuple[str, ...]]:
    candidates = _labels_of(features, image) or [name for name in LABEL_NAMES if name in features]
    if not candidates and set(features) == {image}:
        raise UserError(
            f"The images of {place} have no labels: put pictures into folders of classes, or a list of file_name and label "
            "(CSV, JSON, text) beside them. Names of files say the class only where all are a class and a number (cat.1.png).",
            code="no-column",
        )
    if not candidates:
        raise UserError(
            f"No column of {place} is known to hold labels; it has {_listed(features)}. Name it: label_column.",
            code="no-column",
        )
    return _choose(candidates, (*LABEL_NAMES, *MORE_LABEL_NAMES), "label", place)


def _no_labels(features: Mapping[str, Any], image: str, place: str) -> str:
    """Say that labels are not known, and which columns may hold them all the same."""
    others = [name for name, feature in features.items() if name != image and _is_label(feature)]
    message = f"{place} {NO_LABELS}: conflicts among them cannot be told."
    if 0 < len(others) <= MOST_NAMED:
        message += f" If {' or '.join(others)} holds classes, name it with label_column."
    return message


def _labels_of(features: Mapping[str, Any], image: str) -> list[str]:
    """Return the columns that hold class numbers for certain; where there is none, those of a usual name that hold classes."""
    certain = [
        name
        for name, feature in features.items()
        if getattr(feature, "names", None) or (name in LABEL_NAMES and _is_integer(feature))
    ]
    usual = (*LABEL_NAMES, *MORE_LABEL_NAMES)
    return certain or [name for name in usual if name in features and name != image and _is_label(features[name])]


def _choose(candidates: Sequence[str], usual: Sequence[str], kind: str, place: str) -> tuple[str, tuple[str, ...]]:
    if len(candidates) == 1:
        return candidates[0], ()
    first = next((name for name in usual if name in candidates), None)
    options = ", ".join(sorted(candidates))
    if first is None:
        raise UserError(
            f"Several columns of {place} could hold the {kind}s: {options}. Name one with {kind}_column.",
            code="ambiguous-column",
        )
    others = ", ".join(sorted(set(candidates) - {first}))
    return first, (f"{place}: {kind}s are taken from column {first!r}; {kind}_column could also be {others}.",)


def _is_image(feature: Any) -> bool:
    return type(feature).__name__ == "Image"


def _is_image_bytes(feature: Any) -> bool:
    """True for what parquet files written without `datasets` hold: encoded bytes, alone or with their path."""
    if isinstance(feature, Mapping):
        return set(feature) == {"bytes", "path"} and _dtype(feature["bytes"]) in ("binary", "large_binary")
    return _dtype(feature) in ("binary", "large_binary")


def _is_numbers(feature: Any) -> bool:
    """True for images as arrays or nested lists of numbers: at least two levels of lists."""
    if type(feature).__name__ in ("Array2D", "Array3D"):
        return True
    depth = 0
    while not isinstance(feature, Mapping) and (inner := _inside(feature)) is not None:
        feature, depth = inner, depth + 1
    return depth >= 2 and _dtype(feature).startswith(("int", "uint", "float"))


def _inside(feature: Any) -> Any:
    if isinstance(feature, list):
        return feature[0] if len(feature) == 1 else None
    return getattr(feature, "feature", None)


def _is_label(feature: Any) -> bool:
    """True for what can be read as one class a row: numbers, text, true and false, and rows of numbers."""
    if isinstance(feature, Mapping):
        return False
    inner = _inside(feature)
    kinds = ("int", "uint", "float", "bool", *(() if inner is not None else ("string", "large_string")))
    return _dtype(feature if inner is None else inner).startswith(kinds)


def is_class_number(feature: Any) -> bool:
    """True for a column of class numbers, named or not."""
    return bool(getattr(feature, "names", None)) or _is_integer(feature)


def _is_integer(feature: Any) -> bool:
    return _dtype(feature).startswith(("int", "uint"))


def _dtype(feature: Any) -> str:
    return str(feature.dtype) if type(feature).__name__ == "Value" else ""


def _describe(feature: Any) -> str:
    dtype = _dtype(feature)
    return {"string": "text", "": type(feature).__name__}.get(dtype, dtype)


def _listed(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({_describe(feature)})" for name, feature in features.items()) or "no columns"
