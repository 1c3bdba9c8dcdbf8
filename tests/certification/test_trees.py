"""Trees of cases from strangers: as large as they look, or refused."""

from __future__ import annotations

import numpy as np
import pytest

from robustdup.certification.checker import Tree, _fits

LEAF, SPLIT = (-1, -1), (1, 0)


@pytest.mark.parametrize(
    ("nodes", "n_weights", "fits"),
    [
        ([LEAF], 0, True), ([LEAF], 1, False), ([SPLIT, LEAF, LEAF], 2, True), ([SPLIT, LEAF, LEAF], 1, False),
        ([SPLIT, LEAF], 1, False), ([LEAF, LEAF], 0, False), ([SPLIT, SPLIT, LEAF, LEAF, LEAF], 5, True), ([], 0, False),
    ],
)  # fmt: skip
def test_a_tree_has_a_weight_for_each_split_above_each_leaf(nodes, n_weights, fits):
    splits = np.array(nodes, dtype=np.int64).reshape(-1, 2)
    assert _fits(Tree(splits, np.zeros(n_weights, np.float32))) is fits


def test_a_comb_whose_ways_would_fill_the_memory_is_not_written_out():
    """A file of three megabytes: its ways are twenty thousand million numbers."""
    comb = np.array([SPLIT, LEAF] * 200_000 + [LEAF], dtype=np.int64)
    assert not _fits(Tree(comb, np.zeros(9, np.float32)))
