"""`robustdup compare RUN RUN`: the paired difference of two evaluations on the same samples."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.table import Column, Table
from rich.text import Text

from robustdup.cli.flags import JSON
from robustdup.errors import UserError
from robustdup.leaderboard import PairedDifference, RunComparison
from robustdup.leaderboard import compare as compare_records
from robustdup.leaderboard.agreement import (
    ErrorConsistency,
    RunAgreement,
    agreements,
)
from robustdup.plugins import record_kinds
from robustdup.records import find_record, load_record, load_samples, schema_of, to_json
from robustdup.report.format import escape, folded, percent, plural
from robustdup.report.tables import as_latex, as_markdown, runs_table
from robustdup.report.terminal import console

SHOWN = 20
NARROW = 110  # columns of a terminal below which names and intervals take several lines
PAIRED = 9  # letters of such a line where two names stand beside five numbers


def compare(
    runs: list[str] = typer.Argument(metavar="RUN RUN...", help="Run folders, or their record.json."),  # noqa: B008
    as_json: bool = JSON,
    latex: bool = typer.Option(False, "--latex", help="Print a LaTeX table, a row a run; any number of runs."),
    markdown: bool = typer.Option(False, "--markdown", help="Print a Markdown table, a row a run."),
    transfer: bool = typer.Option(
        False,
        "--transfer",
        help="Also show each run's adversarial images to the models of the others; loads the models.",
    ),
    trust: bool = typer.Option(
        False, "--trust", help="With --transfer: load models that run code from runs of others."
    ),
) -> None:
    """Compare two runs on the same samples: difference A minus B, 95% interval, McNemar's exact test.

    Of more than two runs, or with --latex, --markdown or --transfer: a table with a row a run, and who fails where (error
    consistency, shared failures, transfer). Of runs on corruptions (extra corruptions): accuracies, and who fails where.
    """
    if len(runs) < 2:
        raise UserError("Name at least two runs: robustdup compare RUN RUN.", code="missing-argument")
    schemas = {schema_of(find_record(run)) for run in runs}
    own = next((kind for schema in schemas if (kind := record_kinds().get(schema)) and kind.compare), None)
    if own is not None and own.compare is not None:
        if len(schemas) > 1 or latex or markdown or transfer:
            what = (own.description or own.schema).rstrip(".")
            raise UserError(
                f"This is compared with its own kind alone, without --latex, --markdown and --transfer: {what}.",
                code="not-comparable",
            )
        own.compare(runs, as_json=as_json)
        return
    if len(runs) > 2 or latex or markdown or transfer:
        _table_of_runs(runs, as_json=as_json, latex=latex, markdown=markdown, transfer=transfer, trust=trust)
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


def _table_of_runs(
    runs: list[str], *, as_json: bool, latex: bool, markdown: bool, transfer: bool = False, trust: bool = False
) -> None:
    records = [load_record(run) for run in runs]
    caption, head, rows, left = runs_table(records)
    pairs, reason = ([], "") if latex or markdown else _agreements(runs)
    shares = _transfer(runs, trust=trust) if transfer else None
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
        content = [
            {"run": run, "model": record.model.name, **summary}
            for run, record, summary in zip(runs, records, summaries, strict=True)
        ]
        for (i, j), pair in zip(itertools.combinations(range(len(runs)), 2), pairs, strict=False):
            content[i].setdefault("agreement", []).append({"with": runs[j], **pair.model_dump(mode="json")})
        for summary, given in zip(content, shares or [], strict=False):
            summary["transfer_to"] = dict(zip(runs, given, strict=True))
        print(json.dumps(content, indent=2))
    elif latex:
        print(as_latex(caption, head, rows, left=left))
    elif markdown:
        print(as_markdown(caption, head, rows, left=left))
    else:
        table = grid("", *head, left=left)
        for row in rows:
            numbers = [cell.replace(" [", "\n[") if console().width < NARROW else cell for cell in row[left:]]
            table.add_row(*map(name_cell, row[:left]), *map(escape, numbers))
        console().print(Text(caption))
        console().print(table, highlight=False)
        if pairs:
            console().print(_agreement_table(runs, pairs), highlight=False)
        elif reason:
            console().print(Text(f"Who fails where is not known: {reason}"))
        if shares is not None:
            console().print(_transfer_table(runs, shares), highlight=False)


def without_common_folder(runs: Sequence[str]) -> list[str]:
    """Return the folders of runs without those that all of them lie in."""
    parts = [Path(run).parts for run in runs]
    while min(map(len, parts)) > 1 and len({part[0] for part in parts}) == 1:
        parts = [part[1:] for part in parts]
    return [str(Path(*part)) for part in parts]


def name_cell(name: str, letters: int = 16) -> str:
    """Return a name for a table: on a narrow terminal in lines of so many letters, broken where its words meet."""
    return escape(folded(name, letters) if console().width < NARROW else name)


def grid(title: str, *headings: str, left: int) -> Table:
    """Return a table without lines, whose first columns, `left` of them, stand at the left."""
    columns = (
        Column(heading, justify="left" if place < left else "right", overflow="fold")
        for place, heading in enumerate(headings)
    )
    return Table(*columns, box=None, pad_edge=False, title=title or None, title_justify="left")


def _agreements(runs: list[str]) -> tuple[list[RunAgreement], str]:
    """Return how each two runs agree, or why that cannot be said."""
    try:
        return agreements([(load_record(run), load_samples(find_record(run).parent)) for run in runs]), ""
    except UserError as error:
        return [], str(error)


def _transfer(runs: list[str], *, trust: bool) -> list[list[float | None]]:
    from robustdup import jobs  # torch is imported from here on

    return jobs.transfer(runs, trust=trust)


def _agreement_table(runs: list[str], pairs: Sequence[RunAgreement]) -> Table:
    """Return who fails where, a row a pair of runs."""
    table = grid(
        "Who fails where: error consistency (kappa), 0 is chance",
        *("A", "B", "samples", "clean\nkappa", "robust\nkappa", "broken in\nA, in B\ntoo", "other\nway"),
        left=2,
    )
    for (a, b), pair in zip(itertools.combinations(without_common_folder(runs), 2), pairs, strict=True):
        other = "" if pair.same_threat else " *"
        table.add_row(
            name_cell(a, PAIRED), name_cell(b, PAIRED) + other, str(pair.n_common), _kappa(pair.clean), _kappa(pair.robust),
            percent(pair.broken_too_b), percent(pair.broken_too_a),
        )  # fmt: skip
    if not all(pair.same_threat for pair in pairs):
        table.caption, table.caption_justify = "* another threat model", "left"
    return table


def _kappa(consistency: ErrorConsistency | None) -> str:
    if consistency is None or consistency.kappa is None or consistency.low is None or consistency.high is None:
        return "–"
    gap = "\n" if console().width < NARROW else " "
    kappa, low, high = (
        f"{value:.2f}".replace("-0.00", "0.00") for value in (consistency.kappa, consistency.low, consistency.high)
    )
    return f"{kappa}{gap}[{low}, {high}]"


def _transfer_table(runs: list[str], shares: list[list[float | None]]) -> Table:
    """Return how the adversarial images of each run do on every model."""
    title = "Adversarial images of (row) that mislead the model of (column)"
    names = [name_cell(name) for name in without_common_folder(runs)]
    table = grid(title, "made for", *names, left=1)
    for name, row in zip(names, shares, strict=True):
        table.add_row(name, *map(percent, row))
    return table


def comparison_table(result: RunComparison) -> Table:
    """Return both differences as a table, in percent."""
    numbers = ("A", "B", "A - B", "95% interval", "only A\nright", "only B\nright", "p\n(McNemar)")
    columns = (Column(heading, justify="right", no_wrap=True) for heading in numbers)
    table = Table(Column("accuracy", no_wrap=True), *columns, box=None, pad_edge=False)
    _row(table, "clean", result.clean)
    if result.robust is None:
        table.add_row("robust", "all samples undecided")
    else:
        _row(table, "robust", result.robust)
    return table


def _row(table: Table, name: str, d: PairedDifference) -> None:
    table.add_row(
        name, f"{100 * d.a:.2f}%", f"{100 * d.b:.2f}%", f"{100 * d.difference:+z.2f}",
        f"{100 * d.low:+z.2f} to {100 * d.high:+z.2f}", str(d.only_a), str(d.only_b), f"{d.p_value:.3g}",
    )  # fmt: skip


def _changed(result: RunComparison) -> str:
    if not result.changed:
        return "No sample changed."
    shown = ", ".join(str(sample.index) for sample in result.changed[:SHOWN])
    more = ", … (all with --json)" if len(result.changed) > SHOWN else ""
    return f"{plural(len(result.changed), 'sample')} changed; {'index' if len(result.changed) == 1 else 'indices'}: {shown}{more}"
