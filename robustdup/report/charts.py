"""Charts as positions: across in per cent of the width, down in pixels, so that text keeps its size on any screen.

The templates draw them as inline SVG. Colours and shapes are named by tone; the style sheet gives them their colours in
light and dark.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from robustdup.report.format import number

SHAPES = ("circle", "square", "diamond", "triangle")
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
HITS = 40  # columns of a chart at most that say what a line without marks has there
TONES = 8  # categories that the style sheet knows


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high`, with ticks as (value, text)."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    label: str
    log: bool = False

    def at(self, value: float) -> float:
        """Return where a value lies: 0 at the low end, 1 at the high end; values beyond lie on the end."""
        low, high, x = self.low, self.high, value
        if self.log:
            low, high, x = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        return min(1.0, max(0.0, (x - low) / (high - low)))


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
    for at, text in sorted(places.items(), reverse=True):
        near = min(abs(at - other) for other, _ in ticks) < apart * highest
        if at > 0 and not near:
            ticks.append((at, text))
    return replace(axis, ticks=tuple(sorted(ticks)))


def counts(highest: int, label: str) -> Axis:
    """Return a scale for counts from 0, with ticks at whole numbers only."""
    axis = linear(0, max(highest, 1), label, text=lambda value: f"{value:,.0f}", count=4)
    return replace(axis, ticks=tuple((at, text) for at, text in axis.ticks if abs(at - round(at)) < 1e-9))


def share_text(share: float) -> str:
    """Return a share in per cent with as many digits as it needs: 20%, 22.5%."""
    return f"{round(100 * share, 6):g}%"


def shares(label: str, low: float = 0.0, high: float = 1.0) -> Axis:
    """Return a scale for shares in [0, 1], in per cent."""
    found = linear(low, high, label, text=share_text)
    return Axis(max(found.low, 0.0), min(found.high, 1.0), found.ticks, label)


def logarithmic(low: float, high: float, label: str) -> Axis:
    """Return a logarithmic scale that covers [low, high], both above 0, with a tick at each power of ten."""
    first, last = math.floor(math.log10(low) + 1e-12), math.ceil(math.log10(high) - 1e-12)
    last = max(last, first + 1)
    every = max(1, (last - first) // 5)
    ticks = tuple((10.0**i, f"1e{i}" if abs(i) > 3 else number(10.0**i)) for i in range(first, last + 1, every))
    return Axis(10.0**first, 10.0**last, ticks, label, log=True)


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
    """Points of one kind: joined by a `line` or not, with marks or not, with a `band` or bars for intervals."""

    name: str
    points: Sequence[Point]
    tone: str = "c0"
    shape: str = "circle"
    line: bool = True
    marks: bool = True
    band: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram, from `left` to `right`; several at one place are stacked by `bottom`."""

    left: float
    right: float
    bottom: float
    top: float
    tone: str
    tip: str


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

    def across(self, value: float) -> str:
        """Return a place on the x axis in per cent of the width."""
        return f"{100 * self.x.at(value):.2f}"

    def down(self, value: float) -> str:
        """Return a place on the y axis in pixels from the top."""
        return f"{self.height * (1 - self.y.at(value)):.1f}"

    def line(self, series: Series) -> str:
        """Return the path of a series, in a box of 100 by `height`."""
        points = [f"{self.across(p.x)} {self.down(p.y)}" for p in series.points if _finite(p.x, p.y)]
        return f"M{'L'.join(points)}" if len(points) > 1 else ""

    def band(self, series: Series) -> str:
        """Return the outline of a series' intervals, in a box of 100 by `height`."""
        found = [p for p in series.points if p.low is not None and p.high is not None and _finite(p.x, p.low, p.high)]
        if len(found) < 2:
            return ""
        upper = [f"{self.across(p.x)} {self.down(p.high or 0.0)}" for p in found]
        lower = [f"{self.across(p.x)} {self.down(p.low or 0.0)}" for p in reversed(found)]
        return f"M{'L'.join([*upper, *lower])}Z"

    def hits(self) -> list[tuple[float, float, str]]:
        """Return columns of the chart that say what lines without marks have there: (left, right, words), in per cent.

        Few enough to go through by hand; lines that share their places share a column.
        """
        found: dict[str, list[str]] = {}
        for series in self.series:
            if series.marks or not series.line:
                continue
            points = [p for p in self.shown(series) if p.tip]
            step = max(1, -(-len(points) // HITS))
            for point in points[::step]:
                found.setdefault(self.across(point.x), []).append(point.tip)
        places = sorted((float(at), "; ".join(tips)) for at, tips in found.items())
        edges = [0.0, *((a + b) / 2 for (a, _), (b, _) in itertools.pairwise(places)), 100.0]
        return [(left, right, tip) for (left, right), (_, tip) in zip(itertools.pairwise(edges), places, strict=False)]

    def shown(self, series: Series) -> list[Point]:
        """Return the points of a series that have a place."""
        return [p for p in series.points if _finite(p.x, p.y)]

    @property
    def upright(self) -> int:
        """How many upright rules there are: their labels stand above the chart, a line each."""
        return len(self.rules) if any(rule.x is not None for rule in self.rules) else 0

    @property
    def keys(self) -> Sequence[Series]:
        """What the legend names: nothing where there is but one series, or a legend for several charts."""
        if self.keyless:
            return ()
        return self.legend or (self.series if len(self.series) > 1 else ())


def _finite(*values: float) -> bool:
    return all(math.isfinite(value) for value in values)


def tone(number: int) -> str:
    """Return the tone of the category of that number; together with `shape` 32 can be told apart."""
    return f"c{number % TONES}"


def shape(number: int) -> str:
    """Return the shape of the category of that number."""
    return SHAPES[(number + number // TONES) % len(SHAPES)]
