"""Pairs by local features: pictures that share visual words, whose features lie alike, and that agree where they overlap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustdup_detect.features import canvas
from robustdup_detect.geometry import affine_between, match, shown
from robustdup_detect.keypoints import WAYS, Keypoints, keypoints_of, seen
from robustdup_detect.overlap import PICTURE, compare_overlap
from robustdup_detect.pairlist import Pairs, best_ways, by_matrices, joined, turned_round
from robustdup_detect.scores import LOCAL_SCORE, SUREST
from robustdup_detect.words import FEWEST, WordIndex, build_word_index, learn_words

QUERIES = 256  # pictures that are asked for at once
ASKED = 24  # pictures that share most words with each picture, in each way of looking at it


@dataclass(frozen=True)
class Overlaps:
    """Pairs whose local features lie alike: rows `a`, `b` (P,), and the `maps` (P, 2, 3) from places of a to those of b.

    `matches` (P,) is how many features lie alike, `share` (P,) their share of those that both could show.
    """

    a: Any
    b: Any
    maps: Any
    matches: Any
    share: Any

    def __len__(self) -> int:
        return len(self.a)


def overlapping(
    queries: Keypoints,
    database: Callable[[Any], Keypoints],
    index: WordIndex,
    *,
    own: Any | None = None,
    k: int = ASKED,
) -> Overlaps:
    """Return the pairs of a query and a picture of the index whose local features lie alike, each once, in its best way.

    `database` gives the keypoints of some of the index's pictures; `own` (N,) is the place of each query among these, where
    pairs within one set are looked for.
    """
    best: dict[tuple[int, int], tuple[int, Any, float]] = {}
    for way in WAYS:
        asked = seen(queries, way)
        query, place, _ = index.ask(asked, k + (own is not None))
        if own is not None:
            others = own[query] != place
            query, place = query[others], place[others]
        needed, at = np.unique(place, return_inverse=True)
        known = database(needed)
        matched = match(asked, known, query, at)
        for row, other, column, places in zip(query.tolist(), place.tolist(), at.tolist(), matched, strict=True):
            laid = affine_between(asked.places[row][places[:, 0]], known.places[column][places[:, 1]])
            if laid is not None and laid[1] > best.get((row, other), (0,))[0]:
                matrix = laid[0].copy()
                if way == "mirrored":
                    matrix[:, 0] *= -1
                share = laid[1] / max(
                    shown(asked.places[row, : asked.count[row]], known.places[column, : known.count[column]], laid[0]),
                    laid[1],
                )
                best[row, other] = laid[1], matrix, share
    pairs = sorted(best)
    return Overlaps(
        np.array([a for a, _ in pairs], np.int64), np.array([b for _, b in pairs], np.int64),
        np.array([best[pair][1] for pair in pairs], np.float32).reshape(-1, 2, 3),
        np.array([best[pair][0] for pair in pairs], np.int64), np.array([best[pair][2] for pair in pairs], np.float32),
    )  # fmt: skip


def measured(overlaps: Overlaps, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log odds (P,) that the pairs show the same picture, and their refined maps (P, 2, 3).

    `first` and `second` are the pictures of the pairs, uint8 (P, 3, S, S).
    """
    matches, share = (torch.from_numpy(values) for values in (overlaps.matches, overlaps.share))
    measures, maps = compare_overlap(first, second, torch.from_numpy(overlaps.maps), matches, share)
    return LOCAL_SCORE.odds(measures), maps


def overlapping_pairs(
    pixels_a: Tensor, pixels_b: Tensor | None, *, threshold: float, seed: int, progress: Callable[[str, int, int], None]
) -> Pairs:  # fmt: skip
    """Return the pairs of pictures uint8 (N, 1 or 3, H, W) with a score of at least the threshold, each once.

    Within `pixels_a`, a < b; or of `pixels_a` with `pixels_b`.
    """
    within = pixels_b is None
    pictures = [canvas(pixels, PICTURE) for pixels in (pixels_a, pixels_a if pixels_b is None else pixels_b)]
    sets = [
        keypoints_of(pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy())
        for pixels in (pixels_a, pixels_b)
        if pixels is not None
    ]
    first, second = sets[0], sets[-1]
    descriptors = np.concatenate([part.descriptors[part.filled] for part in sets])
    if len(descriptors) < FEWEST:
        return by_matrices(
            torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0, 2, 3)
        )
    vocabulary = learn_words(descriptors, seed)
    index = build_word_index(vocabulary, vocabulary.words_of(second), second.count)
    parts = []
    for start in range(0, len(first), QUERIES):
        rows = np.arange(start, min(start + QUERIES, len(first)))
        found = overlapping(first[rows], second.__getitem__, index, own=rows if within else None)
        a = torch.from_numpy(rows[found.a])
        odds, maps = measured(found, pictures[0][a], pictures[1][torch.from_numpy(found.b)])
        parts.append(by_matrices(a, found.b, torch.sigmoid(odds).clamp(max=SUREST), maps))
        progress("match local features", len(rows) + start, len(first))
    pairs = joined(parts)
    pairs = pairs[pairs.score >= threshold]
    if within:
        later = pairs.a > pairs.b
        pairs = joined([pairs[~later], turned_round(pairs[later])])
    return best_ways(pairs, len(second))
