"""Objectives of one term or two: cross-entropy on clean or adversarial images, and how far answers may differ between them.

Each is a plain function on the contract of `robustdup.training`, with the paper's symbols for its options.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustdup.attacks.noise import ball_noise
from robustdup.errors import UserError
from robustdup.rng import SampleRng
from robustdup.threat import parse_eps
from robustdup.training.inner import InnerAttack
from robustdup.training.pgd import RowLoss, check_step, direction
from robustdup.training.updates import LossAndMetrics

Objective = TypeVar("Objective", bound=Callable[..., LossAndMetrics])


def takes_mixed_labels(objective: Objective) -> Objective:
    """Mark an objective whose labels may be shares of classes, float (N, K), as CutMix and MixUp make them."""
    objective.takes_mixed_labels = True  # type: ignore[attr-defined]
    return objective


@takes_mixed_labels
def standard(
    model: nn.Module, images: Tensor, labels: Tensor, *, attack: InnerAttack, rng: SampleRng
) -> LossAndMetrics:
    """Return the cross-entropy of the images (N, C, H, W), and "correct" on them."""
    logits = model(images)
    return cross_entropy(logits, labels, attack.label_smoothing), {"correct": correct(logits, labels)}


@takes_mixed_labels
def pgd_at(model: nn.Module, images: Tensor, labels: Tensor, *, attack: InnerAttack, rng: SampleRng) -> LossAndMetrics:
    """Return the cross-entropy of the adversarial images, and "correct" on them. https://arxiv.org/abs/1706.06083"""
    logits = model(attack(images, labels))
    return cross_entropy(logits, labels, attack.label_smoothing), {"correct": correct(logits, labels)}


@takes_mixed_labels
def trades(
    model: nn.Module, images: Tensor, labels: Tensor, *, attack: InnerAttack, rng: SampleRng, beta: float = 6.0
) -> LossAndMetrics:
    """Return CE(clean) + beta * KL(clean answer || adversarial answer); the inner attack maximises that divergence.

    Clean and adversarial images are two passes with their own batch statistics. The loss is that of the authors' code; it
    passes the clean images once more, so that its running statistics are two thirds clean, here one half. "correct" is of
    the adversarial images, "correct_clean" of the clean ones. https://arxiv.org/abs/1901.08573
    """
    adv_images = attack(images, labels, divergence_from_clean(attack, images))
    clean, adv_logits = model(images), model(adv_images)
    loss = trades_loss(clean, adv_logits, labels, beta, attack.label_smoothing)
    return loss, {"correct": correct(adv_logits, labels), "correct_clean": correct(clean, labels)}


def trades_loss(clean: Tensor, adv_logits: Tensor, labels: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """Return TRADES' loss (N,) of clean and adversarial logits (N, K)."""
    return cross_entropy(clean, labels, smoothing) + beta * divergence(clean.softmax(dim=1), adv_logits)


def divergence_from_clean(attack: InnerAttack, images: Tensor) -> RowLoss:
    """Return what TRADES' inner attack maximises: KL(clean answer || answer), the clean answers being those at `images`."""
    return lambda logits, rows: divergence(attack.logits(images)[rows].softmax(dim=1), logits)


def mart(
    model: nn.Module, images: Tensor, labels: Tensor, *, attack: InnerAttack, rng: SampleRng, beta: float = 5.0
) -> LossAndMetrics:
    """Return BCE(adversarial) + beta * KL(clean answer || adversarial answer) * (1 - clean probability of the label).

    Clean and adversarial images are two passes with their own batch statistics, as in the authors' code. "correct" is
    of the adversarial images, "correct_clean" of the clean ones. https://openreview.net/forum?id=rklOg6EFwS
    """
    adv_images = attack(images, labels)
    clean, adv_logits = model(images), model(adv_images)
    loss = mart_loss(clean, adv_logits, labels, beta, attack.label_smoothing)
    return loss, {"correct": correct(adv_logits, labels), "correct_clean": correct(clean, labels)}


def mart_loss(clean: Tensor, adv_logits: Tensor, labels: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """Return MART's loss (N,) of clean and adversarial logits (N, K).

    BCE is the cross-entropy plus -log(1.0001 - p), p the largest probability of a wrong class: the 0.0001 is the authors'
    (https://github.com/YisenWang/MART) and keeps it finite. Label smoothing is for the cross-entropy alone.
    """
    wrong = adv_logits.softmax(dim=1).scatter(1, labels[:, None], 0.0).amax(dim=1)
    boosted = cross_entropy(adv_logits, labels, smoothing) - torch.log(1.0001 - wrong)
    answer = clean.softmax(dim=1)
    unsure = 1 - answer.gather(1, labels[:, None])[:, 0]
    return boosted + beta * divergence(answer, adv_logits) * unsure


def check_beta(*, beta: float, **_: Any) -> None:
    """Raise UserError for a weight of the second term that is negative."""
    if beta < 0:
        raise UserError(
            f"The objective's beta, the weight of its second term, must be 0 or more; got {beta:g}.", code="bad-value"
        )


@takes_mixed_labels
def n_fgsm(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    attack: InnerAttack,
    rng: SampleRng,
    k: float = 2.0,
    step_size: str | float | None = None,
) -> LossAndMetrics:
    """Return the cross-entropy of images moved by uniform noise of k * eps and one step of `step_size` (eps if None).

    Noise and step stay in the box but not in the ball: the paper finds that projecting brings catastrophic overfitting
    back. The gradient is that of the inner network, in its BatchNorm mode; the inner attack itself is not run. The paper
    is about Linf; in L2 and L1 the noise is uniform in the ball of k * eps, and the step has length `step_size` in the
    norm. https://arxiv.org/abs/2202.01181
    """
    step = attack.threat.radius if step_size is None else float(parse_eps(step_size))

    def moved() -> Tensor:
        noise = ball_noise(images, attack.threat, rng.fold("n_fgsm"))
        noisy = (images + k * noise).clamp_(0, 1)
        up = direction(images, attack.gradient(noisy, labels), attack.threat)
        return noisy.add_(up, alpha=step).clamp_(0, 1)

    logits = model(attack.once("n_fgsm", moved, images, labels))
    return cross_entropy(logits, labels, attack.label_smoothing), {"correct": correct(logits, labels)}


def check_n_fgsm(*, k: float, step_size: str | float | None, **_: Any) -> None:
    """Raise UserError for noise or a step that cannot be."""
    if k < 0:
        raise UserError(f"n_fgsm: k, the noise in units of eps, must be 0 or more; got {k:g}.", code="bad-value")
    check_step(step_size)


@takes_mixed_labels
def free(
    model: nn.Module, images: Tensor, labels: Tensor, *, attack: InnerAttack, rng: SampleRng, replays: int = 8
) -> LossAndMetrics:
    """Return the cross-entropy of images that the update rule has moved already, `replays` times on each batch.

    The inner attack is not used: the backward pass that trains the weights also moves the images
    (`robustdup.training.updates.Free`, which `replays` is for). https://arxiv.org/abs/1904.12843
    """
    logits = model(images)
    return cross_entropy(logits, labels, attack.label_smoothing), {"correct": correct(logits, labels)}


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the cross-entropy (N,) with labels (N,), or shares of classes (N, K), smoothed over all classes: https://arxiv.org/abs/1512.00567."""
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


def divergence(target: Tensor, logits: Tensor) -> Tensor:
    """Return KL(target || softmax(logits)) in nats: probabilities (N, K), logits (N, K) -> (N,)."""
    return F.kl_div(logits.log_softmax(dim=1), target, reduction="none").sum(dim=1)


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 1.0 where the largest logit is the label's (of mixed labels, of the larger share), else 0.0: (N,)."""
    return (logits.detach().argmax(dim=1) == (labels if labels.ndim == 1 else labels.argmax(dim=1))).float()
