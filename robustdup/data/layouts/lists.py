"""Lists that say which picture is of which class: CSV, JSON, text, Tiny ImageNet's and ImageNet's validation lists."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from robustdup.data.classes import number_classes
from robustdup.data.columns import LABEL_NAMES
from robustdup.data.layouts.folders import Tree, picture_table, unread_notes
from robustdup.data.layouts.opened import Opened, split_name
from robustdup.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".txt")
PATHS = ("file_name", "filename", "filepath", "file_path", "path", "image_path", "img_path", "file", "image", "img", "name",
         "image_id", "imageid", "id")  # fmt: skip
LABELS = (*LABEL_NAMES, "class_name", "label_name", "wnid", "synset", "predictionstring")
ROOTS = ("", "images", "imgs", "image", "img", "data", "JPEGImages")
Row = tuple[str, str, str | None]  # path, class, split


def open_listed(root: Path, lists: Sequence[Path], tree: Tree, *, label_column: str | None = None) -> Opened | None:
    """Return the splits of pictures that lists name; None where no list names pictures that are there.

    Paths are those below the list's folder, the root, or a folder of images in one of them.
    """
    by_split: dict[str, list[tuple[Path, str]]] = {}
    named, missing, used = False, 0, []
    for file in lists:
        rows = read_list(file, label_column)
        places = _places(root, file)
        located = [(_locate(path, places), label, split) for path, label, split in rows]
        there = [(path, label, split) for path, label, split in located if path is not None]
        if len(there) * 2 < len(rows) or not there:
            continue
        missing += len(rows) - len(there)
        used.append(file.name)
        below = file.parent.relative_to(root).parts if file.is_relative_to(root) else ()
        guess = next(
            (split_here for word in (*below, *re.split(r"[_\-.]+", file.stem)) if (split_here := split_name(word))),
            None,
        )
        for path, label, split in there:
            name = split_name(split) or split if split else guess
            named = named or name is not None
            by_split.setdefault(str(name or "test"), []).append((path, label))
    if not by_split:
        return None
    names, numbers, remarks = number_classes(_order(root, {label for rows in by_split.values() for _, label in rows}))
    notes = [*unread_notes(tree), *remarks]
    if missing:
        notes.append(f"{missing} rows of {', '.join(used)} name pictures that are not there; they are left out.")
    unlisted = len(tree.pictures) - len({path for rows in by_split.values() for path, _ in rows})
    if unlisted > 0:
        notes.append(f"{unlisted} pictures are in no list; they are left out.")
    splits = {
        split: picture_table([path for path, _ in rows], [numbers[label] for _, label in rows], names, split)
        for split, rows in by_split.items()
    }
    return Opened(splits, tuple(notes), unnamed=not named)


def _order(root: Path, used: set[str]) -> set[str]:
    """Return all classes where a list of synsets beside the pictures, or the folder of training pictures, has more of them."""
    for file in (
        root / "wnids.txt",
        root.parent / "wnids.txt",
        root / "LOC_synset_mapping.txt",
        root.parent / "LOC_synset_mapping.txt",
    ):
        if file.is_file():
            names = {line.split()[0] for line in file.read_text().splitlines() if line.strip()}
            if used <= names:
                return names
    for place in (root / "train", root.parent / "train"):
        names = {folder.name for folder in place.iterdir() if folder.is_dir()} if place.is_dir() else set()
        if used <= names:
            return names
    return used


def read_list(file: Path, label_column: str | None = None) -> list[Row]:
    """Return (path, class, split) for each row of a list; nothing where it is no such list."""
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return []
    if file.suffix in (".jsonl", ".json"):
        try:
            rows = [json.loads(line) for line in lines] if file.suffix == ".jsonl" else json.loads(text)
        except (ValueError, RecursionError):
            return []
        if isinstance(rows, dict):  # a class under each path
            return [(path, str(label), None) for path, label in rows.items() if isinstance(label, str | int)]
        listed = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
        return _by_name(rows, label_column) if listed else []
    mark = "\t" if "\t" in lines[0] else "," if "," in lines[0] else ";" if ";" in lines[0] else None
    try:
        table = list(csv.reader(lines, delimiter=mark)) if mark else [line.rsplit(maxsplit=1) for line in lines]
    except csv.Error:  # cells of 131,072 letters, which no path has
        return []
    head = [cell.strip().lower() for cell in table[0]]
    if (
        mark
        and set(head) & {*PATHS, *LABELS, *([label_column.lower()] if label_column else [])}
        and len(set(head)) == len(head)
    ):
        return _by_name([dict(zip(table[0], row, strict=False)) for row in table[1:]], label_column)
    return [(row[0].strip(), row[1].strip(), None) for row in table if len(row) > 1]


def _by_name(rows: Sequence[dict[str, Any]], label_column: str | None) -> list[Row]:
    if not rows:
        return []
    columns = {str(name).strip().lower(): name for name in rows[0]}
    path = next((columns[name] for name in PATHS if name in columns), None)
    label = next(
        (columns[name] for name in ([label_column.lower()] if label_column else LABELS) if name in columns), None
    )
    others = [name for name in columns.values() if name != path]
    if label is None and len(others) == 1 and label_column is None:
        label = others[0]
    if path is not None and label is None and (marked := _marked(rows, others)) is not None:
        return [(str(row[path]).strip(), name, None) for row, name in zip(rows, marked, strict=True) if row.get(path)]
    if path is None or label is None:
        return []
    split = columns.get("split")
    listed = []
    for row in rows:
        if not row.get(path) or row.get(label) in (None, ""):
            continue
        word = str(row[label]).strip()
        word = word.split()[0] if str(label).lower() == "predictionstring" else word  # a synset, then boxes
        listed.append((str(row[path]).strip(), word, str(row[split]).strip() if split is not None else None))
    return listed


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


def _places(root: Path, file: Path) -> list[Path]:
    split = split_name(file.stem)
    folders = [file.parent, root, *([file.parent / file.stem] if split else [])]
    if split:
        folders += [place for place in sorted(root.iterdir()) if place.is_dir() and split_name(place.name) == split]
    folders += [place for place in sorted(root.iterdir()) if place.is_dir()][:50]
    return list(dict.fromkeys(folder / inner for folder in folders for inner in ROOTS))


def _locate(path: str, places: Iterable[Path]) -> Path | None:
    path = path.replace("\\", "/")
    for place in places:
        for suffix in ("", ".JPEG", ".jpg", ".png", ".jpeg"):
            picture = place / f"{path}{suffix}"
            if picture.is_file():
                return picture
    return None


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
    numbers = [int(line) for line in file.read_text().split()]
    if len(numbers) != len(pictures):
        raise UserError(f"{str(file)!r} has {len(numbers)} lines for {len(pictures)} pictures.", code="bad-data")
    return [(picture, names[number]) for picture, number in zip(sorted(pictures), numbers, strict=True)]
