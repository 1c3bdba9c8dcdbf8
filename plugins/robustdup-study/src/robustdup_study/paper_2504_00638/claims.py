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
    known = [comparison for comparison in record.comparisons if _has_copies(comparison)]
    doses = [comparison for comparison in known if comparison.kind == "dose"]
    clean = [comparison for comparison in doses if comparison.metric in CLEAN]
    slower = [comparison for comparison in doses if comparison.metric in asked and comparison.metric.startswith(SLOWER)]
    at_steps = [comparison for comparison in clean if not _differs(comparison, "steps") and not _more_steps(comparison)]
    even = [comparison for comparison in clean if str(comparison.factors.get("scheme", "uniform")) in EVEN]
    hard = [comparison for comparison in doses if comparison.metric in CLEAN + ROBUST and _is_adversarial(comparison)]
    skewed = [
        comparison for comparison in known
        if _of_shares(comparison) and not comparison.change
    ]  # fmt: skip
    interactions = [
        comparison for comparison in record.comparisons
        if _of_shares(comparison) and comparison.change in [f"from copies to {control}" for control in SHARES_CONTROLS]
    ]  # fmt: skip
    controls = [
        comparison for comparison in record.comparisons
        if comparison.level in SHARES_CONTROLS and comparison.against == "copies" and comparison.metric in CLEAN + ROBUST
        and "class" in str(comparison.factors.get("scheme", "class"))
    ]  # fmt: skip
    scope = getattr(record, "scope", "")
    return [
        _claim(LESS_EFFICIENT, slower or at_steps, alpha, scope, _on_the_whole, _LESS_EFFICIENT),
        _claim(MAY_LOWER, clean, alpha, scope, _some_lower, _MAY_LOWER),
        _claim(NON_UNIFORM, skewed, alpha, scope, _on_the_whole, _NON_UNIFORM, controls, interactions),
        _claim(ANY_HARMS, hard, alpha, scope, _any_lower, _ANY_HARMS),
        _claim(NO_GAIN, even, alpha, scope, _none_higher, _NO_GAIN),
    ]


def _has_copies(comparison: PairedComparison) -> bool:
    return comparison.factors.get("condition") not in WITHOUT_COPIES and comparison.level not in WITHOUT_COPIES


def _of_shares(comparison: PairedComparison) -> bool:
    """Whether accuracy is compared between skewed and even class shares."""
    skewed = "class" in comparison.level and comparison.against in EVEN
    return comparison.kind == "contrast" and comparison.metric in CLEAN + ROBUST and skewed


def _budget(comparison: PairedComparison) -> str:
    return str(comparison.factors.get("budget", ""))


def _differs(comparison: PairedComparison, word: str) -> bool:
    return any(word in text for text in comparison.also_differs)


def _more_steps(comparison: PairedComparison) -> bool:
    """Whether copies bring further steps with them: for cells that did not count steps, by the name of the budget."""
    return not comparison.also_differs and "epoch" in _budget(comparison)


def _is_adversarial(comparison: PairedComparison) -> bool:
    """Whether the network was trained on adversarial images: by the objective, or by the arm of the published protocol."""
    if "adversarial" in map(str, comparison.factors.values()):
        return True
    return "objective" in comparison.factors and not str(comparison.factors["objective"]).startswith("standard")


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
    claim: str, comparisons: Sequence[PairedComparison], alpha: float, scope: str, rule: Rule, wording: Wording,
    controls: Sequence[PairedComparison] = (), interactions: Sequence[PairedComparison] = (),
) -> Claim:  # fmt: skip
    """Judge a claim on all comparisons (the effect) and on those in which copies alone differ (the verdict)."""
    primary = [comparison for comparison in comparisons if comparison.primary]
    used = primary or list(comparisons)
    all_of_them = judged(
        [comparison for comparison in used if comparison.verdict not in ("at floor", "at ceiling")], alpha
    )
    effect = rule(all_of_them, alpha)
    clean = [
        (verdict, comparison)
        for verdict, comparison in all_of_them
        if not comparison.also_differs and not _more_steps(comparison)
    ]
    verdict = rule(clean, alpha) if len(clean) < len(all_of_them) else effect
    attribution, why, asked_controls = _attribution(effect, verdict, all_of_them, clean, controls, interactions, alpha)
    if attribution == "copies" and verdict.verdict not in ("confirmed", "refuted"):
        verdict = effect
    word = verdict.verdict if clean or attribution == "copies" else ("undecided" if all_of_them else "not tested")
    if effect.effect == "opposite" and verdict.effect != "opposite":  # what else differs turned it around
        word = "undecided"
    if any(
        kind == "undecided" for kind, _ in all_of_them
    ):  # not all at once: equivalences are counted one by one, corrected
        all_of_them = judged([comparison for _, comparison in all_of_them], alpha, equivalence="holm")
    order = sorted(all_of_them, key=lambda pair: _rank(pair, wording.claimed))
    sentence = f"{claim}: {word} (effect {effect.effect}; attribution {attribution}). {_tally(all_of_them, effect.why)}"
    return Claim(
        claim=claim, verdict=word, sentence=sentence + _needed(all_of_them, word), effect=effect.effect,
        evidence=[comparison.sentence for _, comparison in order] + [comparison.sentence for comparison in asked_controls],
        attribution=attribution, attribution_text=why, by_budget=_by_budget(order), scope=scope if all_of_them else "",
        cells=_n_runs(all_of_them), would_change=wording.would_change,
        figure=f"effects-{all_of_them[0][1].kind}" if all_of_them else "",
    )  # fmt: skip


def _n_runs(judgements: Sequence[Judged]) -> int:
    """Return how many runs stand behind comparisons; one that several look at counts once."""
    runs = set()
    for _, comparison in judgements:
        place = tuple(sorted((name, str(level)) for name, level in comparison.factors.items()))
        sides = [place]
        if comparison.kind == "contrast":
            sides = [(*place, (str(comparison.contrast), level)) for level in (comparison.level, comparison.against)]
        runs |= {(side, d, seed) for side in sides for d in {0.0, comparison.dose or 0.0} for seed in comparison.seeds}
    return len(runs)


def _rank(pair: Judged, claimed: str) -> tuple[int, float]:
    """Order evidence: what moved as claimed, then the other way, then what is open or equivalent; the largest first."""
    verdict, comparison = pair
    slower = comparison.metric.startswith(SLOWER)
    moved = {"lower": "higher", "higher": "lower"}.get(verdict, verdict) if slower else verdict
    place = 0 if moved == claimed else 1 if moved in ("lower", "higher") else 2
    return place, -abs(comparison.difference)


def _attribution(
    effect: Judgement, verdict: Judgement, judgements: Sequence[Judged], clean: Sequence[Judged],
    controls: Sequence[PairedComparison], interactions: Sequence[PairedComparison], alpha: float,
) -> tuple[str, str, list[PairedComparison]]:  # fmt: skip
    """Return whether the effect is one of copies, why, and the control comparisons that were asked."""
    if not judgements:
        return "not tested", "", []
    if effect.effect in ("open", "absent") and not any(word in ("lower", "higher") for word, _ in judgements):
        return "nothing to attribute", "No movement was shown.", []
    besides = sorted(
        {text for word, comparison in judgements if word in ("lower", "higher") for text in _besides(comparison)}
    )
    moved_alone = [comparison for word, comparison in clean if word in ("lower", "higher")]
    if verdict.effect == effect.effect and moved_alone:
        largest = max(moved_alone, key=lambda comparison: abs(comparison.difference))
        text = f"At equal steps, distinct images and class shares too: {interval_text(largest)} {_place(largest)}."
        return "copies", text, []
    budgets = {_budget(comparison) for _, comparison in judgements}
    crossed = [comparison for comparison in interactions if _budget(comparison) in budgets]
    if crossed:
        return _by_interaction(crossed, alpha)
    usable = [comparison for comparison in controls if _budget(comparison) in budgets]
    fair = [comparison for comparison in usable if not comparison.also_differs]
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
        unfair = "; ".join(dict.fromkeys(text for comparison in usable for text in comparison.also_differs))
        text += f" The control without copies differs too: {unfair}."
    elif controls:
        text += " The control was run under another budget."
    return "open", text, usable


def _by_interaction(interactions: list[PairedComparison], alpha: float) -> tuple[str, str, list[PairedComparison]]:
    """Attribute by whether distinct images in place of copies gain more under skewed class shares than under even ones."""
    words = [word for word, _ in judged(interactions, alpha, equivalence="holm")]
    if "higher" in words and "lower" not in words:
        return (
            "copies",
            "Copies, against distinct images, cost more under skewed class shares than under even ones.",
            interactions,
        )
    if "higher" not in words and all(word in ("lower", "equivalent") for word, _ in judged(interactions, alpha)):
        return (
            "not copies",
            "Copies, against distinct images, cost no more under skewed class shares than under even ones.",
            interactions,
        )
    return "open", "Whether copies cost more under skewed class shares than under even ones is undecided.", interactions


def _besides(comparison: PairedComparison) -> list[str]:
    return comparison.also_differs or (["optimizer steps"] if _more_steps(comparison) else [])


def _by_budget(judgements: Sequence[Judged]) -> dict[str, str]:
    """Return for each budget how many comparisons moved which way, and the largest of them."""
    texts = {}
    for budget in dict.fromkeys(_budget(comparison) for _, comparison in judgements):
        here = [(word, comparison) for word, comparison in judgements if _budget(comparison) == budget]
        largest = here[0][1]
        texts[budget or "all cells"] = f"{_count(here)}; {interval_text(largest)} {_place(largest)}".rstrip()
    return texts


def _place(comparison: PairedComparison) -> str:
    names = [str(level) for name, level in comparison.factors.items() if name not in ("budget", "condition")]
    places = [*names, f"dose {comparison.dose:g}"] if comparison.dose else names
    return f"({', '.join(places)})" if places else ""


def _count(judgements: Sequence[Judged]) -> str:
    count = Counter(word for word, _ in judgements)
    return ", ".join(f"{number} {word}" for word, number in count.most_common()) + f" of {len(judgements)}"


def _tally(judgements: Sequence[Judged], why: str) -> str:
    if not judgements:
        return "No cells of this recipe speak of it."
    return (
        f"Of {len(judgements)} comparison{'s' * (len(judgements) > 1)}: {_count(judgements).rpartition(' of ')[0]}"
        + (f"; {why}." if why else ".")
    )


def _needed(judgements: Sequence[Judged], word: str) -> str:
    needed = [
        comparison.seeds_needed
        for kind, comparison in judgements
        if kind == "undecided" and comparison.seeds_needed is not None
    ]
    if word != "undecided" or not needed:
        return ""
    low, high = min(needed), max(needed)
    return f" What is open needs about {low if low == high else f'{low} to {high}'} seeds."


def _on_the_whole(judgements: Sequence[Judged], alpha: float) -> Judgement:
    """Judge a claim of harm on the whole: a drop without a rise, against a rise without a drop."""
    lower, higher = (_moved(judgements, way) for way in ("lower", "higher"))
    if lower and not higher:
        return Judgement("confirmed", "seen")
    if higher and not lower:
        return Judgement("refuted", "opposite")
    return Judgement("undecided", "mixed") if lower else _still(judgements)


def _some_lower(judgements: Sequence[Judged], alpha: float) -> Judgement:
    """Judge a claim that harm occurs: by any drop, against every comparison higher or within the margin."""
    if _moved(judgements, "lower"):
        return Judgement("confirmed", "seen")
    if judgements and all(word in ("higher", "equivalent") for word, _ in judgements) and _moved(judgements, "higher"):
        return Judgement("refuted", "opposite")
    return _still(judgements)


def _any_lower(judgements: Sequence[Judged], alpha: float) -> Judgement:
    """Judge a claim that all of it harms: each duplication lowers a metric, against one that is shown to harm none.

    That one exists is one choice among several: not to fall by the margin is tested for each, corrected together.
    """
    kinds: dict[str, list[Judged]] = {}
    for word, comparison in judgements:
        kinds.setdefault(f"{sorted(comparison.factors.items(), key=str)} {comparison.dose}", []).append(
            (word, comparison)
        )
    harmful = [kind for kind in kinds.values() if any(word == "lower" for word, _ in kind)]
    why = f"{len(harmful)} of {len(kinds)} duplications {'lowers' if len(harmful) == 1 else 'lower'} an accuracy"
    if kinds and len(harmful) == len(kinds):
        return Judgement("confirmed", "seen", why)
    harmless = no_harm(list(kinds.values()), alpha)
    if harmless:
        verb = "lowers" if harmless == 1 else "lower"
        why += f", {harmless} {verb} none by the margin (Holm over {len(kinds)})"
        return Judgement("refuted", "mixed" if harmful else "absent", why)
    return Judgement("undecided", "mixed", why) if harmful else _still(judgements)


def _none_higher(judgements: Sequence[Judged], alpha: float) -> Judgement:
    """Judge a claim of no gain: by every comparison lower or within the margin, against any rise."""
    if _moved(judgements, "higher"):
        return Judgement("refuted", "opposite")
    if judgements and all(word in ("lower", "equivalent") for word, _ in judgements):
        return Judgement("confirmed", "seen")
    return _still(judgements)


def _moved(judgements: Sequence[Judged], way: str) -> bool:
    """Whether some comparison moved this way: accuracy lower or higher, time to a target longer or shorter."""
    turned = {"lower": "higher", "higher": "lower"}[way]
    return any(word == (turned if comparison.metric.startswith(SLOWER) else way) for word, comparison in judgements)


def _still(judgements: Sequence[Judged]) -> Judgement:
    """Return what is left to say where nothing moved."""
    if not judgements:
        return Judgement("not tested", "not tested")
    if all(word == "equivalent" for word, _ in judgements):
        return Judgement("equivalent", "absent")
    return Judgement("undecided", "open")
