"""TRADES: be right on clean images, and answer nearby images as the clean ones."""

from __future__ import annotations

from torch import Tensor, nn

from robustdup.rng import SampleRng
from robustdup.training.inner import InnerAttack
from robustdup.training.objectives.terms import Outcome, correct, cross_entropy, divergence


def trades(
    model: nn.Module, images: Tensor, labels: Tensor, *, attack: InnerAttack, rng: SampleRng, beta: float = 6.0
) -> Outcome:
    """Return CE(clean) + beta * KL(clean answer || adversarial answer); the inner attack maximises that divergence.

    Clean and adversarial images are two passes with their own batch statistics, as in the authors' code. "correct" is
    of the adversarial images, "correct_clean" of the clean ones. https://arxiv.org/abs/1901.08573
    """

    def drift(logits: Tensor, rows: slice) -> Tensor:
        return divergence(attack.logits(images)[rows].softmax(dim=1), logits)

    adv_images = attack(images, labels, drift)
    clean, adv = model(images), model(adv_images)
    loss = cross_entropy(clean, labels, attack.label_smoothing) + beta * divergence(clean.softmax(dim=1), adv)
    return loss, {"correct": correct(adv, labels), "correct_clean": correct(clean, labels)}
