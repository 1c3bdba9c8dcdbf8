"""Recall and precision by kind, on distances and pairs whose answer is known."""

from __future__ import annotations

import numpy as np

from benchmarks.kinds import best_by_kind, counted

SOURCE, NAMES = np.array([0, 1, 0, 1]), ["blur", "blur", "crop", "crop"]


def test_pairs_are_counted_by_kind():
    pairs = np.array([[0, 0], [1, 1], [1, 2], [2, 1]])
    assert counted(SOURCE, NAMES, pairs) == {"blur": (1.0, 2 / 3), "crop": (0.0, 0.0)}


def test_a_hash_is_taken_at_its_best_distance_of_each_kind():
    distances = np.array([[2, 9, 9], [9, 4, 9], [9, 3, 9], [9, 5, 6]])  # the third copy is nearest to a wrong one
    assert best_by_kind(SOURCE, NAMES, distances) == {"blur": (1.0, 1.0), "crop": (0.0, 1.0)}
