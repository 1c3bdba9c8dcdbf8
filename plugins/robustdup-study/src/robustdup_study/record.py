"""The record of a study: its table, the analysis, what a reader should know of the cells, and published figures beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robustdup.records import now
from robustdup_study.analysis import analyse
from robustdup_study.cell_record import CellResult
from robustdup_study.effective_robustness import add_effective_robustness
from robustdup_study.grid import PlannedRun
from robustdup_study.image_differences import image_differences
from robustdup_study.plan import analysis_history, recipe_of
from robustdup_study.publications import publications
from robustdup_study.recipe import StudyConfig, label
from robustdup_study.records import CellStatus, StudyRecord, StudyRun, load_study_record
from robustdup_study.run import cell_folder, results, unreadable
from robustdup_study.scope import scope_of
from robustdup_study.sentences import conclusions
from robustdup_study.sides import Answers, answers_of
from robustdup_study.table import split, varying_factors


def make_record(
    config: StudyConfig, planned: Sequence[PlannedRun], *, command: str, versions: dict[str, str]
) -> StudyRecord:
    """Return the record of a study from the cells that are there: complete, or partial with what is missing."""
    keys = list(dict.fromkeys(run.key for run in planned))
    cells = results(config.folder, keys)
    runs = study_runs(planned, cells, config)
    return record_of(config, runs, cells, keys, command=command, versions=versions)


def record_of(
    config: StudyConfig, runs: list[StudyRun], cells: Mapping[str, CellResult], keys: Sequence[str], *, command: str,
    versions: dict[str, str],
) -> StudyRecord:  # fmt: skip
    """Return the record of these runs; `cells` are the results of `keys` as far as they are at hand."""
    shifted = add_effective_robustness(runs, config.analysis.dose)
    analysis = analyse(runs, config.analysis, _answers(runs, cells, config.analysis.dose))
    level = 1 - config.analysis.alpha
    differences = image_differences(
        runs, cells, config.analysis.dose, varying_factors(runs, config.analysis.dose), level
    )
    remarks = [*_remarks(config, keys, cells, runs), *shifted, *analysis.remarks]
    complete, failed = (len({run.cell for run in runs if run.status == status}) for status in ("complete", "failed"))
    history, fixed = analysis_history(config), config.analysis.model_dump(mode="json")
    record = StudyRecord(
        run_id=config.name,
        created=now(),
        status="complete" if complete == len(keys) else "partial",
        name=config.name,
        command=command,
        recipe=recipe_of(config),
        factors={name: [label(level) for level in levels] for name, levels in config.factors.items()},
        seeds=config.seed_list,
        n_cells=len(keys),
        n_complete=complete,
        n_failed=failed,
        n_missing=len(keys) - complete - failed,
        runs=runs,
        duplication_rates=analysis.duplication_rates,
        means=analysis.means,
        comparisons=analysis.comparisons,
        anova=analysis.anova,
        image_differences=differences,
        conclusions=conclusions(analysis.comparisons),
        remarks=remarks,
        scope=scope_of(config, runs, cells),
        analysis_since=history[0]["since"] if history else "",
        analysis_changes=_changes(history, fixed),
        seconds=sum(result.seconds for result in cells.values()) or _seconds(runs),
        versions=versions,
    )
    if config.published:
        others = [load_study_record(place) for place in config.compare_with]
        for publication in publications():
            record.published += publication.figures(record, others) if publication.figures else []
            record.claims += publication.claims(record) if publication.claims else []
    return record


def study_runs(planned: Sequence[PlannedRun], cells: Mapping[str, CellResult], config: StudyConfig) -> list[StudyRun]:
    """Return the runs of the study: one for each planned, or for each measurement of a cell that measures several times."""
    runs = []
    for run in planned:
        result = cells.get(run.key)
        place = str(cell_folder(config.folder, run.key))
        if result is None or result.status == "failed":
            error = "" if result is None else result.error
            status: CellStatus = "missing" if result is None else "failed"
            runs.append(
                StudyRun(factors=run.factors, seed=run.seed, cell=run.key, status=status, error=error, folder=place)
            )
            continue
        for measurement in result.measurements:
            metrics = _of_best(measurement.metrics) if config.checkpoint == "best" else measurement.metrics
            runs.append(
                StudyRun(
                    factors={**run.factors, **measurement.factors}, seed=run.seed, cell=run.key, status="complete",
                    metrics=metrics, folder=place,
                )
            )  # fmt: skip
    return runs


def _answers(runs: Sequence[StudyRun], cells: Mapping[str, CellResult], dose: str) -> Answers:
    """Return the answers of the cells to single test images, by the place in the design that each stands for."""
    return answers_of(
        [
            (split(run.factors, dose), run.seed, cells[run.cell].answers)
            for run in runs
            if run.status == "complete" and run.cell in cells and cells[run.cell].answers
        ]
    )


def _seconds(runs: Sequence[StudyRun]) -> float:
    """Return the seconds of training of all cells, where their results are not at hand."""
    return sum({run.cell: run.metrics.get("seconds") or 0.0 for run in runs}.values())


def _of_best(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return the metrics with test accuracies of the best checkpoint in the place of the last one's."""
    chosen = dict(metrics)
    for name in ("clean_accuracy", "robust_accuracy", "worst_class_clean", "worst_class_robust"):
        if f"best_{name}" in metrics:
            chosen[name] = metrics[f"best_{name}"]
    return chosen


def _remarks(
    config: StudyConfig, keys: Sequence[str], cells: Mapping[str, CellResult], runs: Sequence[StudyRun]
) -> list[str]:
    """Return what a reader should know of the cells: failures, what is missing, unequal budgets, other data."""
    remarks = []
    failed = [result for result in cells.values() if result.status == "failed"]
    for error in dict.fromkeys(result.error for result in failed):
        same = [result.key for result in failed if result.error == error]
        remarks.append(f"{len(same)} cell{'s' * (len(same) > 1)} failed ({', '.join(same[:3])}): {error}")
    missing = len({run.cell for run in runs if run.status == "missing"})
    if missing:
        verb = "has" if missing == 1 else "have"
        remarks.append(f"{missing} of {len(keys)} cells {verb} not run: run the study again to go on.")
    if not any(result.answers for result in cells.values()):
        remarks.append(
            "Intervals are over seeds, for these test images: the answers to single images, from which an interval over "
            "other images would follow, were not kept."
        )
    remarks += unreadable(config.folder, keys)
    sources = [result.training["data"] for result in cells.values() if result.training is not None]
    prints = {
        (str(data["spec"]), str(data["split"]), str(data["fingerprint"]))
        for data in sources
        if data["selection"] == "all"
    }
    if len(prints) > len({data[:2] for data in prints}):
        remarks.append("The training data changed between cells: their fingerprints differ.")
    if config.baseline_budget is not None:
        remarks += _unequal_steps(config, runs)
    return remarks


def _unequal_steps(config: StudyConfig, runs: Sequence[StudyRun]) -> list[str]:
    """Say where a budget in steps has other steps than the shared cells without copies."""
    steps: dict[str, set[float]] = {}
    for run in runs:
        budget = str(run.factors.get("budget", ""))
        given = config.budgets.get(budget, {})
        if run.metrics.get("steps") is not None and ("steps" in given or "samples" in given):
            steps.setdefault(budget, set()).add(run.metrics["steps"] or 0.0)
    return [
        f"Under the budget {budget} cells have {' or '.join(f'{n:,.0f}' for n in sorted(counts))} steps: those without copies "
        f"ran under {config.baseline_budget}. Give the budget the steps that they have."
        for budget, counts in steps.items()
        if len(counts) > 1
    ]


def _changes(history: Sequence[Mapping[str, Any]], now_: Mapping[str, Any]) -> list[str]:
    changes = [
        f"The analysis was changed on {change['since']}, when {change['finished']} cells were finished."
        for change in history[1:]
        if change["finished"]
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
