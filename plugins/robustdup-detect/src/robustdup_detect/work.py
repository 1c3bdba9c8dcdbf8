"""The pieces of a search, as workers do them: read rows, embed them, compare them with all of the other side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save
from torch import Tensor

from robustdup.data.labels import open_with_any_labels
from robustdup.data.splits import open_splits
from robustdup.errors import RunError
from robustdup.records import write_atomic
from robustdup.runners import WorkerPlace
from robustdup_detect.features import CLASSICAL, SIZE, Embedder, Projection
from robustdup_detect.image_index import load_opened
from robustdup_detect.keypoints import LARGE
from robustdup_detect.known import KnownPairs
from robustdup_detect.local import QUERIES, Overlaps, lay, measured, overlapping
from robustdup_detect.options import CLASSICAL as CLASSICAL_NAME
from robustdup_detect.options import DetectConfig
from robustdup_detect.overlap import PICTURE
from robustdup_detect.pairlist import Pairs, by_matrices, joined
from robustdup_detect.pairs import (
    NEIGHBOURS,
    Candidates,
    Finder,
    compare,
    judge,
)
from robustdup_detect.paths import encoded_column
from robustdup_detect.scores import SCORE_WITHOUT_SIMILARITY, SUREST, USUAL_SCORE, USUAL_THRESHOLD, Score
from robustdup_detect.search import nearest, nearest_by_index
from robustdup_detect.shards import (
    LOCAL_PAIRS,
    PAIRS,
    SearchPlan,
    Shard,
    save_shard_pairs,
)
from robustdup_detect.sources import side_options, split_of
from robustdup_detect.store import Store, read_pictures, read_rows
from robustdup_detect.words import WordIndex, build_word_index, load_words

FINDER_FILE, INDEX_FILE = "finder.safetensors", "index.faiss"
MANY_NEIGHBOURS = 128  # candidates of a picture that seems to be repeated often
LEAST_KEPT = 0.02  # score from which pairs are kept until the threshold is known
EMBEDDED = 2000  # pictures of 32 x 32 pixels whose features are in memory at once


class ShardWorker:
    """Does tasks; what they need is loaded when the first one asks for it.

    `open_embedder` opens the network that finds candidates, in the process that uses it.
    """

    def __init__(self, plan: SearchPlan, open_embedder: Callable[[], Embedder] | None = None) -> None:
        self.plan, self._open_embedder = plan, open_embedder
        self._opened: dict[str, tuple[Any, str]] = {}

    def __call__(self, shard: Shard) -> int:
        """Do a shard that is not done yet, and return its number of rows."""
        store = self.plan.store(shard.split)
        marker = self.plan.marker(shard.work)
        if store.finished(marker, shard.start) is None:
            result = getattr(self, shard.work)(store, shard)
            store.finish(marker, shard.start, result)
        return shard.stop - shard.start

    def read(self, store: Store, shard: Shard) -> Any:
        """Decode rows; the result lists those that cannot be read."""
        images, column = self._images(shard.split)
        smallest = {"auto": LARGE, "always": 1, "never": None}[self.plan.config.local]
        return read_rows(
            images, column, store, shard.start, shard.stop, self.plan.config.background, smallest=smallest,
            known=None if self.known is None else self.known.index,
        )  # fmt: skip

    @cached_property
    def known(self) -> KnownPairs | None:
        """What an earlier search left of images and pairs; None where no index is kept."""
        return None if self.plan.config.index is None else KnownPairs(self.plan, load_opened(self.plan.state))

    def embed(self, store: Store, shard: Shard) -> Any:
        """Embed rows."""
        for low in range(shard.start, shard.stop, self._step):
            part = self.pictures(shard.split, np.arange(low, min(low + self._step, shard.stop)))
            store.write("embeddings", low, self._embedded(part).numpy())
        return shard.stop - shard.start

    def pictures(self, split: str, rows: Any) -> Tensor:
        """Return the pictures at rows of a split, uint8 (N, 3, S, S), of the size that the embedder takes."""
        if self.embedder.size == SIZE:
            return torch.from_numpy(np.array(self.plan.store(split).read("pictures")[rows]))
        return torch.from_numpy(self._read(split, rows, self.embedder.size))

    def _read(self, split: str, rows: Any, size: int) -> Any:
        images, column = self._images(split)
        unique, place = np.unique(rows, return_inverse=True)
        return read_pictures(images, column, unique, size, self.plan.config.background)[place]

    @cached_property
    def embedder(self) -> Embedder:
        """What turns pictures into features."""
        return self._open_embedder() if self._open_embedder is not None else CLASSICAL

    @property
    def _step(self) -> int:
        return max(EMBEDDED * SIZE**2 // self.embedder.size**2, 64)

    def _embedded(self, pictures: Tensor) -> Tensor:
        return self._finder.projection(self.embedder.describe(pictures))

    def _queries(self, split: str, rows: Any, *, mirrored: bool) -> Tensor:
        """Return the embeddings (N, D) of rows of a split, or of their mirror images."""
        if split == self.plan.asked and not mirrored:
            return torch.from_numpy(np.array(self.plan.store(split).read("embeddings")[rows]))
        parts = [self.pictures(split, rows[low : low + self._step]) for low in range(0, len(rows), self._step)]
        return torch.cat([self._embedded(part.flip(-1) if mirrored else part) for part in parts])

    def compare(self, store: Store, shard: Shard) -> Any:
        """Judge different rows against the different rows of the other side; pairs and all log odds go into a file."""
        places = np.arange(shard.start, shard.stop)
        pairs, seen = self._judged(shard.split, places, NEIGHBOURS)
        # Where most neighbours are the same picture, there may be more of them.
        likely = pairs.a[pairs.score >= USUAL_THRESHOLD]
        many = torch.bincount(likely, minlength=len(places)) >= NEIGHBOURS // 2
        if bool(many.any()):
            again = many.nonzero()[:, 0]
            more, tried = self._judged(shard.split, places[again.numpy()], MANY_NEIGHBOURS)
            pairs = joined([pairs[~many[pairs.a]], replace(more, a=again[more.a])])
            others = ~many[seen[0]]
            seen = tuple(
                torch.cat([part[others], new]) for part, new in zip(seen, (again[tried[0]], *tried[1:]), strict=True)
            )
        rows, asked = self.plan.different_rows(shard.split)[places], self.plan.different_rows(self.plan.asked)
        save_shard_pairs(self.plan.file(PAIRS, shard.start), pairs, seen, rows, asked)
        if self.known is not None:
            self.known.keep_new("pairs", shard)
        return {"pairs": len(pairs), "candidates": len(seen[0])}

    def words(self, store: Store, shard: Shard) -> Any:
        """Tell the words of local features of some rows."""
        vocabulary = load_words(self.plan.state)
        for low in range(shard.start, shard.stop, QUERIES):
            rows = np.arange(low, min(low + QUERIES, shard.stop))
            store.write("words", low, vocabulary.words_of(store.keypoints(rows)))
        return shard.stop - shard.start

    def match(self, store: Store, shard: Shard) -> Any:
        """Look for pictures whose local features lie alike; pairs and all log odds go into a file."""
        rows = self.plan.local_rows(shard.split)[shard.start : shard.stop]
        asked = self.plan.local_rows(self.plan.asked)
        other = self.plan.store(self.plan.asked)
        parts, odds = [], []
        for low in range(0, len(rows), QUERIES):
            part = rows[low : low + QUERIES]
            own = (
                np.arange(shard.start + low, shard.start + low + len(part))
                if self.plan.config.against is None
                else None
            )
            overlaps = overlapping(
                store.keypoints(part), lambda places: other.keypoints(asked[places]), self._word_index, own=own,
                lay=lay if self.known is None else self.known.lay(shard.split, part, asked),
            )  # fmt: skip
            measure = partial(self._measure, shard.split, part, asked)
            if self.known is None:
                log_odds, maps = measure(overlaps)
            else:
                log_odds, maps = self.known.measure(shard.split, part, asked, overlaps, measure)
            pairs = by_matrices(overlaps.a + low, overlaps.b, torch.sigmoid(log_odds).clamp(max=SUREST), maps)
            parts.append(pairs[pairs.score >= kept_from(self.plan.config)])
            odds.append((pairs.a, pairs.b, log_odds))
        seen = tuple(torch.cat(each) for each in zip(*odds, strict=True))
        save_shard_pairs(self.plan.file(LOCAL_PAIRS, shard.start), joined(parts), seen, rows, asked)
        if self.known is not None:
            self.known.keep_new("local", shard)
        return {"candidates": len(seen[0])}

    def _measure(self, split: str, rows: Any, other_rows: Any, overlaps: Overlaps) -> tuple[Tensor, Tensor]:
        pictures = (
            torch.from_numpy(self._read(name, chosen, PICTURE))
            for name, chosen in ((split, rows[overlaps.a]), (self.plan.asked, other_rows[overlaps.b]))
        )
        return measured(overlaps, *pictures)

    @cached_property
    def _word_index(self) -> WordIndex:
        rows, store = self.plan.local_rows(self.plan.asked), self.plan.store(self.plan.asked)
        return build_word_index(
            load_words(self.plan.state), np.array(store.read("words")[rows]), np.array(store.read("keypoints")[rows])
        )

    def _judged(self, split: str, places: Any, k: int) -> tuple[Pairs, tuple[Tensor, ...]]:
        """Return the pairs (position in `places`, place in the database), and (a, b, log odds) of all that were measured."""
        within = self.plan.config.against is None
        rows = self.plan.different_rows(split)[places]
        pictures = torch.from_numpy(np.array(self.plan.store(split).read("pictures")[rows]))
        parts = []
        for mirrored in (False, True):
            queries = self._queries(split, rows, mirrored=mirrored)
            a, b, alike = self._search(queries, k + within, self._finder.least)
            if within:  # a pair may be found from either side, in two pieces of work: the parent keeps one
                other = torch.from_numpy(places)[a] != b
                a, b, alike = a[other], b[other], alike[other]
            parts.append((a, b, torch.full_like(a, mirrored, dtype=torch.bool), alike))
        a, b, flipped, alike = (torch.cat(part) for part in zip(*parts, strict=True))
        needed, place = torch.unique(b, return_inverse=True)
        other_rows = self.plan.different_rows(self.plan.asked)[needed.numpy()]
        others = torch.from_numpy(np.array(self.plan.store(self.plan.asked).read("pictures")[other_rows]))
        candidates = Candidates(a, place, flipped, alike)
        if self.known is None:
            compared = compare(pictures, others, candidates, progress=lambda *_: None)
        else:
            compared = self.known.compare(split, rows, other_rows, pictures, others, candidates)
        pairs, seen = judge(
            compared, candidates, score_of(self.plan.config), kept_from(self.plan.config), len(needed) or 1
        )
        return replace(pairs, b=needed[pairs.b]), (seen[0], needed[seen[1]], seen[2])

    def _search(self, queries: Tensor, k: int, least: float) -> tuple[Tensor, Tensor, Tensor]:
        index = self.plan.folder(self.plan.asked) / INDEX_FILE
        if index.is_file():
            return nearest_by_index(queries, index, k, least=least)
        return nearest(queries, self._database, k, least=least)

    def _images(self, split: str) -> tuple[Any, str]:
        """Return the encoded images of a split and the name of their column, opened once."""
        if split not in self._opened:
            options, (data, name) = side_options(self.plan.config, split), split_of(self.plan.config, split)
            dataset, columns = open_with_any_labels(open_splits(data, options).get(name), options, split)
            n = len(dataset) if self.plan.config.n is None else min(len(dataset), self.plan.config.n)
            if n != self.plan.rows[split]:
                raise RunError(
                    f"The split {split!r} has {n} rows now; it had {self.plan.rows[split]}.",
                    code="data-changed",
                )
            self._opened[split] = encoded_column(dataset, columns.image), columns.image
        return self._opened[split]

    @cached_property
    def _finder(self) -> Finder:
        return load_finder(self.plan.state)

    @cached_property
    def _database(self) -> Tensor:
        return database(self.plan, self.plan.different_rows(self.plan.asked))


def database(plan: SearchPlan, rows: Any) -> Tensor:
    """Return the embeddings (M, D) of the different rows that are asked."""
    return torch.from_numpy(np.array(plan.store(plan.asked).read("embeddings")[rows]))


def save_finder(finder: Finder, state: Path) -> None:
    """Keep a finder in the folder of the state."""
    content = {
        "mean": finder.projection.mean.numpy(),
        "weight": np.ascontiguousarray(finder.projection.weight.numpy()),
        "least": np.array([finder.least]),
    }
    write_atomic(state / FINDER_FILE, save(content))  # save_file would hide that the disk is full


def load_finder(state: Path) -> Finder:
    """Return the finder that `save_finder` kept."""
    content = load_file(state / FINDER_FILE)
    projection = Projection(torch.from_numpy(content["mean"]), torch.from_numpy(content["weight"]))
    return Finder(projection, float(content["least"][0]))


def score_of(config: DetectConfig) -> Score:
    """Return the score of a search: similarity counts where it is that of the embedding which the score was fitted with."""
    return USUAL_SCORE if config.embedding == CLASSICAL_NAME else SCORE_WITHOUT_SIMILARITY


def kept_from(config: DetectConfig) -> float:
    """Return the least score of pairs that are kept until the threshold is known."""
    return LEAST_KEPT if config.threshold is None else config.threshold


@dataclass(frozen=True)
class WorkerSetup:
    """Makes a worker's function; can be pickled."""

    plan: SearchPlan
    open_embedder: Callable[[], Embedder] | None = None

    def __call__(self, place: WorkerPlace) -> Callable[[Shard], int]:
        """Return the function that does tasks."""
        if place.workers > 1:
            torch.set_num_threads(place.threads)
        return ShardWorker(self.plan, self.open_embedder)
