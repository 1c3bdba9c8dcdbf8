"""What a study says of the claims in the abstract of arXiv 2504.00638, and its published figures set beside.

A claim is judged by the comparisons of the study that speak of it, corrected together. Nothing here knows which answer is
wished for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from robustdup.statistics import holm
from robustdup_study.paper_2504_00638.published import FIGURES, Figure
from robustdup_study.records import Claim, DoseMean, PairedComparison, PublishedFigure, StudyRecord

CLEAN = ("clean_accuracy", "test_clean_acc")
ROBUST = ("robust_accuracy", "test_adv_acc")
EVEN = ("uniform", "whole_set")
WITHOUT_COPIES = ("prior-matched", "as-weights", "fewer-unique", "more-epochs")  # control conditions
Judged = Literal["confirmed", "refuted", "equivalent", "undecided", "not tested"]


def set_beside(record: StudyRecord, others: Sequence[StudyRecord] = ()) -> list[PublishedFigure]:
    """Return each published figure with the means seen here at the same arm and percentage, in per cent.

    `record` and `others` (of other recipes) are searched for the protocol as it was published, and for what is repaired.
    """
    of_paper = [study for study in (record, *others) if study.recipe.get("analysis", {}).get("dose") == "percent"]
    if not of_paper:
        return []
    means = [(study, mean) for study in of_paper for mean in study.means]
    return [
        _beside(figure, name, value, [(study, mean) for study, mean in means if mean.metric in names])
        for figure in FIGURES
        for name, value, names in (("clean", figure.clean, CLEAN), ("robust", figure.adversarial, ROBUST))
        if value is not None
    ]


def _beside(
    figure: Figure, metric: str, published: float, means: Sequence[tuple[StudyRecord, DoseMean]]
) -> PublishedFigure:
    """Return a published figure with the first means seen of it: as published, and with the most repaired."""
    seen: dict[str, DoseMean] = {}
    for study, mean in means:
        if mean.dose == figure.percent and figure.arm in map(str, mean.factors.values()):
            seen.setdefault(_mended(study, mean), mean)
    mended = next((key for key in ("all", "clamp") if key in seen), "")
    here, low, high, seeds = _in_percent(seen.get(""))
    repaired, repaired_low, repaired_high, repaired_seeds = _in_percent(seen.get(mended) if mended else None)
    return PublishedFigure(
        arm=figure.arm,
        percent=figure.percent,
        metric=metric,
        published=published,
        source=figure.source,
        here=here,
        low=low,
        high=high,
        seeds=seeds,
        repaired=repaired,
        repaired_low=repaired_low,
        repaired_high=repaired_high,
        repaired_seeds=repaired_seeds,
        mended=mended,
    )


def _mended(study: StudyRecord, mean: DoseMean) -> str:
    """Return what is repaired in these runs of a study: nothing, the clamp alone, or all."""
    if study.recipe.get("protocol") != "as-published":
        return "all"
    return "clamp" if str(mean.factors.get("clamp", "published")) == "repaired" else ""


def _in_percent(mean: DoseMean | None) -> tuple[float | None, float | None, float | None, int]:
    """Return mean, interval and seeds, shares in per cent."""
    if mean is None:
        return None, None, None, 0
    value, low, high = (None if share is None else 100 * share for share in (mean.mean, mean.low, mean.high))
    return value, low, high, mean.n


@dataclass(frozen=True)
class Evidence:
    """The comparisons of a study that speak of the claims: of doses, of class-skewed schemes, of class shares without copies.

    Control conditions without copies are no evidence of what copies do; that of class shares alone is told beside.
    """

    doses: list[PairedComparison]
    skewed: list[PairedComparison]
    class_shares: list[PairedComparison]

    @classmethod
    def of(cls, record: StudyRecord) -> Evidence:
        """Return the evidence of a study."""
        known = [one for one in record.comparisons if one.metric in CLEAN + ROBUST]
        doses = [one for one in known if one.kind == "dose" and _has_copies(one)]
        contrasts = [one for one in known if one.kind == "contrast"]
        skewed = [one for one in contrasts if "class" in one.level and one.against in EVEN and _has_copies(one)]
        return cls(doses, skewed, [one for one in contrasts if one.level == "prior-matched"])

    def under(self, budget: str) -> Evidence:
        """Return the evidence under one budget; that of class shares is of all budgets together."""
        return replace(
            self,
            doses=[one for one in self.doses if _budget(one) == budget],
            skewed=[one for one in self.skewed if _budget(one) == budget],
        )


def _has_copies(one: PairedComparison) -> bool:
    return one.factors.get("condition") not in WITHOUT_COPIES


def _budget(one: PairedComparison) -> str:
    return str(one.factors.get("budget", ""))


def judge_claims(record: StudyRecord) -> list[Claim]:
    """Return a verdict for each of the five claims, with the sentences that it rests on; for each budget where there are several.

    Differences are corrected by Holm within each claim. Equivalence has to be shown in all its comparisons at once, which
    needs no correction.
    """
    alpha = float(record.recipe.get("analysis", {}).get("alpha", 0.05))
    evidence = Evidence.of(record)
    steps = [one for one in evidence.doses if one.metric in CLEAN and "step" in _budget(one)]
    claims = [
        _harm("Duplicates make training less efficient (clean accuracy at equal optimizer steps)", judged(steps, alpha))
    ]
    budgets = list(dict.fromkeys(map(_budget, evidence.doses))) or [""]
    for budget in budgets:
        suffix = f" (budget {budget})" if len(budgets) > 1 else ""
        claims += _claims_of_budget(evidence.under(budget), suffix, alpha)
    return claims


def _claims_of_budget(evidence: Evidence, suffix: str, alpha: float) -> list[Claim]:
    """Judge the four claims that are not about steps."""
    clean = [one for one in evidence.doses if one.metric in CLEAN]
    even = [one for one in clean if str(one.factors.get("scheme", "uniform")) in EVEN]
    adversarial = [one for one in evidence.doses if _is_adversarial(one)]
    return [
        _may_harm(f"Duplicates may lower accuracy{suffix}", judged(clean, alpha)),
        _uneven(evidence, suffix, alpha),
        _any_harms(f"Any duplication harms adversarially trained models{suffix}", judged(adversarial, alpha)),
        _no_gain(f"Even uniform duplication brings no significant gain in accuracy{suffix}", judged(even, alpha)),
    ]


def _uneven(evidence: Evidence, suffix: str, alpha: float) -> Claim:
    """Judge that the harm shows most where classes are unequal, and tell what class shares without copies do beside it."""
    claim = _harm(
        f"The harm shows most when duplication is non-uniform over classes{suffix}", judged(evidence.skewed, alpha)
    )
    shares = evidence.class_shares
    if evidence.skewed and shares:
        more = sum(verdict == "higher" for verdict, _ in judged(shares, alpha))  # prior-matched, above copies
        claim.sentence += (
            f" Beside the same class shares without copies (prior-matched), copies harmed more in {more} of {len(shares)} "
            "comparisons."
        )
        claim.evidence += [one.sentence for one in shares]
    return claim


def judged(found: Sequence[PairedComparison], alpha: float) -> list[tuple[str, PairedComparison]]:
    """Return each comparison with its verdict within a claim; a difference that is shown to be negligible is "equivalent"."""
    varied = [one for one in found if one.p is not None]
    corrected = dict(zip(map(id, varied), holm([one.p for one in varied if one.p is not None]), strict=True))
    verdicts: list[tuple[str, PairedComparison]] = []
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


def _is_adversarial(one: PairedComparison) -> bool:
    """Whether the network was trained on adversarial images: by the objective, or by the arm of the published protocol."""
    if "adversarial" in map(str, one.factors.values()):
        return True
    return "objective" in one.factors and not str(one.factors["objective"]).startswith("standard")


def _harm(claim: str, found: Sequence[tuple[str, PairedComparison]]) -> Claim:
    """Judge a claim of harm on the whole: confirmed by a drop without a rise, refuted by a rise without a drop."""
    count = Counter(verdict for verdict, _ in found)
    if count["lower"] and not count["higher"]:
        return _claim(claim, "confirmed", found)
    if count["higher"] and not count["lower"]:
        return _claim(claim, "refuted", found)
    return _claim(claim, _open(found), found)


def _may_harm(claim: str, found: Sequence[tuple[str, PairedComparison]]) -> Claim:
    """Judge a claim that harm occurs: confirmed by any drop, refuted where every dose is higher or shown to be equivalent."""
    count = Counter(verdict for verdict, _ in found)
    if count["lower"]:
        return _claim(claim, "confirmed", found)
    if count["higher"] and count["higher"] + count["equivalent"] == len(found):
        return _claim(claim, "refuted", found)
    return _claim(claim, _open(found), found)


def _any_harms(claim: str, found: Sequence[tuple[str, PairedComparison]]) -> Claim:
    """Judge a claim that all of it harms: confirmed where each duplication lowers a metric, refuted by one that lowers none.

    A duplication lowers none where all its metrics are higher, or shown to be equivalent.
    """
    kinds: dict[str, dict[str, list[PairedComparison]]] = {}  # the comparisons of each duplication, by verdict
    for verdict, one in found:
        kinds.setdefault(f"{sorted(one.factors.items())} {one.dose}", {}).setdefault(verdict, []).append(one)
    harmless = [kind for kind in kinds.values() if kind.keys() <= {"higher", "equivalent"}]
    if found and all("lower" in kind for kind in kinds.values()):
        return _claim(claim, "confirmed", found)
    if harmless and _open(found) != "equivalent":
        text = f"{len(harmless)} of {len(kinds)} duplications lower neither accuracy"
        telling = [one for kind in harmless for members in kind.values() for one in members]
        return _claim(claim, "refuted", found, telling, text)
    return _claim(claim, _open(found), found)


def _open(found: Sequence[tuple[str, PairedComparison]]) -> Judged:
    """Return what is left to say where a claim is neither confirmed nor refuted."""
    if not found:
        return "not tested"
    return "equivalent" if all(verdict == "equivalent" for verdict, _ in found) else "undecided"


def _no_gain(claim: str, found: Sequence[tuple[str, PairedComparison]]) -> Claim:
    """Judge a claim of no gain: refuted by any rise, confirmed where every dose is lower or shown to be equivalent."""
    count = Counter(verdict for verdict, _ in found)
    if count["higher"]:
        return _claim(claim, "refuted", found)
    if found and count["lower"] + count["equivalent"] == len(found):
        return _claim(claim, "confirmed", found)
    return _claim(claim, _open(found), found)


def _claim(
    claim: str,
    verdict: Judged,
    found: Sequence[tuple[str, PairedComparison]],
    telling: Sequence[PairedComparison] = (),
    why: str = "",
) -> Claim:
    """Word a verdict; `telling` are the comparisons that it rests on where they are not those that differ."""
    count = Counter(kind for kind, _ in found)
    tally = ", ".join(f"{number} {kind}" for kind, number in count.items())
    text = f"{claim}: {verdict}"
    tally += f" of {len(found)} comparisons" + (f"; {why}" if why else "")
    text += f" ({tally})" if found else " (no cells of this recipe speak of it)"
    needed = [one.seeds_needed for kind, one in found if kind == "undecided" and one.seeds_needed is not None]
    if verdict == "undecided" and needed:
        text += f"; the comparisons that are open need about {min(needed)} to {max(needed)} seeds"
    telling = telling or [one for kind, one in found if kind in ("lower", "higher")] or [one for _, one in found]
    return Claim(claim=claim, verdict=verdict, sentence=text + ".", evidence=[one.sentence for one in telling[:6]])
