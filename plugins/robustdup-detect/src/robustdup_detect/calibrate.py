"""What to expect of a score on the data at hand, without labels: which threshold, how many wrong pairs, which copies are found.

The score itself is fixed. How many pairs of different pictures lie above a threshold is extrapolated from all candidates that
were compared: their log odds fall off exponentially, at a rate measured below those scores at which duplicates are. So real
duplicates are not counted as different pictures, and nothing depends on a sample. Wrong pairs are held against the images that
were found, not against all pairs: forty shots of one car make 780 right pairs, and would hide what is wrong elsewhere.

Recall of real duplicates cannot be told from the images at hand. It is known where somebody says which pairs are duplicates;
otherwise that of CIFAR-10's annotated pairs at the same threshold is told. Copies that are made here, of kinds that nothing was
learned from, say how far the search reaches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustdup.statistics import wilson
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
FEW = 10  # images: where fewer are found, half a wrong one may be expected at a precision of 95%
BULK = (0.8, 0.85, 0.9)  # share of the candidates below the range of the fit: the one taken, and those of the interval
CLEAR = -2.0  # log odds below which duplicates are few among the candidates
EVEN = 1.0  # log odds up to which duplicates are taken to be spread evenly
JUST_BELOW = 3.0  # log odds below a threshold at which pairs are counted that are the best ones of their images
ROUNDS = 200
# How many of the 125 near pairs between CIFAR-10's splits at hand, of those that ciFAIR's authors annotated, score at least so.
ANNOTATED_PAIRS = 125
ANNOTATED = (
    (0.02, 122), (0.1, 122), (0.2, 120), (0.4, 120), (0.5, 119), (0.88, 119), (0.9, 118), (0.92, 118), (0.94, 117),
    (0.95, 117), (0.96, 116), (0.97, 115), (0.98, 113), (0.99, 112), (0.995, 112), (0.999, 108), (1.0, 0),
)  # fmt: skip
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
class Compared:
    """All candidates that were compared: their log `odds` (C,), and for each set of pairs the best ones of its images.

    `best` has, for each set, the highest log odds of each image on the first side, and of each on the second.
    """

    odds: Any
    best: Sequence[tuple[Any, Any]]

    def pairs(self, odds: float) -> int:
        """Return the number of pairs with at least these log odds."""
        return int((self.odds >= odds).sum())

    def images(self, odds: float) -> int:
        """Return the number of images in such pairs, on the side that has fewer."""
        return sum(min(int((side >= odds).sum()) for side in sides) for sides in self.best)

    def best_share(self, odds: float) -> float:
        """Return how many images have their best pair just below these log odds, for each pair there; 1 where none lies there."""
        low, high = odds - JUST_BELOW, odds
        pairs = int(((self.odds >= low) & (self.odds < high)).sum())
        images = sum(min(int(((side >= low) & (side < high)).sum()) for side in sides) for sides in self.best)
        return images / pairs if pairs else 1.0


def compared(sets: Sequence[tuple[Any, Any, Any]]) -> Compared:
    """Return what was compared, from sets of (first image, second image, log odds), each (C,)."""
    return Compared(
        np.concatenate([np.asarray(odds, dtype=np.float64) for *_, odds in sets]),
        [(_best(a, odds), _best(b, odds)) for a, b, odds in sets],
    )


def _best(images: Any, odds: Any) -> Any:
    unique, place = np.unique(images, return_inverse=True)
    best = np.full(len(unique), -np.inf)
    np.maximum.at(best, place, odds)
    return best


@dataclass(frozen=True)
class Calibration:
    """A score, its threshold, and what is expected of it; None where that is not known.

    `different` is the expected number of pairs of different pictures above the threshold, among `above` judged pairs of
    `images` images, with the interval of the images that they are the best pair of. `recall_by_change` is the share of made
    copies of each held out kind that the search finds; `recall` that of annotated pairs, with its interval. `tail` is what the
    expectations come from.
    """

    score: Score
    threshold: float
    above: int = 0
    images: int = 0
    different: float | None = None
    different_low: float | None = None
    different_high: float | None = None
    recall: tuple[float, float, float] | None = None
    recall_by_change: dict[str, float] = field(default_factory=dict)
    positives: int = 0
    negatives: int = 0
    missed: bool = False
    tail: Tail | None = None

    @property
    def calibrated(self) -> bool:
        """Whether there was enough to calibrate on."""
        return self.different is not None

    def precision(self, different: float | None) -> float | None:
        """Return the expected precision by image where so many of the judged pairs are different pictures."""
        return None if different is None or not self.images else max(1 - different / self.images, 0.0)


def calibrate(seen: Compared, images: int, score: Score, *, target: float, threshold: float | None) -> Calibration:
    """Choose the threshold for a precision of `target` among `images` images from all candidates, unless one is given."""
    odds = seen.odds
    tails = [tail for share in BULK if (tail := fit_tail(odds, share)) is not None]
    most = fit_tail(odds, BULK[0], duplicates=False)
    if images < FEWEST or len(tails) < len(BULK) or most is None:
        cut = USUAL_THRESHOLD if threshold is None else threshold
        return Calibration(score, cut, above=seen.pairs(logit(cut)), images=seen.images(logit(cut)))
    cut, missed = (threshold, False) if threshold is not None else choose_threshold(seen, tails[0], target)
    cut_odds = logit(cut)
    expected = [tail.above(cut_odds) for tail in tails]
    return Calibration(
        score, cut, above=seen.pairs(cut_odds), images=seen.images(cut_odds), different=expected[0],
        different_low=min(*expected, expected[0] / tails[0].spread(cut_odds)) * min(seen.best_share(cut_odds), 1.0),
        different_high=max(*expected, most.above(cut_odds) * most.spread(cut_odds)), negatives=tails[0].n, missed=missed,
        tail=tails[0],
    )  # fmt: skip


def annotated_recall(seen: Compared, tail: Tail, threshold: float) -> tuple[float, float, float]:
    """Return how many of CIFAR-10's annotated pairs score at least the threshold, with an interval for other duplicates.

    Its upper end is that of Wilson's 95% interval. Its lower end falls where the images at hand have many pairs just below the
    threshold that are not accounted for by different pictures.
    """
    scores, pairs = np.array(ANNOTATED).T
    n_above = float(np.interp(threshold, scores, pairs))
    low, high = wilson(round(n_above), ANNOTATED_PAIRS)
    right, more = (max(seen.pairs(odds) - tail.above(odds), 0.0) for odds in (logit(threshold), CLEAR))
    return n_above / ANNOTATED_PAIRS, min(low, right / more if more > right else 1.0), high


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


def choose_threshold(seen: Compared, tail: Tail, target: float) -> tuple[float, bool]:
    """Return the lowest threshold above which few enough different pictures are expected, and whether there was none.

    There may be a wrong pair for so many images, although some of them have right pairs too. Where hardly any pair is found
    there is no share to hold: the usual threshold is taken, if half a wrong pair or more is expected at all others. It is told,
    too.
    """
    for threshold in np.round(np.arange(LEAST, MOST + 0.005, 0.01), 2).tolist():
        if tail.above(logit(threshold)) <= (1 - target) * max(seen.images(logit(threshold)), FEW):
            return threshold, False
    return (USUAL_THRESHOLD if seen.images(logit(USUAL_THRESHOLD)) < 2 * FEW else MOST), True


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
    is_found = reached & (score(with_similarity(measures, own)) >= threshold)
    kinds = np.array(names)
    return {name: float(is_found[torch.from_numpy(kinds == name)].float().mean()) for name in HELD_OUT}, len(copies)
