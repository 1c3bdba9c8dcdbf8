"""What to expect of a score on the data at hand, without labels: which threshold, how many wrong pairs, which copies are found.

The score itself is fixed. How many pairs of different pictures lie above a threshold is extrapolated from all candidates that
were compared: their log odds fall off exponentially, at a rate measured below those scores at which duplicates are. So real
duplicates are not counted as different pictures, and nothing depends on a sample. Recall of real duplicates cannot be told
this way: it is known only where somebody says which pairs are duplicates. Copies that are made here, of kinds that nothing
was learned from, say how far the search reaches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustdup_detect.features import Embedder, canvas
from robustdup_detect.kinds import copies_of_kinds
from robustdup_detect.pairs import NEIGHBOURS, Finder, with_similarity
from robustdup_detect.scores import SUREST, USUAL_THRESHOLD, Score
from robustdup_detect.search import nearest
from robustdup_detect.verify import COARSE_ENOUGH, align_outlines, measure, outline

SAMPLE = 600  # images whose copies are looked for
FEWEST = 200  # images, and
FEWEST_CANDIDATES = 50  # candidates in the range of the fit, below which nothing is expected
LEAST, MOST = 0.3, 0.98  # thresholds that a calibration may choose
FEW = 10  # pairs: where fewer are found, half a wrong one may be expected at a precision of 95%
BULK = (0.8, 0.85, 0.9)  # share of the candidates below the range of the fit: the one taken, and those of the interval
CLEAR = -2.0  # log odds below which duplicates are few among the candidates
EVEN = 1.0  # log odds up to which duplicates are taken to be spread evenly
ROUNDS = 200
HELD_OUT = (
    "grey", "hue", "contrast", "gamma", "blur", "text line", "watermark", "border 10%", "letterbox", "rotation 5",
    "crop 80%", "occlusion 25%",
)  # fmt: skip


@dataclass(frozen=True)
class Tail:
    """How many different pictures are expected above log odds `x`: count * exp(-rate * (x - start)), from `n` candidates."""

    start: float
    rate: float
    count: float
    n: int

    def above(self, odds: float) -> float:
        """Return the expected number of pairs of different pictures with at least these log odds."""
        return float(self.count * math.exp(-self.rate * max(odds - self.start, 0.0)))

    def spread(self, odds: float) -> float:
        """Return the factor of two standard errors of `above`."""
        reach = max(odds - self.start, 0.0) * self.rate
        return math.exp(2 * math.sqrt((1 + reach**2) / max(self.n, 1)))


@dataclass(frozen=True)
class Calibration:
    """A score, its threshold, and what is expected of it; None where that is not known.

    `different` is the expected number of pairs of different pictures above the threshold, among `above` judged pairs, with
    its interval. `recall_by_change` is the share of made copies of each held out kind that the search finds.
    """

    score: Score
    threshold: float
    above: int = 0
    different: float | None = None
    different_low: float | None = None
    different_high: float | None = None
    recall_by_change: dict[str, float] = field(default_factory=dict)
    positives: int = 0
    negatives: int = 0
    missed: bool = False

    @property
    def calibrated(self) -> bool:
        """Whether there was enough to calibrate on."""
        return self.different is not None

    def precision(self, different: float | None) -> float | None:
        """Return the expected precision where so many of the judged pairs are different pictures."""
        return None if different is None or not self.above else max(1 - different / self.above, 0.0)


def calibrate(odds: Any, images: int, score: Score, *, target: float, threshold: float | None) -> Calibration:
    """Choose the threshold for a precision of `target` from the log odds (C,) of all candidates, unless one is given."""
    odds = np.asarray(odds, dtype=np.float64)
    tails = [tail for share in BULK if (tail := fit_tail(odds, share)) is not None]
    most = fit_tail(odds, BULK[0], duplicates=False)
    if images < FEWEST or len(tails) < len(BULK) or most is None:
        cut = USUAL_THRESHOLD if threshold is None else threshold
        return Calibration(score, cut, above=_above(odds, cut))
    cut, missed = (threshold, False) if threshold is not None else choose_threshold(odds, tails[0], target)
    at = logit(cut)
    expected = [tail.above(at) for tail in tails]
    spread = tails[0].spread(at)
    return Calibration(
        score, cut, above=_above(odds, cut), different=expected[0], different_low=min(*expected, expected[0] / spread),
        different_high=max(*expected, most.above(at) * most.spread(at)), negatives=tails[0].n, missed=missed,
    )  # fmt: skip


def fit_tail(odds: Any, share: float = BULK[0], *, duplicates: bool = True) -> Tail | None:
    """Fit how candidates of different pictures fall off above the bulk; None for too few.

    Maximum likelihood of an exponential that is cut off at both ends, and, beside it, of `duplicates` that lie evenly over
    the range (their scores change slowly there). Without these, all are taken for different pictures, below what most
    duplicates score: that is the most that there can be.
    """
    negative = odds[odds < 0]
    if not len(negative):
        return None
    low = float(np.quantile(negative, share))
    high = max(EVEN if duplicates else CLEAR, low + 2.0)
    inside = odds[(odds >= low) & (odds < high)] - low
    width, n = high - low, len(inside)
    if n < FEWEST_CANDIDATES:
        return None
    rate, part = _truncated_rate(float(inside.mean()), width), 1.0
    if duplicates:
        part = 0.95
        for _ in range(ROUNDS):
            falling = part * rate * np.exp(-rate * inside) / -math.expm1(-rate * width)
            own = falling / (falling + (1 - part) / width)
            part = float(own.mean())
            rate = _truncated_rate(float((own * inside).sum() / own.sum()), width)
    return Tail(low, rate, n * part / -math.expm1(-rate * width), n)


def _truncated_rate(mean: float, width: float) -> float:
    """Return the rate of an exponential cut off at `width` that has this mean; at least one that halves over the width."""
    from scipy.optimize import brentq

    least, most = math.log(2) / width, 100 / width
    mean = max(mean, 1.01 / most)

    def excess(rate: float) -> float:
        return 1 / rate - width / math.expm1(rate * width) - mean

    if excess(least) <= 0:
        return least
    return most if excess(most) >= 0 else float(brentq(excess, least, most))


def choose_threshold(odds: Any, tail: Tail, target: float) -> tuple[float, bool]:
    """Return the lowest threshold above which few enough different pictures are expected, and whether there was none.

    Where hardly any pair is found there is no share to hold: the usual threshold is taken, if half a wrong pair or more is
    expected at all others. It is told, too.
    """
    for threshold in np.round(np.arange(LEAST, MOST + 0.005, 0.01), 2).tolist():
        if tail.above(logit(threshold)) <= (1 - target) * max(_above(odds, threshold), FEW):
            return threshold, False
    return (USUAL_THRESHOLD if _above(odds, USUAL_THRESHOLD) < 2 * FEW else MOST), True


def _above(odds: Any, threshold: float) -> int:
    return int((odds >= logit(threshold)).sum())


def logit(share: float) -> float:
    """Return the log odds of a share."""
    share = min(max(share, 1e-6), SUREST)
    return math.log(share / (1 - share))


def made_copies(
    load: Callable[[Any], Tensor], rows: Any, database: Tensor, finder: Finder, embedder: Embedder, score: Score,
    *, threshold: float, seed: int,
) -> tuple[dict[str, float], int]:  # fmt: skip
    """Return the share of changed copies of each held out kind that the whole search finds, and how many were tried.

    `load` gives the pictures uint8 (N, 3, S, S) at some rows, of the size that the embedder takes; `database` (M, D) holds
    the embeddings among which their originals would be.
    """
    if len(rows) < FEWEST:
        return {}, 0
    rng = np.random.default_rng([seed, 1])
    originals = load(rows[np.sort(rng.permutation(len(rows))[:SAMPLE])])
    copies, names = copies_of_kinds(originals, rng, HELD_OUT)
    first, second = canvas(copies), canvas(originals)
    warp, agreement = align_outlines(outline(first), outline(second))
    measures, _ = measure(first, second, warp)
    embedded = finder.projection(embedder.describe(copies))
    own = (embedded * finder.projection(embedder.describe(originals))).sum(dim=1)
    query, _, value = nearest(embedded, database, NEIGHBOURS)
    last = torch.full((len(copies),), 2.0).scatter_reduce(0, query, value, "amin")
    many = torch.bincount(query, minlength=len(copies)) >= NEIGHBOURS
    reached = (own >= finder.least) & ((own >= last - 1e-5) | ~many) & (agreement >= COARSE_ENOUGH)
    found = reached & (score(with_similarity(measures, own)) >= threshold)
    kinds = np.array(names)
    return {name: float(found[torch.from_numpy(kinds == name)].float().mean()) for name in HELD_OUT}, len(copies)
