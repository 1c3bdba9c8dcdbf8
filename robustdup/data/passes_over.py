"""Endless passes over a set of entries, each in an order of its own: what a stream of batches draws from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class PassesOver:
    """The samples of endless passes over `count` entries: sample s is at place s % count of pass s // count.

    `order(epoch)` returns the positions (count,) int64 of a pass in their order.
    """

    def __init__(self, count: int, order: Callable[[int], Tensor]) -> None:
        self.count, self._make = count, order
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def samples(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        """Return the positions and the epochs, int64 (high - low,), of the samples [low, high)."""
        positions: list[Tensor] = []
        epochs: list[Tensor] = []
        while low < high or not positions:
            epoch, start = divmod(low, self.count)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, self._make(epoch)
            part = self._order[start : start + high - low]
            positions.append(part)
            epochs.append(torch.full_like(part, epoch))
            low += max(len(part), 1)
        return (positions[0], epochs[0]) if len(positions) == 1 else (torch.cat(positions), torch.cat(epochs))

    def different(self, samples: int) -> Tensor:
        """Return the positions that are among the first `samples`."""
        return self._make(0)[:samples]


def extra_rows(rows: int, share: float) -> int:
    """Return how many of `rows` samples come from extra data: the whole number nearest to the share, a half upwards."""
    return min(rows, int(rows * share + 0.5))


def interleaved(own: int, extra: int) -> Tensor:
    """Return the order (own + extra,) in which a batch takes `own` first and `extra` last samples: evenly mixed."""
    rows = own + extra
    place = torch.arange(rows)
    from_extra = (place + 1) * extra // max(rows, 1) > place * extra // max(rows, 1)
    order = torch.empty(rows, dtype=torch.int64)
    order[from_extra] = torch.arange(own, rows)
    order[~from_extra] = torch.arange(own)
    return order
