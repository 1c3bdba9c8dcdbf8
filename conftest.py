"""Tests compute with one thread a process: the models are small, and pytest-xdist fills the cores."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread():
    """Start every test with one thread, and fail the one that leaves another number behind."""
    torch.set_num_threads(1)
    yield
    assert torch.get_num_threads() == 1
