"""Pictures and lists beside them that say their classes and splits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from unicodedata import normalize

from robustdup.data.classes import names_of_numbers, number_classes
from robustdup.data.layouts.folders import GENERAL, Parts, Tree, file_table, unread_notes
from robustdup.data.layouts.list_files import PARTITIONS, Listed, Row, is_picture, read_list
from robustdup.data.layouts.matlab_lists import read_matlab_list
from robustdup.data.layouts.opened import Opened, split_in, split_name, split_word
from robustdup.errors import UserError
from robustdup.inflation import read_text

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".txt", ".lst", ".mat")
ROOTS = ("", "images", "imgs", "image", "img", "data", "JPEGImages")
# Lists beside pictures that say no classes: of boxes, points, several attributes, what competitions want handed in.
OTHERS = re.compile(r"box|size|locs|landmark|coord|click|joint|submission")
CLASSES = re.compile(r"classes|class_?names|categories.*|labels?_map|.*_to_.*_map")  # of names of numbered classes
SPLIT_FOLDERS = 20  # folders of a split that names in its list may be in
Located = list[tuple[Path, str, str | None]]  # of pictures that are there: path, class, split
Known = Mapping[str, list[Parts]]  # pictures by name, with and without ending


def open_listed(root: Path, lists: Sequence[Path], tree: Tree, *, label_column: str | None = None) -> Opened | None:
    """Return the splits of pictures that lists name; None where no list names pictures that are there.

    Paths are those below the list's folder, the root, or a folder of images in one of them; else the end of a picture's path
    that no other has. They may stand under a key in one list (CUB's images.txt) and the key in others. A list of paths alone
    says the split, and the folders their classes where no list does. Raises UserError where lists disagree.
    """
    known = _ends(tree)
    read = [(file, _read(file, label_column, tree, known)) for file in lists if not OTHERS.search(file.stem.lower())]
    keys = {key: path for _, listed in read for key, path in _keys(listed.rows, known).items()}
    classes: dict[str, Located] = {}  # by the list
    paths, partition, names, missing = {}, dict[Path, str](), dict[str, str](), 0
    for file, listed in read:
        if not listed.rows and label_column is None and re.match("list_attr", file.name) and len(listed.columns) > 1:
            _refuse_attributes(file, listed.columns)
        if (named := _names_of_classes(file, listed)) or not listed.rows:
            names |= named or listed.names
            continue
        places = _places(root, file, tree)
        located = [(_locate(keys.get(path, path), places, known), label, split) for path, label, split in listed.rows]
        there = [(path, label, split) for path, label, split in located if path is not None]
        enough = len(keys) if any(path in keys for path, _, _ in listed.rows) else len(listed.rows)
        if len(there) * 2 < enough or not there or all(is_picture(label, known) for _, label, _ in there):
            continue
        guess = _guess(root, file)
        there = [(path, label, split_name(split) or split if split else guess) for path, label, split in there]
        if (parts := _partition(file, there)) is not None:
            partition |= parts
        elif not any(label for _, label, _ in there):
            paths[file.name] = [(path, path.parent.name, split) for path, _, split in there]
        elif label_column is None or label_column in listed.columns:
            missing += len(listed.rows) - len(there)
            classes[file.name] = there
            names |= listed.names
    _check_splits(root, paths)
    if not partition:
        partition = {path: split for rows in paths.values() for path, _, split in rows if split}
    if not classes and len({path.parent.name for path in partition if path.parent.name.lower() not in GENERAL}) > 1:
        classes = {"the list of splits": [(path, path.parent.name, split) for path, split in partition.items()]}
    if not classes:
        return None
    _check_agreement(root, classes)
    if not all(label in names for rows in classes.values() for _, label, _ in rows):
        names = names_of_numbers({(label, path.parent.name) for rows in classes.values() for path, label, _ in rows})
    notes = (
        [f"{missing} rows of {', '.join(classes)} name pictures that are not there; they are left out."]
        if missing
        else []
    )
    return open_located(root, _merged(root, classes, partition), tree, names, notes, label_column=label_column)


def _read(file: Path, label_column: str | None, tree: Tree, known: Known) -> Listed:
    if file.suffix.lower() != ".mat":
        return read_list(file, label_column, known)
    return read_matlab_list(file, ["/".join(parts) for parts in tree.pictures])


def order_notes(file: Path, class_names: Sequence[str]) -> list[str]:
    """Say where a list beside folders of classes was not followed: it names other pictures, or the classes in another order."""
    listed = read_list(file)
    if re.fullmatch(rf"{CLASSES.pattern}|labels|class_to_idx", file.stem.lower()):
        words = [path for path, label, _ in listed.rows if not label]
        numbered = _names_of_classes(file, listed, any_name=True)
        names = words or [numbered[number] for number in sorted(numbered, key=int)]
        if names != list(class_names) and sorted(names) == sorted(class_names):
            return [
                f"{file.name} has the classes in another order, {', '.join(names[:3])} …; they are numbered by the letters of "
                "their folders here. A model that was trained by that list needs its names (class_names in its checkpoint)."
            ]
    elif listed.rows and all(is_picture(path, ()) for path, _, _ in listed.rows):
        return [f"{file.name} names pictures that are not there; the folders say the classes."]
    return []


def _keys(rows: Sequence[Row], known: Known) -> dict[str, str]:
    """Return the path under each key of a list of keys and pictures; nothing for another list."""
    keys = {key: path for key, path, _ in rows}
    if len(keys) < len(rows) or not all(
        is_picture(path, known) and not is_picture(key, ()) for key, path in keys.items()
    ):
        return {}
    return keys


def _names_of_classes(file: Path, listed: Listed, *, any_name: bool = False) -> dict[str, str]:
    """Return the names of numbered classes, where a list is one of those: classes.txt, label_map.json."""
    if not any_name and not CLASSES.fullmatch(file.stem.lower()):
        return {}
    pairs = [(path, label) for path, label, _ in listed.rows]
    return names_of_numbers(pairs) or names_of_numbers((label, path) for path, label in pairs)


def _merged(root: Path, classes: Mapping[str, Located], partition: Mapping[Path, str]) -> Located:
    """Return each picture once, with its class and split; where others have a split, those without are left out."""
    splits: dict[Path, str] = dict(partition)
    rows: dict[Path, str] = {}
    for each in classes.values():
        for path, label, split in each:
            rows[path] = label
            if split and path not in partition and splits.setdefault(path, split) != split:
                _refuse_splits(root, path, (splits[path], split))
    return [(path, label, splits.get(path)) for path, label in rows.items() if not splits or path in splits]


def _check_splits(root: Path, paths: Mapping[str, Located]) -> None:
    """Raise UserError where lists of paths put a picture into two splits, as those of DTD's ten partitions do."""
    first: dict[Path, tuple[str | None, str]] = {}
    for name, rows in paths.items():
        for path, _, split in rows:
            other, other_name = first.setdefault(path, (split, name))
            if split and other and other != split:
                _refuse_splits(root, path, (f"{other} ({other_name})", f"{split} ({name})"))


def _refuse_splits(root: Path, path: Path, splits: Iterable[str]) -> None:
    raise UserError(
        f"Lists in {str(root)!r} put {path.name} into two splits: {' and '.join(splits)}. Name the list that is meant in "
        "place of the folder, or take the other away.",
        code="bad-data",
    )


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
    rows = [(path, normalize("NFC", label), split) for path, label, split in rows]
    class_names, numbers, remarks = number_classes(_order(root, rows))
    if all(label in names for _, label, _ in rows):
        class_names = [names.get(name, name) for name in class_names]
    told = [*unread_notes(tree), *remarks, *notes]
    unlisted = len(tree.pictures) - len({path for path, _, _ in rows})
    if unlisted > 0:
        told.append(f"{unlisted} pictures are in no list; they are left out.")
    splits = {}
    for split in dict.fromkeys(split for _, _, split in rows):
        group = [(path, numbers[label]) for path, label, of in rows if of == split]
        table = file_table([path for path, _ in group], [number for _, number in group], class_names, split or "test")
        own = label_column not in (None, "label")
        splits[split or "test"] = table.rename_column("label", label_column) if own else table
    return Opened(splits, tuple(told), unnamed=not any(split for _, _, split in rows))


def _guess(root: Path, file: Path) -> str | None:
    """Return the split that a list is of, by its name or that of its folder."""
    below = file.parent.relative_to(root).parts if file.is_relative_to(root) else ()
    return next(filter(None, map(split_name, below)), None) or split_word(file.stem) or split_in(file.stem)


def _partition(file: Path, rows: Located) -> dict[Path, str] | None:
    """Return the split of each picture where a list says nothing else: list_eval_partition.txt of CelebA. None elsewhere."""
    if not re.search(r"partition|split", file.stem.lower()):
        return None
    kinds = {"0": "test", "1": "train"} if "train" in file.stem.lower() else PARTITIONS  # train_test_split.txt of CUB
    splits = {path: split_name(label) or kinds.get(label) for path, label, _ in rows}
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


def _ends(tree: Tree) -> Known:
    """Return the pictures of each name, with and without its ending."""
    found: dict[str, list[Parts]] = {}
    for parts in tree.pictures:
        for name in {parts[-1], Path(parts[-1]).stem}:
            found.setdefault(name, []).append(tree.root.parts + parts)
    return found


def _order(root: Path, rows: Located) -> set[str]:
    """Return all classes where a list of synsets, the folder of training pictures or that of all classes has more of them."""
    used = {label for _, label, _ in rows}
    folders = (
        {path.parent.parent for path, _, _ in rows} if all(path.parent.name == k for path, k, _ in rows) else set()
    )
    if len(folders) == 1:
        return used | {place.name for place in folders.pop().iterdir() if place.is_dir() and _has_pictures(place)}
    for file in (
        root / "wnids.txt",
        root.parent / "wnids.txt",
        root / "LOC_synset_mapping.txt",
        root.parent / "LOC_synset_mapping.txt",
    ):
        if file.is_file():
            names = {line.split()[0] for line in read_text(file).splitlines() if line.strip()}
            if used <= names:
                return names
    for place in (root / "train", root.parent / "train"):
        names = {folder.name for folder in place.iterdir() if folder.is_dir()} if place.is_dir() else set()
        if used <= names:
            return names
    return used


def _has_pictures(folder: Path) -> bool:
    return any(is_picture(file.name, ()) for file in folder.iterdir())


def _places(root: Path, file: Path, tree: Tree) -> tuple[list[Path], list[Path]]:
    """Return where a list's paths may begin, the likeliest first, and other folders, where a picture must be the only one."""
    split = _guess(root, file)
    inner = [place for place in sorted(root.iterdir()) if place.is_dir()]
    of_split = [place for place in inner if split and split in (split_name(place.name), split_in(place.name))]
    if split and not of_split:  # GTSRB's Final_Test/Images, deeper down
        deep = {
            parts[:-1]
            for parts in tree.pictures
            if split in {split_name(part) or split_in(part) for part in parts[:-1]}
        }
        of_split = [root.joinpath(*parts) for parts in sorted(deep)[:SPLIT_FOLDERS]]
    first = [file.parent, root, *([file.parent / file.stem] if split else []), *of_split]
    likely = list(dict.fromkeys(folder / below for folder in first for below in ROOTS))
    others = [place / below for place in inner[:50] if place not in of_split for below in ROOTS]
    return likely, [place for place in others if place not in likely and place.is_dir()]


def _locate(path: str, places: tuple[list[Path], list[Path]], known: Known) -> Path | None:
    path = path.replace("\\", "/")
    parts = tuple(part for part in path.split("/") if part not in ("", "."))
    named = known.get(parts[-1], []) if parts and not path.isdecimal() else []
    ending = [picture for picture in named if picture[-len(parts) : -1] == parts[:-1]]
    if not ending and re.match(r"/|[A-Za-z]:", path):  # of another machine: the longest end that is the same here
        ends = [_same_end(picture, parts) for picture in named]
        ending = [picture for picture, end in zip(named, ends, strict=True) if end == max(ends)]
    if len(ending) == 1:
        return Path(*ending[0])
    likely, others = places
    for place in likely:
        if (picture := _picture_at(place, path)) is not None:
            return picture
    hits = {picture for place in others if (picture := _picture_at(place, path)) is not None}
    return hits.pop() if len(hits) == 1 else None


def _same_end(picture: Parts, parts: Parts) -> int:
    """Return how many parts two paths share before their names."""
    pairs = zip(reversed(picture[:-1]), reversed(parts[:-1]), strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), len(parts))


def _picture_at(place: Path, path: str) -> Path | None:
    """Return the picture of a path below a folder, with its ending or without."""
    files = (place / f"{path}{suffix}" for suffix in ("", ".JPEG", ".jpg", ".png", ".jpeg"))
    return next((file for file in files if file.is_file()), None)
