"""How many rows a model is handed at once: measured at the start of a run, at a few sizes, within a small time budget.

`choose_packing` decides for a run, `choose_micro_batch` for a model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from robustdup.attacks.isolation import isolated
from robustdup.attacks.passes import LONGEST_CALL, Passes, input_gradient
from robustdup.device import out_of_memory
from robustdup.evaluation.calls import PlannedStage
from robustdup.evaluation.clean import CleanAnswers, damaged_state, has_calls
from robustdup.evaluation.context import Context, EngineOptions, make_attack_copy
from robustdup.records.sealed import read_sealed, write_sealed

MICRO_BATCH_FILE = "micro_batch.json"  # in the state of a run
GLANCE, LOOK = 0.2, 1.0  # seconds to spend on timing the usual micro-batch, and on timing others
SHARE = 0.02  # of the time that a run may take, to spend on timing others
WORTH_MEASURING = 5.0  # seconds that a run may take before it is worth looking for a better micro-batch
DEFAULTS = {"cpu": 32, "cuda": 256}
CANDIDATES = {"cpu": (16, 32, 64, 128, 256), "cuda": (64, 128, 256, 512, 1024)}
# A surviving sample of AutoAttack costs 7,857 forward rows, 1,910 of them with a backward pass (Croce & Hein 2020,
# https://arxiv.org/abs/2003.01690, the standard version).
BACKWARD_SHARE = 1910 / 7857
GAIN = 1.15  # another size must be this much faster than the default: noise must not choose
REPEATS = 5
ATTACK_SECONDS = 1e-3  # that an attack of AutoAttack computes itself for each look at a few samples, on an EPYC
IDLE = 0.05  # share of a call's time below which a thread waits for something else, and does not compute
PARTS = 20  # the calls of one kind at one size take about this fraction of the time budget
# Inputs larger than this (floats, 16 MiB) are not tried on a CPU: it runs out of memory by killing the process.
CPU_FLOATS = 2**22
COMPARED = 8  # rows, at least, on which another number of rows in a call must give the same bits
WORTH_COMPILING = 120.0  # seconds that a run must threaten to take before `compile=auto` compiles for it on CUDA


def choose_packing(
    context: Context, options: EngineOptions, images: Tensor, clean: CleanAnswers, stages: Sequence[PlannedStage],
    state: Path | None = None,
) -> list[str]:  # fmt: skip
    """Make the attack copy for the `pool` stages and choose the micro-batch; return what a reader should know of it.

    A run that goes on keeps the micro-batch that it was started with, since the bits of its results hold for one shape.

    Args:
        context: what the evaluation runs on; its attack copy, micro-batch and timings are set.
        options: what is asked for.
        images: the clean images (N, C, H, W).
        clean: what the model says of them.
        stages: those to come.
        state: folder in which the choice is kept; None keeps nothing.
    """
    pool = [stage for stage in stages if stage.spec.batching == "pool"]
    correct = ~clean.answers.is_adv
    margins = clean.answers.margin[correct]
    context.usual_margin = float(margins.median()) if len(margins) else 0.0
    if not pool or not bool(correct.any()):
        return []
    path = None if state is None else state / MICRO_BATCH_FILE
    examples = images[correct.nonzero()[: context.micro_batch, 0]].to(context.device)
    make_attack_copy(context, options, examples, clean.wavering, compiled=False)  # compiling waits for the micro-batch
    if path is not None and (path.exists() or has_calls(path.parent)):  # others would not compute the same bits
        try:
            saved = json.loads(read_sealed(path))
            context.micro_batch, context.sizes = int(saved["micro_batch"]), tuple(map(int, saved["sizes"]))
            context.worth_compiling, context.fill = bool(saved.get("worth_compiling", True)), int(saved.get("fill", 0))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise damaged_state(path, error) from None
    elif not clean.batch_dependent:  # else the number depends on it, and the clock must not choose that
        _measure(context, options, examples, int(correct.sum()), pool)
        repeats = not (clean.randomized or clean.remembers or context.stand_in)
        context.fill = (context.fill or context.micro_batch) if repeats else 0
    if path is not None:
        chosen = {name: getattr(context, name) for name in ("micro_batch", "sizes", "fill", "worth_compiling")}
        write_sealed(path, json.dumps(chosen).encode())
    notes = make_attack_copy(context, options, examples, clean.wavering)
    if context.attack_copy is not None and context.attack_copy.compiled != "off":
        context.sizes = ()  # it is compiled for one shape
        context.fill = context.micro_batch if context.fill else 0
    return list(notes)


def _measure(
    context: Context, options: EngineOptions, examples: Tensor, count: int, pool: Sequence[PlannedStage]
) -> None:
    """Time the usual micro-batch and keep the seconds of a row; where the run would be long, look for better shapes.

    A micro-batch that is given stays as it is; where the samples in a call are given too, there is nothing to choose.
    """
    if options.micro_batch is not None and options.batch_size is not None:
        return
    model = context.attacked if context.attack_copy is None else context.attack_copy.model
    costs = _costs(pool)
    usual = context.micro_batch
    try:
        with isolated(model):
            rows, measured = choose_micro_batch(
                model, examples[0], context.device, candidates=[], default=usual, seconds=GLANCE
            )
            longest = _longest(measured[0], count, costs)
            long = longest >= WORTH_MEASURING
            if long and options.micro_batch is None:
                sizes = [size for size in CANDIDATES.get(context.device.type, CANDIDATES["cpu"]) if size <= count]
                rows, measured = choose_micro_batch(
                    model,
                    examples[0],
                    context.device,
                    candidates=sizes,
                    default=usual,
                    seconds=min(LOOK, SHARE * longest),
                )
            if options.micro_batch is None:
                context.micro_batch = rows
            # A call takes as long for one sample as for all its rows: where few are left, in whole calls.
            if long or _longest(measured[0], count, costs, least=context.micro_batch) >= WORTH_MEASURING:
                context.sizes = same_bits(model, examples, context.micro_batch)
                context.fill = worth_filling(model, examples[0], context.micro_batch, context.sizes)
    except RuntimeError:  # a model without gradients, say: the attacks will report it, sample by sample
        return
    chosen = next(timing for timing in measured if timing.rows == rows)
    context.seconds = (chosen.forward, chosen.both)
    context.longest = _longest(chosen, count, costs)
    context.worth_compiling = context.longest >= WORTH_COMPILING


def _costs(pool: Sequence[PlannedStage]) -> list[tuple[float, float, float]]:
    """Return the share of samples that each stage takes, and the (forward, backward) passes of a surviving one.

    Stages that run only on signs of gradient masking are left out: most runs never come to them.
    """
    known = [(stage.take, stage.passes) for stage in pool if stage.when == "always"]
    return [(take, *cost) for take, cost in known if cost is not None]


def _longest(timing: Measured, count: int, costs: Sequence[tuple[float, float, float]], *, least: int = 0) -> float:
    """Return the seconds that the stages would take if every sample survived and each look were at `least` rows.

    `costs` are shares of the samples and (forward, backward) passes.
    """
    return sum(max(take * count, least) * ((f - b) * timing.forward + b * timing.both) for take, f, b in costs)


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
            if not out_of_memory(error):
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
            inputs = images.clone().requires_grad_(True)
            torch.autograd.grad(model(inputs).logsumexp(dim=1).sum(), inputs)

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
            if rows == 1 or not out_of_memory(error):
                raise
        rows //= 2


def _median_time(call: Callable[[], None], images: Tensor, seconds: float) -> float:
    """Return the median seconds of up to REPEATS calls; a call that takes long is its own measurement.

    The first call is thrown away, since it makes or loads the kernels of a shape, and on a GPU chooses among them; on a CPU
    where it took no longer than `seconds`.
    """
    times = [_timed(call, images)]
    if images.is_cuda or times[0] <= seconds:
        times = [_timed(call, images)]
    if times[0] > seconds / PARTS:
        return times[0]
    times = []
    while len(times) < REPEATS and sum(times) < seconds / PARTS:
        times.append(_timed(call, images))
    return median(times)


def _timed(call: Callable[[], None], images: Tensor) -> float:
    """Return the seconds of a call: of this thread alone where it computes alone, else those of the clock.

    On a machine that others use, the clock makes long calls look dear: they are interrupted more often than short ones.
    """
    _wait(images)
    started, computed = time.perf_counter(), time.thread_time()
    call()
    _wait(images)
    passed, computed = time.perf_counter() - started, time.thread_time() - computed
    alone = not images.is_cuda and torch.get_num_threads() == 1
    return computed if alone and computed > IDLE * passed else passed


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


def same_bits(model: nn.Module, examples: Tensor, micro_batch: int) -> tuple[int, ...]:
    """Return the numbers of rows besides a micro-batch at which logits and gradients have the same bits.

    Compared on rows made from `examples` (n, C, H, W), each with its own noise. Which kernels compute a batch follows from its
    shape and not from its values, so that what holds for these rows holds for others, and a batch or two of each size do.
    """
    sizes = other_sizes(micro_batch, largest=CPU_FLOATS // examples[0].numel() if examples.device.type == "cpu" else 0)
    count = max(micro_batch, *sizes, 0)
    rows = examples.repeat(-(-count // len(examples)), 1, 1, 1)[:count]
    noise = torch.rand(rows.shape, generator=torch.Generator().manual_seed(0)).to(rows)
    rows = (0.9 * rows + 0.1 * noise).clamp(0, 1)
    whole = _answers(model, rows, micro_batch)

    def holds(size: int) -> bool:
        few = slice(-(-COMPARED // size) * size)
        answers = _answers(model, rows[few], size)
        return all(torch.equal(mine, all_rows[few]) for mine, all_rows in zip(answers, whole, strict=True))

    return tuple(filter(holds, sizes))


def other_sizes(micro_batch: int, *, largest: int = 0) -> list[int]:
    """Return the numbers of rows that are worth a try besides a micro-batch.

    Below it all up to 16, then four for each doubling; above it, up to `largest`, those that take in few rows that would be
    left over: a call of one row takes half as long as one of sixteen.
    """
    below = {*range(1, 17), *(part * 2**power for power in range(2, 20) for part in range(5, 9))}
    above = {micro_batch + 2**power for power in range(20)}
    few = min(largest, int(LONGEST_CALL * micro_batch))
    return sorted({*(size for size in below if size < micro_batch), *(size for size in above if size <= few)})


def worth_filling(model: nn.Module, image: Tensor, micro_batch: int, other: Sequence[int]) -> int:
    """Return up to how many rows a call is to be filled: the fewest of which each costs little more than in the cheapest size.

    What an attack computes itself for a look at samples counts too: on a small model that is what filling saves.
    `image` (C, H, W). Powers of two among the `other` sizes are timed; where there are none, all calls have `micro_batch` rows.
    """
    sizes = [size for size in other if size < micro_batch and size & (size - 1) == 0]
    costs = {
        size: measure(model, image[None], size, GLANCE).weighted + ATTACK_SECONDS / size
        for size in (*sizes, micro_batch)
    }
    return next(size for size, cost in costs.items() if cost <= GAIN * min(costs.values()))


def _answers(model: nn.Module, images: Tensor, size: int) -> list[Tensor]:
    """Return logits without and with a graph, and the gradients of their largest, computed `size` rows at a time."""
    packed = Passes(model, size)
    with torch.no_grad():
        plain = packed(images)
    gradient, _, logits = input_gradient(packed, images, lambda out, rows: out.amax(dim=1))
    return [plain, logits, gradient]
