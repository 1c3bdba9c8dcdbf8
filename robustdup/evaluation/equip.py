"""What native attacks run on: a prepared copy of the model, and the micro-batch at which it is quickest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from robustdup.attacks.isolation import isolated
from robustdup.config import EvalConfig
from robustdup.evaluation.bench import Bench, CleanVerdict
from robustdup.evaluation.calls import PlannedStage
from robustdup.evaluation.folder import STATE
from robustdup.evaluation.sizing import CANDIDATES, choose_micro_batch
from robustdup.models.prepare import prepare
from robustdup.records import write_atomic

EQUIPMENT_FILE = "equipment.json"
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
        bench.micro_batch = int(json.loads(path.read_text(encoding="utf-8"))["micro_batch"])
    elif config.micro_batch is None:
        bench.micro_batch = _measured(bench, config, examples[0], int(right.sum()), pool)
    if path is not None:
        write_atomic(path, json.dumps({"micro_batch": bench.micro_batch}).encode())
    dress(bench, config, examples, clean.randomized)
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


def _measured(bench: Bench, config: EvalConfig, image: Tensor, points: int, pool: Sequence[PlannedStage]) -> int:
    """Time the usual micro-batch, and others where the run would be long; keep the seconds of a row.

    A size of which the points do not fill three is not tried: most of its last one would be padding.
    """
    model = bench.attacked if bench.prepared is None else bench.prepared.model
    usual = bench.micro_batch
    costs = [cost for stage in pool if (cost := stage.spec.passes(stage.options)) is not None]
    try:
        with isolated(model):
            rows, measured = choose_micro_batch(model, image, bench.device, candidates=[], default=usual)
            forward, both = measured[0].forward, measured[0].both
            longest = points * sum((f - b) * forward + b * both for f, b in costs)
            if longest >= WORTH_MEASURING:
                sizes = [size for size in CANDIDATES.get(bench.device.type, CANDIDATES["cpu"]) if 3 * size <= points]
                rows, measured = choose_micro_batch(model, image, bench.device, candidates=sizes, default=usual)
    except RuntimeError:  # a model without gradients, say: the attacks will report it, point by point
        return usual
    chosen = next(found for found in measured if found.rows == rows)
    bench.seconds = (chosen.forward, chosen.both)
    bench.longest = points * sum((f - b) * chosen.forward + b * chosen.both for f, b in costs)
    return rows
