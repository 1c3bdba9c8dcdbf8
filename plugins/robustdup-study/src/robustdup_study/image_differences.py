"""The same training images with and without copies: in some seeds an image is duplicated, in others it is not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from robustdup_study.cell_record import CellResult
from robustdup_study.metrics import write
from robustdup_study.records import ImageDifference, StudyRun
from robustdup_study.sentences import place_of

SWEEPS = 100  # of taking out image and seed means by turns
MEASURES = {"correct": "accuracy", "robust": "robust accuracy"}

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ImageEffect:
    """By how much an answer changes where the image is duplicated, with its interval over images."""

    difference: float
    low: float
    high: float
    images: int


def image_differences(
    runs: Sequence[StudyRun], results: Mapping[str, CellResult], dose: str, varying: Sequence[str], level: float = 0.95
) -> list[ImageDifference]:
    """Return what copies do to the images that have them, for each combination of factors with copies.

    Image and seed are taken out, so that neither easy images nor good seeds count; images that were always duplicated, or
    never, say nothing.
    """
    groups: dict[tuple[tuple[str, Any], ...], list[tuple[int, dict[str, list[int]]]]] = defaultdict(list)
    for run in runs:
        result = results.get(run.cell)
        if run.factors.get(dose) and result is not None and result.samples:
            groups[tuple(run.factors.items())].append((run.seed, result.samples))
    made = []
    for place, cells in groups.items():
        image = np.concatenate([np.asarray(samples["index"]) for _, samples in cells])
        seed = np.concatenate([np.full(len(samples["index"]), number) for number, samples in cells])
        copied = np.concatenate([np.asarray(samples["copies"]) > 0 for _, samples in cells])
        for key, text in MEASURES.items():
            answers = np.concatenate([np.asarray(samples[key], dtype=np.float64) for _, samples in cells])
            difference = effect(image, seed, copied, answers, level)
            if difference is None:
                continue
            factors = {name: value for name, value in place if name != dose}
            dose_value = float(dict(place)[dose])
            made.append(
                ImageDifference(
                    measure=text, factors=factors, dose=dose_value, seeds=sorted({number for number, _ in cells}),
                    images=difference.images, difference=difference.difference, low=difference.low, high=difference.high,
                    sentence=_sentence(text, difference, factors, dose_value, varying, len(cells)),
                )
            )  # fmt: skip
    return made


def effect(
    image: npt.NDArray[Any], seed: npt.NDArray[Any], copied: npt.NDArray[np.bool_], answers: Values, level: float = 0.95
) -> ImageEffect | None:
    """Return the effect of `copied` on `answers` with image and seed held fixed; None where no image was met on both sides.

    All are (N,), one for each image and seed. Least squares with a constant for each image and each seed; the interval is
    robust to what the answers to one image have in common (clustered by image, Liang and Zeger 1986).
    """
    from scipy import stats

    _, image = np.unique(image, return_inverse=True)
    sides = np.zeros((len(image), 2), dtype=np.bool_)
    sides[image, copied.astype(int)] = True
    both: npt.NDArray[np.bool_] = np.take(sides[:, 0] & sides[:, 1], image)
    _, image = np.unique(image[both], return_inverse=True)
    _, seed = np.unique(seed[both], return_inverse=True)
    images = len(np.unique(image))
    if images < 2:
        return None
    x, y = (_without_means(values[both].astype(np.float64), image, seed) for values in (copied, answers))
    weight = float(x @ x)
    if weight < 1e-9:  # the seeds alone tell who was copied
        return None
    difference = float(x @ y) / weight
    scores = np.bincount(image, weights=x * (y - difference * x))
    error = float(np.sqrt(scores @ scores * images / (images - 1))) / weight
    half = float(stats.t.ppf((1 + level) / 2, images - 1)) * error
    return ImageEffect(difference, difference - half, difference + half, images)


def _without_means(values: Values, image: npt.NDArray[Any], seed: npt.NDArray[Any]) -> Values:
    for _ in range(SWEEPS):
        before = values
        for group in (image, seed):
            values = values - (np.bincount(group, weights=values) / np.bincount(group))[group]
        if np.abs(values - before).max() < 1e-12:
            break
    return values


def _sentence(
    text: str, difference: ImageEffect, factors: Mapping[str, Any], dose: float, varying: Sequence[str], seeds: int
) -> str:
    place = f"{place_of(factors, dose, varying)}, {difference.images} images in {seeds} seeds (interval over images)."
    if difference.low == difference.high == 0:
        return f"On the same training images {text} was the same where they were duplicated{place}"
    if difference.low <= 0 <= difference.high:
        signed, least, most = (
            write("clean_accuracy", value, signed=not i)
            for i, value in enumerate((difference.difference, difference.low, difference.high))
        )
        return (
            f"On the same training images {text} is undecided: it differed by {signed} points [{least}, {most}] where they "
            f"were duplicated{place}"
        )
    low, high, sign = (
        (difference.low, difference.high, "higher")
        if difference.difference >= 0
        else (-difference.high, -difference.low, "lower")
    )
    numbers = [write("clean_accuracy", value) for value in (abs(difference.difference), low, high)]
    return (
        f"On the same training images {text} was {numbers[0]} points [{numbers[1]}, {numbers[2]}] {sign} where they were "
        f"duplicated{place}"
    )
