"""`robustdup compare RUN RUN`: the paired difference of two evaluations on the same samples."""

from __future__ import annotations

import typer
from rich.table import Table
from rich.text import Text

from robustdup.cli.leaderboard import console
from robustdup.leaderboard import PairedDifference, RunComparison
from robustdup.leaderboard import compare as compare_records
from robustdup.records import find_record, load_record, load_samples, to_json

SHOWN = 20


def compare(
    run_a: str = typer.Argument(help="Run folder, or its record.json."),
    run_b: str = typer.Argument(help="Another run on the same samples."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON and nothing else."),
) -> None:
    """Compare two runs on the same samples: difference A minus B, 95% interval, McNemar's exact test."""
    pairs = [(load_record(run), load_samples(find_record(run).parent)) for run in (run_a, run_b)]
    result = compare_records(*pairs[0], *pairs[1])
    if as_json:
        print(to_json(result))
        return
    out = console()
    for line in (f"A: {result.run_a}  {result.model_a}", f"B: {result.run_b}  {result.model_b}"):
        out.print(Text(line))
    out.print(Text(f"{result.n_common} samples, {result.norm}, eps = {result.eps}"))
    out.print(comparison_table(result), highlight=False)
    for note in result.notes:
        out.print(Text(f"Note: {note}."))
    out.print(Text(_changed(result)))


def comparison_table(result: RunComparison) -> Table:
    """Return both differences as a table, in percent."""
    table = Table(box=None, pad_edge=False)
    for heading in ("accuracy", "A", "B", "A - B", "95% interval", "only A right", "only B right", "p (McNemar)"):
        table.add_column(heading, justify="left" if heading == "accuracy" else "right", no_wrap=True)
    _row(table, "clean", result.clean)
    if result.robust is None:
        table.add_row("robust", "all samples undecided")
    else:
        _row(table, "robust", result.robust)
    return table


def _row(table: Table, name: str, d: PairedDifference) -> None:
    table.add_row(
        name, f"{100 * d.a:.2f}%", f"{100 * d.b:.2f}%", f"{100 * d.difference:+.2f}",
        f"{100 * d.low:+.2f} to {100 * d.high:+.2f}", str(d.only_a), str(d.only_b), f"{d.p_value:.3g}",
    )  # fmt: skip


def _changed(result: RunComparison) -> str:
    if not result.changed:
        return "No sample changed."
    shown = ", ".join(str(sample.index) for sample in result.changed[:SHOWN])
    more = ", … (all with --json)" if len(result.changed) > SHOWN else ""
    return f"{len(result.changed)} samples changed; indices: {shown}{more}"
