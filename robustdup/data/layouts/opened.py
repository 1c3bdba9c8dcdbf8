"""The splits of a dataset as they were opened, and the choice of one by its name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustdup.errors import UserError, unknown

KEYWORDS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
USUAL = {word: split for split, words in KEYWORDS.items() for word in words}


@dataclass(frozen=True)
class Opened:
    """Splits by name, each a `datasets.Dataset` or `Arrays`, with what a reader should know of all and of each.

    `unnamed` tells that there is one split whose name is not from the data: it serves any.
    """

    splits: dict[str, Any]
    notes: tuple[str, ...] = ()
    split_notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unnamed: bool = False


def split_name(word: str) -> str | None:
    """Return train, validation or test for a word that usually names that split (val, testing, dev); None for others."""
    return USUAL.get(word.lower())


def split_word(stem: str) -> str | None:
    """Return the split of the first part of a name, between its signs, that usually names one: test-000000, x_train."""
    return next((split for part in re.split(r"[_\-.]+", stem) if (split := split_name(part))), None)


def split_in(name: str) -> str | None:
    """Return the split that a longer name speaks of: train_set, seg_test, val2017, TestImages; None for none and for several."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
    named = {split for word in words if (split := split_name(word))}
    return named.pop() if len(named) == 1 else None


def chosen_set(sets: Sequence[str], place: Path, config: str | None) -> str:
    """Return the one set of images of a place, or the one of several that `config` names. Raises UserError."""
    if config is not None and config not in sets:
        raise unknown(f"configuration of {place}:", config, sets)
    if config is None and len(sets) != 1:
        raise UserError(
            f"{str(place)!r} has several sets of images. Name one with --data-config: {', '.join(sets)}.",
            code="bad-option",
        )
    return sets[0] if config is None else config


def pick(opened: Opened, wanted: str, place: str, *, lenient: bool = False) -> tuple[str, tuple[str, ...]]:
    """Return the name of the split that `wanted` means, and what to tell of the choice and of the split.

    A split goes by any of its usual names. With `lenient`, where test data are wanted and there are none, validation data
    are taken, or the one split that there is; where training data are wanted, the one split that there is. Raises UserError.
    """
    names = list(opened.splits)
    name, remarks = _find(names, wanted, place, lenient=lenient, unnamed=opened.unnamed)
    if name is None:
        raise unknown(f"split of {place}:", wanted, names)
    return name, (*opened.notes, *opened.split_notes.get(name, ()), *remarks)


def _find(names: list[str], wanted: str, place: str, *, lenient: bool, unnamed: bool) -> tuple[str | None, list[str]]:
    if wanted in names:
        return wanted, []
    same = [name for name in names if split_name(name) is not None and split_name(name) == split_name(wanted)]
    if len(same) == 1:
        return same[0], []
    if unnamed and len(names) == 1 and lenient:
        return names[0], [f"{place} has no splits: all of it is taken as {wanted!r}."]
    if not lenient or split_name(wanted) not in ("train", "test"):
        return None, []
    for_test = split_name(wanted) == "test"
    held_out = [name for name in names if split_name(name) == "validation"]
    if for_test and len(held_out) == 1:
        return held_out[0], [f"{place} has no split {wanted!r}: {held_out[0]!r} is taken."]
    if len(names) == 1:
        trained = for_test and split_name(names[0]) == "train"
        warning = " A model that was trained on it looks better than it is." if trained else ""
        return names[0], [f"{place} has no split {wanted!r}: its only split, {names[0]!r}, is taken.{warning}"]
    return None, []
