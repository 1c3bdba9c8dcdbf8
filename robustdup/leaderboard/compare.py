"""Paired comparison of two evaluations on the same samples: differences with intervals, McNemar's exact test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from robustdup.errors import UserError
from robustdup.leaderboard.table import Result, exact_eps, same_eps
from robustdup.records import UNION, EvaluationRecord, Outcome, doubt_text
from robustdup.records.columns import Texts, numbers, texts
from robustdup.records.samples import CERTIFIED_MARGIN
from robustdup.statistics import mcnemar, tango_interval


class PairedDifference(Result):
    """A share in A minus the share in B, on the same `n` samples, with a 95% interval and McNemar's exact p-value.

    `only_a` samples are right in A and not in B, `only_b` the other way round. Values are in [-1, 1].
    """

    n: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    only_a: int
    only_b: int
    p_value: float

    def __str__(self) -> str:
        """Return both shares and their difference, in percent and points."""
        return (
            f"{self.a:.2%} and {self.b:.2%}, {100 * self.difference:+z.2f} points "
            f"[{100 * self.low:+z.2f}, {100 * self.high:+z.2f}], p = {self.p_value:.3g}"
        )


class ChangedSample(Result):
    """A sample whose outcome differs: right on the clean image (`clean`), and after all attacks (`robust`)."""

    index: int
    label: int
    clean_a: bool
    clean_b: bool
    robust_a: bool | None
    robust_b: bool | None


class RunComparison(Result):
    """The paired comparison of run A with run B; `n_undecided` samples are left out of the robust difference."""

    run_a: str
    run_b: str
    model_a: str
    model_b: str
    norm: str
    eps: str
    n_common: int
    n_only_a: int
    n_only_b: int
    n_undecided: int
    clean: PairedDifference
    robust: PairedDifference | None
    changed: list[ChangedSample]
    notes: list[str]

    def __str__(self) -> str:
        """Return both differences in one line."""
        robust = f"; robust {self.robust}" if self.robust is not None else ""
        runs = f"A: {self.run_a}, B: {self.run_b}, {self.n_common} samples, {self.norm}, eps = {self.eps}"
        return f"{runs}: clean {self.clean}{robust}"


@dataclass(frozen=True)
class SampleOutcomes:
    """The samples, sorted by index: `robust` is 1 (survived all), 0 (wrong or broken), -1 (undecided)."""

    index: np.ndarray
    label: np.ndarray
    image: np.ndarray
    clean: np.ndarray
    robust: np.ndarray


def sample_outcomes(record: EvaluationRecord, samples: pa.Table) -> SampleOutcomes:
    """Return each sample's outcome at the record's eps; broken at a smaller eps counts. Raises UserError on a bad table."""
    is_clean = texts(samples, "attack").where(lambda name: name == "clean")
    index = numbers(samples, "index")
    if not is_clean.any():
        raise UserError(f"Run {record.run_id}: its samples hold no clean rows.", code="damaged-record")
    indices, counts = np.unique(index[is_clean], return_counts=True)
    if (counts > 1).any():
        raise UserError(
            f"Run {record.run_id}: the sample with index {indices[counts > 1][0]} occurs twice.", code="damaged-record"
        )
    order = np.flatnonzero(is_clean)[np.argsort(index[is_clean], kind="stable")]
    outcome = texts(samples, "outcome")
    clean = outcome.where(lambda text: text == "correct")[order]
    at_eps, below = _stages(record, texts(samples, "eps"))
    row = np.searchsorted(indices, index)
    row = np.where((row < len(indices)) & (indices[np.minimum(row, len(indices) - 1)] == index), row, -1)
    seen = ~is_clean & (row >= 0)

    def mark(where: np.ndarray, wanted: str) -> np.ndarray:
        marked = np.zeros(len(indices), dtype=bool)
        marked[row[seen & where & outcome.where(lambda text: text == wanted)]] = True
        return marked

    broken = mark(at_eps | below, Outcome.BROKEN.word)
    undecided = mark(at_eps, Outcome.UNDECIDED.word) | ~mark(at_eps, Outcome.ROBUST.word)
    if CERTIFIED_MARGIN.name in samples.column_names:
        undecided &= ~(numbers(samples, CERTIFIED_MARGIN.name)[order] > 0)
    robust = np.where(~clean | broken, 0, np.where(undecided, -1, 1))
    images = texts(samples, "image_sha256").at(order)
    return SampleOutcomes(indices, numbers(samples, "label")[order], images, clean, robust)


def compare(
    record_a: EvaluationRecord, samples_a: pa.Table, record_b: EvaluationRecord, samples_b: pa.Table
) -> RunComparison:
    """Return the paired comparison of A with B (differences are A minus B).

    Raises UserError where the threat models differ, where a sample of the same index has another image or label, and
    where the runs have no sample in common.
    """
    if not same_threat(record_a, record_b):
        raise UserError(
            f"The threat models differ: {record_a.threat.short} in A, {record_b.threat.short} in B.",
            code="not-comparable",
        )
    a, b = sample_outcomes(record_a, samples_a), sample_outcomes(record_b, samples_b)
    in_a, in_b = in_both(a, b)
    _same_samples(a, b, in_a, in_b)
    clean_a, clean_b = a.clean[in_a], b.clean[in_b]
    robust_a, robust_b = a.robust[in_a], b.robust[in_b]
    decided = (robust_a >= 0) & (robust_b >= 0)
    robust = paired_difference(robust_a[decided] == 1, robust_b[decided] == 1) if decided.any() else None
    changes = np.flatnonzero((clean_a != clean_b) | (decided & (robust_a != robust_b)))
    changed = [
        ChangedSample(
            index=int(a.index[in_a[i]]),
            label=int(a.label[in_a[i]]),
            clean_a=bool(clean_a[i]),
            clean_b=bool(clean_b[i]),
            robust_a=None if robust_a[i] < 0 else bool(robust_a[i]),
            robust_b=None if robust_b[i] < 0 else bool(robust_b[i]),
        )
        for i in changes
    ]
    return RunComparison(
        run_a=record_a.run_id,
        run_b=record_b.run_id,
        model_a=record_a.model.name,
        model_b=record_b.model.name,
        norm=record_a.threat.norm,
        eps=record_a.threat.eps_text,
        n_common=len(in_a),
        n_only_a=len(a.index) - len(in_a),
        n_only_b=len(b.index) - len(in_b),
        n_undecided=int((~decided).sum()),
        clean=paired_difference(clean_a, clean_b),
        robust=robust,
        changed=changed,
        notes=_notes(record_a, record_b, a, b, len(in_a), int((~decided).sum())),
    )


def in_both(a: SampleOutcomes, b: SampleOutcomes) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows in A and in B of the samples that both have, in the same order."""
    if np.array_equal(a.index, b.index):
        return np.arange(len(a.index)), np.arange(len(a.index))
    _, in_a, in_b = np.intersect1d(a.index, b.index, assume_unique=True, return_indices=True)
    return in_a, in_b


def paired_difference(right_a: np.ndarray, right_b: np.ndarray) -> PairedDifference:
    """Compare two (N,) bool arrays over the same samples: Tango's score interval and McNemar's exact test."""
    n = len(right_a)
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    low, high = tango_interval(only_a, only_b, n)
    return PairedDifference(
        n=n,
        a=float(right_a.mean()),
        b=float(right_b.mean()),
        difference=(only_a - only_b) / n,
        low=low,
        high=high,
        only_a=only_a,
        only_b=only_b,
        p_value=mcnemar(only_a, only_b),
    )


def _stages(record: EvaluationRecord, eps: Texts) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the record's own eps, and of smaller ones: (rows,) bool each."""
    own = record.threat.eps_text
    limit = exact_eps(own)

    def of_own_ball(text: str) -> bool:  # every ball of a union is its own
        return bool(text) and (record.threat.norm == UNION or same_eps(text, own))

    def below(text: str) -> bool:
        value = exact_eps(text) if text and not of_own_ball(text) else None
        return value is not None and limit is not None and value < limit

    return eps.where(of_own_ball), eps.where(below)


def same_threat(a: EvaluationRecord, b: EvaluationRecord) -> bool:
    """Tell whether both were attacked in the same norm and within the same eps, however it is written."""
    first, second = a.threat.eps_text, b.threat.eps_text
    return a.threat.norm == b.threat.norm and (first == second or same_eps(first, second))


def _same_samples(a: SampleOutcomes, b: SampleOutcomes, in_a: np.ndarray, in_b: np.ndarray) -> None:
    if not len(in_a):
        raise UserError("The runs have no sample in common: their indices are all different.", code="not-comparable")
    other_image = a.image[in_a] != b.image[in_b]
    if other_image.any():
        first = a.index[in_a[np.flatnonzero(other_image)[0]]]
        raise UserError(
            f"The images differ: {int(other_image.sum())} of {len(in_a)} samples with the same index have other pixels "
            f"(the first: index {first}). Evaluate both models on the same data.",
            code="not-comparable",
        )
    other_label = a.label[in_a] != b.label[in_b]
    if other_label.any():
        first = a.index[in_a[np.flatnonzero(other_label)[0]]]
        raise UserError(
            f"The labels differ on {int(other_label.sum())} of {len(in_a)} samples (the first: index {first}).",
            code="not-comparable",
        )


def _notes(
    record_a: EvaluationRecord,
    record_b: EvaluationRecord,
    a: SampleOutcomes,
    b: SampleOutcomes,
    common: int,
    undecided: int,
) -> list[str]:
    notes = []
    if common < max(len(a.index), len(b.index)):
        notes.append(f"compared on the {common} samples that both runs have (A has {len(a.index)}, B {len(b.index)})")
    if undecided:
        notes.append(f"{undecided} undecided samples are left out of the robust difference")
    attacks = [list(dict.fromkeys((x.name, str(x.options)) for x in r.attacks)) for r in (record_a, record_b)]
    if attacks[0] != attacks[1]:
        names = [", ".join(dict.fromkeys(name for name, _ in of_run)) for of_run in attacks]
        notes.append(
            f"the attacks differ (A: {names[0]}; B: {names[1]}): the difference may be theirs, not the models'"
        )
    for side, record in (("A", record_a), ("B", record_b)):
        doubt = doubt_text(record)
        if doubt:
            notes.append(f"the robust accuracy of {side} is an upper bound that is not to be believed, {doubt}")
    if record_a.seed != record_b.seed:
        notes.append(f"the seeds differ (A: {record_a.seed}, B: {record_b.seed})")
    if record_a.model.randomized or record_b.model.randomized:
        notes.append("a randomised model is compared by its recorded outcomes, which other draws would change")
    if record_a.status != "complete" or record_b.status != "complete":
        notes.append("a run is not complete")
    return notes
