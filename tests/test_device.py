from __future__ import annotations

import pytest
import torch
from torch import nn

from robustdup.device import choose_device, count_operations, cpu_threads
from robustdup.errors import UserError
from tests.raising import raises


@pytest.mark.parametrize(
    ("text", "code", "names"),
    [
        ("mps", "no-device", ["'mps'", "float64", "--device auto"]),
        ("xpu", "no-device", ["'xpu'", "cpu and cuda", "--device auto"]),
        ("meta", "no-device", ["'meta'"]),
        ("gpu", "unknown-device", ["'gpu'", "cuda"]),
    ],
)
def test_a_device_on_which_nothing_can_run_is_refused_at_once(text, code, names):
    with raises(code, UserError, *names):
        choose_device(text)


def test_operations_are_counted_and_no_hook_is_left():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10))
    assert count_operations(model, torch.rand(3, 4, 4)) == 16 * 8 * 27 + 8 * 16 * 10
    assert not any(module._forward_hooks for module in model.modules())


def threads_for(model: nn.Module, size: int) -> int:
    with cpu_threads(None, model, torch.rand(3, size, size), rows=32, device=torch.device("cpu")):
        return torch.get_num_threads()


def test_small_models_get_one_thread_and_large_ones_and_unknown_ones_all():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert threads_for(nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10)), 8) == 1
        large = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 3), nn.Flatten())
        assert threads_for(large, 32) == 2
        assert threads_for(nn.Flatten(), 8) == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
