"""All images of a split in memory, as bytes where they are on the 8-bit grid: what training reads from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import torch
from torch import Tensor

from robustdup.data.sources import Rows
from robustdup.errors import UserError

CHUNK = 512  # rows that one thread decodes at a time
THREADS = 4
GRID = 1e-4  # how far 255 times a value on the 8-bit grid may be from a whole number

Part = tuple[Tensor, Tensor]


def load_pixels(
    rows: Rows, index: Sequence[int], *, progress: Callable[[int, int], None] = lambda done, total: None
) -> Part:
    """Return the images and labels (N,) int64 of these rows: uint8 (N, C, H, W) where all are on the 8-bit grid.

    Otherwise (the digits have 17 levels) float32 in [0, 1]. Rows are decoded in chunks by a few threads, so that
    memory holds little besides the result. `progress` gets rows done and rows in all. Raises UserError where there are no
    rows, for images that cannot be read (naming the row) and for images of different sizes.
    """
    if not index:
        raise UserError("There are no rows to read.")
    chunks = [list(index[start : start + CHUNK]) for start in range(0, len(index), CHUNK)]
    pixels: Tensor | None = None
    labels = torch.empty(len(index), dtype=torch.int64)
    done = 0
    for images, truth in _decoded(rows, chunks):
        levels = (images * 255).round()
        on_grid = bool(((images * 255 - levels).abs() <= GRID).all())
        if pixels is None:
            pixels = torch.empty((len(index), *images.shape[1:]), dtype=torch.uint8 if on_grid else torch.float32)
        if images.shape[1:] != pixels.shape[1:]:
            raise UserError(
                f"Images differ in shape: {tuple(pixels.shape[1:])} and {tuple(images.shape[1:])} (channels, height, width). "
                "Give resize and crop, or grey."
            )
        if pixels.dtype == torch.uint8 and not on_grid:
            pixels = pixels.float() / 255
        pixels[done : done + len(images)] = levels.to(torch.uint8) if pixels.dtype == torch.uint8 else images
        labels[done : done + len(images)] = truth
        done += len(images)
        progress(done, len(index))
    assert pixels is not None  # there is at least one chunk
    return pixels, labels


def _decoded(rows: Rows, chunks: list[list[int]]) -> Iterator[Part]:
    """Yield the decoded chunks in order, a few of them ahead."""
    waiting = iter(chunks)
    with ThreadPoolExecutor(THREADS) as pool:
        ahead = [pool.submit(rows.fetch, chunk) for chunk in islice(waiting, 2 * THREADS)]
        while ahead:
            yield ahead.pop(0).result()
            ahead += [pool.submit(rows.fetch, chunk) for chunk in islice(waiting, 1)]
