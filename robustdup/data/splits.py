"""All splits of a data spec as Hugging Face datasets: what duplication and detection read and write."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from robustdup.config import DataOptions
from robustdup.data.arrays import Arrays, as_table
from robustdup.data.columns import Columns, find_columns, picture_table, whole_labels
from robustdup.data.hub import commit_of, load_hub, load_local, looks_like_hub_id
from robustdup.data.labels import as_arrays, with_class_numbers
from robustdup.data.layouts.opened import Opened, pick
from robustdup.data.torchvision import open_torchvision
from robustdup.errors import UserError, user_path

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Splits:
    """The splits of a dataset by name, what they were read from, and the commit on the Hub where it is there."""

    splits: dict[str, datasets.Dataset]
    spec: str
    revision: str | None = None
    notes: tuple[str, ...] = ()
    unnamed: bool = False

    def name_of(self, wanted: str) -> tuple[str, tuple[str, ...]]:
        """Return the name of the split that `wanted` means, and what to tell where it is another one. Raises UserError."""
        return pick(Opened(dict(self.splits), unnamed=self.unnamed), wanted, self.spec, lenient=True)

    def get(self, name: str) -> datasets.Dataset:
        """Return a split with rows. Raises UserError with the nearest name."""
        name, _ = self.name_of(name)
        if len(self.splits[name]) == 0:
            raise UserError(f"There are no rows in {self.spec} ({name}).", code="no-data")
        return self.splits[name]


def open_splits(spec: str, options: DataOptions) -> Splits:
    """Return all splits behind a spec without decoding any image. Raises UserError.

    `builtin:digits`, an existing path (a folder or a parquet file), or NAME and OWNER/NAME on the Hugging Face Hub.
    """
    if spec == "builtin:digits":
        note = "The built-in digits have 17 grey levels; v of 16 is written as the byte nearest to 255 v / 16."
        return Splits({name: _digits(name) for name in ("train", "test")}, spec, notes=(note,))
    path = user_path(spec)
    if spec and path.exists():
        opened = load_local(path, options)
    elif looks_like_hub_id(spec):
        opened = load_hub(spec, options)
    elif spec.startswith("torchvision:"):
        opened = open_torchvision(spec.partition(":")[2], options.split, options.config)
    else:
        raise UserError(
            f"There is no file or folder {spec!r}. Give a folder, a Hub id such as uoft-cs/cifar10, or builtin:digits.",
            code="unknown-data",
        )
    opened = with_class_numbers(opened, options, spec)
    tables = {name: _table(name, rows, options, spec) for name, rows in opened.splits.items()}
    notes = [
        *opened.notes,
        *(note for more in opened.split_notes.values() for note in more),
        *(n for _, remarks in tables.values() for n in remarks),
    ]
    splits = {name: rows for name, (rows, _) in tables.items()}
    return Splits(
        splits, spec, next((commit_of(split) for split in splits.values()), None), tuple(notes), opened.unnamed
    )


def _table(name: str, rows: Any, options: DataOptions, spec: str) -> tuple[datasets.Dataset, tuple[str, ...]]:
    """Return a split whose pixels are arrays or columns of numbers as a table of pictures, and what to tell of it."""
    if isinstance(rows, Arrays):
        return as_table(rows, name)
    try:
        columns = find_columns(
            rows.features, image=options.image_column, label=options.label_column, place=spec, needs_labels=False
        )
    except UserError:  # said when the split is read
        return rows, ()
    if not columns.numbers:
        return rows, ()
    import datasets

    pictures, notes = as_table(as_arrays(rows, replace(columns, label=""), f"{spec} ({name})"), name)
    content = pictures.cast_column("image", datasets.Image(decode=False)).with_format(None)["image"]
    changed = rows.remove_columns([columns.image]).add_column(columns.image, list(content), feature=datasets.Image())
    return changed.select_columns(rows.column_names), notes


def label_tensor(dataset: datasets.Dataset, columns: Columns, place: str) -> torch.Tensor:
    """Return the labels of a split, int64 (n,). Raises UserError for a row without one."""
    return torch.from_numpy(whole_labels(dataset, columns.label, place).to_numpy().astype("int64"))


def split_columns(
    dataset: datasets.Dataset, options: DataOptions, place: str, *, needs_labels: bool = True
) -> tuple[datasets.Dataset, Columns]:
    """Return a split whose images are known as such, and its columns. Raises UserError, also for missing labels if needed."""
    import datasets

    columns = find_columns(
        dataset.features, image=options.image_column, label=options.label_column, place=place, needs_labels=needs_labels
    )
    return (dataset.cast_column(columns.image, datasets.Image()) if columns.raw else dataset), columns


def _digits(split: str) -> Any:
    from PIL import Image

    from robustdup.data.digits import load_builtin

    rows = load_builtin("digits", DataOptions(split=split))
    pixels = (rows.images[:, 0] * 255).round().to(torch.uint8).numpy()
    return picture_table([Image.fromarray(image) for image in pixels], rows.labels.tolist(), rows.class_names, split)
