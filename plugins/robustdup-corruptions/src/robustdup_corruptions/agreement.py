"""Who fails where under corruptions: how two runs agree on the corrupted images that they share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from robustdup.errors import UserError
from robustdup.leaderboard.agreement import ErrorConsistency, error_consistency
from robustdup_corruptions.record import CorruptionRecord

CorruptedPair = tuple[CorruptionRecord, pa.Table]


class CorruptionAgreement(BaseModel):
    """How two runs on corruptions agree on the corrupted images that they share, all kinds and severities together.

    `kinds` has the kappa of each shared kind. No interval: the images of one sample are not independent. `wrong_too_b` is the
    share that B gets wrong of the images that A gets wrong, `wrong_too_a` the other way round; None where there are none.
    """

    model_config = ConfigDict(extra="forbid")

    run_a: str
    run_b: str
    consistency: ErrorConsistency
    kinds: dict[str, float | None]
    wrong_too_a: float | None
    wrong_too_b: float | None


def corruption_agreements(runs: Sequence[CorruptedPair]) -> list[CorruptionAgreement]:
    """Return the agreement of every pair of runs on corruptions, in order: records with their tables of answers.

    Raises UserError where two runs share no corrupted image, or have other ones under the same kind, severity and index.
    """
    return [_of_corrupted(a, b) for a, b in itertools.combinations(runs, 2)]


def _of_corrupted(a: CorruptedPair, b: CorruptedPair) -> CorruptionAgreement:
    names = f"The runs {a[0].run_id} and {b[0].run_id}"
    shared = a[1].join(b[1], keys=["kind", "severity", "index"], join_type="inner", right_suffix="_b")
    if not shared.num_rows:
        raise UserError(f"{names} share no corrupted image.", code="not-comparable")
    pixels_a, pixels_b = _pixels(a[0]), _pixels(b[0])
    other = [key for key in pixels_a.keys() & pixels_b.keys() if pixels_a[key] != pixels_b[key]]
    if other or shared["label"] != shared["label_b"]:
        raise UserError(f"{names} have other images or labels on samples of the same index.", code="not-comparable")
    kind = np.asarray(shared["kind"].to_pylist())
    right_a, right_b = (shared[column].to_numpy() > 0.5 for column in ("correct_share", "correct_share_b"))
    whole = error_consistency(right_a, right_b)
    wrong_a, wrong_b = whole.only_b + whole.both_wrong, whole.only_a + whole.both_wrong
    return CorruptionAgreement(
        run_a=a[0].run_id, run_b=b[0].run_id, consistency=whole.model_copy(update={"low": None, "high": None}),
        kinds={
            each.kind: error_consistency(right_a[kind == each.kind], right_b[kind == each.kind]).kappa
            for each in a[0].kinds if each.kind in kind
        },
        wrong_too_a=whole.both_wrong / wrong_b if wrong_b else None,
        wrong_too_b=whole.both_wrong / wrong_a if wrong_a else None,
    )  # fmt: skip


def _pixels(record: CorruptionRecord) -> dict[tuple[str, int, int], str | None]:
    """Return the hash of the images of each kind, severity and number of images."""
    return {(kind.kind, each.severity, each.n): each.pixels for kind in record.kinds for each in kind.severities}
