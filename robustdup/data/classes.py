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
    ordered = sorted(set(names))
    if not ordered or not all(re.fullmatch(r"\s*-?[0-9]+(\.0*)?\s*", name) for name in ordered):
        return ordered, {name: number for number, name in enumerate(ordered)}, _order_note(ordered)
    numbers = {name: int(float(name)) for name in ordered}
    ordered.sort(key=lambda name: numbers[name])
    low, high = numbers[ordered[0]], numbers[ordered[-1]]
    distinct = len(set(numbers.values())) == len(ordered)
    if distinct and low in (-1, 1) and high - low == len(ordered) - 1:
        notes = [f"The classes are numbered from {low} to {high}; they are taken as the numbers 0 to {high - low}."]
        notes += ["-1 often marks samples without a class: leave those out, if it does here."] if low < 0 else []
        return ordered, {name: number - low for name, number in numbers.items()}, notes if high > low else []
    if distinct and low >= 0 and high < 2 * len(ordered) + SPARE:
        by_number = {number: name for name, number in numbers.items()}
        missing = [str(number) for number in range(high + 1) if number not in by_number]
        named = ", ".join(missing[:20])
        notes = [f"No sample has the class number {named}; the other numbers stay."] if missing else []
        return [by_number.get(number, str(number)) for number in range(high + 1)], numbers, notes
    last = len(ordered) - 1
    notes = [
        f"The classes have the names {ordered[0]} to {ordered[-1]}, with gaps; they are taken as the numbers 0 to {last}."
    ]
    return ordered, {name: number for number, name in enumerate(ordered)}, notes


def _order_note(ordered: Sequence[str]) -> list[str]:
    """Say in which order names with numbers inside them are, where that is not the order of the numbers."""
    parts = {name: re.split(r"([0-9]+)", name) for name in ordered}
    by_number = sorted(
        ordered,
        key=lambda name: [(not part.isdecimal(), int(part) if part.isdecimal() else part) for part in parts[name]],
    )
    if not all(len(part) > 1 for part in parts.values()) or by_number == list(ordered):
        return []
    some = ", ".join(ordered[:3])
    return [
        f"The classes are in the order of their letters, as torchvision sorts folders, not of their numbers: {some}, …."
    ]


def names_of_numbers(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the name of each class number of (number, name) pairs; nothing where they are not numbers and names one to one."""
    unique = set(pairs)
    names = dict(unique)
    whole = all(re.fullmatch(r"[0-9]+", number) for number in names)
    words = not any(re.fullmatch(r"-?[0-9.]+", name) for name in names.values())
    one_to_one = len(names) == len(unique) == len(set(names.values()))
    return names if names and whole and words and one_to_one else {}


def missing_note(split: str, class_names: Sequence[str], present: Iterable[str]) -> tuple[str, ...]:
    """Say which classes have no sample in a split."""
    there = set(present)
    missing = [name for name in class_names if name not in there]
    if not missing:
        return ()
    more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
    have = "have" if len(missing) > 1 else "has"
    return (f"{', '.join(missing[:10])}{more} {have} no picture in {split}; all classes keep their numbers.",)
