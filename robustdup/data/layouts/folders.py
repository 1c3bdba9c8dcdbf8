"""Folders of pictures: which are splits, which are classes, and which files are left out."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unicodedata import normalize

from robustdup.data.classes import missing_note, number_classes
from robustdup.data.columns import picture_table
from robustdup.data.layouts.opened import KEYWORDS, Opened, split_in, split_name
from robustdup.errors import UserError

PICTURES = frozenset(
    {
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm",
        ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".tga", ".pcx", ".ico", ".avif", ".heic", ".heif",
    }
)  # fmt: skip
UNREAD = frozenset(
    {
        ".heic", ".heif", ".avif", ".svg", ".psd", ".raw", ".dng", ".cr2", ".nef", ".arw", ".eps", ".pdf", ".jxl", ".mp4", ".avi",
        ".mov",
    }
)  # fmt: skip
SYSTEM = ("__MACOSX", "@eaDir")
GENERAL = frozenset(
    {
        "images", "imgs", "image", "img", "data", "jpegimages", "jpg", "jpeg", "png", "pictures", "pics", "photos", "frames",
        "all", "unknown", "unlabeled", "unlabelled", "img_align_celeba",
    }
)  # fmt: skip
"""Names of folders that say nothing of a class."""
PART = re.compile(r"(.*[_\- ])?(images?|imgs?|part|batch|chunk|shard|fold|volume)s?[_\- ]?[0-9]+")  # images_001, part_1
# What pictures are called that are not called by a class: by cameras and programs, or by who or what is on them.
NO_CLASS = frozenset(
    {
        "img", "dsc", "dscn", "dscf", "pict", "pic", "picture", "image", "photo", "frame", "screenshot", "scan", "page", "sample",
        "video", "clip", "train", "test", "val", "file", "fig", "figure", "im", "pxl", "mvi", "gopr", "whatsapp image", "patient",
        "subject", "user", "person", "scene", "seq", "cam", "camera", "slide", "case", "tile", "patch", "crop", "id",
    }
)  # fmt: skip
NUMBERED = re.compile(r"(.*?[A-Za-z].*?)[ ._\-]+\(?[0-9]+\)?")  # cat.0, Egyptian_Mau_12
CLUTTER = re.compile(r"background_google|([0-9]+\.)?clutter")  # of Caltech-101 and 256
WORDNET = re.compile(r"n[0-9]{8}")
DOMAINS = frozenset(
    {
        "art_painting", "cartoon", "photo", "sketch", "art", "clipart", "product", "real world", "realworld", "real_world",
        "real", "infograph", "painting", "quickdraw", "amazon", "dslr", "webcam", "caltech", "caltech101", "labelme", "sun09",
        "voc2007", "color", "grayscale", "segmented", "synthetic",
    }
)  # fmt: skip
"""Kinds of pictures of the same classes, as PACS, Office, DomainNet and others have them in folders: not classes."""

Parts = tuple[str, ...]  # of a path below the folder
Group = list[tuple[Parts, Parts]]  # the pictures of a split: their paths, and those below the folder of the split


@dataclass(frozen=True)
class Tree:
    """What a folder holds: pictures, folders that hold nothing, and other files, each as parts of a path below `root`."""

    root: Path
    pictures: list[Parts] = field(default_factory=list)
    empty: list[Parts] = field(default_factory=list)
    unread: list[Parts] = field(default_factory=list)
    others: list[Parts] = field(default_factory=list)


def scan(root: Path) -> Tree:
    """Return what a folder holds, in the order of paths. Hidden files and those that systems leave behind are passed over."""
    tree, readable = Tree(root), _readable()
    for place, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in SYSTEM)
        parts = Path(place).relative_to(root).parts
        seen = sorted(name for name in files if not name.startswith("."))
        if parts and not folders and all(Path(name).suffix.lower() in UNREAD - readable for name in seen):
            tree.empty.append(parts)
        for name in seen:
            suffix = Path(name).suffix.lower()
            kind = tree.pictures if suffix in readable else tree.unread if suffix in UNREAD else tree.others
            kind.append((*parts, name))
    for kind in (tree.pictures, tree.empty, tree.unread, tree.others):
        kind.sort(key="/".join)
    return tree


def _readable() -> frozenset[str]:
    from PIL import Image

    Image.init()
    known = {suffix for suffix, format in Image.registered_extensions().items() if format in Image.OPEN}
    return PICTURES & known


def open_folders(tree: Tree) -> Opened:
    """Return the splits of a folder of pictures.

    Folders right below that are called train, val, test or alike are splits, and folders in those are classes; where there are
    no such folders, those right below are classes. A split's word inside another name means nothing. Where pictures lie
    deeper, the innermost folder is the class if its name is that of one class only, else the outermost. A folder without
    pictures keeps its number, and all splits share the numbers. Raises UserError where there are no pictures.
    """
    inner = _inner(tree)
    splits, notes = _split_folders(inner)
    unnamed = not splits
    if _split_in_classes(inner):
        groups, unnamed = _by_inner_split(inner), False
        notes = ["In the folders of classes there are folders of splits."]
    else:
        groups = {
            name: _unwrapped(
                name, [(parts, parts[1:]) for parts in inner.pictures if parts[0] in folders and len(parts) > 1]
            )
            for name, folders in splits.items()
        } or {"train": [(parts, parts) for parts in inner.pictures]}
    notes = [*unread_notes(tree), *notes]
    outside = len(inner.pictures) - sum(len(group) for group in groups.values())
    if outside:
        notes.append(f"{outside} pictures lie outside the folders {', '.join(sorted(groups))}; they are left out.")
    empty = [parts[1:] if splits else parts for parts in inner.empty if not splits or len(parts) > 1]
    classes, remarks = _classes([tail[:-1] for group in groups.values() for _, tail in group], empty)
    notes += remarks
    classes = _with_sense(classes, groups, split=not unnamed)
    if not classes:
        groups, classes = _by_file_name(groups)
        some = ", ".join(sorted(set(classes.values()))[:3])
        notes += (
            [f"The pictures lie in no folders of classes; they are called by class and number: {some}, …."]
            if some
            else []
        )
    names, numbers, remarks = number_classes(set(classes.values()))
    notes += remarks
    notes += [
        f"{name!r} is no class of things, and has the number {numbers[name]} here. Models of torchvision's set do not know it: "
        "take it away for them, or all later numbers are theirs plus one."
        for name in names if CLUTTER.fullmatch(name.lower())
    ]  # fmt: skip
    opened, split_notes = {}, {}
    for split, group in groups.items():
        kept = [(parts, classes.get(tail[:-1])) for parts, tail in group]
        loose = sum(name is None for _, name in kept)
        if names and loose and loose < len(kept):
            kept = [(parts, name) for parts, name in kept if name is not None]
        labelled = bool(names) and loose < len(group)
        labels = [numbers[name] for _, name in kept if name is not None] if labelled else None
        opened[split] = file_table([inner.root.joinpath(*parts) for parts, _ in kept], labels, names, split)
        split_notes[split] = (
            missing_note(split, names, (name for _, name in kept if name is not None)) if labelled else ()
        )
        if labelled and loose:
            split_notes[split] += (
                f"{loose} pictures of {split} lie beside the folders of classes; they are left out.",
            )
    if not any(len(rows) for rows in opened.values()):
        raise UserError(
            f"There are no pictures in {str(tree.root)!r} that can be read.{' '.join(['', *notes])}", code="no-data"
        )
    return Opened(opened, tuple(notes), split_notes, unnamed=unnamed)


def _with_sense(classes: dict[Parts, str], groups: Mapping[str, Group], *, split: bool) -> dict[Parts, str]:
    """Return the classes of folders but for those that are called by no class.

    Parts of a set (images_001) and a folder of all pictures of a split are none, nor is the only folder outside any split,
    but for one of WordNet's.
    """
    names = set(classes.values())
    general = {name for name in names if name.lower() in GENERAL or PART.fullmatch(name.lower())}
    if names <= general or (not split and len(names) == 1 and not WORDNET.match(min(names))):
        return {}
    for group in groups.values():
        folders = {tail[:-1] for _, tail in group}
        if {classes.get(folder) for folder in folders} <= general:
            classes = {folder: name for folder, name in classes.items() if folder not in folders}
    return classes


def _by_file_name(groups: Mapping[str, Group]) -> tuple[dict[str, Group], dict[Parts, str]]:
    """Return the pictures as if in folders, and the classes of these, where all of a split are called by class and number.

    Nothing where the words are those of cameras, or too many: cat.0.jpg and dog.0.jpg, as Dogs-vs-Cats has them.
    """
    placed, classes = dict[str, Group](), dict[Parts, str]()
    for split, group in groups.items():
        words = [match[1] if (match := NUMBERED.fullmatch(Path(tail[-1]).stem)) else "" for _, tail in group]
        counts = Counter(words)
        first = {(re.match(r"[A-Za-z ]+", word) or [""])[0].strip().lower() for word in words}
        if min(counts.values()) < 2 or len(counts) < 2 or "" in counts or first & NO_CLASS:
            placed[split] = group
            continue
        placed[split] = [(parts, (word, tail[-1])) for word, (parts, tail) in zip(words, group, strict=True)]
        classes |= {(word,): word for word in counts}
    return placed, classes


def file_table(files: Sequence[Path], labels: Sequence[int] | None, class_names: Sequence[str], split: str) -> Any:
    """Return a `datasets.Dataset` of picture files, with labels where they are known."""
    return picture_table([str(file.absolute()) for file in files], labels, class_names, split)


def unread_notes(tree: Tree) -> Iterable[str]:
    """Say how many files are pictures of kinds that are not read here."""
    kinds = Counter(Path(parts[-1]).suffix.lower() for parts in tree.unread)
    if kinds:
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        yield f"{len(tree.unread)} files of {str(tree.root)!r} are of kinds that are not read here and are left out: {listed}."


def _inner(tree: Tree) -> Tree:
    """Return the folder inside, where all pictures are in one that itself has folders of splits (as in an unpacked archive)."""
    low, high = (ends(parts[:-1] for parts in tree.pictures) if tree.pictures else () for ends in (min, max))
    shared = tuple(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(low, high, strict=False)))
    depth = next(
        (
            depth
            for depth in range(1, len(shared) + 1)
            if any(len(parts) > depth + 1 and split_name(parts[depth]) for parts in tree.pictures)
        ),
        0,
    )
    if depth == 0 or any(split_name(name) for name in shared[:depth]):
        return tree
    below = [
        [parts[depth:] for parts in kind if parts[:depth] == shared[:depth] and len(parts) > depth]
        for kind in (tree.pictures, tree.empty)
    ]
    return Tree(tree.root.joinpath(*shared[:depth]), below[0], below[1])


def _split_folders(tree: Tree) -> tuple[dict[str, list[str]], list[str]]:
    """Return the names of the folders of each split, none where the folders right below are classes, and what to tell."""
    first = {parts[0] for parts in tree.pictures if len(parts) > 1}
    words = [name for name in sorted(first) if split_name(name)]
    named = {str(split_name(name)) for name in words}
    deep = {parts[0] for parts in tree.pictures if len(parts) > 2}
    longer = {name: split for name in sorted(first) if (split := split_in(name))}
    if len(longer) == len(first) > len(words) and len(set(longer.values())) == len(first):  # train_set, test_set
        listed = ", ".join(f"{name!r} as {split}" for name, split in longer.items())
        return {split: [name] for name, split in longer.items()}, [
            f"Folders are taken for splits by their names: {listed}."
        ]
    if not words or (len(words) < len(first) and len(named) < 2 and not deep & set(words)):
        return {}, []  # a class may be called "train"
    return {split: [name for name in words if split_name(name) == split] for split in KEYWORDS if split in named}, []


def _unwrapped(split: str, group: Group) -> Group:
    """Return the pictures of a split without a folder that all of them lie in and that is called by the split too."""
    first = {tail[0] for _, tail in group}
    if len(first) != 1 or split_in(next(iter(first))) != split or any(len(tail) < 3 for _, tail in group):
        return group
    return [(parts, tail[1:]) for parts, tail in group]


def _split_in_classes(tree: Tree) -> bool:
    """Tell whether all pictures lie in folders of splits inside folders of classes: cat/train/1.png."""
    below = {parts[1] for parts in tree.pictures if len(parts) == 3}
    inner = all(len(parts) == 3 for parts in tree.pictures) and all(split_name(name) for name in below)
    return (
        inner
        and len({split_name(name) for name in below}) > 1
        and not any(split_name(parts[0]) for parts in tree.pictures)
    )


def _by_inner_split(tree: Tree) -> dict[str, Group]:
    groups: dict[str, Group] = {}
    for parts in tree.pictures:
        groups.setdefault(str(split_name(parts[1])), []).append((parts, (parts[0], *parts[2:])))
    return {split: groups[split] for split in KEYWORDS if split in groups}


def _classes(used: Sequence[Parts], empty: Sequence[Parts]) -> tuple[dict[Parts, str], list[str]]:
    """Return the class of each folder below a split, and what to tell of folders in folders."""
    folders = sorted({parts for parts in used if parts})
    last = {parts[-1] for parts in folders if len(parts) > 1}
    same = len(last) == 1 and len(folders) > 1 and all(len(parts) > 1 for parts in folders)
    cut = {parts: parts[:-1] if same else parts for parts in folders}  # Tiny ImageNet: class/images/1.jpg
    paths = set(cut.values())
    while len(paths) > 1 and min(map(len, paths)) > 1 and len({parts[0] for parts in paths}) == 1:  # all in one folder
        paths, cut = {parts[1:] for parts in paths}, {folder: parts[1:] for folder, parts in cut.items()}
    if len(paths) > 1 and all(len(parts) > 1 and len(parts[0]) == 1 for parts in paths):  # SUN397, Places: a/abbey
        names = {folder: "/".join(parts[1:]) for folder, parts in cut.items()}
        if len(set(names.values())) == len(names):
            return names, [
                "Folders of letters hold folders of classes; these are taken by their paths below the letter."
            ]
    if all(len(parts) == 1 for parts in paths):
        depth, remarks = 0, []
    elif len({parts[-1] for parts in paths}) == len(paths):
        depth, remarks = -1, ["Folders lie in folders: the innermost are taken as classes."]
    else:
        outer, inner = sorted({parts[0] for parts in paths}), sorted({parts[-1] for parts in paths})
        if all(name.lower() in DOMAINS for name in outer):
            raise UserError(
                f"The folders {', '.join(outer)} look like kinds of pictures, each with the same classes: "
                f"{', '.join(inner[:5])}. Name one of them in place of the folder that they lie in ({outer[0]}, say), or write a "
                "list of paths and classes.",
                code="bad-data",
            )
        depth, remarks = (
            0,
            [
                "Folders lie in folders, of the same names in several: the outermost are taken as classes, "
                f"{', '.join(outer[:3])}. If the classes are {', '.join(inner[:3])}, name one of the outermost folders."
            ],
        )
    classes = {parts: normalize("NFC", path[depth]) for parts, path in cut.items()}
    longest = max((len(path) for path in paths), default=1)
    for parts in empty:
        if parts and (depth == 0 or len(parts) == longest):
            classes[parts] = normalize("NFC", parts[0 if depth == 0 else -1])
    return classes, remarks
