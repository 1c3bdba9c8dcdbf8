"""What a study says of the claims in the abstract of arXiv 2504.00638: one verdict for each, with its scope.

Two questions are kept apart. *Effect*: did accuracy move as claimed? *Attribution*: because of copies, or of what came along
with them (more steps, fewer distinct images, other class shares)? A claim is confirmed or refuted only by comparisons in
which copies are all that differs; otherwise the effect is told and the verdict stays open. Nothing here knows which answer
is wished for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from robustdup_study.paper_2504_00638.beside import CLEAN, ROBUST
from robustdup_study.paper_2504_00638.judging import Judged, Judgement, judged, no_harm
from robustdup_study.records import Claim, PairedComparison, StudyRecord
from robustdup_study.sentences import interval_text

EVEN = ("uniform", "whole_set")
WITHOUT_COPIES = (
    "prior-matched",
    "as-weights",
    "fewer-unique",
    "more-epochs",
    "matched",
    "extra-data",
)  # control conditions
SHARES_CONTROLS = ("matched", "prior-matched")  # with the class shares of the duplicated set
SLOWER = ("steps_to_", "samples_to_", "seconds_to_")

LESS_EFFICIENT = "Duplicates make training less efficient"
MAY_LOWER = "Duplicates may lower accuracy"
NON_UNIFORM = "The harm shows most when duplication is non-uniform over classes"
ANY_HARMS = "Any duplication harms adversarially trained models"
NO_GAIN = "Even uniform duplication, increased, brings no significant gain in accuracy"


def judge_claims(record: StudyRecord) -> list[Claim]:
    """Return a verdict for each of the five claims.

    The comparisons that speak of a claim are judged together, under all budgets: the primary ones, fixed before the run,
    or where none of those speaks of it, all that do. Their differences are corrected by Holm's method within the claim.
    """
    alpha = float(record.recipe.get("analysis", {}).get("alpha", 0.05))
    asked = record.recipe.get("analysis", {}).get("metrics", [])
    known = [one for one in record.comparisons if _has_copies(one)]
    doses = [one for one in known if one.kind == "dose"]
    clean = [one for one in doses if one.metric in CLEAN]
    slower = [one for one in doses if one.metric in asked and one.metric.startswith(SLOWER)]
    at_steps = [one for one in clean if not _differs(one, "steps") and not _more_steps(one)]
    even = [one for one in clean if str(one.factors.get("scheme", "uniform")) in EVEN]
    hard = [one for one in doses if one.metric in CLEAN + ROBUST and _is_adversarial(one)]
    skewed = [
        one for one in known
        if one.kind == "contrast" and one.metric in CLEAN + ROBUST and "class" in one.level and one.against in EVEN
    ]  # fmt: skip
    controls = [
        one for one in record.comparisons
        if one.level in SHARES_CONTROLS and one.against == "copies" and one.metric in CLEAN + ROBUST
        and "class" in str(one.factors.get("scheme", "class"))
    ]  # fmt: skip
    scope = getattr(record, "scope", "")
    return [
        _claim(LESS_EFFICIENT, slower or at_steps, alpha, scope, _on_the_whole, _LESS_EFFICIENT),
        _claim(MAY_LOWER, clean, alpha, scope, _some_lower, _MAY_LOWER),
        _claim(NON_UNIFORM, skewed, alpha, scope, _on_the_whole, _NON_UNIFORM, controls),
        _claim(ANY_HARMS, hard, alpha, scope, _any_lower, _ANY_HARMS),
        _claim(NO_GAIN, even, alpha, scope, _none_higher, _NO_GAIN),
    ]


def _has_copies(one: PairedComparison) -> bool:
    return one.factors.get("condition") not in WITHOUT_COPIES and one.level not in WITHOUT_COPIES


def _budget(one: PairedComparison) -> str:
    return str(one.factors.get("budget", ""))


def _differs(one: PairedComparison, word: str) -> bool:
    return any(word in text for text in one.also_differs)


def _more_steps(one: PairedComparison) -> bool:
    """Whether copies bring further steps with them: for cells that did not count steps, by the name of the budget."""
    return not one.also_differs and "epoch" in _budget(one)


def _is_adversarial(one: PairedComparison) -> bool:
    """Whether the network was trained on adversarial images: by the objective, or by the arm of the published protocol."""
    if "adversarial" in map(str, one.factors.values()):
        return True
    return "objective" in one.factors and not str(one.factors["objective"]).startswith("standard")


@dataclass(frozen=True)
class Wording:
    """What a claim needs to be told: the movement that it claims, and what would change its verdict."""

    claimed: str
    would_change: str


_LESS_EFFICIENT = Wording(
    "lower", "Steps and seconds to a clean and a robust target, validated often (configs/study/less-efficient.yaml)."
)
_MAY_LOWER = Wording(
    "lower", "More seeds, longer training, or a larger network (configs/study/uniform-adversarial.yaml has 20 seeds)."
)
_NON_UNIFORM = Wording(
    "lower", "A control with the same class shares and as many distinct images (configs/study/non-uniform.yaml)."
)
_ANY_HARMS = Wording(
    "lower",
    "A duplication that is shown, after correction, not to harm; or harm in every one (uniform-adversarial.yaml).",
)
_NO_GAIN = Wording("higher", "Training that is carried on until it gains no more (configs/study/no-gain.yaml).")

Rule = Callable[[Sequence[Judged], float], Judgement]


def _claim(
    claim: str, found: Sequence[PairedComparison], alpha: float, scope: str, rule: Rule, wording: Wording,
    controls: Sequence[PairedComparison] = (),
) -> Claim:  # fmt: skip
    """Judge a claim on all comparisons (the effect) and on those in which copies alone differ (the verdict)."""
    primary = [one for one in found if one.primary]
    used = primary or list(found)
    all_of_them = judged([one for one in used if one.verdict not in ("at floor", "at ceiling")], alpha)
    effect = rule(all_of_them, alpha)
    clean = [(verdict, one) for verdict, one in all_of_them if not one.also_differs and not _more_steps(one)]
    verdict = rule(clean, alpha) if len(clean) < len(all_of_them) else effect
    attribution, why, told = _attribution(effect, verdict, all_of_them, clean, controls, alpha)
    if attribution == "copies" and verdict.verdict not in ("confirmed", "refuted"):
        verdict = effect
    word = verdict.verdict if clean or attribution == "copies" else ("undecided" if all_of_them else "not tested")
    if effect.effect == "opposite" and verdict.effect != "opposite":  # what else differs turned it around
        word = "undecided"
    order = sorted(all_of_them, key=lambda pair: _rank(pair, wording.claimed))
    sentence = f"{claim}: {word} (effect {effect.effect}; attribution {attribution}). {_tally(all_of_them, effect.why)}"
    return Claim(
        claim=claim, verdict=word, sentence=sentence + _needed(all_of_them, word), effect=effect.effect,
        evidence=[one.sentence for _, one in order] + [one.sentence for one in told], attribution=attribution,
        attribution_text=why, by_budget=_by_budget(order), scope=scope if all_of_them else "",
        cells=2 * sum(len(one.seeds) for _, one in all_of_them), would_change=wording.would_change,
        figure=f"effects-{all_of_them[0][1].kind}" if all_of_them else "",
    )  # fmt: skip


def _rank(pair: Judged, claimed: str) -> tuple[int, float]:
    """Order evidence: what moved as claimed, then the other way, then what is open or equivalent; the largest first."""
    verdict, one = pair
    slower = one.metric.startswith(SLOWER)
    moved = {"lower": "higher", "higher": "lower"}.get(verdict, verdict) if slower else verdict
    place = 0 if moved == claimed else 1 if moved in ("lower", "higher") else 2
    return place, -abs(one.difference)


def _attribution(
    effect: Judgement, verdict: Judgement, found: Sequence[Judged], clean: Sequence[Judged],
    controls: Sequence[PairedComparison], alpha: float,
) -> tuple[str, str, list[PairedComparison]]:  # fmt: skip
    """Return whether the effect is one of copies, why, and the control comparisons that were asked."""
    if not found:
        return "not tested", "", []
    if effect.effect in ("open", "absent") and not any(word in ("lower", "higher") for word, _ in found):
        return "nothing to attribute", "No movement was shown.", []
    besides = sorted({text for word, one in found if word in ("lower", "higher") for text in _besides(one)})
    moved_alone = [one for word, one in clean if word in ("lower", "higher")]
    if verdict.effect == effect.effect and moved_alone:
        largest = max(moved_alone, key=lambda one: abs(one.difference))
        text = f"At equal steps, distinct images and class shares too: {interval_text(largest)} {_place(largest)}."
        return "copies", text, []
    budgets = {_budget(one) for _, one in found}
    usable = [one for one in controls if _budget(one) in budgets]
    fair = [one for one in usable if not one.also_differs]
    if fair:
        words = judged(fair, alpha, equivalence="holm")
        if any(word == "higher" for word, _ in words) and not any(word == "lower" for word, _ in words):
            return "copies", "They harm more than the same class shares and distinct images without copies.", fair
        if all(word == "equivalent" for word, _ in judged(fair, alpha)):
            return "not copies", "The same class shares without copies do the same.", fair
        return "open", "The control with the same class shares and distinct images is undecided.", fair
    text = (
        f"Also different: {'; '.join(besides)}." if besides else "No comparison in which copies alone differ shows it."
    )
    if usable:
        unfair = "; ".join(dict.fromkeys(text for one in usable for text in one.also_differs))
        text += f" The control without copies differs too: {unfair}."
    elif controls:
        text += " The control was run under another budget."
    return "open", text, usable


def _besides(one: PairedComparison) -> list[str]:
    return one.also_differs or (["optimizer steps"] if _more_steps(one) else [])


def _by_budget(found: Sequence[Judged]) -> dict[str, str]:
    """Return for each budget how many comparisons moved which way, and the largest of them."""
    told = {}
    for budget in dict.fromkeys(_budget(one) for _, one in found):
        here = [(word, one) for word, one in found if _budget(one) == budget]
        largest = here[0][1]
        told[budget or "all cells"] = f"{_count(here)}; {interval_text(largest)} {_place(largest)}".rstrip()
    return told


def _place(one: PairedComparison) -> str:
    names = [str(level) for name, level in one.factors.items() if name not in ("budget", "condition")]
    places = [*names, f"dose {one.dose:g}"] if one.dose else names
    return f"({', '.join(places)})" if places else ""


def _count(found: Sequence[Judged]) -> str:
    count = Counter(word for word, _ in found)
    return ", ".join(f"{number} {word}" for word, number in count.most_common()) + f" of {len(found)}"


def _tally(found: Sequence[Judged], why: str) -> str:
    if not found:
        return "No cells of this recipe speak of it."
    return f"Of {len(found)} comparison{'s' * (len(found) > 1)}: {_count(found).rpartition(' of ')[0]}" + (
        f"; {why}." if why else "."
    )


def _needed(found: Sequence[Judged], word: str) -> str:
    needed = [one.seeds_needed for kind, one in found if kind == "undecided" and one.seeds_needed is not None]
    if word != "undecided" or not needed:
        return ""
    low, high = min(needed), max(needed)
    return f" What is open needs about {low if low == high else f'{low} to {high}'} seeds."


def _on_the_whole(found: Sequence[Judged], alpha: float) -> Judgement:
    """Judge a claim of harm on the whole: a drop without a rise, against a rise without a drop."""
    lower, higher = (_moved(found, way) for way in ("lower", "higher"))
    if lower and not higher:
        return Judgement("confirmed", "seen")
    if higher and not lower:
        return Judgement("refuted", "opposite")
    return Judgement("undecided", "mixed") if lower else _still(found)


def _some_lower(found: Sequence[Judged], alpha: float) -> Judgement:
    """Judge a claim that harm occurs: by any drop, against every comparison higher or within the margin."""
    if _moved(found, "lower"):
        return Judgement("confirmed", "seen")
    if found and all(word in ("higher", "equivalent") for word, _ in found) and _moved(found, "higher"):
        return Judgement("refuted", "opposite")
    return _still(found)


def _any_lower(found: Sequence[Judged], alpha: float) -> Judgement:
    """Judge a claim that all of it harms: each duplication lowers a metric, against one that is shown to harm none.

    That one exists is one choice among several: not to fall by the margin is tested for each, corrected together.
    """
    kinds: dict[str, list[Judged]] = {}
    for word, one in found:
        kinds.setdefault(f"{sorted(one.factors.items(), key=str)} {one.dose}", []).append((word, one))
    harmful = [kind for kind in kinds.values() if any(word == "lower" for word, _ in kind)]
    why = f"{len(harmful)} of {len(kinds)} duplications {'lowers' if len(harmful) == 1 else 'lower'} an accuracy"
    if kinds and len(harmful) == len(kinds):
        return Judgement("confirmed", "seen", why)
    harmless = no_harm(list(kinds.values()), alpha)
    if harmless:
        verb = "lowers" if harmless == 1 else "lower"
        why += f", {harmless} {verb} none by the margin (Holm over {len(kinds)})"
        return Judgement("refuted", "mixed" if harmful else "absent", why)
    return Judgement("undecided", "mixed", why) if harmful else _still(found)


def _none_higher(found: Sequence[Judged], alpha: float) -> Judgement:
    """Judge a claim of no gain: by every comparison lower or within the margin, against any rise."""
    if _moved(found, "higher"):
        return Judgement("refuted", "opposite")
    if found and all(word in ("lower", "equivalent") for word, _ in found):
        return Judgement("confirmed", "seen")
    return _still(found)


def _moved(found: Sequence[Judged], way: str) -> bool:
    """Whether some comparison moved this way: accuracy lower or higher, time to a target longer or shorter."""
    turned = {"lower": "higher", "higher": "lower"}[way]
    return any(word == (turned if one.metric.startswith(SLOWER) else way) for word, one in found)


def _still(found: Sequence[Judged]) -> Judgement:
    """Return what is left to say where nothing moved."""
    if not found:
        return Judgement("not tested", "not tested")
    if all(word == "equivalent" for word, _ in found):
        return Judgement("equivalent", "absent")
    return Judgement("undecided", "open")
