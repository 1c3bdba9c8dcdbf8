"""TRADES: be right on clean images, and answer nearby images as the clean ones."""

from __future__ import annotations

from torch import Tensor, nn

from robustdup.rng import SampleRng
from robustdup.training.inner import InnerAttack
from robustdup.training.objectives.terms import Outcome, RowLoss, correct, cross_entropy, divergence


def trades(
    model: nn.Module, images: Tensor, labels: Tensor, *, attack: InnerAttack, rng: SampleRng, beta: float = 6.0
) -> Outcome:  # fmt: skip
    """Return CE(clean) + beta * KL(clean answer || adversarial answer); the inner attack maximises that divergence.

    Clean and adversarial images are two passes with their own batch statistics, as in the authors' code. "correct" is
    of the adversarial images, "correct_clean" of the clean ones. https://arxiv.org/abs/1901.08573
    """
    adv_images = attack(images, labels, drift_from(attack, images))
    clean, adv = model(images), model(adv_images)
    loss = trades_loss(clean, adv, labels, beta, attack.label_smoothing)
    return loss, {"correct": correct(adv, labels), "correct_clean": correct(clean, labels)}


def trades_loss(clean: Tensor, adv: Tensor, labels: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """Return TRADES' loss (N,) of clean and adversarial logits (N, K)."""
    return cross_entropy(clean, labels, smoothing) + beta * divergence(clean.softmax(dim=1), adv)


def drift_from(attack: InnerAttack, images: Tensor) -> RowLoss:
    """Return what TRADES' inner attack maximises: how far answers drift from those at `images`."""
    return lambda logits, rows: divergence(attack.logits(images)[rows].softmax(dim=1), logits)
