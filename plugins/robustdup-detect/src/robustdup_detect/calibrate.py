"""How sure is a score? Learned from the user's own images: changed copies of them, and their nearest different neighbours.

Nobody has labelled the neighbours, and some of them are duplicates. So the score is fitted in rounds that leave out what
the round before took for the same picture, and the number of different pictures above a threshold is extrapolated: the
log odds of different pictures fall off exponentially, at a rate measured where few duplicates are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustdup_detect.features import Embedder
from robustdup_detect.pairs import NEIGHBOURS, USUAL_SCORE, USUAL_THRESHOLD, Finder, Score, canvas
from robustdup_detect.search import nearest
from robustdup_detect.transforms import changed_copies
from robustdup_detect.verify import COARSE_ENOUGH, align_outlines, measure, outline

SAMPLE = 1000  # images whose copies and neighbours are looked at
FEWEST = 200  # images below which the usual score is taken
ROUNDS = 5
LEAST, MOST = 0.02, 0.98  # thresholds that a calibration may choose


@dataclass(frozen=True)
class Calibration:
    """A score, its threshold, and what is expected of it; NaN where there were too few images to say.

    `recall` is the share of changed copies that were found, through the whole search; `recall_by_change` of each kind.
    `different_a_query` is the expected number of pairs of different pictures that a query brings above the threshold,
    `precision` the expected share of right pairs among those that the sample found.
    """

    score: Score
    threshold: float
    precision: float
    recall: float
    recall_by_change: dict[str, float]
    different_a_query: float
    positives: int
    negatives: int
    calibrated: bool


def calibrate(
    load: Callable[[Any], Tensor], rows: Any, database: Tensor, database_pictures: Any, finder: Finder, embedder: Embedder, *,
    within: bool, target: float, threshold: float | None, seed: int,
) -> Calibration:  # fmt: skip
    """Calibrate on a sample of the pictures at `rows`, whose neighbours come from the database.

    `load` gives the pictures uint8 (N, 3, S, S) at some rows, of the size that the embedder takes. `database` (M, D) holds
    embeddings, `database_pictures` (M, 3, 32, 32) their pictures; `within` says that place i of both is the picture
    rows[i]. `target` is the precision that the threshold is chosen for, unless one is given.
    """
    rng = np.random.default_rng([seed, 1])
    places = np.sort(rng.permutation(len(rows))[:SAMPLE])
    if len(places) < FEWEST:
        nan = math.nan
        return Calibration(USUAL_SCORE, threshold or USUAL_THRESHOLD, nan, nan, {}, nan, 0, 0, calibrated=False)
    originals = load(rows[places])
    copies, names = changed_copies(originals, rng)
    positive, reached = _positives(originals, copies, names, database, finder, embedder)
    negative = _negatives(originals, places, database, database_pictures, finder, embedder, within)
    learn = torch.arange(len(positive)) % 2 == 0
    score = _fit(positive[learn & reached], negative)
    odds = _log_odds(score, negative)
    cut = threshold if threshold is not None else _threshold(odds, target)
    tail = _different(odds, cut)
    above = int((odds >= _logit(cut)).sum())
    recovered = (score(positive) >= cut) & reached
    tried = ~learn
    by_change = {}
    for name in dict.fromkeys(names):
        of_kind = torch.tensor([each == name for each in names]) & tried
        by_change[name] = float(recovered[of_kind].float().mean())
    return Calibration(
        score, cut, max(1 - tail / above, 0.0) if above else math.nan, float(recovered[tried].float().mean()), by_change,
        tail / len(places), int(tried.sum()), len(negative), calibrated=True,
    )  # fmt: skip


def _positives(
    originals: Tensor, copies: Tensor, names: list[str], database: Tensor, finder: Finder, embedder: Embedder
) -> tuple[Tensor, Tensor]:
    """Return the measures of copies against their originals, and which the search would have brought together."""
    flip = torch.tensor(["mirror" in name for name in names])
    straight = torch.where(flip[:, None, None, None], copies.flip(-1), copies)
    first, second = canvas(straight), canvas(originals)
    warp, agreement = align_outlines(outline(first), outline(second))
    measures, _ = measure(first, second, warp)
    embedded = finder.projection(embedder.describe(straight))
    own = (embedded * finder.projection(embedder.describe(originals))).sum(dim=1)
    query, _, value = nearest(embedded, database, NEIGHBOURS)
    last = torch.full((len(copies),), 2.0).scatter_reduce(0, query, value, "amin")
    return measures, (own >= finder.least) & (own >= last - 1e-5) & (agreement >= COARSE_ENOUGH)


def _negatives(
    originals: Tensor, places: Any, database: Tensor, pictures: Any, finder: Finder, embedder: Embedder, within: bool
) -> Tensor:
    """Return the measures of the nearest neighbours of the originals, without the originals themselves."""
    measured = []
    for mirrored in (False, True):
        turned_ones = originals.flip(-1) if mirrored else originals
        shown = canvas(turned_ones)
        query, row, _ = nearest(
            finder.projection(embedder.describe(turned_ones)), database, NEIGHBOURS + within, least=finder.least
        )
        if within:
            query, row = query[own := torch.from_numpy(places)[query] != row], row[own]
        for start in range(0, len(query), 512):
            q, r = query[start : start + 512], row[start : start + 512].numpy()
            first, second = shown[q], torch.from_numpy(np.array(pictures[r]))
            warp, agreement = align_outlines(outline(first), outline(second))
            near = agreement >= COARSE_ENOUGH
            if bool(near.any()):
                measured.append(measure(first[near], second[near], warp[near])[0])
    return torch.cat(measured) if measured else torch.empty(0, len(USUAL_SCORE.weights))


def _fit(positive: Tensor, negative: Tensor) -> Score:
    """Return the logistic score that tells copies from neighbours, but for those that it takes for copies."""
    from sklearn.linear_model import LogisticRegression

    if len(negative) < 30 or len(positive) < 30:
        return USUAL_SCORE
    score, kept = USUAL_SCORE, negative
    for _ in range(ROUNDS):
        kept = negative[score(negative) < 0.5]
        if len(kept) < 30:
            break
        values = torch.cat([positive, kept]).numpy().astype(np.float64)
        truth = np.repeat([1, 0], [len(positive), len(kept)])
        mean, spread = values.mean(axis=0), values.std(axis=0) + 1e-6
        model = LogisticRegression(C=1.0, max_iter=1000).fit((values - mean) / spread, truth)
        weights = model.coef_[0] / spread
        score = Score(tuple(weights.tolist()), float(model.intercept_[0] - weights @ mean))
    return score


def _log_odds(score: Score, measures: Tensor) -> Any:
    return _clipped(measures.double().numpy() @ np.array(score.weights) + score.bias)


def _clipped(odds: Any) -> Any:
    return np.clip(odds, -60, 60)


def _logit(share: float) -> float:
    share = min(max(share, 1e-6), 1 - 1e-6)
    return math.log(share / (1 - share))


def _different(odds: Any, threshold: float) -> float:
    """Return the expected number of different pictures above a threshold among neighbours with these log odds.

    Between the 60th percentile and even odds the fall is fitted (maximum likelihood of a truncated exponential), and
    extrapolated from there.
    """
    low = float(np.quantile(odds, 0.6)) if len(odds) else 0.0
    high = max(low + 2.0, -1.0)
    inside = odds[(odds >= low) & (odds < high)] - low
    if len(inside) < 10:
        return 0.0
    rate = _truncated_rate(float(inside.mean()), high - low)
    whole = len(inside) / -math.expm1(-rate * (high - low))
    return float(whole * math.exp(-rate * max(_logit(threshold) - low, 0.0)))


def _truncated_rate(mean: float, width: float) -> float:
    """Return the rate of an exponential cut off at `width` that has this mean; at least one that halves over the width."""
    from scipy.optimize import brentq

    least, most = math.log(2) / width, 100 / width

    def excess(rate: float) -> float:
        return 1 / rate - width / math.expm1(rate * width) - mean

    if excess(least) <= 0:
        return least
    return most if excess(most) >= 0 else float(brentq(excess, least, most))


def _threshold(odds: Any, target: float) -> float:
    """Return the lowest threshold above which the expected share of different pictures is small enough."""
    for threshold in np.linspace(LEAST, MOST, 97):
        above = int((odds >= _logit(threshold)).sum())
        expected = _different(odds, float(threshold))
        if expected <= (1 - target) * max(above, 1):
            return round(float(threshold), 2)
    return MOST
