"""From pairs to clusters of one picture each, and which of its images to keep."""

from __future__ import annotations

from typing import Any

import numpy as np

from robustdup_detect.options import Keep


def cluster(n: int, a: Any, b: Any) -> Any:
    """Return the cluster of each of n rows, int64 (n,), joined by pairs (a, b): 0, 1, … by first row, -1 for rows alone."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(n, n))
    _, part = connected_components(graph, directed=False)
    _, first, group = np.unique(part, return_index=True, return_inverse=True)
    shared = np.bincount(group) > 1
    rank = np.full(len(first), -1, np.int64)
    order = np.argsort(first)
    order = order[shared[order]]
    rank[order] = np.arange(len(order))
    return rank[group]


def leaving(clusters: Any, labels: Any, pixels: Any, content: Any, keep: Keep) -> Any:
    """Return the rows that a deduplicated split leaves out, rising, so that every cluster keeps one image at most.

    `clusters` (n,) are those of `cluster`, `labels` (n,) -1 where unknown; `pixels` and `content` (n,) say how many pixels
    an image has and how many bytes. `consistent` keeps the first image with the label that more than half of the cluster
    has, and none where there is no such label.
    """
    rows = np.flatnonzero(clusters >= 0)
    if keep == "quality":
        order = np.lexsort((rows, -content[rows], -pixels[rows], clusters[rows]))
    elif keep == "consistent":
        major = majority(clusters, labels)
        agrees = labels[rows] == major[clusters[rows]]
        order = np.lexsort((rows, ~agrees, clusters[rows]))
    else:
        order = np.lexsort((rows, clusters[rows]))
    ordered = rows[order]
    _, first = np.unique(clusters[ordered], return_index=True)
    kept = ordered[first]
    if keep == "consistent":
        kept = kept[labels[kept] == major[clusters[kept]]]
    return np.setdiff1d(rows, kept)


def majority(clusters: Any, labels: Any) -> Any:
    """Return the label that more than half of each cluster has, int64; -2 where there is none."""
    rows = np.flatnonzero(clusters >= 0)
    count = int(clusters.max(initial=-1)) + 1
    found = np.full(count, -2, np.int64)
    pairs, many = np.unique(np.stack([clusters[rows], labels[rows]]), axis=1, return_counts=True)
    size = np.bincount(clusters[rows], minlength=count)
    most = 2 * many > size[pairs[0]]
    found[pairs[0][most]] = pairs[1][most]
    return found


def conflicting(clusters: Any, labels: Any) -> Any:
    """Return the clusters whose images carry different known labels, rising."""
    rows = np.flatnonzero((clusters >= 0) & (labels >= 0))
    pairs = np.unique(np.stack([clusters[rows], labels[rows]]), axis=1)
    return np.flatnonzero(np.bincount(pairs[0], minlength=int(clusters.max(initial=-1)) + 1) > 1)
