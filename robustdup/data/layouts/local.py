"""Which layout a local folder or file has, and its splits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from robustdup.data.classes import number_classes
from robustdup.data.layouts import array_files, list_files, lists
from robustdup.data.layouts.archives import is_archive, is_tar, open_shards, unpack
from robustdup.data.layouts.binaries import is_svhn, open_known, read_idx, read_svhn
from robustdup.data.layouts.folders import Tree, file_table, open_folders, scan, unread_notes
from robustdup.data.layouts.foreign import open_arrow, refuse_foreign
from robustdup.data.layouts.opened import Opened
from robustdup.data.layouts.pixel_tables import is_pixel_table, open_pixel_tables
from robustdup.errors import UserError
from robustdup.inflation import check_holes, read_text

if TYPE_CHECKING:
    from robustdup.config import DataOptions

TABLES = (".parquet", ".arrow")
ARROW = (".arrow", ".feather", ".ipc")
FILES = (".parquet", *ARROW, *array_files.SUFFIXES, *lists.SUFFIXES, ".zip", ".tar", ".tgz", ".gz")
LIST_DEPTH = 5  # folders in which a list may lie, its own name with them
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def open_layout(path: Path, options: DataOptions) -> Opened | None:
    """Return the splits of a folder or file in a layout that is read here; None where `datasets` reads it. Raises UserError."""
    if path.is_file():
        return _open_file(path, options)
    if (card := path / "README.md").is_file() and "configs:" in read_text(card, errors="replace"):
        return None
    known = open_known(path, options.config)
    if known is not None:
        return known
    tree = scan(path)
    files = [path.joinpath(*parts) for parts in tree.others]
    if any(file.suffix in TABLES for file in files):
        return None
    return _open_folder(path, tree, files, options)


def _open_file(path: Path, options: DataOptions) -> Opened | None:
    if path.suffix == ".parquet":
        return None
    if path.suffix in ARROW:
        return open_arrow([path])
    if is_pixel_table(path):
        return open_pixel_tables([path], label_column=options.label_column, needs_labels=options.needs_labels)
    if is_archive(path):
        shards = open_shards([path]) if is_tar(path) else None
        return shards or open_layout(unpack(path), options)
    if path.suffix == ".mat" and is_svhn(path):
        return Opened({"test": read_svhn(path)}, unnamed="test" not in path.name)
    if path.suffix in array_files.SUFFIXES:
        return array_files.open_array_file(path, needs_labels=options.needs_labels)
    if path.suffix.lower() in lists.SUFFIXES:
        roots = (path.parent, path.parent.parent)  # DTD's lists lie in a folder beside that of the pictures
        tries = (lists.open_listed(root, [path], Tree(root), label_column=options.label_column) for root in roots)
        opened = next((found for found in tries if found is not None), None)
        if opened is None:
            raise UserError(
                f"{str(path)!r} does not name pictures that are there: a column of paths (file_name, path, image …) and one of "
                "classes (label, class …) are looked for, and paths below its folder.", code="bad-data",
            )  # fmt: skip
        return opened
    if "idx" in path.name:
        read_idx(path)
        return open_known(path.parent, options.config)
    refuse_foreign(path, [path])
    return None


def _open_folder(path: Path, tree: Tree, files: list[Path], options: DataOptions) -> Opened | None:
    if tree.pictures:
        return _open_pictures(path, tree, files, options)
    tries: list[tuple[Callable[[Path], bool], Callable[[list[Path]], Opened | None]]] = [
        (lambda file: file.suffix in array_files.SUFFIXES and file.parent == path,
         lambda fitting: array_files.open_array_folder(path, fitting, options.config)),
        (is_tar, open_shards),
        (is_archive, lambda fitting: open_layout(unpack(fitting[0]), options) if len(fitting) == 1 else None),
    ]  # fmt: skip
    tries[:0] = [
        (is_pixel_table, lambda fitting: open_pixel_tables(
            fitting, label_column=options.label_column, needs_labels=options.needs_labels)),
        (lambda file: file.suffix in ARROW, open_arrow),
    ]  # fmt: skip
    for fits, read in tries:
        fitting = [file for file in files if fits(file)]
        opened = read(fitting) if fitting else None
        if opened is not None:
            return opened
    refuse_foreign(path, files)
    if tree.unread:
        raise UserError(
            f"There are no pictures in {str(path)!r} that can be read. {' '.join(unread_notes(tree))}", code="no-data"
        )
    return None


def _open_pictures(path: Path, tree: Tree, files: list[Path], options: DataOptions) -> Opened:
    annotations = path / "val" / "val_annotations.txt"
    if annotations.is_file() and any(parts[:2] == ("val", "images") for parts in tree.pictures):
        return _tiny_imagenet(path, tree, annotations)
    flat = all(len(parts) == 1 for parts in tree.pictures)
    numbered = tree.pictures if flat else [parts for parts in tree.pictures if parts[-1].startswith("ILSVRC2012_val_")]
    label_file = _ground_truth(path) if len({parts[:-1] for parts in numbered}) == 1 else None
    if label_file is not None:
        rows = list_files.read_ground_truth(label_file, [path.joinpath(*parts) for parts in numbered])
        return lists.open_located(path, [(picture, name, "validation") for picture, name in rows], tree, {}, ())
    lists_of_labels = [
        file
        for file in files
        if file.suffix.lower() in lists.SUFFIXES and len(file.relative_to(path).parts) <= LIST_DEPTH
    ]
    if flat:
        lists_of_labels += [
            file for file in sorted(path.parent.iterdir()) if file.suffix.lower() in lists.SUFFIXES and file.is_file()
        ]
    listed = (
        lists.open_listed(path, lists_of_labels, tree, label_column=options.label_column) if lists_of_labels else None
    )
    opened = listed or open_folders(tree)
    if listed is None and lists_of_labels and options.needs_labels:
        _refuse_unread(path, lists_of_labels, opened)
        label = next(iter(opened.splits.values())).features.get("label")
        unread = [file for file in lists_of_labels if file.is_relative_to(path) and file.suffix.lower() != ".mat"]
        notes = [note for file in unread for note in lists.order_notes(file, getattr(label, "names", ()))]
        opened = replace(opened, notes=(*opened.notes, *notes))
    return opened


def _ground_truth(path: Path) -> Path | None:
    """Return the labels of ImageNet's validation pictures: in this folder, beside it, or in a development kit there."""
    places = [place / inner for place in (path, path.parent) for inner in ("", "data")]
    places += [kit / "data" for place in (path, path.parent) for kit in sorted(place.glob("ILSVRC2012_devkit*"))]
    return next((file for place in places if (file := place / GROUND_TRUTH).is_file()), None)


def _refuse_unread(path: Path, files: list[Path], opened: Opened) -> None:
    """Raise UserError where folders give one class or none, and lists beside them, which may give more, could not be read."""
    labels = {
        label for rows in opened.splits.values() if "label" in rows.column_names for label in rows.unique("label")
    }
    tables = [
        file for file in files
        if (file.suffix in (".csv", ".tsv") or file.name.startswith("list_attr")) and file.is_relative_to(path)
    ]  # fmt: skip
    if len(labels) < 2 and tables:
        check_holes(tables[0])
        lines = tables[0].read_text(encoding="utf-8-sig", errors="replace").splitlines()
        head = next((line.strip() for line in lines if not line.strip().isdecimal()), "")[:200]
        raise UserError(
            f"{str(path)!r} has pictures in no folders of classes, and {tables[0].name} beside them names no pictures that "
            f"are there, or no classes: its first line is {head!r}. Columns of paths (file_name, path, image …) and of "
            "classes (label, class …) are looked for; name the latter with --label-column.",
            code="bad-data",
        )


def _tiny_imagenet(path: Path, tree: Tree, annotations: Path) -> Opened:
    """Return the splits of Tiny ImageNet as it is downloaded: train/WNID/images/, val/images/ with its list."""
    train = [(path.joinpath(*parts), parts[1]) for parts in tree.pictures if parts[0] == "train" and len(parts) > 2]
    rows = [(annotations.parent / "images" / name, wnid) for name, wnid, _ in list_files.read_list(annotations).rows]
    folders = path / "train"
    every = {wnid for _, wnid in [*train, *rows]} | {
        f.name for f in (folders.iterdir() if folders.is_dir() else ()) if f.is_dir()
    }
    names, numbers, remarks = number_classes(every)
    there = [(file, wnid) for file, wnid in rows if file.is_file()]
    splits = {
        split: file_table([file for file, _ in group], [numbers[wnid] for _, wnid in group], names, split)
        for split, group in (("train", train), ("validation", there)) if group
    }  # fmt: skip
    notes = [*unread_notes(tree), *remarks, "The classes of Tiny ImageNet are in the order of their WordNet numbers."]
    missing, unlabelled = len(rows) - len(there), sum(parts[0] == "test" for parts in tree.pictures)
    notes += [f"{missing} rows of val_annotations.txt name pictures that are not there."] if missing else []
    notes += [f"{unlabelled} pictures of test have no labels; they are left out."] if unlabelled else []
    return Opened(splits, tuple(notes))
