"""`robustdup data detect`: find the duplicates that a dataset already holds, and write it without them."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from robustdup.cli.flags import RECORD_AS_JSON, RESUME, split_words, with_flags
from robustdup.cli.runs import configuration
from robustdup.records import to_json
from robustdup.records.folder import fresh_folder
from robustdup.report.format import escape, folded, plural
from robustdup.report.live import Lines
from robustdup.report.terminal import console
from robustdup_detect.options import DetectConfig

if TYPE_CHECKING:
    from robustdup_detect.record import DuplicatesRecord, ImageRef

LISTED = 20  # pairs and unreadable images that are shown
NARROW = 110  # columns of a terminal below which the names of files take several lines
PAIRED = 14  # letters of such a line


def _detect(
    words: list[str],
    flags: dict[str, Any],
    to: str | None = typer.Option(None, "--to", metavar="FOLDER", help="Write the dataset without duplicates there."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace the dataset that is there."),
    resume: str | None = RESUME,
    json: bool = RECORD_AS_JSON,
) -> int:
    """Find exact and near duplicates within a split, or between two splits: DATA [CONFIG] [KEY=VALUE ...]."""
    given = list(words)
    if words and "data" not in flags and _is_data(words[0]):
        flags, words = {**flags, "data": words[0]}, words[1:]
    file, overrides = split_words(words)
    config, folder = configuration(DetectConfig, "against", _fresh, file, overrides, flags, resume)

    from robustdup_detect.run import detect  # torch is imported from here on

    options = [f"{name}={value}" for name, value in flags.items() if name != "data" or value not in given]
    command = shlex.join(["robustdup", "data", "detect", *given, *options, *(["--to", to] if to else [])])
    try:
        with _bars(quiet=json) as progress, contextlib.redirect_stdout(sys.stderr):
            record = detect(
                config,
                folder,
                resume=resume is not None,
                to=to,
                overwrite=overwrite,
                command=command,
                progress=progress,
            )
    except KeyboardInterrupt:
        if not folder.is_dir():
            raise
        again = shlex.quote(str(folder))
        print(f"Interrupted. Nothing is lost: go on with\n  robustdup data detect --resume {again}", file=sys.stderr)
        return 130
    if json:
        print(to_json(record))
    else:
        show_duplicates(record, folder, console())
    return 0


def _is_data(word: str) -> bool:
    return ("=" not in word or Path(word).exists()) and Path(word).suffix not in (".yaml", ".yml")


def _fresh(config: DetectConfig) -> Path:
    return fresh_folder("detect", config.data, config.split)


@contextlib.contextmanager
def _bars(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar for each stage on standard error; a line every half minute where that is no terminal."""
    if quiet or not sys.stderr.isatty():
        lines = Lines()
        yield lambda stage, done, total: lines.say(lambda: f"{stage}: {done:,}/{total:,}")
        return
    shown = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*shown, console=Console(stderr=True), transient=True) as view:
        tasks: dict[str, Any] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = view.add_task(stage, total=total)
            view.update(tasks[stage], completed=done, total=total)

        yield update


def show_duplicates(record: DuplicatesRecord, folder: Path, out: Console) -> None:
    """Print what was found, how sure it is, the first pairs, and where the rest is."""
    from robustdup_detect.record import is_labelled  # pyarrow is imported from here on

    where = f"{record.split} against {record.against}" if record.against else record.split
    images = plural(record.n, "image") if record.n_against is None else f"{record.n:,} x {record.n_against:,} images"
    out.print(escape(f"{record.data} ({where}): {images}"), style="bold", highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    expected = record.expected
    for name, value in (
        ("pairs with identical pixels", f"{record.n_exact:,}"),
        ("near-duplicate pairs", f"{record.n_near:,}"),
        ("of all pairs, mirrored", f"{record.n_mirrored:,}"),
        ("clusters of one picture", f"{record.n_clusters:,}"),
        (f"images of {record.split} in clusters", f"{record.n_rows:,} ({record.n_rows / max(record.n, 1):.2%})"),
        (
            "of these, would leave" if record.against else f"would leave (keep = {record.keep})",
            f"{record.n_redundant:,}",
        ),
        ("clusters with conflicting labels", f"{record.n_conflicts:,}" if is_labelled(record) else "no labels"),
        ("threshold of the score", f"{record.method.threshold:g}"),
        (
            "expected precision of near pairs, by image",
            _percent(expected.precision, expected.precision_low, expected.precision_high),
        ),
        (
            "recall of confirmed pairs"
            if expected.confirmed or expected.recall is None
            else "recall of pairs annotated in CIFAR-10",
            _percent(expected.recall, expected.recall_low, expected.recall_high),
        ),
        ("seconds", f"{sum(record.seconds.values()):.1f}"),
    ):
        table.add_row(escape(name), escape(value))
    out.print(table, highlight=False)
    if record.pairs:
        out.print(_pairs(record, out.width), soft_wrap=False)
    if record.n_unreadable:
        were = "was" if record.n_unreadable == 1 else "were"
        skipped = f"{plural(record.n_unreadable, 'image')} cannot be read and {were} skipped:"
        out.print(skipped, style="yellow", highlight=False)
        for bad in record.unreadable[:LISTED]:
            path = f" ({bad.path})" if bad.path else ""
            out.print(escape(f"  {bad.split} row {bad.row}{path}: {bad.reason}"), soft_wrap=True, highlight=False)
    if expected.recall_by_change:
        kinds = ", ".join(f"{kind} {share:.0%}" for kind, share in expected.recall_by_change.items())
        out.print(escape(f"Of copies made here, found by kind: {kinds}."), highlight=False, soft_wrap=True)
    for note in (expected.about, *record.notes):
        out.print(escape(note), style="dim", highlight=False, soft_wrap=True)
    if record.deduplicated:
        out.print(escape(f"Written without duplicates: {record.deduplicated}"), highlight=False, soft_wrap=True)
    shown = f", {plural(len(record.sheets), 'page')} of pairs in sheets/" if record.sheets else ""
    leaving = ", what would leave and what stays instead: leaving.csv" if record.n_redundant else ""
    out.print(
        escape(f"Record: {folder}/record.json, all pairs: pairs.parquet{leaving}{shown}"), style="dim", soft_wrap=True
    )
    if record.pairs:
        steps = [
            f"robustdup report {shlex.quote(str(folder))} (the pairs side by side)",
            "--decisions FILE (which pairs are none)",
        ]
        if not record.deduplicated:
            steps.append("--to FOLDER (the data without what would leave)")
        out.print(escape(f"Next: {'; '.join(steps)}."), style="dim", soft_wrap=True)


def _pairs(record: DuplicatesRecord, width: int) -> Table:
    """Return the first pairs as a table; `width`: columns of the terminal."""
    names = record.class_names
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    letters = PAIRED if width < NARROW else width
    for heading in (record.split, record.against or record.split, "score", "labels", "how"):
        table.add_column(escape(heading), justify="right" if heading == "score" else "left", no_wrap=heading != "how")
    for pair in record.pairs[:LISTED]:
        labels = [
            "" if side.label is None else names[side.label] if side.label < len(names) else str(side.label)
            for side in (pair.a, pair.b)
        ]
        table.add_row(
            *(escape(folded(_where(side), letters)) for side in (pair.a, pair.b)),
            "same pixels" if pair.kind == "exact" else f"{pair.score:.3f}",
            escape(folded(labels[0] if labels[0] == labels[1] else " / ".join(labels), letters)), pair.change,
            style="yellow" if pair.conflict else "",
        )  # fmt: skip
    return table


def _where(image: ImageRef) -> str:
    """Return the row of an image, or its file where it has one."""
    return image.path or str(image.row)


def _percent(share: float | None, low: float | None = None, high: float | None = None) -> str:
    if share is None:
        return "not known"
    return f"{share:.1%}" if low is None or high is None else f"{share:.1%} [{low:.1%}, {high:.1%}]"


detect_command = with_flags(DetectConfig, _detect)
