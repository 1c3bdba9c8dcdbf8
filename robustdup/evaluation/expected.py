"""What is left of a model that does not repeat itself: its kept images are judged afresh, all together.

The draws that chose among images would flatter the choice: the image that looked worst was unlucky too. So the accuracies
of a model that answers at random come from draws of their own, the same for the clean images and for those kept in their
place. A model whose answers depend on who shares a batch is judged in one stated batch: as many rows as the micro-batch,
in the order of the data. In both cases the clean image counts as one of those looked at, so that no sample, and no sum of
samples, is right more often under attack than without.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustdup.evaluation.context import Context
from robustdup.evaluation.referee import judge_images


def judged_afresh(context: Context, images: Tensor, labels: Tensor) -> Tensor:
    """Return the share of correct answers on images (N, C, H, W) with labels (N,), by draws that chose none of them: (N,)."""
    images, labels = images.to(context.device), labels.to(context.device)
    return judge_images(context.original, images, labels, draws=context.draws, seed=context.seed + 1).correct_share


def not_above(clean: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of correct answers of each sample, never above that on its clean image, and where that one holds.

    Args:
        clean: shares on the clean images (N,).
        kept: shares on the images kept in their place (N,), from the same draws.
    """
    return torch.minimum(clean, kept), clean < kept
