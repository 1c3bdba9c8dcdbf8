"""`robustdup study`: many cells of training and evaluation from one recipe, analysed with paired statistics over seeds."""

from __future__ import annotations

import contextlib
import shlex
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from robustdup.cli.flags import RECORD_AS_JSON, split_words
from robustdup.cli.plugged import PluggedGroup
from robustdup.errors import RunError, UserError
from robustdup.records import to_json, write_atomic
from robustdup_study.records import StudyRecord, save_study_record

if TYPE_CHECKING:
    from robustdup_study.recipe import StudyConfig

app = typer.Typer(cls=PluggedGroup, rich_markup_mode=None, add_completion=False)

REPORT_FILE = "report.md"
WORDS = typer.Argument(None, metavar="CONFIG [KEY=VALUE ...]", help="A recipe (YAML), and any setting as KEY=VALUE.")
OUT = typer.Option(None, "--out", help="Folder of the study; studies/NAME if not given.")

TABLE = typer.Option(
    None, "--cells", help="Analyse a table of cells (CSV, or a cells.parquet) and print Markdown; no folder is needed."
)


@app.callback()
def _group() -> None:
    """What duplication does to standard and robust models, with error bars."""


@app.command("run", short_help="Run the cells that are missing, then analyse.")
def run_command(
    words: list[str] = WORDS,
    yes: bool = typer.Option(False, "--yes", help="Run a grid of more than 10,000 cells without asking."),
    retry: bool = typer.Option(False, "--retry", help="Run cells that failed once more."),
    workers: int | None = typer.Option(None, "--workers", help="Cells at a time. [default: one a core, or a GPU]"),
    runner: str | None = typer.Option(None, "--runner", help="local, or ray (a cluster). [default: local]"),
    out: str | None = OUT,
    json: bool = RECORD_AS_JSON,
) -> int:
    """Run the cells that are missing, then analyse: stopped or killed, the same command goes on."""
    config = _recipe(words, out=out, workers=workers, runner=runner)
    typed = [*words, *_typed("--out", out), *_typed("--workers", workers), *_typed("--runner", runner)]
    from robustdup_study.grid import MANY, count_runs
    from robustdup_study.plan import prepare, save_plan
    from robustdup_study.report import LiveStudy
    from robustdup_study.run import choose_where, run_cells, study_folder

    if not yes and count_runs(config) > MANY and sys.stdin.isatty():
        yes = typer.confirm(f"This recipe has {count_runs(config):,} cells. Go on?")
        if not yes:
            print("Nothing was run.", file=sys.stderr)
            return 1
    with contextlib.redirect_stdout(sys.stderr if json else sys.stdout), study_folder(config.folder):
        prepared = prepare(config, yes=yes)
        save_plan(config, prepared.grid)
        view = LiveStudy(enabled=not json and sys.stderr.isatty(), lines=True)
        try:
            with view:
                run_cells(
                    prepared.orders, prepared.run_cell, choose_where(config), config.folder, retry=retry,
                    progress=view.update,
                )  # fmt: skip
        except KeyboardInterrupt:
            again = shlex.join(["robustdup", "study", "run", *typed])
            print(f"Interrupted. Finished cells are kept: go on with\n  {again}", file=sys.stderr)
            return 130
        record = _record(config, typed)
    _show(record, config.folder, json)
    if record.n_complete == 0:
        raise RunError(f"No cell finished. {' '.join(record.remarks[:1])}", code="no-cells")
    return 0


@app.command("report")
def report_command(
    words: list[str] = WORDS,
    cells: Path | None = TABLE,
    out: str | None = OUT,
    json: bool = RECORD_AS_JSON,
) -> int:
    """Analyse the cells that are there, without running any."""
    config = _recipe(words, out=out)
    if cells is not None:
        from robustdup_study.published_cells import record_of_table
        from robustdup_study.report import markdown

        record = record_of_table(
            cells, config, shlex.join(["robustdup", "study", "report", *words, "--cells", str(cells)])
        )
        print(to_json(record) if json else markdown(record))
        return 0
    _show(_record(config, [*words, *_typed("--out", out)]), config.folder, json)
    return 0


@app.command("status", short_help="Say which cells are done, failed and missing.")
def status_command(words: list[str] = WORDS, out: str | None = OUT, json: bool = RECORD_AS_JSON) -> int:
    """Say which cells are done, failed and missing: of the grid as it was run, where only its recipe is named."""
    config = _recipe(words, out=out)
    from robustdup_study.plan import saved_runs
    from robustdup_study.run import results

    as_run = not split_words(words or [])[1]  # the overrides that it was run with need not be typed again
    keys = list(dict.fromkeys(run.key for run in saved_runs(config, as_run=as_run)))
    cells = results(config.folder, keys)
    count = Counter(result.status for result in cells.values())
    missing = len(keys) - len(cells)
    if json:
        import json as encoder

        content = {
            "name": config.name, "cells": len(keys), "complete": count["complete"], "failed": count["failed"],
            "missing": missing, "errors": {key: r.error for key, r in cells.items() if r.status == "failed"},
        }  # fmt: skip
        print(encoder.dumps(content, indent=2))
        return 0
    print(
        f"{config.name}: {count['complete']} of {len(keys)} cells complete, {count['failed']} failed, {missing} missing"
    )
    for key, result in cells.items():
        if result.status == "failed":
            print(f"  {key} failed: {result.error}")
    return 0


def _typed(flag: str, value: object) -> list[str]:
    """Return a flag as it was typed; nothing where it was not."""
    return [] if value is None else [flag, str(value)]


def _recipe(words: list[str], **values: object) -> StudyConfig:
    """Read the recipe; values that were not given are left to it."""
    from robustdup_study.recipe import load_recipe

    file, overrides = split_words(words or [])
    if file is None:
        raise UserError(
            "Name a recipe: quickstart, another of 'robustdup config list study', or a file.", code="missing-recipe"
        )
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", FutureWarning)
        config = load_recipe(file, overrides, {key: value for key, value in values.items() if value is not None})
    for note in notes:
        print(f"Note: {note.message}", file=sys.stderr)
    return config


def _record(config: StudyConfig, words: list[str]) -> StudyRecord:
    """Make the record of the cells that are there, and write record, table and report into the study's folder."""
    from robustdup_study.plan import saved_runs
    from robustdup_study.record import make_record, versions
    from robustdup_study.report import markdown

    command = shlex.join(["robustdup", "study", "run", *words])
    record = make_record(config, saved_runs(config), command=command, versions=versions())
    save_study_record(record, config.folder)
    write_atomic(config.folder / REPORT_FILE, (markdown(record) + "\n").encode())
    return record


def _show(record: StudyRecord, folder: Path, json: bool) -> None:
    from robustdup_study.report import show_study

    if json:
        print(to_json(record))
    else:
        show_study(record, folder)
