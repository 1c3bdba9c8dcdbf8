"""How a list that says which picture is of which class is written: CSV, JSON, text, attributes, ImageNet's lists."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustdup.data.classes import names_of_numbers
from robustdup.data.columns import LABEL_NAMES, MORE_LABEL_NAMES
from robustdup.data.layouts.folders import PICTURES
from robustdup.errors import UserError
from robustdup.inflation import check_holes, read_text

PATHS = ("file_name", "filename", "filepath", "file_path", "path", "image_path", "img_path", "file", "image", "img", "name",
         "image_id", "imageid", "id")  # fmt: skip
LABELS = (*LABEL_NAMES, *MORE_LABEL_NAMES, "wnid", "synset", "predictionstring", "diagnosis", "dx", "breed", "species")
SPLITS = ("split", "subset", "partition")
MARKS = {"is_valid": ("validation", "train"), "is_val": ("validation", "train"), "is_test": ("test", "train"),
         "is_train": ("train", "test")}  # columns of true and false, as fastai has them  # fmt: skip
TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
PARTITIONS = {"0": "train", "1": "validation", "2": "test"}  # as CelebA and WILDS number them
PAIRS = {"a", "b", "duplicate"}  # columns of a list of pairs, as `data detect --decisions` takes it
NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")
SEEN = 50  # rows by which a column is told
PICTURE = re.compile(r".*\.[A-Za-z0-9]{3,5}")  # a path with an ending
Row = tuple[str, str, str | None]  # path, class, split


@dataclass(frozen=True)
class Listed:
    """The rows of a list, (path, class, split); `names` are those of numbered classes, where a second column has them.

    Where the class of each row is empty, the list has paths alone. `columns` are those that have names; where there are
    several and none is known to be that of the classes, there are no rows.
    """

    rows: list[Row]
    names: dict[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()


def read_list(file: Path, label_column: str | None = None, known: Collection[str] = ()) -> Listed:
    """Return what a list holds; no rows where it is no such list.

    Args:
        file: the list.
        label_column: the column of classes, where it is named.
        known: names of pictures, by which a column of paths is told.

    Raises:
        UserError: for a file of gigabytes that nobody wrote.
    """
    check_holes(file)
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return Listed([])
    kind = file.suffix.lower()
    if kind in (".jsonl", ".json"):
        return _json_rows(text, lines if kind == ".jsonl" else None, label_column, known)
    attributes = _attributes(lines)
    if attributes is not None:
        return _by_name(attributes, label_column, known)
    mark = "\t" if "\t" in lines[0] else "," if "," in lines[0] else ";" if ";" in lines[0] else None
    try:
        table = list(csv.reader(lines, delimiter=mark)) if mark else _words(lines)
    except csv.Error:  # cells of 131,072 letters, which no path has
        return Listed([])
    if {_plain(cell) for cell in table[0]} >= PAIRS:
        return Listed([])
    if mark and _is_head(table, label_column, known):
        return _by_name([dict(zip(table[0], row, strict=False)) for row in table[1:]], label_column, known)
    if all(len(row) == 1 for row in table):
        return Listed([(row[0].strip(), "", None) for row in table])
    return _without_head([[cell.strip() for cell in row] for row in table if len(row) > 1], known)


def _without_head(table: Sequence[Sequence[str]], known: Collection[str]) -> Listed:
    """Return the rows of a table without names: the class stands behind the picture, or before it where it recurs there.

    MXNet's lists have a number, the class, the picture; CUB's images.txt has a key that no other row has, which is no class.
    """
    places = range(min(map(len, table)))
    path = next((place for place in places if _are_pictures([row[place] for row in table[:SEEN]], known)), 0)
    if path == 1 and len({row[0] for row in table}) == len(table):
        path = 0
    return Listed([(row[path], row[path - 1 if path else 1], None) for row in table])


def _json_rows(text: str, lines: list[str] | None, label_column: str | None, known: Collection[str]) -> Listed:
    try:
        rows = [json.loads(line) for line in lines] if lines is not None else json.loads(text)
    except (ValueError, RecursionError):
        return Listed([])
    if isinstance(rows, dict) and all(isinstance(rows.get(name), list) for name in ("images", "annotations")):
        return _joined(rows)
    if isinstance(rows, dict):  # a class under each path
        return Listed([(path, str(label), None) for path, label in rows.items() if isinstance(label, str | int)])
    if isinstance(rows, list) and rows and all(isinstance(row, list) and len(row) == 2 for row in rows):
        return _without_head([[str(cell) for cell in row] for row in rows], known)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return Listed([])
    return _by_name(rows, label_column, known)


def _joined(content: dict[str, Any]) -> Listed:
    """Return the rows of pictures, classes and who has which in three lists, as COCO and iNaturalist have them.

    https://github.com/visipedia/inat_comp. No rows where a picture has several classes, as in detection.
    """
    try:
        names = {str(each["id"]): str(each["name"]) for each in content.get("categories", [])}
        paths = {each["id"]: str(each["file_name"]) for each in content["images"]}
        pairs = {(each["image_id"], str(each["category_id"])) for each in content["annotations"]}
    except (KeyError, TypeError):
        return Listed([])
    if len({image for image, _ in pairs}) < len(pairs):
        return Listed([])
    rows: list[Row] = [(paths[image], label, None) for image, label in sorted(pairs, key=str) if image in paths]
    return Listed(rows, names if len(set(names.values())) == len(names) else {})


def _is_head(table: Sequence[Sequence[str]], label_column: str | None, known: Collection[str]) -> bool:
    """Tell a first row of names: usual ones, or above a column of pictures that names none itself."""
    usual = {_plain(name) for name in (*PATHS, *LABELS, *([label_column] if label_column else []))}
    head = [_plain(cell) for cell in table[0]]
    if len(set(head)) < len(head) or any(is_picture(cell, known) for cell in table[0]):
        return False
    return bool(set(head) & usual) or any(
        _are_pictures([row[place] for row in table[1:SEEN] if len(row) > place], known) for place in range(len(head))
    )


def is_picture(text: Any, known: Collection[str]) -> bool:
    """Tell whether a text names one of the known pictures, or a file with a picture's ending."""
    name = str(text).strip().replace("\\", "/").rpartition("/")[2]
    return (name in known and not name.isdecimal()) or Path(name).suffix.lower() in PICTURES


def _are_pictures(texts: Sequence[Any], known: Collection[str]) -> bool:
    return 2 * sum(is_picture(text, known) for text in texts) > len(texts)


def _words(lines: Sequence[str]) -> list[list[str]]:
    """Split lines at blanks: a path, which may have blanks itself, and its class, behind which other numbers may stand."""
    pairs = [line.rsplit(maxsplit=1) for line in lines]
    if any(PICTURE.fullmatch(pair[0]) for pair in pairs):
        return pairs
    words = [line.split() for line in lines]
    numbers = all(NUMBER.fullmatch(word) for row in words for word in row[2:])
    several = len({len(row) for row in words}) == 1 and len(words[0]) > 2
    return words if several and numbers else [line.split(maxsplit=1) for line in lines]  # classes may have blanks too


def _attributes(lines: Sequence[str]) -> list[dict[str, Any]] | None:
    """Return the rows of a list of attributes as CelebA has it: how many, their names, then a path with 1 and -1 for each.

    https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html
    """
    if len(lines) < 3 or not lines[0].strip().isdecimal():
        return None
    names, rows = lines[1].split(), [line.split() for line in lines[2:]]
    if any(len(row) != len(names) + 1 for row in rows):
        return None
    return [{"path": row[0], **dict(zip(names, row[1:], strict=True))} for row in rows]


def _plain(name: Any) -> str:
    """Return the name of a column as names are compared: ClassId and class_id are the same."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def _by_name(rows: Sequence[dict[str, Any]], label_column: str | None, known: Collection[str]) -> Listed:
    if not rows:
        return Listed([])
    columns = {_plain(name): name for name in rows[0]}
    usual = [columns[_plain(name)] for name in PATHS if _plain(name) in columns]
    pictures = (
        name for name in [*usual, *columns.values()] if _are_pictures([row.get(name) for row in rows[:SEEN]], known)
    )
    path = next(pictures, next(iter(usual), None))
    usual = [columns[_plain(name)] for name in LABELS if _plain(name) in columns]
    usual = [name for name in dict.fromkeys(usual) if name != path]
    label = columns.get(_plain(label_column)) if label_column else next(iter(usual), None)
    others = [name for name in columns.values() if name != path]
    if label is None and len(others) == 1 and label_column is None:
        label = others[0]
    if path is not None and label is None and (marked := _marked(rows, others)) is not None:
        return Listed(
            [(str(row[path]).strip(), name, None) for row, name in zip(rows, marked, strict=True) if row.get(path)]
        )
    if path is None or label is None:
        return Listed([], columns=tuple(map(str, others if path is not None else ())))
    rows = [row for row in rows if row.get(path) and row.get(label) not in (None, "")]
    label, names = (label, {}) if label_column else _numbered(rows, label, usual)
    listed = []
    for row, split in zip(rows, _splits(rows, columns), strict=True):
        word = str(row[label]).strip()
        word = word.split()[0] if str(label).lower() == "predictionstring" else word  # a synset, then boxes
        listed.append((str(row[path]).strip(), word, split))
    return Listed(listed, names, tuple(map(str, others)))


def _splits(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> list[str | None]:
    """Return the split of each row: of a column split, of words or of 0, 1, 2, or of one of true and false such as is_valid."""
    for word in SPLITS:
        texts = [str(row.get(columns.get(word, ""), "")).strip() for row in rows]
        if word in columns:
            return [PARTITIONS[text] for text in texts] if set(texts) <= PARTITIONS.keys() else list(texts)
    for word, (yes, no) in MARKS.items():
        texts = [str(row.get(columns.get(_plain(word), ""), "")).strip().lower() for row in rows]
        if set(texts) <= TRUTH.keys():
            return [yes if TRUTH[text] else no for text in texts]
    return [None] * len(rows)


def _numbered(rows: Sequence[dict[str, Any]], label: str, usual: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return the column of class numbers, and the name of each number, where two of the columns have these one to one."""
    for other in usual:
        if other == label or any(row.get(other) in (None, "") for row in rows):
            continue
        for numbers, names in ((label, other), (other, label)):
            found = names_of_numbers((str(row[numbers]).strip(), str(row[names]).strip()) for row in rows)
            if found:
                return numbers, found
    return label, {}


def _marked(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str] | None:
    """Return the column of each row that holds its only 1, where all others hold 0: a column for each class. None elsewhere."""
    names = []
    for row in rows:
        values = [str(row.get(column)).strip() for column in columns]
        ones = [column for column, value in zip(columns, values, strict=True) if value in ("1", "1.0")]
        if len(ones) != 1 or sum(value in ("0", "0.0") for value in values) != len(columns) - 1:
            return None
        names.append(ones[0])
    return names


def read_ground_truth(file: Path, pictures: Sequence[Path]) -> list[tuple[Path, str]]:
    """Return (picture, synset) for ILSVRC2012_validation_ground_truth.txt, whose numbers meta.mat explains.

    The n-th line is the class of the n-th picture. Its numbers are the challenge's own, not those of models; without
    meta.mat of the development kit they cannot be told. https://image-net.org/challenges/LSVRC/2012/. Raises UserError.
    """
    import scipy.io

    meta = next(
        (place for place in (file.parent / "meta.mat", file.parent / "data" / "meta.mat") if place.is_file()), None
    )
    if meta is None:
        raise UserError(
            f"{str(file)!r} holds the numbers of the challenge, which are not those of models. Put meta.mat of the "
            "development kit beside it, or a list with synsets such as LOC_val_solution.csv.", code="bad-data",
        )  # fmt: skip
    synsets = scipy.io.loadmat(str(meta), squeeze_me=True)["synsets"]
    names = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    numbers = [int(line) for line in read_text(file).split()]
    if len(numbers) != len(pictures):
        raise UserError(f"{str(file)!r} has {len(numbers)} lines for {len(pictures)} pictures.", code="bad-data")
    return [(picture, names[number]) for picture, number in zip(sorted(pictures), numbers, strict=True)]
