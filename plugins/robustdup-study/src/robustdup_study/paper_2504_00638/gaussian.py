"""The Gaussian illustration of arXiv 2504.00638: a support vector machine on two classes in the plane, with duplicates.

Published: 100 points a class, one draw, accuracy on the points that were trained on. Here besides: accuracy on fresh points,
and several seeds, each compared with itself without duplicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import typer

from robustdup.errors import UserError
from robustdup.records import atomic_path
from robustdup_study.statistics import MeanEstimate, mean_estimate

Points = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

MEANS, COVARIANCE, EACH = ((0.0, 0.0), (1.0, 1.0)), ((1.0, 0.5), (0.5, 1.0)), 100
FRESH = 1000  # fresh points of each class
SHARES = {"balanced": 0.5, "80/20": 0.8}  # of the draws that fall on the second class
DOSES = {"balanced": tuple(range(0, 201, 20)), "80/20": tuple(range(0, 401, 40))}


@dataclass(frozen=True)
class Line:
    """Accuracies at one dose: means over seeds, and the paired difference on fresh points to no duplicates."""

    scheme: str
    added: int
    original: float
    duplicated: float
    fresh: float
    difference: MeanEstimate


def command(
    seeds: int = typer.Option(10, "--seeds", help="Number of seeds.", min=1),
    out: str = typer.Option("gaussian.png", "--out", help="Where the picture goes: .png, .pdf or .svg."),
) -> int:
    """The Gaussian illustration of arXiv 2504.00638: an SVM on the plane with duplicates, over several seeds, and its picture."""
    if Path(out).suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--out must end in .png, .pdf or .svg, got {out!r}.", code="bad-option")
    lines = run(range(seeds))
    picture(lines, 0, Path(out))
    for sentence in sentences(lines):
        print(sentence)
    print(f"Picture: {out}")
    return 0


def draw(rng: np.random.Generator, each: int) -> tuple[Points, Labels]:
    """Return points (2 each, 2) and their classes -1 and +1."""
    points = np.concatenate([rng.multivariate_normal(mean, COVARIANCE, each) for mean in MEANS])
    return points, np.repeat(np.array([-1, 1]), each)


def duplicates(rng: np.random.Generator, labels: Labels, added: int, share: float) -> npt.NDArray[np.int64]:
    """Return the rows (added,) that are duplicated, drawn with replacement: `share` of the weight on class +1."""
    weights = np.where(labels == 1, share / (labels == 1).sum(), (1 - share) / (labels == -1).sum())
    return rng.choice(len(labels), size=added, replace=True, p=weights)


def fit(points: Points, labels: Labels) -> Any:
    """Return the published classifier: scikit-learn's SVC with an RBF kernel and gamma "auto"."""
    from sklearn.svm import SVC

    return SVC(kernel="rbf", gamma="auto").fit(points, labels)


def run(seeds: Sequence[int]) -> list[Line]:
    """Return the accuracies of both schemes at every published dose over these seeds."""
    scores_of: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        points, labels = draw(rng, EACH)
        fresh, fresh_labels = draw(rng, FRESH)
        for scheme, share in SHARES.items():
            rows = duplicates(np.random.default_rng([seed, 1]), labels, DOSES[scheme][-1], share)
            for added in DOSES[scheme]:
                chosen = np.concatenate([np.arange(len(labels)), rows[:added]])  # a higher dose contains the lower ones
                model = fit(points[chosen], labels[chosen])
                scores_of.setdefault((scheme, added), []).append(
                    (
                        model.score(points, labels), model.score(points[chosen], labels[chosen]),
                        model.score(fresh, fresh_labels),
                    )
                )  # fmt: skip
    lines = []
    for (scheme, added), scores in scores_of.items():
        table = np.array(scores)
        difference = mean_estimate(table[:, 2] - np.array(scores_of[scheme, 0])[:, 2])
        original, duplicated, fresh_mean = (float(value) for value in table.mean(axis=0))
        lines.append(Line(scheme, added, original, duplicated, fresh_mean, difference))
    return lines


def sentences(lines: Sequence[Line]) -> list[str]:
    """Return what the largest dose of each scheme did to accuracy on fresh points."""
    texts = []
    for scheme in SHARES:
        last = [line for line in lines if line.scheme == scheme][-1]
        difference = last.difference
        text = f"{scheme}, {last.added} duplicates of {2 * EACH} points: accuracy on fresh points changed by "
        text += f"{100 * difference.mean:+z.2f} points"
        if difference.low is not None and difference.high is not None:
            text += f" [{100 * difference.low:+z.2f}, {100 * difference.high:+z.2f}]"
        texts.append(f"{text}, {difference.n} paired seed{'s' * (difference.n > 1)}.".replace("-", "−"))
    return texts


def picture(lines: Sequence[Line], seed: int, path: Path) -> None:
    """Draw points, duplicates and both decision boundaries of one seed, and accuracy over dose; written whole or not."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    for column, (scheme, share) in enumerate(SHARES.items()):
        rng = np.random.default_rng(seed)
        points, labels = draw(rng, EACH)
        rows = duplicates(np.random.default_rng([seed, 1]), labels, DOSES[scheme][-1], share)
        _boundaries(axes[0][column], points, labels, rows)
        axes[0][column].set_title(f"{scheme}: {len(rows)} duplicates of {len(labels)} points")
        chosen = [line for line in lines if line.scheme == scheme]
        _curves(axes[1][column], chosen)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=150)


def _boundaries(axis: Any, points: Points, labels: Labels, rows: npt.NDArray[np.int64]) -> None:
    many = np.bincount(rows, minlength=len(labels))
    grid = np.stack(np.meshgrid(np.linspace(-3, 4, 200), np.linspace(-3, 4, 200)), axis=-1)
    chosen = np.concatenate([np.arange(len(labels)), rows])
    for model, colour in (
        (fit(points, labels), "black"),
        (fit(points[chosen], labels[chosen]), "tab:red"),
    ):
        heights = model.decision_function(grid.reshape(-1, 2)).reshape(grid.shape[:2])
        axis.contour(grid[..., 0], grid[..., 1], heights, levels=[0], colors=[colour])
    for value, colour in ((-1, "tab:blue"), (1, "tab:orange")):
        of_class = labels == value
        axis.scatter(*points[of_class].T, s=12, color=colour, label=f"class {value:+d}")
        twice = of_class & (many > 0)
        axis.scatter(*points[twice].T, s=12 + 25 * many[twice], facecolors="none", edgecolors=colour)
    axis.plot([], [], color="black", label="without duplicates")
    axis.plot([], [], color="tab:red", label="with duplicates")
    axis.legend(fontsize=8, loc="lower right")


def _curves(axis: Any, lines: Sequence[Line]) -> None:
    added = [line.added for line in lines]
    axis.plot(added, [100 * line.duplicated for line in lines], label="on the duplicated set", color="tab:green")
    axis.plot(added, [100 * line.original for line in lines], label="on the original points", color="tab:purple")
    fresh = np.array([100 * line.fresh for line in lines])
    axis.plot(added, fresh, label="on fresh points", color="black")
    start = 100 * lines[0].fresh
    low = [start + 100 * (0.0 if line.difference.low is None else line.difference.low) for line in lines]
    high = [start + 100 * (0.0 if line.difference.high is None else line.difference.high) for line in lines]
    if len(lines) and lines[-1].difference.n > 1:
        axis.fill_between(added, low, high, color="black", alpha=0.15, label="95% of the paired change")
    axis.set_xlabel("duplicated points")
    axis.set_ylabel("accuracy (%)")
    axis.legend(fontsize=8)
