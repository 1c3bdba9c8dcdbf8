"""Standard training: cross-entropy on the images as they are."""

from __future__ import annotations

from torch import Tensor, nn

from robustdup.rng import SampleRng
from robustdup.training.inner import InnerAttack
from robustdup.training.objectives.terms import Outcome, correct, cross_entropy


def standard(model: nn.Module, images: Tensor, labels: Tensor, *, attack: InnerAttack, rng: SampleRng) -> Outcome:
    """Return the cross-entropy of the images (N, C, H, W), and "correct" on them."""
    logits = model(images)
    return cross_entropy(logits, labels, attack.label_smoothing), {"correct": correct(logits, labels)}
