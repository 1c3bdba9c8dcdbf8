"""Samples kept in memory: the bits of the source, each image decoded once, and a bound on what is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from robustdup.config import DataOptions
from robustdup.data import cache
from robustdup.data.cache import CachedSamples, DatasetCache, caching
from robustdup.jobs.training_images import duplicates_among
from robustdup.plugins import Registry


class Source:
    """Samples that count how often each of them is decoded."""

    class_names = ("a", "b")
    revision = "r"

    def __init__(self, images: Tensor) -> None:
        self.images, self.decoded = images, Counter[int]()

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images and labels."""
        self.decoded.update(rows)
        index = torch.tensor(list(rows))
        return self.images[index], index % 2


def _levels(n: int = 20, size: int = 4) -> Tensor:
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(0)).float() / 255


def test_the_same_bits_in_any_order_and_every_row_decoded_once() -> None:
    source = Source(_levels())
    rows = CachedSamples(source)
    for asked in ([3, 1, 2], [2, 3, 9, 9], list(range(20))):
        images, labels = rows.fetch(asked)
        assert torch.equal(images, source.images[asked])
        assert labels.tolist() == [row % 2 for row in asked]
    assert set(source.decoded.values()) == {1}
    assert (rows.class_names, rows.revision, len(rows)) == (("a", "b"), "r", 20)


@pytest.mark.parametrize("images", [torch.rand(6, 3, 4, 4), _levels(6) * 0.999])
def test_what_is_not_on_the_8_bit_grid_is_decoded_anew(images: Tensor) -> None:
    source = Source(images)
    rows = CachedSamples(source)
    for _ in range(3):
        assert torch.equal(rows.fetch([0, 5])[0], images[[0, 5]])
    assert source.decoded[0] >= 3
    assert rows.nbytes == 0


def test_what_is_too_large_is_not_kept() -> None:
    source = Source(_levels())
    rows = CachedSamples(source, limit=20 * 48 - 1)
    assert torch.equal(rows.fetch([4])[0], source.images[[4]])
    assert rows.nbytes == 0


def test_a_cache_lets_go_of_what_was_not_asked_for_longest() -> None:
    cache = DatasetCache(limit=2 * 20 * 48)
    sources = {name: Source(_levels()) for name in "abc"}
    for name in "abac":
        cache.samples(name, lambda name=name: sources[name]).fetch([0])  # type: ignore[misc]
    for name in "cab":  # at "c" there are three, and "b" goes; it is decoded once more in the end
        cache.samples(name, lambda name=name: sources[name]).fetch([0])  # type: ignore[misc]
    assert {name: source.decoded[0] for name, source in sources.items()} == {"a": 1, "b": 2, "c": 1}


def test_only_what_asks_for_it_is_cached() -> None:
    loaded = []

    def load() -> Source:
        loaded.append(1)
        return Source(_levels())

    key = ("place", DataOptions())
    cache.cached(key, load)
    cache.cached(key, load)
    assert len(loaded) == 2
    with caching(DatasetCache()):
        first = cache.cached(key, load)
        assert cache.cached(key, load) is first
        assert cache.cached(("place", DataOptions(split="train")), load) is not first
    assert len(loaded) == 4


def test_a_search_is_made_once_for_the_same_images_and_finder_where_a_cache_is_at_work() -> None:
    searches = Counter[str]()

    def finder(name: str) -> Registry:
        def find(a: Tensor, b: Tensor) -> SimpleNamespace:  # each image of b that is among those of a, twice
            searches[name] += 1
            return SimpleNamespace(b=(b[:, None] == a).flatten(2).all(dim=2).any(dim=1).nonzero()[:, 0].repeat(2))

        registry = Registry()
        registry.add_duplicate_finder(name, find)
        return registry

    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 16, 16)
    one, other = finder("one"), finder("other")
    assert duplicates_among(images, images[2:4], one, []).tolist() == [2, 3]
    with caching(DatasetCache()):
        for _ in range(2):
            near = duplicates_among(images, images[2:4], one, [])
            assert near.tolist() == [2, 3]
            near += 1  # a caller's own
        assert searches == {"one": 2}
        assert duplicates_among(images[1:], images[2:4], one, []).tolist() == [1, 2]
        assert duplicates_among(images, images[3:4], one, []).tolist() == [3]
        assert duplicates_among(images, images[2:4], other, []).tolist() == [2, 3]
    assert searches == {"one": 4, "other": 1}
