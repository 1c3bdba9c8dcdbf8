"""Copies that were turned, flipped, cropped, framed, covered or made negative: known changes, known maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detect_pictures import detect, encoded, photos, write
from PIL import Image
from robustdup_detect import near_duplicates
from robustdup_detect.keypoints import WAYS, keypoints_of, seen
from robustdup_detect.kinds import KINDS
from robustdup_detect.pairlist import Pairs, by_matrices, confirmed, in_place, matrices, turned_round
from robustdup_detect.record import load_pairs
from robustdup_detect.scores import LOCAL_SCORE, USUAL_THRESHOLD

TURNED = {"rotation 90": 90, "rotation 180": 180, "rotation 15": 15, "flip vertical": 180, "negative": 0}


def tensor(images):
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def searched():
    """One copy of each kind of the first pictures among 30, and the pairs that a search finds."""
    images, rng = photos(30), np.random.default_rng(1)
    copies = [np.asarray(kind(Image.fromarray(images[i]), rng)) for i, kind in enumerate(KINDS.values())]
    return near_duplicates(tensor(copies), tensor(images))


def test_every_kind_is_found_and_nothing_else(searched):
    own = {a for a, b in zip(searched.a.tolist(), searched.b.tolist(), strict=True) if a == b}
    assert own == set(range(len(KINDS)))
    assert len(searched) == len(KINDS)


@pytest.mark.parametrize("kind", TURNED)
def test_the_map_says_how_far_a_copy_was_turned(searched, kind):
    row = (searched.a == list(KINDS).index(kind)).nonzero()[0, 0]
    assert abs(searched.turn[row].abs() - TURNED[kind]) < 1.5
    assert bool(searched.mirrored[row]) == (kind == "flip vertical")
    assert (searched.warp[row, :2] - 1).abs().max() < 0.05


def test_a_crop_of_half_the_side_is_half_as_large(searched):
    row = (searched.a == list(KINDS).index("crop 50%")).nonzero()[0, 0]
    assert (searched.warp[row, :2] - 0.5).abs().max() < 0.05


@pytest.mark.parametrize("way", WAYS[1:])
def test_mirrored_and_negative_descriptors_need_no_second_look(way):
    images = photos(3, seed=5)
    changed = images[:, :, ::-1] if way == "mirrored" else 255 - images
    expected, got = keypoints_of(changed), seen(keypoints_of(images), way)
    for row in range(3):
        places = np.abs(
            got.places[row, : got.count[row], None] - expected.places[row, None, : expected.count[row]]
        ).max(axis=2)
        alike = got.descriptors[row].astype(np.int64) @ expected.descriptors[row].T.astype(np.int64)
        nearest = alike[: got.count[row], : expected.count[row]].argmax(axis=1)
        assert np.mean(places[np.arange(len(nearest)), nearest] < 0.03) > 0.7


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_map_with_a_turn_is_turned_round_exactly(mirrored):
    pairs = Pairs(
        torch.tensor([1]), torch.tensor([2]), torch.ones(1), torch.tensor([mirrored]), torch.tensor([[0.8, 0.8, 0.1, -0.3]]),
        torch.tensor([25.0]),
    )  # fmt: skip
    maps, back = matrices(pairs)[0], matrices(turned_round(pairs))[0]
    assert torch.allclose(back[:, :2] @ maps[:, :2], torch.eye(2), atol=1e-6)
    assert torch.allclose(back[:, :2] @ maps[:, 2] + back[:, 2], torch.zeros(2), atol=1e-6)
    again = by_matrices(pairs.a, pairs.b, pairs.score, matrices(pairs))
    assert bool(again.mirrored[0]) == mirrored
    assert torch.allclose(again.turn, pairs.turn, atol=1e-3)


@pytest.mark.parametrize(
    ("overlap", "measures", "same"),
    [
        (0.53, (3.43, 0.36, 0.98, 2.21, 1.98), False),  # as measured of two parts of one brick wall
        (1.0, (3.43, 0.36, 0.98, 2.21, 1.98), True),  # a copy or a crop that agrees as well
        (0.5, (3.9, 0.45, 0.95, 2.5, 1.6), True),  # two crops that share half, as a usual copy agrees
    ],
)
def test_parts_of_one_pattern_are_told_from_copies_by_what_overlaps(overlap, measures, same):
    score = float(LOCAL_SCORE(torch.tensor([[*measures, overlap]]))[0])
    assert (score >= USUAL_THRESHOLD) == same


def whole_pairs(*warps):
    n = len(warps)
    return Pairs(torch.arange(n), torch.arange(n), torch.ones(n), torch.zeros(n, dtype=torch.bool), torch.tensor(warps))


def test_a_pair_is_in_place_where_hardly_anything_of_either_picture_is_left_out():
    """A shift of 0.03 leaves 1.5% of the width out; the first shows all of the second at twice the scale, and half of it."""
    pairs = whole_pairs((1.0, 1.0, 0.03, 0.0), (1.0, 1.0, 0.06, 0.0), (0.5, 1.0, 0.5, 0.0), (0.97, 1.0, 0.0, 0.1))
    assert in_place(pairs).tolist() == [True, False, True, False]


def test_a_shifted_pair_that_local_features_contradict_is_none():
    """All lie 10% aside: the second has hardly any features, the third is found by them, the last lies in place."""
    aside = (1.0, 1.0, 0.2, 0.0)
    whole, local = whole_pairs(aside, aside, aside, (1.0, 1.0, 0.0, 0.0)), whole_pairs(aside, aside, aside)[2:]
    features = np.array([50, 50, 50, 50]), np.array([50, 3, 50, 50])
    assert confirmed(whole, local, 4, features).tolist() == [False, True, True, True]


def test_a_run_asks_local_features_about_shifted_pairs(tmp_path, monkeypatch):
    """A shifted copy is a pair where its features are found to lie alike, or are not looked at; else it is none."""
    images = [Image.fromarray(image) for image in photos(8, seed=4)]
    images.append(images[3].transform((96, 96), Image.Transform.AFFINE, (1, 0, 6, 0, 1, 0)))
    data = write(tmp_path / "data", images=[encoded(image) for image in images])
    detect(data, tmp_path / "run")
    detect(data, tmp_path / "never", local="never")
    assert set(turned_pairs(tmp_path / "run")) == set(turned_pairs(tmp_path / "never")) == {(3, 8)}
    monkeypatch.setattr("robustdup_detect.stages._match", lambda *_: None)
    detect(data, tmp_path / "none")
    assert turned_pairs(tmp_path / "none") == {}


def turned_pairs(folder):
    table = load_pairs(folder).to_pydict()
    return {(a, b): round(turn) for a, b, turn in zip(table["row_a"], table["row_b"], table["turn"], strict=True)}


def test_a_run_matches_local_features_of_large_pictures_and_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    images = [Image.fromarray(image) for image in photos(12, seed=2)]
    images[5] = images[5].resize((144, 96))
    images += [images[2].rotate(-90), images[5].transpose(Image.Transpose.ROTATE_180).crop((0, 0, 100, 96))]
    data = write(tmp_path / "data", images=[encoded(image) for image in images])

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("robustdup_detect.stages.load_candidates", stop)
        with pytest.raises(KeyboardInterrupt):
            detect(data, tmp_path / "run", shard=16)
    monkeypatch.setattr("robustdup_detect.work.ShardWorker.match", stop)  # what is done is not done again
    record = detect(data, tmp_path / "run", shard=16, resume=True)
    assert turned_pairs(tmp_path / "run") == {(2, 12): 90, (5, 13): 180}
    assert {pair.change.split(",")[0] for pair in record.pairs} == {"turned by 90 degrees", "turned by 180 degrees"}


def test_between_splits_and_only_where_it_is_asked_for(tmp_path):
    images = photos(8, seed=3)
    write(tmp_path / "data", images=[encoded(Image.fromarray(image)) for image in images])
    copies = [encoded(Image.fromarray(images[row]).rotate(-90)) for row in (1, 6)]
    data = write(tmp_path / "data", split="test", images=copies)
    detect(data, tmp_path / "run", against="test")
    assert turned_pairs(tmp_path / "run") == {(1, 0): 90, (6, 1): 90}
    detect(data, tmp_path / "never", against="test", local="never")
    assert turned_pairs(tmp_path / "never") == {}
