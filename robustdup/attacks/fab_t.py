"""FAB-T: FAB towards one class at a time, the likeliest first. The third attack of AutoAttack.

The order of the targets comes from the clean logits, computed once; the published code computes them again for each
target and restart, and checks each result once more (1,829 forward passes for a surviving point against 1,801 here; 900
backward passes in both). Everything else is as in `robustdup.attacks.fab`, with its deviations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.fab import Linearise, Nearest, check_classes, check_settings, search
from robustdup.attacks.passes import input_gradient
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel


def fab_t(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng,
    targets: int = 9, steps: int = 100, restarts: int = 1, alpha_max: float = 0.1, eta: float = 1.05,
    beta: float = 0.9, stop_within_eps: bool = True,
) -> Tensor:  # fmt: skip
    """Search the nearest adversarial example towards each of the `targets` classes of largest clean logit.

    Images (N, C, H, W) in [0, 1], labels (N,) -> images of the same shape inside the box, as from `fab`, with its
    options. With fewer than `targets` + 1 classes all others are targets. A step costs two forward passes and one
    backward pass, whatever the number of classes. Follows https://arxiv.org/abs/2003.01690, section 5. Raises UserError
    for a model of one class, or a setting that cannot work.
    """
    check_settings("fab-t", targets=targets, steps=steps, restarts=restarts, alpha_max=alpha_max, eta=eta, beta=beta)
    nearest = Nearest.none(images)
    if len(images) == 0:
        return nearest.images
    with torch.no_grad():
        logits = model(images)
    classes = check_classes("fab-t", logits)
    order = logits.scatter(1, labels[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)
    for place in range(min(targets, classes - 1)):
        search(
            model, images, labels, threat, toward(model, labels, order[:, place]), nearest,
            rng=rng.fold("target").fold(place), steps=steps, restarts=restarts, alpha_max=alpha_max, eta=eta, beta=beta,
            stop_within_eps=stop_within_eps,
        )  # fmt: skip
    return nearest.result(images, threat)


def fab_t_cost(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (forward, backward) passes of a surviving point on a model of more classes than targets."""
    walked = options["targets"] * options["restarts"] * options["steps"]
    return 1 + 2 * walked, walked


def toward(model: nn.Module, labels: Tensor, targets: Tensor) -> Linearise:
    """Return the function that linearises target logit minus label logit; `labels` and `targets` (N,) of all rows."""

    def linearise(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        label, target = labels[rows, None], targets[rows, None]

        def gap(logits: Tensor, part: slice) -> Tensor:
            return (logits.gather(1, target[part]) - logits.gather(1, label[part]))[:, 0]

        return input_gradient(model, points, gap)

    return linearise
