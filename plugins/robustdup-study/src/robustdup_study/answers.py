"""What a cell's model answers to test images: image by image, how sure it is, and with the training prior taken out."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from robustdup.data.batches import TrainingSet
from robustdup.data.streaming import StreamingSet
from robustdup.records import SAMPLES_FILE, Outcome, load_samples

BINS = 15  # of the calibration error, as in https://arxiv.org/abs/1706.04599
LOST = ("misclassified", Outcome.BROKEN.word, Outcome.UNDECIDED.word)  # undecided counts as broken in the value


def answers_to_test_images(right: Tensor, evaluation: Path | None) -> dict[str, str]:
    """Return the answers to single test images as strings of 1 and 0: clean, and under attack as the referee judged.

    `right` (N,) are those on clean images; `evaluation` is the folder of the evaluation, if there is one.
    """
    answers = {"clean_accuracy": "".join(str(int(is_right)) for is_right in right.tolist())}
    if evaluation is not None and (evaluation / SAMPLES_FILE).is_file():
        table = load_samples(evaluation)
        rows = zip(*(table.column(name).to_pylist() for name in ("position", "attack", "outcome")), strict=True)
        is_robust: dict[int, bool] = {}
        for position, attack, outcome in rows:
            good = outcome == "correct" if attack == "clean" else outcome not in LOST
            is_robust[position] = is_robust.get(position, True) and good
        answers["robust_accuracy"] = "".join(str(int(is_robust[position])) for position in sorted(is_robust))
    return answers


def of_class_shares(logits: Tensor, labels: Tensor, entries: TrainingSet | StreamingSet) -> dict[str, float | None]:
    """Return how unequal the classes of the (weighted) training entries are, and accuracy with that prior taken out.

    `class_imbalance` is the total variation distance of their class shares from equal ones, in [0, 1).
    `prior_adjusted_accuracy` is of the logits (N, K) minus the log of the class shares, for a test set of equal classes
    (logit adjustment, https://arxiv.org/abs/2007.07314); classes without an entry keep their logit.
    """
    classes = logits.shape[1]
    weights = None if entries.weights is None else entries.weights.cpu().double()
    shares = torch.bincount(entries.labels.cpu().long(), weights, minlength=classes)[:classes].double()
    shares = shares / shares.sum()
    offsets = torch.where(shares > 0, shares.clamp(min=1e-12), torch.ones_like(shares)).log()
    answers = (logits.double() - offsets).argmax(dim=1)
    return {
        "class_imbalance": float((shares - 1 / classes).abs().sum() / 2),
        "prior_adjusted_accuracy": float((answers == labels).double().mean()),
    }


def calibration(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the expected calibration error over 15 equal bins, in [0, 1], and the mean negative log-likelihood.

    logits (N, K), labels (N,). https://arxiv.org/abs/1706.04599
    """
    chances = logits.double().softmax(dim=1)
    confidence, answer = chances.max(dim=1)
    is_correct = (answer == labels).double()
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, confidence - is_correct)
    nll = nn.functional.cross_entropy(logits.double(), labels)
    return float(gaps.abs().sum() / len(labels)), float(nll)
