"""What a study says of the claims in the abstract of arXiv 2504.00638, and its published figures set beside.

A claim is judged by the comparisons of the study that speak of it, corrected together. Nothing here knows which answer is
wished for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from robustdup.records import Claim, Comparison, DoseMean, PublishedFigure, StudyRecord
from robustdup.study.published import FIGURES
from robustdup.study.statistics import holm

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
    as_published = str(mean.factors.get("clamp", "published")) == "published"
    return mean.metric in names and mean.dose == percent and arm in map(str, mean.factors.values()) and as_published


def judge_claims(record: StudyRecord) -> list[Claim]:
    """Return a verdict for each of the five claims, with the sentences that it rests on.

    Differences are corrected by Holm within each claim. Equivalence has to be shown in all its comparisons at once, which
    needs no correction.
    """
    alpha = float(record.recipe.get("analysis", {}).get("alpha", 0.05))
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
        _harm(
            "Duplicates make training less efficient (clean accuracy at equal optimizer steps)", judged(steps, alpha)
        ),
        _harm("Duplicates may lower accuracy", judged(doses, alpha)),
        _harm("The harm shows most when duplication is non-uniform over classes", judged(skew, alpha)),
        _harm("Any duplication harms adversarially trained models", judged(adversarial, alpha)),
        _no_gain("Even uniform duplication brings no significant gain in accuracy", judged(even, alpha)),
    ]


def judged(found: Sequence[Comparison], alpha: float) -> list[tuple[str, Comparison]]:
    """Return each comparison with its verdict within a claim; a difference that is shown to be negligible is "equivalent"."""
    varied = [one for one in found if one.p is not None]
    corrected = dict(zip(map(id, varied), holm([one.p for one in varied if one.p is not None]), strict=True))
    verdicts: list[tuple[str, Comparison]] = []
    for one in found:
        if one.p is None:
            verdicts.append((one.verdict, one))
        elif one.tost_p is not None and one.tost_p < alpha:
            verdicts.append(("equivalent", one))
        elif corrected[id(one)] < alpha:
            verdicts.append(("lower" if one.difference < 0 else "higher", one))
        else:
            verdicts.append(("undecided", one))
    return verdicts


def _is_adversarial(one: Comparison) -> bool:
    """Whether the network was trained on adversarial images: by the objective, or by the arm of the published protocol."""
    if "adversarial" in map(str, one.factors.values()):
        return True
    return "objective" in one.factors and not str(one.factors["objective"]).startswith("standard")


def _harm(claim: str, found: Sequence[tuple[str, Comparison]]) -> Claim:
    """Judge a claim of harm: confirmed by a drop without a rise, refuted by a rise without a drop."""
    count = Counter(verdict for verdict, _ in found)
    if count["lower"] and not count["higher"]:
        return _claim(claim, "confirmed", found)
    if count["higher"] and not count["lower"]:
        return _claim(claim, "refuted", found)
    if found and count["equivalent"] == len(found):
        return _claim(claim, "equivalent", found)
    return _claim(claim, "undecided" if found else "not tested", found)


def _no_gain(claim: str, found: Sequence[tuple[str, Comparison]]) -> Claim:
    """Judge a claim of no gain: refuted by any rise, confirmed where every dose is lower or shown to be equivalent."""
    count = Counter(verdict for verdict, _ in found)
    if count["higher"]:
        return _claim(claim, "refuted", found)
    if found and count["lower"] + count["equivalent"] == len(found):
        return _claim(claim, "confirmed", found)
    return _claim(claim, "undecided" if found else "not tested", found)


def _claim(claim: str, verdict: Judged, found: Sequence[tuple[str, Comparison]]) -> Claim:
    count = Counter(kind for kind, _ in found)
    tally = ", ".join(f"{number} {kind}" for kind, number in count.items())
    text = f"{claim}: {verdict}"
    text += f" ({tally} of {len(found)} comparisons)" if found else " (no cells of this recipe speak of it)"
    needed = [one.seeds_needed for kind, one in found if kind == "undecided" and one.seeds_needed is not None]
    if verdict == "undecided" and needed:
        text += f"; the comparisons that are open need about {min(needed)} to {max(needed)} seeds"
    telling = [one for kind, one in found if kind in ("lower", "higher")] or [one for _, one in found]
    return Claim(claim=claim, verdict=verdict, sentence=text + ".", evidence=[one.sentence for one in telling[:6]])
