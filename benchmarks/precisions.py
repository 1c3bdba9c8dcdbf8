"""What bf16 is worth in training on this CPU: `python -m benchmarks.precisions --data … --out FILE`.

The same run is made ready in fp32 and in bf16, and their optimizer steps take turns, in CPU seconds of one thread. What is
timed is a step as `robustdup train` makes it: batch and augmentation, inner attack, gradient, optimizer and averages. A case
is a model, an objective and a batch size, as 'small-resnet(width=12)|n_fgsm|128', trained by Muon; one whose name begins with
'digits:' trains on the digits that are shipped, by SGD.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from robustdup.config import TrainConfig, validate
from robustdup.device import choose_device, count_operations
from robustdup.jobs.training import assemble, check
from robustdup.plugins import load_plugins
from robustdup.training.processes import Processes
from robustdup.training.tracking import open_session
from robustdup.training.trainer import Trainer

DIGITS = "digits:"
CASES = (
    "small-resnet(width=12)|n_fgsm|128",
    "small-resnet(width=16)|n_fgsm|128",
    "small-resnet(width=16)|pgd_at|128",
    "small-resnet(width=16)|trades|128",
    "small-resnet(width=16)|standard|128",
    "small-resnet(width=32)|n_fgsm|128",
    "preact-resnet18|n_fgsm|32",
    "digits:small-cnn|n_fgsm|128",
    "digits:small-cnn|pgd_at|128",
)


@contextlib.contextmanager
def made_ready(settings: dict[str, Any]) -> Iterator[Trainer]:
    """Yield what `robustdup train` with these keys of `TrainConfig` makes before its first step, on one process."""
    config = validate(TrainConfig, settings)
    registry, device = load_plugins(config.plugin), choose_device(config.device)
    with tempfile.TemporaryDirectory() as folder:
        run = assemble(config, check(config, registry), registry, Processes(), device, Path(folder), lambda _: None)
        with open_session(run.options, device, None, Processes(), {}) as session:
            trainer = Trainer(run.parts, run.options, device, session)
            trainer.start()
            yield trainer


def settings_of(case: str, precision: str, data: str) -> dict[str, Any]:
    """Return the keys of `TrainConfig` for a case."""
    model, objective, rows = case.removeprefix(DIGITS).split("|")
    digits = case.startswith(DIGITS)
    return {
        "model": model, "objective": objective, "batch_size": int(rows), "precision": precision, "steps": 100_000,
        "data": "builtin:digits" if digits else data, "n": 512, "validation": 0, "evaluate": None,
        "optimizer": "sgd" if digits else "muon", "muon_lr": 0.03, "lr": 0.05, "schedule": "constant", "ema": 0.998,
        "threads": 1, "device": "cpu",
    }  # fmt: skip


def step(trainer: Trainer, batches: Iterator[Any]) -> float:
    """Make one step and return its CPU seconds."""
    started = time.process_time()
    trainer.train_on(*next(batches))
    return time.process_time() - started


def measure(case: str, data: str, steps: int) -> dict[str, Any]:
    """Return the CPU seconds of each step of a case in both precisions, which take turns."""
    with contextlib.ExitStack() as stack:
        runs = {name: stack.enter_context(made_ready(settings_of(case, name, data))) for name in ("fp32", "bf16")}
        batches = {name: iter(trainer.batches()) for name, trainer in runs.items()}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(steps + 2):
            for name in list(runs)[:: 1 if turn % 2 else -1]:
                seconds[name].append(step(runs[name], batches[name]))
        model, (_, batch, _) = runs["fp32"].parts.model, next(batches["fp32"])
    return {
        "case": case, "parameters": sum(each.numel() for each in model.parameters()),
        "operations": count_operations(model, batch.images[0]),
        **{name: values[2:] for name, values in seconds.items()},  # the first ones allocate and choose kernels
    }  # fmt: skip


def row(line: dict[str, Any]) -> str:
    """Return a line as a row of Markdown: median milliseconds, and of the turns' ratios median, smallest and largest."""
    ratios = sorted(a / b for a, b in zip(line["fp32"], line["bf16"], strict=True))
    times = [f"{1000 * median(line[name]):.0f}" for name in ("fp32", "bf16")]
    ratio = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    sizes = [f"{line['parameters']:,}", f"{line['operations'] / 1e6:,.2f}"]
    return f"| {' | '.join([*line['case'].split('|'), *sizes, *times, ratio])} |"


def main(words: Sequence[str] | None = None) -> int:
    """Measure each case, write a line of JSON for each, and print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.precisions", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", required=True, help="as for robustdup train; its train split")
    parser.add_argument("--cases", nargs="+", default=CASES, help="model|objective|batch size each")
    parser.add_argument("--steps", type=int, default=7, help="steps in each precision, after two that do not count")
    parser.add_argument("--out", type=Path, required=True, help="file of results, one JSON line a case")
    given = parser.parse_args(words)
    heads = ("model", "objective", "batch", "parameters", "million multiply-adds an image", "fp32, ms a step",
             "bf16, ms a step", "fp32 / bf16")  # fmt: skip
    print(f"| {' | '.join(heads)} |\n|---|---|{'---:|' * (len(heads) - 2)}")
    for case in given.cases:
        line = measure(case, given.data, given.steps)
        with given.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(row(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
