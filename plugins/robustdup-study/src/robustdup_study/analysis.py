"""From the table of cells to paired effects: intervals, equivalence, correction, power, and a verdict for each.

The seed is the unit. A dose is compared with dose 0 of the same factors and seed; every dose stands for itself (a curve,
not a slope). `sentences` says the results in words.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from robustdup_study.anova import anova
from robustdup_study.comparing import Compared, Draft, compare
from robustdup_study.publications import dose_factors
from robustdup_study.recipe import AnalysisConfig
from robustdup_study.records import AnovaTerm, DoseMean, DuplicationRate, PairedComparison, StudyRun
from robustdup_study.sides import NO_ANSWERS, Answers, Side
from robustdup_study.statistics import holm, mean_estimate
from robustdup_study.table import Stratum, Table, effect, less, split, varying_factors


@dataclass
class Analysis:
    """What the table says: means and comparisons for every dose, ANOVA, duplication rates, and remarks."""

    means: list[DoseMean] = field(default_factory=list)
    comparisons: list[PairedComparison] = field(default_factory=list)
    anova: list[AnovaTerm] = field(default_factory=list)
    duplication_rates: list[DuplicationRate] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def analyse(runs: Sequence[StudyRun], config: AnalysisConfig, answers: Answers = NO_ANSWERS) -> Analysis:
    """Analyse the runs of a study: those that failed or are missing count as missing seeds.

    Args:
        runs: The runs, with their metrics.
        config: The analysis that was fixed in the recipe.
        answers: To single test images, for intervals over seeds and images.
    """
    table = Table(runs, config.dose)
    varying = varying_factors(runs, config.dose)
    analysis = Analysis(means=_means(table, config), duplication_rates=_rates(runs, config))
    plain = [comparison for stratum in table.strata() for comparison in _effects(table, stratum, config, answers)]
    bare = not plain  # no doses: then the levels themselves are compared, not what copies do under them
    factors = config.contrasts or (varying if bare else [])
    contrasts = [comparison for name in factors for comparison in _contrasts(table, name, config, answers, bare=bare)]
    for name, under in itertools.combinations(factors, 2) if bare else []:
        contrasts += _interactions(table, name, under, config, answers)
    _mark_primary(plain + contrasts, config, analysis.remarks, bare=bare)
    open_questions = Open.of([draft.comparison for draft in plain + contrasts], config.alpha)
    for draft in plain + contrasts:
        draft.word(config, varying, open_questions.of_differences, open_questions.of_equivalences)
    analysis.comparisons = [draft.comparison for draft in plain + contrasts]
    if config.anova:
        for name in config.metrics:
            analysis.anova += anova(table, name, varying, analysis.remarks, config.margins.get(name))
    return analysis


@dataclass(frozen=True)
class Open:
    """How many primary comparisons Holm's method has not settled: by what the level of the next one is divided."""

    of_differences: int
    of_equivalences: int

    @classmethod
    def of(cls, comparisons: Sequence[PairedComparison], alpha: float) -> Open:
        """Count them; at least one of each."""
        primary = [comparison for comparison in comparisons if comparison.primary]
        return cls(
            max(1, sum(comparison.p_holm is not None and comparison.p_holm >= alpha for comparison in primary)),
            max(
                1, sum(comparison.tost_p_holm is not None and comparison.tost_p_holm >= alpha for comparison in primary)
            ),
        )


def _effects(table: Table, stratum: Stratum, config: AnalysisConfig, answers: Answers) -> list[Draft]:
    """Compare every dose of a stratum with dose 0, in every metric."""
    drafts = []
    none: Side = (stratum, 0.0)
    for dose in table.doses(stratum):
        for name in table.metrics() if dose != 0 else []:
            here: Side = (stratum, dose)
            compared = Compared(name, [(1, here), (-1, none)], pairs=[(none, here)])
            values = table.values(*none, name), table.values(*here, name)
            draft = compare(
                table,
                compared,
                *values,
                table.seeds[stratum],
                config,
                answers,
                kind="dose",
                factors=dict(stratum),
                dose=dose,
            )
            if draft is not None:
                drafts.append(draft)
    return drafts


def _contrasts(table: Table, name: str, config: AnalysisConfig, answers: Answers, *, bare: bool) -> list[Draft]:
    """Compare each level of a factor with its first level in the study's metrics: the effect of each dose, or plain values."""
    first = _first_level(table, name)
    take = table.values if bare else functools.partial(effect, table)
    drafts = []
    for stratum in table.strata():
        level, other = dict(stratum)[name], _moved(stratum, name, first)
        if level == first or other not in table.seeds:
            continue
        for dose in table.doses(stratum):
            for measured in config.metrics if bare or dose != 0 else []:
                draft = compare(
                    table, _contrast(measured, other, stratum, dose, bare=bare), take(other, dose, measured),
                    take(stratum, dose, measured), table.seeds[stratum] | table.seeds[other], config, answers,
                    kind="contrast", factors={key: value for key, value in stratum if key != name}, dose=dose,
                    contrast=name, level=str(level), against=str(first), of_values=bare,
                )  # fmt: skip
                if draft is not None:
                    drafts.append(draft)
    return drafts


def _interactions(table: Table, name: str, under: str, config: AnalysisConfig, answers: Answers) -> list[Draft]:
    """Compare what a level of one factor changes, against its first level, between the levels of another factor."""
    first, first_under = _first_level(table, name), _first_level(table, under)
    drafts = []
    for stratum in table.strata():
        factors = dict(stratum)
        base, other = _moved(stratum, name, first), _moved(stratum, under, first_under)
        corner = _moved(other, name, first)
        if factors[name] == first or factors[under] == first_under or not {base, other, corner} <= table.seeds.keys():
            continue
        for dose, measured in itertools.product(table.doses(stratum), config.metrics):
            sides = [(side, dose) for side in (stratum, base, other, corner)]
            here, base_here, there, base_there = (table.values(*side, measured) for side in sides)
            pairs = [(sides[1], sides[0]), (sides[3], sides[2])]
            draft = compare(
                table, Compared(measured, list(zip((1, -1, -1, 1), sides, strict=True)), pairs),
                less(there, base_there), less(here, base_here), table.seeds[stratum] | table.seeds[other], config, answers,
                kind="contrast", factors={key: value for key, value in stratum if key not in (name, under)}, dose=dose,
                contrast=f"{name} x {under}", level=str(factors[under]), against=str(first_under),
                change=f"from {first} to {factors[name]}",
            )  # fmt: skip
            if draft is not None:
                drafts.append(draft)
    return drafts


def _first_level(table: Table, name: str) -> Any:
    return dict(table.strata()[0])[name]


def _moved(stratum: Stratum, name: str, level: Any) -> Stratum:
    """Return a stratum with another level of a factor."""
    return tuple((key, level if key == name else value) for key, value in stratum)


def _contrast(name: str, other: Stratum, stratum: Stratum, dose: float, *, bare: bool) -> Compared:
    """Return the sides of a contrast: two values, or the effects of a dose on both."""
    if bare:
        return Compared(name, [(1, (stratum, dose)), (-1, (other, dose))], pairs=[((other, dose), (stratum, dose))])
    pairs = [((other, 0.0), (other, dose)), ((stratum, 0.0), (stratum, dose))]
    signed = [(1, (stratum, dose)), (-1, (stratum, 0.0)), (-1, (other, dose)), (1, (other, 0.0))]
    return Compared(name, signed, pairs)


def _mark_primary(drafts: Sequence[Draft], config: AnalysisConfig, remarks: list[str], *, bare: bool) -> None:
    """Mark the primary comparisons and correct their p values together: differences and equivalences each by Holm."""
    comparisons = [draft.comparison for draft in drafts]
    for comparison in comparisons:
        if config.primary:
            comparison.primary = any(_matches(comparison, selector, config.dose) for selector in config.primary)
        else:
            kind = "contrast" if bare else "dose"
            comparison.primary = (
                comparison.kind == kind and not comparison.change and comparison.metric in config.metrics
            )
    for selector in config.primary:
        if not any(_matches(comparison, selector, config.dose) for comparison in comparisons):
            text = ", ".join(f"{key} {value}" for key, value in selector.items())
            remarks.append(f"A primary comparison has no results yet, or names what is not there: {text}.")
    primary = [comparison for comparison in comparisons if comparison.primary]
    _correct(primary, "p", "p_holm")
    _correct(primary, "tost_p", "tost_p_holm")


def _correct(comparisons: Sequence[PairedComparison], plain: str, corrected: str) -> None:
    """Set the corrected p value of each comparison that has a plain one."""
    tested = [comparison for comparison in comparisons if getattr(comparison, plain) is not None]
    p_values = holm([getattr(comparison, plain) for comparison in tested])
    for comparison, p in zip(tested, p_values, strict=True):
        setattr(comparison, corrected, p)


def _matches(comparison: PairedComparison, wanted: Mapping[str, Any], dose: str) -> bool:
    """Whether a comparison is one that a selector names: by metric, dose, contrast, level, and factor levels."""
    known = {
        **comparison.factors,
        "metric": comparison.metric,
        "contrast": comparison.contrast,
        "level": comparison.level,
        dose: comparison.dose,
    }
    if (comparison.kind == "contrast") != ("contrast" in wanted):
        return False
    return all(
        key in known and str(known[key]) in {_same(v) for v in (value if isinstance(value, list) else [value])}
        for key, value in wanted.items()
    )


def _same(value: Any) -> str:
    """Spell a number of a recipe as a dose is spelt: 1 and 1.0 are the same."""
    return str(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _means(table: Table, config: AnalysisConfig) -> list[DoseMean]:
    """Return the mean over seeds of every metric at every dose."""
    means = []
    cells = [(stratum, dose) for stratum in table.strata() for dose in table.doses(stratum)]
    for stratum, dose in cells:
        for name in table.metrics():
            values = table.values(stratum, dose, name)
            if values:
                estimate = mean_estimate(list(values.values()), 1 - config.alpha)
                means.append(
                    DoseMean(
                        metric=name, factors=dict(stratum), dose=dose, n=estimate.n, mean=estimate.mean, sd=estimate.sd,
                        low=estimate.low, high=estimate.high,
                    )
                )  # fmt: skip
    return means


def _rates(runs: Sequence[StudyRun], config: AnalysisConfig) -> list[DuplicationRate]:
    """Return every dose in all ways that the literature uses."""
    modes = {str(run.factors.get("mode", "append")) for run in runs}
    doses = sorted({split(run.factors, config.dose)[1] for run in runs})
    published = dose_factors()
    if config.dose in published:
        return list(published[config.dose].rates(doses))
    if config.dose != "dose":
        return []
    return [duplication_rate(dose, mode) for mode in sorted(modes) for dose in doses if 0 <= dose < 1]


def duplication_rate(dose: float, mode: str = "append") -> DuplicationRate:
    """Return a dose (share of training entries that are copies) in the other ways of stating it.

    `append` adds copies to all originals; `replace` keeps the size, so that other originals leave.
    """
    entries = 1 / (1 - dose) if mode == "append" else 1.0
    copies = 100 * dose * entries
    unique = 100.0 if mode == "append" else 100 * (1 - dose)
    if dose == 0:
        text = "no copies"
    elif mode == "append":
        text = (
            f"{100 * dose:.4g}% of the entries are copies: {copies:.4g}% of the originals are added, {entries:.4g} entries "
            f"for each original (arXiv 2504.00638 would call this {10 * copies / 100:.4g}% in its standard arm, "
            f"{copies:.4g}% in its adversarial arm)"
        )
    else:
        text = f"{100 * dose:.4g}% of the entries are copies: as many other originals left, {unique:.4g}% of them are still seen"
    return DuplicationRate(
        dose=dose, mode=mode, share_of_copies=dose, copies_percent_of_originals=copies, entries_per_original=entries,
        unique_percent_of_originals=unique, text=text,
    )  # fmt: skip
