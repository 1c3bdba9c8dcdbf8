"""Comparisons with an index at hand: what it knows of a pair is taken from it, what is new is computed and noted for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustdup_detect.image_index import DIFFERENT, MEASURED, UNKNOWN, WIDTHS, ImageIndex, PairKind
from robustdup_detect.keypoints import Keypoints
from robustdup_detect.local import Database, Lay, Overlaps, lay
from robustdup_detect.pairs import Candidates, Compared, compare
from robustdup_detect.shards import SearchPlan, Shard, save_new_pairs


@dataclass(frozen=True)
class Asked:
    """Pairs that an index was asked for: the `hashes` (C, 16) of both sides, the `way` (C,), and what is known."""

    hashes: tuple[Any, Any]
    way: Any
    state: Any
    values: Any


class KnownPairs:
    """The index of a search, and what one piece of work found out beyond it."""

    def __init__(self, plan: SearchPlan, index: ImageIndex) -> None:
        self.plan, self.index = plan, index
        self._new: dict[PairKind, list[dict[str, Any]]] = {"pairs": [], "local": []}

    def compare(
        self, split: str, rows: Any, other_rows: Any, pictures: Tensor, others: Tensor, candidates: Candidates
    ) -> Compared:
        """Return what `pairs.compare` does: `rows` and `other_rows` are those of the pictures in both splits."""
        a, b, way = candidates.a.numpy(), candidates.b.numpy(), candidates.mirrored.numpy()
        asked = self._ask("pairs", (split, rows[a]), (self.plan.asked, other_rows[b]), way)
        new = torch.from_numpy(np.flatnonzero(asked.state == UNKNOWN))
        part = Candidates(*(getattr(candidates, each.name)[new] for each in fields(Candidates)))
        compared = compare(pictures, others, part, progress=lambda *_: None)
        values = torch.cat([compared.measures, compared.warp], dim=1).numpy()
        self._learn("pairs", asked, new.numpy(), new[compared.row].numpy(), values)
        row = np.flatnonzero(asked.state == MEASURED)
        return Compared(*(torch.from_numpy(each) for each in (row, asked.values[row, :6], asked.values[row, 6:])))

    def lay(self, split: str, rows: Any, other_rows: Any) -> Lay:
        """Return what does as `local.lay` for the local features of `rows` and those of `other_rows`."""

        def with_index(
            way: int, asked: Keypoints, database: Database, query: Any, place: Any
        ) -> tuple[Any, Any, Any]:  # fmt: skip
            ways = np.full(len(query), way)
            known = self._ask("local", (split, rows[query]), (self.plan.asked, other_rows[place]), ways)
            new = np.flatnonzero(known.state == UNKNOWN)
            matches, share, maps = lay(way, asked, database, query[new], place[new])
            values = np.full((len(new), WIDTHS["local"]), np.nan, np.float32)  # nothing is known of the log odds
            values[:, 0], values[:, 1], values[:, 2:8] = matches, share, maps.reshape(-1, 6)
            alike = matches > 0
            self._learn("local", known, new, new[alike], values[alike])
            laid = np.where((known.state == MEASURED)[:, None], known.values, 0)
            return laid[:, 0].astype(np.int64), laid[:, 1], laid[:, 2:8].reshape(-1, 2, 3)

        return with_index

    def measure(
        self, split: str, rows: Any, other_rows: Any, overlaps: Overlaps,
        measure: Callable[[Overlaps], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return the log odds (P,) and refined maps (P, 2, 3) of pairs; `measure` says those of pairs that are new."""
        known = self._ask("local", (split, rows[overlaps.a]), (self.plan.asked, other_rows[overlaps.b]), overlaps.way)
        new = np.flatnonzero((known.state != MEASURED) | np.isnan(known.values[:, 8]))
        odds, maps = measure(overlaps[new])
        laid = (overlaps.matches[new, None], overlaps.share[new, None], overlaps.maps[new].reshape(-1, 6))
        values = np.concatenate([*laid, odds.numpy()[:, None], maps.numpy().reshape(-1, 6)], axis=1)
        self._learn("local", known, new, new, values)
        return torch.from_numpy(known.values[:, 8].copy()), torch.from_numpy(known.values[:, 9:]).reshape(-1, 2, 3)

    def keep_new(self, kind: PairKind, shard: Shard) -> None:
        """Keep what a piece of work found out in its folder, and begin anew."""
        if self._new[kind]:
            save_new_pairs(self.plan.file(f"measured-{kind}", shard.start), self._new[kind])
        self._new[kind] = []

    def _ask(self, kind: PairKind, first: tuple[str, Any], second: tuple[str, Any], way: Any) -> Asked:
        """Ask for pairs of rows: (split, rows) on both sides."""
        hashes = [np.array(self.plan.store(split).read("hashes")[rows]) for split, rows in (first, second)]
        numbers = [self.index.numbers(side) for side in hashes]
        state, values = self.index.known_pairs(kind, numbers[0], numbers[1], way)
        return Asked((hashes[0], hashes[1]), way, state, values)

    def _learn(self, kind: PairKind, asked: Asked, new: Any, measured: Any, values: Any) -> None:
        """Fill in and note the pairs at `new`: those at `measured` have these values, the others show different pictures."""
        asked.state[new] = DIFFERENT
        asked.state[measured], asked.values[measured] = MEASURED, values
        good = asked.state[new] == MEASURED
        self._new[kind].append({
            "hashes_a": asked.hashes[0][new], "hashes_b": asked.hashes[1][new], "way": asked.way[new].astype(np.uint8),
            "measured": good, "values": asked.values[new[good]],
        })  # fmt: skip
