"""Training batches: nothing lost, nothing twice; originals as without copies; ranks share; loading changes nothing."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from robustdup.config import DataOptions
from robustdup.data.augment import augment_images
from robustdup.data.batches import (
    MAX_COPY,
    MAX_EPOCH,
    EntryOptions,
    Stream,
    TrainingSet,
    check_numbers,
    sample_keys,
)
from robustdup.data.cache import load_pixels
from robustdup.data.digits import load_builtin
from robustdup.data.streaming import StreamingSet, read_labels
from robustdup.duplication.plan import DuplicationPlan
from robustdup.errors import UserError
from robustdup.rng import SampleRng
from tests.raising import raises

N = 23
PIXELS = torch.randint(0, 256, (N, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(N) % 4


def plan_of(copies, *, n=N, near=None, labels=None):
    """A plan with `copies[i]` copies of image i after the originals."""
    copies = torch.tensor(copies)
    source = torch.cat([torch.arange(n), torch.arange(n).repeat_interleave(copies)])
    number = torch.cat([torch.zeros(n, dtype=torch.int64), *(torch.arange(1, c + 1) for c in copies.tolist())])
    return DuplicationPlan(source_index=source, copy=number, n_source=n, labels=labels, near=near)


def entries_of(pixels=PIXELS, labels=LABELS, *, plan=None, index=None, weights=None, **options):
    return TrainingSet(pixels, labels, plan=plan, index=index, weights=weights, options=EntryOptions(**options))


def darker(pixels, source_index, copy):
    assert pixels.dtype == torch.uint8
    assert (copy > 0).all()
    return pixels // (1 + copy)[:, None, None, None].to(torch.uint8)


class ListRows:
    """Rows held in memory, some of which cannot be read."""

    class_names = ()

    def __init__(self, images, labels, broken=()):
        self.images, self.given, self.broken = images, labels, set(broken)

    def __len__(self):
        return len(self.images)

    def fetch(self, rows):
        bad = next((row for row in rows if row in self.broken), None)
        if bad is not None:
            raise UserError(f"The image in row {bad} cannot be read.")
        images = [self.images[row] for row in rows]
        return torch.stack(images), self.given[list(rows)]


def batches(entries, batch_size=7, total=40, **share):
    return [batch for _, batch in Stream(entries, batch_size, total, **share)]


def assert_same(one, two):
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.labels, two.labels)
    assert torch.equal(one.position, two.position)
    assert torch.equal(one.index, two.index)
    assert torch.equal(one.rng.bits((2,)), two.rng.bits((2,)))
    assert (one.weights is None) == (two.weights is None)


def test_keys_hold_source_copy_and_epoch():
    keys = sample_keys(
        torch.tensor([0, 2**32 - 1, 5]), torch.tensor([0, 2**16 - 1, 2]), torch.tensor([0, MAX_EPOCH - 1, 3])
    )
    assert keys.tolist() == [0, 2**63 - 1, 5 + (2 << 32) + (3 << 48)]


@pytest.mark.parametrize("number", [2**16, -1])
def test_what_has_no_room_in_a_key_is_refused(number):
    with raises("bad-value", UserError, f"copy number must be in [0, 65536), got {number}"):
        check_numbers("copy", torch.tensor([0, number, 5]), MAX_COPY)


@settings(max_examples=40, deadline=None)
@given(
    copies=st.lists(st.integers(0, 3), min_size=N, max_size=N), batch_size=st.integers(1, 90), total=st.integers(1, 200),
    seed=st.integers(0, 2**40),
)  # fmt: skip
def test_every_entry_once_an_epoch_and_the_budget_exact(copies, batch_size, total, seed):
    entries = entries_of(plan=plan_of(copies), seed=seed, augment="none")
    stream = Stream(entries, batch_size, total)
    found = list(stream)
    assert [step for step, _ in found] == list(range(len(stream)))
    sizes = [len(batch) for _, batch in found]
    assert sum(sizes) == total
    assert all(size == batch_size for size in sizes[:-1])
    assert sizes == [stream.rows(step) for step in range(stream.n_steps)]
    seen = torch.cat([batch.position for _, batch in found])
    for start in range(0, total, len(entries)):
        epoch = seen[start : start + len(entries)].tolist()
        assert len(set(epoch)) == len(epoch)  # a whole epoch is then every entry
    assert stream.unique_seen(total) == len(torch.cat([batch.index for _, batch in found]).unique())
    for _, batch in found:
        assert torch.equal(batch.images, PIXELS[batch.index].float() / 255)
        assert torch.equal(batch.labels, LABELS[batch.index])


@settings(max_examples=25, deadline=None)
@given(copies=st.lists(st.integers(0, 3), min_size=N, max_size=N), seed=st.integers(0, 2**40))
def test_originals_come_as_they_do_without_copies(copies, seed):
    index = torch.arange(N) * 1000 + 7
    with_copies = entries_of(plan=plan_of(copies, near=darker), index=index, seed=seed)
    plain = entries_of(index=index, seed=seed)
    for epoch in (0, 5):
        order = with_copies.order(epoch)
        originals = order[with_copies.copy[order] == 0]
        assert torch.equal(with_copies.index[originals], plain.index[plain.order(epoch)])
        epochs = torch.full((N,), epoch)
        assert_same(with_copies.batch(originals, epochs), plain.batch(originals, epochs))


def test_orders_differ_by_epoch_and_seed_and_are_fair():
    entries, other = entries_of(seed=1), entries_of(seed=2)
    assert not torch.equal(entries.order(0), entries.order(1))
    assert not torch.equal(entries.order(0), other.order(0))
    first = Counter(int(entries.order(epoch)[0]) for epoch in range(460))
    assert len(first) == N
    assert max(first.values()) < 45  # 20 expected, of standard deviation 4.4


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 16])
def test_ranks_unite_to_the_whole_batch(processes):
    entries = entries_of(seed=3)
    whole = batches(entries)
    shares = [batches(entries, rank=rank, processes=processes) for rank in range(processes)]
    for step, batch in enumerate(whole):
        parts = [share[step] for share in shares]
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.position for part in parts]), batch.position)
        assert torch.equal(torch.cat([part.rng.index for part in parts]), batch.rng.index)
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 1


def test_a_stream_goes_on_where_it_stopped():
    entries = entries_of(seed=3)
    for step, batch in Stream(entries, 7, 80, start_step=5):
        assert_same(batch, batches(entries, total=80)[step])
    assert len(Stream(entries, 7, 80, start_step=12)) == 0


def reference(image, rng, padding, crop, flip):
    """Pad, cut and mirror one image (C, H, W), by the three words of its stream."""
    words = rng.bits((3,))[0].tolist()
    channels, height, width = image.shape
    down, right = (word * (2 * padding + 1) // 2**32 for word in words[:2])
    if crop:
        large = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=image.dtype)
        large[:, padding : padding + height, padding : padding + width] = image
        image = large[:, down : down + height, right : right + width]
    return torch.stack(list(image.unbind(-1))[::-1], -1) if flip and words[2] >= 2**31 else image


@pytest.mark.parametrize("augment", ["crop-flip", "crop", "flip", "none"])
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_augmentation_is_that_of_one_image_at_a_time(augment, padding, dtype):
    images = PIXELS if dtype == torch.uint8 else PIXELS.float() / 255
    rng = SampleRng(5, torch.arange(N) + 2**33).fold("augment")
    found = augment_images(images, rng, augment=augment, padding=padding)
    expected = [reference(images[i], rng[i : i + 1], padding, "crop" in augment, "flip" in augment) for i in range(N)]
    assert found.dtype == dtype
    assert torch.equal(found, torch.stack(expected))
    if augment != "none" and (padding or "flip" in augment):
        assert not torch.equal(found, images)


def test_batches_are_augmented_by_source_copy_and_epoch():
    entries = entries_of(plan=plan_of([1] * N), seed=9, padding=2)
    positions, epochs = torch.tensor([4, N + 4, 4]), torch.tensor([0, 0, 1])
    batch = entries.batch(positions, epochs)
    keys = sample_keys(torch.tensor([4, 4, 4]), torch.tensor([0, 1, 0]), epochs)
    rng = SampleRng(9, keys).fold("augment")
    for i in range(3):
        assert torch.equal(batch.images[i], reference(PIXELS[4], rng[i : i + 1], 2, True, True).float() / 255)
    assert torch.equal(batch.rng.bits(), SampleRng(9, keys).fold("train").bits())


def test_copies_can_share_the_augmentation_of_their_original():
    shared = entries_of(plan=plan_of([2] * N), padding=2, share_augmentation=True)
    apart = entries_of(plan=plan_of([2] * N), padding=2)
    positions, epochs = torch.arange(3 * N), torch.full((3 * N,), 4)
    one, two = shared.batch(positions, epochs), apart.batch(positions, epochs)
    assert torch.equal(one.images[:N], two.images[:N])
    for first in range(N):
        assert torch.equal(one.images[N + 2 * first], one.images[first])
        assert torch.equal(one.images[N + 2 * first + 1], one.images[first])
    assert not torch.equal(one.images, two.images)
    assert torch.equal(one.rng.index, two.rng.index)  # what else is drawn is each copy's own


def test_near_copies_labels_and_weights_of_entries():
    labels = torch.cat([LABELS, (LABELS + 1) % 4])
    plan, weights = plan_of([1] * N, near=darker, labels=labels), torch.rand(2 * N)
    entries = entries_of(plan=plan, weights=weights, augment="none")
    batch = entries.batch(torch.tensor([3, N + 3]), torch.zeros(2, dtype=torch.int64))
    assert torch.equal(batch.images, torch.stack([PIXELS[3], PIXELS[3] // 2]).float() / 255)
    assert batch.labels.tolist() == [3, 0]
    assert torch.equal(batch.weights, weights[[3, N + 3]])
    assert (entries.unique, entries.n_images, entries.classes, entries.size) == (N, N, 4, (6, 5))
    floats = entries_of(PIXELS.float() / 255, plan=plan, augment="none")
    assert torch.equal(floats.batch(torch.tensor([3, N + 3]), torch.zeros(2, dtype=torch.int64)).images, batch.images)
    assert torch.equal(entries.pixels, PIXELS)


def test_digits_keep_their_levels():
    rows = load_builtin("digits", DataOptions(split="train"))
    pixels, labels = load_pixels(rows, range(100, 400))
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels, rows.images[100:400])
    entries = entries_of(pixels, labels, padding=1, channels_last=True)
    for batch in batches(entries, 64, 128):
        assert set((batch.images * 16).unique().tolist()) <= set(range(17))
        assert batch.images.shape == (64, 1, 8, 8)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("levels", [255, 16])
def test_loaded_batches_are_those_of_memory(workers, levels):
    images = PIXELS.float() / 255 if levels == 255 else (PIXELS % 17).float() / 16
    rows, index = ListRows(images, LABELS), torch.tensor([5, 2, 11, 3, 22, 8])
    plan = plan_of([1, 0, 2, 0, 0, 1], n=6, near=darker)
    before = torch.get_rng_state()
    pixels, labels = load_pixels(rows, index.tolist())
    assert torch.equal(read_labels(rows, index), labels)
    common = {
        "plan": plan,
        "index": index,
        "options": EntryOptions(seed=3, padding=2),
        "weights": torch.rand(10, generator=torch.Generator()),
    }
    memory, loaded = TrainingSet(pixels, labels, **common), StreamingSet(rows, labels, workers=workers, **common)
    assert pixels.dtype == (torch.uint8 if levels == 255 else torch.float32)
    for one, two in zip(batches(memory), batches(loaded), strict=True):
        assert_same(one, two)
        assert torch.equal(one.weights, two.weights)
    assert_same(memory.batch(torch.tensor([7]), torch.tensor([2])), loaded.batch(torch.tensor([7]), torch.tensor([2])))
    assert (len(loaded), loaded.unique, loaded.size) == (len(memory), memory.unique, memory.size)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_and_other_sizes_are_named(workers):
    rows = ListRows(PIXELS.float() / 255, LABELS, broken=[4])
    with pytest.raises(UserError, match=r"^The image in row 4 cannot be read\.$"):
        batches(StreamingSet(rows, LABELS, workers=workers))
    rows = ListRows([torch.rand(1, 4, 4), torch.rand(1, 5, 4)], torch.arange(2))
    with raises("bad-shape", UserError, "1x4x4", "1x5x4"):
        batches(StreamingSet(rows, torch.arange(2), workers=workers), 1, 2)


def test_grey_images_among_coloured_ones_and_shares_without_rows():
    grey, colour = torch.full((1, 4, 4), 0.2), torch.rand(3, 4, 4)
    loaded = StreamingSet(
        ListRows([colour, grey], torch.arange(2)), torch.arange(2), options=EntryOptions(augment="none")
    )
    found = torch.cat([batch.images for batch in batches(loaded, 1, 2)])
    order = loaded.order(0)
    assert torch.equal(found[order.argsort()], torch.stack([colour, grey.expand(3, 4, 4)]))
    assert [len(batch) for batch in batches(loaded, 2, 3, rank=0, processes=2)] == [1, 0]


def test_wrong_arguments():
    with raises("unknown-augmentation", UserError, "'crop_flip'", "'crop-flip'"):
        entries_of(augment="crop_flip")
    with raises("bad-shape", UserError, "uint8 or float32", "torch.int64"):
        TrainingSet(PIXELS.long(), LABELS)
    with raises("bad-shape", UserError, "22 labels"):
        TrainingSet(PIXELS, LABELS[1:])
    with raises("bad-shape", UserError, "23 training images", "3 indices"):
        entries_of(index=torch.arange(3))
    with raises("bad-shape", UserError, "30 entries", "23 images"):
        entries_of(plan=plan_of([0] * 30, n=30))
    with raises("bad-shape", UserError, "weights", "(23,)", "(3,)"):
        entries_of(weights=torch.ones(3))
    entries = entries_of()
    for bad in (
        {"batch_size": 0},
        {"total_samples": 0},
        {"rank": 2, "processes": 2},
        {"total_samples": N * MAX_EPOCH + 1},
    ):
        with raises("bad-value"):
            Stream(entries, **{"batch_size": 4, "total_samples": 8, **bad})
    with raises("no-data"):
        StreamingSet(ListRows([], LABELS), LABELS[:0])


class NoWaiting(TorchDispatchMode):
    """Refuses what would wait for a GPU: values read by Python, and results whose size depends on values."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in (
            "_local_scalar_dense",
            "item",
            "nonzero",
            "masked_select",
            "unique_dim",
            "_unique2",
            "equal",
        )
        if name == "index":
            assert all(index is None or index.dtype == torch.int64 for index in args[1])
        return function(*args, **(kwargs or {}))


def test_a_batch_waits_for_nothing():
    entries = entries_of(plan=plan_of([1] * N), weights=torch.rand(2 * N), channels_last=True)
    stream = iter(Stream(entries, 8, 40))
    next(stream)  # the order of an epoch is made with its first batch
    with NoWaiting():
        assert len(next(stream)[1]) == 8
    with pytest.raises(AssertionError), NoWaiting():
        entries.order(0).sum().item()
