"""`robustdup gate RUN`: pass or fail a run, for continuous integration."""

from __future__ import annotations

import os
import time
from pathlib import Path

import typer
from rich.text import Text

from robustdup.cli.flags import JSON
from robustdup.errors import RunError, plain
from robustdup.leaderboard import GateResult
from robustdup.records import find_record, to_json, write_atomic
from robustdup.report.terminal import console

FAILED = 3  # exit code of a gate that failed
STEP_SUMMARY = "GITHUB_STEP_SUMMARY"  # a file that GitHub's workflows name in the environment


def gate(
    run: str = typer.Argument(metavar="RUN", help="The new run: its folder, or its record.json."),
    baseline: str | None = typer.Option(
        None, "--baseline", metavar="RUN", help="An earlier run on the same samples, which must not be better."
    ),
    minimum: str | None = typer.Option(
        None, "--min", metavar="SHARE", help="Robust accuracy that is needed: 0.45, 45%."
    ),
    margin: str = typer.Option("1pt", "--margin", help="Drop against the baseline that is let pass: 1pt, 1%, 0.01."),
    accept_doubt: bool = typer.Option(
        False, "--accept-doubt", help="Let a robust accuracy pass that is an upper bound only (gradients masked)."
    ),
    junit: Path | None = typer.Option(None, "--junit", metavar="FILE", help="Write JUnit XML there."),  # noqa: B008
    sarif: Path | None = typer.Option(None, "--sarif", metavar="FILE", help="Write SARIF there."),  # noqa: B008
    summary: Path | None = typer.Option(  # noqa: B008
        None, "--summary", metavar="FILE", help="Append a summary in Markdown; without it, to GitHub's step summary."
    ),
    picture: Path | None = typer.Option(  # noqa: B008
        None, "--picture", metavar="FILE.png", help="Draw the samples that were lost."
    ),
    as_json: bool = JSON,
) -> int:
    """Pass or fail a run: exit code 0 or 3.

    It fails where robust accuracy is down against the baseline by more than the margin and more than chance (McNemar's
    exact test on the same samples, one-sided, at 1%), where it is below the minimum, and where it is not to be believed.
    """
    from robustdup.api.runs import gate as decide

    started = time.perf_counter()
    result = decide(run, baseline, minimum=minimum, margin=margin, accept_doubt=accept_doubt)
    written = _write(result, find_record(run), junit, sarif, picture, time.perf_counter() - started)
    _append_summary(result, summary)
    if as_json:
        print(to_json(result))
        return 0 if result.passed else FAILED
    out = console()
    out.print(Text(f"{plain(result.model)}, {result.norm}, eps = {result.eps}, {result.n} samples"))
    for check in result.checks:
        out.print(
            Text("passed  " if check.passed else "FAILED  ", style="green" if check.passed else "bold red"), end=""
        )
        out.print(Text(plain(check.message)))
    for note in [*result.notes, *written]:
        out.print(Text(f"Note: {plain(note)}."))
    out.print(Text("The gate is passed." if result.passed else "The gate is failed (exit code 3).", style="bold"))
    return 0 if result.passed else FAILED


def _write(
    result: GateResult, record: Path, junit: Path | None, sarif: Path | None, picture: Path | None, seconds: float
) -> list[str]:
    """Write the files that were asked for, and return what could not be drawn."""
    import robustdup
    from robustdup.report import gate as report

    if junit is not None:
        write_atomic(junit, report.as_junit(result, seconds))
    if sarif is not None:
        write_atomic(sarif, report.as_sarif(result, record, robustdup.__version__))
    if picture is not None:
        drawn = report.picture(result, record.parent)
        if isinstance(drawn, str):
            return [f"no picture: {drawn.rstrip('.')}"]
        write_atomic(picture, drawn)
    return []


def _at_once(name: str, flags: int) -> int:
    """Open a file without waiting for somebody who reads it: a pipe."""
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0), 0o666)


def _append_summary(result: GateResult, summary: Path | None) -> None:
    from robustdup.report.gate import as_summary

    given = os.environ.get(STEP_SUMMARY)
    path = summary or (Path(given) if given else None)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8", opener=_at_once) as file:
            file.write(as_summary(result))
    except OSError as error:
        raise RunError(f"Cannot write {str(path)!r}: {error.strerror or error}.", code="cannot-write") from error
