"""Labels with gaps build no network of thousands of outputs that nothing trains."""

from __future__ import annotations

import torch

from robustdup.jobs.training_data import numbered_classes
from tests.raising import raises


def test_labels_with_gaps_are_refused_and_a_class_without_a_sample_is_none():
    assert numbered_classes(torch.tensor([0, 1, 2, 2]), "x") == 3
    assert numbered_classes(torch.tensor([0, 3, 9]), "x") == 10  # a few samples of ten classes
    with raises("gap-labels", ValueError, "0, 1000, 2000", "9,001 outputs", "class_encode_column"):
        numbered_classes(torch.arange(0, 10_000, 1000), "x")
