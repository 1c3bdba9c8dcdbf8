"""Comparisons judged together within one claim: what is corrected for their number, and what needs no correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from robustdup_study.records import PairedComparison
from robustdup_study.statistics import holm

Verdict = Literal["confirmed", "refuted", "equivalent", "undecided", "not tested"]
Judged = tuple[str, PairedComparison]


class Judgement(NamedTuple):
    """A verdict on a claim, whether accuracy moved as claimed, and what the count behind it is."""

    verdict: Verdict
    effect: str
    why: str = ""


def judged(
    comparisons: Sequence[PairedComparison], alpha: float, equivalence: Literal["plain", "holm"] = "plain"
) -> list[Judged]:
    """Return each comparison with its word within a claim: lower, higher, equivalent, undecided.

    Differences are asked first, corrected by Holm's method over the claim: a drop that is smaller than the margin is still
    a drop. Equivalence may be "plain", where a verdict needs all of them at once (an intersection of tests needs no
    correction), and has to be "holm" where one of several is enough.
    """
    varied = [comparison for comparison in comparisons if comparison.p is not None]
    p = dict(
        zip(map(id, varied), holm([comparison.p for comparison in varied if comparison.p is not None]), strict=True)
    )
    bounded = [comparison for comparison in comparisons if comparison.tost_p is not None]
    plain = [comparison.tost_p for comparison in bounded if comparison.tost_p is not None]
    tost = dict(zip(map(id, bounded), holm(plain) if equivalence == "holm" else plain, strict=True))
    words: list[Judged] = []
    for comparison in comparisons:
        if id(comparison) not in p:
            words.append((comparison.verdict, comparison))
        elif p[id(comparison)] < alpha:
            words.append(("lower" if comparison.difference < 0 else "higher", comparison))
        else:
            words.append(("equivalent" if tost.get(id(comparison), 1.0) < alpha else "undecided", comparison))
    return words


def no_harm(kinds: Sequence[Sequence[Judged]], alpha: float) -> int:
    """Return how many duplications are shown to lower none of their metrics by the margin, after correction.

    A duplication has a p value for each metric, that of "it fell by the margin or more"; all have to be refused, so its
    p value is the largest. That there is one such duplication is found by looking at all of them: Holm over them.
    """
    p_values = [max((_p_fell(comparison) for _, comparison in kind), default=1.0) for kind in kinds]
    harmful = [any(word == "lower" for word, _ in kind) for kind in kinds]
    return sum(p < alpha and not harms for p, harms in zip(holm(p_values), harmful, strict=True))


def _p_fell(comparison: PairedComparison) -> float:
    """Return the one-sided p value of "the mean difference is at or below minus the margin"; 1 where it cannot be told."""
    if comparison.margin is None or not comparison.sd or len(comparison.seeds) < 2:
        return 1.0
    from scipy import special

    t = (comparison.difference + comparison.margin) / (comparison.sd / math.sqrt(len(comparison.seeds)))
    return float(special.stdtr(len(comparison.seeds) - 1, -t))
