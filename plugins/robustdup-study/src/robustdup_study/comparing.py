"""One paired comparison: its interval, its tests, how many seeds would settle it, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustdup_study import planning
from robustdup_study.metrics import metric, to_unit
from robustdup_study.recipe import AnalysisConfig
from robustdup_study.records import PairedComparison
from robustdup_study.sentences import sentence, verdict
from robustdup_study.sides import Answers, Limit, Side, also_differs, distinct_images, limit_of_sides
from robustdup_study.statistics import bootstrap_interval, mean_estimate, tost
from robustdup_study.table import Table, Values


@dataclass(frozen=True)
class Compared:
    """What is compared: a metric, the sides that add up to the difference with their signs, and the pairs that must have room.

    The first side is the one asked about; what it is compared with, at the same dose or without copies, is the first with
    a minus that is not its own baseline.
    """

    name: str
    signed: list[tuple[int, Side]]
    pairs: list[tuple[Side, Side]]

    @property
    def after(self) -> Side:
        """The side that is asked about."""
        return self.signed[0][1]

    @property
    def before(self) -> Side:
        """The side that it is compared with."""
        return self.signed[1][1] if len(self.signed) == 2 else self.signed[2][1]


@dataclass
class Draft:
    """A comparison on its way: the differences by seed are known, correction and words are still to come."""

    comparison: PairedComparison
    tested: bool
    limit: Limit | None

    def word(
        self, config: AnalysisConfig, varying: Sequence[str], open_differences: int = 1, open_equivalences: int = 1
    ) -> None:  # fmt: skip
        """Judge, count the seeds that are needed under the correction, and say it."""
        comparison = self.comparison
        comparison.verdict, comparison.also_equivalent = verdict(comparison, config.alpha)
        if self.limit is not None and comparison.verdict not in ("one seed", "no variation"):
            comparison.verdict, comparison.also_equivalent = self.limit, False
        if self.tested and comparison.sd:
            _needs(comparison, config, (open_differences, open_equivalences) if comparison.primary else (1, 1))
        comparison.sentence = sentence(comparison, varying)


def compare(
    table: Table, compared: Compared, before: Values, after: Values, seeds: set[int], config: AnalysisConfig,
    answers: Answers, **more: Any,
) -> Draft | None:  # fmt: skip
    """Return the paired difference over the seeds that both have; None where no seed has both."""
    paired = sorted(before.keys() & after.keys())
    if not paired:
        return None
    by_seed = {seed: after[seed] - before[seed] for seed in paired}
    differences, name = list(by_seed.values()), compared.name
    estimate = mean_estimate(differences, 1 - config.alpha)
    margin = to_unit(name, config.margins[name]) if name in config.margins else None
    tested = name in config.metrics
    low, high = (
        bootstrap_interval(differences, 1 - config.alpha, config.bootstrap)
        if config.bootstrap and estimate.varies and tested
        else (None, None)
    )
    crossed = answers.crossed(compared.signed, name, by_seed, 1 - config.alpha) if tested else None
    comparison = PairedComparison(
        metric=name, primary=False, seeds=paired, missing_seeds=sorted(seeds - set(paired)),
        before=float(np.mean([before[seed] for seed in paired])),
        after=float(np.mean([after[seed] for seed in paired])), difference=estimate.mean, sd=estimate.sd, low=estimate.low,
        high=estimate.high, bootstrap_low=low, bootstrap_high=high, p=estimate.p, margin=margin,
        tost_p=None if margin is None else tost(differences, margin), verdict="undecided", sentence="",
        crossed_low=crossed and crossed[0], crossed_high=crossed and crossed[1], test_images=crossed and crossed[2],
        unique_before=distinct_images(table, compared.before, paired),
        unique_after=distinct_images(table, compared.after, paired),
        also_differs=also_differs(table, compared.before, compared.after), **more,
    )  # fmt: skip
    return Draft(comparison, tested, limit_of_sides(table, compared.pairs, name, margin))


def _needs(comparison: PairedComparison, config: AnalysisConfig, open_questions: tuple[int, int]) -> None:
    """Fill in power, and how many seeds would settle the question or give the wished precision.

    A primary comparison is judged by Holm's method: its level is divided by the comparisons that are still open.
    """
    assert comparison.sd is not None
    n = len(comparison.seeds)
    if metric(comparison.metric).unit == "share":
        comparison.seeds_for_precision = planning.seeds_for_precision(
            comparison.sd, config.precision / 100, 1 - config.alpha
        )
    if comparison.margin is None:
        return
    levels = [config.alpha / count for count in open_questions]
    comparison.power = planning.power(comparison.margin, comparison.sd, n, levels[0])
    if comparison.verdict == "undecided":
        needed = planning.seeds_to_settle(
            comparison.difference,
            comparison.sd,
            n,
            comparison.margin,
            wished=config.power,
            alpha=levels[0],
            alpha_equivalence=levels[1],
        )
        comparison.seeds_needed, comparison.seeds_needed_low, comparison.seeds_needed_high = (
            None if number is None else max(number, n + 1) for number in needed
        )
