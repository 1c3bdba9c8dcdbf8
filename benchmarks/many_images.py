"""What a search among many images costs: processor time, memory and disk, on images that are made of CIFAR-10's.

Each image is the mean of two images drawn at random, so that there are as many different ones as are wanted. Every 50th is a
copy of the one before it, shifted by a pixel and compressed again.

    python -m benchmarks.many_images DATA --n 200000 --out FOLDER
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from robustdup_detect import run_detection
from robustdup_detect.options import DetectConfig
from robustdup_detect.record import load_pairs

from robustdup.config import DataOptions, validate
from robustdup.data.cache import load_pixels
from robustdup.data.sources import open_samples
from robustdup.plugins import load_plugins

PART = 50_000  # images of one file
EVERY = 50  # images of which the last one is a copy


def write_images(data: str, n: int, folder: Path, seed: int = 0) -> None:
    """Write n images as parquet files that `data detect` reads, unless they are there."""
    import datasets

    rows = open_samples(data, DataOptions(split="train"), load_plugins())
    pixels, _ = load_pixels(rows, range(len(rows)))
    originals = pixels.permute(0, 2, 3, 1).numpy().astype(np.uint16)
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, n, PART):
        file = folder / f"train-{start // PART:05d}.parquet"
        if file.is_file():
            continue
        rng = np.random.default_rng([seed, start])
        first, second = rng.integers(len(originals), size=(2, min(PART, n - start)))
        images = ((originals[first] + originals[second]) // 2).astype(np.uint8)
        images[EVERY - 1 :: EVERY] = np.roll(images[EVERY - 2 :: EVERY][: len(images) // EVERY], 1, axis=2)
        content = [{"bytes": _encoded(image, row), "path": None} for row, image in enumerate(images)]
        table = datasets.Dataset.from_dict({"image": content}, features=datasets.Features({"image": datasets.Image()}))
        table.to_parquet(file)


def _encoded(image: Any, row: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=80 if row % EVERY == EVERY - 1 else 95)
    return content.getvalue()


def search(folder: Path, out: Path, **settings: Any) -> dict[str, Any]:
    """Return what a search within the images costs, and how many of the copies it finds.

    An unfinished search in `out` goes on; what it had cost before is not counted: add the last line that it printed.
    """
    config = validate(DetectConfig, {"data": str(folder), **settings})
    before, started = _cpu(), time.perf_counter()
    record = run_detection(config, out, resume=out.exists(), progress=_told)
    seconds = time.perf_counter() - started
    table = load_pairs(out).to_pydict()
    copied = {(row - 1, row) for row in range(EVERY - 1, record.n, EVERY)}
    pairs = set(zip(table["row_a"], table["row_b"], strict=True))
    state = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "images": record.n, "seconds": seconds, "cpu_seconds": _cpu() - before, "stages": record.seconds,
        "memory_of_one_process_mb": most / 1024, "disk_mb": state / 2**20, "search": record.method.search,
        "copies": len(copied), "copies_found": len(copied & pairs), "other_pairs": len(pairs - copied),
    }  # fmt: skip


def _told(stage: str, done: int, total: int) -> None:
    """Say how far the search is, so that what a part of it cost can be told."""
    print(f"{stage} {done:,}/{total:,}: {_cpu():.0f} s of processor time", file=sys.stderr, flush=True)


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    """Read the command line and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("data")
    parser.add_argument("--n", type=int, default=200_000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--search", choices=["auto", "exact", "faiss"], default="auto")
    given = parser.parse_args()
    write_images(given.data, given.n, given.out / "images")
    print(
        json.dumps(
            search(given.out / "images", given.out / "run", workers=given.workers, search=given.search), indent=2
        )
    )


if __name__ == "__main__":
    main()
