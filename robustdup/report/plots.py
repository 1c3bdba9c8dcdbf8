"""Figures for papers, from records alone: sized for one column or two, in colours that colour-blind readers tell apart.

The same record gives the same bytes. Text in PDF files is text, in a font that is embedded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from robustdup.errors import UserError, unknown
from robustdup.plugins import FigureSpec, record_kinds
from robustdup.records import write_atomic
from robustdup.report.charts import Chart, Series
from robustdup.report.runs import Run, UnfinishedRun
from robustdup.report.svg import SVG, draw, text_of
from robustdup.report.vega import PAPER_LOOK, legend, specification

Width = Literal["one", "two"]
WIDTHS: dict[str, float] = {"one": 3.25, "two": 6.75}  # inches, as the columns of most conferences
FORMATS = ("pdf", "svg", "png")
INCH = 72  # points
DPI = 300


def all_kinds() -> dict[str, tuple[FigureSpec, str]]:
    """Return the kinds of figures of robustdup and of installed plugins by name, each with the schema of its records."""
    kinds: dict[str, tuple[FigureSpec, str]] = {}
    for schema, kind in record_kinds().items():
        for name, figure in kind.figures.items():
            kinds.setdefault(name, (figure, schema))
    return kinds


def plot(
    runs: Sequence[Run | UnfinishedRun],
    to: Path,
    *,
    kind: str | None = None,
    width: Width = "one",
    overwrite: bool = False,
) -> Path:
    """Draw runs into a file whose ending names the format (pdf, svg, png), and return its path.

    Args:
        kind: A kind of figure; the usual one for such runs if not given: `curve` where an evaluation has several eps,
            otherwise `accuracy` for several evaluations and `cascade` for one.
        width: one or two columns, see WIDTHS.
        overwrite: Replace a file that is there.

    Raises:
        UserError: For an unknown kind or format, and for runs that hold nothing to draw.
    """
    ending = to.suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        text = f"A figure is written as {', '.join(FORMATS)}; {str(to)!r} ends in {to.suffix!r}."
        raise UserError(text, code="unknown-format")
    if width not in WIDTHS:
        raise unknown("width", width, WIDTHS)
    kinds = all_kinds()
    chosen = kind or usual_kind(runs)
    if chosen not in kinds:
        raise unknown("figure", chosen, kinds)
    figure, schema = kinds[chosen]
    unfit = next((run for run in runs if _schema(run) != schema), None)
    if unfit is not None:
        fits = ", ".join(name for name, (_, other) in kinds.items() if other == _schema(unfit)) or "none"
        text = f"A figure of kind {chosen!r} cannot be drawn of {str(unfit.folder)!r}. Kinds that can: {fits}."
        raise UserError(text, code="unfit-figure")
    if figure.one_run and len(runs) != 1:
        text = f"A figure of kind {chosen!r} is about one run; {len(runs)} were given."
        raise UserError(text, code="one-run")
    if to.exists() and not overwrite:
        text = f"{str(to)!r} is there already. Choose another --to, or replace it with --overwrite."
        raise UserError(text, code="file-exists")
    write_atomic(to, as_file(figure.chart(runs, width), width, ending))
    return to


def _schema(run: Run | UnfinishedRun) -> str:
    return run.kind.schema if isinstance(run, Run) else ""


def usual_kind(runs: Sequence[Run | UnfinishedRun]) -> str:
    """Return the first kind of figure that says it suits runs, or the first of their kind."""
    finished = [run for run in runs if isinstance(run, Run)]
    figures = finished[0].kind.figures if finished else {}
    alike = [run for run in finished if run.kind is finished[0].kind]
    suiting = (name for name, figure in figures.items() if figure.suits is None or figure.suits(alike))
    return next(suiting, "cascade")


def as_file(drawing: Any, width: str, ending: str) -> bytes:
    """Return what a figure's function made, as the content of a file.

    Args:
        drawing: A chart, rows of charts, a specification of Vega-Lite (as `altair.Chart.to_dict()` gives it), or an SVG.
        width: one or two columns.
        ending: pdf, svg or png.
    """
    import vl_convert

    points = WIDTHS[width] * INCH
    if isinstance(drawing, str):
        root, height = _scaled(ElementTree.fromstring(drawing), points)
        parts = [(root, 0.0, 0.0)]
    elif isinstance(drawing, Mapping):
        root, height = _scaled(draw(drawing), points)
        parts = [(root, 0.0, 0.0)]
    else:
        parts, height = _laid_out([[drawing]] if isinstance(drawing, Chart) else drawing, points)
    size = {"viewBox": f"0 0 {points:g} {height:g}"}
    if ending == "svg":
        size |= {"width": f"{points:g}pt", "height": f"{height:g}pt"}
    else:
        size |= {"width": f"{points:g}", "height": f"{height:g}"}
    whole = ElementTree.Element(f"{{{SVG}}}svg", size)
    ElementTree.SubElement(whole, f"{{{SVG}}}rect", {"width": "100%", "height": "100%", "fill": "#ffffff"})
    for part, x, y in parts:
        part.attrib |= {"x": f"{x:g}", "y": f"{y:g}"}
        whole.append(part)
    text = text_of(whole)
    if ending == "pdf":
        return _in_order(vl_convert.svg_to_pdf(text))
    if ending == "png":
        return bytes(vl_convert.svg_to_png(text, scale=1.0001, ppi=DPI))  # a hair more: pixels are rounded down
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'.encode()


def _in_order(pdf: bytes) -> bytes:
    """Sort the names of each object's resources, which come in the order of a hash table; no byte changes its place else."""
    return re.sub(rb"(?:[ ]+/[a-z]+\d+ \d+ 0 R\n)+", lambda match: b"".join(sorted(match[0].splitlines(True))), pdf)


def _scaled(root: ElementTree.Element, points: float) -> tuple[ElementTree.Element, float]:
    """Make a drawing as wide as the figure, and return its height."""
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    tall = round(points * height / width, 2)
    root.attrib = {"viewBox": root.attrib["viewBox"], "width": f"{points:g}", "height": f"{tall:g}"}
    return root, tall


def _laid_out(
    rows: Sequence[Sequence[Chart]], points: float
) -> tuple[list[tuple[ElementTree.Element, float, float]], float]:
    """Return rows of charts as drawings with their places, under one legend for all, and the height of it all."""
    parts: list[tuple[ElementTree.Element, float, float]] = []
    keys: dict[str, Series] = {key.name: key for row in rows for chart in row for key in chart.keys}
    y = 0.0
    if keys:
        drawn = draw(legend(list(keys.values()), points))
        y = _place(parts, drawn, 0.0, y)
    for row in rows:
        bottom = y
        for column, chart in enumerate(row):
            spec, _ = specification(chart, points / len(row), PAPER_LOOK)
            bottom = max(bottom, _place(parts, draw(spec), column * points / len(row), y))
        y = bottom
    return parts, round(y, 2)


def _place(
    parts: list[tuple[ElementTree.Element, float, float]], root: ElementTree.Element, x: float, y: float
) -> float:
    """Add a drawing at its own size, and return where it ends."""
    width, height = (float(re.sub(r"[a-z]+", "", root.attrib[name])) for name in ("width", "height"))
    root.attrib = {"viewBox": root.attrib["viewBox"], "width": f"{width:g}", "height": f"{height:g}"}
    parts.append((root, x, y))
    return y + height
