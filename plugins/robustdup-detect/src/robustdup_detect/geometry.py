"""Do the local features of two pictures lie alike? Descriptors are matched, and one affine map must explain many matches.

The map is found by OpenCV's MAGSAC++ (Barath et al. 2020, https://arxiv.org/abs/1912.05909), which is told how exact a match
must be only roughly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from robustdup_detect.keypoints import MOST, Keypoints

PAIRS = 64  # pairs of pictures whose descriptors are compared at once
FEWEST = 5  # matches on one map, below which nothing is said
RATIO = 0.9  # of the distance to the second nearest descriptor: a nearest one that is not nearer says nothing
EXACT = 3.0  # hundredths of a picture's side
STRETCH = 3.0  # how much more a map may enlarge one way than the other
ENLARGED = 5.0  # how much a map may enlarge or shrink


def match(first: Keypoints, second: Keypoints, rows: Any, others: Any) -> list[Any]:
    """Return, for each pair of pictures, the places (P, 2) of descriptors that are each other's nearest, and clearly so.

    `rows` and `others` (C,) are the pictures of `first` and `second` in the pairs.
    """
    matched: list[Any] = []
    own = torch.from_numpy(first.descriptors).float()
    other = torch.from_numpy(second.descriptors).float()
    filled = [torch.arange(MOST) < torch.from_numpy(np.asarray(part.count))[:, None] for part in (first, second)]
    for start in range(0, len(rows), PAIRS):
        a, b = (torch.from_numpy(np.asarray(part[start : start + PAIRS])) for part in (rows, others))
        alike = own[a] @ other[b].mT
        alike.masked_fill_(~(filled[0][a][:, :, None] & filled[1][b][:, None]), -1.0)
        top, nearest = alike.topk(2, dim=2)
        back = alike.argmax(dim=1)
        mutual = back.gather(1, nearest[..., 0]) == torch.arange(MOST)
        far = (2 * (1 - top.clamp(min=0) / 255**2)).clamp(min=1e-6).sqrt()
        good = mutual & (far[..., 0] <= RATIO * far[..., 1]) & (top[..., 0] >= 0)
        pair, row = good.nonzero(as_tuple=True)
        both = torch.stack([row, nearest[..., 0][pair, row]], dim=1).numpy()
        matched += np.split(both, np.searchsorted(pair.numpy(), np.arange(1, len(a))))
    return matched


def affine_between(first: Any, second: Any) -> tuple[Any, int] | None:
    """Return the map (2, 3) that takes most places (P, 2) of the first to those of the second, and how many; None for none."""
    import cv2

    if len(first) < FEWEST:
        return None
    matrix, inside = cv2.estimateAffine2D(
        first * 50, second * 50, method=cv2.USAC_MAGSAC, ransacReprojThreshold=EXACT, maxIters=300, confidence=0.99
    )  # in hundredths of a side
    if matrix is None:
        return None
    many = _different(first[inside.ravel() > 0], second[inside.ravel() > 0])
    matrix = matrix.astype(np.float32)
    matrix[:, 2] /= 50
    stretches = np.linalg.svd(matrix[:, :2], compute_uv=False)
    plausible = (
        stretches[0] <= STRETCH * stretches[1] and 1 / ENLARGED <= np.sqrt(stretches[0] * stretches[1]) <= ENLARGED
    )
    return (matrix, many) if plausible and many >= FEWEST and np.linalg.det(matrix[:, :2]) > 0 else None


def _different(first: Any, second: Any) -> int:
    """Return how many matches lie at different places: several keypoints at one place are one."""
    cells = [np.round(places * 25).astype(np.int64) @ np.array([1, 64]) for places in (first, second)]
    return min(len(np.unique(part)) for part in cells)


def shown(first: Any, second: Any, matrix: Any) -> int:
    """Return how many keypoints, at places (A, 2) and (B, 2), both pictures could show under a map: of the side with fewer."""
    there = first @ matrix[:, :2].T + matrix[:, 2]
    back = (second - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    return int(min((np.abs(places) <= 1).all(axis=1).sum() for places in (there, back)))
