"""FAB-T: FAB towards one class at a time, the likeliest first. The third attack of AutoAttack.

The order of the targets comes from the clean logits, computed once; the published code computes them again for each
target and restart, and checks each result once more (1,829 forward passes for a surviving sample against 1,801 here; 900
backward passes in both). Everything else is as in `robustdup.attacks.fab`, with its deviations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.fab import Linearise, Settings, check_classes, search
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
    for rank in range(min(targets, classes - 1)):
        linearise = toward(model, labels, order[:, rank])
        streams = rng.fold("target").fold(rank)
        search(model, images, labels, threat, linearise, nearest, rng=streams, settings=settings)
    return nearest.result(images, threat)


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
