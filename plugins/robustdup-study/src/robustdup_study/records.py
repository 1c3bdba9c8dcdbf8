"""The record of a study: its recipe, its cells, what was computed from them, and the sentences that follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from robustdup.records.base import Part, atomic_path, read_record, write_record
from robustdup_study.vocabulary import has_arms, renamed, with_conditions

GRID_FILE = "grid.json"  # the recipe and the cells of a study
STUDY_SCHEMA: Literal["robustdup.study"] = "robustdup.study"
STUDY_VERSION = 2

TABLE_FILE = "cells.parquet"

CellStatus = Literal["complete", "failed", "missing"]
Verdict = Literal[
    "lower", "higher", "equivalent", "undecided", "one seed", "no variation", "at floor", "at ceiling"
]  # fmt: skip


class StudyRun(Part):
    """A run of a study: factors and seed, the cell that stands for them, and what it measured.

    Several runs may share a cell: at dose 0 all schemes are the same training.
    """

    factors: dict[str, Any]
    seed: int
    cell: str
    status: CellStatus
    metrics: dict[str, float | None] = Field(default_factory=dict)
    error: str = ""
    folder: str | None = None


class DuplicationRate(Part):
    """One dose (share of training entries that are copies) in the ways in which the literature states it.

    Percentages are of the original training set.
    """

    dose: float
    mode: str
    share_of_copies: float
    copies_percent_of_originals: float | None
    entries_per_original: float | None
    unique_percent_of_originals: float
    text: str


class DoseMean(Part):
    """Mean over seeds at one dose, with its 95% t interval over seeds (null for one seed)."""

    metric: str
    factors: dict[str, Any]
    dose: float
    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


class PairedComparison(Part):
    """A paired difference over seeds, in the unit of its metric.

    `kind` "dose": the dose against no copies, all else equal; "contrast": how much that effect differs between two levels
    of `contrast`, or where there are no doses (`of_values`) how much the metric itself does. `p` is of the paired t test,
    `tost_p` of two one-sided tests against ±`margin`; `p_holm` and
    `tost_p_holm` are corrected over the primary comparisons and null for others. `power` is the chance to see a
    difference of the size of the margin with this spread and these seeds; `seeds_needed` what would settle the question
    at the power of the recipe and under the correction of the verdict, if mean and spread stay (null: settled, or beyond
    counting); `seeds_for_precision` gives an interval as narrow as the recipe wishes. Verdicts "at floor" and "at ceiling":
    both sides lie within the margin of an end of the metric's range, so that nothing could be seen.
    """

    kind: Literal["dose", "contrast"]
    metric: str
    factors: dict[str, Any]
    dose: float
    contrast: str = ""
    level: str = ""
    against: str = ""
    primary: bool
    seeds: list[int]
    missing_seeds: list[int] = Field(default_factory=list)
    before: float | None = None
    after: float | None = None
    difference: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    bootstrap_low: float | None = None
    bootstrap_high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    margin: float | None = None
    tost_p: float | None = None
    tost_p_holm: float | None = None
    power: float | None = None
    seeds_needed: int | None = None
    seeds_needed_low: int | None = Field(None, description="Lower end of the 95% range of `seeds_needed`.")
    seeds_needed_high: int | None = Field(None, description="Its upper end; null where beyond counting.")
    crossed_low: float | None = Field(
        None, description="Lower end of the interval over seeds and test images, both taken as drawn from more."
    )
    crossed_high: float | None = Field(None, description="Its upper end.")
    test_images: int | None = Field(None, description="Test images of that interval.")
    unique_before: float | None = Field(
        None, description="Distinct training images of the reference side, mean over seeds."
    )
    unique_after: float | None = Field(None, description="Distinct training images of the other side.")
    also_differs: list[str] = Field(
        default_factory=list,
        description="What differs between the sides besides what is compared: steps, images, shares.",
    )
    change: str = Field(
        "", description="For an interaction, whose change is compared between levels: from copies to matched."
    )
    of_values: bool = Field(False, description="Whether a contrast is of the metric itself, not of effects of a dose.")
    seeds_for_precision: int | None = None
    verdict: Verdict
    also_equivalent: bool = False
    sentence: str


class AnovaTerm(Part):
    """A term of the repeated-measures ANOVA on the paired effects: seeds are the subjects.

    `p_lower_bound` is the p value with the lower-bound correction of degrees of freedom, which holds without sphericity.
    """

    metric: str
    term: str
    df: float
    df_error: float
    f: float
    p: float
    p_lower_bound: float
    seeds: list[int]


class ImageDifference(Part):
    """What copies do to an image that has them: its answers in seeds that duplicated it against those that did not.

    `measure` is accuracy or robust accuracy; `difference` with its interval over images is a share.
    """

    measure: str
    factors: dict[str, Any]
    dose: float
    seeds: list[int]
    images: int
    difference: float
    low: float
    high: float
    sentence: str


class Claim(Part):
    """A published claim and what this study says of it; `evidence` are the sentences that it rests on, the largest first.

    Two words besides the verdict: `effect`, whether accuracy moved as claimed, and `attribution`, whether because of copies.
    """

    claim: str
    verdict: Literal["confirmed", "refuted", "equivalent", "undecided", "not tested"]
    sentence: str
    evidence: list[str] = Field(default_factory=list)
    effect: str = Field(
        "", description="Whether accuracy moved as claimed: seen, mixed, absent, opposite, open, not tested."
    )
    attribution: str = Field(
        "", description="Whether because of copies: copies, not copies, open, or nothing to attribute."
    )
    attribution_text: str = Field("", description="What the attribution rests on, or what else differs.")
    by_budget: dict[str, str] = Field(default_factory=dict, description="The effect under each budget, in words.")
    scope: str = Field("", description="What it was measured on: no verdict reaches further.")
    cells: int = Field(0, description="Cells whose comparisons were judged.")
    figure: str = Field("", description="Where the comparisons are drawn on the page of the study.")
    would_change: str = Field("", description="What would change the verdict.")


class PublishedFigure(Part):
    """A published figure beside those seen here, in per cent; null where there is none.

    `here` is the protocol as it was published, `repaired` the same arm and percentage with its faults mended: `mended` says
    which, "clamp" or "all". Intervals are over seeds.
    """

    arm: str
    percent: float
    metric: str
    published: float | None
    here: float | None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    source: str = ""
    repaired: float | None = None
    repaired_low: float | None = None
    repaired_high: float | None = None
    repaired_seeds: int = 0
    mended: str = ""


# What names of version 1 became.
STUDY_NAMES_OF_1 = {"rows": "runs", "readings": "duplication_rates", "crossovers": "image_differences"}


class StudyRecord(Part):
    """The result of `robustdup study`; `partial` while cells are missing.

    `analysis_since` is when the analysis part of the recipe was fixed; `analysis_changes` tells of later changes and how
    many cells were finished by then. `seconds` are those of all cells together.
    """

    schema_name: Literal["robustdup.study"] = STUDY_SCHEMA
    schema_version: int = STUDY_VERSION
    run_id: str
    created: str
    status: Literal["complete", "partial"]
    name: str
    command: str
    recipe: dict[str, Any]
    factors: dict[str, list[Any]]
    seeds: list[int]
    n_cells: int
    n_complete: int
    n_failed: int
    n_missing: int
    runs: list[StudyRun]
    duplication_rates: list[DuplicationRate] = Field(default_factory=list)
    means: list[DoseMean] = Field(default_factory=list)
    comparisons: list[PairedComparison] = Field(default_factory=list)
    anova: list[AnovaTerm] = Field(default_factory=list)
    image_differences: list[ImageDifference] = Field(default_factory=list)
    conclusions: list[str] = Field(default_factory=list)
    claims: list[Claim] = Field(default_factory=list)
    published: list[PublishedFigure] = Field(default_factory=list)
    remarks: list[str] = Field(default_factory=list)
    scope: str = Field("", description="Network, images, steps and seeds of the cells, in words.")
    analysis_since: str = ""
    analysis_changes: list[str] = Field(default_factory=list)
    seconds: float = 0.0
    versions: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, content: Any) -> Any:
        """Read version 1, in which a control condition was an arm."""
        if not isinstance(content, dict) or not STUDY_NAMES_OF_1.keys() & content.keys():
            return content
        content = renamed(content, STUDY_NAMES_OF_1)
        recipe = content.get("recipe")
        return with_conditions(content) if isinstance(recipe, dict) and has_arms(recipe) else content


class StudyProgress(Part):
    """Where a study stands: what a live view shows."""

    done: int
    failed: int
    total: int
    workers: int
    seconds: float
    seconds_left: float | None
    message: str = ""
    under_way: str = ""


def load_study_record(place: str | Path) -> StudyRecord:
    """Read a study's record from its folder or a file; older versions are upgraded, newer ones refused (UserError)."""
    return read_record(place, StudyRecord, schema=STUDY_SCHEMA, version=STUDY_VERSION, noun="a study's record")


def save_study_record(record: StudyRecord, folder: Path) -> Path:
    """Write `record.json` and the raw table `cells.parquet` into a study's folder; return the record's path."""
    with atomic_path(folder / TABLE_FILE) as temporary:
        pq.write_table(study_table(record), temporary, compression="zstd")
    return write_record(record, folder)


def study_table(record: StudyRecord) -> pa.Table:
    """Return the raw table: a row for each run, a column for each factor and each metric."""
    factors = list(dict.fromkeys(name for run in record.runs for name in run.factors))
    metrics = list(dict.fromkeys(name for run in record.runs for name in run.metrics))
    columns: dict[str, pa.Array] = {name: _column([run.factors.get(name) for run in record.runs]) for name in factors}
    columns["seed"] = pa.array([run.seed for run in record.runs], pa.int64())
    columns["cell"] = pa.array([run.cell for run in record.runs], pa.string())
    columns["status"] = pa.array([run.status for run in record.runs], pa.string())
    for name in metrics:
        columns[name] = pa.array([run.metrics.get(name) for run in record.runs], pa.float64())
    return pa.table(columns)


def _column(values: list[Any]) -> pa.Array:
    """Numbers stay numbers; anything mixed becomes text."""
    present = [value for value in values if value is not None]
    if present and all(isinstance(value, int | float) and not isinstance(value, bool) for value in present):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def title(record: StudyRecord) -> str:
    """Return what to call a study."""
    return record.name
