"""Training runs in the terminal: a live line while one goes on, and its result as a panel and tables."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, TextColumn
from rich.table import Table

from robustdup.records import Accuracy, CheckpointResult, DuplicationInfo, TrainingRecord, TrainProgress, to_json
from robustdup.report.format import clock, escape, printable, with_interval
from robustdup.report.live import Bars, LiveView, in_one_line

LEVELS = "▁▂▃▄▅▆▇█"


class LiveTraining(Bars):
    """Shows a training run as it goes: loss, accuracies, speed, time left; `lines`: now and then a line in a log."""

    def __init__(self, *, enabled: bool, lines: bool = False) -> None:
        super().__init__(
            TextColumn("[bold]epoch {task.fields[epoch]:.2f}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[figures]}"),
            TextColumn("{task.fields[left]}", style="cyan"),
            enabled=enabled,
            lines=lines,
        )
        self._enabled = enabled
        self._task = self._bars.add_task("", total=1, epoch=0.0, figures="", left="")
        self._evaluation: LiveView | None = None

    def __exit__(self, *error: object) -> None:
        self._close_evaluation()
        super().__exit__(*error)

    def update(self, progress: TrainProgress) -> None:
        """Take one event of a run."""
        if progress.n_steps == 0:
            self._beside_training(progress)
            return
        self._bars.update(
            self._task, completed=progress.step, total=max(progress.n_steps, 1), epoch=progress.epoch,
            figures=_figures(progress), left="" if progress.seconds_left is None else f"{clock(progress.seconds_left)} left",
        )  # fmt: skip
        if self._lines is not None:
            where = f"step {progress.step}/{progress.n_steps}, epoch {progress.epoch:.2f}"
            self._lines.say(lambda: "  ".join(filter(None, [where, _figures(progress)])))

    def _beside_training(self, progress: TrainProgress) -> None:
        """Show what happens before and after the steps; the bars of each evaluation follow those of training."""
        evaluation = progress.evaluation
        if self._lines is not None:
            parts = [progress.message] if evaluation is None else [progress.message, in_one_line(evaluation)]
            self._lines.say(lambda: ": ".join(parts))
        elif evaluation is not None:
            if self._evaluation is None:
                self._bars.stop()
                self._evaluation = LiveView(enabled=self._enabled).__enter__()
            self._evaluation.update(evaluation)
        elif self._enabled:
            self._close_evaluation()
            self._bars.console.print(escape(progress.message), style="dim", highlight=False)

    def _close_evaluation(self) -> None:
        if self._evaluation is not None:
            self._evaluation.__exit__()
            self._evaluation = None


def _figures(progress: TrainProgress) -> str:
    parts = [] if progress.loss is None else [f"loss {progress.loss:.3f}"]
    if progress.clean_accuracy is not None and progress.robust_accuracy is not None:
        parts.append(f"clean {progress.clean_accuracy:.1%} robust {progress.robust_accuracy:.1%}")
    if progress.images_per_second:
        parts.append(f"{progress.images_per_second:,.0f} images/s")
    return "  ".join(parts)


def show_training(record: TrainingRecord, folder: Path | None, *, json: bool = False) -> None:
    """Print a training record on standard output: as a panel and tables, or as JSON and nothing else."""
    if json:
        print(to_json(record))
        return
    record = printable(record)
    out = Console()
    out.print(_summary(record))
    if record.checkpoints:
        out.print(_checkpoints(record))
    for event in [record.reason, *record.events]:
        if event:
            out.print(escape(event), style="yellow", soft_wrap=True, highlight=False)
    if folder is not None:
        out.print(escape(f"Record: {folder}/record.json"), style="dim", soft_wrap=True, highlight=False)
        out.print(
            escape(f"Evaluate: robustdup eval --model run:{folder} --data {record.data.spec} --eps {record.threat.eps_text}"),
            style="dim", soft_wrap=True, highlight=False,
        )  # fmt: skip


def _summary(record: TrainingRecord) -> Panel:
    lines = Table.grid(padding=(0, 2))
    lines.add_row("Network", f"{escape(record.architecture)} ({record.parameters:,} parameters)")
    lines.add_row("Data", escape(data_text(record)))
    if record.duplication is not None:
        lines.add_row("Duplicates", escape(duplication_text(record.duplication)))
    if record.extra is not None:
        lines.add_row("Extra data", escape(extra_text(record)))
    lines.add_row("Objective", escape(_objective(record)))
    lines.add_row(
        "Budget",
        f"{record.steps:,} steps of {record.batch_size}: {record.samples_seen:,} samples seen ({record.epochs:.4g} epochs, "
        f"{record.unique_samples_seen:,} different images)",
    )
    lines.add_row(
        "Time", f"{clock(record.seconds)} of training at {record.images_per_second:,.0f} images/s, "
        f"{clock(record.validation_seconds)} of validation",
    )  # fmt: skip
    lines.add_row("Precision", escape(precision_text(record)))
    if record.curve:
        losses = [point.loss for point in record.curve]
        lines.add_row("Loss", f"{sparkline(losses)}  {losses[0]:.3f} → {losses[-1]:.3f}")
    if record.validation:
        robust = [point.robust_accuracy for point in record.validation]
        lines.add_row("Robust (validation)", f"{sparkline(robust)}  best {max(robust):.1%}, last {robust[-1]:.1%}")
    return Panel(lines, title="robustdup train", title_align="left", expand=False)


def data_text(record: TrainingRecord) -> str:
    """Say in one line what was trained on, and how many images validated."""
    excluded = f", {record.n_excluded} near-duplicates of them excluded" if record.n_excluded else ""
    if record.duplication is not None:
        entries = record.duplication.entries
    elif record.epochs > 0:
        entries = round(record.samples_seen / record.epochs)
    else:
        entries = record.data.n_total - record.n_validation
    return f"{record.data.spec}, {record.data.split}: {entries:,} entries; {record.n_validation:,} images validate{excluded}"


def _objective(record: TrainingRecord) -> str:
    rule = "" if record.update == "plain" else f" with {record.update}"
    if not record.inner_attack:
        return f"{record.objective}{rule}"
    return f"{record.objective}{rule}, {record.inner_attack} in {record.threat.norm}, eps = {record.threat.eps_text}"


def precision_text(record: TrainingRecord) -> str:
    """Say in which precision was trained, and why where nobody asked for one."""
    precision = record.environment.precision
    text = precision if precision in ("fp32", "tf32") else f"{precision}; weights, optimizer and averages in fp32"
    if record.config.get("precision") != "auto":
        return text
    why = (
        "the device computes in it"
        if precision == "bf16"
        else "no bf16 on the device, or a network too small to gain by it"
    )
    return f"{text} (auto: {why})"


def duplication_text(plan: DuplicationInfo) -> str:
    """Say in one line what was duplicated: scheme, dose, entries."""
    how = " as loss weights" if plan.as_weights else ""
    near = f", near copies ({plan.near})" if plan.near else ""
    return f"{plan.scheme} ({plan.mode}){how}: {plan.dose:.1%} of {plan.entries:,} entries are copies{near}"


def extra_text(record: TrainingRecord) -> str:
    """Say in one line what extra data were trained on: which, how many of each batch, whose labels. Empty for none."""
    extra = record.extra
    if extra is None:
        return ""
    labels = "" if extra.labels == "given" else f", labelled by {extra.labels}"
    labels += "" if extra.agreement is None else f" ({extra.agreement:.1%} as given)"
    return f"{extra.spec}: {extra.in_batch} of each {record.batch_size} from {extra.n:,} images{labels}"


def _checkpoints(record: TrainingRecord) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("Checkpoint")
    for title in ("Step", "Clean (val.)", "Robust (val.)", "Clean (test)", "Robust (test)", "Samples"):
        table.add_column(title, justify="right")
    for result in record.checkpoints:
        table.add_row(*_checkpoint_row(result))
    attacks = next((result.attacks for result in record.checkpoints if result.attacks), "")
    if attacks:
        table.caption = f"Test: verified, {attacks}; 95% intervals over images."
        table.caption_justify = "left"
    return table


def _checkpoint_row(result: CheckpointResult) -> list[str]:
    return [
        result.name, f"{result.step:,}", _share(result.validation_clean), _share(result.validation_robust),
        _interval(result.clean_accuracy), _interval(result.robust_accuracy), str(result.n or ""),
    ]  # fmt: skip


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _interval(value: Accuracy | None) -> str:
    return "" if value is None else with_interval(value)


def sparkline(values: list[float], width: int = 24) -> str:
    """Return a curve in one line of text, lowest to highest value; at most `width` characters."""
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(LEVELS[round((value - low) / span * (len(LEVELS) - 1))] for value in values)
