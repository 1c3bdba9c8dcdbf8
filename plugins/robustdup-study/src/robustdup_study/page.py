"""The page of a study: what it concludes, in sentences, then the doses, the effects, and every cell."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from robustdup.report.format import duration, fixed, missing, number, percent, plural, whole
from robustdup.report.html.page import Cell, Notice, Page, Section, Segment, Table
from robustdup.report.runs import Run, UnfinishedRun, read_plain
from robustdup_study.figures import dose_charts, published_chart
from robustdup_study.metrics import is_share
from robustdup_study.names import (
    Place,
    difference_text,
    grid_links,
    grid_names,
    metrics_of,
    place_of,
    place_text,
    value_text,
    words,
)
from robustdup_study.records import GRID_FILE, PairedComparison, StudyRecord, StudyRun
from robustdup_study.report import levels_text, varying

STATUS = {"complete": "stands", "failed": "broken", "missing": "blank"}
VERDICTS = {"confirmed": "stands", "refuted": "broken", "equivalent": "wrong", "undecided": "undecided"}


def unfinished(folder: Path) -> UnfinishedRun | None:
    """Return what is there of a study without a record yet; None where the folder holds something else."""
    if not (folder / GRID_FILE).is_file():
        return None
    content = read_plain(folder / GRID_FILE)
    recipe, lines = content.get("recipe"), (content.get("runs") or content.get("lines"))
    keys = {str(line.get("key")) for line in lines if isinstance(line, dict)} if isinstance(lines, list) else set()
    statuses = {path.parent.name: read_plain(path).get("status") for path in (folder / "cells").glob("*/cell.json")}
    counts = [sum(statuses.get(key) == status for key in keys) for status in ("complete", "failed")]
    there = f"Of {plural(len(keys), 'cell')} {counts[0]} {'is' if counts[0] == 1 else 'are'} complete and {counts[1]} failed."
    commands = ["robustdup study run CONFIG", "robustdup study report CONFIG"]
    return UnfinishedRun(folder, recipe if isinstance(recipe, dict) else {}, there, commands)


def study_page(run: Run, name: str) -> Page:
    """Return the page of a study, whole or partial."""
    record = run.record
    sections = [
        _claims(record),
        _conclusions(record),
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
    verdicts = [comparison.verdict for comparison in record.comparisons if comparison.primary]
    if not verdicts:
        return f"{plural(record.n_complete, 'cell')} of {record.n_cells} are complete; no primary comparison can be made yet."
    in_words = {"one seed": "with one seed so far"}
    counts = [
        f"{verdicts.count(verdict)} {in_words.get(verdict, verdict)}" for verdict in dict.fromkeys(sorted(verdicts))
    ]
    return f"Of {plural(len(verdicts), 'primary comparison')} with no copies: {', '.join(counts)}."


def _conclusions(record: StudyRecord) -> Section | None:
    if not record.conclusions:
        return None
    lead = f"The analysis was fixed on {record.analysis_since}." if record.analysis_since else ""
    return Section("conclusions", "Conclusions", "sections/sentences.html.j2", lead, record.conclusions)


def _crossovers(record: StudyRecord) -> Section | None:
    if not record.image_differences:
        return None
    lead = "Answers to an image in the seeds that duplicated it, against those that did not; image and seed are held fixed."
    sentences = [difference.sentence for difference in record.image_differences]
    return Section(
        "image_differences", "The same images with and without copies", "sections/sentences.html.j2", lead, sentences
    )


def _claims(record: StudyRecord) -> Section | None:
    if not record.claims:
        return None
    content = {
        "claims": [(claim, VERDICTS.get(claim.verdict, "blank")) for claim in record.claims],
        "budgets": list(dict.fromkeys(budget for claim in record.claims for budget in claim.by_budget)),
    }
    lead = (
        "Effect: did accuracy move as claimed? Attribution: because of copies, or of what came along with them? A claim is "
        "confirmed or refuted only where copies are all that differs. No verdict reaches further than its scope."
    )
    return Section("claims", "Published claims", "sections/claims.html.j2", lead, content)


def _doses(record: StudyRecord) -> list[Section]:
    """A section for each metric: means over doses with intervals, each seed as a dot that leads to its cell."""
    sections: list[Section] = []
    for metric in metrics_of(record):
        charts, legend = dose_charts(record, metric)
        if charts:
            lead = (
                "Means over seeds with 95% t intervals; they lead to their row of the grid. Small dots are seeds, and lead to "
                "their cells."
            )
            sections.append(
                Section(
                    f"dose-{len(sections)}", words(metric).capitalize(), "sections/charts.html.j2", "" if sections else lead,
                    {"legend": legend},
                    tuple(charts),
                )
            )  # fmt: skip
    return sections


def _published(record: StudyRecord) -> Section | None:
    """Published figures beside what was seen here, in per cent: curves over the doses, and a row each."""
    numbered = [
        (number, row)
        for number, row in enumerate(record.published)
        if any(v is not None for v in (row.published, row.here, row.repaired))
    ]
    if not numbered:
        return None
    rows = [row for _, row in numbered]
    values = [
        v for row in rows for v in (row.published, row.here, row.low, row.high) if v is not None and not missing(v)
    ]
    repaired = any(row.repaired is not None for row in rows)
    content = {"rows": numbered, "low": min([0.0, *values]), "high": max([1.0, *values]), "repaired": repaired}
    lead = "Published figures, and what was seen here, in per cent."
    arms = list(dict.fromkeys(row.arm for row in rows))
    charts = [
        published_chart(metric, [(number, row) for number, row in numbered if row.metric == metric], arms)
        for metric in dict.fromkeys(row.metric for row in rows)
    ]
    drawn = tuple(chart for chart in charts if chart is not None)
    return Section("published", "Published and here", "sections/published.html.j2", lead, content, drawn)


def _effects(record: StudyRecord) -> list[Section]:
    """Forest plots: paired differences to the same seed without copies, and between levels."""
    sections = []
    for kind, title in (("dose", "Effects of copies"), ("contrast", "Effects between levels")):
        comparisons = [comparison for comparison in record.comparisons if comparison.kind == kind]
        groups = []
        for metric, same in itertools.groupby(
            sorted(comparisons, key=lambda comparison: comparison.metric), key=lambda comparison: comparison.metric
        ):
            groups.append(_forest(record, metric, list(same)))
        main = [group for group in groups if group["name"] in metrics_of(record)]
        others = [group for group in groups if group not in main]
        if groups:
            lead = (
                "Paired differences to the same seed without copies, with 95% t intervals over seeds, for these test images; "
                "the grey zone is the "
                "margin within which a difference counts as none. Only primary comparisons are corrected for their number."
                if kind == "dose"
                else "How much the effect of copies differs between two levels, with 95% t intervals over seeds."
                if any(comparison.kind == "dose" for comparison in record.comparisons)
                else "Paired differences between two levels, with 95% t intervals over seeds; for a change, how much it differs."
            )
            sections.append(
                Section(f"effects-{kind}", title, "sections/forest.html.j2", lead, {"main": main, "others": others})
            )
    return sections


def _forest(record: StudyRecord, metric: str, comparisons: Sequence[PairedComparison]) -> dict[str, Any]:
    ends = [
        abs(v)
        for comparison in comparisons
        for v in (comparison.difference, comparison.low, comparison.high, comparison.margin)
        if v is not None and not missing(v)
    ]
    names, links = varying(record), grid_links(record)
    rows = [
        {
            "one": comparison,
            "link": links.get((place_of(comparison.factors, names), comparison.dose), "") if comparison.dose is not None else "",
            "label": place_text(place_of(comparison.factors, names))
            + (f": {levels_text(comparison)}" if comparison.level else ""),
            "difference": difference_text(metric, comparison.difference),
            "interval": ""
            if comparison.low is None
            else f"{difference_text(metric, comparison.low)} to {difference_text(metric, comparison.high)}",
            "p": number(comparison.p, 2),
            "holm": "" if comparison.p_holm is None else number(comparison.p_holm, 2),
            "low": None if missing(comparison.low) else comparison.low,
            "high": None if missing(comparison.high) else comparison.high,
        }
        for comparison in comparisons
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
            Cell(number(rate.dose), rate.dose), Cell(rate.mode), Cell(rate.text),
            Cell(percent(rate.share_of_copies), rate.share_of_copies),
            Cell(number(rate.copies_percent_of_originals), rate.copies_percent_of_originals),
            Cell(number(rate.entries_per_original), rate.entries_per_original),
            Cell(number(rate.unique_percent_of_originals), rate.unique_percent_of_originals),
        ]
        for rate in record.duplication_rates
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
    for index, row in enumerate(record.runs):
        grid.setdefault(place_of(row.factors, names), {})[row.seed] = (index, row)
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
        "value": value_text,
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
