"""A registry with the plugin, and images that the tests share."""

from __future__ import annotations

import pytest
import torch
from robustdup_art import register
from torch import Tensor

from robustdup import Registry


@pytest.fixture(scope="session")
def registry() -> Registry:
    """A registry that holds the attacks of this plugin alone."""
    registry = Registry()
    register(registry)
    return registry


@pytest.fixture
def grey() -> Tensor:
    """Images near mid-grey, where no attack of small eps meets the box."""
    return 0.4 + 0.2 * torch.rand(6, 3, 5, 5, generator=torch.Generator().manual_seed(5))
