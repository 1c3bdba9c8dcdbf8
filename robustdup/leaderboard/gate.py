"""Whether a run may pass: a drop against a baseline that is more than chance, a minimum, and a number to be believed."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pyarrow as pa
from pydantic import Field

from robustdup.errors import UserError
from robustdup.leaderboard.compare import (
    PairedDifference,
    SampleOutcomes,
    compare,
    in_both,
    paired_difference,
    sample_outcomes,
)
from robustdup.leaderboard.table import Result
from robustdup.records import EvaluationRecord, Outcome, doubt_text
from robustdup.records.columns import numbers, texts
from robustdup.statistics import detectable_drop, drop_p_value, wilson

ALPHA = 0.01  # share of gates that fail though nothing was lost but by chance
MARGIN = "1pt"
ATTACKED_WITH = ("attacks", "options", "loss", "attack_model")  # settings that say how hard a run was attacked

NUMBER = re.compile(r"(\d{1,99}(?:\.\d{0,99})?|\.\d{1,99})\s*(pt|pts|pp|%)?")


class LostSample(Result):
    """A sample that held in the baseline and does not in the new run; `cause` is an attack, or "misclassified"."""

    index: int
    label: int
    cause: str


class GateCheck(Result):
    """One of the gate's questions: its stable name, whether it is passed, and what was seen in one sentence."""

    name: str
    passed: bool
    message: str


class GateResult(Result):
    """What a gate says. Shares are in [0, 1]; `paired` is baseline minus new run, and so is `detectable`.

    `p_value` is one-sided. `detectable` is the smallest drop that would be found in 95 of 100 cases with as many samples
    gained as here; None without a baseline, or where none would be.
    """

    passed: bool
    run: str
    model: str
    norm: str
    eps: str
    n: int
    robust_accuracy: float
    low: float
    high: float
    minimum: float | None = None
    baseline: str | None = None
    margin: float | None = None
    alpha: float = ALPHA
    paired: PairedDifference | None = None
    p_value: float | None = None
    detectable: float | None = None
    checks: list[GateCheck]
    lost: list[LostSample] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    def check(self, name: str, passed: bool, message: str) -> None:
        """Add the answer to one of the questions."""
        self.checks.append(GateCheck(name=name, passed=passed, message=message))

    def __str__(self) -> str:
        """Return what the gate says, in one line."""
        failed = [check.message for check in self.checks if not check.passed]
        shown = failed or [check.message for check in self.checks]
        return f"{'passed' if self.passed else 'FAILED'}: {'; '.join(shown)}"


def parse_share(text: str | float, noun: str) -> Fraction:
    """Return a share in [0, 1) from 0.01, 1% or 1pt (a percentage point), exactly. Raises UserError: bad-value."""
    match = NUMBER.fullmatch(str(text).strip())
    value = None if match is None else Fraction(match[1]) / (100 if match[2] else 1)
    if value is None or not 0 <= value < 1:
        raise UserError(
            f"{noun} is a share from 0 to 1, exclusive, got {str(text)!r}. Write 0.02, 2% or 2pt.", code="bad-value"
        )
    return value


def is_drop(lost: int, gained: int, n: int, margin: Fraction, alpha: float = ALPHA) -> bool:
    """Say whether of n samples so many were lost that it is more than `margin`, and more than chance."""
    return lost - gained > margin * n and drop_p_value(lost, gained) <= alpha


def gate(
    record: EvaluationRecord,
    samples: pa.Table,
    baseline: tuple[EvaluationRecord, pa.Table] | None = None,
    *,
    minimum: str | float | None = None,
    margin: str | float = MARGIN,
    accept_doubt: bool = False,
) -> GateResult:
    """Say whether a run may pass.

    Against a baseline: it fails where robust accuracy on the baseline's samples is down by more than `margin`, and
    McNemar's exact test (one-sided, at 1%) says that this is more than chance. Undecided samples of the new run count as
    lost, those of the baseline are left out.

    Args:
        record: the new run.
        samples: its table of samples.
        baseline: record and samples of an earlier run.
        minimum: robust accuracy that the run must have on its samples, such as 0.45 or "45%".
        margin: drop that is let pass: 0.01, "1%" or "1pt".
        accept_doubt: let a robust accuracy pass that is an upper bound only.

    Raises:
        UserError: unusable-baseline where the runs cannot be compared, with the reason; missing-argument where there is
            neither baseline nor minimum; bad-value; damaged-record where record and samples contradict each other.
    """
    if baseline is None and minimum is None:
        raise UserError(
            "Name what the run is held against: --baseline RUN, --min 0.45, or both.", code="missing-argument"
        )
    allowed = parse_share(margin, "margin")
    least = None if minimum is None else parse_share(minimum, "min")
    outcomes = sample_outcomes(record, samples)
    n, n_robust = len(outcomes.index), int((outcomes.robust == 1).sum())
    _consistent(record, n, n_robust)
    low, high = wilson(n_robust, n)
    result = GateResult(
        passed=False, run=record.run_id, model=record.model.name, norm=record.threat.norm, eps=record.threat.eps_text,
        n=n, robust_accuracy=n_robust / n, low=low, high=high, checks=[],
    )  # fmt: skip
    _believable(result, record, accept_doubt)
    if least is not None:
        _at_least(result, n_robust, least)
    if baseline is not None:
        _no_drop(result, (record, samples, outcomes), baseline, allowed, accept_doubt)
    result.passed = all(check.passed for check in result.checks)
    return result


def unusable(reason: str) -> UserError:
    """Return the error for a baseline that cannot be used."""
    return UserError(f"The baseline cannot be used: {reason}", code="unusable-baseline")


def _consistent(record: EvaluationRecord, n: int, n_robust: int) -> None:
    differ = abs(n_robust / n - record.robust_accuracy.value) > 0.5 / n and not record.model.wavering
    if n != record.n or differ:
        raise UserError(
            f"Run {record.run_id}: its record says {record.robust_accuracy.value:.2%} robust of {record.n} samples, its "
            f"table of samples {n_robust / n:.2%} of {n}. One of them was changed.",
            code="damaged-record",
        )


def _believable(result: GateResult, record: EvaluationRecord, accept_doubt: bool) -> None:
    doubt = doubt_text(record)
    if record.status != "complete":
        result.check("complete", False, "the run failed: no attack finished a call")
    if record.n_undecided:
        result.notes.append(f"{record.n_undecided} undecided samples count as not robust")
    if doubt and accept_doubt:
        result.notes.append(f"accepted though its robust accuracy is an upper bound only, {doubt}")
        return
    message = f"the robust accuracy is not to be believed, {doubt}" if doubt else "the robust accuracy may be believed"
    result.check("believable", not doubt, message)


def _at_least(result: GateResult, n_robust: int, least: Fraction) -> None:
    result.minimum = float(least)
    holds = n_robust >= least * result.n
    result.check(
        "minimum",
        holds,
        f"robust accuracy {result.robust_accuracy:.2%} is {'at least' if holds else 'below'} the minimum "
        f"{float(least):.2%} ({n_robust} of {result.n} samples)",
    )
    if result.low < least <= result.high:
        result.notes.append(
            f"the minimum lies inside the 95% interval ({result.low:.2%} to {result.high:.2%}): other images of this kind "
            "might decide otherwise"
        )


def _no_drop(
    result: GateResult,
    new: tuple[EvaluationRecord, pa.Table, SampleOutcomes],
    baseline: tuple[EvaluationRecord, pa.Table],
    margin: Fraction,
    accept_doubt: bool,
) -> None:
    record, samples, outcomes = new
    old = _usable(record, samples, baseline, outcomes, accept_doubt)
    in_old, in_new = in_both(old, outcomes)
    decided = old.robust[in_old] >= 0
    in_old, in_new = in_old[decided], in_new[decided]
    robust_before, robust_now = old.robust[in_old] == 1, outcomes.robust[in_new] == 1
    paired = paired_difference(robust_before, robust_now)
    result.baseline, result.margin, result.paired = baseline[0].run_id, float(margin), paired
    result.p_value = drop_p_value(paired.only_a, paired.only_b)
    result.detectable = detectable_drop(paired.n, paired.only_b / paired.n, margin=float(margin), alpha=ALPHA)
    fell = is_drop(paired.only_a, paired.only_b, paired.n, margin)
    causes = _causes(samples)
    result.lost = [
        LostSample(
            index=int(outcomes.index[i]), label=int(outcomes.label[i]),
            cause=_cause(outcomes, i, causes.get(int(outcomes.index[i]))),
        )
        for i in in_new[robust_before & ~robust_now]
    ]  # fmt: skip
    change = f"{100 * -paired.difference:+z.2f} points".replace("-", "−")
    why = f"more than {100 * float(margin):g}pt and than chance" if fell else _why_not(paired, margin, result.p_value)
    result.check(
        "no-drop",
        not fell,
        f"robust accuracy {paired.a:.2%} in the baseline, {paired.b:.2%} now on the same {paired.n} samples: "
        f"{change}, {paired.only_a} lost and {paired.only_b} gained (one-sided p = {result.p_value:.2g}), {why}",
    )
    result.notes += _resolution(result, paired, outcomes, old)


def _why_not(paired: PairedDifference, margin: Fraction, p_value: float) -> str:
    if paired.only_a - paired.only_b <= 0:
        return "no drop"
    if paired.only_a - paired.only_b <= margin * paired.n:
        return f"within the margin of {100 * float(margin):g}pt"
    return f"not more than chance at {ALPHA:.0%}"


def _resolution(result: GateResult, paired: PairedDifference, new: SampleOutcomes, old: SampleOutcomes) -> list[str]:
    """Say what this gate can see at all."""
    seen = "no drop at all" if result.detectable is None else f"drops of {100 * result.detectable:.1f} points and more"
    notes = [f"with {paired.n} samples of which {paired.only_b} were gained, {seen} would be found in 95 of 100 cases"]
    if len(new.index) > len(old.index):
        notes.append(f"compared on the baseline's {len(old.index)} samples of the run's {len(new.index)}")
    if paired.n < len(old.index):
        notes.append(f"{len(old.index) - paired.n} samples that are undecided in the baseline are left out")
    return notes


def _usable(
    record: EvaluationRecord,
    samples: pa.Table,
    baseline: tuple[EvaluationRecord, pa.Table],
    outcomes: SampleOutcomes,
    accept_doubt: bool,
) -> SampleOutcomes:
    """Return the baseline's outcomes. Raises UserError where a difference would not be the models'."""
    old_record, old_samples = baseline
    if old_record.status != "complete":
        raise unusable("its run failed: no attack finished a single call.")
    asked = {name: (old_record.config.get(name), record.config.get(name)) for name in ATTACKED_WITH}
    for name, (old, new) in asked.items():
        if old != new and (old or new):
            raise unusable(
                f"it was attacked with {name} = {_shown(old)}, the new run with {_shown(new)}: a difference might be the "
                "attacks', not the models'. Evaluate both alike, or make a new baseline."
            )
    try:
        old_outcomes = sample_outcomes(old_record, old_samples)
        compare(old_record, old_samples, record, samples)  # threat models, images and labels
    except UserError as error:
        raise unusable(str(error)) from None
    missing = len(np.setdiff1d(old_outcomes.index, outcomes.index, assume_unique=True))
    if missing:
        raise unusable(
            f"{missing} of its {len(old_outcomes.index)} samples are not in the new run, where they might have been lost. "
            "Evaluate the same samples (--n, --sample, --seed), or make a new baseline."
        )
    if not (old_outcomes.robust >= 0).any():
        raise unusable("all of its samples are undecided.")
    doubt = doubt_text(old_record)
    if doubt and not accept_doubt:
        raise unusable(f"its robust accuracy is an upper bound that is not to be believed, {doubt}.")
    return old_outcomes


def _shown(value: object) -> str:
    return "nothing" if not value else str(value)


def _causes(samples: pa.Table) -> dict[int, str]:
    """Return the first attack that broke each sample, by index."""
    rows = np.flatnonzero(texts(samples, "outcome").where(lambda word: word == Outcome.BROKEN.word))
    names, index = texts(samples, "attack").at(rows), numbers(samples, "index")[rows]
    causes: dict[int, str] = {}
    for where, name in zip(index.tolist(), names.tolist(), strict=True):
        causes.setdefault(int(where), name)
    return causes


def _cause(outcomes: SampleOutcomes, row: int, attack: str | None) -> str:
    if not outcomes.clean[row]:
        return "misclassified"
    return "undecided" if outcomes.robust[row] < 0 else attack or "broken"
