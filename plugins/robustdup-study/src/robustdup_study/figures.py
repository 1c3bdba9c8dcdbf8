"""The charts of studies, for their pages and for `robustdup plot`: means over doses, published figures, effects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from robustdup.errors import UserError
from robustdup.report.charts import (
    Axis,
    Bar,
    Chart,
    Point,
    Rule,
    Series,
    linear,
    rows_axis,
    shape,
    shares,
    tone,
)
from robustdup.report.format import NONE, missing, number, plural, share_text
from robustdup.report.runs import Run
from robustdup_study.metrics import is_share
from robustdup_study.names import (
    Place,
    dose_name,
    grid_links,
    is_number,
    metrics_of,
    place_of,
    place_text,
    value_text,
    words,
)
from robustdup_study.records import DoseMean, PairedComparison, PublishedFigure, StudyRecord
from robustdup_study.report import levels_text, varying

LINES = 8  # combinations of factors in one chart; more become a chart for each level of the first factor
NARROWEST = 0.05  # of a scale of shares
COMMON = 2.5  # how much longer a scale may become to be that of all charts of a metric
SEED_DOTS = 400  # in one chart
PANELS = 3  # metrics in one figure


def dose_charts(record: StudyRecord, metric: str) -> tuple[list[Chart], list[Series]]:
    """Return the charts of a metric's means over doses, a dot for each seed, and the legend for all of them."""
    names = varying(record)
    means = [
        mean for mean in record.means if mean.metric == metric and not missing(mean.mean) and not missing(mean.dose)
    ]
    places = list(dict.fromkeys(place_of(mean.factors, names) for mean in means))
    parts = [("", places, 0)]
    if len(places) > LINES:  # a chart for each level of the first factor, which the others need not repeat
        levels = dict.fromkeys(place[:1] for place in places)
        parts = [(place_text(level), [place for place in places if place[:1] == level], 1) for level in levels]
    labels = list(dict.fromkeys(place_text(place[skip:]) for _, some, skip in parts for place in some))
    charts = [_dose_chart(record, metric, title, means, some, names, labels) for title, some, _ in parts if some]
    if not charts:
        return [], []
    legend = [Series(label, (), tone(i), shape(i)) for i, label in enumerate(labels)] if len(labels) > 1 else []
    return _on_scales(charts, metric, within=_within(means)), legend


def _on_scales(charts: Sequence[Chart], metric: str, *, within: bool) -> list[Chart]:
    """Give charts of one metric their y axes: a common one unless that would flatten what they show.

    A scale of shares covers five points at least, so that differences of next to nothing look like it.
    """
    spans = []
    for chart in charts:
        values = [
            v for s in chart.series for p in s.points for v in (p.y, p.low, p.high) if v is not None and not missing(v)
        ]
        low, high = min(values), max(values)
        if is_share(metric) and within:
            short = max(0.0, NARROWEST - (high - low)) / 2
            low, high = max(0.0, low - short), min(1.0, high + short)
        spans.append((low, high))
    together = (min(low for low, _ in spans), max(high for _, high in spans))
    if together[1] - together[0] <= COMMON * max(high - low for low, high in spans):
        spans = [together] * len(spans)

    def axis(low: float, high: float) -> Axis:
        if is_share(metric) and within:
            return shares(words(metric), low, high)
        return linear(low, high, words(metric), text=share_text if is_share(metric) else number)

    return [replace(chart, y=axis(low, high)) for chart, (low, high) in zip(charts, spans, strict=True)]


def _dose_chart(
    record: StudyRecord,
    metric: str,
    title: str,
    means: Sequence[DoseMean],
    places: Sequence[Place],
    names: Sequence[str],
    labels: Sequence[str],
) -> Chart:
    """Return the chart of some combinations; `labels` are those of all charts, and give lines their colours and shapes."""
    dose, links = dose_name(record), grid_links(record)
    doses = sorted({mean.dose for mean in means})
    reach = (doses[-1] - doses[0]) or 1.0
    series, rows = [], []
    numbered = [
        (index, row)
        for index, row in enumerate(record.runs)
        if not missing(row.metrics.get(metric)) and dose in row.factors
    ]
    for place in places:
        label = place_text(place[1:] if title else place)
        index = labels.index(label)
        shift = (index - (len(labels) - 1) / 2) * 0.012 * reach  # side by side, not on top of each other
        own_means = sorted((m for m in means if place_of(m.factors, names) == place), key=lambda m: m.dose)
        points = []
        for mean in own_means:
            tip = _tip(metric, f"{place_text(place)}, {words(dose)} {number(mean.dose)}", mean)
            link = links.get((place, mean.dose), "")
            points.append(Point(mean.dose + shift, mean.mean, tip, mean.low, mean.high, href=link))
            rows.append(
                (place_text(place), number(mean.dose), str(mean.n), value_text(metric, mean.mean),
                 NONE if mean.low is None else f"{value_text(metric, mean.low)} to {value_text(metric, mean.high)}")
            )  # fmt: skip
        series.append(Series(label, points, tone(index), shape(index)))
        if len(numbered) <= SEED_DOTS:
            dots = [
                Point(
                    float(row.factors[dose]) + shift, row.metrics[metric] or 0.0,
                    f"seed {row.seed}: {value_text(metric, row.metrics[metric])}", href=f"#cell-{n}",
                )
                for n, row in numbered
                if place_of(row.factors, names) == place and is_number(row.factors[dose])
            ]  # fmt: skip
            series.append(Series(f"seeds of {label}", dots, tone(index), "dot", line=False))
    shown = f"{words(metric)}" + (f", {title}" if title else "")
    return Chart(
        "dose", shown.capitalize(), f"Means of {plural(len(places), 'combination')} at {plural(len(doses), 'dose')}.",
        _dose_axis(doses, words(dose)), linear(0.0, 1.0, words(metric)), series, height=260, keyless=True,
        headings=("factors", words(dose), "seeds", "mean", "95% interval"), rows=rows,
    )  # fmt: skip


def _tip(metric: str, where: str, mean: DoseMean) -> str:
    ends = (
        ""
        if mean.low is None or mean.high is None
        else f" [{value_text(metric, mean.low)} to {value_text(metric, mean.high)}]"
    )
    return f"{where}: {value_text(metric, mean.mean)}{ends} ({plural(mean.n, 'seed')})"


def _dose_axis(doses: Sequence[float], label: str) -> Axis:
    """A scale with a tick at each dose, where they are few."""
    axis = linear(doses[0], doses[-1], label, margin=0.05, tight=True)
    return axis if len(doses) > LINES else replace(axis, ticks=tuple((dose, number(dose)) for dose in doses))


def _within(means: Sequence[DoseMean]) -> bool:
    """Whether all means lie in [0, 1]: then an interval that leaves it is cut off at its ends."""
    return all(0 <= mean.mean <= 1 for mean in means)


def published_chart(metric: str, rows: Sequence[tuple[int, PublishedFigure]], arms: Sequence[str]) -> Chart | None:
    """Each arm twice: as published, dashed, and as seen here with its intervals. None where there is but one dose."""
    doses = sorted({row.percent for _, row in rows})
    if len(doses) < 2:
        return None
    series = []
    for number_of, arm in enumerate(arms):
        rows_of_arm = sorted((pair for pair in rows if pair[1].arm == arm), key=lambda pair: pair[1].percent)
        for kind, field in (("published", "published"), ("here", "here")):
            points = [
                Point(
                    row.percent, value, f"{arm}, {kind}, {number(row.percent)}%: {value:.2f}",
                    row.low if field == "here" else None, row.high if field == "here" else None, href=f"#published-{index}",
                )
                for index, row in rows_of_arm
                if (value := getattr(row, field)) is not None and not missing(value)
            ]  # fmt: skip
            if points:
                hollow = kind == "published"
                series.append(
                    Series(
                        f"{arm}, {kind}", points, tone(number_of), "ring" if hollow else shape(number_of), dashed=hollow
                    )
                )
    values = [
        v for line in series for p in line.points for v in (p.y, p.low, p.high) if v is not None and not missing(v)
    ]
    return Chart(
        "published", words(metric).capitalize(), "Published figures dashed, with hollow marks; those seen here with intervals.",
        _dose_axis(doses, "copies, per cent of the originals"), linear(min(values), max(values), f"{words(metric)} (%)"),
        series, height=260, legend=series,
    )  # fmt: skip


def plot_doses(runs: Sequence[Run], width: str) -> list[list[Chart]]:
    """Return the figure `dose`: a chart for each metric, or for each metric and level of the first factor."""
    record = runs[0].record
    rows = []
    for metric in metrics_of(record)[:PANELS]:
        charts, legend = dose_charts(record, metric)
        bare = [replace(chart, series=[s for s in chart.series if s.shape != "dot"]) for chart in charts]
        if legend:
            bare = [replace(chart, legend=legend, keyless=False) for chart in bare]
        if len(bare) > 1:  # what tells them apart stands in their titles
            bare = [replace(chart, y=replace(chart.y, label=chart.title)) for chart in bare]
        rows.append(bare)
    charts = [chart for row in rows for chart in row]
    if not charts:
        raise UserError("The study holds no means yet: no cell is complete.", code="no-data")
    if width == "one":
        return [[chart] for chart in charts]
    return [charts] if len(charts) == len(rows) else [row[i : i + 2] for row in rows for i in range(0, len(row), 2)]


def plot_effects(runs: Sequence[Run], width: str) -> list[list[Chart]]:
    """Return the figure `effects`: differences to the same seed without copies, with 95% t intervals and margins.

    A study without doses shows those between levels.
    """
    record = runs[0].record
    known = [c for c in record.comparisons if not missing(c.difference)]
    shown = [c for c in known if c.kind == "dose"] or known
    charts = []
    for metric in metrics_of(record)[:PANELS]:
        same = [c for c in shown if c.metric == metric]
        if same:
            charts.append([effects_chart(record, metric, same)])
    if not charts:
        text = "The study holds no effects yet: no seed is complete on both sides of a comparison."
        raise UserError(text, code="no-data")
    return charts


def effects_chart(record: StudyRecord, metric: str, comparisons: Sequence[PairedComparison]) -> Chart:
    """Return a forest plot: a row for each difference with its 95% t interval, primary ones filled, the margin shaded."""
    names, share = varying(record), is_share(metric)
    ends = [
        value for c in comparisons for value in (c.difference, c.low, c.high, c.margin, -(c.margin or 0.0))
        if value is not None and not missing(value)
    ]  # fmt: skip
    unit = " (points)" if share else ""
    axis = linear(
        min(0.0, *ends),
        max(0.0, *ends),
        f"difference in {words(metric)}{unit}, 95% intervals",
        text=lambda v: _signed(v, share),
    )
    with_copies = " with copies" * all(c.kind == "dose" for c in comparisons)
    series = []
    for primary in (True, False):
        for below in (True, False):
            points = [
                Point(c.difference, i, "", c.low, c.high)
                for i, c in enumerate(comparisons) if c.primary is primary and (c.difference < 0) is below
            ]  # fmt: skip
            if points:
                mark = "circle" if primary else "ring"
                name = f"{'lower' if below else 'higher'}{with_copies}{'' if primary else ', not primary'}"
                series.append(Series(name, points, "broken" if below else "robust", mark, line=False, sideways=True))
    rows = rows_axis([_row_label(c, place_text(place_of(c.factors, names))) for c in comparisons])
    margins = {c.margin for c in comparisons if c.margin is not None and not missing(c.margin) and c.margin}
    zone = [Bar(-margin, margin, rows.low, rows.high, "zone") for margin in margins] if len(margins) == 1 else []
    key = [Series("margin, within which a difference counts as none", (), "zone", "square", line=False)] if zone else []
    return Chart(
        "effects", "", "", axis, rows, series, bars=zone, rules=[Rule("", x=0.0)], height=70 + 21 * len(comparisons),
        legend=[*series, *key],
    )  # fmt: skip


def _row_label(comparison: PairedComparison, place: str) -> str:
    if comparison.kind == "dose":
        return f"{place}, dose {number(comparison.dose)}"
    return levels_text(comparison) + (f" ({place})" if place != "all" else "")


def _signed(value: float, share: bool) -> str:
    return f"{100 * value if share else value:+.3g}".replace("-", "−") if abs(value) > 1e-12 else "0"
