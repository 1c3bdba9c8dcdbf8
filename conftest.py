"""Tests compute with one thread a process: the models are small, and pytest-xdist fills the cores."""

import signal

import pytest
import torch

torch.set_num_threads(1)
# In the background of a script Ctrl-C is ignored, and so it would be by the processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_thread():
    """Start every test with one thread, and fail the one that leaves another number behind."""
    torch.set_num_threads(1)
    yield
    assert torch.get_num_threads() == 1
