"""The nearest neighbours of embeddings: every pair in blocks of a matrix product, or by an approximate index of faiss."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustdup.errors import Unavailable, how_to_install
from robustdup.records import atomic_path

QUERIES = 512  # rows of a block
COLUMNS = 65536  # columns of a block
GROUP = 64  # columns of which only the largest is looked at first
LARGE = 1_000_000  # rows from which an approximate index is worth its misses
PROBES = 32  # lists of the index that are searched

Neighbours = tuple[Tensor, Tensor, Tensor]


def approximate(search: str, n: int) -> bool:
    """Return whether neighbours among n embeddings come from an approximate index: `search` is auto, exact or faiss."""
    return search == "faiss" or (search == "auto" and n >= LARGE)


def nearest(
    queries: Tensor, database: Tensor, k: int, *, least: float = -1.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Neighbours:  # fmt: skip
    """Return (query, row, similarity) of up to k nearest rows of each query with a similarity of at least `least`.

    `queries` (N, D) and `database` (M, D) are of unit length, similarity is their inner product.
    """
    neighbours = []
    for start in range(0, len(queries), QUERIES):
        block = queries[start : start + QUERIES]
        parts = [
            _nearest_of_block(block, database[low : low + COLUMNS], k, low) for low in range(0, len(database), COLUMNS)
        ]
        values, rows = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        if len(parts) > 1:
            values, order = values.topk(min(k, values.shape[1]), dim=1)
            rows = rows.gather(1, order)
        neighbours.append(_kept(values, rows, start, least))
        progress(min(start + QUERIES, len(queries)), len(queries))
    return _joined(neighbours)


def _nearest_of_block(block: Tensor, database: Tensor, k: int, offset: int) -> tuple[Tensor, Tensor]:
    """Return the k largest similarities (n, k) and their rows, by way of the groups that hold the largest ones."""
    n, m = len(block), len(database)
    groups, k = -(-m // GROUP), min(k, m)
    similarity = block @ database.T
    if groups * GROUP != m:
        similarity = torch.nn.functional.pad(similarity, (0, groups * GROUP - m), value=-2.0)
    grouped = similarity.view(n, groups, GROUP)
    best = grouped.amax(dim=2).topk(min(k, groups), dim=1).indices
    values, places = grouped.gather(1, best[:, :, None].expand(-1, -1, GROUP)).flatten(1).topk(k, dim=1)
    return values, best.gather(1, places // GROUP) * GROUP + places % GROUP + offset


def _kept(values: Tensor, rows: Tensor, start: int, least: float) -> Neighbours:
    keep = values >= least
    query = torch.arange(start, start + len(values))[:, None].expand(-1, values.shape[1])
    return query[keep], rows[keep], values[keep]


def _joined(neighbours: list[Neighbours]) -> Neighbours:
    if not neighbours:
        return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), torch.empty(0)
    query, row, value = (torch.cat(part) for part in zip(*neighbours, strict=True))
    return query, row, value


def build_index(embeddings: Any, path: Path) -> None:
    """Write an inverted file of embeddings float32 (M, D), added piece by piece, for `nearest_by_index`. Needs faiss."""
    faiss = import_faiss()
    m, dimensions = embeddings.shape
    lists = max(1, min(int(4 * math.sqrt(m)), m // 40))
    index = faiss.index_factory(dimensions, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    rows = np.linspace(0, m - 1, min(m, 64 * lists)).astype(np.int64)
    index.train(np.ascontiguousarray(embeddings[rows]))
    for start in range(0, m, COLUMNS):
        index.add(np.ascontiguousarray(embeddings[start : start + COLUMNS]))
    with atomic_path(path) as temporary:
        faiss.write_index(index, str(temporary))


def nearest_by_index(queries: Tensor, path: Path, k: int, *, least: float = -1.0) -> Neighbours:
    """Return what `nearest` does, nearly, from an index that `build_index` wrote; the index stays on disk."""
    faiss = import_faiss()
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    index.nprobe = PROBES
    values, rows = (torch.from_numpy(part) for part in index.search(np.ascontiguousarray(queries.numpy()), k))
    return _kept(torch.where(rows >= 0, values, -2.0), rows, 0, least)


def import_faiss() -> Any:
    """Return the module faiss. Raises Unavailable with what to install."""
    try:
        import faiss
    except ImportError:
        raise Unavailable(
            f"An approximate search needs faiss: {how_to_install('robustdup[detect]')}", code="unavailable"
        ) from None
    return faiss
