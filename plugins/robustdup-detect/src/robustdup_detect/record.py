"""The record of a search for duplicates: what was found, how sure it is, and where the pictures are. No torch.

A run folder holds `record.json`, `pairs.parquet` (all pairs), `images/` (the images of the pairs shown, one file each) and
`sheets/` (pages of pairs side by side).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from robustdup.errors import UserError
from robustdup.records import RECORD_FILE, Part, atomic_path, to_json, write_atomic
from robustdup.records.base import read_record

SCHEMA: Literal["robustdup.duplicates"] = "robustdup.duplicates"
VERSION = 1
PAIRS_FILE = "pairs.parquet"

PAIRS_SCHEMA = pa.schema(
    [
        ("split_a", pa.string()),
        ("row_a", pa.int64()),
        ("label_a", pa.int64()),  # -1 where unknown
        ("split_b", pa.string()),
        ("row_b", pa.int64()),
        ("label_b", pa.int64()),
        ("score", pa.float64()),  # 1 for identical pixels
        ("kind", pa.string()),  # exact, near
        ("mirrored", pa.bool_()),
        ("scale_x", pa.float64()),  # the pixel at x of a (mirrored first; -1 to 1) is b's at scale * x + shift
        ("scale_y", pa.float64()),
        ("shift_x", pa.float64()),
        ("shift_y", pa.float64()),
        ("cluster", pa.int64()),
    ]
)


class ImageRef(Part):
    """An image: its split and row, its label (None where unknown), and its file in the run folder where it is shown."""

    split: str
    row: int
    label: int | None = None
    file: str | None = None


class ShownPair(Part):
    """A pair that is shown: `change` says in words what turns the first image into the second; `sheet` is its page."""

    a: ImageRef
    b: ImageRef
    score: float
    kind: Literal["exact", "near"]
    mirrored: bool
    change: str
    cluster: int
    conflict: bool
    sheet: str | None = None


class Cluster(Part):
    """Images of one picture; `conflict` where their labels differ."""

    cluster: int
    size: int
    conflict: bool
    images: list[ImageRef]


class ClassBalance(Part):
    """A class of the split: its images, how many of them are in some cluster, and how many would leave."""

    name: str
    n: int
    n_clustered: int
    n_redundant: int


class Band(Part):
    """How many near pairs have a score from `low` to below `high`."""

    low: float
    high: float
    pairs: int


class Unreadable(Part):
    """An image that was skipped, and why."""

    split: str
    row: int
    path: str
    reason: str


class Method(Part):
    """How candidates were found and judged: the embedding and its least similarity, the weights of the score, its threshold."""

    search: str
    embedding: str = "classical"
    dimensions: int
    neighbours: int
    least_similarity: float
    measures: list[str]
    weights: list[float]
    bias: float
    threshold: float


class Expected(Part):
    """What calibration on the user's own images expects; None where there were too few of them.

    `precision` is that of the near pairs listed in this record, `different_pairs` the expected number of wrong ones among
    them, `recall` the share of changed copies that the whole search found, by kind of change too.
    """

    calibrated: bool
    precision: float | None
    different_pairs: float | None
    recall: float | None
    recall_by_change: dict[str, float]
    positives: int
    negatives: int
    about: str


class DuplicatesRecord(Part):
    """The result of `robustdup data detect`.

    `n` images of `split` were read (and `n_against` of `against`), besides `n_unreadable`. `n_rows` of `split` are in some
    cluster, `n_redundant` of them would leave a deduplicated split. `pairs` and `clusters` list the first ones alone;
    `pairs.parquet` holds all pairs. `conflicts` names the clusters whose labels differ.
    """

    schema_name: Literal["robustdup.duplicates"] = SCHEMA
    schema_version: int = VERSION
    run_id: str
    created: str
    command: str
    data: str
    split: str
    against: str | None
    data_config: str | None
    revision: str | None
    class_names: list[str]
    n: int
    n_against: int | None
    n_unreadable: int
    unreadable: list[Unreadable]
    n_exact: int
    n_near: int
    n_mirrored: int
    n_clusters: int
    n_rows: int
    n_redundant: int
    keep: str
    n_conflicts: int
    conflicts: list[int]
    bands: list[Band]
    pairs: list[ShownPair]
    clusters: list[Cluster]
    classes: list[ClassBalance] = Field(default_factory=list)  # of `split`; earlier records lack it
    sheets: list[str]
    method: Method
    expected: Expected
    seconds: dict[str, float]
    config: dict[str, Any]
    environment: dict[str, str]
    notes: list[str]
    deduplicated: str | None = None


def save_duplicates(record: DuplicatesRecord, folder: Path) -> Path:
    """Write `record.json` into a run folder and return its path."""
    path = folder / RECORD_FILE
    write_atomic(path, (to_json(record) + "\n").encode())
    return path


def load_duplicates(place: str | Path) -> DuplicatesRecord:
    """Read a record of duplicates from a run folder or a file. Raises UserError."""
    return read_record(place, DuplicatesRecord, schema=SCHEMA, version=VERSION, what="a record of duplicates")


def save_pairs(columns: dict[str, Any], folder: Path) -> Path:
    """Write `pairs.parquet` (columns of PAIRS_SCHEMA) into a run folder and return its path."""
    path = folder / PAIRS_FILE
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns, schema=PAIRS_SCHEMA), temporary, compression="zstd")
    return path


def load_pairs(folder: str | Path) -> pa.Table:
    """Read `pairs.parquet` of a run folder. Raises UserError where it is missing or damaged."""
    path = Path(folder) / PAIRS_FILE
    if not path.is_file():
        raise UserError(f"There is no {PAIRS_FILE} in {str(folder)!r}.")
    try:
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}. Was the copy cut off?") from None
