"""An evaluation on corruptions as tables: for the terminal, Markdown and LaTeX."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from robustdup.errors import RobustdupError
from robustdup.records import RECORD_FILE, to_json
from robustdup.records.origin import file_made_here
from robustdup.report.format import NONE, escape, images_taken, number, percent, printable, with_interval
from robustdup.report.tables import as_latex, as_markdown
from robustdup.report.terminal import Form
from robustdup_corruptions.rank import CorruptionRank, corruption_position
from robustdup_corruptions.record import TABLE_FILE, CorruptionRecord


def title(record: CorruptionRecord) -> str:
    """Return what to call an evaluation on corruptions: its model."""
    return f"{record.model.name} · corruptions"


def read_answers(folder: Path) -> pa.Table | None:
    """Return who was right on which corrupted image; None where the folder keeps no such table."""
    try:
        with pq.ParquetFile((folder / TABLE_FILE).absolute()) as file:
            return file.read()
    except (OSError, pa.ArrowInvalid):
        return None


def rank_of(record: CorruptionRecord, folder: Path | None) -> CorruptionRank:
    """Return where a run would stand. Raises UserError where the table of the leaderboard cannot be read."""
    if folder is None:
        return corruption_position(record)
    path = folder / RECORD_FILE
    return corruption_position(record, read_answers(folder), made_here=file_made_here(path) if path.is_file() else None)


def show_corruptions(record: CorruptionRecord, folder: Path | None, *, form: Form = "table") -> None:
    """Print a record on standard output in one of four forms; `json` prints the record and nothing else."""
    if form == "json":
        print(to_json(record))
        return
    record = printable(record)
    caption, head, rows = kinds_table(record)
    if form == "latex":
        print(as_latex(caption, [cell.capitalize() for cell in head], rows, left=2))
        return
    if form == "markdown":
        print(as_markdown(caption, head, rows, left=2))
        return
    console = Console()
    console.print(_verdict(record))
    table = Table(
        title="Accuracy in % by severity",
        box=SIMPLE_HEAD,
        header_style="bold",
        padding=(0, 1, 0, 0),
        title_justify="left",
    )
    for place, name in enumerate(head):
        short = name.removeprefix("severity ") if place > 2 else name.capitalize()
        table.add_column(short, justify="left" if place < 2 else "right", no_wrap=True)
    for row in rows:
        if row[1]:  # the clean accuracy and the mean stand above
            table.add_row(*(escape(cell.removesuffix("%")) for cell in row))
    console.print(table)
    for event in record.events:
        console.print(f"[dim]{escape(event)}", soft_wrap=True, highlight=False)
    try:
        console.print(escape(f"Leaderboard: {rank_of(record, folder).sentence()}"), soft_wrap=True, highlight=False)
    except RobustdupError as error:
        console.print(escape(f"Leaderboard: {error}"), soft_wrap=True, highlight=False)
    if folder is not None:
        console.print(escape(f"Record: {folder}/record.json"), style="dim", soft_wrap=True, highlight=False)


def markdown(record: CorruptionRecord) -> str:
    """Return the result as a Markdown table."""
    caption, head, rows = kinds_table(printable(record))
    return as_markdown(caption, head, rows, left=2)


def mean_name(record: CorruptionRecord) -> str:
    """Return what the mean is over, in words."""
    kinds = 15 - len(record.missing)
    severities = "" if len(record.severities) == 5 else f", severity {', '.join(map(str, record.severities))}"
    return f"mean over {'the fifteen' if kinds == 15 else f'{kinds} of fifteen'} kinds{severities}"


def source_text(record: CorruptionRecord) -> str:
    """Return where the images come from, in words."""
    if record.source == "made":
        return f"made here: {record.made_with}"
    return "published images (.npy)" if record.source == "arrays" else "published images (folders)"


def kinds_table(record: CorruptionRecord) -> tuple[str, list[str], list[list[str]]]:
    """Return (caption, head, rows): accuracy by kind and severity, the mean over the fifteen kinds last."""
    relative = any(kind.relative_error is not None for kind in record.kinds)
    head = ["kind", "family", *(f"severity {severity}" for severity in record.severities), "mean", *["CE"] * relative]
    rows = []
    for kind in record.kinds:
        by_severity = {cell.severity: percent(cell.accuracy.value) for cell in kind.severities}
        cells = [by_severity.get(severity, NONE) for severity in record.severities]
        ratio = [percent(kind.relative_error) if kind.relative_error is not None else NONE] * relative
        rows.append([kind.kind, kind.family, *cells, percent(kind.accuracy.value), *ratio])
    blanks = [""] * len(record.severities)
    if record.clean_accuracy is not None:
        rows.insert(0, ["clean", "", *blanks, with_interval(record.clean_accuracy), *[""] * relative])
    if record.corruption_accuracy is not None:
        mce = [NONE if record.mce is None else percent(record.mce)] * relative
        rows.append([mean_name(record), "", *blanks, with_interval(record.corruption_accuracy), *mce])
    caption = (
        f"{record.model.name} on {record.data.spec}, common corruptions, {record.n} images of each kind and severity, "
        f"{source_text(record)}"
    )
    return caption, head, rows


def _verdict(record: CorruptionRecord) -> Panel:
    lines = Table.grid(padding=(0, 2))
    taken = images_taken(record.data.selection, record.n, record.data.n_total)
    lines.add_row("Model", escape(f"{record.model.name} ({record.model.architecture})"))
    lines.add_row("Data", escape(f"{record.data.spec}: {taken} of each kind and severity"))
    lines.add_row("Images", escape(source_text(record)))
    if record.clean_accuracy is not None:
        lines.add_row("Clean accuracy", f"[bold]{with_interval(record.clean_accuracy)}")
    if record.corruption_accuracy is not None:
        lines.add_row("Corruption accuracy", f"[bold]{with_interval(record.corruption_accuracy)}")
        lines.add_row("", escape(mean_name(record)))
    if record.mce is not None:
        lines.add_row("mCE", f"[bold]{percent(record.mce)}[/] (relative to AlexNet)")
    lines.add_row("Seconds", f"{number(record.seconds, 3)}, of which making images {number(record.making_seconds, 3)}")
    return Panel(lines, title="robustdup eval, corruptions", title_align="left", expand=False)
