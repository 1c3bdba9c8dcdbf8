"""The record of an evaluation on common corruptions, and what is known of its kinds: names, families, baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from robustdup.records.base import Accuracy, DataInfo, Part, read_record, write_record
from robustdup.records.evaluation import Environment, ModelInfo

CORRUPTIONS_SCHEMA: Literal["robustdup.corruptions"] = "robustdup.corruptions"
CORRUPTIONS_VERSION = 1
SEVERITIES = (1, 2, 3, 4, 5)
TABLE_FILE = "corrupted.parquet"  # beside the record: what the model said of each image

# https://arxiv.org/abs/1903.12261: fifteen kinds, and four that were held back for validation.
FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}
KINDS = tuple(kind for kinds in FAMILIES.values() for kind in kinds)
COMMON = tuple(kind for kind in KINDS if kind not in FAMILIES["extra"])
FAMILY_OF = {kind: family for family, kinds in FAMILIES.items() for kind in kinds}

# Errors of AlexNet on ImageNet-C, averaged over the severities, by which mCE divides (the same paper, section 5.1; the numbers
# with all their digits are those of https://github.com/google-research/augmix).
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880,
    "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572,
    "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056, "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}  # fmt: skip


class SeverityResult(Part):
    """Accuracy on one kind at one severity."""

    severity: int = Field(description="From 1, mild, to 5.")
    n: int = Field(description="Images.")
    accuracy: Accuracy = Field(description="Share classified correctly.")
    pixels: str | None = Field(
        default=None, description="SHA-256 of the images of this kind and severity, as 8-bit values with their shape."
    )


class CorruptionResult(Part):
    """Accuracy on one kind of corruption, over its severities."""

    kind: str = Field(description="Name of the corruption, as its authors call it: gaussian_noise.")
    family: str = Field(description="noise, blur, weather, digital, or extra for the four kinds outside the mean.")
    accuracy: Accuracy = Field(description="Mean over the severities that were evaluated.")
    relative_error: float | None = Field(
        default=None,
        description="Its error divided by AlexNet's: CE of the paper; null where no baseline is published.",
    )
    severities: list[SeverityResult] = Field(description="Each severity that was evaluated, rising.")


class CorruptionRecord(Part):
    """The result of `robustdup eval --threat corruptions`."""

    schema_name: Literal["robustdup.corruptions"] = Field(
        default=CORRUPTIONS_SCHEMA, description="Kind of this record."
    )
    schema_version: int = Field(
        default=CORRUPTIONS_VERSION, description="Version of its schema; newer versions read older ones."
    )
    run_id: str = Field(description="Name of the run: that of its folder.")
    created: str = Field(description="When it was finished, in UTC.")
    command: str = Field(description="What runs it again.")
    n: int = Field(description="Images of each kind and severity.")
    source: Literal["made", "arrays", "folders"] = Field(
        description="Where the corrupted images come from: made here of clean ones, .npy files, or folders of images."
    )
    made_with: str = Field(default="", description="Library, version and parameters, where they were made here.")
    clean_accuracy: Accuracy | None = Field(
        default=None, description="Share of clean images classified correctly; null where there are none beside them."
    )
    corruption_accuracy: Accuracy | None = Field(
        description="Mean over the fifteen kinds that were evaluated and their severities; null where none of them was."
    )
    mce: float | None = Field(
        default=None,
        description="Mean corruption error, relative to AlexNet; null but for all fifteen kinds of ImageNet-C.",
    )
    kinds: list[CorruptionResult] = Field(description="Each kind, in the order of the paper.")
    missing: list[str] = Field(default_factory=list, description="Kinds of the fifteen that were not evaluated.")
    severities: list[int] = Field(description="Severities that were evaluated.")
    interval_about: str = Field(description="What the intervals speak of.")
    events: list[str] = Field(default_factory=list, description="What a reader should know.")
    seconds: float = Field(description="Seconds that it took.")
    making_seconds: float = Field(default=0.0, description="Seconds of them for making corrupted images.")
    seed: int = Field(description="Seed of everything random.")
    config: dict[str, Any] = Field(description="All settings, by name.")
    data: DataInfo = Field(description="The images: the clean ones where corruptions were made of them.")
    model: ModelInfo = Field(description="The model that was judged.")
    environment: Environment = Field(description="Where it ran.")
    versions: dict[str, str] = Field(description="Versions of what it was computed with.")

    @property
    def complete(self) -> bool:
        """Whether all fifteen kinds were evaluated at all five severities."""
        return not self.missing and self.severities == list(SEVERITIES)

    def __str__(self) -> str:
        """Return what it says in one line."""
        accuracy = self.corruption_accuracy
        mean = (
            "no kind of the fifteen"
            if accuracy is None
            else f"{accuracy.value:.2%} [{accuracy.low:.2%}, {accuracy.high:.2%}]"
        )
        return f"{self.model.name} on {self.data.spec}, common corruptions, {self.n} images each: {mean}"


def save_corruption_record(record: CorruptionRecord, folder: Path) -> Path:
    """Write `record.json` into a run folder and return its path."""
    return write_record(record, folder, made_here=True)


def load_corruption_record(place: str | Path) -> CorruptionRecord:
    """Read the record of an evaluation on corruptions from a run folder or a file. Raises UserError."""
    return read_record(
        place, CorruptionRecord, schema=CORRUPTIONS_SCHEMA, version=CORRUPTIONS_VERSION, noun="a record on corruptions"
    )
