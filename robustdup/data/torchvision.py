"""Datasets of torchvision as they lie on the disk: `torchvision:CIFAR10@root`. Nothing is downloaded."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustdup.data.columns import picture_table
from robustdup.data.layouts.binaries import open_known
from robustdup.data.layouts.opened import Opened, pick
from robustdup.errors import UserError, unknown, user_path

if TYPE_CHECKING:
    from robustdup.config import DataOptions
    from robustdup.data.dataset import Samples

READ_HERE = {name: name for name in ("CIFAR10", "CIFAR100", "MNIST", "SVHN", "STL10")} | dict.fromkeys(
    ("FashionMNIST", "KMNIST", "QMNIST", "EMNIST"), "MNIST"
)  # whose files they are like
EXAMPLE = "torchvision:CIFAR10@path/to/root"


def load_torchvision(rest: str, options: DataOptions) -> Samples:
    """Return the samples of a split of `NAME@ROOT`. Raises UserError."""
    from robustdup.data.table import open_rows

    opened = open_torchvision(rest, options.split, options.config)
    name, notes = pick(opened, options.split, f"torchvision:{rest}", lenient=True)
    return open_rows(opened.splits[name], options, f"torchvision:{rest} ({name})", split=name, notes=notes)


def open_torchvision(rest: str, split: str, config: str | None = None) -> Opened:
    """Return the splits of `NAME@ROOT`: of well-known files, or what torchvision's class gives. Raises UserError."""
    name, mark, root = rest.partition("@")
    if name not in READ_HERE and name not in (known := _names()):
        raise unknown("dataset of torchvision:", name, known)
    place = user_path(root)
    if not mark or not place.is_dir():
        raise UserError(
            f"There is no folder {root!r}. Name the root that torchvision downloaded to: {EXAMPLE}.",
            code="unknown-data",
        )
    if name in READ_HERE:
        # MNIST and its kind lie in ROOT/NAME/raw.
        for folder in (place / name, place):
            opened = open_known(folder, config, only=READ_HERE[name]) if folder.is_dir() else None
            if opened is not None:
                return opened
    import torchvision

    return Opened({split: _from_class(getattr(torchvision.datasets, name), name, place, split)})


def _names() -> list[str]:
    import torchvision

    return sorted(
        word for word in torchvision.datasets.__all__ if isinstance(getattr(torchvision.datasets, word), type)
    )


def _from_class(build: Any, name: str, root: Path, split: str) -> Any:
    """Return a table of what a class of torchvision reads, with pictures as they are decoded."""
    parameters = inspect.signature(build.__init__).parameters
    chosen: dict[str, Any] = {"root": str(root)}
    if "train" in parameters:
        chosen["train"] = split == "train"
    elif "split" in parameters:
        chosen["split"] = "val" if name in ("ImageNet", "Places365") and split != "train" else split
    try:
        rows = build(**chosen, **({"download": False} if "download" in parameters else {}))
        first = rows[0]
    except Exception as error:
        raise UserError(
            f"torchvision cannot read {name} in {str(root)!r} ({split}): {' '.join(str(error).split())}",
            code="bad-data",
        ) from error
    if len(first) != 2 or not isinstance(first[1], int):
        raise UserError(f"{name} of torchvision does not give pictures with one class each.", code="bad-data")
    names = [str(word[0] if isinstance(word, tuple) else word) for word in getattr(rows, "classes", [])]
    images, labels = zip(*(rows[i] for i in range(len(rows))), strict=True)
    return picture_table(images, labels, names)
