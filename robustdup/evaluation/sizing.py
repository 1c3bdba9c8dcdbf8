"""How many rows to hand a model at once: measured at the start of a run, at a few sizes, within a small time budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

DEFAULTS = {"cpu": 32, "cuda": 256}
CANDIDATES = {"cpu": (16, 32, 64, 128, 256), "cuda": (64, 128, 256, 512, 1024)}
# A surviving point of AutoAttack costs 7,857 forward rows, 1,910 of them with a backward pass (Croce & Hein 2020,
# https://arxiv.org/abs/2003.01690, the standard version).
BACKWARD_SHARE = 1910 / 7857
GAIN = 1.15  # another size must be this much faster than the default: noise must not choose
REPEATS = 5
SHARE = 20  # the calls of one kind at one size take about this fraction of the time budget
# Inputs larger than this (floats, 16 MiB) are not tried on a CPU: it runs out of memory by killing the process.
CPU_FLOATS = 2**22


@dataclass(frozen=True)
class Measured:
    """Seconds a row at one size: a forward pass alone, and a forward pass with the backward pass for one gradient."""

    rows: int
    forward: float
    both: float

    @property
    def weighted(self) -> float:
        """Seconds an average row of AutoAttack takes: one in four has a backward pass."""
        return self.forward * (1 - BACKWARD_SHARE) + self.both * BACKWARD_SHARE


def choose_micro_batch(
    model: nn.Module, image: Tensor, device: torch.device | str, *, candidates: Sequence[int] | None = None,
    default: int | None = None, seconds: float = 2.0,
) -> tuple[int, list[Measured]]:  # fmt: skip
    """Return (rows a call, what was measured): the default unless another size is over 15 % faster a row, twice.

    `image` (C, H, W) or (1, C, H, W) in [0, 1]. `candidates` are sizes to measure besides the default (32 on CPU, 256
    on CUDA), which is always measured, first. A size that would likely take longer than what is left of `seconds` is
    not begun; running out of memory ends the larger ones. Where the default does not fit, half of it, a quarter, … is
    tried. A model in training mode or a random one changes its buffers and the global random state as in any call;
    threads stay as they are. Raises what the model raises.
    """
    kind = torch.device(device).type
    default = default or DEFAULTS.get(kind, DEFAULTS["cpu"])
    image = image.detach().to(device).reshape(-1, *image.shape[-3:])[:1]
    end = time.perf_counter() + seconds
    measured = [_first(model, image, default, seconds)]
    default = measured[0].rows
    # The nearest sizes first, so that what is left out where time is short is what matters least.
    sizes = set(CANDIDATES.get(kind, CANDIDATES["cpu"]) if candidates is None else candidates) - {default}
    limit: float = CPU_FLOATS // image.numel() if kind == "cpu" else float("inf")
    for size in sorted(sizes, key=lambda size: (max(size, default) / min(size, default), size)):
        if size > max(limit, default) or not _in_time(measured[0], size, end):
            continue
        try:
            measured.append(measure(model, image, size, seconds))
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            limit = min(limit, size - 1)
    chosen = _fastest(measured, default)
    if chosen != default and _in_time(measured[0], default + chosen, end + seconds):
        again = [measure(model, image, size, seconds) for size in (default, chosen)]
        chosen = _fastest(again, default)
    return chosen, sorted(measured, key=lambda entry: entry.rows)


def measure(model: nn.Module, image: Tensor, rows: int, seconds: float) -> Measured:
    """Time `model` on `rows` copies of `image` (1, C, H, W): medians of a few calls after one to warm up."""
    images = image.expand(rows, *image.shape[1:]).contiguous()

    def both() -> None:
        with torch.enable_grad():
            points = images.clone().requires_grad_(True)
            torch.autograd.grad(model(points).logsumexp(dim=1).sum(), points)

    def forward() -> None:
        with torch.no_grad():
            model(images)

    return Measured(rows, _median_time(forward, images, seconds) / rows, _median_time(both, images, seconds) / rows)


def _first(model: nn.Module, image: Tensor, rows: int, seconds: float) -> Measured:
    """Measure the default size, or the largest of its halves that fits into memory."""
    while True:
        try:
            return measure(model, image, rows, seconds)
        except (RuntimeError, MemoryError) as error:
            if rows == 1 or not _out_of_memory(error):
                raise
        rows //= 2


def _median_time(call: Callable[[], None], images: Tensor, seconds: float) -> float:
    """Return the median seconds of up to REPEATS calls; a call that takes long is its own measurement."""
    times = [_timed(call, images)]
    if times[0] > seconds / SHARE:
        return times[0]
    times = []
    while len(times) < REPEATS and sum(times) < seconds / SHARE:
        times.append(_timed(call, images))
    return median(times)


def _timed(call: Callable[[], None], images: Tensor) -> float:
    _wait(images)
    started = time.perf_counter()
    call()
    _wait(images)
    return time.perf_counter() - started


def _wait(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


def _in_time(known: Measured, rows: int, end: float) -> bool:
    """Say whether measuring `rows` would end before `end`, judged by the seconds a row at the default size."""
    return time.perf_counter() + rows * (REPEATS + 1) * (known.forward + known.both) < end


def _fastest(measured: Sequence[Measured], default: int) -> int:
    """Return the size with the least weighted time a row where it beats the default clearly, else the default."""
    kept = next(entry for entry in measured if entry.rows == default)
    best = min(measured, key=lambda entry: entry.weighted)
    return best.rows if kept.weighted > GAIN * best.weighted else default


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        torch.cuda.empty_cache()  # does nothing without CUDA; what the failed call took is free again
        return True
    return "out of memory" in str(error).lower() or "can't allocate memory" in str(error).lower()
