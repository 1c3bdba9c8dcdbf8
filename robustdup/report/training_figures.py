"""The charts of training runs, for their pages and for `robustdup plot`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from robustdup.errors import UserError
from robustdup.records import DuplicationInfo, TrainingRecord
from robustdup.report.charts import (
    Axis,
    Bar,
    Chart,
    Point,
    Rule,
    Series,
    counts,
    linear,
    rows_axis,
    shape,
    shares,
    tone,
)
from robustdup.report.format import duration, missing, number, percent, plural, short, whole
from robustdup.report.runs import Run

LINES = 8  # runs in one chart
SPANS = 60  # between which throughput is shown
MOST_POINTS = 400  # of a curve: more cannot be told apart on a screen


def _epochs(record: TrainingRecord) -> Axis:
    last = max([record.epochs, *(p.epoch for p in record.curve[-1:]), *(p.epoch for p in record.validation[-1:])])
    return linear(0.0, last, "epochs", tight=True)


def _thinned(points: Sequence[Any], most: int = MOST_POINTS) -> Sequence[Any]:
    """Every so many-th point of a long curve, and the last."""
    step = -(-len(points) // most)
    return points if step <= 1 else [*points[:-1:step], points[-1]]


def accuracies(record: TrainingRecord) -> Chart | None:
    """Return accuracy over epochs, on validation and on training images; None where there is none."""
    series = []
    for kind, colour, mark in (("robust", "robust", "circle"), ("clean", "c2", "square")):
        points = [
            Point(p.epoch, value, f"{kind}, epoch {number(p.epoch, 3)}: {percent(value)}")
            for p in record.validation
            if not missing(value := getattr(p, f"{kind}_accuracy"))
        ]
        if points:
            series.append(Series(f"validation, {kind}", points, colour, mark))
    trained = [
        Point(p.epoch, p.accuracy, f"training images, epoch {number(p.epoch, 3)}: {percent(p.accuracy)}")
        for p in _thinned(record.curve)
        if p.accuracy is not None
    ]
    if trained:
        seen = "adversarial" if record.inner_attack else "as the objective saw them"
        series.insert(0, Series(f"training images, {seen}", trained, "c7 thin", marks=False))
    if not series:
        return None
    best = next((p for p in record.validation if p.best), None)
    rules = [] if best is None else [Rule(f"best, epoch {number(best.epoch, 3)}", x=best.epoch)]
    rows = [
        (
            number(p.epoch, 4), whole(p.step), duration(p.seconds), percent(p.clean_accuracy), percent(p.robust_accuracy),
            "best" if p.best else "",
        )
        for p in record.validation
    ]  # fmt: skip
    return Chart(
        "accuracies", "Accuracy over training", best_and_last(record), _epochs(record), shares("accuracy"), series, rules=rules,
        headings=("epoch", "step", "time", "validation clean", "validation robust", ""), rows=rows, legend=series,
    )  # fmt: skip


def best_and_last(record: TrainingRecord) -> str:
    """Say how validation accuracy went, in words."""
    if not record.validation:
        return "There were no validation images."
    first, last = record.validation[0], record.validation[-1]
    best = next((p for p in record.validation if p.best), last)
    text = (
        f"Validation robust accuracy went from {percent(first.robust_accuracy)} to {percent(last.robust_accuracy)}; the best "
        f"checkpoint, at step {whole(best.step)}, has {percent(best.robust_accuracy)} robust and "
        f"{percent(best.clean_accuracy)} clean."
    )
    lost = best.robust_accuracy - last.robust_accuracy
    return text + (f" The last is {100 * lost:.2f} points less robust than the best." if lost > 0 else "")


def loss(record: TrainingRecord) -> Chart | None:
    """Return the loss over epochs; None where the record holds none."""
    steps = [p for p in record.curve if not missing(p.loss)]
    if len(steps) < 2:
        return None
    points = [Point(p.epoch, p.loss, f"epoch {number(p.epoch, 3)}: loss {number(p.loss)}") for p in _thinned(steps)]
    highest = sorted(p.loss for p in steps)[int(0.99 * (len(steps) - 1))]
    return Chart(
        "loss", "Loss", f"The loss went from {number(steps[0].loss)} to {number(steps[-1].loss)}.", _epochs(record),
        linear(min(0.0, *(p.loss for p in steps)), highest, "loss of the objective"),
        [Series("loss", points, "c1 thin", marks=False)], height=200, headings=("epoch", "step", "loss"),
        rows=[(number(p.epoch, 4), whole(p.step), number(p.loss)) for p in _thinned(steps)],
    )  # fmt: skip


def rate(record: TrainingRecord) -> Chart | None:
    """Return the learning rate over epochs; None where the record holds none."""
    steps = [p for p in record.curve if not missing(p.lr)]
    if len(steps) < 2:
        return None
    highest = max(p.lr for p in steps)
    points = [Point(p.epoch, p.lr, f"epoch {number(p.epoch, 3)}: {number(p.lr)}") for p in _thinned(steps)]
    return Chart(
        "rate", "Learning rate", f"The highest learning rate is {number(highest)}.", _epochs(record),
        linear(0.0, highest, "learning rate", count=4), [Series("learning rate", points, "c6", marks=False)], height=200,
        headings=("epoch", "step", "learning rate"),
        rows=[(number(p.epoch, 4), whole(p.step), number(p.lr)) for p in _thinned(steps)],
    )  # fmt: skip


def throughput(record: TrainingRecord) -> Chart | None:
    """Return images a second between points of the curve: where a run slowed down, or waited."""
    curve = _thinned(record.curve, SPANS)
    spans = [
        ((a.epoch + b.epoch) / 2, (b.samples - a.samples) / (b.seconds - a.seconds))
        for a, b in itertools.pairwise(curve)
        if b.seconds > a.seconds and b.samples > a.samples
    ]
    if len(spans) < 3:
        return None
    points = [Point(epoch, rate, f"epoch {number(epoch, 3)}: {whole(rate)} images a second") for epoch, rate in spans]
    mean = record.images_per_second
    rules = [] if missing(mean) else [Rule("", y=mean)]
    return Chart(
        "throughput", f"Images per second, {whole(mean)} on the whole", f"On the whole {whole(mean)}.", _epochs(record),
        linear(0.0, max(mean or 0.0, *(rate for _, rate in spans)), "images per second", text=short, count=4),
        [Series("images per second", points, "c4", marks=False)], rules=rules, height=160,
        headings=("epoch", "images per second"), rows=[(number(epoch, 4), whole(rate)) for epoch, rate in spans],
    )  # fmt: skip


def validation(runs: Sequence[Run]) -> Chart | None:
    """Return validation robust accuracy of several runs over epochs; None where there is none."""
    series = []
    for place, run in enumerate(runs[:LINES]):
        name = run.record.run_id
        points = [
            Point(p.epoch, p.robust_accuracy, f"{name}, epoch {number(p.epoch, 3)}: {percent(p.robust_accuracy)}")
            for p in run.record.validation
        ]
        series.append(Series(name, points, tone(place), shape(place)))
    last = max((point.x for line in series for point in line.points), default=0.0)
    if last <= 0:
        return None
    return Chart(
        "validation", "Validation robust accuracy", f"{plural(len(series), 'run')}.", linear(0.0, last, "epochs", tight=True),
        shares("robust accuracy"), series, legend=series,
    )  # fmt: skip


def entries(duplication: DuplicationInfo) -> Chart:
    """Return what was trained on as a bar: each image once, then the copies."""
    once, everything = duplication.unique, duplication.entries
    parts = (
        ("each image once", 0, once, "robust"),
        ("copies", once, everything, "worse"),
    )
    bars = [Bar(low, high, -0.3, 0.3, tone, f"{name}: {whole(high - low)}") for name, low, high, tone in parts]
    return Chart(
        "entries", "Training entries", f"{plural(once, 'image')}, and {plural(everything - once, 'copy', 'copies')} of them.",
        counts(everything, "training entries"), rows_axis(["entries"]), bars=bars, height=64,
        legend=[Series(name, (), tone, "square", line=False) for name, _, _, tone in parts],
        headings=("part", "entries"), rows=[(name, whole(high - low)) for name, low, high, _ in parts],
    )  # fmt: skip


def plot_training(runs: Sequence[Run], width: str) -> Chart:
    """Return the figure `training`: validation accuracy over epochs, robust with a line, clean dashed."""
    drawn = [run for run in runs if run.record.validation]
    if not drawn:
        raise UserError("No run holds validation accuracies.", code="no-data")
    series = []
    for place, run in enumerate(drawn):
        name = f"{run.record.run_id}, " if len(drawn) > 1 else ""
        for kind in ("robust", "clean"):
            points = [Point(p.epoch, getattr(p, f"{kind}_accuracy")) for p in run.record.validation]
            series.append(Series(f"{name}{kind}", points, tone(place), marks=False, dashed=kind == "clean"))
    last = max(point.x for line in series for point in line.points)
    axis = linear(0.0, last, "epochs", tight=True)
    return Chart("training", "", "", axis, shares("validation accuracy"), series, legend=series)
