"""Free adversarial training: the objective of the update rule of that name."""

from __future__ import annotations

from torch import Tensor, nn

from robustdup.rng import SampleRng
from robustdup.training.inner import InnerAttack
from robustdup.training.objectives.terms import Outcome, correct, cross_entropy


def free(
    model: nn.Module, images: Tensor, labels: Tensor, *, attack: InnerAttack, rng: SampleRng, replays: int = 8
) -> Outcome:  # fmt: skip
    """Return the cross-entropy of images that the update rule has moved already, `replays` times on each batch.

    The inner attack is not used: the backward pass that trains the weights also moves the images
    (`robustdup.training.updates.Free`, which `replays` is for). https://arxiv.org/abs/1904.12843
    """
    logits = model(images)
    return cross_entropy(logits, labels, attack.label_smoothing), {"correct": correct(logits, labels)}
