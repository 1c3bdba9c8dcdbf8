"""The page of one training run, and what several have in common."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from robustdup.records import Accuracy, CheckpointResult, TrainingRecord
from robustdup.report.charts import Axis, Chart, Point, Rule, Series, linear, shape, shares, tone
from robustdup.report.format import duration, interval, missing, number, percent, plural, short, whole
from robustdup.report.html.page import Cell, Figure, Notice, Page, Section, Table
from robustdup.report.runs import TrainingRun

LINES = 8  # runs in one chart
SPANS = 60  # between which throughput is shown
MOST_POINTS = 400  # of a curve: more cannot be told apart on a screen


def training_page(run: TrainingRun, name: str) -> Page:
    """Return the page of a training run."""
    record = run.record
    sections = [
        _accuracies(record),
        _loss_and_rate(record),
        _checkpoints(record),
        _time_to(record),
        _costs(record),
    ]
    sections += [_duplication(record), _reproduce(record)]
    context = {
        "subtitle": _subtitle(record),
        "notices": list(_notices(record)),
        "figures": _figures(record),
        "sentence": _sentence(record),
        "segments": [],
        "sections": [section for section in sections if section is not None],
    }
    return Page(name, run.name, "Training", "summary.html.j2", context)


def _subtitle(record: TrainingRecord) -> list[str]:
    return [
        f"{record.data.spec}, {record.data.split}: {whole(record.data.n_total)} images",
        record.objective + (f" with {record.update}" if record.update != "plain" else ""),
        f"{short(record.parameters)} parameters",
        record.created[:10],
    ]


def _notices(record: TrainingRecord) -> Iterator[Notice]:
    if record.status != "complete":
        yield Notice("serious", "Partial result: this training was stopped.", record.reason)
    for event in record.events:
        yield Notice("info", event)


def shown_checkpoint(record: TrainingRecord) -> CheckpointResult | None:
    """Return the checkpoint that a run is judged by: the best where there is one."""
    by_name = {found.name: found for found in record.checkpoints}
    return by_name.get("best") or by_name.get("last")


def _figures(record: TrainingRecord) -> list[Figure]:
    chosen = shown_checkpoint(record)
    found = [] if chosen is None else [_figure(record, chosen, "robust"), _figure(record, chosen, "clean")]
    throughput = record.images_per_second
    note = f"{whole(record.samples_seen)} images in {duration(record.seconds)}"
    return [*found, Figure("Throughput", f"{short(throughput)}/s", throughput, "images_per_second", note)]


def _figure(record: TrainingRecord, chosen: CheckpointResult, kind: str) -> Figure:
    at = record.checkpoints.index(chosen)
    tested: Accuracy | None = getattr(chosen, f"{kind}_accuracy")
    title = f"{kind.capitalize()} accuracy, {chosen.name} checkpoint"
    if tested is not None:
        note = f"95% interval {interval(tested.low, tested.high)}, {plural(chosen.n, 'test image')}"
        return Figure(
            title,
            percent(tested.value),
            tested.value,
            f"checkpoints.{at}.{kind}_accuracy.value",
            note,
            kind == "robust",
        )
    held: float | None = getattr(chosen, f"validation_{kind}")
    note = f"on {plural(record.n_validation, 'validation image')}; the test split was not evaluated"
    return Figure(title, percent(held), held, f"checkpoints.{at}.validation_{kind}", note, kind == "robust")


def _sentence(record: TrainingRecord) -> str:
    attack = (
        f" against {record.inner_attack} within {record.threat.norm} {record.threat.eps_text}"
        if record.inner_attack
        else ""
    )
    return (
        f"{record.architecture} was trained with {record.objective}{attack} for {number(record.epochs, 3)} epochs "
        f"({plural(record.steps, 'step')} of {record.batch_size}) in {duration(record.seconds)}."
    )


def _epochs(record: TrainingRecord) -> Axis:
    last = max([record.epochs, *(p.epoch for p in record.curve[-1:]), *(p.epoch for p in record.validation[-1:])])
    return linear(0.0, last, "epochs", tight=True)


def _thinned(points: Sequence[Any], most: int = MOST_POINTS) -> Sequence[Any]:
    """Every so many-th point of a long curve, and the last."""
    step = -(-len(points) // most)
    return points if step <= 1 else [*points[:-1:step], points[-1]]


def _accuracies(record: TrainingRecord) -> Section | None:
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
    chart = Chart(
        "accuracies", "Accuracy over training", _told(record), _epochs(record), shares("accuracy"), series, rules=rules,
        headings=("epoch", "step", "time", "validation clean", "validation robust", ""), rows=rows, legend=series,
    )  # fmt: skip
    return Section("accuracies", "Accuracy over training", "sections/chart.html.j2", _told(record), charts=(chart,))


def _told(record: TrainingRecord) -> str:
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


def _loss_and_rate(record: TrainingRecord) -> Section | None:
    """The loss and the learning rate over the same epochs, side by side."""
    charts = [chart for chart in (_loss(record), _rate(record)) if chart is not None]
    if not charts:
        return None
    return Section("loss", "Loss and learning rate", "sections/charts.html.j2", charts=tuple(charts))


def _loss(record: TrainingRecord) -> Chart | None:
    found = [p for p in record.curve if not missing(p.loss)]
    if len(found) < 2:
        return None
    points = [Point(p.epoch, p.loss, f"epoch {number(p.epoch, 3)}: loss {number(p.loss)}") for p in _thinned(found)]
    highest = sorted(p.loss for p in found)[int(0.99 * (len(found) - 1))]
    return Chart(
        "loss", "Loss", f"The loss went from {number(found[0].loss)} to {number(found[-1].loss)}.", _epochs(record),
        linear(min(0.0, *(p.loss for p in found)), highest, "loss of the objective"),
        [Series("loss", points, "c1 thin", marks=False)], height=200, headings=("epoch", "step", "loss"),
        rows=[(number(p.epoch, 4), whole(p.step), number(p.loss)) for p in _thinned(found)],
    )  # fmt: skip


def _rate(record: TrainingRecord) -> Chart | None:
    found = [p for p in record.curve if not missing(p.lr)]
    if len(found) < 2:
        return None
    highest = max(p.lr for p in found)
    points = [Point(p.epoch, p.lr, f"epoch {number(p.epoch, 3)}: {number(p.lr)}") for p in _thinned(found)]
    return Chart(
        "rate", "Learning rate", f"The highest learning rate is {number(highest)}.", _epochs(record),
        linear(0.0, highest, "learning rate", count=4), [Series("learning rate", points, "c6", marks=False)], height=200,
        headings=("epoch", "step", "learning rate"),
        rows=[(number(p.epoch, 4), whole(p.step), number(p.lr)) for p in _thinned(found)],
    )  # fmt: skip


def _checkpoints(record: TrainingRecord) -> Section | None:
    if not record.checkpoints:
        return None
    rows = []
    for at, found in enumerate(record.checkpoints):
        row = [Cell(found.name), Cell(whole(found.step), found.step)]
        for kind in ("clean", "robust"):
            value = getattr(found, f"validation_{kind}")
            row.append(Cell(percent(value), value, f"checkpoints.{at}.validation_{kind}" if value is not None else ""))
        for kind in ("clean", "robust"):
            tested = getattr(found, f"{kind}_accuracy")
            if tested is None:
                row.append(Cell("–"))
            else:
                row.append(Cell(percent(tested.value), tested.value, note=interval(tested.low, tested.high)))
        row.append(Cell(found.attacks or "–"))
        rows.append(row)
    attack = "Accuracies on validation images, and on the test split where it was evaluated"
    table = Table(
        "checkpoints-table", attack,
        ("Checkpoint", "Step", "Validation clean", "Validation robust", "Test clean", "Test robust", "Attacks"), rows,
    )  # fmt: skip
    return Section("checkpoints", "Best and last", "sections/table.html.j2", content=(table,))


def _time_to(record: TrainingRecord) -> Section | None:
    if not record.time_to:
        return None
    kinds = [kind for kind in ("robust", "clean") if any(found.kind == kind for found in record.time_to)]
    by_place = {(str(found.kind), found.target): found for found in record.time_to}
    rows = []
    for target in sorted({found.target for found in record.time_to}):
        row, reached = [Cell(percent(target, 0), target)], False
        for kind in kinds:
            found = by_place.get((kind, target))
            if found is None or found.step is None:
                row += [Cell("–")] * 3
                continue
            reached = True
            row += [
                Cell(whole(found.step), found.step), Cell(short(found.samples), found.samples),
                Cell(duration(found.seconds), found.seconds),
            ]  # fmt: skip
        if reached:
            rows.append(row)
    never = {
        kind: min(targets)
        for kind in kinds
        if (targets := [found.target for found in record.time_to if found.kind == kind and found.step is None])
    }
    parts = [f"{kind} {percent(target, 0)} and above" for kind, target in never.items()]
    lead = f"Never reached: {', '.join(parts)}." if parts else "Every target was reached."
    caption = "When validation accuracy first reached each target; validation takes no part in the time"
    headings = ("Target", *(f"{kind.capitalize()}: {what}" for kind in kinds for what in ("steps", "images", "time")))
    tables = (Table("time-table", caption, headings, rows),) if rows else ()
    return Section("time-to", "Time to accuracy", "sections/table.html.j2", lead, tables)


def _costs(record: TrainingRecord) -> Section:
    passes = record.passes
    facts = {
        "Training": duration(record.seconds),
        "Validation": duration(record.validation_seconds),
        "Images per second": whole(record.images_per_second),
        "Images seen": f"{whole(record.samples_seen)}, {whole(record.unique_samples_seen)} different ones",
        "Passes of the inner attack": f"{whole(passes.attack_forward)} forward, {whole(passes.attack_backward)} backward",
        "Passes of the objective": f"{whole(passes.train_forward)} forward, {whole(passes.train_backward)} backward",
        "Passes of validation": f"{whole(passes.validation_forward)} forward, {whole(passes.validation_backward)} backward",
    }
    if record.peak_memory is not None:
        facts["Peak memory"] = f"{record.peak_memory / 2**20:,.0f} MiB"
    chart = _throughput(record)
    return Section(
        "costs", "Throughput and cost", "sections/facts.html.j2", content=facts, charts=(chart,) if chart else ()
    )


def _throughput(record: TrainingRecord) -> Chart | None:
    """Images a second between points of the curve: where a run slowed down, or waited."""
    found = _thinned(record.curve, SPANS)
    spans = [
        ((a.epoch + b.epoch) / 2, (b.samples - a.samples) / (b.seconds - a.seconds))
        for a, b in itertools.pairwise(found)
        if b.seconds > a.seconds and b.samples > a.samples
    ]
    if len(spans) < 3:
        return None
    points = [Point(at, rate, f"epoch {number(at, 3)}: {whole(rate)} images a second") for at, rate in spans]
    mean = record.images_per_second
    rules = [] if missing(mean) else [Rule(f"on the whole {whole(mean)}", y=mean)]
    return Chart(
        "throughput", "Images per second", f"On the whole {whole(mean)}.", _epochs(record),
        linear(0.0, max(mean or 0.0, *(rate for _, rate in spans)), "images per second", text=short, count=4),
        [Series("images per second", points, "c4", marks=False)], rules=rules, height=160,
        headings=("epoch", "images per second"), rows=[(number(at, 4), whole(rate)) for at, rate in spans],
    )  # fmt: skip


def _duplication(record: TrainingRecord) -> Section | None:
    found = record.duplication
    if found is None:
        return None
    entries = plural(found.entries, "training entry", "training entries")
    lead = f"{percent(found.dose)} of the {entries} are copies ({found.scheme})."
    facts = {
        "Scheme": found.scheme + (f", near copies: {found.near}" if found.near else ""),
        "Mode": found.mode,
        "Entries": f"{whole(found.entries)}, of {plural(found.unique, 'different image')}",
        "Plan": found.hash,
    }
    facts |= {key.replace("_", " "): str(value) for key, value in {**found.options, **found.rates}.items()}
    return Section("duplication", "Duplication", "sections/facts.html.j2", lead, facts)


def _reproduce(record: TrainingRecord) -> Section:
    env = record.environment
    facts = {
        "Run": record.run_id,
        "Finished": record.created,
        "Seed": str(record.seed),
        "Weights at the start": record.initial_fingerprint,
        **{f"Weights, {found.name}": found.fingerprint for found in record.checkpoints},
        "Images and labels": record.data.fingerprint,
        "Device": f"{env.device} ({env.device_name}), {plural(env.threads, 'thread')}, "
        f"{plural(env.processes, 'process', 'processes')}",
        "Precision": env.precision,
        "Versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
    }
    content = {"command": record.command, "facts": facts}
    return Section("reproduce", "Run it again", "sections/reproduce.html.j2", content=content)


def training_sections(runs: Sequence[TrainingRun], links: Sequence[str]) -> list[Section]:
    """Return what several training runs look like side by side: a table, and their validation curves."""
    rows = []
    for run, link in zip(runs, links, strict=True):
        record, chosen = run.record, shown_checkpoint(run.record)
        cells = [Cell(record.run_id, href=link), Cell(record.objective), Cell(number(record.epochs, 3), record.epochs)]
        for kind in ("robust", "clean"):
            tested = None if chosen is None else getattr(chosen, f"{kind}_accuracy")
            held = None if chosen is None else getattr(chosen, f"validation_{kind}")
            if tested is not None:
                cells.append(
                    Cell(percent(tested.value), tested.value, note=f"test, {interval(tested.low, tested.high)}")
                )
            else:
                cells.append(Cell(percent(held), held, note="validation"))
        cells += [
            Cell(duration(record.seconds), record.seconds),
            Cell(whole(record.images_per_second), record.images_per_second),
        ]
        cells.append(Cell("stopped" if record.status != "complete" else "complete"))
        rows.append(cells)
    headings = ("Run", "Objective", "Epochs", "Robust", "Clean", "Time", "Images/s", "Status")
    table = Table("training-table", "The best checkpoint of each run", headings, rows, left=2)
    series = []
    for at, run in enumerate(runs[:LINES]):
        points = [
            Point(
                p.epoch,
                p.robust_accuracy,
                f"{run.record.run_id}, epoch {number(p.epoch, 3)}: {percent(p.robust_accuracy)}",
            )
            for p in run.record.validation
        ]
        series.append(Series(run.record.run_id, points, tone(at), shape(at)))
    last = max((point.x for line in series for point in line.points), default=0.0)
    chart = Chart(
        "validation", "Validation robust accuracy", f"{plural(len(series), 'run')}.", linear(0.0, last, "epochs", tight=True),
        shares("robust accuracy"), series, legend=series,
    )  # fmt: skip
    charts = (chart,) if last > 0 else ()
    return [Section("trainings", "Training runs", "sections/table.html.j2", content=(table,), charts=charts)]
