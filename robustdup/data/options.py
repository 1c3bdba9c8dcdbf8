"""How to read a dataset: split, columns, and what is done to the images."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataOptions:
    """How to read a dataset. `resize` (shorter side), then `crop` (centre) are in pixels; `grey` makes one channel."""

    split: str = "test"
    config: str | None = None
    revision: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    resize: int | None = None
    crop: int | None = None
    grey: bool = False
