"""What the commands `leaderboard rank` and `compare` print of runs on corruptions."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from robustdup.cli.compare import grid, name_cell, without_common_folder
from robustdup.cli.leaderboard import warn_of_age
from robustdup.errors import UserError
from robustdup.leaderboard.table import Leaderboard
from robustdup.records import find_record, to_json
from robustdup.records.origin import file_made_here
from robustdup.report.format import percent
from robustdup.report.terminal import console
from robustdup_corruptions.agreement import CorruptionAgreement, corruption_agreements
from robustdup_corruptions.rank import corruption_position
from robustdup_corruptions.record import load_corruption_record
from robustdup_corruptions.tables import read_answers


def rank(path: Path, table: Leaderboard, *, as_json: bool, clean: float | None) -> None:
    """Say where an evaluation on corruptions would stand."""
    result = corruption_position(
        load_corruption_record(path), read_answers(path.parent), table, made_here=file_made_here(path), clean=clean
    )
    if as_json:
        print(to_json(result))
        return
    out = console()
    warn_of_age(out, table)
    out.print(Text(result.sentence()))
    if result.published is not None:
        out.print(Text(f"  Published for this model: {100 * result.published:.2f}%."))
    if result.effective is not None:
        out.print(Text(f"  {result.effective.sentence()}"))
    for note in result.notes:
        out.print(Text(f"  Note: {note}."))


def compare(runs: list[str], *, as_json: bool) -> None:
    """Print the accuracies of runs on corruptions and how each two agree."""
    records = [load_corruption_record(run) for run in runs]
    tables = [read_answers(find_record(run).parent) for run in runs]
    given = [(record, table) for record, table in zip(records, tables, strict=True) if table is not None]
    if len(given) < len(runs):
        missing = ", ".join(run for run, table in zip(runs, tables, strict=True) if table is None)
        raise UserError(f"The table of answers is missing: {missing}.", code="damaged-record")
    pairs = corruption_agreements(given)
    if as_json:
        print(json.dumps([pair.model_dump(mode="json") for pair in pairs], indent=2))
        return
    accuracies = grid("", "run", "model", "corruption accuracy", left=2)
    for run, record in zip(without_common_folder(runs), records, strict=True):
        mean = record.corruption_accuracy
        accuracies.add_row(name_cell(run), name_cell(record.model.spec), percent(None if mean is None else mean.value))
    console().print(accuracies, highlight=False)
    console().print(_agreement_table(runs, pairs), highlight=False)


def _agreement_table(runs: list[str], pairs: Sequence[CorruptionAgreement]) -> Table:
    """Return who fails where under corruptions, a row a pair of runs."""
    table = grid(
        "Who fails where: error consistency (kappa), 0 is chance",
        *("A", "B", "images", "kappa", "wrong in A,\nwrong in B too", "the other\nway"),
        left=2,
    )
    for (a, b), pair in zip(itertools.combinations(without_common_folder(runs), 2), pairs, strict=True):
        kappa = pair.consistency.kappa
        table.add_row(
            name_cell(a), name_cell(b), str(pair.consistency.n), "–" if kappa is None else f"{kappa:.2f}",
            percent(pair.wrong_too_b), percent(pair.wrong_too_a),
        )  # fmt: skip
    return table
