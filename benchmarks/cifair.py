"""How many of the pairs that people annotated a search found: recall beside what the record promises.

    robustdup data detect DATA --split test --against train --out RUN
    python -m benchmarks.cifair near_train_test.csv RUN

The annotations are a CSV file with the columns TestID, TrainID and Judgment (1: near-duplicate), as of
https://github.com/cvjena/cifair; the run has test images on the first side and training images on the second.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from robustdup_detect.record import load_duplicates, load_pairs

from robustdup.statistics import wilson


def annotated(path: Path) -> set[tuple[int, int]]:
    """Return the annotated near pairs as (test row, training row)."""
    with path.open(newline="", encoding="utf-8") as file:
        return {(int(row["TestID"]), int(row["TrainID"])) for row in csv.DictReader(file) if row["Judgment"] == "1"}


def measure(near: set[tuple[int, int]], run: Path) -> dict[str, Any]:
    """Return the share of the near pairs that a run found, its 95% interval, and what the record expects."""
    table = load_pairs(run).to_pydict()
    pairs = set(zip(table["row_a"], table["row_b"], strict=True))
    record = load_duplicates(run)
    n_found = len(near & pairs)
    expected = record.expected
    return {
        "annotated": len(near), "found": n_found, "recall": n_found / len(near), "interval": wilson(n_found, len(near)),
        "pairs": len(pairs), "images": len(set(table["row_a"])), "threshold": record.method.threshold,
        "expected_precision": (expected.precision, expected.precision_low, expected.precision_high),
        "expected_recall": expected.recall,
    }  # fmt: skip


def main() -> None:
    """Read the command line and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("run", type=Path)
    given = parser.parse_args()
    print(json.dumps(measure(annotated(given.annotations), given.run), indent=2))


if __name__ == "__main__":
    main()
