"""The record of a described dataset: what `robustdup data describe` counted in each split."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from robustdup.records.base import Part, read_record, write_record

DESCRIPTION_SCHEMA: Literal["robustdup.description"] = "robustdup.description"
DESCRIPTION_VERSION = 1


class ClassCount(Part):
    """One class of a split."""

    name: str = Field(description="Name of the class, its number where it has none, or (no label).")
    entries: int = Field(description="Entries of the class.")
    copies: int = Field(description="Entries beyond the first of their sample in the class.")
    unique: int = Field(description="Distinct samples of the class.")
    share: float = Field(description="Share of the split's entries that are of this class, in [0, 1].")


class UnreadableImage(Part):
    """An image that cannot be read."""

    row: int = Field(description="Index of the image in its split.")
    path: str = Field(description="The image's file, where it has one of its own.")
    reason: str = Field(description="Why it cannot be read.")


class SplitDescription(Part):
    """A split in numbers."""

    place: str = Field(description="The data and the split in words.")
    entries: int = Field(description="Entries of the split.")
    same_by: Literal["source_index", "pixels", "rows"] = Field(
        description="How samples are told apart: by the column source_index, by the decoded pixels (then only exact "
        "duplicates are seen, and an unreadable image is a sample of its own), or not at all."
    )
    unique: int = Field(description="Distinct samples.")
    copies: int = Field(description="Entries beyond the first of their sample.")
    dose: float = Field(description="Duplication rate: the share of the entries that are copies, in [0, 1).")
    effective_sample_size: float = Field(
        description="Kish's effective sample size of the entries of each sample: "
        "https://en.wikipedia.org/wiki/Effective_sample_size#Weighted_samples"
    )
    multiplicity: dict[int, int] = Field(description="How many samples have so many entries, by number of entries.")
    conflicts: int = Field(description="Samples whose entries carry different labels.")
    classes: list[ClassCount] = Field(description="The classes, in their order.")
    sizes: dict[str, int] = Field(description="Images by size, as WIDTHxHEIGHT in pixels, the most frequent first.")
    modes: dict[str, int] = Field(description="Images by Pillow's pixel mode, the most frequent first.")
    n_unreadable: int = Field(description="Images that cannot be read.")
    unreadable: list[UnreadableImage] = Field(description="The first 1,000 of them.")
    notes: list[str] = Field(default_factory=list, description="What a reader should know.")


class DescriptionRecord(Part):
    """The result of `robustdup data describe`."""

    schema_name: Literal["robustdup.description"] = DESCRIPTION_SCHEMA
    schema_version: int = DESCRIPTION_VERSION
    run_id: str = Field(description="Name of the run folder.")
    created: str = Field(description="When, ISO 8601 in UTC.")
    command: str = Field(description="The command that describes the data again.")
    data: str = Field(description="The data as the user named it.")
    splits: list[SplitDescription] = Field(description="The splits that were described.")
    versions: dict[str, str] = Field(description="Versions by package.")


def title(record: DescriptionRecord) -> str:
    """Return what to call the run."""
    return record.run_id


def save_description(record: DescriptionRecord, folder: Path) -> Path:
    """Write `record.json` into a run folder and return its path."""
    return write_record(record, folder)


def load_description(place: str | Path) -> DescriptionRecord:
    """Read the record of a described dataset from a run folder or a file. Raises UserError."""
    return read_record(
        place, DescriptionRecord, schema=DESCRIPTION_SCHEMA, version=DESCRIPTION_VERSION, noun="a record of a dataset"
    )
