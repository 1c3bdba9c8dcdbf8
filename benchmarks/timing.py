"""`benchmarks.timing`: robustdup and what people use today, side by side on this machine."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.measured import Ratio, Spread, Summary, TimingResult
from benchmarks.options import TimingConfig
from benchmarks.train_options import TrainTimingConfig
from robustdup.cli.flags import split_words, with_flags
from robustdup.cli.main import run_app
from robustdup.config import build
from robustdup.report.terminal import console

if TYPE_CHECKING:
    from benchmarks.timing_training import TrainTimingResult

app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)


def _time_evaluations(
    words: list[str],
    flags: dict[str, Any],
    json: bool = typer.Option(False, "--json", help="Print the result, and nothing else, on standard output."),
) -> int:
    """Time robustdup's AutoAttack and `fast` beside the toolkits': same model, points and threads, fresh processes."""
    file, overrides = split_words(words)
    config = build(TimingConfig, file, overrides, flags)

    from benchmarks.timing_evaluation import run_timing

    with _status() as say:
        result = run_timing(config, say=say)
    if json:
        print(result.model_dump_json(indent=2))
    else:
        show(result, console(wide=True))
    return 0 if any(each.status != "failed" for each in result.contenders) else 1


@contextlib.contextmanager
def _status() -> Iterator[Any]:
    """Show what is going on, on standard error and on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with Console(stderr=True).status("starting") as status:
        yield lambda text: status.update(escape(text))


def show(result: TimingResult, out: Console) -> None:
    """Print the result as a table, with what it depends on below."""
    where = result.environment
    out.print(
        escape(
            f"{result.config['model']} on {result.n} points of {result.config['data']}, {result.norm}, eps = {result.eps}"
            + ("" if result.clean_accuracy is None else f", clean accuracy {100 * result.clean_accuracy:.2f}%")
        ),
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    out.print(table(result), highlight=False)
    for each in result.contenders:
        if each.reason:
            out.print(escape(f"{each.contender}: {each.reason}"), style="yellow", highlight=False, soft_wrap=True)
    for line in remarks(result):
        out.print(escape(line), style="dim", highlight=False, soft_wrap=True)
    if where:
        out.print(
            escape(
                f"{where['device_name']}, {result.threads} threads of {where['cores']} cores, torch {where['torch']}, "
                f"python {where['python']}"
            ),
            style="dim", highlight=False, soft_wrap=True,
        )  # fmt: skip
    out.print(escape(result.command), style="dim", highlight=False, soft_wrap=True)


def table(result: TimingResult) -> Table:
    """Return a row for each contender; a column of ratios for each of robustdup's own."""
    ours = [each.contender for each in result.contenders if each.ours and each.status == "done"]
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    made.add_column("contender", no_wrap=True)
    for title in ("batch", "seconds", "forward", "backward", "a point", "robust", "MiB", *(f"× {o}" for o in ours)):
        made.add_column(title, justify="right", no_wrap=title != "seconds" and title[0] != "×")
    for each in result.contenders:
        ratios = {ratio.to: ratio for ratio in each.ratios}
        made.add_row(
            escape(each.contender), "" if each.batch_size is None else str(each.batch_size), _seconds(each),
            _count(each.forward_passes), _count(each.backward_passes), _count(each.passes_a_point),
            "" if each.robust_accuracy is None else f"{100 * each.robust_accuracy:.2f}%",
            "" if each.memory_bytes is None else f"{each.memory_bytes / 2**20:.0f}",
            *(_ratio(ratios.get(name)) for name in ours),
        )  # fmt: skip
    return made


def remarks(result: TimingResult) -> list[str]:
    """Return what a reader of the table should know."""
    many = max((each.repeats for each in result.contenders), default=0)
    lines = [
        f"Seconds of the attack call alone (of the CPU with --threads 1), median (least–most) of {many} fresh processes; "
        "× is seconds over robustdup's in the same repeat.",
        "Passes are rows: counted by the benchmark around the model for baselines, by robustdup itself for its own "
        "(with its clean and judging passes; rows of padding are in --json).",
    ]
    for each in result.contenders:
        lines.append(f"{each.contender}: {each.about}")
        if each.violations:
            lines.append(f"{each.contender}: {each.violations} images came back outside the threat; projections count.")
        lines += [f"{each.contender}: {note}" for note in each.notes]
    return lines + result.notes


def _seconds(each: Summary) -> str:
    if each.seconds is None:
        return each.status
    if each.status == "timeout":
        return f"> {each.seconds.low:.4g}"
    return _range(each.seconds, "{:.4g}")


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return ""
    return f"> {ratio.low:.2f}" if ratio.lower_bound else _range(ratio, "{:.2f}")


def _range(value: Spread, form: str) -> str:
    middle, low, high = (form.format(number) for number in (value.median, value.low, value.high))
    return middle if low == high else f"{middle} ({low}–{high})"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _time_trainings(
    words: list[str],
    flags: dict[str, Any],
    json: bool = typer.Option(False, "--json", help="Print the result, and nothing else, on standard output."),
) -> int:
    """Time adversarial training beside a plain loop, torchattacks and ART: same network, images, PGD and threads."""
    file, overrides = split_words(words)
    config = build(TrainTimingConfig, file, overrides, flags)

    from benchmarks.timing_training import run_train_timing

    with _status() as say, contextlib.redirect_stdout(sys.stderr):
        result = run_train_timing(config, say=say)
    if json:
        print(result.model_dump_json(indent=2))
    else:
        show_trainers(result, console())
    return 0 if all(each.status == "done" for each in result.contenders) else 1


def show_trainers(result: TrainTimingResult, out: Console) -> None:
    """Print images a second of each contender, and how many times quicker robustdup was."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("contender", no_wrap=True)
    for title in ("images/s", "robustdup is times quicker"):
        table.add_column(title, justify="right")
    for each in result.contenders:
        speed = "failed" if each.images_per_second is None else _range(each.images_per_second, "{:,.0f}")
        table.add_row(escape(each.contender), speed, "" if each.ratio is None else _range(each.ratio, "{:.2f}"))
    config = result.config
    out.print(
        escape(
            f"{config['model']} ({result.parameters:,} parameters) on {config['n']} images of {config['data']}, "
            f"PGD-{config['steps']}, batches of {config['batch_size']}, {result.device}, {result.threads} threads"
        ),
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    out.print(table, highlight=False)
    for each in result.contenders:
        out.print(
            escape(f"{each.contender}: {each.reason or each.about}"), style="dim", highlight=False, soft_wrap=True
        )


app.command("eval")(with_flags(TimingConfig, _time_evaluations))
app.command("train")(with_flags(TrainTimingConfig, _time_trainings))


@app.callback()
def _group() -> None:
    """Time robustdup beside other toolkits: `eval` compares evaluations, `train` adversarial training."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code, as `robustdup` does: 2 for a user's mistake."""
    return run_app(app, arguments, "benchmarks.timing")


if __name__ == "__main__":
    sys.exit(main())
