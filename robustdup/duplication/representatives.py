"""Which sample stands for which: likeness is not handed on, so that a chain of similar pictures does not become one.

Samples are looked at in an order. One that is a duplicate of a representative joins the one that it is most like; any other
is a representative itself. So every sample is a direct duplicate of the one that stands for it. Identical samples go together.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def representatives(n: int, a: Any, b: Any, score: Any, order: Any = None) -> Any:
    """Return the representative of each of n samples, int64 (n,): itself, where it is one or has no duplicate.

    Args:
        n: number of samples.
        a: (P,) one sample of each pair of duplicates.
        b: (P,) the other one.
        score: (P,) how sure a pair is; 1 where both are identical.
        order: (n,) the samples in the order in which they are looked at; 0 to n - 1 if not given. The representative comes
            before all whom it stands for.
    """
    rank = np.arange(n)
    if order is not None:
        rank[np.asarray(order)] = np.arange(n)
    first = _identical(n, a, b, score, rank)
    alike: dict[int, dict[int, float]] = {}
    for a_group, other, sure in zip(first[a].tolist(), first[b].tolist(), np.asarray(score).tolist(), strict=True):
        if a_group != other:
            for near, far in ((a_group, other), (other, a_group)):
                known = alike.setdefault(near, {})
                known[far] = max(known.get(far, 0.0), sure)
    stands = np.arange(n)
    leads: set[int] = set()
    for sample in sorted(alike, key=lambda sample: int(rank[sample])):
        known = alike[sample]
        joined = min((other for other in known if other in leads), key=lambda o: (-known[o], rank[o]), default=sample)
        stands[sample] = joined
        if joined == sample:
            leads.add(sample)
    representative: Any = stands[first]
    return representative


def _identical(n: int, a: Any, b: Any, score: Any, rank: Any) -> Any:
    """Return the sample that comes first among those identical to each, (n,)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    same = np.asarray(score) == 1
    starts, other = np.asarray(a)[same], np.asarray(b)[same]
    _, group = connected_components(coo_array((np.ones(len(starts)), (starts, other)), shape=(n, n)), directed=False)
    by_rank = np.argsort(rank)
    _, first = np.unique(group[by_rank], return_index=True)
    return by_rank[first][group]
