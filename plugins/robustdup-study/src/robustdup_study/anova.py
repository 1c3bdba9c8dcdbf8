"""Repeated-measures ANOVA of the paired effects of copies: seeds are the subjects, factors and doses what varies within."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from robustdup_study.metrics import metric, to_unit
from robustdup_study.records import AnovaTerm
from robustdup_study.sides import limit_of_sides
from robustdup_study.table import Stratum, Table, Values, effect

Combination = tuple[Stratum, float]  # factors and dose
Levels = tuple[tuple[str, str], ...]  # of a combination as text, by factor


def anova(
    table: Table, name: str, varying: Sequence[str], remarks: list[str], margin: float | None = None
) -> list[AnovaTerm]:  # fmt: skip
    """Return the ANOVA of a metric over factors and dose, on the part of the design in which every level meets every other.

    Effects at the floor or the ceiling of a share are left out: where nothing can be seen, no factor made the difference.

    Args:
        table: The finished cells.
        name: The metric.
        varying: Factors besides the dose that have several levels.
        remarks: What was left out, or why there is no ANOVA, is added here.
        margin: Of the metric, in the unit of the recipe: the room within which a share is at its floor or ceiling.
    """
    effects, without_room = _with_room(
        table, _effects(table, name), name, None if margin is None else to_unit(name, margin)
    )
    if without_room:
        words = ", ".join(_at_limit(without_room, effects, varying))
        remarks.append(f"ANOVA of {metric(name).text} without {words}: both sides lie at the end of its range.")
    levels = {combination: _levels(combination, varying) for combination in effects}
    crossed = _crossed(levels)
    factors = [
        factor
        for factor in (*varying, "dose")
        if len({dict(levels[combination])[factor] for combination in crossed}) > 1
    ]
    text = metric(name).text
    if not factors:
        if len(effects) > 1:
            remarks.append(f"No ANOVA of {text}: the factors are not fully crossed.")
        return []
    remarks += _levels_left_out(levels, crossed, text)
    effects = {combination: effects[combination] for combination in crossed}
    seeds = sorted(set.intersection(*map(set, effects.values())))
    if len(seeds) < 2:
        remarks.append(f"No ANOVA of {text}: it needs two seeds that have every cell.")
        return []
    remarks += _seeds_left_out(effects, seeds, text)
    response = np.array([values[seed] for values in effects.values() for seed in seeds])
    if np.ptp(response) == 0:
        remarks.append(f"No ANOVA of {text}: all its effects are equal.")
        return []
    named = [[dict(levels[combination])[factor] for factor in factors] for combination in effects for _ in seeds]
    return [
        AnovaTerm(metric=name, term=term, df=df, df_error=error, f=f, p=p, p_lower_bound=max(p, bound), seeds=seeds)
        for term, df, error, f, p, bound in anova_terms(response, factors, named, seeds * len(effects))
        if np.isfinite(f) and np.isfinite(p)
    ]


def _effects(table: Table, name: str) -> dict[Combination, Values]:
    """Return the paired effects by seed of every combination with copies that has any."""
    combinations = [(stratum, dose) for stratum in table.strata() for dose in table.doses(stratum) if dose != 0]
    effects = {combination: effect(table, *combination, name) for combination in combinations}
    return {combination: values for combination, values in effects.items() if values}


def _with_room(
    table: Table, effects: dict[Combination, Values], name: str, margin: float | None
) -> tuple[dict[Combination, Values], list[Combination]]:
    """Return the effects that could be seen, and the combinations whose sides both lie at an end of the metric's range."""
    limits = {
        (stratum, dose): limit_of_sides(table, [((stratum, 0.0), (stratum, dose))], name, margin)
        for stratum, dose in effects
    }
    without = [combination for combination, limit in limits.items() if limit is not None]
    return {combination: values for combination, values in effects.items() if limits[combination] is None}, without


def _at_limit(
    without: Sequence[Combination], effects: Mapping[Combination, Values], varying: Sequence[str]
) -> list[str]:
    """Return the levels that only combinations without room have, or else how many combinations were left out."""
    left = {level for combination in effects for level in _levels(combination, varying)}
    gone = {level for combination in without for level in _levels(combination, varying)} - left
    return [f"{factor} {level}" for factor, level in sorted(gone)] or [f"{len(without)} of its effects"]


def _levels(combination: Combination, varying: Sequence[str]) -> Levels:
    stratum, dose = combination
    return (*((factor, str(dict(stratum)[factor])) for factor in varying), ("dose", f"{dose:g}"))


def _levels_left_out(levels: Mapping[Combination, Levels], crossed: Sequence[Combination], text: str) -> list[str]:
    all_levels = {level for combination in levels.values() for level in combination}
    missing = sorted(all_levels - {level for combination in crossed for level in levels[combination]})
    words = ", ".join(f"{factor} {level}" for factor, level in missing)
    return [f"ANOVA of {text} without {words}: there the factors are not fully crossed."] if missing else []


def _seeds_left_out(effects: Mapping[Combination, Values], seeds: Sequence[int], text: str) -> list[str]:
    missing = sorted({seed for values in effects.values() for seed in values} - set(seeds))
    words = ", ".join(map(str, missing))
    return [f"ANOVA of {text}: seeds {words} were left out, because cells of theirs are missing."] if missing else []


def _crossed(levels: Mapping[Combination, Levels]) -> list[Combination]:
    """Return the combinations of a part of the design in which every level meets every other one.

    Levels are left out one by one: each time the one that the fewest of its combinations are there for, the later one of a
    tie.
    """
    left = list(levels)
    while left:
        there: dict[str, list[str]] = {}
        for combination in left:
            for factor, level in levels[combination]:
                there.setdefault(factor, []).append(level)
        sizes = {factor: len(set(names)) for factor, names in there.items()}
        whole = math.prod(sizes.values())
        if whole == len(left):
            break
        full = {
            (factor, level): names.count(level) / (whole / sizes[factor])
            for factor, names in there.items()
            if sizes[factor] > 1
            for level in dict.fromkeys(names)
        }
        emptiest = min(reversed(full), key=lambda level: full[level])
        left = [combination for combination in left if emptiest not in levels[combination]]
    return left


def anova_terms(
    response: npt.NDArray[np.float64], names: Sequence[str], levels: Sequence[Sequence[str]], seeds: Sequence[int]
) -> list[tuple[str, float, float, float, float, float]]:
    """Return (term, df, df of error, F, p, lower-bound p) of a repeated-measures ANOVA with seeds as subjects.

    `response` has a row for each cell; `levels[i]` are the factor levels of row i, `seeds[i]` its seed. Each cell of the
    design holds one value for each seed. https://www.statsmodels.org/stable/generated/statsmodels.stats.anova.AnovaRM.html
    The lower-bound p uses F(1, seeds - 1): it holds without sphericity (Greenhouse and Geisser 1959).
    """
    import pandas as pd  # type: ignore[import-untyped]  # statsmodels takes its tables
    from scipy import stats
    from statsmodels.stats.anova import AnovaRM

    columns = [f"f{i}" for i in range(len(names))]  # names of factors may be anything, those of columns may not
    frame = pd.DataFrame({column: [row[i] for row in levels] for i, column in enumerate(columns)})
    frame["response"], frame["subject"] = response, list(seeds)
    table = AnovaRM(frame, "response", "subject", within=columns).fit().anova_table
    n = len(set(seeds))
    terms = []
    for term, row in table.iterrows():
        text = " × ".join(names[int(column[1:])] for column in str(term).split(":"))
        f = float(row["F Value"])
        terms.append(
            (text, float(row["Num DF"]), float(row["Den DF"]), f, float(row["Pr > F"]), float(stats.f.sf(f, 1, n - 1)))
        )
    return terms
