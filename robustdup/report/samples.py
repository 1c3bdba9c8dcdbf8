"""What became of each sample, from `samples.parquet`: right, broken by which attack, at what distance, taken for what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from robustdup.leaderboard.compare import sample_outcomes
from robustdup.leaderboard.table import exact_eps, same_eps
from robustdup.records import EvaluationRecord
from robustdup.records.columns import numbers, texts

NUMBERS = ("position", "index", "label", "prediction", "margin", "distance", "correct_share", "min_distance")
WORDS = ("attack", "eps", "outcome")
OUTCOMES = ("stands", "broken", "undecided", "wrong already")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Samples:
    """A row a sample, in the order of the run: (N,) each.

    `outcome` is one of OUTCOMES. `after` is the prediction on the worst example, the one that the run folder keeps,
    and `attack` and `eps` are those that made it; "" where no attack did better than the clean image.
    """

    index: Array
    label: Array
    before: Array
    after: Array
    outcome: Array
    attack: Array
    eps: Array
    distance: Array
    margin: Array
    min_distance: Array

    def __len__(self) -> int:
        return len(self.index)

    def count(self, outcome: str) -> int:
        """Return how many samples came to an outcome."""
        return int((self.outcome == outcome).sum())


def read_samples(record: EvaluationRecord, samples: pa.Table) -> Samples:
    """Return what became of each sample. Raises UserError where the table does not hold the clean rows of each sample once.

    The worst example of a sample is found as the evaluation keeps it: the least share of correct draws, then the least
    margin, the first of equals; one from a smaller eps only where none at the record's own eps broke the sample.
    """
    outcomes = sample_outcomes(record, samples)  # sorted by index; checks the table
    columns = {name: numbers(samples, name) for name in NUMBERS if name in samples.column_names}
    columns |= {name: texts(samples, name).at() for name in WORDS}
    is_clean = columns["attack"] == "clean"
    clean = np.flatnonzero(is_clean)[np.argsort(columns["position"][is_clean], kind="stable")]
    positions = np.searchsorted(outcomes.index, columns["index"][clean])
    is_correct, robust = outcomes.clean[positions], outcomes.robust[positions]
    outcome = np.where(~is_correct, OUTCOMES[3], np.array(OUTCOMES)[[1, 0, 2]][np.where(robust < 0, 2, robust)])
    worst = _worst_rows(record, columns, clean)
    by_attack = worst != clean
    return Samples(
        index=columns["index"][clean],
        label=columns["label"][clean],
        before=columns["prediction"][clean],
        after=columns["prediction"][worst].astype(np.int64),
        outcome=outcome,
        attack=np.where(by_attack, columns["attack"][worst], ""),
        eps=np.where(by_attack, columns["eps"][worst], ""),
        distance=columns["distance"][worst].astype(np.float64),
        margin=columns["margin"][clean].astype(np.float64),
        min_distance=_optional(columns, "min_distance", clean),
    )


def _worst_rows(record: EvaluationRecord, columns: dict[str, Array], clean: Array) -> Array:
    """Return the row of each sample's worst example (N,); that of its clean image where no attack did worse."""
    judged = ~np.isnan(columns["margin"].astype(np.float64)) & ~np.isnan(columns["prediction"].astype(np.float64))
    judged[clean] = True
    share = np.nan_to_num(columns["correct_share"].astype(np.float64), nan=1.0)
    margin = np.nan_to_num(columns["margin"].astype(np.float64), nan=np.inf)
    broken = columns["outcome"] == "broken"
    # At the record's own eps what breaks comes first; then what broke at a smaller eps, the smallest first.
    rank = np.array([_eps_rank(record, text) for text in columns["eps"]])
    tier = np.where(broken, rank, np.where(rank == 0, 1e6, np.inf))
    tier[clean] = 1e6
    tier[~judged] = np.inf
    rows = np.flatnonzero(np.isfinite(tier))
    order = rows[np.lexsort((rows, margin[rows], share[rows], tier[rows], columns["position"][rows]))]
    _, first = np.unique(columns["position"][order], return_index=True)
    return np.asarray(order[first])


def _eps_rank(record: EvaluationRecord, text: str) -> float:
    if not text or same_eps(text, record.threat.eps_text):
        return 0.0
    value = exact_eps(text)
    if value is not None:
        return 1.0 + float(value)
    balls = [ball.name for ball in record.union]
    if text not in balls:
        return np.inf
    # Where each ball ran on all samples, what the last one broke comes first; otherwise no two break one sample.
    return 1.0 + balls.index(text) if record.config.get("each_norm") and text != balls[-1] else 0.0


def _optional(columns: dict[str, Array], name: str, rows: Array) -> Array:
    """A column that older tables lack."""
    if name not in columns:
        return np.full(len(rows), np.nan)
    return np.asarray(columns[name][rows].astype(np.float64))


def confusion(samples: Samples, n_classes: int) -> Array:
    """Return counts (K, K): true label by the prediction on the worst example. Predictions beyond K are left out."""
    table = np.zeros((n_classes, n_classes), dtype=np.int64)
    good = (samples.after >= 0) & (samples.after < n_classes) & (samples.label >= 0) & (samples.label < n_classes)
    np.add.at(table, (samples.label[good], samples.after[good]), 1)
    return table
