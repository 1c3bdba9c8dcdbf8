"""Effective robustness: how far a model lies above the line through the leaderboard's entries, at its clean accuracy.

Accuracies under a shift follow clean accuracies on a line once both are taken as logits (https://arxiv.org/abs/2007.00644,
https://arxiv.org/abs/2107.04649); what lies above it is robustness that the clean accuracy does not explain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from robustdup.leaderboard.table import LeaderboardEntry

FEWEST = 8  # entries of a board through which a line is drawn
EDGE = 1e-4  # accuracies are kept so far from 0 and 1, where logits are infinite


class EffectiveRobustness(BaseModel):
    """How a measured accuracy compares with the one that the line predicts, all shares in [0, 1].

    `effective` is measured minus predicted, `low` and `high` its 95% interval by the measured accuracy's own. `r_squared` and
    `spread` say what the line is worth: the share of the variance of the logits that it explains, and the standard deviation of
    the entries about it, as accuracies near the prediction. Lines are drawn for the corruption boards alone: on boards of attacks
    robust accuracy does not follow clean accuracy (r² 0.01 on CIFAR-10, Linf).
    """

    model_config = ConfigDict(extra="forbid")

    clean: float
    measured: float
    predicted: float
    effective: float
    low: float
    high: float
    slope: float
    intercept: float
    r_squared: float
    spread: float
    n_entries: int

    def sentence(self) -> str:
        """Return it in one line."""
        return (
            f"Effective robustness {100 * self.effective:+z.2f} points [{100 * self.low:+z.2f}, {100 * self.high:+z.2f}]: the "
            f"line through {self.n_entries} entries (r² {self.r_squared:.2f}, spread {100 * self.spread:.1f} points) predicts "
            f"{100 * self.predicted:.2f}% at a clean accuracy of {100 * self.clean:.2f}%."
        )


def effective_robustness(
    entries: Sequence[LeaderboardEntry], clean: float, measured: tuple[float, float, float]
) -> EffectiveRobustness | None:
    """Return how a model lies against the line through published entries; None where they are too few for a line.

    Args:
        entries: of one board; those without both accuracies are left out.
        clean: clean accuracy of the model in [0, 1].
        measured: its accuracy under attack or corruption in [0, 1], with both ends of its interval.
    """
    pairs = [
        (e.clean_acc / 100, e.robust_acc / 100) for e in entries if e.clean_acc is not None and e.robust_acc is not None
    ]
    if len(pairs) < FEWEST or len({x for x, _ in pairs}) < 2:
        return None
    from scipy.stats import linregress

    x, y = ([_logit(pair[side]) for pair in pairs] for side in (0, 1))
    line = linregress(x, y)
    slope, intercept = float(line.slope), float(line.intercept)
    on_line = slope * _logit(clean) + intercept
    predicted = _share(on_line)
    errors = [b - (slope * a + intercept) for a, b in zip(x, y, strict=True)]
    deviation = math.sqrt(sum(error**2 for error in errors) / max(len(errors) - 2, 1))
    value, low, high = measured
    return EffectiveRobustness(
        clean=clean, measured=value, predicted=predicted, effective=value - predicted, low=low - predicted,
        high=high - predicted, slope=slope, intercept=intercept, r_squared=float(line.rvalue) ** 2,
        spread=(_share(on_line + deviation) - _share(on_line - deviation)) / 2, n_entries=len(pairs),
    )  # fmt: skip


def _logit(share: float) -> float:
    kept = min(max(share, EDGE), 1 - EDGE)
    return math.log(kept / (1 - kept))


def _share(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))
