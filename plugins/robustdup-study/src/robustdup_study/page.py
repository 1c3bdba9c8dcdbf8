"""The page of a study: what it concludes, in sentences, then the doses, the effects, and every cell."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from robustdup.report.charts import Axis, Chart, Point, Series, linear, shape, share_text, shares, tone
from robustdup.report.format import NONE, duration, fixed, missing, number, percent, plural, signed, whole
from robustdup.report.html.page import Cell, Notice, Page, Section, Segment, Table
from robustdup.report.runs import PluggedRun, UnfinishedRun, read_plain
from robustdup_study.records import GRID_FILE, DoseMean, PairedComparison, PublishedFigure, StudyRecord, StudyRun
from robustdup_study.report import SHARES, varying

LINES = 8  # combinations of factors in one chart; more become a chart for each level of the first factor
NARROWEST = 0.05  # of a scale of shares
COMMON = 2.5  # how much longer a scale may become to be that of all charts of a metric
SEED_DOTS = 400  # in one chart
STATUS = {"complete": "stands", "failed": "broken", "missing": "blank"}
VERDICTS = {"confirmed": "stands", "refuted": "broken", "equivalent": "wrong", "undecided": "undecided"}

Place = tuple[tuple[str, str], ...]


def unfinished(folder: Path) -> UnfinishedRun | None:
    """Return what is there of a study without a record yet; None where the folder holds something else."""
    if not (folder / GRID_FILE).is_file():
        return None
    content = read_plain(folder / GRID_FILE)
    recipe, lines = content.get("recipe"), (content.get("runs") or content.get("lines"))
    keys = {str(line.get("key")) for line in lines if isinstance(line, dict)} if isinstance(lines, list) else set()
    found = {path.parent.name: read_plain(path).get("status") for path in (folder / "cells").glob("*/cell.json")}
    counts = [sum(found.get(key) == status for key in keys) for status in ("complete", "failed")]
    there = f"Of {plural(len(keys), 'cell')} {counts[0]} {'is' if counts[0] == 1 else 'are'} complete and {counts[1]} failed."
    commands = ["robustdup study run CONFIG", "robustdup study report CONFIG"]
    return UnfinishedRun(folder, recipe if isinstance(recipe, dict) else {}, there, commands)


def study_page(run: PluggedRun, name: str) -> Page:
    """Return the page of a study, whole or partial."""
    record = run.record
    sections = [
        _conclusions(record),
        _claims(record),
        *_doses(record),
        _published(record),
        *_effects(record),
        _crossovers(record),
        _anova(record),
        _readings(record),
        _cells(record),
        _remarks(record),
        _reproduce(record),
    ]
    counts = {"complete": record.n_complete, "failed": record.n_failed, "missing": record.n_missing}
    context = {
        "subtitle": [
            plural(record.n_cells, "cell"), plural(len(record.seeds), "seed"),
            f"{duration(record.seconds)} of computing", record.created[:10],
        ],
        "notices": list(_notices(record)),
        "figures": [],
        "sentence": _verdicts(record),
        "segments": [
            Segment(f"cells {word}", count, count / max(record.n_cells, 1), STATUS[word])
            for word, count in counts.items()
            if count
        ],
        "sections": [section for section in sections if section is not None],
    }  # fmt: skip
    return Page(name, record.name, "Study", "summary.html.j2", context)


def _notices(record: StudyRecord) -> Iterator[Notice]:
    if record.status != "complete" or record.n_missing or record.n_failed:
        parts = [
            f"{count} {word}" for count, word in ((record.n_failed, "failed"), (record.n_missing, "missing")) if count
        ]
        yield Notice(
            "serious",
            f"Partial result: of {plural(record.n_cells, 'cell')}, {' and '.join(parts) or 'some'} are not there.",
        )
    for change in record.analysis_changes:
        yield Notice("warning", change)


def _verdicts(record: StudyRecord) -> str:
    """The primary comparisons by what came of them, in one sentence."""
    found = [one.verdict for one in record.comparisons if one.primary]
    if not found:
        return f"{plural(record.n_complete, 'cell')} of {record.n_cells} are complete; no primary comparison can be made yet."
    said = {"one seed": "with one seed so far"}
    counts = [f"{found.count(verdict)} {said.get(verdict, verdict)}" for verdict in dict.fromkeys(sorted(found))]
    return f"Of {plural(len(found), 'primary comparison')} with no copies: {', '.join(counts)}."


def _conclusions(record: StudyRecord) -> Section | None:
    if not record.conclusions:
        return None
    lead = f"The analysis was fixed on {record.analysis_since}." if record.analysis_since else ""
    return Section("conclusions", "Conclusions", "sections/sentences.html.j2", lead, record.conclusions)


def _crossovers(record: StudyRecord) -> Section | None:
    if not record.image_differences:
        return None
    lead = "Answers to an image in the seeds that duplicated it, against those that did not; image and seed are held fixed."
    sentences = [one.sentence for one in record.image_differences]
    return Section(
        "image_differences", "The same images with and without copies", "sections/sentences.html.j2", lead, sentences
    )


def _claims(record: StudyRecord) -> Section | None:
    if not record.claims:
        return None
    content = [(claim, VERDICTS.get(claim.verdict, "blank")) for claim in record.claims]
    return Section("claims", "Published claims", "sections/claims.html.j2", content=content)


def is_share(metric: str) -> bool:
    """Whether a metric is a share in [0, 1], written in per cent."""
    return SHARES.search(metric) is not None


def words(metric: str) -> str:
    """Return a metric or factor as a person reads it."""
    return metric.replace("_", " ")


def dose_name(record: StudyRecord) -> str:
    """Return the name of the factor that is the dose."""
    return str(record.recipe.get("analysis", {}).get("dose", "dose"))


def metrics_of(record: StudyRecord) -> list[str]:
    """Return the metrics of the analysis that were measured; all measured ones where the recipe names none."""
    measured = list(dict.fromkeys(mean.metric for mean in record.means))
    named = [name for name in record.recipe.get("analysis", {}).get("metrics", []) if name in measured]
    return named or measured


def place_of(factors: Mapping[str, Any], names: Sequence[str]) -> Place:
    """Return what tells a combination of factors from others."""
    return tuple((name, str(factors[name])) for name in names if name in factors)


def grid_names(record: StudyRecord) -> list[str]:
    """Return the factors that tell the rows of the grid from each other."""
    levels: dict[str, set[str]] = {}
    for row in record.runs:
        for name, value in row.factors.items():
            levels.setdefault(name, set()).add(str(value))
    return [name for name, found in levels.items() if len(found) > 1]


def grid_links(record: StudyRecord) -> dict[tuple[Place, float], str]:
    """Return a link to each row of the grid, by the factors besides the dose and the dose."""
    dose, names = dose_name(record), varying(record)
    rows: dict[Place, str] = {}
    found: dict[tuple[Place, float], str] = {}
    for row in record.runs:
        link = rows.setdefault(place_of(row.factors, grid_names(record)), f"#place-{len(rows)}")
        if _is_number(row.factors.get(dose)):
            found.setdefault((place_of(row.factors, names), float(row.factors[dose])), link)
    return found


def told(place: Place) -> str:
    """Return a combination of factors in words."""
    return (
        ", ".join(value if not value.replace(".", "").isdigit() else f"{words(name)} {value}" for name, value in place)
        or "all"
    )


def _doses(record: StudyRecord) -> list[Section]:
    """A section for each metric: means over doses with intervals, each seed as a dot that leads to its cell."""
    names = varying(record)
    sections: list[Section] = []
    for metric in metrics_of(record):
        found = [
            mean for mean in record.means if mean.metric == metric and not missing(mean.mean) and not missing(mean.dose)
        ]
        places = list(dict.fromkeys(place_of(mean.factors, names) for mean in found))
        parts = [("", places, 0)]
        if len(places) > LINES:  # a chart for each level of the first factor, which the others need not repeat
            levels = dict.fromkeys(place[:1] for place in places)
            parts = [(told(level), [place for place in places if place[:1] == level], 1) for level in levels]
        labels = list(dict.fromkeys(told(place[skip:]) for _, some, skip in parts for place in some))
        charts = [_dose_chart(record, metric, title, found, some, names, labels) for title, some, _ in parts if some]
        if charts:
            lead = (
                "Means over seeds with 95% t intervals; they lead to their row of the grid. Small dots are seeds, and lead to "
                "their cells."
            )
            legend = (
                [Series(label, (), tone(at), shape(at)) for at, label in enumerate(labels)] if len(labels) > 1 else []
            )
            sections.append(
                Section(
                    f"dose-{len(sections)}", words(metric).capitalize(), "sections/charts.html.j2", "" if sections else lead,
                    {"legend": legend},
                    tuple(_on_scales(charts, metric, within=_within(found))),
                )
            )  # fmt: skip
    return sections


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
        (at, row) for at, row in enumerate(record.runs) if not missing(row.metrics.get(metric)) and dose in row.factors
    ]
    for place in places:
        label = told(place[1:] if title else place)
        at = labels.index(label)
        shift = (at - (len(labels) - 1) / 2) * 0.012 * reach  # side by side, not on top of each other
        mine = sorted((m for m in means if place_of(m.factors, names) == place), key=lambda m: m.dose)
        points = []
        for mean in mine:
            tip = _tip(metric, f"{told(place)}, {words(dose)} {number(mean.dose)}", mean)
            link = links.get((place, mean.dose), "")
            points.append(Point(mean.dose + shift, mean.mean, tip, mean.low, mean.high, href=link))
            rows.append(
                (told(place), number(mean.dose), str(mean.n), _value(metric, mean.mean),
                 NONE if mean.low is None else f"{_value(metric, mean.low)} to {_value(metric, mean.high)}")
            )  # fmt: skip
        series.append(Series(label, points, tone(at), shape(at)))
        if len(numbered) <= SEED_DOTS:
            dots = [
                Point(
                    float(row.factors[dose]) + shift, row.metrics[metric] or 0.0,
                    f"seed {row.seed}: {_value(metric, row.metrics[metric])}", href=f"#cell-{n}",
                )
                for n, row in numbered
                if place_of(row.factors, names) == place and _is_number(row.factors[dose])
            ]  # fmt: skip
            series.append(Series(f"seeds of {label}", dots, tone(at), "dot", line=False))
    shown = f"{words(metric)}" + (f", {title}" if title else "")
    return Chart(
        "dose", shown.capitalize(), f"Means of {plural(len(places), 'combination')} at {plural(len(doses), 'dose')}.",
        _dose_axis(doses, words(dose)), linear(0.0, 1.0, words(metric)), series, height=260, keyless=True,
        headings=("factors", words(dose), "seeds", "mean", "95% interval"), rows=rows,
    )  # fmt: skip


def _tip(metric: str, where: str, mean: DoseMean) -> str:
    ends = (
        "" if mean.low is None or mean.high is None else f" [{_value(metric, mean.low)} to {_value(metric, mean.high)}]"
    )
    return f"{where}: {_value(metric, mean.mean)}{ends} ({plural(mean.n, 'seed')})"


def _dose_axis(doses: Sequence[float], label: str) -> Axis:
    """A scale with a tick at each dose, where they are few."""
    axis = linear(doses[0], doses[-1], label, margin=0.05, tight=True)
    return axis if len(doses) > LINES else replace(axis, ticks=tuple((dose, number(dose)) for dose in doses))


def _within(means: Sequence[DoseMean]) -> bool:
    """Whether all means lie in [0, 1]: then an interval that leaves it is cut off at its ends."""
    return all(0 <= mean.mean <= 1 for mean in means)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _value(metric: str, value: float | None) -> str:
    return percent(value) if is_share(metric) else number(value)


def _difference(metric: str, value: float | None) -> str:
    if is_share(metric) or value is None or missing(value):
        return signed(value)
    return (f"{value:+,.0f}" if abs(value) >= 1000 else f"{value:+.3g}").replace("-", "−")


def _published(record: StudyRecord) -> Section | None:
    """Published figures beside what was seen here, in per cent: curves over the doses, and a row each."""
    rows = [one for one in record.published if any(v is not None for v in (one.published, one.here, one.repaired))]
    if not rows:
        return None
    values = [
        v for one in rows for v in (one.published, one.here, one.low, one.high) if v is not None and not missing(v)
    ]
    repaired = any(one.repaired is not None for one in rows)
    content = {"rows": rows, "low": min([0.0, *values]), "high": max([1.0, *values]), "repaired": repaired}
    lead = "Published figures, and what was seen here, in per cent."
    numbered, arms = list(enumerate(rows)), list(dict.fromkeys(one.arm for one in rows))
    charts = [
        _published_chart(metric, [(at, one) for at, one in numbered if one.metric == metric], arms)
        for metric in dict.fromkeys(one.metric for one in rows)
    ]
    drawn = tuple(chart for chart in charts if chart is not None)
    return Section("published", "Published and here", "sections/published.html.j2", lead, content, drawn)


def _published_chart(metric: str, rows: Sequence[tuple[int, PublishedFigure]], arms: Sequence[str]) -> Chart | None:
    """Each arm twice: as published, dashed, and as seen here with its intervals. None where there is but one dose."""
    doses = sorted({one.percent for _, one in rows})
    if len(doses) < 2:
        return None
    series = []
    for number_of, arm in enumerate(arms):
        mine = sorted((pair for pair in rows if pair[1].arm == arm), key=lambda pair: pair[1].percent)
        for kind, field in (("published", "published"), ("here", "here")):
            points = [
                Point(
                    one.percent, value, f"{arm}, {kind}, {number(one.percent)}%: {value:.2f}",
                    one.low if field == "here" else None, one.high if field == "here" else None, href=f"#published-{at}",
                )
                for at, one in mine
                if (value := getattr(one, field)) is not None and not missing(value)
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


def _effects(record: StudyRecord) -> list[Section]:
    """Forest plots: paired differences to the same seed without copies, and between levels."""
    sections = []
    for kind, title in (("dose", "Effects of copies"), ("contrast", "Effects between levels")):
        found = [one for one in record.comparisons if one.kind == kind]
        groups = []
        for metric, same in itertools.groupby(sorted(found, key=lambda one: one.metric), key=lambda one: one.metric):
            groups.append(_forest(record, metric, list(same)))
        main = [group for group in groups if group["name"] in metrics_of(record)]
        others = [group for group in groups if group not in main]
        if groups:
            lead = (
                "Paired differences to the same seed without copies, with 95% t intervals over seeds; the grey zone is the "
                "margin within which a difference counts as none. Only primary comparisons are corrected for their number."
                if kind == "dose"
                else "How much the effect of copies differs between two levels, with 95% t intervals over seeds."
            )
            sections.append(
                Section(f"effects-{kind}", title, "sections/forest.html.j2", lead, {"main": main, "others": others})
            )
    return sections


def _forest(record: StudyRecord, metric: str, found: Sequence[PairedComparison]) -> dict[str, Any]:
    ends = [
        abs(v)
        for one in found
        for v in (one.difference, one.low, one.high, one.margin)
        if v is not None and not missing(v)
    ]
    names, links = varying(record), grid_links(record)
    rows = [
        {
            "one": one,
            "link": links.get((place_of(one.factors, names), one.dose), "") if one.dose is not None else "",
            "label": told(place_of(one.factors, names)) + (f": {one.level} against {one.against}" if one.level else ""),
            "difference": _difference(metric, one.difference),
            "interval": "" if one.low is None else f"{_difference(metric, one.low)} to {_difference(metric, one.high)}",
            "p": number(one.p, 2),
            "holm": "" if one.p_holm is None else number(one.p_holm, 2),
            "low": None if missing(one.low) else one.low,
            "high": None if missing(one.high) else one.high,
        }
        for one in found
    ]  # fmt: skip
    unit = " (points)" if is_share(metric) else ""
    return {
        "metric": words(metric) + unit,
        "name": metric,
        "rows": rows,
        "reach": max(ends, default=0.0) or 1.0,
        "share": is_share(metric),
    }


def _anova(record: StudyRecord) -> Section | None:
    if not record.anova:
        return None
    rows = [
        [
            Cell(words(term.metric)), Cell(term.term), Cell(f"{number(term.df)}, {number(term.df_error)}"),
            Cell(fixed(term.f), term.f), Cell(number(term.p, 2), term.p), Cell(number(term.p_lower_bound, 2), term.p_lower_bound),
        ]
        for term in record.anova
    ]  # fmt: skip
    caption = "Repeated measures on the paired effects, seeds as subjects; the last column holds without sphericity"
    table = Table("anova-table", caption, ("Metric", "Term", "df", "F", "p", "p, lower bound"), rows, left=2)
    return Section("anova", "Analysis of variance", "sections/table.html.j2", content=(table,))


def _readings(record: StudyRecord) -> Section | None:
    if not record.duplication_rates:
        return None
    rows = [
        [
            Cell(number(one.dose), one.dose), Cell(one.mode), Cell(one.text),
            Cell(percent(one.share_of_copies), one.share_of_copies),
            Cell(number(one.copies_percent_of_originals), one.copies_percent_of_originals),
            Cell(number(one.entries_per_original), one.entries_per_original),
            Cell(number(one.unique_percent_of_originals), one.unique_percent_of_originals),
        ]
        for one in record.duplication_rates
    ]  # fmt: skip
    headings = (
        "Dose",
        "Mode",
        "In words",
        "Copies of all",
        "Copies % of originals",
        "Entries per original",
        "Unique % of originals",
    )
    table = Table("readings-table", "The same doses as the literature states them", headings, rows, left=3)
    return Section("readings", "What a dose means", "sections/table.html.j2", content=(table,))


def _cells(record: StudyRecord) -> Section:
    """The grid, a square a cell, and the table in which each can be looked up."""
    names = grid_names(record)
    seeds = sorted({row.seed for row in record.runs})
    grid: dict[Place, dict[int, tuple[int, StudyRun]]] = {}
    for at, row in enumerate(record.runs):
        grid.setdefault(place_of(row.factors, names), {})[row.seed] = (at, row)
    content = {
        "names": [words(name) for name in names],
        "seeds": seeds,
        "grid": [
            ([value for _, value in place], [by_seed.get(seed) for seed in seeds]) for place, by_seed in grid.items()
        ],
        "rows": list(enumerate(record.runs)),
        "factors": [words(name) for name in names],
        "factor_keys": names,
        "metrics": [(words(metric), metric) for metric in metrics_of(record)],
        "value": _value,
        "status": STATUS,
    }
    lead = f"{whole(record.n_complete)} complete, {whole(record.n_failed)} failed, {whole(record.n_missing)} missing."
    return Section("cells", "Cells", "sections/cells.html.j2", lead, content)


def _remarks(record: StudyRecord) -> Section | None:
    if not record.remarks:
        return None
    return Section("remarks", "Remarks", "sections/sentences.html.j2", content=record.remarks)


def _reproduce(record: StudyRecord) -> Section:
    facts = {
        "Study": record.run_id,
        "Finished": record.created,
        "Seeds": ", ".join(map(str, record.seeds)),
        **{f"Factor {words(name)}": ", ".join(map(str, levels)) for name, levels in record.factors.items()},
        "Versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
    }
    content = {"command": record.command, "facts": facts}
    return Section("reproduce", "Run it again", "sections/reproduce.html.j2", content=content)
