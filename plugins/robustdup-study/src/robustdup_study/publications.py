"""The door through which a publication comes to studies: its protocol, its figures and claims, its way to state a dose.

A package names a function that returns a `Publication` under the entry-point group `robustdup_study.publications`. Nothing
that it names is imported before it is used.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from robustdup.plugins.options import Deferred

if TYPE_CHECKING:
    from robustdup_study.cell_record import CellOrder, CellResult
    from robustdup_study.grid import Grid
    from robustdup_study.recipe import StudyConfig
    from robustdup_study.records import Claim, DuplicationRate, PublishedFigure, StudyRecord

GROUP = "robustdup_study.publications"
TRAIN = "train"

Unit = Literal["share", "count", "seconds", "nats", ""]


@dataclass(frozen=True)
class Metric:
    """A metric's words in a sentence, and its unit. Differences of shares are told in points (hundredths)."""

    text: str
    unit: Unit = "share"


@dataclass(frozen=True)
class Protocol:
    """What the cells of a study do.

    Attributes:
        grid: Makes the grid of a recipe. Raises UserError for one that cannot be run.
        run_cell: Runs a cell; a worker process imports it.
    """

    grid: Callable[[StudyConfig], Grid] | Deferred
    run_cell: Callable[[CellOrder], CellResult] | Deferred


@dataclass(frozen=True)
class DoseFactor:
    """A factor by which a publication states how much is duplicated. Its level 0 means no copies.

    Attributes:
        plan: Turns a level, given the rest of a duplication plan, into settings of the plan and the share of copies, in
            [0, 1). Raises UserError for a level that means nothing.
        rates: Says in all usual ways what the levels mean.
    """

    plan: Callable[[Any, Mapping[str, Any]], tuple[dict[str, Any], float]] | Deferred
    rates: Callable[[Iterable[float]], list[DuplicationRate]] | Deferred


@dataclass(frozen=True)
class Publication:
    """What a paper brings to studies.

    Attributes:
        name: What it is called in a report, such as "arXiv 2504.00638".
        url: Where it is read.
        protocols: By the name that a recipe's `protocol` takes.
        dose_factors: By the name of the factor.
        metrics: Words for the metrics of its protocols.
        figures: Sets its figures beside those of a study, and of further studies.
        claims: Judges its claims by a study.
    """

    name: str
    url: str
    protocols: Mapping[str, Protocol] = field(default_factory=dict)
    dose_factors: Mapping[str, DoseFactor] = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    figures: Callable[[StudyRecord, Sequence[StudyRecord]], list[PublishedFigure]] | Deferred | None = None
    claims: Callable[[StudyRecord], list[Claim]] | Deferred | None = None


@cache
def publications() -> tuple[Publication, ...]:
    """Return the publications that are installed, by the names of their entry points."""
    points = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda point: point.name)
    return tuple(point.load()() for point in points)


def protocols() -> dict[str, Protocol]:
    """Return the protocols by name: robustdup's own training, and those of publications."""
    own = Protocol(Deferred("robustdup_study.cell:training_grid"), Deferred("robustdup_study.cell:run_cell"))
    return {TRAIN: own} | {
        name: protocol for publication in publications() for name, protocol in publication.protocols.items()
    }


def dose_factors() -> dict[str, DoseFactor]:
    """Return the factors by which publications state a dose, by name."""
    return {name: factor for publication in publications() for name, factor in publication.dose_factors.items()}
