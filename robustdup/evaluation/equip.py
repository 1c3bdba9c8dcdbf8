"""What native attacks run on: a prepared copy of the model, and the micro-batch at which it is quickest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from robustdup.attacks.isolation import isolated
from robustdup.attacks.passes import Passes, input_gradient
from robustdup.config import EvalConfig
from robustdup.evaluation.bench import Bench, CleanVerdict
from robustdup.evaluation.calls import PlannedStage
from robustdup.evaluation.folder import STATE
from robustdup.evaluation.sizing import CANDIDATES, Measured, choose_micro_batch
from robustdup.models.prepare import prepare
from robustdup.records import write_atomic

EQUIPMENT_FILE = "equipment.json"
GLANCE, LOOK = 0.2, 1.0  # seconds to spend on timing the usual micro-batch, and on timing others
SHARE = 0.02  # of the time that a run may take, to spend on timing others
WORTH_MEASURING = 5.0  # seconds that a run may take before it is worth looking for a better micro-batch


def equip(
    bench: Bench, config: EvalConfig, images: Tensor, clean: CleanVerdict, stages: Sequence[PlannedStage],
    folder: Path | None,
) -> list[str]:  # fmt: skip
    """Prepare the model for the `pool` stages and choose the micro-batch; return what a reader should know of it.

    `images` (N, C, H, W): the clean points. A run that goes on keeps the micro-batch that it was started with, since
    the bits of its results hold for one shape.
    """
    pool = [stage for stage in stages if stage.spec.batching == "pool"]
    right = ~clean.judged.broken
    margins = clean.judged.margin[right]
    bench.usual_margin = float(margins.median()) if len(margins) else 0.0
    if not pool or not bool(right.any()):
        return []
    path = None if folder is None else folder / STATE / EQUIPMENT_FILE
    examples = images[right.nonzero()[: bench.micro_batch, 0]].to(bench.device)
    dress(bench, config, examples, clean.randomized, compiled=False)  # compiling waits for the micro-batch
    if path is not None and path.is_file():
        saved = json.loads(path.read_text(encoding="utf-8"))
        bench.micro_batch, bench.smaller = int(saved["micro_batch"]), tuple(map(int, saved["smaller"]))
    else:
        _measure(bench, config, examples, int(right.sum()), pool)
    if path is not None:
        write_atomic(path, json.dumps({"micro_batch": bench.micro_batch, "smaller": bench.smaller}).encode())
    dress(bench, config, examples, clean.randomized)
    if bench.prepared is not None and bench.prepared.compiled != "off":
        bench.smaller = ()  # it is compiled for one shape
    return list(bench.prepared.notes) if bench.prepared is not None else []


def dress(bench: Bench, config: EvalConfig, examples: Tensor, randomized: bool, *, compiled: bool = True) -> None:
    """Put a prepared copy of the attacked model on the bench: `examples` (n, C, H, W) show that it says the same.

    Nothing is done where no preparation is asked for, or where the same was done already.
    """
    compile_it = config.compile in ("on", "cudagraphs") or (config.compile == "auto" and bench.device.type == "cuda")
    if not (config.fold or compile_it or config.precision != "fp32"):
        return
    if bench.prepared is not None and not compile_it:
        return
    bench.prepared = prepare(
        bench.attacked, examples, micro_batch=bench.micro_batch, fold=config.fold, channels_last=config.fold,
        compile=config.compile if compiled else "off", precision=config.precision, randomized=randomized,
    )  # fmt: skip


def _measure(bench: Bench, config: EvalConfig, examples: Tensor, points: int, pool: Sequence[PlannedStage]) -> None:
    """Time the usual micro-batch and keep the seconds of a row; where the run would be long, look for better shapes.

    A micro-batch that is given stays as it is; where the points in a call are given too, there is nothing to choose.
    """
    if config.micro_batch is not None and config.batch_size is not None:
        return
    model = bench.attacked if bench.prepared is None else bench.prepared.model
    costs = _costs(pool)
    usual = bench.micro_batch
    try:
        with isolated(model):
            rows, measured = choose_micro_batch(
                model, examples[0], bench.device, candidates=[], default=usual, seconds=GLANCE
            )
            longest = _longest(measured[0], points, costs)
            long = longest >= WORTH_MEASURING
            if long and config.micro_batch is None:
                sizes = [size for size in CANDIDATES.get(bench.device.type, CANDIDATES["cpu"]) if size <= points]
                rows, measured = choose_micro_batch(
                    model,
                    examples[0],
                    bench.device,
                    candidates=sizes,
                    default=usual,
                    seconds=min(LOOK, SHARE * longest),
                )
            if config.micro_batch is None:
                bench.micro_batch = rows
            if long:
                bench.smaller = same_bits(model, examples, bench.micro_batch)
    except RuntimeError:  # a model without gradients, say: the attacks will report it, point by point
        return
    chosen = next(found for found in measured if found.rows == rows)
    bench.seconds = (chosen.forward, chosen.both)
    bench.longest = _longest(chosen, points, costs)


def _costs(pool: Sequence[PlannedStage]) -> list[tuple[float, float]]:
    """Return the (forward, backward) passes of a surviving point in each stage, times the share of points that it takes.

    Stages for masked models alone are left out: most runs never come to them.
    """
    known = [(stage.take, stage.spec.passes(stage.options)) for stage in pool if stage.when == "always"]
    return [(take * cost[0], take * cost[1]) for take, cost in known if cost is not None]


def _longest(found: Measured, points: int, costs: Sequence[tuple[float, float]]) -> float:
    """Return the seconds that the stages would take if every point survived: `costs` are (forward, backward) passes."""
    return points * sum((f - b) * found.forward + b * found.both for f, b in costs)


def same_bits(model: nn.Module, examples: Tensor, micro_batch: int) -> tuple[int, ...]:
    """Return the smaller numbers of rows (powers of two from 8) at which logits and gradients have the same bits.

    Compared on `micro_batch` rows made from `examples` (n, C, H, W), each with its own noise. Which kernels compute a
    batch follows from its shape and not from its values, so that what holds for these rows holds for others.
    """
    copies = -(-micro_batch // len(examples))
    rows = examples.repeat(copies, 1, 1, 1)[:micro_batch]
    noise = torch.rand(rows.shape, generator=torch.Generator().manual_seed(0)).to(rows)
    rows = (0.9 * rows + 0.1 * noise).clamp(0, 1)
    whole = _answers(model, rows, micro_batch)
    sizes = [2**power for power in range(3, 20) if 2**power < micro_batch]
    return tuple(
        size
        for size in sizes
        if all(torch.equal(mine, theirs) for mine, theirs in zip(_answers(model, rows, size), whole, strict=True))
    )


def _answers(model: nn.Module, images: Tensor, size: int) -> list[Tensor]:
    """Return logits without and with a graph, and the gradients of their largest, computed `size` rows at a time."""
    packed = Passes(model, size)
    with torch.no_grad():
        plain = packed(images)
    gradient, _, logits = input_gradient(packed, images, lambda out, rows: out.amax(dim=1))
    return [plain, logits, gradient]
