"""`robustdup data`: put duplicates into a dataset, and say what a dataset holds."""

from __future__ import annotations

import contextlib
import json as jsonlib
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from robustdup.cli.flags import JSON, split_words, with_flags
from robustdup.cli.help import PanelCommand
from robustdup.cli.plugged import PluggedGroup
from robustdup.cli.quiet import diverted
from robustdup.config import DuplicateConfig, build
from robustdup.errors import UserError
from robustdup.records import RECORD_FILE, now
from robustdup.report.format import escape
from robustdup.report.terminal import console

if TYPE_CHECKING:
    from robustdup.jobs.duplication import Duplicated
    from robustdup.records.description import SplitDescription

app = typer.Typer(rich_markup_mode=None, cls=PluggedGroup)

BAR = 30  # letters of the longest bar
LISTED = 20  # unreadable images that are shown


def _duplicate(
    words: list[str],
    flags: dict[str, Any],
    to: str = typer.Option(..., "--to", metavar="FOLDER|hub:OWNER/NAME", help="Where the dataset is written."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the dataset that is there."),
    private: bool = typer.Option(False, "--private", help="Make the dataset on the Hub private."),
    json: bool = typer.Option(False, "--json", help="Print what was made as JSON, and nothing else."),
) -> int:
    """Put duplicates into a dataset and write it where load_dataset reads it: DATA [CONFIG] [KEY=VALUE ...]."""
    data, rest = _data_first(words, flags)
    file, overrides = split_words(rest)
    config = build(DuplicateConfig, file, overrides, {**flags, **({"data": data} if data is not None else {})})

    from robustdup.jobs.duplication import duplicate  # torch is imported from here on

    command = shlex.join(["robustdup", *_arguments(words, flags, to)])
    with _bar("writing", quiet=json) as progress, diverted():
        done = duplicate(config, to, overwrite=overwrite, private=private, command=command, progress=progress)
    if json:
        print(jsonlib.dumps(done.summary(), indent=2))
    else:
        show_duplicated(done, console())
    return 0


def _data_first(words: list[str], flags: dict[str, Any]) -> tuple[str | None, list[str]]:
    """Return (data, the other words): the first plain word is the data, unless it is a configuration file."""
    if not words or "data" in flags or ("=" in words[0] and not Path(words[0]).exists()):
        return None, words
    if Path(words[0]).is_file() and Path(words[0]).suffix in (".yaml", ".yml"):
        return None, words
    return words[0], words[1:]


def _arguments(words: list[str], flags: Mapping[str, Any], to: str) -> list[str]:
    given = [
        f"{name}={','.join(value) if isinstance(value, list) else str(value).lower() if value in (True, False) else value}"
        for name, value in flags.items()
    ]
    return ["data", "duplicate", *words, *given, "--to", to]


def _describe(
    data: str = typer.Argument(help="A Hub dataset id, a local folder or parquet file, or builtin:digits."),
    split: str | None = typer.Option(None, "--split", help="One split; all if not given."),
    data_config: str | None = typer.Option(None, "--data-config", help="Configuration (subset) of a Hub dataset."),
    revision: str | None = typer.Option(None, "--revision", help="Revision of a Hub dataset."),
    image_column: str | None = typer.Option(None, "--image-column", help="Column of the images."),
    label_column: str | None = typer.Option(None, "--label-column", help="Column of the labels."),
    images: bool = typer.Option(
        True, "--images/--no-images", help="Decode every image: sizes, exact duplicates, files that cannot be read."
    ),
    out: str | None = typer.Option(
        None, "--out", metavar="FOLDER", help="Keep the record there, for robustdup report."
    ),
    json: bool = JSON,
) -> int:
    """Say what a dataset holds: classes, multiplicities, effective sample size, duplicates, unreadable images."""
    if out is not None and Path(out).exists() and not (Path(out).is_dir() and not any(Path(out).iterdir())):
        raise UserError(f"{out!r} is there already. Choose another --out; nothing is overwritten.", code="not-empty")
    from robustdup.config import DataOptions
    from robustdup.data.describe import describe
    from robustdup.data.splits import open_splits, split_columns

    options = DataOptions(
        split=split or "train", config=data_config, revision=revision, image_column=image_column,
        label_column=label_column,
    )  # fmt: skip
    source, splits = open_splits(data, options), []
    names = [split] if split is not None else [name for name, rows in source.splits.items() if len(rows)]
    if not names:
        raise UserError(f"There are no rows in {data}.", code="no-data")
    for name in names:
        place = f"{data} ({name})"
        dataset, columns = split_columns(source.get(name), options, place, needs_labels=False)
        with _bar(f"reading {name}", quiet=json) as progress:
            splits.append(describe(dataset, columns, place, images=images, progress=progress))
    if out is not None:
        given = {
            "--split": split, "--data-config": data_config, "--revision": revision, "--image-column": image_column,
            "--label-column": label_column,
        }  # fmt: skip
        words = [word for name, value in given.items() if value is not None for word in (name, value)]
        words += [] if images else ["--no-images"]
        _keep_description(data, splits, shlex.join(["robustdup", "data", "describe", data, *words]), Path(out))
    if json:
        print(jsonlib.dumps([split.model_dump(mode="json") for split in splits], indent=2))
    else:
        for description in splits:
            show_description(description, console())
        if out is not None:
            console().print(escape(f"Record: {Path(out) / RECORD_FILE}"), highlight=False, soft_wrap=True)
    return 0


def _keep_description(data: str, splits: list[SplitDescription], command: str, folder: Path) -> None:
    """Write what was counted as a record that `robustdup report` makes a page of."""
    from robustdup.records.description import DescriptionRecord, save_description

    versions = {name: version(name) for name in ("robustdup", "datasets")}
    record = DescriptionRecord(
        run_id=folder.name, created=now(), command=command, data=data, splits=splits, versions=versions
    )
    save_description(record, folder)


@contextlib.contextmanager
def _bar(text: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Show progress on standard error, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    shown = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*shown, console=Console(stderr=True), transient=True) as view:
        task = view.add_task(text, total=None)
        yield lambda done, total: view.update(task, completed=done, total=total)


def show_duplicated(done: Duplicated, out: Console) -> None:
    """Print where the dataset is, its dose in all readings, and its classes."""
    plan, rates = done.plan, done.plan.readings()
    out.print(escape(f"Written to {done.to}: " + ", ".join(f"{name} {rows:,}" for name, rows in done.rows.items())))
    table = Table(Column(), Column(justify="right"), box=None, pad_edge=False, show_header=False)
    for name, value in (
        ("scheme", f"{plan.scheme} ({plan.mode})"),
        ("dose (share of entries that are copies)", f"{rates.dose:.4%}"),
        ("copies", f"{rates.copies:,} of {rates.copied_samples:,} samples"),
        ("in percent of the source", f"{rates.percent_of_source:.4g}%"),
        ("size against the source", f"{rates.size_factor:.4g}x"),
        ("most entries of one sample", f"{rates.max_multiplicity:,}"),
        ("distinct images", f"{rates.unique:,} (left: {rates.dropped:,})"),
        ("effective sample size (Kish)", f"{rates.effective_sample_size:,.1f}"),
        ("plan", plan.hash),
    ):
        table.add_row(name, value)
    out.print(table, highlight=False)
    most = max(entries for _, _, entries, _ in done.classes)
    rows = [
        (escape(name), f"{rows:,}", f"{entries:,}", f"{copies:,}", _two_bars(entries, copies, most))
        for name, rows, entries, copies in done.classes
    ]
    out.print(_table("class", "source", "entries", "copies", "", rows=rows), highlight=False)
    _notes(done.notes, out)


def show_description(split: SplitDescription, out: Console) -> None:
    """Print one split: what it holds, its classes and its multiplicities as bars, what cannot be read."""
    how = {"source_index": "by the column source_index", "pixels": "by their pixels", "rows": "not compared"}[
        split.same_by
    ]
    out.print(escape(f"{split.place}: {split.entries:,} entries"), style="bold", highlight=False)
    out.print(
        f"distinct samples {split.unique:,} ({how}), copies {split.copies:,} (dose {split.dose:.4%}), "
        f"effective sample size {split.effective_sample_size:,.1f}, samples with conflicting labels {split.conflicts:,}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    for title, counts in (("sizes", split.sizes), ("modes", split.modes)):
        if counts:
            listed = [f"{name}: {n:,}" for name, n in list(counts.items())[:LISTED]]
            out.print(escape(f"{title} {', '.join(listed)}{', …' if len(counts) > LISTED else ''}"), highlight=False)
    most = max(count.entries for count in split.classes)
    rows = [
        (escape(c.name), f"{c.entries:,}", f"{c.copies:,}", f"{c.share:.2%}", _two_bars(c.entries, c.copies, most))
        for c in split.classes
    ]
    out.print(_table("class", "entries", "copies", "share", "", rows=rows), highlight=False)
    if split.copies:
        out.print(_multiplicities(split.multiplicity), highlight=False)
    if split.n_unreadable:
        out.print(f"{split.n_unreadable:,} images cannot be read:", style="yellow", highlight=False)
        for bad in split.unreadable[:LISTED]:
            out.print(escape(f"  row {bad.row}{f' ({bad.path})' if bad.path else ''}: {bad.reason}"), soft_wrap=True)
        if split.n_unreadable > LISTED:
            out.print("  … (more with --json)")
    _notes(split.notes, out)


def _multiplicities(counts: Mapping[int, int]) -> Table:
    """Return a histogram of entries a sample, in powers of two where there are many different numbers."""
    rows = {str(many): n for many, n in sorted(counts.items())}
    if len(counts) > 12:
        rows = {}
        for many, n in sorted(counts.items()):
            low = 1 << (many.bit_length() - 1)
            key = str(low) if low == 1 else f"{low}–{2 * low - 1}"
            rows[key] = rows.get(key, 0) + n
    bars = [(name, f"{n:,}", _two_bars(n, 0, max(rows.values()))) for name, n in rows.items()]
    return _table("entries a sample", "samples", "", rows=bars)


def _table(*headings: str, rows: Sequence[Sequence[str]]) -> Table:
    """Return a table of numbers, which stand at the right, and of bars in the last column, without a heading."""
    columns = (Column(text, justify="left" if text in ("class", "") else "right") for text in headings)
    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table


def _two_bars(entries: int, copies: int, most: int) -> str:
    """Return a bar of the originals with that of the copies, lighter, behind it."""
    whole = round(BAR * entries / most) if most else 0
    behind = round(BAR * copies / most) if most else 0
    whole = max(whole, 1) if entries else 0
    behind = min(whole, max(behind, 1)) if copies else 0
    return "█" * (whole - behind) + "▒" * behind


def _notes(notes: Sequence[str], out: Console) -> None:
    for note in notes:
        out.print(escape(f"Note: {note}"), style="yellow", highlight=False, soft_wrap=True)


WORDS = ("DATA [CONFIG] [KEY=VALUE ...]", "A dataset (as --data), a YAML file, and any setting as KEY=VALUE.")
app.command("duplicate", cls=PanelCommand, short_help="Put duplicates into a dataset, and write it.")(
    with_flags(DuplicateConfig, _duplicate, words=WORDS)
)
app.command("describe", short_help="Say what a dataset holds: classes, copies.")(_describe)


@app.callback()
def _group() -> None:
    """Duplicates in datasets: put them in, count them, find them."""
