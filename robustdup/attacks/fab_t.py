"""FAB-T: FAB towards one class at a time, the likeliest first. The third attack of AutoAttack.

The order of the targets comes from the clean logits, computed once; the published code computes them again for each
target and restart, and checks each result once more (1,829 forward passes for a surviving sample against 1,801 here; 900
backward passes in both). Where few samples are left, walks towards several classes are made side by side, to the same bits
(see `robustdup.attacks.ahead`). Everything else is as in `robustdup.attacks.fab`, with its deviations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.ahead import ahead, room, take
from robustdup.attacks.fab import Linearise, Settings, check_classes, search, walk
from robustdup.attacks.nearest import Nearest
from robustdup.attacks.passes import input_gradient
from robustdup.errors import check_counts
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel


def fab_t(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    rng: SampleRng,
    targets: int = 9,
    steps: int = 100,
    restarts: int = 1,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    stop_within_eps: bool = True,
) -> Tensor:
    """Search the nearest adversarial image towards each of the classes of largest clean logit.

    A step costs two forward passes and one backward pass, whatever the number of classes. https://arxiv.org/abs/2003.01690,
    section 5. Shapes, errors and the other options are those of `fab`.

    Args:
        targets: wrong classes to walk towards; all where there are fewer.
    """
    settings = Settings(steps, restarts, alpha_max, eta, beta, stop_within_eps)
    check_counts("fab-t", targets=targets)
    settings.check("fab-t")
    nearest = Nearest.none(images)
    if len(images) == 0:
        return nearest.images
    with torch.no_grad():
        logits = model(images)
    classes = check_classes("fab-t", logits)
    order = logits.scatter(1, labels[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank, last = 0, min(targets, classes - 1)
    while rank < last:
        index = nearest.searched(threat, stop_within_eps=stop_within_eps)
        beside = min(room(model, len(index)), last - rank) if restarts == 1 else 1
        if beside > 1:
            _walk_beside(model, images, labels, threat, order[:, rank : rank + beside], index, nearest, settings)
        else:
            linearise = toward(model, labels, order[:, rank])
            streams = rng.fold("target").fold(rank)
            search(model, images, labels, threat, linearise, nearest, rng=streams, settings=settings)
        rank += beside
    return nearest.result(images, threat)


def _walk_beside(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    order: Tensor,
    index: Tensor,
    nearest: Nearest,
    settings: Settings,
) -> None:
    """Walk from the clean images of the samples `index` (n,) towards all classes of `order` (N, T) at once."""
    count, beside = len(index), order.shape[1]
    samples = index.repeat(beside)
    clean, own_labels, rows = images[samples], labels[samples], torch.arange(len(samples), device=index.device)
    linearise, apart = toward(model, own_labels, order[index].T.flatten()), Nearest.none(clean)
    with ahead(model):
        looks = walk(model, clean, own_labels, threat, clean, rows, linearise, apart, settings, beside=beside)
    rows = rows[:count]  # of the samples that are still searched, in the walk of each rank
    for _ in range(beside):
        take(model, looks[rows], [True, False] * settings.steps)
        index = samples[rows]
        nearest.offer(index, apart.images[rows], apart.distance[rows], apart.distance[rows].isfinite())
        nearest.keep_last(index, apart.images[rows])
        if settings.stop_within_eps:
            rows = rows[nearest.distance[index] > threat.radius]
        rows = rows + count


def fab_t_cost(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (forward, backward) passes of a surviving sample on a model of more classes than targets."""
    walked = options["targets"] * options["restarts"] * options["steps"]
    return 1 + 2 * walked, walked


def toward(model: nn.Module, labels: Tensor, targets: Tensor) -> Linearise:
    """Return the function that linearises target logit minus label logit; `labels` and `targets` (N,) of all samples."""

    def linearise(iterates: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        label, target = labels[index, None], targets[index, None]

        def gap(logits: Tensor, part: slice) -> Tensor:
            return (logits.gather(1, target[part]) - logits.gather(1, label[part]))[:, 0]

        return input_gradient(model, iterates, gap)

    return linearise
