"""Charts in Vega-Lite (https://vega.github.io/vega-lite), for a page or for paper.

In a page colours are the page's variables. On paper
sizes are points and colours are Okabe and Ito's (https://jfly.uni-koeln.de/color/), which colour-blind readers tell
apart; yellow is left out, which is too light for lines.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from robustdup.report.charts import Axis, Chart, Series, finite
from robustdup.report.format import folded_spec, shortened

PRINTED = 0.6  # points of a figure for a pixel of a page
AREAS = {"square": 1.1, "diamond": 1.5, "triangle": 1.5, "dot": 0.3}  # of a mark, for equal weight to the eye
SYMBOLS = {"triangle": "triangle-up", "ring": "circle", "dot": "circle"}
PAPER = {
    "c0": "#0072B2", "c1": "#D55E00", "c2": "#009E73", "c3": "#CC79A7", "c4": "#E69F00", "c5": "#56B4E9", "c6": "#5A4FB0",
    "c7": "#4D565F", "robust": "#0072B2", "broken": "#D55E00", "worse": "#D55E00", "own": "#000000", "grey": "#8B949E",
    "zone": "#EEEEEE", "ink": "#000000", "muted": "#333333", "line": "#DDDDDD", "strong": "#888888", "bg": "#FFFFFF",
}  # fmt: skip
ROW_NAMES = 0.46  # of the width of a chart, at most, for the names of its rows
ROW_LINES = 4  # lines of such a name
LETTER = 0.52  # width of a letter beside its height
ALIASES = {"worse": "broken", "grey": "muted", "zone": "line"}  # tones that a page has by another name


@dataclass(frozen=True)
class Look:
    """How big things are, in the unit of the drawing, and which colour a tone has."""

    paper: bool
    text: float
    title: float
    line: float
    thin: float
    mark: float  # area of a mark
    font: str = "Liberation Sans, Arial, Helvetica, sans-serif"

    def colour(self, tone: str) -> str:
        """Return the colour of a tone; what stands behind a space in it is no part of its name."""
        name = tone.split()[0]
        return PAPER[name] if self.paper else f"var(--{ALIASES.get(name, name)})"


SCREEN = Look(paper=False, text=12, title=13, line=2.2, thin=1.2, mark=72)
PAPER_LOOK = Look(paper=True, text=7, title=8, line=1.2, thin=0.8, mark=20)


@dataclass
class Drawing:
    """A chart on its way to Vega-Lite: its layers, and what its marks say and where they lead, by number."""

    chart: Chart
    look: Look
    width: float
    layers: list[dict[str, Any]] = field(default_factory=list)
    hints: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, mark: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], **channels: Any) -> None:
        """Add a layer of marks; rows with `tip` are marks that say something."""
        if not rows:
            return
        values = []
        for row in rows:
            tip, href = row.get("tip", ""), row.get("href", "")
            if tip and not self.look.paper:
                self.hints.append((tip, href))
            values.append({k: v for k, v in row.items() if k not in ("tip", "href")})
            if tip and not self.look.paper:
                values[-1]["hint"] = f"hint {len(self.hints) - 1}"
        spoken = any("hint" in value for value in values)
        described = {"description": {"field": "hint"}} if spoken else {}
        self.layers.append(
            {
                "name": f"{name}_{len(self.layers)}",
                "mark": {"aria": spoken, **mark},
                "data": {"values": values},
                "encoding": {**channels, **described},
            }
        )

    def x(self, name: str = "x") -> dict[str, Any]:
        """Return the channel of a column along the x axis."""
        return self._channel(self.chart.x, name, across=True)

    def y(self, name: str = "y") -> dict[str, Any]:
        """Return the channel of a column along the y axis."""
        return self._channel(self.chart.y, name, across=False)

    def _channel(self, axis: Axis, name: str, *, across: bool) -> dict[str, Any]:
        scale = {
            "domain": [axis.low, axis.high], "type": "linear", "nice": False, "zero": False,
            "clamp": True, "reverse": axis.reverse,
        }  # fmt: skip
        return {"field": name, "type": "quantitative", "scale": scale, "axis": self._axis(axis, across=across)}

    def _axis(self, axis: Axis, *, across: bool) -> dict[str, Any]:
        rows_named = axis.reverse and not across
        values = [value for value, _ in axis.ticks]
        texts = [row_lines(text, self.width, self.look) if rows_named else text for _, text in axis.ticks]
        keys = json.dumps([_key(value) for value in values])
        rows = self.chart.y.reverse  # rows have names beside them, and the grid goes up and down
        return {
            "values": values, "labelExpr": f"{json.dumps(texts)}[indexof({keys}, format(datum.value, '.8e'))]",
            "title": self._title(axis, across=across) if self.look.paper else None, "grid": across == rows,
            "ticks": across and not rows, "domain": self.look.paper and (across or not rows),
            "labelOverlap": "greedy" if across or not rows else False, "labelFlush": False,
            "labelLimit": ROW_NAMES * self.width,
        }  # fmt: skip

    def _title(self, axis: Axis, *, across: bool) -> list[str] | str | None:
        """Return the words of an axis; those below a chart in as many lines as fit between its edges."""
        return self.title_lines() if across and axis.label else axis.label or None

    def title_lines(self) -> list[str]:
        """Return the words below the chart, which stand centred below the scale, in lines."""
        beside = 3.0 * self.look.text
        if self.chart.y.reverse:
            lines = [line for _, name in self.chart.y.ticks for line in row_lines(name, self.width, self.look)]
            beside = LETTER * self.look.text * max(map(len, lines), default=0)
        return textwrap.wrap(self.chart.x.label, max(12, int((self.width - beside) / (LETTER * self.look.title))))


def row_lines(name: str, width: float, look: Look) -> list[str]:
    """Return the name of a row in lines that stand beside a chart of this width; one of very many letters is cut inside."""
    letters = max(12, int(ROW_NAMES * width / (LETTER * look.text)))
    return folded_spec(shortened(name, ROW_LINES * letters), letters).split("\n")


def _key(value: float) -> str:
    """Return a number as Vega's `format(value, '.8e')` writes it; the last bits of a number may change on its way there."""
    mantissa, exponent = f"{abs(value):.8e}".split("e")
    return f"{'−' * (value < 0)}{mantissa}e{int(exponent):+d}"


def specification(chart: Chart, width: float, look: Look) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return a chart in Vega-Lite, and its hints: (words, link), by the number that marks are labelled with."""
    drawing = Drawing(chart, look, width)
    _bars(drawing)
    _rules(drawing)
    for series in chart.series:
        _line(drawing, series)
    if not look.paper:
        hits = [{"x": left, "x2": right, "tip": tip} for left, right, tip in chart.hits()]
        everything = {"y": {"value": 0}, "y2": {"value": "height"}}
        drawing.add(
            "hit", {"type": "rect", "color": "transparent"}, hits, x=drawing.x(), x2={"field": "x2"}, **everything
        )
    for series in chart.series:
        _marks(drawing, series)
    if not drawing.layers:
        drawing.add("none", {"type": "point", "opacity": 0}, [{"x": chart.x.low, "y": chart.y.low}],
                    x=drawing.x(), y=drawing.y())  # fmt: skip
    above = (3.0 if look.paper else 8.0) + look.text * 1.25 * chart.upright
    below = (24.0 if look.paper else 22.0) + (0 if chart.y.reverse else 2)
    below += look.paper * 1.25 * look.title * (len(drawing.title_lines()) - 1)
    height = chart.height * (PRINTED if look.paper else 1)
    if chart.y.reverse:
        lines = max((len(row_lines(name, width, look)) for _, name in chart.y.ticks), default=1)
        height = max(height, len(chart.y.ticks) * (lines * 1.25 + 0.5) * look.text)
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json", "width": round(width, 2),
        "height": round(height + above + below, 2),
        "autosize": {"type": "fit", "contains": "padding"},
        "padding": {"left": 1, "right": 14 * (PRINTED if look.paper else 1), "top": above, "bottom": 2},
        "background": None, "layer": drawing.layers, "config": _config(look),
    }, drawing.hints  # fmt: skip


def _config(look: Look) -> dict[str, Any]:
    return {
        "font": look.font, "view": {"stroke": None},
        "axis": {
            "labelFontSize": look.text, "titleFontSize": look.title, "titleFontWeight": "normal", "labelPadding": 4,
            "labelColor": look.colour("muted"), "titleColor": look.colour("ink"), "titlePadding": 5,
            "gridColor": look.colour("line"), "gridWidth": look.thin * 0.6 if look.paper else 1,
            "tickColor": look.colour("strong"), "tickSize": 4 if not look.paper else 2.5,
            "tickWidth": 1 if not look.paper else 0.6, "domainColor": look.colour("ink"), "domainWidth": 0.6,
        },
        "legend": {
            "labelFontSize": look.text, "labelColor": look.colour("ink"), "title": None, "orient": "top", "padding": 0,
            "symbolOpacity": 1, "rowPadding": 1, "columnPadding": 8, "offset": 0,
        },
    }  # fmt: skip


def _bars(drawing: Drawing) -> None:
    bars = drawing.chart.bars
    ends = {"x": drawing.x(), "x2": {"field": "x2"}, "y": drawing.y(), "y2": {"field": "y2"}}
    for tone in dict.fromkeys(bar.tone for bar in bars):
        rows = [
            {"x": b.left, "x2": b.right, "y": b.bottom, "y2": b.top, "tip": b.tip}
            for b in bars if b.tone == tone and finite(b.left, b.right, b.bottom, b.top)
        ]  # fmt: skip
        mark: dict[str, Any] = {"type": "rect", "color": drawing.look.colour(tone)}
        if not drawing.chart.y.reverse:
            mark |= {"stroke": drawing.look.colour("bg"), "strokeWidth": 0.8}
        drawing.add("bar", mark, rows, **ends)
    labels = [{"x": b.right, "y": (b.bottom + b.top) / 2, "text": b.label} for b in bars if b.label]
    mark = {
        "type": "text",
        "align": "left",
        "dx": 3,
        "fontSize": drawing.look.text,
        "color": drawing.look.colour("ink"),
    }
    drawing.add("text", mark, labels, x=drawing.x(), y=drawing.y(), text={"field": "text"})


def _rules(drawing: Drawing) -> None:
    look, rules = drawing.look, drawing.chart.rules
    dashed = {
        "type": "rule",
        "color": look.colour("strong"),
        "strokeDash": [3, 3],
        "strokeWidth": 1 if not look.paper else 0.6,
    }
    for number, rule in enumerate(rules):
        words: dict[str, Any] = {"type": "text", "fontSize": look.text, "color": look.colour("muted")}
        if rule.x is not None and finite(rule.x):
            line = look.text * 1.25
            top = -3 - line * (len(rules) - 1 - number)
            left = rule.x > drawing.chart.x.low + 0.6 * (drawing.chart.x.high - drawing.chart.x.low)
            row, x = [{"x": rule.x, "text": rule.label}], drawing.x()
            drawing.add("rule", dashed, row, x=x, y={"value": top if rule.label else 0}, y2={"value": "height"})
            words |= {"align": "right" if left else "left", "dx": -5 if left else 5, "y": top - 2}
            drawing.add("text", words, row if rule.label else [], x=x, text={"field": "text"})
        elif rule.y is not None and finite(rule.y):
            row = [{"y": rule.y, "text": rule.label}]
            drawing.add("rule", dashed, row, y=drawing.y())
            words |= {"align": "right", "x": "width", "dy": -0.6 * look.text}
            drawing.add("text", words, row, y=drawing.y(), text={"field": "text"})


def _line(drawing: Drawing, series: Series) -> None:
    look, colour = drawing.look, drawing.look.colour(series.tone)
    if series.band:
        rows = [{"x": p.x, "low": p.low, "high": p.high} for p in series.points if finite(p.x, p.low, p.high)]
        drawing.add("band", {"type": "area", "color": colour, "opacity": 0.16}, rows, x=drawing.x(), y=drawing.y("low"),
                    y2={"field": "high"})  # fmt: skip
    if series.line:
        mark: dict[str, Any] = {
            "type": "line",
            "color": colour,
            "strokeWidth": look.thin if "thin" in series.tone else look.line,
        }
        rows = [{"x": p.x, "y": p.y, "n": n} for n, p in enumerate(p for p in series.points if finite(p.x, p.y))]
        drawing.add("line", mark | ({"strokeDash": [5, 4]} if series.dashed else {}), rows, x=drawing.x(), y=drawing.y(),
                    order={"field": "n", "type": "quantitative"})  # fmt: skip


def _marks(drawing: Drawing, series: Series) -> None:
    look, colour, chart = drawing.look, drawing.look.colour(series.tone), drawing.chart
    ends = [
        {"x": p.x, "y": p.y, "low": p.low, "high": p.high}
        for p in series.points if finite(p.x, p.y, p.low, p.high) and not series.band
    ]  # fmt: skip
    whisker = {"type": "rule", "color": colour, "strokeWidth": look.line * 0.9}
    if series.sideways:
        drawing.add("whisker", whisker, ends, x=drawing.x("low"), x2={"field": "high"}, y=drawing.y())
    else:
        drawing.add("whisker", whisker, ends, x=drawing.x(), y=drawing.y("low"), y2={"field": "high"})
    points = [p for p in series.points if finite(p.x, p.y)]
    if series.marks:
        rows = [{"x": p.x, "y": p.y, "tip": p.tip, "href": p.href} for p in points]
        drawing.add("dot", _glyph(series, look, many=len(points) > 25), rows, x=drawing.x(), y=drawing.y())
    middle = chart.x.low + 0.8 * (chart.x.high - chart.x.low)
    for left in (False, True):
        rows = [{"x": p.x, "y": p.y, "text": p.label} for p in points if p.label and (p.x > middle) is left]
        mark = {
            "type": "text", "align": "right" if left else "left", "dx": -0.8 * look.text if left else 0.8 * look.text,
            "dy": -0.7 * look.text, "fontSize": look.title, "fontWeight": 600, "color": look.colour("ink"),
        }  # fmt: skip
        drawing.add("label", mark, rows, x=drawing.x(), y=drawing.y(), text={"field": "text"})


def _glyph(series: Series, look: Look, *, many: bool = False) -> dict[str, Any]:
    """Return the mark of a series: filled with a thin edge of the ground's colour, or a ring."""
    colour, ground = look.colour(series.tone), look.colour("bg")
    ring, dot = series.shape == "ring", series.shape == "dot"
    size = look.mark * AREAS.get(series.shape, 1.0) * (0.65 if many and not dot else 1.0)
    return {
        "type": "point", "shape": SYMBOLS.get(series.shape, series.shape), "fill": ground if ring else colour,
        "stroke": colour if ring else None if dot else ground, "strokeWidth": look.line * (0.9 if ring else 0.6),
        "size": size, "opacity": 0.45 if dot else 0.85 if many else 1,
    }  # fmt: skip


def legend(keys: Sequence[Series], width: float, look: Look = PAPER_LOOK) -> dict[str, Any]:
    """Return a legend in Vega-Lite, in as many columns as its longest name allows."""
    longest = max(len(key.name) for key in keys)
    columns = max(1, min(len(keys), int(width / (longest * LETTER * look.text + 20))))
    names = list(range(len(keys)))

    def channel(values: Sequence[Any]) -> dict[str, Any]:
        style = {"columns": columns, "labelLimit": width / columns - 20,
                 "labelExpr": f"{json.dumps([key.name for key in keys])}[datum.value]",
                 "symbolSize": look.mark * 2, "symbolStrokeWidth": look.line}  # fmt: skip
        return {"field": "k", "type": "nominal", "scale": {"domain": names, "range": list(values)}, "legend": style}

    marked = [key.marks or not key.line for key in keys]
    colours, ground = [look.colour(key.tone) for key in keys], look.colour("bg")
    shapes = [SYMBOLS.get(k.shape, k.shape) if m else "stroke" for k, m in zip(keys, marked, strict=True)]
    encoding = {
        "fill": channel([ground if key.shape == "ring" else c for key, c in zip(keys, colours, strict=True)]),
        "stroke": channel(colours), "shape": channel(shapes),
    }  # fmt: skip
    if any(key.dashed for key in keys):
        encoding["strokeDash"] = channel([[2, 1.5] if key.dashed else [1, 0] for key in keys])
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json", "data": {"values": [{"k": name} for name in names]},
        "width": round(width, 2), "height": 1, "autosize": {"type": "pad"}, "padding": 2,
        "background": None, "mark": {"type": "point", "opacity": 0}, "encoding": encoding, "config": _config(look),
    }  # fmt: skip
