"""Tables of pixels: a CSV with a row an image and a column a pixel, as Kaggle has MNIST, or all pixels in one cell (FER-2013)."""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustdup.data.arrays import Arrays, make_arrays
from robustdup.data.columns import LABEL_NAMES, MORE_LABEL_NAMES
from robustdup.data.layouts.opened import Opened, split_in, split_word
from robustdup.errors import UserError, unknown
from robustdup.inflation import check_file

FEWEST = 49  # columns of a row that may be pixels
LABELS = (*LABEL_NAMES, *MORE_LABEL_NAMES, "emotion", "digit", "letter", "character")
USAGES = {"training": "train", "publictest": "validation", "privatetest": "test"}  # of FER-2013
NUMBER = re.compile(r"\s*-?[0-9]*\.?[0-9]+(e[-+]?[0-9]+)?\s*", re.IGNORECASE)
PIXEL = re.compile(r"[A-Za-z_. ]*[0-9]+([x_, .][0-9]+)?")  # pixel0, px_1, 1x1, p 3


def is_pixel_table(file: Path) -> bool:
    """Tell a table whose first row has as many cells as small images have pixels, or a column of that name."""
    if not re.search(r"\.(csv|tsv|txt)(\.gz)?$", file.name.lower()):
        return False
    try:
        with _opened(file) as stream:
            head = next(csv.reader([stream.readline()], delimiter=_mark(file)), [])
    except (OSError, EOFError, csv.Error):
        return False
    return len(head) > FEWEST or "pixels" in [cell.strip().lower() for cell in head]


def open_pixel_tables(files: Sequence[Path], *, label_column: str | None, needs_labels: bool) -> Opened:
    """Return the splits of tables of pixels, by the names of the files or a column Usage. Raises UserError."""
    splits: dict[str, Arrays] = {}
    notes: list[str] = []
    for file in files:
        stem = file.name.split(".")[0]
        word = split_word(stem)
        for split, arrays in _read(file, label_column).items():
            name = split or word or split_in(stem) or ("test" if len(files) == 1 else stem)
            if arrays.labels is None and needs_labels and len(files) > 1:
                notes.append(f"{file.name} has no labels; it is left out.")
            elif name in splits:
                raise UserError(
                    f"{file.name} and another table beside it are both {name!r}: name one.", code="bad-data"
                )
            else:
                splits[name] = arrays
    unnamed = len(splits) == 1 and split_in(files[0].name.split(".")[0]) is None
    return Opened(splits, tuple(notes), unnamed=unnamed)


def _mark(file: Path) -> str:
    return "\t" if ".tsv" in file.name.lower() else ","


def _opened(file: Path) -> Any:
    packed = file.suffix.lower() == ".gz"
    return gzip.open(file, "rt", encoding="utf-8-sig", errors="replace") if packed else file.open(
        encoding="utf-8-sig", errors="replace"
    )  # fmt: skip


def _read(file: Path, label_column: str | None) -> dict[str, Arrays]:
    """Return the arrays of a table by what its column Usage says, or under "". Raises UserError."""
    import pyarrow as pa
    import pyarrow.csv

    check_file(file)
    with _opened(file) as stream:
        first = next(csv.reader([stream.readline()], delimiter=_mark(file)))
    headed = not all(NUMBER.fullmatch(cell) for cell in first)
    try:
        table = pyarrow.csv.read_csv(
            str(file),
            read_options=pyarrow.csv.ReadOptions(autogenerate_column_names=not headed),
            parse_options=pyarrow.csv.ParseOptions(delimiter=_mark(file)),
        )
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{str(file)!r} is not a whole table: {error}.", code="bad-file") from error
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in table.column_names}
    if label_column is not None and label_column not in table.column_names:
        raise unknown(f"label column of {file}:", label_column, table.column_names[:20])
    label = label_column or next((plain[w] for w in (re.sub("_", "", name) for name in LABELS) if w in plain), None)
    notes: tuple[str, ...] = ()
    if headed:
        pixels = _pixel_columns([name for name in table.column_names if name != label])
    else:
        label, pixels = _without_head(table, file)
        notes = (f"{file.name} has no head: its {'first' if label == 'f0' else 'last'} column is taken as the class.",)
    images = _images(table, pixels, plain.get("pixels"), file)
    labels = None if label is None else np.asarray(table[label].to_pylist())
    usage = [USAGES.get(str(word).lower()) for word in table[plain["usage"]].to_pylist()] if "usage" in plain else []
    parts = {str(split): np.array([word == split for word in usage]) for split in dict.fromkeys(usage)}
    if not usage or None in usage:
        parts = {"": np.ones(len(images), dtype=bool)}
    splits = {}
    for split, rows in parts.items():
        arrays = make_arrays(images[rows], None if labels is None else labels[rows], str(file))
        splits[split] = Arrays(arrays.images, arrays.labels, arrays.class_names, (*notes, *arrays.notes))
    return splits


def _pixel_columns(names: Sequence[str]) -> list[str]:
    """Return the columns of pixels in the order of their numbers, where each has one; else as they stand."""
    pixels = [name for name in names if PIXEL.fullmatch(name)]
    numbers = [re.findall(r"[0-9]+", name) for name in pixels]
    if len({tuple(number) for number in numbers}) < len(pixels):  # 1, 1.1, …: the values of the first row for a head
        return pixels
    places = [(*map(int, number), place) for place, number in enumerate(numbers)]
    return [pixels[place[-1]] for place in sorted(places)]


def _without_head(table: Any, file: Path) -> tuple[str, list[str]]:
    """Return the column of classes of a table without a head, the first or the last, and the others."""
    names = table.column_names
    if not any(_side(len(names) - 1)):
        raise UserError(
            f"{str(file)!r} has {len(names)} columns and no head: one of classes and those of square images are looked for.",
            code="bad-data",
        )
    first, last = (len(table[name].unique()) for name in (names[0], names[-1]))
    return (names[-1], names[:-1]) if first == 1 < last else (names[0], names[1:])


def _side(count: int) -> tuple[bool, bool]:
    """Tell whether so many values are those of a square grey image, and of a square one in colour."""
    return (round(count**0.5) ** 2 == count, count % 3 == 0 and round((count / 3) ** 0.5) ** 2 * 3 == count)


def _images(table: Any, pixels: list[str], cell: str | None, file: Path) -> np.typing.NDArray[Any]:
    """Return the pixels (N, D) of all columns, or of the cells of one. Raises UserError."""
    if cell is not None:
        try:
            return np.stack([np.array(text.split(), dtype=np.float32) for text in table[cell].to_pylist()])
        except (ValueError, AttributeError) as error:
            raise UserError(
                f"The rows of column {cell!r} of {str(file)!r} differ in length.", code="bad-data"
            ) from error
    if not any(_side(len(pixels))):
        raise UserError(
            f"{str(file)!r} has {len(pixels)} columns of pixels, which make no square image. One column is that of the classes "
            "(label, class …, or --label-column).",
            code="bad-data",
        )
    columns = [table[name].to_numpy() for name in pixels]
    if any(column.dtype.kind not in "iuf" or not np.isfinite(column).all() for column in columns):
        raise UserError(f"Some pixels of {str(file)!r} are missing or no numbers.", code="bad-images")
    values: np.typing.NDArray[Any] = np.stack(columns, axis=1)
    return values if values.dtype.kind in "iu" else values.astype(np.float32)
