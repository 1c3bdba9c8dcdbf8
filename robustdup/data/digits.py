"""The built-in data: scikit-learn's handwritten digits, embedded in its wheel, so that they need no network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robustdup.data.decode import check_options, fit
from robustdup.data.sources import DataOptions
from robustdup.errors import UserError, unknown

TRAIN_ROWS = 1297
SPLITS = {"train": (0, TRAIN_ROWS), "test": (TRAIN_ROWS, 1797)}


class DigitsRows:
    """The rows of one split: 8x8 grey images with 17 levels (0..16, divided by 16), ten classes."""

    class_names = [str(digit) for digit in range(10)]  # noqa: RUF012

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return self.images.shape[0]

    def fetch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images float32 (n, 1, 8, 8) in [0, 1] and labels int64 (n,) of these rows."""
        keep = torch.as_tensor(list(rows), dtype=torch.int64)
        return self.images[keep], self.labels[keep]


def load_builtin(rest: str, options: DataOptions) -> DigitsRows:
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
            raise UserError(f"builtin:digits has no {name}; got {getattr(options, name)!r}. Leave it out.")
    check_options(options)
    from sklearn.datasets import load_digits

    digits, (start, stop) = load_digits(), SPLITS[options.split]
    images = torch.from_numpy(digits.images[start:stop]).float().unsqueeze(1) / 16
    try:
        images = fit(images, options).clamp(0, 1)
    except ValueError as error:
        raise UserError(f"An image of builtin:digits {error}.") from None
    return DigitsRows(images, torch.from_numpy(digits.target[start:stop]).long())
