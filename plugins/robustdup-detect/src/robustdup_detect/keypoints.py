"""Local features: places in a picture that are found again after it was turned, scaled, cropped or partly covered (SIFT).

Lowe 2004, https://doi.org/10.1023/B:VISI.0000029664.99615.94, as OpenCV has it; the square root of the descriptors is kept
(Arandjelovic and Zisserman 2012, https://doi.org/10.1109/CVPR.2012.6248018). Mirror images and negatives need no second
look at the pixels: their descriptors are those of the picture in another order.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np

MOST = 160  # keypoints of a picture that are kept, the strongest ones
WIDTH = 128  # numbers of a descriptor
LARGE = 64  # pixels of the shorter side from which pictures have local features to speak of
WORKED_ON = 192  # pixels of the longer side in which keypoints are looked for, at most
SMALLEST = 144  # smaller pictures are enlarged to this many pixels
WAYS = ("as it is", "mirrored", "negative")  # how a picture may be looked for


@dataclass(frozen=True)
class Keypoints:
    """The keypoints of N pictures: `places` float32 (N, K, 2), -1 to 1 across a picture, `descriptors` uint8 (N, K, 128).

    `count` (N,) says how many of the K are filled.
    """

    places: Any
    descriptors: Any
    count: Any

    def __len__(self) -> int:
        return len(self.count)

    @property
    def filled(self) -> Any:
        """True where a keypoint is, bool (N, K)."""
        return np.arange(self.descriptors.shape[1]) < self.count[:, None]

    def __getitem__(self, rows: Any) -> Keypoints:
        return Keypoints(*(np.asarray(getattr(self, field.name)[rows]) for field in fields(Keypoints)))


def find_keypoints(image: Any) -> tuple[Any, Any, int]:
    """Return places float32 (K, 2), descriptors uint8 (K, 128) and the number of keypoints of pixels uint8 (H, W[, 3])."""
    import cv2

    grey = image if image.ndim == 2 else cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    longer = max(height, width)
    side = min(max(longer, SMALLEST), WORKED_ON)
    if side != longer:
        size = max(round(width * side / longer), 8), max(round(height * side / longer), 8)
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if side < longer else cv2.INTER_CUBIC)
        height, width = grey.shape
    places, descriptors = np.zeros((MOST, 2), np.float32), np.zeros((MOST, WIDTH), np.uint8)
    points, described = _sift().detectAndCompute(grey, None)
    if not points:
        return places, descriptors, 0
    # Large ones are found again in a copy that was made smaller, or blurred.
    strongest = np.argsort([-point.response * point.size for point in points], kind="stable")[:MOST]
    centres = np.array([points[row].pt for row in strongest], np.float32)
    rooted = np.sqrt(described[strongest] / np.maximum(described[strongest].sum(axis=1, keepdims=True), 1e-6))
    places[: len(centres)] = (centres + 0.5) * 2 / np.array([width, height], np.float32) - 1
    descriptors[: len(centres)] = np.minimum(np.round(rooted * 255), 255)
    return places, descriptors, len(centres)


def keypoints_of(pictures: Any) -> Keypoints:
    """Return the keypoints of pictures uint8 (N, H, W, 3)."""
    described = [find_keypoints(picture) for picture in pictures]
    places, descriptors, count = zip(*described, strict=True) if described else ((), (), ())
    return Keypoints(
        np.array(places, np.float32).reshape(-1, MOST, 2), np.array(descriptors, np.uint8).reshape(-1, MOST, WIDTH),
        np.array(count, np.int64),
    )  # fmt: skip


def seen(keypoints: Keypoints, way: str) -> Keypoints:
    """Return the keypoints that the mirror images or the negatives of the same pictures have; `way` is one of WAYS."""
    if way == "as it is":
        return keypoints
    order = _orders()[way]
    places = keypoints.places * np.array([-1, 1], np.float32) if way == "mirrored" else keypoints.places
    return Keypoints(places, keypoints.descriptors[..., order], keypoints.count)


@cache
def _sift() -> Any:
    opencv: Any = importlib.import_module("cv2")  # whose types do not know SIFT
    opencv.setNumThreads(1)  # the work is shared out by pictures
    return opencv.SIFT_create(nfeatures=0, contrastThreshold=0.005, edgeThreshold=15)


@cache
def _orders() -> dict[str, Any]:
    """Return the order in which descriptors are those of a mirror image, and of a negative.

    A descriptor has 4 x 4 cells of 8 directions, relative to the keypoint's own. Mirrored, its rows of cells and its
    directions run the other way round. In a negative, all gradients turn round, and the keypoint's with them.
    """
    cells = np.arange(WIDTH).reshape(4, 4, 8)
    backward = -np.arange(8) % 8
    return {"mirrored": cells[::-1][:, :, backward].ravel(), "negative": cells[::-1, ::-1].ravel()}
