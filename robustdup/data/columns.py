"""Which columns of a dataset hold the images and the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustdup.errors import UserError, unknown

IMAGE_NAMES = ("image", "img", "images")
LABEL_NAMES = ("label", "labels", "fine_label")  # fine_label: CIFAR-100 as RobustBench ranks it


@dataclass(frozen=True)
class Columns:
    """The columns to read; `label` is empty where there is none and none was needed.

    `raw` marks images that the dataset stores as bytes without saying that they are images.
    """

    image: str
    label: str
    class_names: list[str]
    raw: bool
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
    image = image or _find_image(features, place)
    if not (_is_image(features[image]) or _is_image_bytes(features[image])):
        raise UserError(
            f"Column {image!r} of {place} does not hold images but {_describe(features[image])}.", code="bad-column"
        )
    raw = not _is_image(features[image])
    if not (label or needs_labels or _labels_of(features)):
        return Columns(image, "", [], raw, (f"{place} has no labels: conflicts among them cannot be told.",))
    label, notes = (label, ()) if label else _find_label(features, place)
    feature = features[label]
    names = list(getattr(feature, "names", None) or [])
    if not names and not _is_integer(feature):
        advice = f" Encode it first: dataset.class_encode_column({label!r})." if _dtype(feature) == "string" else ""
        raise UserError(
            f"Column {label!r} of {place} does not hold class numbers 0..K-1 but {_describe(feature)}.{advice}",
            code="bad-column",
        )
    return Columns(image, label, names, raw=raw, notes=notes)


def class_name(number: int, class_names: Sequence[str]) -> str:
    """Return the name of a class, or its number where it has none."""
    return class_names[number] if number < len(class_names) else str(number)


def _find_image(features: Mapping[str, Any], place: str) -> str:
    for test in (_is_image, _is_image_bytes):
        candidates = [name for name, feature in features.items() if test(feature)]
        if test is _is_image_bytes:  # bytes may be anything: believe them only under a usual name
            candidates = [name for name in candidates if name in IMAGE_NAMES]
        if candidates:
            return _choose(candidates, IMAGE_NAMES, "image", place)[0]
    raise UserError(
        f"No column of {place} holds images; it has {_listed(features)}. Name it with image_column if one of them does.",
        code="no-column",
    )


def _find_label(features: Mapping[str, Any], place: str) -> tuple[str, tuple[str, ...]]:
    candidates = _labels_of(features) or [name for name in LABEL_NAMES if name in features]
    if not candidates:
        raise UserError(
            f"No column of {place} is known to hold labels; it has {_listed(features)}. Name it: label_column.",
            code="no-column",
        )
    return _choose(candidates, LABEL_NAMES, "label", place)


def _labels_of(features: Mapping[str, Any]) -> list[str]:
    return [
        name
        for name, feature in features.items()
        if getattr(feature, "names", None) or (name in LABEL_NAMES and _is_integer(feature))
    ]


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


def _is_integer(feature: Any) -> bool:
    return _dtype(feature).startswith(("int", "uint"))


def _dtype(feature: Any) -> str:
    return str(feature.dtype) if type(feature).__name__ == "Value" else ""


def _describe(feature: Any) -> str:
    dtype = _dtype(feature)
    return {"string": "text", "": type(feature).__name__}.get(dtype, dtype)


def _listed(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({_describe(feature)})" for name, feature in features.items()) or "no columns"
