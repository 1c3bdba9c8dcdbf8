"""The page of one training run, and what several have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from robustdup.records import Accuracy, CheckpointResult, TrainingRecord
from robustdup.report.format import duration, interval, number, percent, plural, short, whole
from robustdup.report.html.page import Cell, Figure, Notice, Page, Section, Table, chart_section, reproduce_section
from robustdup.report.runs import Run
from robustdup.report.training import data_text, extra_text, precision_text
from robustdup.report.training_figures import accuracies, best_and_last, entries, loss, rate, throughput, validation


def title(record: TrainingRecord) -> str:
    """Return what to call a training run: its network and objective."""
    return f"{record.architecture} · {record.objective}"


def training_page(run: Run, name: str) -> Page:
    """Return the page of a training run."""
    record = run.record
    sections = [
        chart_section("accuracies", "Accuracy over training", accuracies(record), best_and_last(record)),
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
        data_text(record),
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
    by_name = {checkpoint.name: checkpoint for checkpoint in record.checkpoints}
    return by_name.get("best") or by_name.get("last")


def _figures(record: TrainingRecord) -> list[Figure]:
    chosen = shown_checkpoint(record)
    figures = [] if chosen is None else [_figure(record, chosen, "robust"), _figure(record, chosen, "clean")]
    throughput = record.images_per_second
    note = f"{whole(record.samples_seen)} images in {duration(record.seconds)}"
    return [*figures, Figure("Throughput", f"{short(throughput)}/s", throughput, "images_per_second", note)]


def _figure(record: TrainingRecord, chosen: CheckpointResult, kind: str) -> Figure:
    index = record.checkpoints.index(chosen)
    tested: Accuracy | None = getattr(chosen, f"{kind}_accuracy")
    title = f"{kind.capitalize()} accuracy, {chosen.name} checkpoint"
    if tested is not None:
        note = f"95% interval {interval(tested.low, tested.high)}, {plural(chosen.n, 'test image')}"
        return Figure(
            title,
            percent(tested.value),
            tested.value,
            f"checkpoints.{index}.{kind}_accuracy.value",
            note,
            kind == "robust",
        )
    held: float | None = getattr(chosen, f"validation_{kind}")
    note = f"on {plural(record.n_validation, 'validation image')}; the test split was not evaluated"
    return Figure(title, percent(held), held, f"checkpoints.{index}.validation_{kind}", note, kind == "robust")


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


def _loss_and_rate(record: TrainingRecord) -> Section | None:
    """The loss and the learning rate over the same epochs, side by side."""
    charts = [chart for chart in (loss(record), rate(record)) if chart is not None]
    if not charts:
        return None
    return Section("loss", "Loss and learning rate", "sections/charts.html.j2", charts=tuple(charts))


def _checkpoints(record: TrainingRecord) -> Section | None:
    if not record.checkpoints:
        return None
    rows = []
    for index, checkpoint in enumerate(record.checkpoints):
        row = [Cell(checkpoint.name), Cell(whole(checkpoint.step), checkpoint.step)]
        for kind in ("clean", "robust"):
            value = getattr(checkpoint, f"validation_{kind}")
            row.append(
                Cell(percent(value), value, f"checkpoints.{index}.validation_{kind}" if value is not None else "")
            )
        for kind in ("clean", "robust"):
            tested = getattr(checkpoint, f"{kind}_accuracy")
            if tested is None:
                row.append(Cell("–"))
            else:
                row.append(Cell(percent(tested.value), tested.value, note=interval(tested.low, tested.high)))
        row.append(Cell(checkpoint.attacks or "–"))
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
    kinds = [kind for kind in ("robust", "clean") if any(entry.kind == kind for entry in record.time_to)]
    by_place = {(str(entry.kind), entry.target): entry for entry in record.time_to}
    rows = []
    for target in sorted({entry.target for entry in record.time_to}):
        row, reached = [Cell(percent(target, 0), target)], False
        for kind in kinds:
            entry = by_place.get((kind, target))
            if entry is None or entry.step is None:
                row += [Cell("–")] * 3
                continue
            reached = True
            row += [
                Cell(whole(entry.step), entry.step), Cell(short(entry.samples), entry.samples),
                Cell(duration(entry.seconds), entry.seconds),
            ]  # fmt: skip
        if reached:
            rows.append(row)
    never = {
        kind: min(targets)
        for kind in kinds
        if (targets := [entry.target for entry in record.time_to if entry.kind == kind and entry.step is None])
    }
    parts = [f"{kind} {percent(target, 0)} and above" for kind, target in never.items()]
    lead = f"Never reached: {', '.join(parts)}." if parts else "Every target was reached."
    caption = "When validation accuracy first reached each target; validation takes no part in the time"
    headings = (
        "Target",
        *(f"{kind.capitalize()}: {quantity}" for kind in kinds for quantity in ("steps", "images", "time")),
    )
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
    chart = throughput(record)
    return Section(
        "costs", "Throughput and cost", "sections/facts.html.j2", content=facts, charts=(chart,) if chart else ()
    )


def _duplication(record: TrainingRecord) -> Section | None:
    duplication = record.duplication
    if duplication is None:
        return None
    facts = {
        "Scheme": duplication.scheme + (f", near copies: {duplication.near}" if duplication.near else ""),
        "Mode": duplication.mode,
        "Entries": f"{whole(duplication.entries)}, of {plural(duplication.unique, 'different image')}",
        "Plan": duplication.hash,
    }
    said = {"scheme", "mode", "near", "entries", "unique"}
    for key, value in {**duplication.options, **duplication.rates}.items():
        if key not in said:
            facts[key.replace("_", " ").capitalize()] = str(value)
    training = plural(duplication.entries, "training entry", "training entries")
    lead = (
        f"{percent(duplication.dose)} of the {training} are copies ({duplication.scheme}). "
        "What they did to accuracy is told by a study, beside trainings without them."
    )
    return Section("duplication", "Duplication", "sections/facts.html.j2", lead, facts, charts=(entries(duplication),))


def _reproduce(record: TrainingRecord) -> Section:
    env = record.environment
    facts = {
        "Run": record.run_id,
        "Finished": record.created,
        "Seed": str(record.seed),
        "Weights at the start": record.initial_fingerprint,
        **{f"Weights, {checkpoint.name}": checkpoint.fingerprint for checkpoint in record.checkpoints},
        "Images and labels": record.data.fingerprint,
        **({} if record.extra is None else {"Extra data": f"{extra_text(record)}; {record.extra.fingerprint}"}),
        "Device": f"{env.device} ({env.device_name}), {plural(env.threads, 'thread')}, "
        f"{plural(env.processes, 'process', 'processes')}",
        "Precision": precision_text(record),
        "Versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
    }
    return reproduce_section(record.command, facts)


def training_sections(runs: Sequence[Run], links: Sequence[str]) -> list[Section]:
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
    chart = validation(runs)
    charts = () if chart is None else (chart,)
    return [Section("trainings", "Training runs", "sections/table.html.j2", content=(table,), charts=charts)]
