"""The record of a search for duplicates: what was found, how sure it is, and where the pictures are. No torch.

A run folder holds `record.json`, `pairs.parquet` (all pairs), `leaving.csv` (what would leave, and what stays instead),
`images/` (the images of the pairs shown, one file each) and `sheets/` (pages of pairs side by side).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from robustdup.errors import UserError
from robustdup.records import Part, atomic_path
from robustdup.records.base import read_record, write_record

SCHEMA: Literal["robustdup.duplicates"] = "robustdup.duplicates"
VERSION = 1
PAIRS_FILE = "pairs.parquet"
NO_LABEL = "(no label)"  # what stands for a class among images without one

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
        ("turn", pa.float64()),  # degrees clockwise by which a is turned, mirrored first, before scale and shift
        ("decided", pa.bool_()),  # whether somebody said that it is a duplicate
        ("path_a", pa.string()),  # the file, where images are files of their own
        ("path_b", pa.string()),
    ]
)


class ImageRef(Part):
    """An image of a pair or a cluster."""

    split: str = Field(description="Split of the image.")
    row: int = Field(description="Index of the image in its split.")
    label: int | None = Field(default=None, description="Its label; null where unknown.")
    path: str | None = Field(
        default=None, description="The image's own file, where it has one; relative to the data's folder."
    )
    file: str | None = Field(default=None, description="Its file in the run folder, where it is shown.")


class ShownPair(Part):
    """A pair that is shown."""

    a: ImageRef
    b: ImageRef
    score: float = Field(description="How sure it is that both show one picture, in (0, 1]; 1 for identical pixels.")
    kind: Literal["exact", "near"] = Field(description="exact: the decoded pixels are identical.")
    mirrored: bool = Field(description="Whether one is the mirror image of the other.")
    change: str = Field(description="What turns the first image into the second, in words.")
    cluster: int = Field(
        description="Number of the cluster that both are in; -1 where they are in two, or one in none, since clusters do not "
        "chain pairs."
    )
    conflict: bool = Field(description="Whether their labels differ.")
    sheet: str | None = Field(default=None, description="The page of pairs in the run folder that shows them.")


class Cluster(Part):
    """Images of one picture: each is paired with the same one of them, which stands for it."""

    cluster: int = Field(description="Number of the cluster.")
    size: int = Field(description="Images in it.")
    conflict: bool = Field(description="Whether their labels differ.")
    images: list[ImageRef] = Field(description="Its images, the first 1,000 at most.")


class ClassBalance(Part):
    """A class of the split."""

    name: str
    n: int = Field(description="Images of the class.")
    n_clustered: int = Field(description="How many of them are in some cluster.")
    n_redundant: int = Field(description="How many of them would leave.")


class Band(Part):
    """How many near pairs have a score in a range."""

    low: float = Field(description="Least score of the band.")
    high: float = Field(description="Score from which the next band begins.")
    pairs: int = Field(description="Near pairs in the band.")


class SkippedImage(Part):
    """An image that cannot be read and was skipped."""

    split: str
    row: int
    path: str = Field(description="The image's file, where it has one of its own.")
    reason: str = Field(description="Why it cannot be read.")


class Method(Part):
    """How candidates were found and judged."""

    search: str = Field(description="exact, or faiss.")
    embedding: str = Field(
        default="classical", description="What finds candidates: classical features, or the network's spec."
    )
    dimensions: int = Field(description="Numbers of an embedding.")
    neighbours: int = Field(description="Candidates of each image, and as many of its mirror image.")
    least_similarity: float = Field(description="Least similarity of the embeddings of a candidate pair.")
    measures: list[str] = Field(description="What is measured of a candidate pair.")
    weights: list[float] = Field(description="Weights of the measures in the score.")
    bias: float = Field(description="Constant of the score.")
    threshold: float = Field(description="Least score of a pair that is listed.")


class Expected(Part):
    """What is expected of the pairs listed; null where it is not known."""

    calibrated: bool = Field(
        description="Whether there were enough images and candidates to say what precision to expect."
    )
    precision: float | None = Field(
        description="Expected precision of the near pairs, by image: 1 less the expected wrong pairs for each image found. The "
        "share of images whose best pair is right is higher. Records before the field `precision_of_pairs` hold that of pairs."
    )
    precision_low: float | None = Field(default=None, description="Lower end of its interval.")
    precision_high: float | None = Field(
        default=None,
        description="Upper end of its interval, where some wrong pairs are of images that have a right one.",
    )
    precision_of_pairs: float | None = Field(
        default=None, description="The same among all near pairs, many of which may be of few images."
    )
    different_pairs: float | None = Field(description="Expected number of wrong pairs among them.")
    recall: float | None = Field(
        description="Share of the near pairs that somebody confirmed which the search found; where `confirmed` is 0, what part "
        "of CIFAR-10's annotated near-duplicates the same threshold finds; null for images that are searched otherwise. "
        "Records before the field `confirmed` hold the share of copies that robustdup had made."
    )
    recall_low: float | None = Field(
        default=None,
        description="Lower end of its 95% interval (Wilson); lower where many pairs just below the threshold may be duplicates.",
    )
    recall_high: float | None = Field(default=None, description="Upper end of its 95% interval.")
    confirmed: int = Field(default=0, description="Confirmed near pairs from which the recall is told.")
    recall_by_change: dict[str, float] = Field(
        description="Share of copies of these images, made by robustdup, that the search found, by kind of change; nothing is "
        "learned from these kinds."
    )
    positives: int = Field(description="Copies that were made and looked for.")
    negatives: int = Field(description="Candidates from whose scores the number of wrong pairs was extrapolated.")
    about: str = Field(description="How these numbers come about, in words.")


class DuplicatesRecord(Part):
    """The result of `robustdup data detect`. `pairs` and `clusters` list the first alone; `pairs.parquet` holds all pairs."""

    schema_name: Literal["robustdup.duplicates"] = SCHEMA
    schema_version: int = VERSION
    run_id: str = Field(description="Name of the run folder.")
    created: str = Field(description="When, ISO 8601 in UTC.")
    command: str = Field(description="The command that runs the search again.")
    data: str = Field(description="The data as the user named it.")
    split: str = Field(description="The split in which duplicates were looked for.")
    against: str | None = Field(description="The other split, where pairs between two were looked for.")
    data_config: str | None = Field(description="Configuration of a Hub dataset.")
    revision: str | None = Field(description="Commit of a Hub dataset.")
    class_names: list[str]
    n: int = Field(description="Images of the split that were read.")
    n_against: int | None = Field(description="Images of the other split that were read.")
    n_unreadable: int = Field(description="Images that cannot be read.")
    unreadable: list[SkippedImage] = Field(description="The first 1,000 of them.")
    unread_files: dict[str, int] = Field(
        default_factory=dict,
        description="Pictures of the data's folder that are in no split and were not looked at, by the end of their names.",
    )
    n_exact: int = Field(description="Pairs with identical decoded pixels.")
    n_near: int = Field(description="Near-duplicate pairs.")
    n_mirrored: int = Field(description="Pairs of which one is mirrored.")
    n_clusters: int = Field(description="Clusters of images of one picture.")
    n_rows: int = Field(description="Images of the split that are in some cluster.")
    n_redundant: int = Field(description="Images of the split that a deduplicated one leaves out.")
    keep: str = Field(description="Which image of a cluster stays: first, quality or consistent.")
    n_conflicts: int = Field(description="Clusters whose labels differ.")
    conflicts: list[int] = Field(description="Numbers of the first 1,000 of them.")
    bands: list[Band] = Field(description="Near pairs by score.")
    pairs: list[ShownPair] = Field(description="The pairs that are shown.")
    clusters: list[Cluster] = Field(description="The largest clusters, those whose labels differ first.")
    classes: list[ClassBalance] = Field(
        default_factory=list, description="Classes of the split; earlier records lack them."
    )
    sheets: list[str] = Field(description="Pages of pairs in the run folder.")
    method: Method
    expected: Expected
    seconds: dict[str, float] = Field(description="Seconds by stage.")
    config: dict[str, Any] = Field(description="The configuration of the search.")
    environment: dict[str, str] = Field(description="Versions and the machine.")
    notes: list[str] = Field(description="What a reader should know.")
    deduplicated: str | None = Field(default=None, description="Where the dataset without duplicates was written.")


def is_labelled(record: DuplicatesRecord) -> bool:
    """Return whether images of the split have labels, as far as the record knows: earlier ones do not say."""
    return not record.classes or any(count.name != NO_LABEL for count in record.classes)


def title(record: DuplicatesRecord) -> str:
    """Return what to call a search."""
    return record.run_id or record.data


def save_duplicates(record: DuplicatesRecord, folder: Path) -> Path:
    """Write `record.json` into a run folder and return its path."""
    return write_record(record, folder)


def load_duplicates(place: str | Path) -> DuplicatesRecord:
    """Read a record of duplicates from a run folder or a file. Raises UserError."""
    return read_record(place, DuplicatesRecord, schema=SCHEMA, version=VERSION, noun="a record of duplicates")


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
        raise UserError(f"There is no {PAIRS_FILE} in {str(folder)!r}.", code="missing-file")
    try:
        return pq.read_table(path.absolute())
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{str(path)!r} cannot be read: {error}. Was the copy cut off?", code="bad-file") from None
