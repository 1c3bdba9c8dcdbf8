"""A model with known answers, and folders of corrupted images as they are published."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from robustdup_corruptions.record import SEVERITIES
from torch import nn

made_here = pytest.mark.skipif(importlib.util.find_spec("imagecorruptions") is None, reason="no imagecorruptions")


class Bright(nn.Module):
    """Ten classes, of which the first two are told apart by the mean of the image; the others never come."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        signal = 10 * (images.flatten(1).mean(dim=1) - 0.5)
        return torch.cat(
            [-signal[:, None], signal[:, None], signal.new_full((len(images), self.classes - 2), -20)], dim=1
        )


def published(folder, kinds, n=20, labels=None):
    """Write a folder as CIFAR-10-C is: at severity s the first 2 s images of each kind have the brightness of the other class."""
    folder.mkdir()
    truth = np.arange(n) % 2
    for number, kind in enumerate(kinds):
        blocks = []
        for severity in SEVERITIES:
            block = np.where(truth, 200, 50)
            wrong = 2 * severity if number % 2 == 0 else 0
            block[:wrong] = 250 - block[:wrong]
            blocks.append(np.broadcast_to(block[:, None, None, None], (n, 32, 32, 3)).astype(np.uint8))
        np.save(folder / f"{kind}.npy", np.concatenate(blocks))
    np.save(folder / "labels.npy", np.tile(truth, 5) if labels is None else labels)
    return folder
