"""The page of an evaluation on common corruptions: the mean, a table by kind and severity, and a grid of pictures."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from robustdup.errors import RobustdupError
from robustdup.report.format import duration, images_taken, interval, percent, short, whole
from robustdup.report.html.page import Cell, Figure, Notice, Page, Section, Table
from robustdup.report.runs import Run
from robustdup_corruptions.record import CorruptionRecord
from robustdup_corruptions.tables import mean_name, rank_of, source_text, title

PICTURES_FILE = "images/corrupted.npz"
SIDE = 96  # pixels of a picture in the grid


def corruption_page(run: Run, name: str) -> Page:
    """Return the page of an evaluation on corruptions."""
    record: CorruptionRecord = run.record
    files: dict[str, bytes] = {}
    sections = [_kinds(record), _pictures(run.folder, record, name, files), _reproduce(record)]
    context = {
        "subtitle": _subtitle(record),
        "notices": list(_notices(record)),
        "figures": _figures(run.folder, record),
        "sentence": _sentence(record),
        "segments": [],
        "sections": [section for section in sections if section is not None],
    }
    return Page(name, title(record), "Corruptions", "summary.html.j2", context, files)


def corruption_sections(runs: Sequence[Run], links: Sequence[str]) -> list[Section]:
    """Return what several evaluations on corruptions have side by side."""
    kinds = [kind.kind for kind in runs[0].record.kinds]
    rows = []
    for run, link in zip(runs, links, strict=True):
        record = run.record
        by_kind = {kind.kind: kind.accuracy.value for kind in record.kinds}
        mean = None if record.corruption_accuracy is None else record.corruption_accuracy.value
        row = [Cell(run.name, href=link), Cell(percent(mean), mean)]
        rows.append(row + [Cell(percent(by_kind.get(kind)), by_kind.get(kind)) for kind in kinds])
    table = Table("corruption-runs", "Accuracy by kind", ("Run", "Mean", *kinds), rows)
    return [Section("corruptions", "Common corruptions", "sections/table.html.j2", content=(table,))]


def _subtitle(record: CorruptionRecord) -> list[str]:
    taken = images_taken(record.data.selection, record.n, record.data.n_total)
    return [
        f"{record.data.spec}: {taken} of each kind and severity",
        source_text(record),
        f"{record.model.architecture}, {short(record.model.parameters)} parameters",
        record.created[:10],
    ]


def _notices(record: CorruptionRecord) -> Iterator[Notice]:
    if record.missing:
        yield Notice(
            "warning", f"Kinds that were not evaluated: {', '.join(record.missing)}.", "The mean is over the others."
        )
    if record.source == "made":
        yield Notice(
            "info", "The images were made here, not those that others publish numbers for.", source_text(record)
        )
    for event in record.events:
        if not record.missing or not event.startswith(str(len(record.missing))):
            yield Notice("info", event)


def _figures(folder: Path, record: CorruptionRecord) -> list[Figure]:
    figures = []
    mean, clean = record.corruption_accuracy, record.clean_accuracy
    if mean is not None:
        note = f"{mean_name(record)}; 95% interval {interval(mean.low, mean.high)}"
        figures.append(
            Figure("Corruption accuracy", percent(mean.value), mean.value, "corruption_accuracy.value", note, big=True)
        )
    if clean is not None:
        note = f"95% interval {interval(clean.low, clean.high)}"
        figures.append(Figure("Clean accuracy", percent(clean.value), clean.value, "clean_accuracy.value", note))
    if record.mce is not None:
        figures.append(
            Figure("mCE", percent(record.mce), record.mce, "mce", "errors relative to AlexNet's; lower is better")
        )
    try:
        rank = rank_of(record, folder)
        text = rank.place.text if rank.place is not None else "No rank"
        figures.append(Figure("RobustBench", text, None, "", rank.sentence()))
    except RobustdupError as error:
        figures.append(Figure("RobustBench", "No rank", None, "", str(error)))
    return figures


def _sentence(record: CorruptionRecord) -> str:
    known = [kind for kind in record.kinds if kind.family != "extra"] or record.kinds
    worst, best = min(known, key=lambda k: k.accuracy.value), max(known, key=lambda k: k.accuracy.value)
    return (
        f"The hardest kind is {worst.kind.replace('_', ' ')} ({percent(worst.accuracy.value)}), the easiest "
        f"{best.kind.replace('_', ' ')} ({percent(best.accuracy.value)})."
    )


def _kinds(record: CorruptionRecord) -> Section:
    relative = any(kind.relative_error is not None for kind in record.kinds)
    rows = []
    for number, kind in enumerate(record.kinds):
        cells = [Cell(kind.kind.replace("_", " ")), Cell(kind.family)]
        by_severity = {accuracy.severity: (place, accuracy.accuracy) for place, accuracy in enumerate(kind.severities)}
        for severity in record.severities:
            place, accuracy = by_severity[severity]
            name = f"kinds.{number}.severities.{place}.accuracy.value"
            cells.append(Cell(percent(accuracy.value, 1), accuracy.value, name))
        mean = kind.accuracy
        note = f"95% interval {interval(mean.low, mean.high)}"
        cells.append(Cell(percent(mean.value), mean.value, f"kinds.{number}.accuracy.value", note, bar=mean.value))
        if relative:
            cells.append(Cell(percent(kind.relative_error), kind.relative_error))
        rows.append(cells)
    headings = (
        "Kind",
        "Family",
        *(f"Severity {severity}" for severity in record.severities),
        "Mean",
        *["CE"] * relative,
    )
    table = Table("kinds-table", "Accuracy by kind and severity", headings, rows, left=2)
    return Section("kinds", "By kind and severity", "sections/table.html.j2", record.interval_about, (table,))


def _pictures(folder: Path, record: CorruptionRecord, name: str, files: dict[str, bytes]) -> Section | None:
    """A grid of pictures: the first sample, a row a kind, a column a severity, in one file."""
    pictures = _read_pictures(folder)
    wanted = [[f"{kind.kind} {severity}" for severity in record.severities] for kind in record.kinds]
    if pictures is None or any(key not in pictures for row in wanted for key in row):
        return None
    shape = pictures[wanted[0][0]].shape
    factor = max(1, SIDE // max(shape[:2]))
    rows = [np.concatenate([_as_picture(pictures[key], factor, shape) for key in row], axis=1) for row in wanted]
    content = io.BytesIO()
    Image.fromarray(np.concatenate(rows, axis=0)).save(content, "PNG", compress_level=6)
    place = f"{name}-corruptions.png"
    files[place] = content.getvalue()
    lead = "The first sample under each kind, by severity."
    grid = {
        "file": place, "columns": [str(severity) for severity in record.severities],
        "rows": [kind.kind.replace("_", " ") for kind in record.kinds],
    }  # fmt: skip
    return Section("pictures", "What the model was shown", "sections/corruptions.html.j2", lead, grid)


def _read_pictures(folder: Path) -> dict[str, Any] | None:
    try:
        with np.load(folder / PICTURES_FILE, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile):
        return None


def _as_picture(image: Any, factor: int, shape: tuple[int, ...]) -> Any:
    """Return uint8 (H, W, 3), enlarged by whole pixels; a blank where the shape is another (folders of photographs)."""
    if image.shape != shape or image.dtype != np.uint8 or image.ndim != 3:
        image = np.full(shape, 128, dtype=np.uint8)
    colours = image if image.shape[2] == 3 else np.repeat(image[..., :1], 3, axis=2)
    return colours.repeat(factor, axis=0).repeat(factor, axis=1)


def _reproduce(record: CorruptionRecord) -> Section:
    facts = {
        "Command": record.command,
        "Images": source_text(record),
        "Seed": str(record.seed),
        "Model weights": record.model.fingerprint,
        "Images and labels": record.data.fingerprint,
        "Time": f"{duration(record.seconds)}, of which making images {duration(record.making_seconds)}",
        "Images of each kind and severity": whole(record.n),
        "Versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
    }
    return Section("reproduce", "Run it again", "sections/facts.html.j2", content=facts)
