"""Several evaluations on one page: what each is worth, and how each differs from the first on the same samples."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from robustdup.errors import UserError
from robustdup.leaderboard.compare import SampleOutcomes, in_both, same_threat, sample_outcomes
from robustdup.records import EvaluationRecord, bound_text, doubt_text, doubts
from robustdup.report.charts import Axis, Chart, Point, Series, linear, shape, tone
from robustdup.report.evaluation_figures import LINES, curves
from robustdup.report.format import attack_label, interval, missing, percent, share_text, signed, whole
from robustdup.report.html.evaluation import partial
from robustdup.report.html.evaluation_sections import class_names
from robustdup.report.html.page import Section, chart_section
from robustdup.report.runs import Run, labels
from robustdup.statistics import tango_interval

COLUMNS = 8  # models side by side; more are compared in rows only


@dataclass(frozen=True)
class Difference:
    """A minus B on the `n` samples that both decided, with Tango's 95% interval; or why there is none."""

    n: int = 0
    value: float = 0.0
    low: float = 0.0
    high: float = 0.0
    only_a: int = 0
    only_b: int = 0
    reason: str = ""

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return not self.reason and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Compared:
    """A run with its outcomes, None where its samples cannot be used."""

    run: Run
    outcomes: SampleOutcomes | None
    label: str


def compared(runs: Sequence[Run]) -> list[Compared]:
    """Return runs with outcomes and with labels that tell them apart."""
    return [Compared(run, _outcomes(run), label) for run, label in zip(runs, labels(runs), strict=True)]


def _outcomes(run: Run) -> SampleOutcomes | None:
    if run.samples is None:
        return None
    try:
        return sample_outcomes(run.record, run.samples)
    except (UserError, KeyError, ValueError, TypeError):
        return None


def robust_difference(a: Compared, b: Compared) -> Difference:
    """Return robust accuracy of A minus B on the same samples; `reason` says why it cannot be said."""
    first, second = a.run.record, b.run.record
    if not same_threat(first, second):
        return Difference(reason=f"other threat model: {first.threat.short}, {second.threat.short}")
    if a.outcomes is None or b.outcomes is None:
        return Difference(reason="no samples")
    in_a, in_b = in_both(a.outcomes, b.outcomes)
    if not len(in_a):
        return Difference(reason="no sample in common")
    if (a.outcomes.image[in_a] != b.outcomes.image[in_b]).any() or (
        a.outcomes.label[in_a] != b.outcomes.label[in_b]
    ).any():
        return Difference(reason="other images")
    own, theirs = a.outcomes.robust[in_a], b.outcomes.robust[in_b]
    decided = (own >= 0) & (theirs >= 0)
    n = int(decided.sum())
    if not n:
        return Difference(reason="no sample decided in both")
    only_a = int((decided & (own == 1) & (theirs == 0)).sum())
    only_b = int((decided & (own == 0) & (theirs == 1)).sum())
    low, high = tango_interval(only_a, only_b, n)
    return Difference(n, (only_a - only_b) / n, low, high, only_a, only_b)


def comparison_sections(runs: Sequence[Run], links: Sequence[str]) -> list[Section]:
    """Return the sections that compare at least two runs; `links` are the runs' own pages, "" where there is none."""
    all_runs = compared(runs)
    sections = [
        _overview(all_runs, links),
        _scatter(all_runs, links),
        chart_section("curves", "Robust accuracy over eps", curves(runs, [run.label for run in all_runs])),
        _side_by_side(all_runs),
        _pairs(all_runs),
    ]
    return [section for section in sections if section is not None]


def _overview(runs: list[Compared], links: Sequence[str]) -> Section:
    base = runs[0]
    differences = [None if run is base else robust_difference(run, base) for run in runs]
    rows = []
    for run, link, difference in zip(runs, links, differences, strict=True):
        rows.append(
            {
                "label": run.label, "record": run.run.record, "link": link, "difference": difference,
                "partial": "; ".join(partial(run.run.record)), "doubt": doubt_text(run.run.record), "base": run is base,
            }
        )  # fmt: skip
    seen = [difference for difference in differences if difference is not None and not difference.reason]
    reach = max([0.01, *(max(abs(d.low), abs(d.high)) for d in seen)])
    content = {"rows": rows, "base": base.label, "reach": reach, "differences": len(rows) > 1}
    return Section("overview", "Robust accuracy", "sections/overview.html.j2", _lead(runs, seen), content)


def _lead(runs: list[Compared], differences: Sequence[Difference]) -> str:
    known = [run for run in runs if not missing(run.run.record.robust_accuracy.value) and not doubts(run.run.record)]
    if not known:
        return "No run has a robust accuracy that may be believed."
    if len({(r.run.record.threat.norm, r.run.record.threat.eps_text) for r in runs}) > 1:
        return "The threat models differ: compare only runs within the same one."
    best = max(known, key=lambda run: run.run.record.robust_accuracy.value)
    text = f"{best.label} is the most robust of {len(runs)}: {percent(best.run.record.robust_accuracy.value)}."
    clear = sum(difference.clear for difference in differences)
    if len(differences) == 1:
        text += f" The difference between the two {'excludes' if clear else 'does not exclude'} zero at 95%."
    elif differences:
        text += f" {clear} of {len(differences)} differences from {runs[0].label} exclude zero at 95%, each by itself."
    if len({tuple(attack_label(attack) for attack in run.run.record.attacks) for run in runs}) > 1:
        text += " The attacks differ: a difference may be theirs, not the models'."
    return text


def _scatter(runs: list[Compared], links: Sequence[str]) -> Section | None:
    known = [
        (run, link)
        for run, link in zip(runs, links, strict=True)
        if not missing(run.run.record.clean_accuracy.value) and not missing(run.run.record.robust_accuracy.value)
    ]
    if len(known) < 3:
        return None
    several = len(known) <= LINES
    series, points = [], []
    for number, (run, link) in enumerate(known):
        clean, robust = run.run.record.clean_accuracy, run.run.record.robust_accuracy
        tip = f"{run.label}: clean {percent(clean.value)}, robust {percent(robust.value)}"
        low, high = (robust.low, robust.high) if several else (None, None)
        points.append(Point(clean.value, robust.value, tip, low, high, href=link))
        series.append(Series(run.label, points[-1:], tone(number), shape(number), line=False))
    chart = Chart(
        "scatter", "Clean against robust accuracy", f"{len(points)} runs; upper right is better on both.",
        _fitted([p.x for p in points], "clean accuracy"),
        _fitted([y for p in points for y in (p.y, p.low, p.high) if y is not None], "robust accuracy"),
        series if several else [Series("runs", points, line=False)], height=320,
    )  # fmt: skip
    return chart_section("tradeoff", "Clean against robust accuracy", chart)


def _fitted(values: list[float], label: str) -> Axis:
    low, high = max(0.0, min(values) - 0.01), min(1.0, max(values) + 0.01)
    return linear(low, high, label, text=share_text)


def _side_by_side(runs: list[Compared]) -> Section | None:
    """Models as columns: what is asked of each, and by attack and class."""
    if len(runs) > COLUMNS:
        return None
    records = [run.run.record for run in runs]
    rows: list[tuple[str, list[str]]] = [
        ("Data", [f"{r.data.spec}, {r.data.split}" for r in records]),
        ("Images", [f"{whole(r.n)} of {whole(r.data.n_total)}" for r in records]),
        ("Threat model", [r.threat.text for r in records]),
        ("Parameters", [whole(r.model.parameters) for r in records]),
        ("Clean accuracy", [percent(r.clean_accuracy.value) for r in records]),
        ("Robust accuracy", [bound_text(r) if doubts(r) else percent(r.robust_accuracy.value) for r in records]),
        ("95% interval", [interval(r.robust_accuracy.low, r.robust_accuracy.high) for r in records]),
        ("Diagnostics", [_signs(r) for r in records]),
    ]
    attacks = {record_number: {attack_label(a): a for a in r.attacks} for record_number, r in enumerate(records)}
    names = dict.fromkeys(itertools.chain.from_iterable(attacks.values()))
    by_attack = [
        (name, [percent(entry.robust_accuracy_after) if (entry := attacks[i].get(name)) else "" for i in attacks])
        for name in names
    ]
    groups = [("", rows), ("Robust accuracy after each attack", by_attack)]
    classes = [dict(zip(class_names(r), r.per_class, strict=False)) for r in records]
    shown = [name for name in class_names(records[0]) if any(name in entry for entry in classes)]
    if 1 < len(shown) <= 30:
        by_class = [
            (name, [percent(entry[name].robust_accuracy) if name in entry else "" for entry in classes])
            for name in shown
        ]
        groups.append(("Robust accuracy by class", by_class))
    content = {"labels": [run.label for run in runs], "groups": groups}
    return Section("models", "Side by side", "sections/models.html.j2", content=content)


def _signs(record: EvaluationRecord) -> str:
    counts = {level: sum(s.severity == level for s in record.diagnostics) for level in ("serious", "warning", "info")}
    return ", ".join(f"{count} {level}" for level, count in counts.items() if count) or "none"


def _pairs(runs: list[Compared]) -> Section | None:
    """Every pair as a matrix of differences, row minus column."""
    if not 2 < len(runs) <= COLUMNS:
        return None
    matrix = [
        {"label": a.label, "cells": [None if a is b else robust_difference(a, b) for b in runs]} for a in runs
    ]  # fmt: skip
    lead = (
        "Robust accuracy of the row minus that of the column, in points, on the same images; bold where the interval "
        "excludes zero."
    )
    content = {"labels": [run.label for run in runs], "matrix": matrix}
    return Section("pairs", "Every pair", "sections/pairs.html.j2", lead, content)


def difference_text(difference: Difference) -> str:
    """Return a difference with its interval in words."""
    if difference.reason:
        return difference.reason
    return f"{signed(difference.value)} [{signed(difference.low)} to {signed(difference.high)}]"
