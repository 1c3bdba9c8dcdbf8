"""A study's cells from a table (CSV or Parquet), so that what was published can be analysed again without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from robustdup.errors import UserError
from robustdup_study.recipe import StudyConfig, label
from robustdup_study.records import CellStatus, StudyRecord, StudyRun
from robustdup_study.vocabulary import ARM, CONDITION

OWN = ("seed", "cell", "status")  # columns that are neither factor nor metric


def runs_of_table(path: Path, config: StudyConfig) -> list[StudyRun]:
    """Return the runs of a table as `cells.parquet` has them, a row for each; the recipe says which columns are factors.

    Raises:
        UserError: The file is missing, no table, or lacks a column that the recipe needs.
    """
    if not path.is_file():
        raise UserError(f"There is no table {str(path)!r}.", code="missing-file")
    try:
        table = (pq.read_table if path.suffix == ".parquet" else pc.read_csv)(path.absolute())
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{str(path)!r} cannot be read as a table: {error}.", code="damaged-file") from None
    names = {ARM: CONDITION} if CONDITION in config.factors and CONDITION not in table.column_names else {}
    table = table.rename_columns([names.get(name, name) for name in table.column_names])
    missing = [name for name in (*config.factors, *OWN) if name not in table.column_names]
    if missing:
        raise UserError(
            f"{str(path)!r} is not a table of this recipe's cells: it has no column {', '.join(missing)}.",
            code="bad-file",
        )
    metrics = [name for name in table.column_names if name not in (*config.factors, *OWN)]
    levels = {name: {str(label(level)): label(level) for level in values} for name, values in config.factors.items()}
    return [_run(row, levels, metrics) for row in table.to_pylist()]


def _run(row: dict[str, Any], levels: dict[str, dict[str, Any]], metrics: list[str]) -> StudyRun:
    factors = {name: known.get(_text(row[name]), row[name]) for name, known in levels.items()}
    values = {name: None if row[name] in (None, "") else float(row[name]) for name in metrics}
    status = cast(CellStatus, row["status"])
    return StudyRun(factors=factors, seed=int(row["seed"]), cell=str(row["cell"]), status=status, metrics=values)


def _text(value: Any) -> str:
    """Spell a level as a recipe does: a CSV may say 0.0 for 0."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def record_of_table(path: Path, config: StudyConfig, command: str) -> StudyRecord:
    """Return the record of a study from a table of its cells. Raises UserError."""
    from robustdup_study.record import record_of, versions

    runs = runs_of_table(path, config)
    keys = list(dict.fromkeys(run.cell for run in runs))
    return record_of(config, runs, {}, keys, command=command, versions=versions())
