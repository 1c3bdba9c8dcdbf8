"""How a search is cut into pieces of work, and the pairs that each piece leaves on disk."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.numpy import load_file, save
from torch import Tensor

from robustdup.records import write_atomic
from robustdup_detect.options import DetectConfig
from robustdup_detect.pairlist import Pairs, confirmed, joined
from robustdup_detect.store import Store

Work = Literal["read", "embed", "compare", "words", "match"]
PAIRS, LOCAL_PAIRS = "pairs", "local"  # names of the files of pairs


@dataclass(frozen=True)
class SearchPlan:
    """What every worker needs: the configuration, the folder of the state, and how many rows each split has.

    A second plan in the same state, for pairs within the images that are added, marks its work by `tag`.
    """

    config: DetectConfig
    state: Path
    rows: dict[str, int]
    tag: str = ""

    def among_new(self) -> SearchPlan:
        """Return the plan for pairs among the images that are added."""
        config = self.config.model_copy(update={"against": None, "against_data": None})
        return SearchPlan(config, self.state, {self.config.split: self.rows[self.config.split]}, "new-")

    def marker(self, work: str) -> str:
        """Return by what name a piece of work is marked as done: what depends on the other side has a name of its own."""
        return f"{self.tag}{work}" if work in ("compare", "match") else work

    def file(self, name: str, start: int) -> Path:
        """Return the file in which a piece of work that begins at a row leaves what it found."""
        return self.folder(self.asking) / "done" / f"{self.tag}{name}-{start}.safetensors"

    def store(self, split: str) -> Store:
        """Return the arrays of a split."""
        return Store(self.folder(split), self.rows[split])

    def folder(self, split: str) -> Path:
        """Return the folder of a split in the state."""
        return self.state / re.sub(r"[^A-Za-z0-9_.-]", "-", split)

    def different_rows(self, split: str) -> Any:
        """Return the rows of a split that can be read, without those whose pixels an earlier one has."""
        return np.load(self.folder(split) / "different.npy")

    def local_rows(self, split: str) -> Any:
        """Return the different rows of a split that have local features."""
        store, rows = self.store(split), self.different_rows(split)
        return rows[store.read("keypoints")[rows] > 0] if store.has("keypoints") else rows[:0]

    @property
    def other(self) -> str:
        """The split on the other side: the same one where pairs within it are looked for."""
        return self.config.against or self.config.split

    @property
    def asking(self) -> str:
        """The split whose images are queries: the smaller one, since the work grows with the queries."""
        return min(self.config.split, self.other, key=lambda split: self.rows[split])

    @property
    def asked(self) -> str:
        """The split among whose images the neighbours of a query are."""
        return self.config.split if self.asking == self.other else self.other


@dataclass(frozen=True)
class Shard:
    """A piece of work: the rows (or, to compare, the places among different rows) from start to stop - 1 of a split."""

    work: Work
    split: str
    start: int
    stop: int


def shards_of(plan: SearchPlan, work: Work, rows: dict[str, int]) -> list[Shard]:
    """Return the pieces of some work on so many rows of each split."""
    size = plan.config.shard
    return [
        Shard(work, split, low, min(low + size, n)) for split, n in rows.items() for low in range(0, n, size)
    ]  # fmt: skip


def save_shard_pairs(path: Path, pairs: Pairs, seen: tuple[Tensor, ...], rows_a: Any, rows_b: Any) -> None:
    """Keep pairs of places as pairs of rows of the splits; beside them `seen`, all that were measured (a, b, log odds)."""
    content = {
        "a": rows_a[pairs.a.numpy()], "b": rows_b[pairs.b.numpy()], "score": pairs.score.numpy(),
        "mirrored": pairs.mirrored.numpy(), "warp": pairs.warp.numpy(), "turn": pairs.turn.numpy(),
        "seen_a": rows_a[seen[0].numpy()], "seen_b": rows_b[seen[1].numpy()], "odds": seen[2].numpy(),
    }  # fmt: skip
    write_atomic(path, save({name: np.ascontiguousarray(values) for name, values in content.items()}))


def save_new_pairs(path: Path, parts: list[dict[str, Any]]) -> None:
    """Keep what was measured of pairs that an index does not know, as `add_pairs` takes it."""
    content = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    write_atomic(path, save({name: np.ascontiguousarray(values) for name, values in content.items()}))


def load_new_pairs(plan: SearchPlan, kind: str, work: Work, rows: int) -> list[dict[str, Any]]:
    """Return what the comparisons of so many rows measured anew."""
    files = [plan.file(f"measured-{kind}", shard.start) for shard in shards_of(plan, work, {plan.asking: rows})]
    return [load_file(file) for file in files if file.is_file()]


def shard_files(plan: SearchPlan, name: str) -> list[Path]:
    """Return the files of pairs that comparisons as a whole (PAIRS) or by local features (LOCAL_PAIRS) left."""
    work: Work = "compare" if name == PAIRS else "match"
    rows = len(plan.different_rows(plan.asking) if name == PAIRS else plan.local_rows(plan.asking))
    files = [plan.file(name, shard.start) for shard in shards_of(plan, work, {plan.asking: rows})]
    return [file for file in files if file.is_file()]


def load_judged(plan: SearchPlan) -> Pairs:
    """Return the pairs of rows that the comparisons kept, without those as a whole that local features contradict."""
    none = torch.empty(0, dtype=torch.int64)
    empty = Pairs(none, none, torch.empty(0), torch.empty(0, dtype=torch.bool), torch.empty(0, 4))
    whole, local = (
        joined([empty, *(_shard_pairs(file) for file in shard_files(plan, name))]) for name in (PAIRS, LOCAL_PAIRS)
    )
    stores = plan.store(plan.asking), plan.store(plan.asked)
    if all(store.has("keypoints") for store in stores):
        first, second = (
            np.array(store.read("keypoints")[rows.numpy()])
            for store, rows in zip(stores, (whole.a, whole.b), strict=True)
        )
        known = local if plan.config.against is not None else joined([local, replace(local, a=local.b, b=local.a)])
        whole = whole[confirmed(whole, known, plan.rows[plan.asked], (first, second))]
    return joined([whole, local])


def _shard_pairs(path: Path) -> Pairs:
    content = load_file(path)
    return Pairs(*(torch.from_numpy(content[name]) for name in ("a", "b", "score", "mirrored", "warp", "turn")))


def load_candidates(plan: SearchPlan) -> tuple[Any, Any, Any]:
    """Return rows `a`, `b` (C,) of all candidates and their log odds, numpy float32 (C,): each pair once, in its better way.

    Identical images are left out: nothing is to be judged there.
    """
    shards: list[tuple[Any, Any, Any]] = []
    for file in [file for name in (PAIRS, LOCAL_PAIRS) for file in shard_files(plan, name)]:
        content = load_file(file)
        shards.append((content["seen_a"], content["seen_b"], content["odds"]))
    a, b, odds = (np.concatenate(part) for part in zip(*shards, strict=True))
    if plan.config.against is None:
        a, b = np.minimum(a, b), np.maximum(a, b)
    order = np.lexsort((-odds, b, a))
    a, b, odds = a[order], b[order], odds[order]
    kept = np.ones(len(a), dtype=bool)
    kept[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    if plan.config.against is not None:
        hashes = [plan.store(split).read("hashes") for split in (plan.asking, plan.asked)]
        kept &= (hashes[0][a] != hashes[1][b]).any(axis=1)
    return a[kept], b[kept], odds[kept]
