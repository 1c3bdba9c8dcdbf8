"""The sections of the page of an evaluation that show what the verdict rests on."""

from __future__ import annotations

from typing import Any

import numpy as np

from robustdup.records import AttackResult, EvaluationRecord
from robustdup.report.evaluation_figures import curve, histogram
from robustdup.report.format import attack_label, missing, number, percent, plural, whole, with_interval
from robustdup.report.gallery import find_pictures, make_gallery
from robustdup.report.html.page import Section, chart_section
from robustdup.report.runs import Run
from robustdup.report.samples import Samples, confusion
from robustdup.report.tables import alone_text

OUTCOME_NAMES = {
    "stands": "still right",
    "broken": "broken by an attack",
    "undecided": "undecided",
    "wrong already": "wrong already",
}
CONFUSION_CLASSES = 20  # more do not fit on a screen: then the most frequent mistakes are listed instead
MISTAKES = 20


def cascade_section(record: EvaluationRecord) -> Section:
    by_eps = record.curve_attacks or {record.threat.eps_text: record.attacks}
    union = bool(record.union)
    tables = [
        {
            "eps": eps if union else f"eps {eps}",
            "open": union or eps == record.threat.eps_text,
            "first": not union or eps == record.union[0].name,  # the others begin where the one before them ended
            "rows": [_stage(record, attack) for attack in attacks],
        }
        for eps, attacks in by_eps.items()
    ]
    lead = (
        "Each attack ran alone on all samples that the model gets right."
        if record.individual
        else "Each attack meets the samples that those before it left. Only the referee decides what counts as broken."
    )
    n_broken = sum(attack.n_broken for attack in record.attacks)
    if record.attacks and not n_broken:
        lead += " No attack broke a sample."
    clean = record.clean_accuracy.value
    content = {
        "tables": tables,
        "right": None if record.individual or missing(clean) else clean,
        "escalation": _escalation(record),
        "undecided": any(attack.n_undecided for attacks in by_eps.values() for attack in attacks),
    }
    return Section("cascade", "Attacks", "sections/cascade.html.j2", lead, content)


def union_section(record: EvaluationRecord) -> Section | None:
    """Return what became of the samples in each ball of a union over norms."""
    if not record.union:
        return None
    rows = [
        {"ball": ball, "alone": alone_text(ball), "after": with_interval(ball.robust_accuracy_after)}
        for ball in record.union
    ]
    lead = "A sample is robust when it survives in every ball."
    if any(ball.n_open for ball in record.union):
        lead += (
            " What one ball has broken was not attacked in the next: accuracies in one ball alone are bounds there "
            "(--each-norm attacks all samples in each)."
        )
    return Section("union", "Union over norms", "sections/union.html.j2", lead, rows)


def _stage(record: EvaluationRecord, attack: AttackResult) -> dict[str, Any]:
    n = max(record.n, 1)
    n_robust = attack.n_attacked - attack.n_broken - attack.n_undecided
    return {
        "attack": attack,
        "label": attack_label(attack),
        "held": n_robust / n,
        "broken": attack.n_broken / n,
        "undecided": attack.n_undecided / n,
    }


def _escalation(record: EvaluationRecord) -> str:
    escalation = record.escalation
    if escalation is None:
        return ""
    if escalation.escalated:
        return f"Signs of masked gradients, so the full ensemble was run: {'; '.join(escalation.reasons)}."
    return "No sign of masked gradients was seen, so the stages for masked models were left out."


def curve_section(record: EvaluationRecord) -> Section | None:
    """Return robust accuracy over eps."""
    lead = "What breaks a sample within a smaller ball breaks it within a larger one."
    return chart_section("curve", "Robust accuracy over eps", curve(record), lead)


def classes_section(record: EvaluationRecord) -> Section | None:
    rows = [result for result in record.per_class if result.n]
    if not rows:
        return None
    known = [result for result in rows if not missing(result.robust_accuracy)]
    lead = "One class only." if len(rows) == 1 else ""
    if len(known) > 1:
        worst = min(known, key=lambda result: result.robust_accuracy or 0.0)
        best = max(known, key=lambda result: result.robust_accuracy or 0.0)
        alike = worst.robust_accuracy == best.robust_accuracy
        lead = (
            f"All classes are at {percent(best.robust_accuracy)}."
            if alike
            else f"The weakest class is {worst.name} ({percent(worst.robust_accuracy)} of {whole(worst.n)}), the strongest "
            f"{best.name} ({percent(best.robust_accuracy)} of {whole(best.n)})."
        )
    return Section("classes", "By class", "sections/classes.html.j2", lead, rows)


def class_names(record: EvaluationRecord) -> list[str]:
    """Return a name for each class; its number where the data gives none."""
    names = list(record.data.class_names)
    return names + [str(label) for label in range(len(names), record.model.num_classes)]


def confusion_section(record: EvaluationRecord, samples: Samples | None) -> Section | None:
    names = class_names(record)
    if samples is None or not len(samples) or len(names) < 2:
        return None
    table = confusion(samples, len(names))
    wrong = table.copy()
    np.fill_diagonal(wrong, 0)
    if not wrong.any():
        return Section(
            "confusion", "Confusion under attack", "sections/confusion.html.j2", "No sample was misclassified.", None
        )
    totals = table.sum(axis=1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MISTAKES]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[i, j]]
    mistakes = [
        {"true": names[i], "taken": names[j], "count": int(wrong[i, j]), "share": wrong[i, j] / max(totals[i], 1)}
        for i, j in pairs
    ]
    first = mistakes[0]
    lead = (
        f"Predictions on the worst example of each sample. Most often {first['true']} is taken for {first['taken']} "
        f"({first['count']} of {whole(int(totals[pairs[0][0]]))})."
    )
    matrix = None
    if len(names) <= CONFUSION_CLASSES:
        share = table / np.maximum(totals[:, None], 1)
        matrix = [
            {"name": names[i], "cells": [(int(table[i, j]), float(share[i, j]), i == j) for j in range(len(names))]}
            for i in range(len(names))
        ]
    content = {"names": names, "matrix": matrix, "mistakes": mistakes}
    return Section("confusion", "Confusion under attack", "sections/confusion.html.j2", lead, content)


def distances_section(record: EvaluationRecord, samples: Samples | None) -> Section | None:
    """How far the adversarial examples lie: a histogram, and what each minimum-norm attack found."""
    rows = [
        (attack_label(attack), whole(distances.n), number(distances.median), number(distances.mean))
        for attack in record.attacks
        if (distances := attack.distances) is not None and distances.n
    ]
    charts, lead = [], ""
    if samples is not None:
        nearest = samples.min_distance[samples.outcome != "wrong already"]
        if np.isfinite(nearest).any():
            lead = "The smallest distance at which each sample was seen to break: an upper bound of the true one."
            charts.append(histogram(record, nearest[np.isfinite(nearest)], "smallest distance found"))
        else:
            broken = samples.distance[(samples.outcome == "broken") & np.isfinite(samples.distance)]
            full = float((broken >= 0.99 * record.threat.eps).mean()) if len(broken) else 0.0
            if record.union:
                lead = ""  # distances in several norms have no common scale
            elif len(broken) and full >= 0.95:
                lead = (
                    f"{percent(full, 0)} of the {plural(len(broken), 'adversarial example')} use the whole budget: they lie "
                    f"within 1% of eps = {record.threat.eps_text}."
                )
            elif len(broken):
                lead = f"Distances of the {plural(len(broken), 'adversarial example')} to their clean images."
                charts.append(histogram(record, broken, "distance"))
    if not lead and not rows:
        return None
    return Section("distances", "Distances", "sections/distances.html.j2", lead, rows, tuple(charts))


def diagnostics_section(record: EvaluationRecord) -> Section:
    violating = [attack for attack in record.attacks if attack.violations]
    remarks = [(attack.name, attack.warning) for attack in record.attacks if attack.warning]
    errors = [(attack.name, error) for attack in record.attacks for error in attack.errors]
    order = {"serious": 0, "warning": 1, "info": 2}
    content = {
        "signs": sorted(record.diagnostics, key=lambda sign: order[sign.severity]),
        "violations": [
            {
                "attack": attack,
                "label": attack_label(attack),
                "kinds": ", ".join(
                    f"{kind.replace('_', ' ')} {count}" for kind, count in attack.violation_kinds.items()
                ),
            }
            for attack in violating
        ],
        "remarks": remarks,
        "errors": errors,
        "events": record.events,
    }
    checked = record.config.get("diagnostics", True)
    lead = "" if record.diagnostics else "No sign that the number is not what it seems."
    if not checked:
        lead = "The checks for a broken evaluation were switched off for this run."
    if not violating and record.attacks:
        lead += " Every attack stayed within the threat model."
    return Section("diagnostics", "Diagnostics", "sections/diagnostics.html.j2", lead.strip(), content)


def gallery_section(run: Run, samples: Samples | None, name: str, files: dict[str, bytes]) -> Section:
    """The pictures; where there are none, why."""

    def without(reason: str) -> Section:
        return Section("gallery", "Gallery", "sections/gallery.html.j2", reason, None)

    if samples is None:
        return without("Pictures need the table of samples, which is not there.")
    if run.gallery < 1:
        return without("Left out (--gallery 0).")
    pictures = find_pictures(run.folder, len(samples), run.clean_images)
    if isinstance(pictures, str):
        return without(pictures)
    try:
        gallery = make_gallery(run.record, samples, pictures, prefix=name, limit=run.gallery)
    except (OSError, ValueError) as error:
        return without(f"The images of the run cannot be read: {error}.")
    files.update(dict(gallery.sheets))
    data = {**gallery.data, "classes": class_names(run.record), "names": OUTCOME_NAMES}
    content = {
        "gallery": gallery,
        "data": data,
        "attacks": sorted({p["attack"] for p in gallery.data["samples"]} - {""}),
    }
    return Section("gallery", "Gallery", "sections/gallery.html.j2", _gallery_lead(run, gallery), content)


def _gallery_lead(run: Run, gallery: Any) -> str:
    text = f"{whole(gallery.shown)} of {plural(gallery.total, 'sample')}"
    text += ", some of each outcome, attack and class." if gallery.shown < gallery.total else "."
    if gallery.magnified is not None:
        size = (
            f"magnified {number(gallery.magnified, 3)} times"
            if gallery.magnified > 1
            else f"at {gallery.magnified:.0%} of its size"
        )
        text += f" From left to right: clean, adversarial, and their difference {size} (grey is no change)."
    if not gallery.has_clean:
        text += " This run kept no clean images, so only the adversarial ones are shown (see report --clean-images)."
    return text + (" Pictures are shrunk." if gallery.shrunk else "")
