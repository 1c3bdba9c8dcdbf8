"""Effective robustness: accuracy on shifted data beyond what clean accuracy predicts. https://arxiv.org/abs/2007.00644"""

from __future__ import annotations

import math
from collections.abc import Sequence

from robustdup_study.records import StudyRun

FEWEST_FOR_FIT = 3  # settings without copies through which accuracy on shifted data is predicted


def add_effective_robustness(runs: Sequence[StudyRun], dose: str) -> list[str]:
    """Add the metric `effective_robustness` to runs that have accuracy on shifted data; return what a reader should know.

    What is expected is a line, in logits, through the settings without copies, a point for each: the mean over its seeds.
    Seeds of one setting tell nothing of how accuracy on shifted data follows clean accuracy, so with fewer than three
    settings there is no line.
    """
    both = [
        run for run in runs if run.metrics.get("shifted_accuracy") is not None and run.metrics.get("clean_accuracy")
    ]
    cells: dict[tuple[tuple[str, str], ...], dict[str, StudyRun]] = {}
    for run in both:
        if run.factors.get(dose, 0) == 0:
            place = tuple((name, str(level)) for name, level in run.factors.items() if name != dose)
            cells.setdefault(place, {})[run.cell] = run
    by_setting = {
        frozenset(by_seed): list(by_seed.values()) for by_seed in cells.values()
    }  # schemes share their baseline
    points = {
        (_mean_logit(by_seed, "clean_accuracy"), _mean_logit(by_seed, "shifted_accuracy"))
        for by_seed in by_setting.values()
    }
    if len({clean for clean, _ in points}) < FEWEST_FOR_FIT:
        text = f"the line needs {FEWEST_FOR_FIT} settings without copies that differ in more than the seed"
        return [f"No effective robustness: {text}; here {_count(len(points))}."] if both else []
    from scipy.stats import linregress

    fit = linregress(*zip(*sorted(points), strict=True))
    for run in both:
        expected = 1 / (1 + math.exp(-(fit.intercept + fit.slope * _logit(run.metrics["clean_accuracy"]))))
        run.metrics["effective_robustness"] = (run.metrics["shifted_accuracy"] or 0.0) - expected
    return []


def _count(settings: int) -> str:
    return "is one" if settings == 1 else f"are {settings}"


def _mean_logit(runs: Sequence[StudyRun], name: str) -> float:
    return sum(_logit(run.metrics[name]) for run in runs) / len(runs)


def _logit(share: float | None) -> float:
    value = min(max(share or 0.0, 1e-4), 1 - 1e-4)
    return math.log(value / (1 - value))
