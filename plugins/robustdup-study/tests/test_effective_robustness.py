"""Effective robustness: a line through settings, not through seeds. The slope is known."""

from __future__ import annotations

import numpy as np
import pytest
from robustdup_study.effective_robustness import add_effective_robustness
from robustdup_study.records import StudyRun
from scipy.special import expit, logit
from scipy.stats import linregress


def test_the_line_goes_through_the_means_of_settings_and_not_through_seeds():
    """Across models the slope is 1; across seeds of one it is -2, which must not count."""
    draw, runs = np.random.default_rng(0), []
    for model, level in (("a", 0.0), ("b", 0.8), ("c", 1.7), ("d", 2.5)):
        noise = 0.2 * draw.normal(size=8)
        noise -= noise.mean()
        for seed in range(8):
            for dose, harm in ((0, 0.0), (0.5, 0.4)):
                metrics = {
                    "clean_accuracy": float(expit(level + noise[seed])),
                    "shifted_accuracy": float(expit(level - 0.5 - 2 * noise[seed] - harm)),
                }
                factors = {"model": model, "dose": dose}
                runs.append(
                    StudyRun(
                        factors=factors, seed=seed, cell=f"{model}{dose}{seed}", status="complete", metrics=metrics
                    )
                )
    assert add_effective_robustness(runs, "dose") == []
    zero = [run for run in runs if run.factors["dose"] == 0]
    points = [
        [np.mean([logit(run.metrics[name]) for run in zero if run.factors["model"] == model]) for model in "abcd"]
        for name in ("clean_accuracy", "shifted_accuracy")
    ]
    fit = linregress(*points)
    assert (fit.slope, fit.intercept) == pytest.approx((1, -0.5), abs=1e-9)
    for run in runs:
        expected = run.metrics["shifted_accuracy"] - expit(logit(run.metrics["clean_accuracy"]) - 0.5)
        assert run.metrics["effective_robustness"] == pytest.approx(expected, abs=1e-9)


def test_schemes_that_share_their_baseline_are_one_setting():
    runs = [
        StudyRun(
            factors={"scheme": scheme, "dose": 0}, seed=seed, cell=f"{seed}", status="complete",
            metrics={"clean_accuracy": 0.6 + 0.01 * seed, "shifted_accuracy": 0.4},
        )
        for scheme in ("uniform", "class_skewed", "power_law", "near") for seed in range(5)
    ]  # fmt: skip
    [remark] = add_effective_robustness(runs, "dose")
    assert remark.endswith("here is one.")
    assert "effective_robustness" not in runs[0].metrics
