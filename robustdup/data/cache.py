"""Decoded images kept in memory as bytes: a split that is read whole, and samples that are read again and again."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from robustdup.data.dataset import Samples, on_8bit_grid
from robustdup.errors import UserError

CHUNK = 512  # samples that one thread decodes at a time
THREADS = 4
LIMIT = 2**30  # bytes of pixels that are kept, before another split is opened
SEARCHES = 64  # results of searches that are kept

ImagesAndLabels = tuple[Tensor, Tensor]


def load_pixels(samples: Samples, indices: Sequence[int]) -> ImagesAndLabels:
    """Return the images and the labels of some samples, as bytes where all images are on the 8-bit grid.

    Samples are decoded in chunks by a few threads, so that memory holds little besides the result.

    Args:
        samples: The split.
        indices: Which samples, in the order of the result.

    Returns:
        Images uint8 (N, C, H, W), or float32 in [0, 1] where some are not on the grid (the digits have 17 levels), and
        labels int64 (N,).

    Raises:
        UserError: no-data where there are no samples, for images that cannot be read (naming them), and
            different-sizes.
    """
    if not indices:
        raise UserError("There are no rows to read.", code="no-data")
    chunks = [list(indices[start : start + CHUNK]) for start in range(0, len(indices), CHUNK)]
    pixels: Tensor | None = None
    labels = torch.empty(len(indices), dtype=torch.int64)
    done = 0
    for images, chunk_labels in _decoded(samples, chunks):
        levels = (images * 255).round()
        on_grid = on_8bit_grid(images)
        if pixels is None:
            pixels = torch.empty((len(indices), *images.shape[1:]), dtype=torch.uint8 if on_grid else torch.float32)
        if images.shape[1:] != pixels.shape[1:]:
            raise UserError(
                f"Images differ in shape: {tuple(pixels.shape[1:])} and {tuple(images.shape[1:])} "
                "(channels, height, width). Give resize and crop, or grey.",
                code="different-sizes",
            )
        if pixels.dtype == torch.uint8 and not on_grid:
            pixels = pixels.float() / 255
        pixels[done : done + len(images)] = levels.to(torch.uint8) if pixels.dtype == torch.uint8 else images
        labels[done : done + len(images)] = chunk_labels
        done += len(images)
    assert pixels is not None  # there is at least one chunk
    return pixels, labels


def _decoded(samples: Samples, chunks: list[list[int]]) -> Iterator[ImagesAndLabels]:
    """Yield the decoded chunks in order, a few of them ahead."""
    waiting = iter(chunks)
    with ThreadPoolExecutor(THREADS) as pool:
        ahead = [pool.submit(samples.fetch, chunk) for chunk in islice(waiting, 2 * THREADS)]
        while ahead:
            yield ahead.pop(0).result()
            ahead += [pool.submit(samples.fetch, chunk) for chunk in islice(waiting, 1)]


class DatasetCache:
    """Opened splits by what names them, and their decoded samples.

    Where all hold more than the limit when a split is asked for, those that were not asked for longest are let go.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit, self._kept = limit, OrderedDict[Any, CachedSamples]()
        self._found = OrderedDict[Any, Tensor]()

    def search(self, key: Any, make: Callable[[], Tensor]) -> Tensor:
        """Return a copy of what `make()` gave for this key, among the results of the last searches."""
        if key not in self._found:
            self._found[key] = make()
        self._found.move_to_end(key)
        while len(self._found) > SEARCHES:
            self._found.popitem(last=False)
        return self._found[key].clone()

    def samples(self, key: Any, load: Callable[[], Samples]) -> Samples:
        """Return the samples that `load()` gives, or those that are kept under this key."""
        if key not in self._kept:
            self._kept[key] = CachedSamples(load(), self._limit)
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and sum(samples.nbytes for samples in self._kept.values()) > self._limit:
            self._kept.popitem(last=False)
        return self._kept[key]


class CachedSamples:
    """The samples of one split; those on the 8-bit grid and of one shape are decoded once. `fetch` gives the same bits."""

    def __init__(self, samples: Samples, limit: int = LIMIT) -> None:
        self._samples, self._limit, self._lock = samples, limit, threading.Lock()
        self._off = False  # images that cannot be kept as bytes of one shape are decoded anew
        self._pixels: Tensor | None = None
        self._labels = torch.zeros(len(samples), dtype=torch.int64)
        self._known = torch.zeros(len(samples), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self._samples)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._samples, name)

    @property
    def nbytes(self) -> int:
        """The bytes of pixels that are held at most."""
        return 0 if self._pixels is None else self._pixels.numel()

    def fetch(self, indices: Sequence[int]) -> ImagesAndLabels:
        """Return images float32 (n, C, H, W) in [0, 1] and labels int64 (n,) of these samples, in this order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        missing = torch.unique(index[~self._known[index]])
        if not self._off and len(missing):
            self._off = not self._keep(missing)
        if self._off or self._pixels is None:
            return self._samples.fetch(indices)
        return self._pixels[index].float() / 255, self._labels[index]

    def _keep(self, missing: Tensor) -> bool:
        images, labels = self._samples.fetch(missing.tolist())
        levels = (images * 255).round().to(torch.uint8)
        if not torch.equal(levels.float() / 255, images):
            return False
        with self._lock:
            if self._pixels is None:
                if len(self._samples) * levels[0].numel() > self._limit:
                    return False
                self._pixels = torch.empty((len(self._samples), *levels.shape[1:]), dtype=torch.uint8)
            if levels.shape[1:] != self._pixels.shape[1:]:
                return False
        self._pixels[missing], self._labels[missing] = levels, labels
        self._known[missing] = True
        return True


_current: ContextVar[DatasetCache | None] = ContextVar("the cache of datasets", default=None)


@contextlib.contextmanager
def caching(cache: DatasetCache) -> Iterator[None]:
    """Let `open_samples` keep in this cache what it opens meanwhile."""
    token = _current.set(cache)
    try:
        yield
    finally:
        _current.reset(token)


def cached(key: Any, load: Callable[[], Samples]) -> Samples:
    """Return the samples that `load()` gives: from the cache that is at work, if any."""
    cache = _current.get()
    return load() if cache is None else cache.samples(key, load)


def searched(key: Callable[[], Any], make: Callable[[], Tensor]) -> Tensor:
    """Return what a search `make()` finds: from the cache that is at work, if any, under `key()`, which holds all it hangs on."""
    cache = _current.get()
    return make() if cache is None else cache.search(key(), make)
