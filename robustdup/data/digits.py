"""The built-in data: scikit-learn's handwritten digits, embedded in its wheel, so that they need no network."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustdup.config import DataOptions
from robustdup.data.decode import check_options, fit
from robustdup.errors import UserError, unknown

TRAIN_ROWS = 1297
SPLITS = {"train": (0, TRAIN_ROWS), "test": (TRAIN_ROWS, 1797)}


class DigitsSamples:
    """The samples of one split: 8x8 grey images with 17 levels (0..16, divided by 16), ten classes."""

    class_names = [str(digit) for digit in range(10)]  # noqa: RUF012

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return self.images.shape[0]

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images float32 (n, 1, 8, 8) in [0, 1] and labels int64 (n,) of these samples."""
        keep = torch.as_tensor(list(indices), dtype=torch.int64)
        return self.images[keep], self.labels[keep]


def load_builtin(rest: str, options: DataOptions) -> DigitsSamples:
    """Return the rows of `builtin:digits`: rows 0-1296 of scikit-learn's digits are `train`, the last 500 `test`.

    https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html. Raises UserError for another
    name, split or option.
    """
    if rest != "digits":
        raise unknown("built-in data", f"builtin:{rest}", ["builtin:digits"])
    if options.split not in SPLITS:
        raise unknown("split of builtin:digits:", options.split, SPLITS)
    for name in ("config", "revision", "image_column", "label_column"):
        if getattr(options, name) is not None:
            raise UserError(
                f"builtin:digits has no {name}; got {getattr(options, name)!r}. Leave it out.", code="bad-option"
            )
    check_options(options)
    images, labels = read_digits()
    start, stop = SPLITS[options.split]
    images = images[start:stop] / 16
    try:
        images = fit(images, options).clamp(0, 1)
    except ValueError as error:
        raise UserError(f"An image of builtin:digits {error}.", code="bad-option") from None
    return DigitsSamples(images, labels[start:stop])


def read_digits() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's digits: images float32 (1797, 1, 8, 8) with values 0..16, labels int64 (1797,).

    The file in its wheel is read directly, since importing scikit-learn takes seconds; where it has moved, through it.
    """
    package = importlib.util.find_spec("sklearn")
    places = list(package.submodule_search_locations or ()) if package is not None else []
    files = [file for place in places if (file := Path(place) / "datasets" / "data" / "digits.csv.gz").is_file()]
    if files:
        table = np.loadtxt(files[0], delimiter=",", dtype=np.float32)
        pixels, target = table[:, :-1], table[:, -1]
    else:
        from sklearn.datasets import load_digits

        pixels, target = load_digits(return_X_y=True)
    images = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32)).view(-1, 1, 8, 8)
    return images, torch.from_numpy(np.ascontiguousarray(target, dtype=np.int64))
