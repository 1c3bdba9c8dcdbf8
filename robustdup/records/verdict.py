"""The first line of an evaluation: a robust accuracy, or an upper bound that is not to be believed, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustdup.records.evaluation import AttackResult, EvaluationRecord

# Serious signs that attacks did not see what is there; the others speak of something else than the attacks' strength.
DOUBTFUL = (
    "zero_gradients", "robust_at_half", "black_box_beats_white_box", "probe_failed", "softmax_outputs",
    "erratic_gradients", "partial_gradients", "evasive_answers", "misses_boundary",
    "more_eps_more_accuracy",
)  # fmt: skip


def no_substance(record: EvaluationRecord) -> str:
    """Return why no attack of a record says anything of its threat model; empty where one does, or none was to run."""
    stages = record.curve_attacks.values() if record.curve_attacks else [record.attacks]
    ran = [attack for attacks in stages for attack in attacks if attack.n_attacked > attack.n_undecided]
    if not ran or any(attack.evidence and not _is_idle(attack) for attack in ran):
        return ""
    names = ", ".join(dict.fromkeys(attack.name for attack in ran))
    return (
        f"no attack that works within {record.threat.norm} {record.threat.eps_text} was run, only {names}: made for another "
        "threat model, random, idle, or without a look at the model"
    )


def _is_idle(attack: AttackResult) -> bool:
    """Say whether an attack did nothing: every image came back as it was or not finite, or the model was never asked."""
    if attack.n_unchanged + attack.violation_kinds.get("not_finite", 0) >= attack.n_attacked - attack.n_undecided:
        return True
    return attack.knowledge != "transfer" and attack.forward_passes + attack.backward_passes == 0


def doubts(record: EvaluationRecord) -> list[str]:
    """Return why the robust accuracy of a record is an upper bound only; empty where it may be believed.

    Where no attack of substance ran, that comes first. A record that was not asked (of an older version) is doubted for its
    serious signs of masked gradients.
    """
    if record.certification is not None and record.certification.accuracy.value >= record.robust_accuracy.value:
        return []  # it is proven: no attack's strength is asked about
    nothing = no_substance(record)
    if nothing:
        return list(dict.fromkeys([nothing, *record.unreliable_reasons]))
    if record.reliable is None:
        return [sign.message for sign in record.diagnostics if sign.severity == "serious" and sign.code in DOUBTFUL]
    return [] if record.reliable else list(record.unreliable_reasons) or ["gradients look masked"]


def bound_text(record: EvaluationRecord) -> str:
    """Return the robust accuracy as a bound in per cent: ≤ 76.67%."""
    return f"≤ {100 * record.robust_accuracy.value:.2f}%"


def doubt_text(record: EvaluationRecord) -> str:
    """Return one sentence that says why it is only a bound; empty where it may be believed."""
    reasons = doubts(record)
    if not reasons:
        return ""
    if no_substance(record):
        return reasons[0]
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    first = reasons[0].rstrip(".")
    return f"gradients masked: {first[:1].lower() + first[1:]}{more}; no attack here was seen to get through"


def proven_text(record: EvaluationRecord) -> str:
    """Return what is proven of the robust accuracy beside what attacks left; empty where nothing was looked for."""
    if record.certification is None:
        return ""
    proven, attacked = record.certification.accuracy.value, record.robust_accuracy.value
    if proven >= attacked:
        return f"{proven:.2%}, all of it proven"
    return f"between {proven:.2%} proven and {attacked:.2%} attacked"
