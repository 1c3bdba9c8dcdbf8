"""The two sides of a comparison: whether there is room for a difference, what differs besides copies, and single answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from robustdup_study.metrics import metric
from robustdup_study.statistics import crossed_interval
from robustdup_study.table import Stratum, Table, Values

Side = tuple[Stratum, float]  # factors and dose
Limit = Literal["at floor", "at ceiling"]
LEAST_ROOM = 0.01  # of a share without a margin: a point
SAME_STEPS = 0.01  # relative: fewer is a rest of a batch
SAME_SHARES = 0.05  # of class imbalance: less comes by chance in small sets
TOLERANCE = 1e-9
# Metric of a cell, what it is called, and how it is written.
BESIDES = {
    "steps": ("optimizer steps", "{:,.0f}"),
    "unique_samples": ("distinct images", "{:,.0f}"),
    "class_imbalance": ("class shares (imbalance)", "{:.2f}"),
}
# Control conditions whose entries have the class shares of duplication that is skewed over classes.
SKEWED_CONDITIONS = ("copies", "as-weights", "same-draw", "prior-matched", "matched")


def limit_of(name: str, values: Sequence[float], margin: float | None) -> Limit | None:
    """Return whether all these values of a share lie within the margin of an end of its range; None where there is room.

    A model that is right on one image in a thousand cannot lose a point: no difference is then no evidence.
    """
    if metric(name).unit != "share" or not values:
        return None
    room = LEAST_ROOM if margin is None else margin
    if min(values) >= 0 and max(values) <= room:
        return "at floor"
    return "at ceiling" if min(values) >= 1 - room and max(values) <= 1 else None


def limit_of_sides(table: Table, pairs: Sequence[tuple[Side, Side]], name: str, margin: float | None) -> Limit | None:
    """Return the limit that the means of both sides of one of these pairs lie at, if any does."""
    for pair in pairs:
        means = [_mean(table, side, name) for side in pair]
        limit = limit_of(name, [mean for mean in means if mean is not None], margin)
        if limit is not None:
            return limit
    return None


def also_differs(table: Table, before: Side, after: Side) -> list[str]:
    """Return what differs between two sides besides what is compared: steps, distinct images, class shares."""
    differences = []
    for name, (text, form) in BESIDES.items():
        first, second = (_mean(table, side, name) for side in (before, after))
        if first is None or second is None:
            continue
        least = SAME_SHARES if name == "class_imbalance" else SAME_STEPS * max(abs(first), abs(second))
        if abs(first - second) > least:
            differences.append(f"{text} {form.format(first)} → {form.format(second)}")
    unknown = _mean(table, before, "class_imbalance") is None or _mean(table, after, "class_imbalance") is None
    if unknown and _skewed(before) != _skewed(after):
        differences.append("class shares")
    return differences


def _skewed(side: Side) -> bool:
    """Whether the name of the scheme says that the entries' classes are unequal: for cells that did not measure it."""
    factors = dict(side[0])
    shares = str(factors.get("condition", "copies")) in SKEWED_CONDITIONS
    return side[1] != 0 and shares and "class" in str(factors.get("scheme", ""))


def distinct_images(table: Table, side: Side, seeds: Sequence[int]) -> float | None:
    """Return the mean number of distinct training images of a side over these seeds; None where it was not kept."""
    values = table.values(*side, "unique_samples")
    kept = [values[seed] for seed in seeds if seed in values]
    return float(np.mean(kept)) if kept else None


def _mean(table: Table, side: Side, name: str) -> float | None:
    values = list(table.values(*side, name).values())
    return float(np.mean(values)) if values else None


class Answers:
    """The answers of the cells to single test images, by side, seed and metric: strings of 0 and 1."""

    def __init__(self, by_side: Mapping[Side, Mapping[int, Mapping[str, str]]]) -> None:
        self._by_side = by_side

    def crossed(
        self, signed: Sequence[tuple[int, Side]], name: str, differences: Values, level: float
    ) -> tuple[float, float, int] | None:
        """Return the interval over seeds and images of a sum of signed sides, and the images; None where it is not known.

        It is given only where the single answers add up to the difference of each seed that is analysed.
        """
        rows = []
        for seed, total in differences.items():
            answers = [self._by_side.get(side, {}).get(seed, {}).get(name, "") for _, side in signed]
            if not answers[0] or len({len(text) for text in answers}) > 1:
                return None
            row = np.zeros(len(answers[0]))
            for (sign, _), text in zip(signed, answers, strict=True):
                row += sign * (np.frombuffer(text.encode(), dtype=np.uint8) == ord("1"))
            if abs(float(row.mean()) - total) > TOLERANCE:
                return None
            rows.append(row)
        interval = crossed_interval(np.array(rows), level) if len(rows) > 1 else None  # type: ignore[arg-type]
        return None if interval is None else (*interval, len(rows[0]))


NO_ANSWERS = Answers({})


def answers_of(rows: Sequence[tuple[Side, int, Mapping[str, str]]]) -> Answers:
    """Return the answers of these cells: (side, seed, answers by metric)."""
    by_side: dict[Any, dict[int, Mapping[str, str]]] = {}
    for side, seed, answers in rows:
        by_side.setdefault(side, {})[seed] = answers
    return Answers(by_side)
