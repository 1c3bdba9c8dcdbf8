"""Numbers of classes from their names: numeric names by number, others in the order of their letters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

SPARE = 10  # classes that may be missing among numbered ones, beside as many as there are


def number_classes(names: Iterable[str]) -> tuple[list[str], dict[str, int], list[str]]:
    """Return the class names by number, the number of each name, and what to tell.

    Names that are numbers from 0 are the class numbers, also as whole floats, and a number without a name keeps its place; 1..K
    are the classes 0..K-1. Other names are sorted, as torchvision's ImageFolder sorts folders.
    """
    found = sorted(set(names))
    if not found or not all(re.fullmatch(r"\s*-?[0-9]+(\.0*)?\s*", name) for name in found):
        return found, {name: number for number, name in enumerate(found)}, _order_note(found)
    numbers = {name: int(float(name)) for name in found}
    found.sort(key=lambda name: numbers[name])
    low, high = numbers[found[0]], numbers[found[-1]]
    distinct = len(set(numbers.values())) == len(found)
    if distinct and low in (-1, 1) and high - low == len(found) - 1:
        told = [f"The classes are numbered from {low} to {high}; they are taken as the numbers 0 to {high - low}."]
        told += ["-1 often marks samples without a class: leave those out, if it does here."] if low < 0 else []
        return found, {name: number - low for name, number in numbers.items()}, told if high > low else []
    if distinct and low >= 0 and high < 2 * len(found) + SPARE:
        by_number = {number: name for name, number in numbers.items()}
        missing = [str(number) for number in range(high + 1) if number not in by_number]
        told = [f"No sample has the class number {', '.join(missing[:20])}; the other numbers stay."] if missing else []
        return [by_number.get(number, str(number)) for number in range(high + 1)], numbers, told
    told = [
        f"The classes have the names {found[0]} to {found[-1]}, with gaps; they are taken as the numbers 0 to {len(found) - 1}."
    ]
    return found, {name: number for number, name in enumerate(found)}, told


def _order_note(found: Sequence[str]) -> list[str]:
    """Say in which order names with numbers inside them are, where that is not the order of the numbers."""
    parts = {name: re.split(r"([0-9]+)", name) for name in found}
    by_number = sorted(
        found,
        key=lambda name: [(not part.isdecimal(), int(part) if part.isdecimal() else part) for part in parts[name]],
    )
    if not all(len(part) > 1 for part in parts.values()) or by_number == list(found):
        return []
    some = ", ".join(found[:3])
    return [
        f"The classes are in the order of their letters, as torchvision sorts folders, not of their numbers: {some}, …."
    ]


def missing_note(split: str, class_names: Sequence[str], present: Iterable[str]) -> tuple[str, ...]:
    """Say which classes have no sample in a split."""
    there = set(present)
    missing = [name for name in class_names if name not in there]
    if not missing:
        return ()
    more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
    have = "have" if len(missing) > 1 else "has"
    return (f"{', '.join(missing[:10])}{more} {have} no picture in {split}; all classes keep their numbers.",)
