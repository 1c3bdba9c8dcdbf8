"""What duplication costs: a plan in time and memory, and an epoch over it, per sample, beside the plain set.

`python -m benchmarks.data_epoch DATA [--copies 10]` prints JSON. Short plain and duplicated blocks of samples alternate,
in a random order each, so that what else the machine does meets both; ratios are those of neighbouring blocks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustdup.config import DataOptions, DuplicationOptions, validate
from robustdup.data.splits import label_tensor, open_splits, split_columns
from robustdup.duplication.apply import apply_plan
from robustdup.duplication.make import make_plan
from robustdup.duplication.plan import DuplicationPlan

if TYPE_CHECKING:
    import datasets

BATCH = 128


def measure(data: str, *, split: str, copies: int, block: int, blocks: int) -> dict[str, Any]:
    """Return the cost of a whole-set plan with this many copies, and of epochs in `blocks` blocks of `block` samples."""
    options = DataOptions(split=split)
    dataset, columns = split_columns(open_splits(data, options).get(split), options, data)
    labels = label_tensor(dataset, columns, data)
    wanted = validate(DuplicationOptions, {"scheme": "whole_set", "copies": copies})
    make_plan(labels[: len(labels) // 20], wanted, seed=0)  # libraries that are read on first use are no part of a plan
    memory = _peak_memory()
    start = time.perf_counter()
    plan = make_plan(labels, wanted, seed=0)
    seconds, extra = time.perf_counter() - start, _peak_memory(reset=False) - memory
    before, written = _cached_bytes(dataset), _written_bytes()
    start = time.perf_counter()
    made = apply_plan(plan, dataset)
    applied = time.perf_counter() - start
    result = {
        "data": data, "rows": len(dataset), "entries": len(plan), "hash": plan.hash, "plan_seconds": seconds,
        "plan_extra_bytes": extra, "apply_seconds": applied, "bytes_written": _written_bytes() - written,
        "cache_bytes_added": _cached_bytes(dataset) - before, "threads": torch.get_num_threads(), "block": block,
        "blocks": blocks,
    }  # fmt: skip
    result["through_datasets"] = _compare(_rows_of(dataset), _rows_of(made), len(dataset), len(made), block, blocks)
    if (pixels := _decoded(dataset, columns.image)) is not None:
        own = DuplicationPlan(torch.arange(len(dataset)), torch.zeros(len(dataset), dtype=torch.int64), len(dataset))
        result["by_tensor_index"] = _compare(
            _pixels_of(own, pixels), _pixels_of(plan, pixels), len(own), len(plan), 10 * block, blocks
        )
    return result


def _peak_memory(*, reset: bool = True) -> int:
    """Return the most memory (bytes) that this process has held since the last reset, which is what it holds now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def _written_bytes() -> int:
    """Return the bytes that this process has handed to write calls."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["wchar"])


def _cached_bytes(dataset: datasets.Dataset) -> int:
    folders = {Path(file["filename"]).parent for file in dataset.cache_files}
    return sum(path.stat().st_size for folder in folders for path in folder.iterdir())


def _rows_of(dataset: datasets.Dataset) -> Callable[[Tensor], Any]:
    return lambda entries: dataset[entries.tolist()]


def _pixels_of(plan: DuplicationPlan, pixels: Tensor) -> Callable[[Tensor], Any]:
    return lambda entries: pixels[plan.source_index[entries]].float() / 255


def _decoded(dataset: datasets.Dataset, image: str) -> Tensor | None:
    """Return all images as uint8 (N, C, H, W); None where they differ in size."""
    import numpy as np

    arrays = [np.asarray(row) for row in dataset[image]]
    if len({array.shape for array in arrays}) > 1:
        return None
    pixels = torch.from_numpy(np.stack(arrays))
    return pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2).contiguous()


def _compare(
    plain: Callable[[Tensor], Any], duplicated: Callable[[Tensor], Any], n: int, entries: int, block: int, blocks: int
) -> dict[str, float]:
    """Return microseconds of CPU time a sample, and the ratio duplicated / plain: the median over the pairs
    of blocks with its 95% interval."""
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(size, generator=generator) for size in (n, entries)]
    seconds: list[list[float]] = [[], []]
    for number in range(-1, blocks):  # the first pair warms up
        for which in (0, 1) if number % 2 else (1, 0):
            order, read = orders[which], (plain, duplicated)[which]
            rows = order[torch.arange(number * block, (number + 1) * block) % len(order)]
            start = time.process_time()
            for first in range(0, block, BATCH):
                read(rows[first : first + BATCH])
            if number >= 0:
                seconds[which].append(time.process_time() - start)
    ratios = sorted(d / p for p, d in zip(*seconds, strict=True))
    reach = round(0.98 * blocks**0.5)  # ranks of a 95% interval of the median
    low, high = ratios[max(0, blocks // 2 - reach)], ratios[min(blocks - 1, blocks // 2 + reach)]
    each = [1e6 * statistics.median(times) / block for times in seconds]
    return {
        "plain_us": each[0], "duplicated_us": each[1], "ratio": statistics.median(ratios), "ratio_low": low,
        "ratio_high": high,
    }  # fmt: skip


def main() -> None:
    """Read the command line and print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("data", nargs="?", default="builtin:digits")
    parser.add_argument("--split", default="train")
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--block", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(given.data, split=given.split, copies=given.copies, block=given.block, blocks=given.blocks)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
