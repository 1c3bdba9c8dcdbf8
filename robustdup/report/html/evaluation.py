"""The page of one evaluation: the verdict first, then what it rests on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from robustdup.errors import RobustdupError, UserError
from robustdup.leaderboard import RankResult, position
from robustdup.records import AttackResult, EvaluationRecord
from robustdup.report.charts import Bar, Chart, Point, Rule, Series, linear, measured, shares
from robustdup.report.charts import counts as count_scale
from robustdup.report.format import interval, missing, number, percent, plural, whole
from robustdup.report.html.board import board_section
from robustdup.report.html.gallery import Array, find_pictures, make_gallery
from robustdup.report.html.page import Figure, Notice, Page, Section, Segment
from robustdup.report.runs import EvaluationRun
from robustdup.report.samples import OUTCOMES, Points, confusion, read_points

TONES = dict(zip(OUTCOMES, ("stands", "broken", "undecided", "wrong"), strict=True))
NAMES = {
    "stands": "still right",
    "broken": "broken by an attack",
    "undecided": "undecided",
    "wrong already": "wrong already",
}
CONFUSION_CLASSES = 20  # more do not fit on a screen: then the most frequent mistakes are listed instead
MISTAKES = 20
BINS = 20


def evaluation_page(run: EvaluationRun, name: str, *, gallery: int = 240, clean_images: Array | None = None) -> Page:
    """Return the page of a run; `gallery` points are shown as pictures. `clean_images` where the run kept none."""
    record = run.record
    points, notes = _points(run)
    rank = _rank(run)
    files: dict[str, bytes] = {}
    sections = [
        _cascade(record),
        _curve(record),
        _classes(record),
        _confusion(record, points),
        _distances(record, points),
        _diagnostics(record),
        _gallery(run, points, name, gallery, clean_images, files),
        board_section(record, rank),
        _reproduce(run),
    ]
    context = {
        "record": record,
        "subtitle": _subtitle(record),
        "notices": [*_notices(record), *(Notice("warning", note) for note in [*run.notes, *notes])],
        "figures": _figures(record, _rank_text(rank)),
        "sentence": _sentence(record, points),
        "segments": _segments(record, points),
        "sections": [section for section in sections if section is not None],
    }
    return Page(name, record.model.spec, "Evaluation", "evaluation.html.j2", context, files)


def _points(run: EvaluationRun) -> tuple[Points | None, list[str]]:
    if run.samples is None:
        return None, []
    try:
        return read_points(run.record, run.samples), []
    except (UserError, KeyError, ValueError, TypeError) as error:
        return None, [f"The samples of the points do not fit this record: {error}"]


def _rank(run: EvaluationRun) -> RankResult | str:
    try:
        return position(run.record, run.samples)
    except (RobustdupError, KeyError, ValueError) as error:
        return f"No rank: {error}"


def _rank_text(rank: RankResult | str) -> tuple[str, str]:
    """The rank as (a few words, what they mean)."""
    if isinstance(rank, str):
        return "No rank", rank
    board = f"{rank.dataset} {rank.threat_model} {rank.leaderboard_eps}"
    if rank.autoattack is not None:
        best, worst, total = rank.autoattack.best, rank.autoattack.worst, rank.autoattack.n_entries + 1
        if best == worst:
            return f"{best} of {total}", f"{board}, by AutoAttack"
        return (
            f"{best} to {worst} of {total}",
            f"{board}, by AutoAttack; the value itself is at {rank.autoattack.place}",
        )
    if rank.at_most is not None:
        return (
            f"At best {rank.at_most.best} of {rank.at_most.n_entries + 1}",
            f"{board}; a bound, not a rank: {rank.reasons[0]}",
        )
    return "No rank", rank.reasons[0] if rank.reasons else rank.sentence()


def _subtitle(record: EvaluationRecord) -> list[str]:
    data, chosen = record.data, {"first": "the first ", "sample": "a random "}.get(record.data.selection, "")
    of = f" of {whole(data.n_total)}" if record.n < data.n_total else ""
    return [
        f"{data.spec}, {data.split}: {chosen}{whole(record.n)}{of} images",
        f"{record.threat.norm}, eps = {record.threat.eps_text}",
        f"{record.model.architecture}, {short_parameters(record.model.parameters)} parameters",
        record.created[:10],
    ]


def short_parameters(count: int) -> str:
    """Return a number of parameters as one says it: 11.2M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return str(count)


def partial(record: EvaluationRecord) -> list[str]:
    """Return what is missing for a whole result, in words; empty where nothing is."""
    found = []
    if record.status != "complete":
        found.append("no attack finished a single call")
    if record.n_undecided:
        found.append(f"{plural(record.n_undecided, 'point')} undecided, because an attack did not finish on them")
    if record.n_not_attacked:
        found.append(f"{plural(record.n_not_attacked, 'point')} not attacked")
    return found


def _notices(record: EvaluationRecord) -> Iterator[Notice]:
    missing_parts = partial(record)
    if missing_parts:
        yield Notice("serious", f"Partial result: {'; '.join(missing_parts)}.", "No rank is given while any remain.")
    serious = [sign for sign in record.diagnostics if sign.severity == "serious"]
    for sign in serious:
        yield Notice("serious", sign.message, sign.advice)
    if any(missing(a.value) for a in (record.clean_accuracy, record.robust_accuracy)):
        yield Notice("serious", "An accuracy of this record is not a number.")
    warnings = sum(sign.severity == "warning" for sign in record.diagnostics)
    if warnings:
        yield Notice("warning", f"{plural(warnings, 'warning')} about this evaluation: see Diagnostics.")
    if record.model.randomized:
        yield Notice("info", "The model is randomised: accuracies are expected values over fresh draws.")


def _figures(record: EvaluationRecord, rank: tuple[str, str]) -> list[Figure]:
    clean, robust = record.clean_accuracy, record.robust_accuracy
    return [
        Figure(
            "Robust accuracy", percent(robust.value), robust.value, "robust_accuracy.value",
            f"95% interval {interval(robust.low, robust.high)}", big=True,
        ),
        Figure(
            "Clean accuracy", percent(clean.value), clean.value, "clean_accuracy.value",
            f"95% interval {interval(clean.low, clean.high)}",
        ),
        Figure("RobustBench", rank[0], None, "", rank[1]),
    ]  # fmt: skip


def _sentence(record: EvaluationRecord, points: Points | None) -> str:
    threat = f"{record.threat.norm} {record.threat.eps_text}"
    if record.model.randomized or points is None or len(points) != record.n:
        return (
            f"On {plural(record.n, 'image')}, clean accuracy {percent(record.clean_accuracy.value)} falls to "
            f"{percent(record.robust_accuracy.value)} under attack within {threat}."
        )
    right = record.n - points.count("wrong already")
    broken, stands, undecided = (points.count(outcome) for outcome in ("broken", "stands", "undecided"))
    text = (
        f"Of {plural(record.n, 'image')} the model classifies {whole(right)} correctly. "
        f"Attacks within {threat} change {whole(broken)} of these answers; "
    )
    left = "none stands" if stands == 0 else f"{whole(stands)} {'stands' if stands == 1 else 'stand'}"
    return text + left + (f", and {plural(undecided, 'point is', 'points are')} undecided." if undecided else ".")


def _segments(record: EvaluationRecord, points: Points | None) -> list[Segment]:
    """What became of the points, as parts of a bar; empty where it is not known point by point."""
    if points is None or not len(points) or record.model.randomized:
        return []
    counts = {outcome: points.count(outcome) for outcome in OUTCOMES}
    return [Segment(NAMES[o], n, n / len(points), TONES[o]) for o, n in counts.items() if n]


def attack_label(attack: AttackResult) -> str:
    """Return an attack's name with its options, as one would type it."""
    options = ", ".join(f"{name}={value}" for name, value in attack.options.items())
    return f"{attack.name}({options})" if options else attack.name


def _cascade(record: EvaluationRecord) -> Section:
    by_eps = record.curve_attacks or {record.threat.eps_text: record.attacks}
    tables = [
        {"eps": eps, "open": eps == record.threat.eps_text, "rows": [_stage(record, attack) for attack in attacks]}
        for eps, attacks in by_eps.items()
    ]
    lead = (
        "Each attack ran alone on all points that the model gets right."
        if record.individual
        else "Each attack meets the points that those before it left. Only the referee decides what counts as broken."
    )
    n_points = sum(attack.n_broken for attack in record.attacks)
    if record.attacks and not n_points:
        lead += " No attack broke a point."
    clean = record.clean_accuracy.value
    content = {
        "tables": tables,
        "right": None if record.individual or missing(clean) else clean,
        "escalation": _escalation(record),
        "undecided": any(attack.n_undecided for attacks in by_eps.values() for attack in attacks),
    }
    return Section("cascade", "Attacks", "sections/cascade.html.j2", lead, content)


def _stage(record: EvaluationRecord, attack: AttackResult) -> dict[str, Any]:
    n = max(record.n, 1)
    held = attack.n_attacked - attack.n_broken - attack.n_undecided
    return {
        "attack": attack,
        "label": attack_label(attack),
        "held": held / n,
        "broken": attack.n_broken / n,
        "undecided": attack.n_undecided / n,
    }


def _escalation(record: EvaluationRecord) -> str:
    found = record.escalation
    if found is None:
        return ""
    if found.escalated:
        return f"Signs of masked gradients, so the full ensemble was run: {'; '.join(found.reasons)}."
    return "No sign of masked gradients was seen, so the stages for masked models were left out."


def _curve(record: EvaluationRecord) -> Section | None:
    """Robust accuracy over eps: measured points with intervals, and what the smallest distances found say at most."""
    series, rows = [], []
    clean = record.clean_accuracy
    if record.curve:
        start = Point(0.0, clean.value, f"clean: {percent(clean.value)}", clean.low, clean.high)
        points = [
            Point(at.eps, at.value, f"eps {eps}: {percent(at.value)} [{interval(at.low, at.high)}]", at.low, at.high)
            for eps, at in record.curve.items()
        ]
        series.append(Series("robust accuracy", [start, *points], "robust", band=True))
        rows += [
            ("measured", eps, percent(at.value), interval(at.low, at.high), percent(at.alone))
            for eps, at in record.curve.items()
        ]
    if record.min_distance is not None and record.min_distance.curve:
        left = [(_eps(eps), eps, share) for eps, share in record.min_distance.curve.items()]
        bound = [Point(at, share, f"eps {eps}: at most {percent(share)}") for at, eps, share in left]
        start = Point(0.0, clean.value, f"clean: {percent(clean.value)}")
        series.append(Series("at most, from distances", [start, *bound], "c1", "square", dashed=True, marks=False))
        rows += [("at most", eps, percent(share), "", "") for _, eps, share in left]
    if not series:
        return None
    places = {at.eps: eps for eps, at in record.curve.items()} or {record.threat.eps: record.threat.eps_text}
    highest = max(point.x for line in series for point in line.points)
    if highest not in places:
        places[highest] = number(highest)
    chart = Chart(
        "curve", "Robust accuracy over eps",
        f"Robust accuracy falls from {percent(clean.value)} at eps 0 to {percent(series[0].points[-1].y)} at the largest.",
        measured(f"eps ({record.threat.norm})", places), shares("robust accuracy"), series,
        rules=[Rule(f"eps {record.threat.eps_text}", x=record.threat.eps)] if len(series) > 1 else [],
        headings=("kind", "eps", "robust accuracy", "95% interval", "attacks at this eps alone"), rows=rows,
    )  # fmt: skip
    lead = "What breaks a point within a smaller ball breaks it within a larger one."
    return Section("curve", "Robust accuracy over eps", "sections/chart.html.j2", lead, charts=(chart,))


def _eps(text: str) -> float:
    try:
        top, _, bottom = text.partition("/")
        return float(top) / float(bottom or 1)
    except (ValueError, ZeroDivisionError):
        return math.nan


def _classes(record: EvaluationRecord) -> Section | None:
    rows = [found for found in record.per_class if found.n]
    if not rows:
        return None
    known = [found for found in rows if not missing(found.robust_accuracy)]
    lead = "One class only." if len(rows) == 1 else ""
    if len(known) > 1:
        worst = min(known, key=lambda found: found.robust_accuracy or 0.0)
        best = max(known, key=lambda found: found.robust_accuracy or 0.0)
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


def _confusion(record: EvaluationRecord, points: Points | None) -> Section | None:
    names = class_names(record)
    if points is None or not len(points) or len(names) < 2:
        return None
    table = confusion(points, len(names))
    wrong = table.copy()
    np.fill_diagonal(wrong, 0)
    if not wrong.any():
        return Section(
            "confusion", "Confusion under attack", "sections/confusion.html.j2", "No point was misclassified.", None
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
        f"Predictions on the worst example of each point. Most often {first['true']} is taken for {first['taken']} "
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


def _distances(record: EvaluationRecord, points: Points | None) -> Section | None:
    """How far the adversarial examples lie: a histogram, and what each minimum-norm attack found."""
    rows = [
        (attack_label(attack), whole(found.n), number(found.median), number(found.mean))
        for attack in record.attacks
        if (found := attack.distances) is not None and found.n
    ]
    charts, lead = [], ""
    if points is not None:
        nearest = points.min_distance[points.outcome != "wrong already"]
        if np.isfinite(nearest).any():
            lead = "The smallest distance at which each point was seen to break: an upper bound of the true one."
            charts.append(_histogram(record, nearest[np.isfinite(nearest)], "smallest distance found"))
        else:
            broken = points.distance[(points.outcome == "broken") & np.isfinite(points.distance)]
            full = float((broken >= 0.99 * record.threat.eps).mean()) if len(broken) else 0.0
            if len(broken) and full >= 0.95:
                lead = (
                    f"{percent(full, 0)} of the {plural(len(broken), 'adversarial example')} use the whole budget: they lie "
                    f"within 1% of eps = {record.threat.eps_text}."
                )
            elif len(broken):
                lead = f"Distances of the {plural(len(broken), 'adversarial example')} to their clean images."
                charts.append(_histogram(record, broken, "distance"))
    if not lead and not rows:
        return None
    return Section("distances", "Distances", "sections/distances.html.j2", lead, rows, tuple(charts))


def _histogram(record: EvaluationRecord, values: Array, label: str) -> Chart:
    eps = record.threat.eps
    top = max(float(values.max()), eps)
    axis = linear(0.0, top, f"{label} ({record.threat.norm})")
    edges = np.linspace(axis.low, axis.high, BINS + 1)
    counts, _ = np.histogram(values.clip(axis.low, axis.high), edges)
    bars = [
        Bar(float(left), float(right), 0, int(count), "broken", f"{number(left)} to {number(right)}: {count}")
        for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True)
        if count
    ]
    rows = [
        (number(left), number(right), whole(int(c)))
        for left, right, c in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    median = float(np.median(values))
    return Chart(
        "distances", f"Histogram of {label}",
        f"{plural(len(values), 'point')}; the median is {number(median)}.",
        axis, count_scale(int(counts.max()), "points"), bars=bars,
        rules=[Rule(f"eps {record.threat.eps_text}", x=eps), Rule(f"median {number(median)}", x=median)],
        height=200, headings=("from", "to", "points"), rows=rows,
    )  # fmt: skip


def _diagnostics(record: EvaluationRecord) -> Section:
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


def _gallery(
    run: EvaluationRun, points: Points | None, name: str, limit: int, clean: Array | None, files: dict[str, bytes]
) -> Section:
    """The pictures; where there are none, why."""

    def without(reason: str) -> Section:
        return Section("gallery", "Gallery", "sections/gallery.html.j2", reason, None)

    if points is None:
        return without("Pictures need the samples of the points, which are not there.")
    if limit < 1:
        return without("Left out (--gallery 0).")
    pictures = find_pictures(run.folder, len(points), clean)
    if isinstance(pictures, str):
        return without(pictures)
    try:
        found = make_gallery(run.record, points, pictures, prefix=name, limit=limit)
    except (OSError, ValueError) as error:
        return without(f"The images of the run cannot be read: {error}.")
    files.update(dict(found.sheets))
    data = {**found.data, "classes": class_names(run.record), "names": NAMES}
    content = {"gallery": found, "data": data, "attacks": sorted({p["attack"] for p in found.data["points"]} - {""})}
    return Section("gallery", "Gallery", "sections/gallery.html.j2", _gallery_lead(run, found), content)


def _gallery_lead(run: EvaluationRun, found: Any) -> str:
    text = f"{whole(found.shown)} of {plural(found.total, 'point')}"
    text += ", some of each outcome, attack and class." if found.shown < found.total else "."
    if found.magnified is not None:
        text += (
            f" From left to right: clean, adversarial, and their difference magnified {number(found.magnified, 3)} times "
            "(grey is no change)."
        )
    if not found.has_clean:
        text += " This run kept no clean images, so only the adversarial ones are shown (see report --clean-images)."
    return text + (" Pictures are shrunk." if found.shrunk else "")


def _reproduce(run: EvaluationRun) -> Section:
    record = run.record
    env = record.environment
    facts = {
        "Run": record.run_id,
        "Finished": record.created,
        "Seed": str(record.seed),
        "Model weights": record.model.fingerprint,
        "Images and labels": record.data.fingerprint,
        "Device": f"{env.device} ({env.device_name}), {plural(env.threads, 'thread')}, {plural(env.workers, 'worker')}",
        "Precision": f"attacks {env.attack_precision}, referee {env.judge_precision}" + (", TF32" if env.tf32 else ""),
        "Tolerance": number(record.tolerance, 2),
        "Passes": f"{whole(record.passes.attacks_forward)} forward and {whole(record.passes.attacks_backward)} backward by "
        f"attacks, {whole(record.passes.referee)} by the referee",
        "Versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
    }
    if record.data.revision:
        facts["Data revision"] = record.data.revision
    content = {"command": record.command, "facts": facts}
    return Section("reproduce", "Run it again", "sections/reproduce.html.j2", record.interval_about, content)
