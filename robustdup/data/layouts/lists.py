"""Pictures and lists beside them that say their classes and splits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from robustdup.data.classes import number_classes
from robustdup.data.layouts.folders import GENERAL, Parts, Tree, picture_table, unread_notes
from robustdup.data.layouts.list_files import PICTURE, read_list
from robustdup.data.layouts.opened import Opened, split_in, split_name
from robustdup.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".txt")
ROOTS = ("", "images", "imgs", "image", "img", "data", "JPEGImages")
PARTITIONS = {"0": "train", "1": "validation", "2": "test"}  # as CelebA numbers them
Located = list[tuple[Path, str, str | None]]  # of pictures that are there: path, class, split


def open_listed(root: Path, lists: Sequence[Path], tree: Tree, *, label_column: str | None = None) -> Opened | None:
    """Return the splits of pictures that lists name; None where no list names pictures that are there.

    Paths are those below the list's folder, the root, or a folder of images in one of them; else the end of a picture's path
    that no other has. A list of paths alone says the split, and the folders their classes. Raises UserError where lists
    name the same pictures with other classes.
    """
    known = _ends(tree)
    classes: dict[str, Located] = {}  # by the list
    paths, partition, names, missing = {}, dict[Path, str](), dict[str, str](), 0
    for file in lists:
        listed = read_list(file, label_column)
        if not listed.rows and label_column is None and re.match("list_attr", file.name) and len(listed.columns) > 1:
            _refuse_attributes(file, listed.columns)
        places = _places(root, file)
        located = [(_locate(path, places, known), label, split) for path, label, split in listed.rows]
        there = [(path, label, split) for path, label, split in located if path is not None]
        if len(there) * 2 < len(listed.rows) or not there or all(_names_picture(label, known) for _, label, _ in there):
            continue
        if (parts := _partition(file, there)) is not None:
            partition |= parts
        elif not any(label for _, label, _ in there):
            paths[file.name] = [(path, path.parent.name, _guess(root, file)) for path, _, _ in there]
        elif label_column is None or label_column in listed.columns:
            missing += len(listed.rows) - len(there)
            guess = _guess(root, file)
            classes[file.name] = [
                (path, label, split_name(split) or split if split else guess) for path, label, split in there
            ]
            names |= listed.names
    if not classes and partition:
        paths["the list of splits"] = [(path, path.parent.name, split) for path, split in partition.items()]
    if (
        not classes
        and len({label for rows in paths.values() for _, label, _ in rows if label.lower() not in GENERAL}) > 1
    ):
        classes = {name: rows for name, rows in paths.items() if all(split for _, _, split in rows)}
    if not classes:
        return None
    _check_agreement(root, classes)
    rows = dict.fromkeys(
        (path, label, partition.get(path) or split) for each in classes.values() for path, label, split in each
    )
    notes = (
        [f"{missing} rows of {', '.join(classes)} name pictures that are not there; they are left out."]
        if missing
        else []
    )
    return open_located(root, list(rows), tree, names, notes, label_column=label_column)


def open_located(
    root: Path,
    rows: Located,
    tree: Tree,
    names: Mapping[str, str],
    notes: Sequence[str],
    *,
    label_column: str | None = None,
) -> Opened:
    """Return the splits of pictures of known classes, and of those in folders of the same classes; `names` are of numbers."""
    rows = rows + _unlisted(tree, rows)
    class_names, numbers, remarks = number_classes(_order(root, {label for _, label, _ in rows}))
    class_names = [names.get(name, name) for name in class_names]
    told = [*unread_notes(tree), *remarks, *notes]
    unlisted = len(tree.pictures) - len({path for path, _, _ in rows})
    if unlisted > 0:
        told.append(f"{unlisted} pictures are in no list; they are left out.")
    splits = {}
    for split in dict.fromkeys(split for _, _, split in rows):
        group = [(path, numbers[label]) for path, label, of in rows if of == split]
        table = picture_table(
            [path for path, _ in group], [number for _, number in group], class_names, split or "test"
        )
        own = label_column not in (None, "label")
        splits[split or "test"] = table.rename_column("label", label_column) if own else table
    return Opened(splits, tuple(told), unnamed=not any(split for _, _, split in rows))


def _names_picture(label: str, known: Mapping[str, Parts]) -> bool:
    """Return whether what stands in place of a class is a picture's file: then the list is one of pairs."""
    name = label.rpartition("/")[2]
    return bool(PICTURE.fullmatch(name)) and name in known


def _guess(root: Path, file: Path) -> str | None:
    """Return the split that a list is of, by its name or that of its folder."""
    below = file.parent.relative_to(root).parts if file.is_relative_to(root) else ()
    words = [*below, *re.split(r"[_\-.]+", file.stem)]
    return next((split for word in words if (split := split_name(word))), None) or split_in(file.stem)


def _partition(file: Path, rows: Located) -> dict[Path, str] | None:
    """Return the split of each picture where a list says nothing else: list_eval_partition.txt of CelebA. None elsewhere."""
    if not re.search(r"partition|split", file.stem.lower()):
        return None
    splits = {path: split_name(label) or PARTITIONS.get(label) for path, label, _ in rows}
    return {path: split for path, split in splits.items() if split} if all(splits.values()) else None


def _refuse_attributes(file: Path, columns: Sequence[str]) -> None:
    raise UserError(
        f"{str(file)!r} says {len(columns)} things of each picture: {', '.join(columns[:5])} … Name the one that is the class: "
        f"--label-column {columns[0]}.",
        code="ambiguous-column",
    )


def _check_agreement(root: Path, classes: Mapping[str, Located]) -> None:
    """Raise UserError where two lists name the same picture with other classes: which is meant cannot be told."""
    first: dict[Path, tuple[str, str]] = {}
    for name, rows in classes.items():
        for path, label, _ in rows:
            other, other_name = first.setdefault(path, (label, name))
            if other != label:
                raise UserError(
                    f"{other_name} and {name} in {str(root)!r} give {path.name} two classes, {other} and {label}. Name the list "
                    f"that is meant in place of the folder, or take the other away.", code="bad-data",
                )  # fmt: skip


def _unlisted(tree: Tree, rows: Sequence[tuple[Path, str, str | None]]) -> Located:
    """Return the pictures of splits that no list is of, which lie in folders of the lists' classes: ImageNet's train."""
    listed, splits = {label for _, label, _ in rows}, {split for _, _, split in rows}
    found: Located = []
    for parts in tree.pictures:
        place = next((i for i, part in enumerate(parts) if split_name(part)), None)
        split = split_name(parts[place]) if place is not None else None
        if place is not None and split not in splits and len(parts) > place + 2:
            found.append((tree.root.joinpath(*parts), parts[place + 1], split))
    return found if listed <= {label for _, label, _ in found} else []


def _ends(tree: Tree) -> dict[str, Parts]:
    """Return the picture of each name, with and without its ending, that only one picture has."""
    found: dict[str, list[Parts]] = {}
    for parts in tree.pictures:
        for name in {parts[-1], Path(parts[-1]).stem}:
            found.setdefault(name, []).append(tree.root.parts + parts)
    return {name: same[0] for name, same in found.items() if len(same) == 1}


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


def _places(root: Path, file: Path) -> list[Path]:
    split = split_name(file.stem)
    folders = [file.parent, root, *([file.parent / file.stem] if split else [])]
    if split:
        folders += [place for place in sorted(root.iterdir()) if place.is_dir() and split_name(place.name) == split]
    folders += [place for place in sorted(root.iterdir()) if place.is_dir()][:50]
    return list(dict.fromkeys(folder / inner for folder in folders for inner in ROOTS))


def _locate(path: str, places: Iterable[Path], known: Mapping[str, Parts]) -> Path | None:
    path = path.replace("\\", "/")
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    whole = known.get(parts[-1]) if parts and not path.isdecimal() else None
    if whole is not None and whole[-len(parts) : -1] == parts[:-1]:
        return Path(*whole)
    for place in places:
        for suffix in ("", ".JPEG", ".jpg", ".png", ".jpeg"):
            picture = place / f"{path}{suffix}"
            if picture.is_file():
                return picture
    return None
