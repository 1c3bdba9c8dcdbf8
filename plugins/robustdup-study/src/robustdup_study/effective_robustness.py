"""Effective robustness: accuracy on shifted data beyond what clean accuracy predicts. https://arxiv.org/abs/2007.00644"""

from __future__ import annotations

import math
from collections.abc import Sequence

from robustdup_study.records import StudyRun

FEWEST_FOR_FIT = 3  # cells without copies through which accuracy on shifted data is predicted


def add_effective_robustness(runs: Sequence[StudyRun], dose: str) -> None:
    """Add the metric `effective_robustness` to runs that have accuracy on shifted data.

    What is expected is a line through the cells without copies, in logits; with fewer than three there is none.
    """
    both = [
        run for run in runs if run.metrics.get("shifted_accuracy") is not None and run.metrics.get("clean_accuracy")
    ]
    at_zero = {
        run.cell: (_logit(run.metrics["clean_accuracy"]), _logit(run.metrics["shifted_accuracy"]))
        for run in both
        if run.factors.get(dose, 0) == 0
    }
    if len({clean for clean, _ in at_zero.values()}) < FEWEST_FOR_FIT:
        return
    from scipy.stats import linregress

    fit = linregress(*zip(*at_zero.values(), strict=True))
    for run in both:
        expected = 1 / (1 + math.exp(-(fit.intercept + fit.slope * _logit(run.metrics["clean_accuracy"]))))
        run.metrics["effective_robustness"] = (run.metrics["shifted_accuracy"] or 0.0) - expected


def _logit(share: float | None) -> float:
    value = min(max(share or 0.0, 1e-4), 1 - 1e-4)
    return math.log(value / (1 - value))
