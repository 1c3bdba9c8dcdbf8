"""What `robustdup data detect` is told. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from robustdup.config import DataOptions, DatasetFields

CLASSICAL = "classical"  # the embedding that needs no network

Keep = Literal["first", "quality", "consistent"]


class DetectConfig(DatasetFields):
    """What `robustdup data detect` needs. Field descriptions are the help texts of the flags."""

    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Data": (
            "data",
            "split",
            "against",
            "n",
            "against_data",
            "add",
            "data_config",
            "revision",
            "image_column",
            "label_column",
            "background",
        ),
        "Search": ("embedding", "precision", "threshold", "decisions", "search", "local", "keep", "seed"),
        "Speed": ("index", "workers", "runner", "shard"),
        "Output": ("out", "pictures"),
    }

    data: str = Field(
        "builtin:digits", description="Data: builtin:digits, a Hub dataset id, a local folder or a parquet file."
    )
    split: str = Field("train", description="Split in which duplicates are looked for.")
    against: str | None = Field(
        None, description="Another split: pairs between the two are looked for, such as test images in training data."
    )
    n: int | None = Field(
        None, description="Look at the first N images of each split only: a quick look. Not together with --to.", ge=2
    )
    against_data: str | None = Field(
        None,
        description="Another dataset: pairs between the two are looked for, such as generated images in what a generator was "
        "trained on. --against names its split, --split if not given.",
    )
    add: str | None = Field(
        None,
        description="Another dataset whose images shall come to this one: each is looked for among the images of both, and the "
        "new ones that repeat one leave. With --index the old images are not computed anew.",
    )
    background: str = Field(
        "white",
        description="Colour behind transparent pixels, by name or as #rrggbb. Two images that differ in what is "
        "transparent alone are identical over it.",
    )
    embedding: str = Field(
        CLASSICAL,
        description="What finds candidates: classical (features of pixels, offline), or a network: hf:ID, "
        "file.py:factory@weights, or a classifier.",
    )
    precision: float = Field(
        0.95, description="Share of the pairs found that should be right: the threshold follows from it.", gt=0, lt=1
    )
    threshold: float | None = Field(
        None, description="Least score of a pair, above 0 and at most 1, instead of one that is calibrated.", gt=0, le=1
    )
    local: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Local features, which find turned, cropped, framed and partly covered copies: auto looks at images of 64 "
        "pixels a side and more, always at all.",
    )
    decisions: str | None = Field(
        None,
        description="CSV file of pairs that somebody looked at, with the columns a, b (rows or files) and duplicate (true or "
        "false): they are honoured, and say what recall is.",
    )
    keep: Keep = Field(
        "first",
        description="Which image of a cluster a deduplicated dataset keeps: the first; quality (most pixels, then most "
        "bytes); consistent (the first with the label of most of the cluster; where there is none such, all leave).",
    )
    pictures: int = Field(500, description="Pairs that are shown side by side in sheets/ and images/.", ge=0)
    search: Literal["auto", "exact", "faiss"] = Field(
        "auto", description="exact compares every pair of embeddings; faiss an approximate index, from a million on."
    )
    index: str | None = Field(
        None,
        description="Folder in which what is computed of each image and each pair is kept: a later search with the same "
        "--index, of the same images or of more, computes only what is new, and finds what one without it finds.",
    )
    workers: int | None = Field(
        None,
        description="Processes (or actors of a cluster) that share the work; one for each core if not given.",
        ge=1,
    )
    runner: str = Field("local", description="Where the workers are: local, or ray (a cluster; --out must be shared).")
    shard: int = Field(5000, description="Images in one piece of work, which is what a kill can lose.", ge=16)
    seed: int = Field(0, description="Seed of what is sampled to learn how candidates are found.", ge=0)
    out: str | None = Field(None, description="Run folder; runs/<time>-detect-<data> if not given.")

    def data_options(self, split: str | None = None) -> DataOptions:
        """Return how a split of the data is read; duplicates need no labels."""
        return replace(super().data_options(split), needs_labels=False)

    @field_validator("background")
    @classmethod
    def _colour(cls, value: str) -> str:
        from PIL import ImageColor

        ImageColor.getrgb(value)  # raises ValueError
        return value


# Settings that may differ when a run is resumed: they change nothing that is computed.
ELSEWHERE = ("workers", "runner", "out", "pictures", "keep", "decisions", "precision")
