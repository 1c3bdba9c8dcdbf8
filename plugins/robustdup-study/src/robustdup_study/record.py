"""The record of a study: its table, the analysis, what a reader should know of the cells, and published figures beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robustdup.records import now
from robustdup_study.analysis import analyse
from robustdup_study.crossover import crossovers
from robustdup_study.effective_robustness import add_effective_robustness
from robustdup_study.grid import Line
from robustdup_study.plan import analysis_history, recipe_of
from robustdup_study.publications import publications
from robustdup_study.recipe import StudyConfig, label
from robustdup_study.records import CellResult, CellStatus, StudyRecord, StudyRow, load_study_record
from robustdup_study.run import cell_folder, results, unreadable
from robustdup_study.sentences import conclusions
from robustdup_study.table import varying_factors


def make_record(config: StudyConfig, lines: Sequence[Line], *, command: str, versions: dict[str, str]) -> StudyRecord:
    """Return the record of a study from the cells that are there: complete, or partial with what is missing."""
    folder = config.folder
    keys = list(dict.fromkeys(line.key for line in lines))
    found = results(folder, keys)
    rows = table(lines, found, config)
    add_effective_robustness(rows, config.analysis.dose)
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
        others = [load_study_record(place) for place in config.beside]
        for publication in publications():
            record.published += publication.figures(record, others) if publication.figures else []
            record.claims += publication.claims(record) if publication.claims else []
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
