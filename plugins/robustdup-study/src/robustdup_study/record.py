"""A study's folder and record: the recipe and its grid kept beside the cells, the table, the analysis, the sentences."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustdup.errors import UserError
from robustdup.records import now, write_atomic
from robustdup_study.analysis import analyse
from robustdup_study.crossover import crossovers
from robustdup_study.grid import Grid, Line, build_grid, check_size
from robustdup_study.paper_2504_00638.claims import judge_claims, set_beside
from robustdup_study.recipe import ELSEWHERE, StudyConfig, label
from robustdup_study.records import (
    GRID_FILE,
    CellOrder,
    CellResult,
    CellStatus,
    StudyRecord,
    StudyRow,
    load_study_record,
)
from robustdup_study.run import RunCell, cell_folder, results, unreadable
from robustdup_study.sentences import conclusions
from robustdup_study.table import varying_factors

ANALYSIS_FILE = "analysis.json"
FEWEST_FOR_FIT = 3  # baselines through which accuracy on shifted data is predicted


@dataclass(frozen=True)
class Prepared:
    """A study that is ready to run: its grid, its orders by key, and the function that runs a cell."""

    grid: Grid
    orders: dict[str, CellOrder]
    run_cell: RunCell


def prepare(config: StudyConfig, *, yes: bool = False) -> Prepared:
    """Check the recipe against what training takes and the data that there is, and return the cells. Raises UserError."""
    check_size(config, yes=yes)
    if config.protocol == "as-published":
        from robustdup_study.paper_2504_00638.protocol import paper_grid
        from robustdup_study.paper_2504_00638.protocol import run_cell as run_published

        grid, run = paper_grid(config), run_published
    else:
        from robustdup.jobs.training import check
        from robustdup.plugins import load_plugins
        from robustdup_study.cell import data_fingerprint, run_cell

        registry = load_plugins(config.plugin)
        grid = build_grid(
            config, registry, lambda train: data_fingerprint(train, registry, config.shifted),
            lambda train: check(train, registry),
        )  # fmt: skip
        run = run_cell
    orders = {
        key: CellOrder(
            key=key, settings={**cell.settings, "plugin": config.plugin} if config.plugin else cell.settings,
            folder=str(cell_folder(config.folder, key).absolute()), measure=config.measure, keep_weights=config.keep_weights,
            device=config.device,
        )
        for key, cell in grid.cells.items()
    }  # fmt: skip
    return Prepared(grid, orders, run)


def recipe_of(config: StudyConfig) -> dict[str, Any]:
    """Return the recipe without what says only how and where it is run."""
    return {key: value for key, value in config.model_dump(mode="json").items() if key not in ELSEWHERE}


def save_plan(config: StudyConfig, grid: Grid) -> None:
    """Keep the grid, so that status and report need no data; and the analysis, with the date on which it was fixed."""
    lines = [{"factors": line.factors, "seed": line.seed, "key": line.key} for line in grid.lines]
    folder = config.folder
    write_atomic(folder / GRID_FILE, _json({"recipe": recipe_of(config), "lines": lines}))
    history = analysis_history(folder)
    analysis = config.analysis.model_dump(mode="json")
    if not history or history[-1]["analysis"] != analysis:
        finished = len(results(folder, list(grid.cells)))
        history.append({"since": now(), "finished": finished, "analysis": analysis})
        write_atomic(folder / ANALYSIS_FILE, _json(history))


def saved_lines(config: StudyConfig) -> list[Line]:
    """Return the lines of the grid that was last run. Raises UserError where nothing was, or another recipe."""
    path = config.folder / GRID_FILE
    if not path.is_file():
        raise UserError(f"There is no study in {str(config.folder)!r} yet: robustdup study run first.")
    content = json.loads(path.read_text(encoding="utf-8"))
    mine, theirs = recipe_of(config), content["recipe"]
    free = ("analysis", "published", "checkpoint")  # may change without changing the cells
    different = [key for key in mine if key not in free and mine[key] != theirs.get(key)]
    if different:
        raise UserError(
            f"{different[0]!r} in the recipe is not what was run in {str(config.folder)!r}. "
            "Run the study again with it (cells that are there are not run twice), or name another --out."
        )
    return [Line(line["factors"], line["seed"], line["key"]) for line in content["lines"]]


def analysis_history(folder: Path) -> list[dict[str, Any]]:
    """Return the analyses that were ever fixed for a folder, the first one first."""
    path = folder / ANALYSIS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def make_record(config: StudyConfig, lines: Sequence[Line], *, command: str, versions: dict[str, str]) -> StudyRecord:
    """Return the record of a study from the cells that are there: complete, or partial with what is missing."""
    folder = config.folder
    keys = list(dict.fromkeys(line.key for line in lines))
    found = results(folder, keys)
    rows = table(lines, found, config)
    _effective_robustness(rows, config)
    analysis = analyse(rows, config.analysis)
    level = 1 - config.analysis.alpha
    crossed = crossovers(rows, found, config.analysis.dose, varying_factors(rows, config.analysis.dose), level)
    remarks = [*_remarks(config, keys, found, rows), *analysis.remarks]
    failed = sum(found[key].status == "failed" for key in found)
    history, fixed = analysis_history(folder), config.analysis.model_dump(mode="json")
    record = StudyRecord(
        run_id=config.name, created=now(), status="complete" if len(found) - failed == len(keys) else "partial",
        name=config.name, command=command, recipe=recipe_of(config),
        factors={name: [label(level) for level in levels] for name, levels in config.factors.items()},
        seeds=config.seed_list, n_cells=len(keys), n_complete=len(found) - failed, n_failed=failed,
        n_missing=len(keys) - len(found), rows=rows, readings=analysis.readings, means=analysis.means,
        comparisons=analysis.comparisons, anova=analysis.anova, crossovers=crossed, conclusions=conclusions(analysis.comparisons),
        remarks=remarks, analysis_since=history[0]["since"] if history else "",
        analysis_changes=_changes(history, fixed), seconds=sum(result.seconds for result in found.values()),
        versions=versions,
    )  # fmt: skip
    if config.published:
        record.published = set_beside(record, [load_study_record(place) for place in config.beside])
        record.claims = judge_claims(record)
    return record


def table(lines: Sequence[Line], found: Mapping[str, CellResult], config: StudyConfig) -> list[StudyRow]:
    """Return the rows of the study: one for each line, or for each measurement of a cell that measures several times."""
    rows = []
    for line in lines:
        result = found.get(line.key)
        place = str(cell_folder(config.folder, line.key))
        if result is None or result.status == "failed":
            error = "" if result is None else result.error
            status: CellStatus = "missing" if result is None else "failed"
            rows.append(
                StudyRow(factors=line.factors, seed=line.seed, cell=line.key, status=status, error=error, folder=place)
            )
            continue
        for one in result.measured:
            metrics = _of_best(one.metrics) if config.checkpoint == "best" else one.metrics
            rows.append(
                StudyRow(
                    factors={**line.factors, **one.factors}, seed=line.seed, cell=line.key, status="complete",
                    metrics=metrics, folder=place,
                )
            )  # fmt: skip
    return rows


def _of_best(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return the metrics with test accuracies of the best checkpoint in the place of the last one's."""
    found = dict(metrics)
    for name in ("clean_accuracy", "robust_accuracy", "worst_class_clean", "worst_class_robust"):
        if f"best_{name}" in metrics:
            found[name] = metrics[f"best_{name}"]
    return found


def _effective_robustness(rows: Sequence[StudyRow], config: StudyConfig) -> None:
    """Add accuracy on shifted data beyond what clean accuracy predicts: a line through the cells without copies, in logits.

    https://arxiv.org/abs/2007.00644
    """
    both = [
        row for row in rows if row.metrics.get("shifted_accuracy") is not None and row.metrics.get("clean_accuracy")
    ]
    at_zero = {
        row.cell: (_logit(row.metrics["clean_accuracy"]), _logit(row.metrics["shifted_accuracy"]))
        for row in both
        if row.factors.get(config.analysis.dose, 0) == 0
    }
    if len({clean for clean, _ in at_zero.values()}) < FEWEST_FOR_FIT:
        return
    from scipy.stats import linregress

    fit = linregress(*zip(*at_zero.values(), strict=True))
    for row in both:
        expected = 1 / (1 + math.exp(-(fit.intercept + fit.slope * _logit(row.metrics["clean_accuracy"]))))
        row.metrics["effective_robustness"] = (row.metrics["shifted_accuracy"] or 0.0) - expected


def _logit(share: float | None) -> float:
    value = min(max(share or 0.0, 1e-4), 1 - 1e-4)
    return math.log(value / (1 - value))


def _remarks(
    config: StudyConfig, keys: Sequence[str], found: Mapping[str, CellResult], rows: Sequence[StudyRow]
) -> list[str]:
    """Return what a reader should know of the cells: failures, what is missing, unequal budgets, other data."""
    remarks = []
    failed = [result for result in found.values() if result.status == "failed"]
    for error in dict.fromkeys(result.error for result in failed):
        cells = [result.key for result in failed if result.error == error]
        remarks.append(f"{len(cells)} cell{'s' * (len(cells) > 1)} failed ({', '.join(cells[:3])}): {error}")
    if len(found) < len(keys):
        remarks.append(f"{len(keys) - len(found)} of {len(keys)} cells have not run: run the study again to go on.")
    remarks += unreadable(config.folder, keys)
    prints = {
        (str(run["data"]["spec"]), str(run["data"]["split"]), str(run["data"]["fingerprint"]))
        for result in found.values()
        if (run := result.run) is not None and run["data"]["selection"] == "all"
    }
    if len(prints) > len({place[:2] for place in prints}):
        remarks.append("The training data changed between cells: their fingerprints differ.")
    if config.baseline_budget is not None:
        remarks += _unequal_steps(config, rows)
    return remarks


def _unequal_steps(config: StudyConfig, rows: Sequence[StudyRow]) -> list[str]:
    """Say where a budget in steps has other steps than the shared cells without copies."""
    steps: dict[str, set[float]] = {}
    for row in rows:
        budget = str(row.factors.get("budget", ""))
        given = config.budgets.get(budget, {})
        if row.metrics.get("steps") is not None and ("steps" in given or "samples" in given):
            steps.setdefault(budget, set()).add(row.metrics["steps"] or 0.0)
    return [
        f"Under the budget {budget} cells have {' or '.join(f'{n:,.0f}' for n in sorted(found))} steps: those without copies "
        f"ran under {config.baseline_budget}. Give the budget the steps that they have."
        for budget, found in steps.items()
        if len(found) > 1
    ]


def _changes(history: Sequence[Mapping[str, Any]], now_: Mapping[str, Any]) -> list[str]:
    changes = [
        f"The analysis was changed on {one['since']}, when {one['finished']} cells were finished."
        for one in history[1:]
        if one["finished"]
    ]
    if history and history[-1]["analysis"] != now_:
        changes.append("The analysis of this report is not the one that was fixed when the study was run.")
    return changes


def versions() -> dict[str, str]:
    """Return the versions of what computed the cells and the analysis."""
    import platform
    from importlib.metadata import version

    names = ("robustdup", "torch", "numpy", "scipy", "statsmodels")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
