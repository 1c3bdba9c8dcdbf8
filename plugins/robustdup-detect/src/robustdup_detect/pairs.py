"""From pictures in memory to the pairs that show the same picture: candidates by embedding, then judged one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from robustdup.errors import UserError
from robustdup_detect.features import CLASSICAL, Embedder, Projection, canvas, describe, learn_projection
from robustdup_detect.groups import digests, group_identical
from robustdup_detect.keypoints import LARGE
from robustdup_detect.overlap import PICTURE
from robustdup_detect.pairlist import Pairs, best_ways, confirmed, joined, with_identical
from robustdup_detect.scores import SUREST, USUAL_SCORE, USUAL_THRESHOLD, Score
from robustdup_detect.search import nearest
from robustdup_detect.transforms import changed_copies
from robustdup_detect.verify import BATCH, COARSE_ENOUGH, MEASURES, align_outlines, measure, outline

Progress = Callable[[str, int, int], None]  # stage, done, total

LEARN_FROM = 4000  # changed copies from which a projection is learned and tried
NEIGHBOURS = 12  # candidates of each picture, and as many of its mirror image


@dataclass(frozen=True)
class Candidates:
    """Pairs to be judged: rows `a`, `b` (C,), `mirrored` (C,) bool, and how alike their embeddings are, `alike` (C,)."""

    a: Tensor
    b: Tensor
    mirrored: Tensor
    alike: Tensor


@dataclass(frozen=True)
class Finder:
    """How candidates are found: the projection, and the least similarity of a changed copy to its original."""

    projection: Projection
    least: float


def near_duplicates(
    pixels_a: Tensor,
    pixels_b: Tensor | None = None,
    *,
    threshold: float = USUAL_THRESHOLD,
    progress: Progress | None = None,
    seed: int = 0,
) -> Pairs:
    """Return the pairs that show the same picture, exactly or nearly, by falling score: pixels uint8 (N, C, H, W), C = 1 or 3.

    Within `pixels_a`, a < b; or, where given, of `pixels_a` with `pixels_b` (M, C', H', W'). Found are shifted, mirrored,
    slightly cropped or resized, brighter or darker, compressed and noisy copies, and mixtures of these; among pictures of 64
    pixels a side and more also turned, upside down, negative, framed, cropped and partly covered ones. Identical pictures have
    score 1; several in one set are compared once, each then paired with the first of those it equals or resembles.
    The result depends on the pixels and `seed` alone. Raises UserError for what are not pixels.
    """
    for name, pixels in (("pixels_a", pixels_a), ("pixels_b", pixels_b)):
        if pixels is not None:
            check_pixels(name, pixels)
    if not 0 < threshold <= 1:
        raise UserError(f"threshold must be above 0 and at most 1, got {threshold}.", code="bad-value")
    report = progress or (lambda stage, done, total: None)
    within = pixels_b is None
    hashes_a = digests(pixels_a)
    hashes_b = hashes_a if pixels_b is None else digests(pixels_b)
    a, b = (group_identical(hashes) for hashes in (hashes_a, hashes_b))
    canvas_a = canvas(pixels_a[a.first])
    canvas_b = canvas_a if pixels_b is None else canvas(pixels_b[b.first])
    finder = learn(canvas_a if within else torch.cat([canvas_a, canvas_b]), seed)
    embedded_b = finder.projection(describe(canvas_b))
    candidates = find(canvas_a, embedded_b, finder, within=within, progress=report)
    compared = compare(canvas_a, canvas_b, candidates, progress=report)
    judged, _ = judge(compared, candidates, USUAL_SCORE, threshold, len(b.first))
    if min(*pixels_a.shape[-2:], *(pixels_a if pixels_b is None else pixels_b).shape[-2:]) >= LARGE:
        from robustdup_detect.local import local_features, overlapping_pairs

        different = [pixels_a[a.first]] if pixels_b is None else [pixels_a[a.first], pixels_b[b.first]]
        sets = [local_features(pixels) for pixels in different]
        pictures = [canvas(pixels, PICTURE) for pixels in different]
        local = overlapping_pairs(sets, pictures, threshold=threshold, seed=seed, progress=report)
        counts = sets[0].count[judged.a.numpy()], sets[-1].count[judged.b.numpy()]
        judged = judged[confirmed(judged, local, len(b.first), counts)]
        judged = best_ways(joined([judged, local]), len(b.first))
    return with_identical(judged, hashes_a[a.first], None if within else hashes_b[b.first], (a, b))


def check_pixels(name: str, pixels: Tensor) -> None:
    """Raise UserError unless pixels are uint8 (N, C, H, W) with one or three channels and at least one image."""
    if not isinstance(pixels, Tensor) or pixels.dtype != torch.uint8:
        came = str(pixels.dtype).removeprefix("torch.") if isinstance(pixels, Tensor) else type(pixels).__name__
        raise UserError(
            f"{name} must be a tensor of uint8 pixels, got {came}. From [0, 1]: (255 * x).round().byte().",
            code="bad-images",
        )
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or 0 in pixels.shape:
        raise UserError(
            f"{name} must have the shape (N, 1 or 3, H, W) with N > 0, got {tuple(pixels.shape)}.", code="bad-images"
        )


def learn(pictures: Tensor, seed: int = 0, embedder: Embedder = CLASSICAL) -> Finder:
    """Learn from pictures uint8 (N, 3, S, S) how to find candidates: changed copies of some of them are made.

    S is the size that the embedder takes.
    """
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(pictures))[:LEARN_FROM]
    rows = np.resize(rows, max(len(rows), min(LEARN_FROM, 20 * len(rows))))
    originals = pictures[torch.from_numpy(np.sort(rows))]
    copies, names = changed_copies(originals, rng)
    flipped = torch.tensor(["mirror" in name for name in names])
    copies = torch.where(flipped[:, None, None, None], copies.flip(-1), copies)  # as a mirrored query sees them
    before, after = embedder.describe(originals), embedder.describe(copies)
    tried = torch.arange(len(before)) % 4 == 3  # not learned from, so that their similarity is that of new copies
    projection = learn_projection(before[~tried], (after - before)[~tried])
    similarity = (projection(before[tried]) * projection(after[tried])).sum(dim=1)
    return Finder(projection, float(min(max(similarity.quantile(0.003).item(), 0.3), 0.55)))


def find(pictures: Tensor, database: Tensor, finder: Finder, *, within: bool, progress: Progress) -> Candidates:
    """Return candidates: rows of pictures uint8 (N, 3, 32, 32) and of embeddings (M, D), each pair once."""
    candidates = []
    for mirrored in (False, True):
        queries = finder.projection(describe(pictures.flip(-1) if mirrored else pictures))
        stage = "search mirrored" if mirrored else "search"
        a, b, alike = nearest(
            queries, database, NEIGHBOURS + within, least=finder.least, progress=partial(progress, stage)
        )
        if within:
            a, b, alike = once(a, b, alike, len(database))
        candidates.append((a, b, torch.full_like(a, mirrored, dtype=torch.bool), alike))
    return Candidates(*(torch.cat(part) for part in zip(*candidates, strict=True)))


def once(a: Tensor, b: Tensor, alike: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return pairs of rows below n in order and without repeats, a < b, each with its similarity."""
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    low, high, alike = low[low < high], high[low < high], alike[low < high]
    _, first = np.unique((low * n + high).numpy(), return_index=True)
    chosen = torch.from_numpy(first)
    return low[chosen], high[chosen], alike[chosen]


@dataclass(frozen=True)
class Compared:
    """Which candidates agree when roughly aligned, their `row` (P,), and what was measured: `measures` (P, 6), `warp` (P, 4)."""

    row: Tensor
    measures: Tensor
    warp: Tensor


def compare(pictures_a: Tensor, pictures_b: Tensor, candidates: Candidates, *, progress: Progress) -> Compared:
    """Align the pictures of the candidates and measure what is left; those of other pictures are left out early."""
    a, b, mirrored = candidates.a, candidates.b, candidates.mirrored
    outlines_a = outline(pictures_a)
    outlines_b = outlines_a if pictures_b is pictures_a else outline(pictures_b)
    measured, warps, rows = [torch.empty(0, len(MEASURES))], [torch.empty(0, 4)], [torch.empty(0, dtype=torch.int64)]
    for start in range(0, len(a), BATCH):
        part = torch.arange(start, min(start + BATCH, len(a)))
        warp, agreement = align_outlines(turned(outlines_a, a[part], mirrored[part]), outlines_b[b[part]])
        kept = agreement >= COARSE_ENOUGH
        part, warp = part[kept], warp[kept]
        if len(part):
            measures, warp = measure(turned(pictures_a, a[part], mirrored[part]), pictures_b[b[part]], warp)
            measured.append(measures)
            warps.append(warp)
            rows.append(part)
        progress("compare", min(start + BATCH, len(a)), len(a))
    return Compared(torch.cat(rows), torch.cat(measured), torch.cat(warps))


def judge(
    compared: Compared, candidates: Candidates, score: Score, threshold: float, width: int,
) -> tuple[Pairs, tuple[Tensor, Tensor, Tensor]]:  # fmt: skip
    """Return the candidates that score at least the threshold, each pair once, by falling score; b is below `width`.

    Beside them stand (a, b, log odds) of all that were measured, those below the threshold too.
    """
    row = compared.row
    a, b, mirrored = candidates.a[row], candidates.b[row], candidates.mirrored[row]
    odds = score.odds(with_similarity(compared.measures, candidates.alike[row]))
    value = torch.sigmoid(odds).clamp(max=SUREST)
    order = value.argsort(descending=True, stable=True)
    order = order[value[order] >= threshold]
    return best_ways(Pairs(a, b, value, mirrored, compared.warp)[order], width), (a, b, odds)


def with_similarity(measures: Tensor, alike: Tensor) -> Tensor:
    """Return measures (N, 6) with a seventh: the similarity (N,) of the embeddings, stretched near 1."""
    return torch.cat([measures, torch.atanh(alike.clamp(-0.9999, 0.9999))[:, None]], dim=1)


def turned(pictures: Tensor, rows: Tensor, mirrored: Tensor) -> Tensor:
    """Return the pictures (or outlines) at `rows`, mirrored where `mirrored` says so."""
    chosen = pictures[rows]
    chosen[mirrored] = chosen[mirrored].flip(-1)
    return chosen
