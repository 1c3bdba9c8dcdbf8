"""Figures of studies for papers: means over doses, and effects with their intervals."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustdup.errors import UserError
from robustdup.report.format import missing, number
from robustdup.report.plot_style import BROKEN, COLOURS, GREY, MARKERS, ROBUST, Width, percent_axis, shortened
from robustdup.report.runs import PluggedRun
from robustdup_study.page import Place, dose_name, is_share, metrics_of, place_of, told, words
from robustdup_study.records import PairedComparison, StudyRecord
from robustdup_study.report import varying

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TICKS = 8  # doses with a tick each
PANELS = 3  # metrics of a study in one figure


def _panels(runs: Sequence[PluggedRun]) -> list[str]:
    return metrics_of(runs[0].record)[:PANELS]


def _lines(record: StudyRecord) -> tuple[list[Place], list[Place]]:
    """Return what tells panels from each other, and the lines of a panel: no more of these than there are colours, if may be."""
    names = varying(record)
    places = [place_of(mean.factors, names) for mean in record.means]
    for lead in range(len(names)):
        lines = list(dict.fromkeys(place[lead:] for place in places))
        if len(lines) <= len(COLOURS) or lead == len(names) - 1:
            return list(dict.fromkeys(place[:lead] for place in places)), lines
    return [()], [()]


def _shape(metrics: int, leads: int, width: Width) -> tuple[int, int]:
    """Return the rows and columns of panels: a column for each lead, or for each metric, where the width allows."""
    if width == "one":
        return metrics * leads, 1
    return (1, metrics) if leads == 1 else (metrics, leads)


def doses(axes: Axes, runs: Sequence[PluggedRun], width: Width) -> None:
    """A panel for each metric: means over seeds with 95% t intervals, a line for each combination of factors.

    More lines than there are colours are spread over panels of their own, by the first factors that vary.
    """
    record, metrics = runs[0].record, _panels(runs)
    if not metrics:
        raise UserError("The study holds no means yet: no cell is complete.", code="no-data")
    names = varying(record)
    leads, lines = _lines(record)
    axes.set_axis_off()
    figure = axes.get_figure()
    assert figure is not None
    grid = axes.get_subplotspec().subgridspec(*_shape(len(metrics), len(leads), width))  # type: ignore[union-attr]
    found = sorted({mean.dose for mean in record.means if not missing(mean.dose)})
    reach = (found[-1] - found[0]) or 1.0 if found else 1.0
    for at_panel, (metric, lead) in enumerate(itertools.product(metrics, leads)):
        panel = figure.add_subplot(grid[at_panel])
        shown = [
            m for m in record.means
            if m.metric == metric and place_of(m.factors, names)[: len(lead)] == lead and not missing(m.mean)
            and not missing(m.dose)
        ]  # fmt: skip
        for at, line in enumerate(lines):
            means = sorted((m for m in shown if place_of(m.factors, names)[len(lead) :] == line), key=lambda m: m.dose)
            ends = [(m.low if m.low is not None else m.mean, m.high if m.high is not None else m.mean) for m in means]
            shift = (at - (len(lines) - 1) / 2) * 0.015 * reach  # side by side, not on top of each other
            panel.errorbar(
                [m.dose + shift for m in means], [m.mean for m in means],
                yerr=[[m.mean - low for m, (low, _) in zip(means, ends, strict=True)],
                      [high - m.mean for m, (_, high) in zip(means, ends, strict=True)]],
                color=COLOURS[at % len(COLOURS)], marker=MARKERS[at % len(MARKERS)], capsize=2, elinewidth=0.8,
                label=shortened(told(line), 40),
            )  # fmt: skip
        if len(found) <= TICKS:
            panel.set_xticks(found, [number(dose) for dose in found])
        panel.set_xlabel(words(dose_name(record)))
        panel.set_ylabel(words(metric))
        panel.grid(axis="y")
        if lead:
            panel.text(1, 1, shortened(told(lead), 40), transform=panel.transAxes, ha="right", va="bottom")
        if is_share(metric):
            percent_axis(panel.yaxis)
    if len(lines) > 1:
        figure.legend(*panel.get_legend_handles_labels(), loc="outside upper left", ncols=2 if width == "two" else 1)  # type: ignore[call-overload]


def _compared(run: PluggedRun) -> list[tuple[str, list[PairedComparison]]]:
    """The paired effects of copies by metric: those that a figure can show."""
    found = []
    for metric in metrics_of(run.record)[:PANELS]:
        same = [
            one for one in run.record.comparisons
            if one.kind == "dose" and one.metric == metric and not missing(one.difference)
        ]  # fmt: skip
        if same:
            found.append((metric, same))
    return found


def effects(axes: Axes, runs: Sequence[PluggedRun], width: Width) -> None:
    """A forest plot: differences to the same seed without copies, with 95% t intervals; the margin is shaded."""
    record, groups = runs[0].record, _compared(runs[0])
    if not groups:
        raise UserError(
            "The study holds no effects yet: no pair of a dose and its baseline is complete.", code="no-data"
        )
    names = varying(record)
    axes.set_axis_off()
    figure = axes.get_figure()
    assert figure is not None
    grid = axes.get_subplotspec().subgridspec(len(groups), 1, height_ratios=[len(same) + 1 for _, same in groups])  # type: ignore[union-attr]
    for at, (metric, same) in enumerate(groups):
        panel = figure.add_subplot(grid[at])
        margins = {one.margin for one in same if not missing(one.margin) and one.margin}
        for margin in margins if len(margins) == 1 else ():
            panel.axvspan(-margin, margin, color="#EEEEEE", lw=0)
        panel.axvline(0, color=GREY, lw=0.6)
        for row, one in enumerate(same):
            colour = BROKEN if one.difference < 0 else ROBUST
            if one.low is not None and one.high is not None:
                panel.plot([one.low, one.high], [row, row], color=colour, lw=1.2)
            panel.plot(one.difference, row, "o", color=colour, mfc=colour if one.primary else "white")
        length = 44 if width == "two" else 24
        places = [f"{told(place_of(one.factors, names))}, {number(one.dose)}" for one in same]
        panel.set_yticks(range(len(same)), [shortened(place, length) for place in places])
        panel.set_ylim(len(same) - 0.4, -0.6)
        panel.tick_params(axis="y", length=0)
        panel.spines["left"].set_visible(False)
        unit = " (points)" if is_share(metric) else ""
        panel.set_xlabel(f"difference in {words(metric)}{unit}")
        if is_share(metric):
            panel.xaxis.set_major_formatter(lambda value, _: f"{100 * value:+.3g}".replace("-", "−") if value else "0")


def effects_height(runs: Sequence[PluggedRun], width: Width) -> float:
    """Return the height of `effects` in inches."""
    groups = _compared(runs[0])
    return min(sum(0.62 + 0.17 * len(same) for _, same in groups) or 1.0, 9.0)


def doses_height(runs: Sequence[PluggedRun], width: Width) -> float:
    """Return the height of `doses` in inches."""
    leads, lines = _lines(runs[0].record)
    rows, _ = _shape(max(1, len(_panels(runs))), len(leads), width)
    legend = 0.16 * (len(lines) if width == "one" else -(-len(lines) // 2))
    return legend + (2.4 if width == "two" and len(leads) == 1 else 1.9) * rows
