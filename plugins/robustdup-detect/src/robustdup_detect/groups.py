"""Which images belong together: identical ones by a hash of their pixels, clusters around one image, and which to keep."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from robustdup.duplication.representatives import representatives
from robustdup_detect.options import Keep

DIGEST = 16  # bytes of a hash


def digest(pixels: Any) -> bytes:
    """Return 16 bytes that identify decoded pixels, a uint8 array (C, H, W): BLAKE2b of shape and values."""
    return hashlib.blake2b(f"{pixels.shape}".encode() + pixels.tobytes(), digest_size=DIGEST).digest()


def digests(pixels: Tensor) -> Any:
    """Return the hashes of pixels uint8 (N, C, H, W), as numpy (N, 16) uint8."""
    return np.frombuffer(b"".join(digest(image) for image in pixels.numpy()), np.uint8).reshape(-1, DIGEST)


@dataclass(frozen=True)
class Groups:
    """Identical rows of a set of N: the U groups in order of their first rows, `first` (U,), and `group` (N,) of each row."""

    first: Any
    group: Any

    def expand(self, groups: Any) -> tuple[Any, Any]:
        """Return (place, row) of every row that belongs to one of `groups` (P,) but is not the first of its group."""
        order = np.argsort(self.group, kind="stable")
        start = np.searchsorted(self.group[order], groups) + 1
        many = np.bincount(self.group, minlength=len(self.first))[groups] - 1
        place = np.repeat(np.arange(len(groups)), many)
        offset = np.arange(len(place)) - np.repeat(np.cumsum(many) - many, many)
        return place, order[np.repeat(start, many) + offset]

    def others(self) -> tuple[Any, Any]:
        """Return (first, other): each row that is not the first of its group, beside the first."""
        place, rows = self.expand(np.arange(len(self.first)))
        return self.first[place], rows


def group_identical(hashes: Any) -> Groups:
    """Group the rows of hashes uint8 (N, 16)."""
    keys = np.ascontiguousarray(hashes).view(f"V{DIGEST}")[:, 0]
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return Groups(np.sort(first), rank[group.reshape(-1)])


def identical_across(hashes_a: Any, hashes_b: Any) -> tuple[Any, Any]:
    """Return (row of a, row of b) of equal hashes; neither side may repeat a hash."""
    keys_a, keys_b = (np.ascontiguousarray(hashes).view(f"V{DIGEST}")[:, 0] for hashes in (hashes_a, hashes_b))
    _, a, b = np.intersect1d(keys_a, keys_b, assume_unique=True, return_indices=True)
    return a, b


def cluster(n: int, a: Any, b: Any, score: Any, order: Any = None) -> Any:
    """Return the cluster of each of n rows, int64 (n,): 0, 1, … by first row, -1 for rows alone.

    Every row of a cluster is paired with, or identical to, its representative, which comes first in `order` (n,): a chain of
    pairs does not make one cluster (`robustdup.duplication.representatives`).
    """
    stands = representatives(n, a, b, score, order)
    _, first, group = np.unique(stands, return_index=True, return_inverse=True)
    shared = np.bincount(group) > 1
    rank = np.full(len(first), -1, np.int64)
    by_row = np.argsort(first)
    by_row = by_row[shared[by_row]]
    rank[by_row] = np.arange(len(by_row))
    return rank[group]


def keeping_order(pixels: Any, content: Any, keep: Keep) -> Any:
    """Return the rows (n,) in the order in which they would rather be kept; see `leaving`."""
    rows = np.arange(len(pixels))
    return np.lexsort((rows, -content, -pixels)) if keep == "quality" else rows


def leaving(clusters: Any, labels: Any, pixels: Any, content: Any, keep: Keep) -> Any:
    """Return the rows that a deduplicated split leaves out, rising, so that every cluster keeps one image at most.

    `clusters` (n,) are those of `cluster`, `labels` (n,) -1 where unknown; `pixels` and `content` (n,) say how many pixels
    an image has and how many bytes. `consistent` keeps the first image with the label that more than half of the cluster
    has, and none where there is no such label.
    """
    rows = np.flatnonzero(clusters >= 0)
    rank = np.argsort(keeping_order(pixels, content, keep))[rows]
    if keep == "consistent":
        major = majority(clusters, labels)
        agrees = labels[rows] == major[clusters[rows]]
        order = np.lexsort((rank, ~agrees, clusters[rows]))
    else:
        order = np.lexsort((rank, clusters[rows]))
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
    most_frequent = np.full(count, -2, np.int64)
    pairs, many = np.unique(np.stack([clusters[rows], labels[rows]]), axis=1, return_counts=True)
    size = np.bincount(clusters[rows], minlength=count)
    most = 2 * many > size[pairs[0]]
    most_frequent[pairs[0][most]] = pairs[1][most]
    return most_frequent


def conflicting(clusters: Any, labels: Any) -> Any:
    """Return the clusters whose images carry different known labels, rising."""
    rows = np.flatnonzero((clusters >= 0) & (labels >= 0))
    pairs = np.unique(np.stack([clusters[rows], labels[rows]]), axis=1)
    return np.flatnonzero(np.bincount(pairs[0], minlength=int(clusters.max(initial=-1)) + 1) > 1)
