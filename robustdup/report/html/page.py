"""A page before it is drawn: its template, what the template is given, and the files that belong to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from robustdup.report.charts import Chart


@dataclass(frozen=True)
class Page:
    """`name` is the file without .html; `files` are written beside it, by path inside the folder."""

    name: str
    title: str
    kind: str
    template: str
    context: Mapping[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Notice:
    """Something that a reader must see before the numbers."""

    level: Literal["info", "warning", "serious"]
    title: str
    text: str = ""


@dataclass(frozen=True)
class Figure:
    """A headline number: its value as in the record (`field` names it), how it is written, and what it means."""

    label: str
    text: str
    value: float | None
    field: str
    note: str = ""
    big: bool = False


@dataclass(frozen=True)
class Segment:
    """A part of a whole: `share` of it in [0, 1]."""

    label: str
    count: int
    share: float
    tone: str


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, the number by which it sorts, and the field of the record that it is.

    `bar` is a share in [0, 1] that is drawn behind the text.
    """

    text: str
    value: float | None = None
    field: str = ""
    note: str = ""
    href: str = ""
    bar: float | None = None


@dataclass(frozen=True)
class Table:
    """A table whose first `left` columns are words, the others numbers; its first cells name the rows."""

    name: str
    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    left: int = 1


@dataclass(frozen=True)
class Section:
    """A part of a page with its own heading, drawn by a template of its own; left out where it has nothing to say."""

    name: str
    title: str
    template: str
    lead: str = ""
    content: Any = None
    charts: tuple[Chart, ...] = ()


def chart_section(name: str, title: str, chart: Chart | None, lead: str = "") -> Section | None:
    """Return a section of one chart; None where there is none."""
    return None if chart is None else Section(name, title, "sections/chart.html.j2", lead, charts=(chart,))


def reproduce_section(command: str, facts: Mapping[str, str], lead: str = "") -> Section:
    """Return the section that says how to run something again, and on what it ran."""
    content = {"command": command, "facts": facts}
    return Section("reproduce", "Run it again", "sections/reproduce.html.j2", lead, content)
