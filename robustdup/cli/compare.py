"""`robustdup compare RUN RUN`: the paired difference of two evaluations on the same samples."""

from __future__ import annotations

import json

import typer
from rich.table import Table
from rich.text import Text

from robustdup.cli.leaderboard import console
from robustdup.errors import UserError
from robustdup.leaderboard import PairedDifference, RunComparison
from robustdup.leaderboard import compare as compare_records
from robustdup.records import find_record, load_record, load_samples, to_json
from robustdup.report.format import escape
from robustdup.report.tables import as_latex, as_markdown, runs_table

SHOWN = 20


def compare(
    runs: list[str] = typer.Argument(metavar="RUN RUN...", help="Run folders, or their record.json."),  # noqa: B008
    as_json: bool = typer.Option(False, "--json", help="Print JSON and nothing else."),
    latex: bool = typer.Option(False, "--latex", help="Print a LaTeX table, a row a run; any number of runs."),
    markdown: bool = typer.Option(False, "--markdown", help="Print a Markdown table, a row a run."),
) -> None:
    """Compare two runs on the same samples: difference A minus B, 95% interval, McNemar's exact test.

    Of more than two runs, or with --latex or --markdown: a table with a row a run.
    """
    if len(runs) < 2:
        raise UserError("Name at least two runs: robustdup compare RUN RUN.", code="missing-argument")
    if len(runs) > 2 or latex or markdown:
        _table_of_runs(runs, as_json=as_json, latex=latex, markdown=markdown)
        return
    pairs = [(load_record(run), load_samples(find_record(run).parent)) for run in runs]
    result = compare_records(*pairs[0], *pairs[1])
    if as_json:
        print(to_json(result))
        return
    out = console()
    for line in (f"A: {result.run_a}  {result.model_a}", f"B: {result.run_b}  {result.model_b}"):
        out.print(Text(line))
    out.print(Text(f"{result.n_common} samples, {result.norm}, eps = {result.eps}"))
    out.print(comparison_table(result), highlight=False)
    for note in result.notes:
        out.print(Text(f"Note: {note}."))
    out.print(Text(_changed(result)))


def _table_of_runs(runs: list[str], *, as_json: bool, latex: bool, markdown: bool) -> None:
    records = [load_record(run) for run in runs]
    caption, head, rows, left = runs_table(records)
    if as_json:
        parts = {
            "threat",
            "n",
            "clean_accuracy",
            "robust_accuracy",
            "n_undecided",
            "curve",
            "reliable",
            "unreliable_reasons",
        }
        summaries = [record.model_dump(mode="json", include=parts) for record in records]
        named = zip(runs, records, summaries, strict=True)
        print(
            json.dumps(
                [{"run": run, "model": record.model.spec, **summary} for run, record, summary in named], indent=2
            )
        )
    elif latex:
        print(as_latex(caption, head, rows, left=left))
    elif markdown:
        print(as_markdown(caption, head, rows, left=left))
    else:
        table = Table(box=None, pad_edge=False)
        for place, heading in enumerate(head):
            table.add_column(heading, justify="left" if place < left else "right", overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row))
        console().print(Text(caption))
        console().print(table, highlight=False)


def comparison_table(result: RunComparison) -> Table:
    """Return both differences as a table, in percent."""
    table = Table(box=None, pad_edge=False)
    for heading in ("accuracy", "A", "B", "A - B", "95% interval", "only A\nright", "only B\nright", "p\n(McNemar)"):
        table.add_column(heading, justify="left" if heading == "accuracy" else "right", no_wrap=True)
    _row(table, "clean", result.clean)
    if result.robust is None:
        table.add_row("robust", "all samples undecided")
    else:
        _row(table, "robust", result.robust)
    return table


def _row(table: Table, name: str, d: PairedDifference) -> None:
    table.add_row(
        name, f"{100 * d.a:.2f}%", f"{100 * d.b:.2f}%", f"{100 * d.difference:+.2f}",
        f"{100 * d.low:+.2f} to {100 * d.high:+.2f}", str(d.only_a), str(d.only_b), f"{d.p_value:.3g}",
    )  # fmt: skip


def _changed(result: RunComparison) -> str:
    if not result.changed:
        return "No sample changed."
    shown = ", ".join(str(sample.index) for sample in result.changed[:SHOWN])
    more = ", … (all with --json)" if len(result.changed) > SHOWN else ""
    return f"{len(result.changed)} samples changed; indices: {shown}{more}"
