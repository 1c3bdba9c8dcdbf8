"""Which leaderboard's images a record was measured on: by the hashes of the pixels, else only by the dataset's name."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from robustdup.leaderboard.table import Result
from robustdup.records import EvaluationRecord
from robustdup.records.columns import numbers, texts

DATA = Path(__file__).parent / "data"

# After the last part of a data spec. CIFAR-10.1, CIFAR-10-C, ImageNet-A and their like are other images.
_NAMES = (
    ("cifar10", re.compile(r"cifar[-_]?10(?!\d|\.\d)(?![-_]?(c(?![a-z])|corrupt))", re.I)),
    ("cifar100", re.compile(r"cifar[-_]?100(?!\d|\.\d)(?![-_]?(c(?![a-z])|corrupt))", re.I)),
    ("imagenet", re.compile(r"(imagenet|ilsvrc)([-_]?(1k|2012|ilsvrc|val|validation)([-_].*)?)?$", re.I)),
)
_SHAPES = {"cifar10": [3, 32, 32], "cifar100": [3, 32, 32]}
_TEST_SPLITS = {"test", "val", "valid", "validation", "eval"}


class ImageCheck(Result):
    """Whether a record's images are the leaderboard's: how many of its samples could be checked, how many differ."""

    dataset: str | None
    status: Literal["match", "differ", "unchecked", "unknown dataset"]
    n_samples: int
    n_checked: int = 0
    n_differ: int = 0
    reasons: list[str] = Field(default_factory=list)
    text: str = ""


@dataclass(frozen=True)
class KnownImages:
    """The first images of a test set, in order: the first 16 hex digits of each hash, and the label."""

    hashes: np.ndarray
    labels: np.ndarray


@cache
def reference() -> KnownImages:
    """Return the first 500 images of CIFAR-10's test set, as hashes and labels."""
    content = json.loads((DATA / "cifar10_test_head.json").read_text(encoding="utf-8"))
    return KnownImages(np.array(content["hashes"]), np.array([int(digit) for digit in content["labels"]]))


def dataset_by_name(spec: str) -> str | None:
    """Return cifar10, cifar100 or imagenet where the last part of a data spec names it; None otherwise."""
    last = re.split(r"[/\\:]", spec.rstrip("/\\"))[-1]
    return next((name for name, pattern in _NAMES if pattern.match(last)), None)


def check_images(record: EvaluationRecord, samples: pa.Table | None) -> ImageCheck:
    """Say which leaderboard's images a record has; hashes come before the name of the data."""
    named = dataset_by_name(record.data.spec)
    if samples is None or samples.num_rows == 0:
        return _by_name(record, named, record.n)
    known = reference()
    clean = texts(samples, "attack").where(lambda name: name == "clean")
    index, n_samples = numbers(samples, "index"), int(clean.sum())
    inside = np.flatnonzero(clean & (index >= 0) & (index < len(known.hashes)))
    if not len(inside):
        return _by_name(record, named, n_samples)
    known_index = index[inside]
    digests = texts(samples, "image_sha256").at(inside).astype("U16")  # cut off: that many digits are known
    same_image = digests == known.hashes[known_index]
    if not same_image.any() and named != "cifar10" and not np.isin(digests, known.hashes).any():
        return _by_name(record, named, n_samples)
    return _compared(digests, same_image, numbers(samples, "label")[inside] == known.labels[known_index], n_samples)


def _compared(digests: np.ndarray, same_image: np.ndarray, same_label: np.ndarray, n: int) -> ImageCheck:
    checked, differ = len(digests), int((~same_image).sum())
    reasons = []
    if differ:
        moved = int(np.isin(digests[~same_image], reference().hashes).sum())
        where = f" ({moved} of them are the leaderboard's in another order)" if moved else ""
        cause = "" if moved else " A copy stored as JPEG, resized or augmented differs in this way."
        reasons.append(
            f"the images are not the leaderboard's: {differ} of {checked} checked samples have other pixels "
            f"than CIFAR-10's test set{where}.{cause}"
        )
    wrong = int((same_image & ~same_label).sum())
    if wrong:
        reasons.append(f"{wrong} of {checked} checked samples carry another label than in CIFAR-10's test set")
    rest = "" if checked == n else ", the others unchecked: their hashes do not ship"
    text = f"{'not ' if reasons else ''}the leaderboard's images, checked on {checked} of {n} samples{rest}"
    status: Literal["match", "differ"] = "differ" if reasons else "match"
    return ImageCheck(
        dataset="cifar10", status=status, n_samples=n, n_checked=checked, n_differ=differ, reasons=reasons, text=text
    )


def _by_name(record: EvaluationRecord, named: str | None, n: int) -> ImageCheck:
    """Without hashes to compare, only the name, the split and the shape can speak."""
    if named is None:
        reason = f"the data {record.data.spec!r} has no RobustBench leaderboard (cifar10, cifar100 and imagenet have)"
        return ImageCheck(dataset=None, status="unknown dataset", n_samples=n, reasons=[reason], text=reason)
    reasons = []
    if record.data.split.lower() not in _TEST_SPLITS:
        reasons.append(f"the split is {record.data.split!r}; the leaderboard has test images")
    shape = _SHAPES.get(named)
    if shape is not None and list(record.data.image_shape) != shape:
        reasons.append(f"the images have shape {record.data.image_shape}; the leaderboard's have {shape}")
    text = f"images not checked: {named} by the name of the data only"
    if named == "imagenet":
        text += "; RobustBench takes its own list of 5,000 validation images"
    status: Literal["differ", "unchecked"] = "differ" if reasons else "unchecked"
    return ImageCheck(dataset=named, status=status, n_samples=n, reasons=reasons, text=text)
