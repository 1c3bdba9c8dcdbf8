"""Rows that were decoded once and are kept in memory, for runs of one process that read the same images again and again."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from robustdup.data.sources import Rows

LIMIT = 2**30  # bytes of pixels that are kept, before another split is opened


class RowMemory:
    """Opened splits by what names them, and their decoded rows.

    Where all hold more than the limit when a split is asked for, those that were not asked for longest are let go.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit, self._kept = limit, OrderedDict[Any, RememberedRows]()

    def rows(self, key: Any, load: Callable[[], Rows]) -> Rows:
        """Return the rows that `load()` gives, or those that are kept under this key."""
        if key not in self._kept:
            self._kept[key] = RememberedRows(load(), self._limit)
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and sum(one.nbytes for one in self._kept.values()) > self._limit:
            self._kept.popitem(last=False)
        return self._kept[key]


class RememberedRows:
    """The rows of one split; those on the 8-bit grid and of one shape are decoded once. `fetch` gives the same bits."""

    def __init__(self, rows: Rows, limit: int = LIMIT) -> None:
        self._rows, self._limit, self._lock = rows, limit, threading.Lock()
        self._off = False  # images that cannot be kept as bytes of one shape are decoded anew
        self._pixels: Tensor | None = None
        self._labels = torch.zeros(len(rows), dtype=torch.int64)
        self._known = torch.zeros(len(rows), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self._rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rows, name)

    @property
    def nbytes(self) -> int:
        """The bytes of pixels that are held at most."""
        return 0 if self._pixels is None else self._pixels.numel()

    def fetch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images float32 (n, C, H, W) in [0, 1] and labels int64 (n,) of these rows, in this order."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        missing = torch.unique(index[~self._known[index]])
        if not self._off and len(missing):
            self._off = not self._keep(missing)
        if self._off or self._pixels is None:
            return self._rows.fetch(rows)
        return self._pixels[index].float() / 255, self._labels[index]

    def _keep(self, missing: Tensor) -> bool:
        images, labels = self._rows.fetch(missing.tolist())
        levels = (images * 255).round().to(torch.uint8)
        if not torch.equal(levels.float() / 255, images):
            return False
        with self._lock:
            if self._pixels is None:
                if len(self._rows) * levels[0].numel() > self._limit:
                    return False
                self._pixels = torch.empty((len(self._rows), *levels.shape[1:]), dtype=torch.uint8)
            if levels.shape[1:] != self._pixels.shape[1:]:
                return False
        self._pixels[missing], self._labels[missing] = levels, labels
        self._known[missing] = True
        return True


_current: ContextVar[RowMemory | None] = ContextVar("rows that are remembered", default=None)


@contextlib.contextmanager
def remembering(memory: RowMemory) -> Iterator[None]:
    """Let `open_rows` keep what it opens in this memory meanwhile."""
    token = _current.set(memory)
    try:
        yield
    finally:
        _current.reset(token)


def remembered(key: Any, load: Callable[[], Rows]) -> Rows:
    """Return the rows that `load()` gives: from the memory that is at work, if any."""
    memory = _current.get()
    return load() if memory is None else memory.rows(key, load)
