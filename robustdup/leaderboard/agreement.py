"""Who fails where: whether two models are wrong on the same samples more often than chance makes them.

Error consistency is Cohen's kappa over who is right (https://arxiv.org/abs/2006.16736): 0 where two such models agree as often
as independent ones would, 1 where they are right on the same samples, below 0 where they differ more than by chance.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from robustdup.errors import UserError
from robustdup.leaderboard.compare import SampleOutcomes, in_both, sample_outcomes
from robustdup.leaderboard.table import Result
from robustdup.records import EvaluationRecord

Pair = tuple[EvaluationRecord, pa.Table]


class ErrorConsistency(Result):
    """How two models agree on `n` samples: counts, and kappa with its 95% interval (asymptotic).

    `observed` is the share on which both are right or both wrong, `expected` what independent models of these accuracies
    would have. Kappa is None where both are right everywhere, or wrong everywhere: then nothing can be told from chance.
    """

    n: int
    both_right: int
    only_a: int
    only_b: int
    both_wrong: int
    observed: float
    expected: float
    kappa: float | None
    low: float | None
    high: float | None


class RunAgreement(Result):
    """How two runs agree on the samples that they share; `n_undecided` are left out of `robust`.

    `broken_too_b` is the share that B's attacks broke of the samples that A's attacks broke, both right on clean images;
    `broken_too_a` the other way round. None where there are none.
    """

    run_a: str
    run_b: str
    n_common: int
    n_undecided: int
    same_threat: bool
    clean: ErrorConsistency
    robust: ErrorConsistency | None
    broken_too_a: float | None
    broken_too_b: float | None


def error_consistency(right_a: np.ndarray, right_b: np.ndarray) -> ErrorConsistency:
    """Return how two models agree: `right_a`, `right_b` (n,) bool on the same samples."""
    a, b = right_a.astype(bool), right_b.astype(bool)
    n = len(a)
    counts = [int((a & b).sum()), int((a & ~b).sum()), int((~a & b).sum()), int((~a & ~b).sum())]
    observed = (counts[0] + counts[3]) / n
    share_a, share_b = float(a.mean()), float(b.mean())
    expected = share_a * share_b + (1 - share_a) * (1 - share_b)
    kappa = low = high = None
    if expected < 1:
        from statsmodels.stats.inter_rater import cohens_kappa

        with np.errstate(divide="ignore", invalid="ignore"):  # its test, which is not used, where all agree
            result = cohens_kappa([[counts[0], counts[1]], [counts[2], counts[3]]])
        kappa, low, high = (float(value) for value in (result.kappa, result.kappa_low, result.kappa_upp))
    return ErrorConsistency(
        n=n, both_right=counts[0], only_a=counts[1], only_b=counts[2], both_wrong=counts[3], observed=observed,
        expected=expected, kappa=kappa, low=low, high=high,
    )  # fmt: skip


def agreements(runs: Sequence[Pair]) -> list[RunAgreement]:
    """Return the agreement of every pair of runs, in order.

    Raises UserError where two runs share no sample, or where a sample of the same index has another image in them.
    """
    outcomes = [sample_outcomes(record, samples) for record, samples in runs]
    return [
        _of_pair(runs[i][0], outcomes[i], runs[j][0], outcomes[j])
        for i, j in itertools.combinations(range(len(runs)), 2)
    ]


def _of_pair(
    record_a: EvaluationRecord, a: SampleOutcomes, record_b: EvaluationRecord, b: SampleOutcomes
) -> RunAgreement:
    in_a, in_b = in_both(a, b)
    if not len(in_a) or (a.image[in_a] != b.image[in_b]).any():
        reason = "share no sample" if not len(in_a) else "have other images on samples of the same index"
        raise UserError(f"The runs {record_a.run_id} and {record_b.run_id} {reason}.", code="not-comparable")
    clean_a, clean_b, robust_a, robust_b = a.clean[in_a], b.clean[in_b], a.robust[in_a], b.robust[in_b]
    decided = (robust_a >= 0) & (robust_b >= 0)
    open_to_both = clean_a & clean_b & decided
    broken_a, broken_b = open_to_both & (robust_a == 0), open_to_both & (robust_b == 0)
    both = int((broken_a & broken_b).sum())
    threats = [(record.threat.norm, record.threat.eps_text) for record in (record_a, record_b)]
    return RunAgreement(
        run_a=record_a.run_id, run_b=record_b.run_id, n_common=len(in_a), n_undecided=int((~decided).sum()),
        same_threat=threats[0] == threats[1], clean=error_consistency(clean_a, clean_b),
        robust=error_consistency(robust_a[decided] == 1, robust_b[decided] == 1) if decided.any() else None,
        broken_too_a=both / int(broken_b.sum()) if broken_b.any() else None,
        broken_too_b=both / int(broken_a.sum()) if broken_a.any() else None,
    )  # fmt: skip
