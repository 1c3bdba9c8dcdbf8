"""MART: adversarial training that tells misclassified images apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustdup.rng import SampleRng
from robustdup.training.inner import InnerAttack
from robustdup.training.objectives.terms import Outcome, correct, cross_entropy, divergence


def mart(
    model: nn.Module, images: Tensor, labels: Tensor, *, attack: InnerAttack, rng: SampleRng, beta: float = 5.0
) -> Outcome:  # fmt: skip
    """Return BCE(adversarial) + beta * KL(clean answer || adversarial answer) * (1 - clean probability of the label).

    Clean and adversarial images are two passes with their own batch statistics, as in the authors' code. "correct" is
    of the adversarial images, "correct_clean" of the clean ones. https://openreview.net/forum?id=rklOg6EFwS
    """
    adv_images = attack(images, labels)
    clean, adv = model(images), model(adv_images)
    loss = mart_loss(clean, adv, labels, beta, attack.label_smoothing)
    return loss, {"correct": correct(adv, labels), "correct_clean": correct(clean, labels)}


def mart_loss(clean: Tensor, adv: Tensor, labels: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """Return MART's loss (N,) of clean and adversarial logits (N, K).

    BCE is the cross-entropy plus -log(1.0001 - p), p the largest probability of a wrong class: the 0.0001 is the authors'
    (https://github.com/YisenWang/MART) and keeps it finite. Label smoothing is for the cross-entropy alone.
    """
    wrong = adv.softmax(dim=1).scatter(1, labels[:, None], 0.0).amax(dim=1)
    boosted = cross_entropy(adv, labels, smoothing) - torch.log(1.0001 - wrong)
    answer = clean.softmax(dim=1)
    unsure = 1 - answer.gather(1, labels[:, None])[:, 0]
    return boosted + beta * divergence(answer, adv) * unsure
