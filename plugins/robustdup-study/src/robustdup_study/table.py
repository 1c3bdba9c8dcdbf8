"""The finished cells of a study as a table: values by seed, for each combination of factors, dose and metric."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from robustdup.errors import UserError
from robustdup_study.records import StudyRun

Stratum = tuple[tuple[str, Any], ...]  # the factors other than the dose, by name
Values = dict[int, float]  # by seed


class Table:
    """The finished runs, by stratum, dose and metric: values by seed."""

    def __init__(self, runs: Iterable[StudyRun], dose: str) -> None:
        self._values: dict[tuple[Stratum, float], dict[str, Values]] = defaultdict(lambda: defaultdict(dict))
        self.seeds: dict[Stratum, set[int]] = defaultdict(set)
        for run in runs:
            stratum, dose_here = split(run.factors, dose)
            self.seeds[stratum].add(run.seed)
            for name, value in run.metrics.items():
                if value is not None and np.isfinite(value):
                    self._values[stratum, dose_here][name][run.seed] = value

    def strata(self) -> list[Stratum]:
        """Return the strata in their order of appearance."""
        return list(self.seeds)

    def doses(self, stratum: Stratum) -> list[float]:
        """Return the doses that a stratum has results for, rising."""
        return sorted(level for other, level in self._values if other == stratum)

    def values(self, stratum: Stratum, dose: float, name: str) -> Values:
        """Return a metric by seed; {} where nothing was measured."""
        return self._values[stratum, dose].get(name, {}) if (stratum, dose) in self._values else {}

    def metrics(self) -> list[str]:
        """Return the names of all metrics that were measured."""
        return list(dict.fromkeys(name for by_metric in self._values.values() for name in by_metric))


def split(factors: Mapping[str, Any], dose: str) -> tuple[Stratum, float]:
    """Return the other factors, and the dose as a number. Raises UserError where it is none."""
    level = factors.get(dose, 0)
    if isinstance(level, bool) or not isinstance(level, int | float):
        raise UserError(
            f"The levels of the factor {dose!r} must be numbers to be compared with dose 0; got {level!r}.",
            code="bad-value",
        )
    return tuple((name, value) for name, value in factors.items() if name != dose), float(level)


def effect(table: Table, stratum: Stratum, dose: float, name: str) -> Values:
    """Return by how much a dose changes a metric, by seed: for the seeds that have the dose and no copies."""
    return less(table.values(stratum, dose, name), table.values(stratum, 0.0, name))


def less(values: Values, base: Values) -> Values:
    """Return by how much values differ from others, for the seeds that both have."""
    return {seed: values[seed] - base[seed] for seed in sorted(values.keys() & base.keys())}


def varying_factors(runs: Sequence[StudyRun], dose: str) -> list[str]:
    """Return the factors other than the dose that have several levels."""
    levels: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for name, value in run.factors.items():
            levels[name].add(str(value))
    return [name for name, values in levels.items() if name != dose and len(values) > 1]
