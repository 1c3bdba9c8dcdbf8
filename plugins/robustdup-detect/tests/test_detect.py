"""Duplicates found in memory: exact ones, planted near ones, mirrored ones; and nothing among different pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detect_pictures import pictures
from hypothesis import given, settings
from hypothesis import strategies as st
from robustdup_detect import near_duplicates
from robustdup_detect.features import describe
from robustdup_detect.groups import digests, group_identical, identical_across
from robustdup_detect.search import nearest
from robustdup_detect.transforms import NAMES, change, changed_copies
from robustdup_detect.verify import align_outlines, measure, outline

from robustdup.errors import UserError
from tests.raising import raises


def found(pairs):
    return set(zip(pairs.a.tolist(), pairs.b.tolist(), strict=True))


def test_planted_copies_are_found_and_nothing_else():
    images = pictures(400)
    copies, names = changed_copies(images[:105], np.random.default_rng(1))
    pairs = near_duplicates(torch.cat([images, copies]))
    planted = {(i, 400 + i) for i in range(105)}
    assert len(found(pairs) & planted) >= 103
    assert found(pairs) <= planted
    mirrored = {b - 400: flag for b, flag in zip(pairs.b.tolist(), pairs.mirrored.tolist(), strict=True)}
    assert all(flag == ("mirror" in names[row]) for row, flag in mirrored.items())


def test_across_two_sets_of_different_size_and_colour():
    images = pictures(60, size=64)
    small = F.interpolate(images[10:20].float(), (28, 28), mode="bilinear", antialias=True).byte()
    assert found(near_duplicates(small, images)) == {(i, 10 + i) for i in range(10)}
    grey = images[30:34].float().mean(dim=1, keepdim=True).byte()
    assert found(near_duplicates(grey, images[30:34].float().mean(dim=1, keepdim=True).byte())) == {
        (i, i) for i in range(4)
    }


def test_identical_pictures_score_one_and_are_never_lost():
    images = pictures(30)
    images[3] = 0  # without any contrast, there is nothing to align
    repeated = torch.cat([images, images[[3, 3, 7]]])
    pairs = near_duplicates(repeated)
    assert {(3, 30), (3, 31), (7, 32)} == found(pairs)
    assert pairs.score.tolist() == [1, 1, 1]
    across = near_duplicates(repeated, images[[7, 3, 3]].clone())
    assert {(3, 1), (3, 2), (30, 1), (31, 1), (7, 0), (32, 0)} == found(across)
    assert across.score.tolist() == [1] * 6


def test_a_copy_of_a_repeated_picture_is_found_for_each_of_them():
    images = pictures(40)
    copy = change("crop", images[5:6], np.random.default_rng(0))
    pairs = near_duplicates(copy, torch.cat([images, images[5:6]]))
    assert found(pairs) == {(0, 5), (0, 40)}


def test_the_warp_says_where_the_copy_lies():
    images = pictures(50)
    moved = torch.roll(images, (2, -3), (2, 3))  # what is at x is the original's at x + 3 pixels
    pairs = near_duplicates(moved, images)
    own = pairs.a == pairs.b
    assert own.sum() >= 48
    pixels = pairs.warp[own][:, 2:] * 16
    assert ((pixels - torch.tensor([3.0, -2.0])).abs().mean(dim=0) < 0.3).all()
    assert (pairs.warp[own][:, :2] - 1).abs().mean() < 0.03


def test_result_does_not_depend_on_order_or_chance():
    images = torch.cat([pictures(80), change("shift", pictures(80)[:20], np.random.default_rng(2))])
    first, again = near_duplicates(images), near_duplicates(images.clone())
    assert torch.equal(first.score, again.score)
    assert found(first) == found(again)


def test_progress_counts_to_the_end():
    seen = {}
    images = pictures(40)
    near_duplicates(images, images.flip(0), progress=lambda stage, done, total: seen.__setitem__(stage, (done, total)))
    assert set(seen) == {"search", "search mirrored", "compare"}
    assert all(done == total > 0 for done, total in seen.values())


@pytest.mark.parametrize(
    ("pixels", "named"),
    [
        (torch.rand(2, 3, 8, 8), "float32"),
        (torch.zeros(2, 8, 8, dtype=torch.uint8), "(2, 8, 8)"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "(0, 3, 8, 8)"),
        (torch.zeros(2, 4, 8, 8, dtype=torch.uint8), "(2, 4, 8, 8)"),
    ],
)
def test_what_are_not_pixels_is_refused(pixels, named):
    with raises("bad-images", UserError, named):
        near_duplicates(pixels)


def test_threshold_is_a_share():
    with raises("bad-value", UserError, "95"):
        near_duplicates(pictures(3), threshold=95)


def test_one_picture_has_no_duplicates():
    assert len(near_duplicates(pictures(1))) == 0
    assert found(near_duplicates(pictures(1), pictures(1))) == {(0, 0)}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_identical_groups_against_counting(numbers, more):
    pixels, other = (torch.tensor(part, dtype=torch.uint8).view(-1, 1, 1, 1) for part in (numbers, more))
    groups = group_identical(digests(pixels))
    assert groups.first.tolist() == sorted({n: numbers.index(n) for n in numbers}.values())
    assert all(numbers[groups.first[g]] == n for g, n in zip(groups.group, numbers, strict=True))
    first, rest = groups.others()
    assert sorted(rest.tolist()) == [i for i, n in enumerate(numbers) if n in numbers[:i]]
    assert all(numbers.index(numbers[r]) == f for f, r in zip(first, rest, strict=True))
    whole = near = {(i, j) for i, n in enumerate(numbers) for j, m in enumerate(more) if n == m}
    theirs = group_identical(digests(other))
    a, b = identical_across(digests(pixels)[groups.first], digests(other)[theirs.first])
    near = {(int(groups.first[i]), int(theirs.first[j])) for i, j in zip(a, b, strict=True)}
    assert near == {(i, j) for i, j in whole if i == numbers.index(numbers[i]) and j == more.index(more[j])}


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300), st.integers(1, 20), st.integers(0, 10**6))
def test_search_is_exhaustive(m, k, seed):
    random = torch.Generator().manual_seed(seed)
    database = F.normalize(torch.randn(m, 8, generator=random), dim=1)
    queries = F.normalize(torch.randn(5, 8, generator=random), dim=1)
    query, row, value = nearest(queries, database, k)
    similarity = queries @ database.T
    expected = similarity.topk(min(k, m), dim=1)
    for number in range(5):
        assert torch.allclose(value[query == number], expected.values[number], atol=1e-6)
        assert torch.allclose(similarity[number, row[query == number]], expected.values[number], atol=1e-6)


def test_features_do_not_see_brightness():
    images = pictures(20).clamp(60, 180)
    brighter = images + 40
    assert torch.allclose(describe(images), describe(brighter), atol=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_every_change_changes_and_is_recognised(name):
    images = pictures(12, seed=3)
    copies = change(name, images, np.random.default_rng(0))
    assert copies.shape == images.shape
    assert copies.dtype == torch.uint8
    assert (copies != images).flatten(1).any(dim=1).all()
    turned = copies.flip(-1) if "mirror" in name else copies
    warp, agreement = align_outlines(outline(turned), outline(images))
    assert (agreement > 0.9).float().mean() >= 0.9
    values, _ = measure(turned, images, warp)
    assert values.shape == (12, 6)
    assert values.isfinite().all()
