"""What a gradient attack maximises: each loss takes logits (N, K) and true labels (N,) and returns one value a row.

A row's value has the same bits whatever the other rows are: all reductions run along the classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustdup.errors import UserError, unknown

Loss = Callable[[Tensor, Tensor], Tensor]


def ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy: (N, K), (N,) -> (N,), 0 or above."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the true logit minus the best other one, above 0 where classified correctly: (N, K), (N,) -> (N,)."""
    true = logits.gather(1, labels[:, None])[:, 0]
    return true - logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)


def cw(logits: Tensor, labels: Tensor) -> Tensor:
    """Return minus the margin, above 0 where misclassified: (N, K), (N,) -> (N,). Users name this loss 'margin'.

    The loss f6 of Carlini and Wagner without its floor, https://arxiv.org/abs/1608.04644.
    """
    return -margin(logits, labels)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the difference-of-logits ratio: minus the margin over the distance of the first to the third logit.

    (N, K), (N,) -> (N,), unchanged when the logits are shifted or scaled. Raises UserError for fewer than three
    classes. Follows https://arxiv.org/abs/2003.01690, equation 6.
    """
    if logits.shape[1] < 3:
        raise UserError(
            f"The loss 'dlr' needs at least 3 classes, the model has {logits.shape[1]}. Use loss='margin'.",
            code="too-few-classes",
        )
    top = logits.topk(3, dim=1).values
    return cw(logits, labels) / (top[:, 0] - top[:, 2]).clamp(min=1e-12)


def cw_targeted(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return the target's logit minus the true one: (N, K), (N,), (N,) -> (N,)."""
    return (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None]))[:, 0]


def dlr_targeted(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """Return `cw_targeted` over the distance of the first logit to the middle of the third and fourth.

    (N, K), (N,), (N,) -> (N,). Raises UserError for fewer than four classes. Follows https://arxiv.org/abs/2003.01690,
    equation 7.
    """
    if logits.shape[1] < 4:
        raise UserError(
            f"The targeted DLR loss needs at least 4 classes, the model has {logits.shape[1]}.", code="too-few-classes"
        )
    top = logits.topk(4, dim=1).values
    return cw_targeted(logits, labels, targets) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12)


def probability_cw(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the best other probability minus the true one, in [-1, 1]: (N, K), (N,) -> (N,)."""
    return cw(logits.softmax(dim=1), labels)


LOSSES: dict[str, Loss] = {"ce": ce, "margin": cw, "dlr": dlr, "probability-margin": probability_cw}


def find_loss(loss: str | Loss) -> Loss:
    """Return the loss behind a name of `LOSSES`; a function passes as it is. Raises UserError with the nearest name."""
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise unknown("loss", str(loss), LOSSES)
    return LOSSES[loss]


def misclassified(logits: Tensor, labels: Tensor) -> Tensor:
    """Return `is_adv`, which samples are misclassified: (N, K), (N,) -> (N,) bool. Logits that are not finite count as wrong."""
    return (logits.argmax(dim=1) != labels) | ~logits.isfinite().all(dim=1)


def fools(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Ask a model, without a gradient, which images (N, ...) it misclassifies, and return that as (N,) bool."""
    with torch.no_grad():
        return misclassified(model(images), labels)
