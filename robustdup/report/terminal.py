"""Records in the terminal: a panel, tables, and what one would paste into a paper."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table

from robustdup.errors import RobustdupError
from robustdup.leaderboard import position
from robustdup.records import (
    RECORD_FILE,
    Escalation,
    EvaluationRecord,
    bound_text,
    doubt_text,
    doubts,
    load_samples,
    proven_text,
    to_json,
)
from robustdup.records.origin import file_made_here
from robustdup.report.format import escape, folded_spec, images_taken, percent, printable, short, with_interval
from robustdup.report.tables import alone_text, as_latex, as_markdown, ball_label, run_table

Form = Literal["table", "json", "latex", "markdown"]

SHORTEST_NAME = 16  # columns of a terminal for the name of an attack, before columns are left out
LEAST_NAME = 6  # where no more columns can be left out; a terminal narrower than that makes breaks the lines itself
# Columns that a narrow terminal does without: the record has them, and a line below the table tells of violations.
FIRST_TO_GO = ("Seconds", "Backward", "Forward", "Violations")

SEVERITY_STYLE = {"info": "blue", "warning": "yellow", "serious": "bold red"}


def show_record(
    record: EvaluationRecord, folder: Path | None, *, form: Form = "table", bundle: str | None = None
) -> None:
    """Print a record on standard output in one of four forms; `json` prints the record and nothing else."""
    if form == "json":
        print(to_json(record))
        return
    record = printable(record)
    if form == "latex":
        print(latex_table(record))
    elif form == "markdown":
        print(markdown_table(record))
    else:
        console = Console()
        console.print(verdict_panel(record))
        table = attack_table(record, console.width)
        width = console.measure(table, options=console.options.update_width(1000)).maximum
        Console(width=max(console.width, width)).print(table)  # no number is cut where the terminal breaks its lines
        for part in [*remarks(record), escape(f"Leaderboard: {_position(record, folder)}")]:
            console.print(part, soft_wrap=True, highlight=False)
        if folder is not None:
            console.print(escape(f"Record: {folder}/record.json"), style="dim", soft_wrap=True, highlight=False)
        if bundle is not None:
            console.print(escape(f"Evidence: robustdup verify {bundle}"), style="dim", soft_wrap=True, highlight=False)


def console(*, wide: bool = False) -> Console:
    """Return a console on standard output, as wide as the terminal or as COLUMNS says, else of 80 columns.

    `wide`: a list with a line an entry, which is not to be cut where it goes into a file or a pipe.
    """
    unknown_width = wide and not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=200 if unknown_width else None, soft_wrap=True, highlight=False)


def verdict_panel(record: EvaluationRecord) -> Panel:
    """Return what a run says of its model, in a box."""
    lines = Table.grid(padding=(0, 2))
    for line in verdict_lines(record):
        lines.add_row(*line)
    about = escape(record.interval_about)
    return Panel(Group(lines, "", f"[dim]{about}"), title="robustdup eval", title_align="left", expand=False)


def verdict_lines(record: EvaluationRecord) -> list[tuple[str, str]]:
    """Return what a run says of its model, a pair of texts (in rich's markup) a line: what it is, and its value."""
    lines = [
        ("Model", escape(_model_text(record))),
        (
            "Data",
            f"{escape(record.data.spec)}, {escape(record.data.split)}: "
            + escape(images_taken(record.data.selection, record.n, record.data.n_total)),
        ),
        ("Threat model", escape(record.threat.text)),
        ("Clean accuracy", f"[bold]{with_interval(record.clean_accuracy)}"),
    ]
    expected = " (expected)" if record.model.randomized else ""
    if record.model.batch_dependent:
        expected += f" (in batches of {record.model.judged_in_batches_of})"
    doubt = doubt_text(record)
    if doubt:
        lines.append(("[bold red]Robust accuracy", f"[bold red]{bound_text(record)}, {escape(doubt)}"))
    else:
        lines.append(("Robust accuracy", f"[bold]{with_interval(record.robust_accuracy)}{expected}"))
    lines += [(f"  {escape(ball.name)} alone", alone_text(ball)) for ball in record.union]
    if record.certification is not None:
        lines.append(("  both sides", f"[bold]{proven_text(record)}"))
    if record.robust_accuracy_8bit is not None:
        lines.append(("  after 8-bit rounding", percent(record.robust_accuracy_8bit)))
    if record.n_undecided:
        lines.append(("[yellow]Undecided", f"[yellow]{record.n_undecided} samples: counted only in the upper end"))
    return lines


def _model_text(record: EvaluationRecord) -> str:
    model = record.model
    origin = "from Python" if model.name != model.spec else model.architecture
    return f"{model.name} ({origin}, {model.parameters:,} parameters)"


def attack_columns(record: EvaluationRecord) -> dict[str, list[str]]:
    """Return what each attack did, by column; undecided samples and violations only where there are any."""
    columns = {
        "Samples": [str(attack.n_attacked) for attack in record.attacks],
        "Broken": [str(attack.n_broken) for attack in record.attacks],
        "Robust": [percent(attack.robust_accuracy_after) for attack in record.attacks],
        "Seconds": [f"{attack.seconds:.1f}" for attack in record.attacks],
        "Forward": [short(attack.forward_passes) for attack in record.attacks],
        "Backward": [short(attack.backward_passes) for attack in record.attacks],
    }
    if any(attack.n_undecided for attack in record.attacks):
        columns["Undecided"] = [str(attack.n_undecided) for attack in record.attacks]
    if any(attack.violations for attack in record.attacks):
        columns["Violations"] = [str(attack.violations) for attack in record.attacks]
    return columns


def attack_table(record: EvaluationRecord, width: int) -> Table:
    """Return one row an attack, no number cut at `width` columns."""
    columns = attack_columns(record)
    for name in FIRST_TO_GO:
        if _room_for_names(columns, width) < SHORTEST_NAME:
            columns.pop(name, None)
    room = max(LEAST_NAME, _room_for_names(columns, width))
    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("Attack", overflow="fold", min_width=min(SHORTEST_NAME, room))
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for attack, cells in zip(record.attacks, zip(*columns.values(), strict=True), strict=True):
        style = "yellow" if attack.n_undecided or attack.violations else ""
        table.add_row(escape(folded_spec(ball_label(attack), room)), *cells, style=style)
    return table


def _room_for_names(columns: dict[str, list[str]], width: int) -> int:
    """Return how many of `width` columns are left beside these columns, three between two, and one at either edge."""
    return width - 2 - sum(3 + max(map(len, [name, *cells])) for name, cells in columns.items())


def remarks(record: EvaluationRecord) -> list[str]:
    """Return what is to be said besides, in rich's markup: curve, distances, violations, warnings, diagnostics."""
    lines = []
    if any(ball.n_open for ball in record.union):
        lines.append(
            "What one norm has broken was not attacked in the next, so that accuracies in one norm alone are bounds; "
            "--each-norm attacks all samples in each."
        )
    if record.environment.attack_precision != "fp32":
        usual = ", as torch's own defaults have it on this device" if record.config.get("precision") == "auto" else ""
        attacks, judge = escape(record.environment.attack_precision), escape(record.environment.judge_precision)
        lines.append(f"Attacks computed in {attacks}{usual}; the referee judged in {judge}.")
    if record.curve:
        points = ", ".join(f"{eps}: {percent(point.value)}" for eps, point in record.curve.items())
        lines.append(escape(f"Robust accuracy over eps{', at most' if doubts(record) else ''}: {points}"))
    if record.min_distance is not None:
        distances = record.min_distance
        median = f"median {distances.median:.4g}" if distances.median is not None else "median above what was found"
        points = ", ".join(f"{eps}: {percent(left)}" for eps, left in list(distances.curve.items())[1::2])
        norm = escape(record.threat.norm)
        lines.append(f"Smallest eps found ({norm}): {median}, for {distances.n_found} of {distances.n} samples.")
        lines.append(escape(f"Robust accuracy over eps, at most: {points}"))
    if record.escalation is not None:
        lines.append(_escalation(record.escalation))
    for attack in record.attacks:
        if attack.distances is not None and attack.distances.median is not None:
            lines.append(
                f"{escape(attack.name)}: median distance {attack.distances.median:.4g} over {attack.distances.n} examples "
                f"({escape(attack.ball.split()[0] if attack.ball else record.threat.norm)})"
            )
        if attack.violations:
            kinds = ", ".join(f"{escape(name)} {count}" for name, count in attack.violation_kinds.items())
            lines.append(
                f"[yellow]{escape(attack.name)} left its threat model on {attack.violations} samples ({kinds}; worst excess "
                f"{attack.worst_excess:.2g}); their projections were judged, {attack.rejected_claims} claims were refused."
            )
        if attack.warning:
            lines.append(f"[yellow]{escape(attack.name)}: {escape(attack.warning)}")
    lines += [f"[dim]{escape(event)}" for event in record.events]
    for sign in record.diagnostics:
        style = SEVERITY_STYLE[sign.severity]
        lines.append(f"[{style}]{sign.severity}: {escape(sign.message)}[/] {escape(sign.advice)}")
    return lines


def _escalation(escalation: Escalation) -> str:
    if escalation.escalated:
        return f"[yellow]The full ensemble was run: {escape('; '.join(escalation.reasons))}."
    return "[dim]No sign of masked gradients, so the stages for masked models were left out."


def _position(record: EvaluationRecord, folder: Path | None) -> str:
    try:
        samples = load_samples(folder) if folder is not None else None
        made_here = file_made_here(folder / RECORD_FILE) if folder is not None else None
        return position(record, samples, made_here=made_here).sentence()
    except RobustdupError as error:
        return str(error)


def markdown_table(record: EvaluationRecord) -> str:
    """Return the result as a Markdown table."""
    return as_markdown(*run_table(printable(record)))


def latex_table(record: EvaluationRecord) -> str:
    """Return the result as a LaTeX table (booktabs), escaped."""
    caption, head, rows = run_table(printable(record))
    return as_latex(caption, [title.capitalize() for title in head], rows)
