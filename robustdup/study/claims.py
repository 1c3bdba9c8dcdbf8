"""What a study says of the claims in the abstract of arXiv 2504.00638, and its published figures set beside.

A claim is judged by the comparisons of the study that speak of it, each after correction where it is primary. Nothing here
knows which answer is wished for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from robustdup.records import Claim, Comparison, DoseMean, PublishedFigure, StudyRecord
from robustdup.study.published import FIGURES

CLEAN = ("clean_accuracy", "test_clean_acc")
ROBUST = ("robust_accuracy", "test_adv_acc")
EVEN = ("uniform", "whole_set")
Judged = Literal["confirmed", "refuted", "equivalent", "undecided", "not tested"]


def set_beside(record: StudyRecord) -> list[PublishedFigure]:
    """Return each published figure with the mean seen here at the same arm and percentage, in per cent."""
    beside = []
    for figure in FIGURES:
        for name, value, names in (("clean", figure.clean, CLEAN), ("robust", figure.adversarial, ROBUST)):
            if value is None:
                continue
            found = next((mean for mean in record.means if _is(mean, figure.arm, figure.percent, names)), None)
            beside.append(
                PublishedFigure(
                    arm=figure.arm, percent=figure.percent, metric=name, published=value,
                    here=None if found is None else 100 * found.mean,
                    low=None if found is None or found.low is None else 100 * found.low,
                    high=None if found is None or found.high is None else 100 * found.high,
                    seeds=0 if found is None else found.n, source=figure.source,
                )
            )  # fmt: skip
    return beside


def _is(mean: DoseMean, arm: str, percent: float, names: Sequence[str]) -> bool:
    return mean.metric in names and mean.dose == percent and arm in map(str, mean.factors.values())


def judge_claims(record: StudyRecord) -> list[Claim]:
    """Return a verdict for each of the five claims, with the sentences that it rests on."""
    doses = [one for one in record.comparisons if one.kind == "dose" and one.metric in CLEAN]
    adversarial = [
        one
        for one in record.comparisons
        if one.kind == "dose" and one.metric in CLEAN + ROBUST and _is_adversarial(one)
    ]
    skew = [
        one
        for one in record.comparisons
        if one.kind == "contrast" and one.metric in CLEAN + ROBUST and "class" in one.level and one.against in EVEN
    ]
    steps = [one for one in doses if "step" in str(one.factors.get("budget", ""))]
    even = [one for one in doses if str(one.factors.get("scheme", "uniform")) in EVEN]
    return [
        _harm("Duplicates make training less efficient (clean accuracy at equal optimizer steps)", steps),
        _harm("Duplicates may lower accuracy", doses),
        _harm("The harm shows most when duplication is non-uniform over classes", skew),
        _harm("Any duplication harms adversarially trained models", adversarial),
        _no_gain("Even uniform duplication brings no significant gain in accuracy", even),
    ]


def _is_adversarial(one: Comparison) -> bool:
    """Whether the network was trained on adversarial images: by the objective, or by the arm of the published protocol."""
    if "adversarial" in map(str, one.factors.values()):
        return True
    return "objective" in one.factors and not str(one.factors["objective"]).startswith("standard")


def _harm(claim: str, found: Sequence[Comparison]) -> Claim:
    """Judge a claim of harm: confirmed by a drop without a rise, refuted by a rise without a drop."""
    lower, higher, equal = (_with(found, verdict) for verdict in ("lower", "higher", "equivalent"))
    if lower and not higher:
        verdict: Judged = "confirmed"
    elif higher and not lower:
        verdict = "refuted"
    elif found and len(equal) == len(found):
        verdict = "equivalent"
    else:
        verdict = "undecided" if found else "not tested"
    return _claim(claim, verdict, found)


def _no_gain(claim: str, found: Sequence[Comparison]) -> Claim:
    """Judge a claim of no gain: refuted by any rise, confirmed where every dose is lower or shown to be equivalent."""
    settled = [one for one in found if one.verdict in ("lower", "equivalent")]
    if _with(found, "higher"):
        verdict: Judged = "refuted"
    elif found and len(settled) == len(found):
        verdict = "confirmed"
    else:
        verdict = "undecided" if found else "not tested"
    return _claim(claim, verdict, found)


def _with(found: Sequence[Comparison], verdict: str) -> list[Comparison]:
    return [one for one in found if one.verdict == verdict]


def _claim(claim: str, verdict: Judged, found: Sequence[Comparison]) -> Claim:
    tally = ", ".join(
        f"{len(_with(found, name))} {name}"
        for name in ("lower", "higher", "equivalent", "undecided", "no variation", "one seed")
        if _with(found, name)
    )
    text = f"{claim}: {verdict}"
    text += f" ({tally} of {len(found)} comparisons)" if found else " (no cells of this recipe speak of it)"
    open_ = [one for one in found if one.verdict == "undecided"]
    needed = [one.seeds_needed for one in open_ if one.seeds_needed is not None]
    if verdict == "undecided" and needed:
        text += f"; the comparisons that are open need about {min(needed)} to {max(needed)} seeds"
    telling = [one for one in found if one.verdict in ("lower", "higher")] or list(found)
    return Claim(claim=claim, verdict=verdict, sentence=text + ".", evidence=[one.sentence for one in telling[:6]])
