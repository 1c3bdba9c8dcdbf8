"""Identical pictures: those whose decoded pixels have the same hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

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
