"""The nearest neighbours of embeddings, exhaustively, in blocks of one matrix product each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

QUERIES = 512  # rows of a block
GROUP = 64  # columns of which only the largest is looked at first


def nearest(
    queries: Tensor, database: Tensor, k: int, *, least: float = -1.0, skip_self: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return (query, row, similarity) of up to k nearest rows of each query with a similarity of at least `least`.

    `queries` (N, D) and `database` (M, D) are of unit length, similarity is their inner product. With `skip_self` row i
    is no neighbour of query i.
    """
    m = len(database)
    k = min(k, m)
    groups = -(-m // GROUP)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    similarity = torch.full((QUERIES, groups * GROUP), -2.0)
    for start in range(0, len(queries), QUERIES):
        block = queries[start : start + QUERIES]
        n = len(block)
        torch.mm(block, database.T, out=similarity[:n, :m]) if groups * GROUP == m else similarity[:n, :m].copy_(
            block @ database.T
        )
        if skip_self:
            similarity[torch.arange(n), torch.arange(start, start + n)] = -2.0
        grouped = similarity[:n].view(n, groups, GROUP)
        # The k largest values lie in the k groups with the largest maxima.
        best = grouped.amax(dim=2).topk(min(k, groups), dim=1).indices
        values, places = grouped.gather(1, best[:, :, None].expand(-1, -1, GROUP)).flatten(1).topk(k, dim=1)
        rows = best.gather(1, places // GROUP) * GROUP + places % GROUP
        keep = values >= least
        query = torch.arange(start, start + n)[:, None].expand(-1, k)
        found.append((query[keep], rows[keep], values[keep]))
        progress(min(start + QUERIES, len(queries)), len(queries))
    if not found:
        return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), torch.empty(0)
    query_, row_, value_ = (torch.cat(part) for part in zip(*found, strict=True))
    return query_, row_, value_
