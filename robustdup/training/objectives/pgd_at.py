"""Adversarial training of Madry et al.: cross-entropy on what the inner attack makes of the images."""

from __future__ import annotations

from torch import Tensor, nn

from robustdup.rng import SampleRng
from robustdup.training.inner import InnerAttack
from robustdup.training.objectives.terms import Outcome, correct, cross_entropy


def pgd_at(model: nn.Module, images: Tensor, labels: Tensor, *, attack: InnerAttack, rng: SampleRng) -> Outcome:
    """Return the cross-entropy of the adversarial images, and "correct" on them. https://arxiv.org/abs/1706.06083"""
    logits = model(attack(images, labels))
    return cross_entropy(logits, labels, attack.label_smoothing), {"correct": correct(logits, labels)}
