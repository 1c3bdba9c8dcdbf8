"""APGD-T: APGD on the targeted difference-of-logits ratio, for one target class after the other.

Follows https://arxiv.org/abs/2003.01690 in the arithmetic of https://github.com/fra31/auto-attack. All samples still correct
take their most likely wrong class first, then the next. The order comes from one pass over the clean images, where the
published code asks anew for every target; a sample that this pass finds misclassified is done. For the rest see `apgd`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.apgd import Settings, apgd_cost, strongest_of_runs
from robustdup.attacks.expectation import mean_logits
from robustdup.attacks.losses import cw_targeted, dlr_targeted, misclassified
from robustdup.errors import AttackWarning, check_counts
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

# Logits (M, K), the samples (M,) and the classes (M,) to aim at -> one value each.
TargetLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def apgd_t(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    rng: SampleRng,
    targets: int = 9,
    steps: int = 100,
    restarts: int = 1,
    eot: int = 1,
    rho: float = 0.75,
    larger_eps: bool = False,
) -> Tensor:
    """Run APGD on the targeted DLR, towards each sample's most likely wrong classes one by one.

    https://arxiv.org/abs/2003.01690, equation 7. Warns (AttackWarning) and takes the targeted margin where the model has
    fewer than four classes. Shapes, errors and the other options are those of `apgd`.

    Args:
        targets: wrong classes to aim at; all where there are fewer.
    """
    adv_images, (rows, order, loss) = images.clone(), targeted_loss("apgd-t", model, images, labels, targets, eot)
    if len(rows) == 0:
        return adv_images
    settings = Settings(steps, restarts, eot, rho, larger_eps)

    def run_loss(logits: Tensor, samples: Tensor, runs: Tensor) -> Tensor:
        return loss(logits, samples, order[samples, runs // restarts])

    adv_images[rows] = strongest_of_runs(
        "apgd-t", model, images[rows], labels[rows], threat, run_loss, order.shape[1] * restarts, rng=rng[rows],
        settings=settings,
    )  # fmt: skip
    return adv_images


def apgd_t_cost(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (forward, backward) passes that a surviving sample costs where the model has enough classes."""
    forward, backward = apgd_cost(options)
    return options["eot"] + options["targets"] * forward, options["targets"] * backward


def targeted_loss(
    name: str, model: nn.Module, images: Tensor, labels: Tensor, targets: int, eot: int = 1
) -> tuple[Tensor, Tensor, TargetLoss]:
    """Return the samples (n,) that are correct on the clean image, their wrong classes (n, T), and the targeted DLR.

    The order of the classes comes from `eot` passes over the images (N, C, H, W); the loss takes indices among those samples,
    which are all of them under EOT. Warns (AttackWarning), for the attack `name`, and takes the targeted margin where there
    are fewer than four classes. Raises UserError for fewer than one target.
    """
    check_counts(name, targets=targets)
    if len(images) == 0:
        return labels.new_empty(0), labels.new_empty(0, targets), lambda logits, *_: logits[:, 0]
    logits = mean_logits(model, images, eot)
    rows = (~misclassified(logits, labels) | (eot > 1)).nonzero()[:, 0]
    correct, order = labels[rows], target_order(logits[rows], labels[rows], targets)
    targeted = dlr_targeted
    if logits.shape[1] < 4:
        targeted = cw_targeted
        warnings.warn(
            f"{name}: targeted DLR needs at least 4 classes, the model has {logits.shape[1]}; "
            "the targeted margin was used instead.",
            AttackWarning,
            stacklevel=3,
        )

    return rows, order, lambda logits, samples, target: targeted(logits, correct[samples], target)


def target_order(logits: Tensor, labels: Tensor, targets: int) -> Tensor:
    """Return the wrong classes of each sample, most likely first, at most `targets` of them: (N, K), (N,) -> (N, T)."""
    ranked = logits.scatter(1, labels[:, None], torch.inf).sort(dim=1, stable=True).indices
    return ranked.flip(1)[:, 1 : targets + 1]
