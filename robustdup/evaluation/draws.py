"""How many draws a gradient is averaged over (EOT), where a model answers at random: told from its answers to clean images.

EOT: https://arxiv.org/abs/1707.07397.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

USUAL_EOT, MOST_EOT = 10, 64  # draws of a gradient of a model that answers at random, where none were asked for
SMALL_ERROR = 0.25  # of a mean margin, in parts of the usual margin
UNSURE = 0.02  # shares of right answers nearer than this to 0, a half or 1 tell no spread


@dataclass(frozen=True)
class Draws:
    """How many draws a gradient of a model that answers at random is averaged over, unless asked otherwise.

    `error` is the standard error of a mean margin over so many draws, in parts of the usual margin; None where no sample
    shows one: then all draws agree on every clean image, or none has a margin.
    """

    eot: int = USUAL_EOT
    error: float | None = None


USUAL = Draws()


def enough_draws(margin: Tensor, correct_share: Tensor) -> Draws:
    """Return how many draws average out what a model's answers vary by.

    A sample that is right in a share p of its draws, with the mean margin m, has margins that spread by about m / Phi^-1(p)
    where they are near normal: no further pass is needed to know it. Draws are added until a mean over them has a small error.

    Args:
        margin: mean margins of clean images (N,).
        correct_share: shares of draws in which they are right (N,).
    """
    unsure = (correct_share > UNSURE) & (correct_share < 1 - UNSURE) & margin.isfinite()
    unsure &= (correct_share - 0.5).abs() > UNSURE  # at one half, any spread fits
    usual = float(margin[margin.isfinite()].abs().median()) if bool(margin.isfinite().any()) else 0.0
    if not bool(unsure.any()) or usual == 0:
        return Draws()
    quantile = torch.special.ndtri(correct_share[unsure].double())
    spread = float((margin[unsure].double() / quantile).abs().median())
    wanted = math.ceil((spread / (SMALL_ERROR * usual)) ** 2)
    eot = min(max(wanted, USUAL_EOT), MOST_EOT)
    return Draws(eot, spread / math.sqrt(eot) / usual)
