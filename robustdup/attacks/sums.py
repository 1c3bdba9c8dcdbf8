"""Sums over the pixels of each row, with the same bits whatever the other rows are, and quick enough for every step."""

from __future__ import annotations

from torch import Tensor

from robustdup.threat import row_sum

COLUMNS = 64  # what `fold_sum` leaves to a running sum


def fold_sum(values: Tensor) -> Tensor:
    """Sum each row of (N, D) -> (N,), to the same bits whatever the other rows are, in the dtype of `values`.

    The two halves are added until few columns are left; those are summed in order in float64. For thousands of columns
    it takes a fraction of the time of `row_sum` on a CPU, with an error of a few units in the last place.
    """
    dtype = values.dtype
    while values.shape[1] > COLUMNS:
        half = values.shape[1] // 2
        folded = values[:, :half] + values[:, half : 2 * half]
        if values.shape[1] % 2:
            folded[:, 0] += values[:, -1]
        values = folded
    return row_sum(values).to(dtype)
