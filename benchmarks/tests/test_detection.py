"""How the bench of detection counts: pairs of a copy with its original are right, others wrong or set aside."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.detection import Planted, best, cosine, hamming, judged, plant, plant_identical, swept

NONE = np.empty((0, 2), np.int64)


def case(n=6, chosen=(0, 2, 5), names=("shift", "noise", "noise")):
    return Planted(torch.zeros(n + len(chosen), 3, 4, 4, dtype=torch.uint8), np.array(chosen), list(names))


def test_right_wrong_and_unclear_pairs():
    pairs = np.array([[0, 6], [6, 0], [7, 1], [7, 3], [3, 4], [6, 8]])  # 3, 4: two originals; 6, 8: two copies
    at = judged(case(), pairs, np.array([[1, 2]]))  # 1 and 2 were alike before: the copy of 2 looks like 1 too
    assert (at["right"], at["wrong"], at["unclear"]) == (1, 1, 1)
    assert at["recall"] == 1 / 3
    assert at["precision"] == 1 / 2
    assert at["strict_precision"] == 1 / 3
    assert at["recall_by_change"] == {"shift": 1.0, "noise": 0.0}


def test_all_settings_at_once_say_what_each_says_alone():
    random = np.random.default_rng(0)
    made = Planted(torch.zeros(50, 3, 4, 4, dtype=torch.uint8), random.permutation(40)[:10], ["shift"] * 10)
    known = np.array([[int(made.chosen[0]), (int(made.chosen[0]) + 1) % 40]])
    distances = random.integers(0, 8, (10, 40)).astype(float)
    tried = swept(made, iter([distances[:7], distances[7:]]), np.arange(6), known)
    for setting, at in enumerate(tried):
        copy, original = np.nonzero(distances <= setting)
        assert at == judged(made, np.stack([original, copy + 40], axis=1), known)


def test_distances():
    hashes = np.array([[255] * 8, [0] * 8, [254] + [255] * 7], np.uint8)
    two = Planted(torch.zeros(3, 3, 4, 4, dtype=torch.uint8), np.array([0]), ["noise"])
    assert np.concatenate(list(hamming(two, hashes))).tolist() == [[1, 63]]
    features = np.array([[1, 0], [0, 2], [3, 4]], np.float32)
    assert np.allclose(np.concatenate(list(cosine(two, features))), [[1 - 0.6, 1 - 0.8]])


def test_the_best_setting_has_the_highest_recall_at_a_good_precision():
    settings = [{"precision": p, "recall": r, "f1": r} for p, r in ((1, 0.2), (0.96, 0.4), (0.9, 0.8))]
    assert best(settings)["recall"] == 0.4
    assert best(settings[2:])["recall"] == 0.8


def test_what_is_planted_is_known():
    pixels = torch.randint(0, 256, (60, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    near, same = plant(pixels, 20, 0), plant_identical(torch.cat([pixels, pixels[:5]]), 20, 0)
    assert (len(near.pixels), near.n, len(set(near.chosen.tolist()))) == (60, 40, 20)
    mirrored = near.names.index("mirror")
    assert torch.equal(near.pixels[near.n + mirrored].flip(-1), near.pixels[near.chosen[mirrored]])
    assert (len(same.pixels), same.n) == (60, 40)
    assert torch.equal(same.pixels[same.n :], same.pixels[torch.from_numpy(same.chosen)])
