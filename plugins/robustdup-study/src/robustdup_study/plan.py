"""What a study is about to run: the cells of its recipe, kept beside them with the date on which the analysis was fixed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, TypeAdapter

from robustdup.errors import UserError, plain
from robustdup.plugins.options import resolved
from robustdup.records import now, write_atomic
from robustdup_study.cell_record import CellOrder
from robustdup_study.grid import Grid, PlannedRun, check_size
from robustdup_study.publications import TRAIN, protocols
from robustdup_study.recipe import ELSEWHERE, StudyConfig
from robustdup_study.records import GRID_FILE
from robustdup_study.run import RunCell, cell_folder, results
from robustdup_study.vocabulary import CONDITION, has_arms, with_conditions

ANALYSIS_FILE = "analysis.json"
T = TypeVar("T")


class SavedRun(BaseModel):
    """A run of the grid: its factors, its seed, and the key of its cell, which is a folder's name."""

    factors: dict[str, Any]
    seed: int
    key: str = Field(pattern=r"^\w[\w.-]*$")


class SavedGrid(BaseModel):
    """What `grid.json` holds."""

    recipe: dict[str, Any]
    runs: list[SavedRun]


class SavedAnalysis(BaseModel):
    """An analysis, since when it was fixed, and how many cells were finished then."""

    since: str
    finished: int
    analysis: dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """A study that is ready to run: its grid, its orders by key, and the function that runs a cell."""

    grid: Grid
    orders: dict[str, CellOrder]
    run_cell: RunCell


def prepare(config: StudyConfig, *, yes: bool = False) -> Prepared:
    """Check the recipe against what its protocol takes and the data that there is, and return the cells.

    Raises:
        UserError: A cell cannot be run, or there are very many and `yes` was not said.
    """
    check_size(config, yes=yes)
    protocol = protocols()[config.protocol]
    grid = protocol.grid(config)
    orders = {
        key: CellOrder(
            key=key, settings={**cell.settings, "plugin": config.plugin} if config.plugin else cell.settings,
            folder=str(cell_folder(config.folder, key).absolute()), measure=config.measure, keep_weights=config.keep_weights,
            device=config.device,
        )
        for key, cell in grid.cells.items()
    }  # fmt: skip
    return Prepared(grid, orders, resolved(protocol.run_cell))


def recipe_of(config: StudyConfig) -> dict[str, Any]:
    """Return the recipe without what says only how and where it is run."""
    return {key: value for key, value in config.model_dump(mode="json").items() if key not in ELSEWHERE}


def save_plan(config: StudyConfig, grid: Grid) -> None:
    """Keep the grid, so that status and report need no data; and the analysis, with the date on which it was fixed."""
    runs = [{"factors": run.factors, "seed": run.seed, "key": run.key} for run in grid.runs]
    folder = config.folder
    write_atomic(folder / GRID_FILE, _json({"recipe": recipe_of(config), "runs": runs}))
    history = analysis_history(config)
    analysis = config.analysis.model_dump(mode="json")
    if not history or history[-1]["analysis"] != analysis:
        finished = len(results(folder, list(grid.cells)))
        history.append({"since": now(), "finished": finished, "analysis": analysis})
        write_atomic(folder / ANALYSIS_FILE, _json(history))


def saved_runs(config: StudyConfig, *, as_run: bool = False) -> list[PlannedRun]:
    """Return the runs of the grid that was last run; `as_run`: even where it was run with other settings than these.

    Raises:
        UserError: Nothing was run, or (without `as_run`) another recipe.
    """
    path = config.folder / GRID_FILE
    if not path.is_file():
        raise UserError(
            f"There is no study in {str(config.folder)!r} yet: run it first, by robustdup study run and the same recipe.",
            code="missing-study",
        )
    content = _read(path, dict[str, Any])
    grid = _read(path, SavedGrid, {**content, "runs": content.get("runs", content.get("lines"))})  # their name before
    if has_arms(grid.recipe):
        grid = _read(path, SavedGrid, with_conditions(grid.model_dump()))
    wanted, saved = recipe_of(config), grid.recipe
    free = ("analysis", "published", "checkpoint")  # may change without changing the cells
    different = [key for key in wanted if key not in free and wanted[key] != saved.get(key)]
    if different and not as_run:
        raise UserError(
            f"{different[0]!r} in the recipe is not what was run in {str(config.folder)!r}. "
            "Run the study again with it (cells that are there are not run twice), or name another --out.",
            code="other-recipe",
        )
    return [PlannedRun(run.factors, run.seed, run.key) for run in grid.runs]


def analysis_history(config: StudyConfig) -> list[dict[str, Any]]:
    """Return the analyses that were ever fixed for a study's folder, the first one first."""
    path = config.folder / ANALYSIS_FILE
    history = [change.model_dump() for change in _read(path, list[SavedAnalysis])] if path.is_file() else []
    return with_conditions(history) if config.protocol == TRAIN and CONDITION in config.factors else history


def _read(path: Path, kind: type[T], content: Any = None) -> T:
    """Return what a file that was saved beside the cells holds, or `content` of it, as its kind. Raises UserError."""
    adapter = TypeAdapter(kind)
    try:
        return adapter.validate_json(path.read_bytes()) if content is None else adapter.validate_python(content)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{str(path)!r} is not what a study wrote there ({plain(error, 200)}). Put back a whole copy, or run the study in "
            "another --out.",
            code="damaged-record",
        ) from None


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()
