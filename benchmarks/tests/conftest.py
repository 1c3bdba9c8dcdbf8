"""A small classifier of digits that baselines attack."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from robustdup import load_data, load_model


@pytest.fixture(scope="session")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """Return (network in eval mode, images (N, 1, 8, 8), labels (N,))."""
    data = load_data("builtin:digits", n=200)
    return load_model("builtin:digits-standard"), data.images, data.labels
