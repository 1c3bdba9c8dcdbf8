"""The two sides of a search: two splits of one dataset, or a split of one and a split of another dataset."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from robustdup.data.splits import Splits, open_splits
from robustdup.errors import UserError, unknown
from robustdup_detect.options import DetectConfig

if TYPE_CHECKING:
    from robustdup.config import DataOptions


def other_name(data: str, split: str) -> str:
    """Return what a split of another dataset is called in a search, its record and its pairs."""
    return f"{data} ({split})"


def split_of(config: DetectConfig, name: str) -> tuple[str, str]:
    """Return the dataset and the split of it that a side of a search is."""
    other = config.against_data
    if other is not None and name == config.against and name.startswith(f"{other} (") and name.endswith(")"):
        return other, name[len(other) + 2 : -1]
    return config.data, name


def side_options(config: DetectConfig, name: str) -> DataOptions:
    """Return how a side is read. What was said of the dataset's configuration and revision does not hold of the other one."""
    data, split = split_of(config, name)
    return _options(config, split, other=data != config.data)


def _options(config: DetectConfig, split: str, *, other: bool) -> DataOptions:
    options = config.data_options(split)
    named = other if config.add is not None else not other  # the dataset that the command names first
    return options if named else replace(options, config=None, revision=None)


def open_sides(config: DetectConfig) -> tuple[DetectConfig, Splits, Splits]:
    """Return the configuration with the names that its sides really have, the dataset, and both sides with what to tell.

    With `add` the new dataset is the one that is searched, and what it comes to is the other side. Raises UserError for splits
    and columns that are not there.
    """
    if config.add is not None and not (config.data == config.add and config.against_data):  # a resumed run has both
        if config.against is not None or config.against_data is not None:
            raise UserError(
                "add brings images to the dataset, against and against_data compare it with others: give one of them.",
                code="bad-value",
            )
        config = config.model_copy(update={"data": config.add, "against_data": config.data, "against": config.split})
    own = _named(open_splits(config.data, _options(config, config.split, other=False)), config.split)
    split, remarks = own.name_of(config.split)
    changes = {"split": split}
    sides = own
    if config.against_data is not None:
        wanted = config.against or config.split
        _, wanted = split_of(config, wanted)
        other = _named(open_splits(config.against_data, _options(config, wanted, other=True)), wanted)
        name, more = other.name_of(wanted)
        changes["against"] = other_name(config.against_data, name)
        sides = replace(own, splits={**own.splits, changes["against"]: other.get(name)})
        remarks = (*remarks, *other.notes, *more)
    elif config.against is not None:
        changes["against"], more = own.name_of(config.against)
        if changes["against"] == split and config.against not in own.splits and config.against != config.split:
            raise unknown(f"split of {config.data}:", config.against, own.splits)  # no other split stands in for it
        if changes["against"] == split:
            raise UserError(
                f"split and against are both {split!r}: leave out against for pairs within it.", code="bad-value"
            )
        remarks = (*remarks, *more)
    return config.model_copy(update=changes), own, replace(sides, notes=(*own.notes, *remarks))


def _named(source: Splits, wanted: str) -> Splits:
    """Call the one split of data without splits as it was asked for."""
    if not source.unnamed:
        return source
    (rows,) = source.splits.values()
    return replace(source, splits={wanted: rows})


def first_rows(source: Splits, names: list[str], n: int) -> Splits:
    """Return the splits with the first n rows of those that are named, and notes that say so."""
    parts = {name: source.get(name) for name in names}
    notes = [
        f"Only the first {n:,} of {len(split):,} images of {name} were looked at (n = {n})."
        for name, split in parts.items()
        if n < len(split)
    ]
    cut = {name: split.select(range(min(n, len(split)))) for name, split in parts.items()}
    return replace(source, splits={**source.splits, **cut}, notes=(*source.notes, *notes))
