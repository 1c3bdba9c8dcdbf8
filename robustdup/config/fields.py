"""The fields that several configurations share, written once: which data, and how its images are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field

from robustdup.config.base import Config

DIGITS = "builtin:digits"
# The radii of RobustBench and AutoAttack (https://github.com/fra31/auto-attack), and ones that 8x8 digits can tell apart.
USUAL_EPS = {"linf": "8/255", "l2": "0.5", "l1": "12", "l0": "20", "l0-pixels": "10"}  # no board has L0
DIGITS_EPS = {"linf": "0.15", "l2": "0.5", "l1": "2", "l0": "5", "l0-pixels": "5"}
NORMS = ("Linf", "L2", "L1")
EVALUATION_NORMS = (*NORMS, "L0", "L0-pixels")
DATA_DETAILS = ("data_config", "revision", "image_column", "label_column")  # seldom needed: last in their panel


@dataclass(frozen=True)
class DataOptions:
    """How to read a dataset. `resize` (shorter side), then `crop` (centre) are in pixels; `grey` makes one channel.

    Without `needs_labels` files of arrays may lack labels: they are -1 then.
    """

    split: str = "test"
    config: str | None = None
    revision: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    resize: int | None = None
    crop: int | None = None
    grey: bool = False
    needs_labels: bool = True


class ModelFields(Config):
    """Which model. Before the data, in help texts and in records."""

    model: str = Field(
        "builtin:digits-robust",
        description="Model: builtin:NAME, robustbench:NAME, run:FOLDER, file.py:factory@weights, …",
    )
    normalize: str | None = Field(
        None,
        description="What the model leaves to its caller: imagenet, cifar10, cifar100, 0..255, caffe, …, or means, then "
        "deviations: 0.5,0.5. None: it normalises images in [0, 1] itself.",
    )


class DatasetFields(Config):
    """Which dataset, which of its splits, and which of its columns."""

    data: str = Field(DIGITS, description="Data: builtin:digits, a Hub dataset id, or a folder or file on the disk.")
    split: str = Field("test", description="Split of the data.")
    data_config: str | None = Field(None, description="Configuration (subset) of a Hub dataset.")
    revision: str | None = Field(None, description="Revision of a Hub dataset: branch, tag or commit.")
    image_column: str | None = Field(None, description="Column of the images; guessed if not named.")
    label_column: str | None = Field(None, description="Column of the labels; guessed if not named.")

    def data_options(self, split: str | None = None) -> DataOptions:
        """Return how a split of the data is read; the configuration's own split if none is given."""
        return DataOptions(
            split=split or self.split,
            config=self.data_config,
            revision=self.revision,
            image_column=self.image_column,
            label_column=self.label_column,
        )


class DataFields(DatasetFields):
    """Which dataset, and what is done to its images before a model sees them."""

    resize: int | None = Field(None, description="Resize the shorter side to this many pixels.")
    crop: int | None = Field(None, description="Crop the centre to this many pixels, after resizing.")
    grey: bool = Field(False, description="Turn images into one grey channel.")

    def data_options(self, split: str | None = None) -> DataOptions:
        """Return how a split of the data is read; the configuration's own split if none is given."""
        return replace(super().data_options(split), resize=self.resize, crop=self.crop, grey=self.grey)


def usual_eps(values: Mapping[str, Any]) -> str:
    """Return the radius that the field reports for the norm and the data of a configuration's earlier fields."""
    usual = DIGITS_EPS if values.get("data") == DIGITS else USUAL_EPS
    return usual.get(str(values.get("norm", "Linf")).lower(), "8/255")
