"""Pairs by local features: pictures that share visual words, whose features lie alike, and that agree where they overlap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustdup_detect.geometry import affine_between, match, shown
from robustdup_detect.keypoints import WAYS, Keypoints, keypoints_of, seen
from robustdup_detect.overlap import compare_overlap
from robustdup_detect.pairlist import Pairs, best_ways, by_matrices, joined, turned_round
from robustdup_detect.scores import LOCAL_SCORE, SUREST
from robustdup_detect.words import FEWEST, WordIndex, build_word_index, learn_words

QUERIES = 256  # pictures that are asked for at once
ASKED = 48  # pictures that share most words with each picture, in each way of looking at it


@dataclass(frozen=True)
class Overlaps:
    """Pairs whose local features lie alike: rows `a`, `b` (P,), and the `maps` (P, 2, 3) from places of a to those of b.

    `matches` (P,) is how many features lie alike, `share` (P,) their share of those that both could show, `way` (P,) the
    place in WAYS of how the first was looked at.
    """

    a: Any
    b: Any
    maps: Any
    matches: Any
    share: Any
    way: Any

    def __len__(self) -> int:
        return len(self.a)

    def __getitem__(self, rows: Any) -> Overlaps:
        return Overlaps(*(getattr(self, each.name)[rows] for each in fields(Overlaps)))


Database = Callable[[Any], Keypoints]  # the keypoints of some pictures of an index
# From how the queries are looked at, their keypoints, the database, and candidates (query, picture) to matches, share, maps.
Lay = Callable[[int, Keypoints, Database, Any, Any], tuple[Any, Any, Any]]


def lay(way: int, asked: Keypoints, database: Database, query: Any, place: Any) -> tuple[Any, Any, Any]:
    """Return how many features of each candidate lie alike, matches (C,), 0 for too few, their share (C,), and maps (C, 2, 3)."""
    needed, number_of = np.unique(place, return_inverse=True)
    known = database(needed)
    matches, share = np.zeros(len(query), np.int64), np.zeros(len(query), np.float32)
    maps = np.zeros((len(query), 2, 3), np.float32)
    matched = match(asked, known, query, number_of)
    for number, (row, column, places) in enumerate(zip(query.tolist(), number_of.tolist(), matched, strict=True)):
        laid = affine_between(asked.places[row][places[:, 0]], known.places[column][places[:, 1]])
        if laid is None:
            continue
        both = shown(asked.places[row, : asked.count[row]], known.places[column, : known.count[column]], laid[0])
        matches[number], share[number], maps[number] = laid[1], laid[1] / max(both, laid[1]), laid[0]
    if WAYS[way] == "mirrored":
        maps[:, :, 0] *= -1
    return matches, share, maps


def overlapping(
    queries: Keypoints, database: Database, index: WordIndex, *, own: Any | None = None, k: int = ASKED, lay: Lay = lay
) -> Overlaps:
    """Return the pairs of a query and a picture of the index whose local features lie alike, each once, in its best way.

    `database` gives the keypoints of some of the index's pictures; `own` (N,) is the place of each query among these, where
    pairs within one set are looked for. `lay` may know what it is asked from an earlier search.
    """
    parts = []
    for way, name in enumerate(WAYS):
        asked = seen(queries, name)
        query, place, _ = index.ask(asked, k + (own is not None))
        if own is not None:
            others = own[query] != place
            query, place = query[others], place[others]
        matches, share, maps = lay(way, asked, database, query, place)
        alike = matches > 0
        ways = np.full(int(alike.sum()), way)
        parts.append(Overlaps(query[alike], place[alike], maps[alike], matches[alike], share[alike], ways))
    every = Overlaps(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Overlaps)))
    every = every[np.lexsort((every.way, -every.matches, every.b, every.a))]
    first = np.ones(len(every), dtype=bool)
    first[1:] = (every.a[1:] != every.a[:-1]) | (every.b[1:] != every.b[:-1])
    return every[first]


def measured(overlaps: Overlaps, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log odds (P,) that the pairs show the same picture, and their refined maps (P, 2, 3).

    `first` and `second` are the pictures of the pairs, uint8 (P, 3, S, S).
    """
    matches, share = (torch.from_numpy(values) for values in (overlaps.matches, overlaps.share))
    measures, maps = compare_overlap(first, second, torch.from_numpy(overlaps.maps), matches, share)
    return LOCAL_SCORE.odds(measures), maps


def local_features(pixels: Tensor) -> Keypoints:
    """Return the local features of pictures uint8 (N, 1 or 3, H, W)."""
    return keypoints_of(pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy())


def overlapping_pairs(
    sets: Sequence[Keypoints], pictures: Sequence[Tensor], *, threshold: float, seed: int,
    progress: Callable[[str, int, int], None],
) -> Pairs:  # fmt: skip
    """Return the pairs of pictures with a score of at least the threshold, each once, by their local features.

    `sets` are those of one set of N pictures, a < b then, or of two; `pictures` are the same, uint8 (N, 3, PICTURE, PICTURE).
    """
    within = len(sets) == 1
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
        overlaps = overlapping(first[rows], second.__getitem__, index, own=rows if within else None)
        a = torch.from_numpy(rows[overlaps.a])
        odds, maps = measured(overlaps, pictures[0][a], pictures[-1][torch.from_numpy(overlaps.b)])
        parts.append(by_matrices(a, overlaps.b, torch.sigmoid(odds).clamp(max=SUREST), maps))
        progress("match local features", len(rows) + start, len(first))
    pairs = joined(parts)
    pairs = pairs[pairs.score >= threshold]
    if within:
        later = pairs.a > pairs.b
        pairs = joined([pairs[~later], turned_round(pairs[later])])
    return best_ways(pairs, len(second))
