from types import SimpleNamespace

import pytest
import torch
from torch import nn

from robustdup.evaluation import micro_batch
from robustdup.evaluation.micro_batch import Measured, choose_micro_batch
from robustdup.models.networks import SmallCNN

IMAGE = torch.rand(1, 8, 8)


@pytest.fixture
def clock(monkeypatch):
    """Give sizes made-up seconds a row, and note which were measured."""
    measured = []

    def set_seconds(seconds, later=None):
        def fake(model, image, rows, budget):
            measured.append(rows)
            table = later if later is not None and measured.count(rows) > 1 else seconds
            return Measured(rows, table[rows], table[rows])

        monkeypatch.setattr(micro_batch, "measure", fake)
        return measured

    return set_seconds


def test_on_a_gpu_the_first_call_is_never_the_measurement(monkeypatch):
    class There(torch.Tensor):
        is_cuda = True

    seconds = iter([2.0, 0.003, 0.001, 0.002, 0.001, 0.002, 0.001])
    monkeypatch.setattr(micro_batch, "_timed", lambda call, images: next(seconds))
    warm = micro_batch._median_time(lambda: None, torch.rand(1).as_subclass(There), 0.2)
    assert warm < 0.01


def test_on_a_cpu_a_cold_call_is_no_measurement_and_a_long_one_is(monkeypatch):
    seconds = iter([0.04, 0.003, 0.001, 0.002, 0.001, 0.002, 0.001])  # the first made the kernels of its shape
    monkeypatch.setattr(micro_batch, "_timed", lambda call, images: next(seconds))
    assert micro_batch._median_time(lambda: None, torch.rand(1), 0.2) < 0.01
    seconds = iter([2.0])
    assert micro_batch._median_time(lambda: None, torch.rand(1), 0.2) == 2.0


@pytest.mark.parametrize(
    ("milliseconds", "rows"), [((0.6, 0.47, 0.3, 0.24, 0.22, 0.2), 32), ((120, 101, 100, 100, 100, 100), 2)]
)
def test_calls_of_a_small_model_are_filled_and_those_of_a_large_one_only_where_rows_become_cheaper(
    clock, milliseconds, rows
):
    sizes = (1, 2, 4, 8, 16, 32)
    clock({size: 1e-3 * each for size, each in zip(sizes, milliseconds, strict=True)})
    assert micro_batch.worth_filling(None, IMAGE, 32, (*sizes[:-1], 3, 33)) == rows


@pytest.mark.parametrize(
    ("threads", "passed", "computed", "expected"), [(1, 0.9, 0.1, 0.1), (1, 0.9, 0.001, 0.9), (2, 0.9, 0.1, 0.9)]
)
def test_other_work_on_the_machine_does_not_make_a_call_of_one_thread_dear(
    monkeypatch, threads, passed, computed, expected
):
    """A thread that computes is timed by what it computed; one that waits for an answer, and several, by the clock."""
    clocks = SimpleNamespace(
        perf_counter=iter([5.0, 5.0 + passed]).__next__, thread_time=iter([2.0, 2.0 + computed]).__next__
    )
    monkeypatch.setattr(micro_batch, "time", clocks)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert micro_batch._timed(lambda: None, IMAGE) == pytest.approx(expected)


class Limited(nn.Module):
    """Runs out of memory from `rows` rows on, as the allocators of torch do."""

    def __init__(self, rows, error):
        super().__init__()
        self.rows, self.error = rows, error
        self.net = SmallCNN(width=4)
        self.calls = []

    def forward(self, images):
        self.calls.append(len(images))
        if len(images) >= self.rows:
            raise self.error
        return self.net(images)


def test_it_returns_a_candidate_and_what_it_measured():
    model = SmallCNN(width=4).eval()
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    chosen, measured = choose_micro_batch(model, IMAGE, "cpu")
    assert chosen in {entry.rows for entry in measured} <= {16, 32, 64, 128, 256}
    assert 32 in {entry.rows for entry in measured}
    for entry in measured:
        assert 0 < entry.forward < 1
        assert min(entry.forward, entry.both) <= entry.weighted <= max(entry.forward, entry.both)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert threads == torch.get_num_threads()
    assert torch.equal(state, torch.get_rng_state())


def test_the_weights_are_those_of_autoattack():
    assert Measured(32, 1.0, 3.0).weighted == pytest.approx((5947 * 1 + 1910 * 3) / 7857)


@pytest.mark.parametrize(("seconds", "chosen"), [(0.90, 32), (0.88, 32), (0.86, 128), (0.5, 128)])
def test_another_size_must_be_clearly_faster(clock, seconds, chosen):
    table = dict.fromkeys((16, 32, 64, 128, 256), 1e-5) | {128: seconds * 1e-5}
    measured = clock(table)
    assert choose_micro_batch(nn.Identity(), IMAGE, "cpu")[0] == chosen
    assert measured[0] == 32
    assert set(measured) == {16, 32, 64, 128, 256}


def test_a_gain_that_does_not_repeat_is_noise(clock):
    table = dict.fromkeys((16, 32, 64, 128, 256), 1e-5)
    clock(table | {64: 5e-6}, later=table)
    assert choose_micro_batch(nn.Identity(), IMAGE, "cpu")[0] == 32


def test_the_callers_sizes_and_default(clock):
    measured = clock({4: 1e-5, 8: 1e-6, 10: 1e-5})
    chosen, entries = choose_micro_batch(nn.Identity(), IMAGE, "cpu", candidates=(4, 8), default=10)
    assert (chosen, [entry.rows for entry in entries]) == (8, [4, 8, 10])
    assert measured == [10, 8, 4, 10, 8]


def test_a_slow_model_is_measured_at_the_default_alone(clock):
    measured = clock(dict.fromkeys((16, 32, 64, 128, 256), 0.1))
    assert choose_micro_batch(nn.Identity(), IMAGE, "cpu")[0] == 32
    assert measured == [32]


def test_a_long_call_is_made_once(monkeypatch):
    now = [0.0]
    calls = []

    class Slow(nn.Module):
        def forward(self, images):
            now[0] += 60
            calls.append(len(images))
            return images.flatten(1)

    monkeypatch.setattr(micro_batch.time, "perf_counter", lambda: now[0])
    chosen, measured = choose_micro_batch(Slow(), IMAGE, "cpu")
    assert (chosen, calls) == (32, [32, 32])
    assert measured == [Measured(32, 60 / 32, 60 / 32)]


def test_large_images_are_not_tried_in_large_calls(clock):
    measured = clock(dict.fromkeys((16, 32, 64, 128, 256), 1e-6))
    choose_micro_batch(nn.Identity(), torch.rand(3, 224, 224), "cpu")
    assert measured == [32, 16]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_ends_the_sizes_not_the_run(error):
    model = Limited(64, error).eval()
    chosen, measured = choose_micro_batch(model, IMAGE, "cpu", seconds=20)
    assert chosen in (16, 32)
    assert [entry.rows for entry in measured] == [16, 32]
    assert 128 not in model.calls
    assert 256 not in model.calls


def test_a_default_that_does_not_fit_is_halved():
    chosen, measured = choose_micro_batch(
        Limited(10, MemoryError()).eval(), IMAGE, "cpu", candidates=(16, 64), seconds=20
    )
    assert chosen == 8
    assert [entry.rows for entry in measured] == [8]


def test_other_errors_are_the_models():
    with pytest.raises(RuntimeError, match="shape"):
        choose_micro_batch(Limited(1, RuntimeError("bad shape")).eval(), IMAGE, "cpu")
