"""`robustdup leaderboard`: show the published table, rank a run in it."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from robustdup.cli.flags import JSON
from robustdup.cli.plugged import PluggedGroup
from robustdup.errors import UserError
from robustdup.leaderboard import LeaderboardEntry, Place, RankResult, load, position, select
from robustdup.leaderboard.table import Leaderboard, choose
from robustdup.plugins import record_kinds
from robustdup.records import find_record, load_record, load_samples, schema_of
from robustdup.records.origin import file_made_here
from robustdup.report.format import folded
from robustdup.report.terminal import console

app = typer.Typer(cls=PluggedGroup, help="RobustBench's published models.", no_args_is_help=True, add_completion=False)

NARROWEST = 80  # columns that a table fits into at least
WIDE = 120  # columns that the whole table needs

BOARD = typer.Argument(None, metavar="[DATASET] [THREAT]", help="Only these, as in: cifar10 Linf.", show_default=False)


@app.command("show")
def show_command(
    board: list[str] | None = BOARD,
    dataset: str | None = typer.Option(None, "--dataset", help="cifar10, cifar100 or imagenet."),
    threat: str | None = typer.Option(None, "--threat", help="Linf, L2 or corruptions."),
    sort: str = typer.Option("robust", "--sort", help="robust (RobustBench's order), autoattack, clean, reported, …"),
    top: int | None = typer.Option(None, "--top", help="Show only the first entries."),
    search: str | None = typer.Option(None, "--search", help="Text in name, title or venue."),
    architecture: str | None = typer.Option(None, "--architecture", help="Text in the architecture."),
    eps: str | None = typer.Option(None, "--eps", help="Only this radius, as an exact number: 8/255."),
    extra_data: bool | None = typer.Option(None, "--extra-data/--no-extra-data", help="With or without extra data."),
    unreliable: bool | None = typer.Option(
        None, "--unreliable/--no-unreliable", help="Only or without the unreliable."
    ),
    as_json: bool = JSON,
) -> None:
    """Show the published entries."""
    table = load()
    dataset, threat = _board(board or [], table, dataset, threat)
    entries = select(
        table, dataset=dataset, threat=threat, sort=sort, top=top, search=search, architecture=architecture, eps=eps,
        extra_data=extra_data, unreliable=unreliable,
    )  # fmt: skip
    if as_json:
        head = {"source": table.source, "date": table.date, "commit": table.commit, "n": len(entries)}
        _print_json({**head, "entries": [entry.model_dump() for entry in entries]})
        return
    out = console(wide=True)
    warn_of_age(out, table)
    several = dataset is None or threat is None
    out.print(_table(entries, several=several, narrow=out.width < WIDE), highlight=False)
    out.print(Text(f"{len(entries)} of {len(table.entries)} entries. Table of {table.date}: {table.source}."))


def _board(
    words: list[str], table: Leaderboard, dataset: str | None, threat: str | None
) -> tuple[str | None, str | None]:
    """Return dataset and threat model: options, or words such as `cifar10 Linf`. Raises UserError where one is named twice."""
    threats = sorted({entry.threat_model for entry in table.entries})
    for word in words:
        name = choose("dataset or threat model", word, [*table.datasets, *threats])
        kind, before = ("threat model", threat) if name in threats else ("dataset", dataset)
        if before is not None:
            raise UserError(
                f"{before} and {name}: give one {kind}, as in: robustdup leaderboard show cifar10 Linf",
                code="bad-option",
            )
        dataset, threat = (dataset, name) if name in threats else (name, threat)
    return dataset, threat


@app.command("rank")
def rank_command(
    run: str = typer.Argument(help="Run folder, or its record.json."),
    clean: str | None = typer.Option(
        None,
        "--clean",
        help="For corruptions: the clean accuracy of the model in percent, or a run that has it; for effective robustness.",
    ),
    as_json: bool = JSON,
) -> None:
    """Say where a run would stand, or why it cannot be compared."""
    table = load()
    path = find_record(run)
    kind = record_kinds().get(schema_of(path))
    if kind is not None and kind.rank is not None:
        kind.rank(path, table, as_json=as_json, clean=_clean_accuracy(clean))
        return
    if clean is not None:
        raise UserError("--clean is for runs on corruptions: this run has its own clean accuracy.", code="bad-option")
    result = position(load_record(run), load_samples(path.parent), table, made_here=file_made_here(path))
    if as_json:
        _print_json({**result.model_dump(mode="json"), "rests_on": result.rests_on})
        return
    out = console()
    warn_of_age(out, table)
    for line in rank_lines(result):
        out.print(Text(line))


def _clean_accuracy(text: str | None) -> float | None:
    """Return a clean accuracy in [0, 1]: a number in percent, or that of a run. Raises UserError."""
    if text is None:
        return None
    try:
        percent = float(text.rstrip("% "))
    except ValueError:
        return load_record(text).clean_accuracy.value
    if not 0 < percent <= 100:
        raise UserError(f"--clean {text} is no accuracy in percent.", code="bad-value")
    return percent / 100


def rank_lines(result: RankResult) -> list[str]:
    """Return a rank as lines of plain text, the sentence first."""
    lines = [result.sentence()]
    if result.at_most is not None:  # the sentence has only the first
        lines += [f"  Not comparable: {reason}." for reason in result.reasons]
    for label, place in (
        ("AutoAttack with AutoAttack", result.autoattack),
        ("RobustBench's own order (external replaces AutoAttack)", result.robustbench),
        ("Upper bound, not a rank: at best", result.at_most),
    ):
        if place is not None:
            lines.append(f"  {label}: {_place_text(place, bound=place is result.at_most)}.")
    published = result.published
    if published is not None and published.autoattack is not None:
        lines.append(f"  Published for {published.model_id}: {100 * published.autoattack:.2f}% at eps {published.eps}.")
        if published.robust_difference is not None:
            where = "inside" if published.robust_inside else "outside"
            lines.append(
                f"  Measured minus published: {100 * published.robust_difference:+z.2f} points; "
                f"the published number is {where} the 95% interval."
            )
        lines += [f"  Note: {published.note}."] if published.note else []
    return lines + [f"  Note: {note}." for note in result.notes if note not in lines[0]]


def _place_text(place: Place, *, bound: bool) -> str:
    text = f"{place.best} of {place.n_entries + 1}" if bound else place.text
    neighbours = [
        f"{word} {name}"
        for word, name in (("below", place.next_better), ("above", place.next_worse))
        if name is not None
    ]
    return text if bound or not neighbours else f"{text}, {' and '.join(neighbours)}"


def _table(entries: list[LeaderboardEntry], *, several: bool, narrow: bool = False) -> Table:
    """The entries as a table; every cell is Text, since names and titles may hold square brackets.

    `several`: the entries may be of several leaderboards, which are then named. `narrow`: only what fits into 80 columns
    without breaking words.
    """
    corrupted = any(entry.threat_model == "corruptions" for entry in entries)
    table = Table(box=None, pad_edge=False)
    headings = ["#", *(["dataset", "threat"] if several else []), "model", "architecture", "eps", "clean"]
    in_3d = any(entry.corruptions_acc_3d is not None for entry in entries)
    headings += ["AutoAttack", "external", *["corruptions"] * corrupted, *["3DCC"] * in_3d, "extra data", "venue"]
    if narrow:
        left_out = {"architecture", "external", "extra data"}
        headings = [heading for heading in headings if heading not in left_out]
        headings = ["#", "dataset", "threat", "model", "clean", "robust"] if several else headings
    right = {"#", "eps", "clean", "AutoAttack", "external", "corruptions", "3DCC", "robust"}
    for heading in headings:
        table.add_column(heading, justify="right" if heading in right else "left", no_wrap=heading != "venue")
    others = sum(len(heading) for heading in headings if heading not in ("model", "dataset", "threat", "venue", "eps"))
    beside = 21 if several else 17  # dataset and threat, or eps and venue
    letters = NARROWEST - others - beside - 2 * (len(headings) - 1)
    for number, entry in enumerate(entries, 1):
        cells: dict[str, str] = {
            "#": str(number), "dataset": entry.dataset, "threat": entry.threat_model,
            "model": folded(entry.model_id, letters if narrow else 99) + (" (unreliable)" if entry.unreliable else ""),
            "architecture": entry.architecture, "eps": entry.eps or "", "clean": _percent(entry.clean_acc),
            "AutoAttack": _percent(entry.autoattack_acc), "external": _percent(entry.external_acc),
            "corruptions": _percent(entry.corruptions_acc), "3DCC": _percent(entry.corruptions_acc_3d),
            "robust": _percent(entry.corruptions_acc if entry.threat_model == "corruptions" else entry.autoattack_acc),
            "extra data": "yes" if entry.extra_data else "",
            "venue": entry.venue,
        }  # fmt: skip
        table.add_row(*(Text(cells[heading]) for heading in headings))
    return table


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def warn_of_age(out: Console, table: Leaderboard) -> None:
    if table.warning:
        out.print(Text(f"Warning: {table.warning}"))


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False))
