"""The one specification of a chart: what it shows in numbers and words; `vega` draws it in pages and in figures for papers.

Colours are named by tone; a page gives them its own in light and dark, a figure those that stand on paper.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from robustdup.report.format import number, share_text

SHAPES = ("circle", "square", "diamond", "triangle")
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
HITS = 40  # columns of a chart at most that say what a line without marks has there
TONES = 8  # categories that the style sheet knows


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high`, with ticks as (value, text); values beyond it lie on its ends.

    Where it runs down the page it has the high end at the top, or at the bottom with `reverse`.
    """

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    label: str
    reverse: bool = False


def linear(
    low: float, high: float, label: str, *, text: Callable[[float], str] = number, count: int = 5, margin: float = 0.0,
    tight: bool = False,
) -> Axis:  # fmt: skip
    """Return a scale over [low, high] widened by a share `margin`, and then to round ticks unless it is to be `tight`."""
    if not (math.isfinite(low) and math.isfinite(high)):
        low, high = 0.0, 1.0
    size = max(abs(low), abs(high))
    if high - low <= max(1e-9 * size, 1e-300):  # one value, but for rounding
        half = size / 2 if size > 1e-300 else 0.5
        low, high = low - half, high + half
    low, high = low - margin * (high - low), high + margin * (high - low)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in STEPS if size * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if not tight:
        return Axis(first * step, last * step, _ticks(first, last, step, text), label)
    return Axis(low, high, _ticks(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9), step, text), label)


def _ticks(first: int, last: int, step: float, text: Callable[[float], str]) -> tuple[tuple[float, str], ...]:
    return tuple((i * step, text(i * step)) for i in range(first, last + 1))


def measured(label: str, places: Mapping[float, str], *, apart: float = 0.06) -> Axis:
    """Return a scale from 0 to the highest of some places, with a tick where something was measured, if that fits.

    `apart` is the least distance of ticks, as a share of the scale; those too near to the one before carry no text.
    """
    highest = max(places, default=0.0)
    axis = linear(0.0, highest, label, tight=True)
    if not math.isfinite(highest) or highest <= 0:
        return axis
    ticks: list[tuple[float, str]] = [(0.0, "0")]
    for position, text in sorted(places.items(), reverse=True):
        near = min(abs(position - other) for other, _ in ticks) < apart * highest
        if position > 0 and not near:
            ticks.append((position, text))
    return replace(axis, ticks=tuple(sorted(ticks)))


def counts(highest: int, label: str) -> Axis:
    """Return a scale for counts from 0, with ticks at whole numbers only."""
    axis = linear(0, max(highest, 1), label, text=lambda value: f"{value:,.0f}", count=4)
    return replace(
        axis, ticks=tuple((position, text) for position, text in axis.ticks if abs(position - round(position)) < 1e-9)
    )


def shares(label: str, low: float = 0.0, high: float = 1.0) -> Axis:
    """Return a scale for shares in [0, 1], in per cent."""
    axis = linear(low, high, label, text=share_text)
    return Axis(max(axis.low, 0.0), min(axis.high, 1.0), axis.ticks, label)


@dataclass(frozen=True)
class Point:
    """A value with what to say about it; `low` and `high` are the ends of its interval, `href` where it leads."""

    x: float
    y: float
    tip: str = ""
    low: float | None = None
    high: float | None = None
    label: str = ""
    href: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one kind: joined by a `line` or not, with marks or not, with a `band` or bars for intervals.

    Intervals are of y, or of x where the series is `sideways`.
    """

    name: str
    points: Sequence[Point]
    tone: str = "c0"
    shape: str = "circle"
    line: bool = True
    marks: bool = True
    band: bool = False
    dashed: bool = False
    sideways: bool = False


@dataclass(frozen=True)
class Bar:
    """A rectangle: a bar of a histogram, from `left` to `right`; several at one place are stacked by `bottom`."""

    left: float
    right: float
    bottom: float
    top: float
    tone: str
    tip: str = ""
    label: str = ""


@dataclass(frozen=True)
class Rule:
    """A reference line across the chart, upright (`x`) or level (`y`), with its label."""

    label: str
    x: float | None = None
    y: float | None = None


@dataclass(frozen=True)
class Chart:
    """A chart with axes: what it says in words (`description`), and the numbers behind it as a table."""

    name: str
    title: str
    description: str
    x: Axis
    y: Axis
    series: Sequence[Series] = ()
    bars: Sequence[Bar] = ()
    rules: Sequence[Rule] = ()
    height: int = 280
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    legend: Sequence[Series] = field(default_factory=tuple)
    keyless: bool = False

    def hits(self) -> list[tuple[float, float, str]]:
        """Return columns of the chart that say what lines without marks have there: (left, right, words), in values of x.

        Few enough to go through by hand; lines that share their places share a column.
        """
        tips: dict[float, list[str]] = {}
        for series in self.series:
            if series.marks or not series.line:
                continue
            points = [p for p in series.points if p.tip and finite(p.x, p.y)]
            step = max(1, -(-len(points) // HITS))
            for point in points[::step]:
                tips.setdefault(min(max(point.x, self.x.low), self.x.high), []).append(point.tip)
        places = sorted(tips)
        edges = [self.x.low, *((a + b) / 2 for a, b in itertools.pairwise(places)), self.x.high]
        return [
            (left, right, "; ".join(tips[x]))
            for (left, right), x in zip(itertools.pairwise(edges), places, strict=False)
        ]

    @property
    def upright(self) -> int:
        """How many rules are upright and named: their labels stand above the chart, a line each."""
        return sum(rule.x is not None and bool(rule.label) for rule in self.rules)

    @property
    def keys(self) -> Sequence[Series]:
        """What the legend names: nothing where there is but one series, or a legend for several charts."""
        if self.keyless:
            return ()
        return self.legend or (self.series if len(self.series) > 1 else ())


def rows_axis(names: Sequence[str]) -> Axis:
    """Return a scale with a row for each name, the first at the top: row number `i` lies at `i`."""
    return Axis(-0.6, len(names) - 0.4, tuple((float(i), name) for i, name in enumerate(names)), "", reverse=True)


def finite(*values: float | None) -> bool:
    """Say whether all values are numbers that have a place."""
    return all(value is not None and math.isfinite(value) for value in values)


def tone(number: int) -> str:
    """Return the tone of the category of that number; together with `shape` 32 can be told apart."""
    return f"c{number % TONES}"


def shape(number: int) -> str:
    """Return the shape of the category of that number."""
    return SHAPES[(number + number // TONES) % len(SHAPES)]
