"""The table of an evaluation, a row for each sample and attack, and the words for what became of a sample."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from robustdup.errors import UserError
from robustdup.records.base import SAMPLES_FILE, atomic_path


class Outcome(IntEnum):
    """What became of a sample under one attack, or under all of them: a number in tensors, a word in tables.

    BROKEN: the referee found an adversarial example. ROBUST: it survived everything that was tried. CERTIFIED: no
    adversarial example exists, by proof. UNDECIDED: an attack failed on it, and no other broke it. NOT_ATTACKED: the
    clean image is misclassified, or an earlier attack broke it.
    """

    ROBUST = 0
    BROKEN = 1
    UNDECIDED = 2
    NOT_ATTACKED = 3
    CERTIFIED = 4

    @property
    def word(self) -> str:
        """The word in tables: robust, broken, undecided, not-attacked, certified."""
        return self.name.lower().replace("_", "-")


# The first rows, attack "clean", hold every sample on its clean image; then a row for each sample and stage.
SAMPLES_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),  # row in this run, from 0
        ("index", pa.int64()),  # row in the dataset's split
        ("label", pa.int64()),
        ("image_sha256", pa.string()),  # of the clean image, see robustdup.data
        ("eps", pa.string()),  # eps_text of the stage; empty for "clean"
        ("attack", pa.string()),  # "clean", or the name of the attack
        ("stage", pa.int64()),  # -1 for "clean", then 0, 1, …
        ("outcome", pa.string()),  # clean: correct, misclassified; attacks: the word of an Outcome
        ("prediction", pa.int64()),  # of the referee, on what was judged
        ("margin", pa.float64()),  # true logit minus best other, by the referee
        ("distance", pa.float64()),  # in the threat model's norm, of what was judged
        ("violation", pa.string()),  # "", or not_finite, box, ball joined by "+"
        ("forward_passes", pa.int64()),  # forward rows of this stage when this sample was judged
        ("backward_passes", pa.int64()),
        ("correct_share", pa.float64()),  # share of the referee's draws that were right (0 or 1 unless randomised)
        ("min_distance", pa.float64()),  # rows "clean": smallest distance seen to break the sample, where asked for
    ]
)
# Beside them, of a run with certificates. Rows "clean": the margin that is proven to be the least in the ball; else null.
CERTIFIED_MARGIN = pa.field("certified_margin", pa.float64())
OLD_WORDS = {"survived": Outcome.ROBUST.word}  # of tables that were written beside records before version 3


def save_samples(rows: dict[str, list[Any]], folder: Path) -> Path:
    """Write `samples.parquet` (columns of SAMPLES_SCHEMA, perhaps CERTIFIED_MARGIN) into a run folder; return its path."""
    schema = SAMPLES_SCHEMA.append(CERTIFIED_MARGIN) if CERTIFIED_MARGIN.name in rows else SAMPLES_SCHEMA
    path = folder / SAMPLES_FILE
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(rows, schema=schema), temporary, compression="zstd")
    return path


def load_samples(folder: str | Path) -> pa.Table:
    """Read `samples.parquet` of a run folder, in today's words. Raises UserError where it is missing or damaged."""
    path = Path(folder) / SAMPLES_FILE if Path(folder).is_dir() else Path(folder).parent / SAMPLES_FILE
    if not path.is_file():
        raise UserError(f"There is no {SAMPLES_FILE} in {str(path.parent)!r}.", code="missing-file")
    try:
        with pq.ParquetFile(path.absolute()) as file:  # a relative one may look like an address, or begin with ~
            table = file.read()
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"{str(path)!r} cannot be read: {error}. Was the copy cut off?", code="damaged-record"
        ) from None
    if len(set(table.column_names)) < len(table.column_names):
        raise UserError(f"{str(path)!r} has a column twice.", code="damaged-record")
    return _in_todays_words(table)


def _in_todays_words(table: pa.Table) -> pa.Table:
    """Rename outcomes of older versions. In plain Python: `pyarrow.compute` brings pandas, which takes longer to import."""
    if "outcome" not in table.column_names or not pa.types.is_string(table["outcome"].type):
        return table
    outcomes = table["outcome"].to_pylist()
    if OLD_WORDS.keys().isdisjoint(outcomes):
        return table
    renamed = pa.array([OLD_WORDS.get(word, word) for word in outcomes], pa.string())
    return table.set_column(table.column_names.index("outcome"), "outcome", renamed)
