"""What a search for duplicates between two splits costs: robustdup beside imagededup, on the same images, in the same run.

robustdup's time is that of the whole command, from the files of the dataset to the record. imagededup is given image files
that were written for it beforehand, which are not counted, and is asked for the images of one split among those of the other.

    python -m benchmarks.detection_time DATA --split train --against test
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from robustdup_detect import run_detection
from robustdup_detect.options import DetectConfig

from benchmarks import detectors
from robustdup.config import DataOptions, validate
from robustdup.data.cache import load_pixels
from robustdup.data.sources import open_samples
from robustdup.plugins import load_plugins

SAMPLE = 1000  # images on which the search and the network of imagededup are timed


def ours(data: str, split: str, against: str, folder: Path, workers: int, pictures: int) -> dict[str, Any]:
    """Return the seconds of `robustdup data detect`, those of the processors, and what it found."""
    config = validate(
        DetectConfig, {"data": data, "split": split, "against": against, "workers": workers, "pictures": pictures}
    )
    before, started = _cpu(), time.perf_counter()
    record = run_detection(config, folder)
    seconds = time.perf_counter() - started
    images = record.n + (record.n_against or 0)
    return {
        "seconds": seconds, "cpu_seconds": _cpu() - before, "seconds_per_10000_images": 10_000 * seconds / images,
        "stages": record.seconds, "pairs": record.n_exact + record.n_near, "exact": record.n_exact,
        "expected_precision": record.expected.precision, "expected_recall": record.expected.recall,
    }  # fmt: skip


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def theirs(folder: Path, files: tuple[list[str], list[str]], workers: int) -> dict[str, Any]:
    """Return the seconds of imagededup: its perceptual hash at its default distance, and the encoding of its network."""
    names = [*files[0], *files[1]]
    hashes, encoding = detectors.hash_images(folder, names, "phash", workers)
    n = len(files[0])
    asked = hashes[n:][:SAMPLE]
    searching = detectors.search_hashes(hashes[:n], asked, 10, "phash") * len(files[1]) / len(asked)
    sample = names[:: max(len(names) // SAMPLE, 1)]
    with tempfile.TemporaryDirectory() as few:
        for name in sample:
            (Path(few) / name).symlink_to(folder / name)
        _, seconds = detectors.encode(detectors.cnn(None), Path(few), sample)
    return {
        "imagededup:phash": {"encode": encoding, "search": searching, "seconds": encoding + searching, "timed_on": len(asked)},
        "imagededup:cnn": {"encode": seconds * len(names) / len(sample), "timed_on": len(sample)},
    }  # fmt: skip


def measure(
    data: str, split: str, against: str, *, workers: int, n: int | None, out: Path | None, pictures: int
) -> dict[str, Any]:
    """Return the costs of all; with `n`, imagededup is given the first n images of each split. `out` keeps our run."""
    result: dict[str, Any] = {"data": data, "workers": workers, "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as place:
        result["robustdup"] = ours(data, split, against, out or Path(place) / "run", workers, pictures)
        files = []
        for name in (split, against):
            rows = open_samples(data, DataOptions(split=name), load_plugins())
            pixels, _ = load_pixels(rows, range(min(n or len(rows), len(rows))))
            files.append(detectors.write_images(pixels, Path(place) / "images", prefix=f"{name}-"))
        result["images"] = [len(names) for names in files]
        result |= theirs(Path(place) / "images", (files[0], files[1]), workers)
    return result


def main() -> None:
    """Read the command line and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("data")
    parser.add_argument("--split", default="train")
    parser.add_argument("--against", default="test")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--n", type=int, default=None, help="the first images of each split for imagededup; all if not given"
    )
    parser.add_argument("--out", type=Path, default=None, help="keep our run there")
    parser.add_argument("--pictures", type=int, default=500, help="pairs that our run shows")
    given = parser.parse_args()
    torch.set_num_threads(given.workers)
    result = measure(
        given.data, given.split, given.against, workers=given.workers, n=given.n, out=given.out, pictures=given.pictures
    )
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
