"""Terms that several objectives are made of; each gives one value a sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from robustdup.errors import UserError

Metrics = dict[str, Tensor]
Outcome = tuple[Tensor, Metrics]
RowLoss = Callable[[Tensor, slice], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy (N,), with the labels smoothed over all classes: https://arxiv.org/abs/1512.00567."""
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


def divergence(target: Tensor, logits: Tensor) -> Tensor:
    """Return KL(target || softmax(logits)) in nats: probabilities (N, K), logits (N, K) -> (N,)."""
    return F.kl_div(logits.log_softmax(dim=1), target, reduction="none").sum(dim=1)


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 1.0 where the largest logit is the label's, else 0.0: (N,)."""
    return (logits.detach().argmax(dim=1) == labels).float()


def check_beta(*, beta: float, **_: Any) -> None:
    """Raise UserError for a weight of the second term that is negative."""
    if beta < 0:
        raise UserError(f"The objective's beta, the weight of its second term, must be 0 or more; got {beta:g}.")
