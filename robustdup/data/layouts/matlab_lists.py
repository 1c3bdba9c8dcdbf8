"""Lists in MATLAB files beside pictures: Stanford Cars and Dogs name each file, Flowers-102 counts its numbered pictures."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustdup.data.columns import LABEL_NAMES, MORE_LABEL_NAMES
from robustdup.data.layouts.list_files import PATHS, PICTURE, Listed, Row

LABELS = {*LABEL_NAMES, *MORE_LABEL_NAMES}
NAMES = ("class_names", "classes", "class_name", "labels_names")
SPLITS = {
    "trnid": "train",
    "valid": "validation",
    "tstid": "test",
}  # https://www.robots.ox.ac.uk/~vgg/data/flowers/102/
LARGEST = 100_000_000  # bytes of a file that may be a list


def read_matlab_list(file: Path, pictures: Sequence[str]) -> Listed:
    """Return the rows of a list in a MATLAB file; none where it is no such list.

    Args:
        file: a file of a version before 7.3.
        pictures: the names of all pictures, in order. Where they end in the numbers from 1, a file may give the class of each by
            its place alone, and the numbers of those in each split.
    """
    import scipy.io

    if file.stat().st_size > LARGEST:
        return Listed([])
    try:
        content = scipy.io.loadmat(io.BytesIO(file.read_bytes()), simplify_cells=True)
    except Exception:  # noqa: BLE001
        return Listed([])  # of version 7.3, or damaged: no list
    content = {name: value for name, value in content.items() if not name.startswith("__")}
    names = next((_texts(content[name]) for name in NAMES if name in content), [])
    numbered = _in_order(pictures)
    rows = (
        next((rows for value in content.values() if (rows := _of_structs(value))), [])
        or _side_by_side(content)
        or _by_place(content, pictures if numbered else ())
        or [(pictures[number - 1], "", split) for name, split in SPLITS.items() if numbered
            for number in np.ravel(content.get(name, ())).astype(int).tolist() if 0 < number <= len(pictures)]
    )  # fmt: skip
    return Listed(rows, {str(number): name for number, name in enumerate(names, start=1)})


def _texts(value: Any) -> list[str]:
    texts = np.ravel(np.asarray(value, dtype=object)).tolist()
    return texts if all(isinstance(text, str) for text in texts) else []


def _of_structs(value: Any) -> list[Row]:
    """Return the rows of structs with a file and a class each: annotations(i).fname, annotations(i).class."""
    structs = value if isinstance(value, list) else np.ravel(value).tolist() if isinstance(value, np.ndarray) else []
    if not structs or not all(isinstance(each, Mapping) for each in structs):
        return []
    path = next((name for name in ("fname", *PATHS) if name in structs[0]), None)
    label = next((name for name in structs[0] if name in LABELS), None)
    if path is None or label is None:
        return []
    return [(str(each[path]), str(each[label]), None) for each in structs]


def _side_by_side(content: Mapping[str, Any]) -> list[Row]:
    """Return the rows of a list of files and as many classes beside it: file_list, labels."""
    paths = next((texts for value in content.values() if (texts := _texts(value)) and _are_paths(texts)), [])
    return (
        [(path, label, None) for path, label in zip(paths, _classes(content, len(paths)), strict=True)] if paths else []
    )


def _are_paths(texts: Sequence[str]) -> bool:
    return all(PICTURE.fullmatch(text) for text in texts)


def _by_place(content: Mapping[str, Any], pictures: Sequence[str]) -> list[Row]:
    return [(path, label, None) for path, label in zip(pictures, _classes(content, len(pictures)), strict=False)]


def _classes(content: Mapping[str, Any], count: int) -> list[str]:
    """Return so many whole numbers under a usual name of labels, as text; nothing where there are none."""
    for name in sorted(LABELS & content.keys()):
        values = np.ravel(content[name])
        if len(values) == count and values.dtype.kind in "iuf":
            return [str(int(value)) for value in values]
    return []


def _in_order(pictures: Sequence[str]) -> bool:
    """Tell whether pictures end in 1, 2, 3 … behind the same words."""
    ends = [re.fullmatch(r"(.*?)([0-9]+)\.[A-Za-z]+", name) for name in pictures]
    whole = [end for end in ends if end]
    return (
        len(whole) == len(ends) > 1
        and len({end[1] for end in whole}) == 1
        and [int(end[2]) for end in whole] == list(range(1, len(ends) + 1))
    )
