"""What a cell of a study is told, and what it leaves: `cell.json` in its folder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from robustdup.records.base import Part, read_record, to_json, write_atomic
from robustdup.runners import tell
from robustdup_study.vocabulary import renamed

CELL_SCHEMA: Literal["robustdup.cell"] = "robustdup.cell"
CELL_VERSION = 2
CELL_FILE = "cell.json"
# What names of version 1 became.
CELL_NAMES_OF_1 = {"measured": "measurements", "readings": "duplication", "points": "samples", "run": "training"}
SAMPLE_NAMES_OF_1 = {"row": "index", "right": "correct", "held": "robust"}


class Measurement(Part):
    """What was measured at one time in a cell: metrics by name (shares in [0, 1], counts, seconds; null where undefined).

    `factors` are those that the cell itself went through, where one cell measures several times.
    """

    factors: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class CellStep:
    """How far the training of a cell is: what a worker tells of it."""

    key: str
    step: int
    n_steps: int


TELL_SECONDS = 0.5


def telling(key: str) -> Callable[[int, int], None]:
    """Return what tells the study, twice a second at most, at which step of how many the training of a cell is."""
    last = -math.inf

    def show(step: int, n_steps: int) -> None:
        nonlocal last
        if time.monotonic() - last >= TELL_SECONDS and n_steps:
            last = time.monotonic()
            tell(CellStep(key, step, n_steps))

    return show


class CellOrder(Part):
    """What a worker needs to run a cell: key and settings, what to measure, and where; device and threads are the worker's.

    Nothing but key, settings and measure changes what comes out.
    """

    key: str
    settings: dict[str, Any]
    folder: str
    measure: dict[str, Any] = Field(default_factory=dict)
    keep_weights: bool = False
    device: str = "auto"
    threads: int | None = None


class CellResult(Part):
    """What one cell leaves: `cell.json` in its folder. `error` says why it failed; `training` is the record of the training.

    `samples` are the training images that were looked at: `index` in the split, `copies` besides the original, `correct` and
    `robust` (0 or 1) whether the answer was right, and still was under attack. `duplication` says how much was duplicated.
    """

    schema_name: Literal["robustdup.cell"] = CELL_SCHEMA
    schema_version: int = CELL_VERSION
    key: str
    created: str
    status: Literal["complete", "failed"]
    error: str = ""
    measurements: list[Measurement] = Field(default_factory=list)
    seconds: float = 0.0
    host: str = ""
    config: dict[str, Any] = Field(default_factory=dict)
    duplication: dict[str, Any] = Field(default_factory=dict)
    samples: dict[str, list[int]] = Field(default_factory=dict)
    training: dict[str, Any] | None = None
    answers: dict[str, str] = Field(
        default_factory=dict,
        description="By metric (clean_accuracy, robust_accuracy): 1 or 0 for each test image in their order, right or wrong.",
    )

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        content = renamed(content, CELL_NAMES_OF_1)
        if isinstance(content.get("samples"), dict):
            content["samples"] = renamed(content["samples"], SAMPLE_NAMES_OF_1)
        return content


def load_cell(path: Path) -> CellResult:
    """Read a cell's result; older versions are upgraded, newer or damaged ones refused (UserError)."""
    return read_record(path, CellResult, schema=CELL_SCHEMA, version=CELL_VERSION, noun="a cell of a study")


def save_cell(result: CellResult, folder: Path) -> Path:
    """Write `cell.json` into a cell's folder, whole or not at all, and return its path."""
    path = folder / CELL_FILE
    write_atomic(path, (to_json(result) + "\n").encode())
    return path
