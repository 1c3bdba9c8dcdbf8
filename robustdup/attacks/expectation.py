"""Expected accuracy: what an attack on a model that answers at random is to bring down, on every sample.

Such a model is right on an image in a share of its draws. Leaving at the first wrong draw would leave samples at half of
what they can lose, so that under EOT (https://arxiv.org/abs/1707.07397) no sample leaves: gradients, losses and margins
are averaged over the draws of a step, and what is kept is the image that was right in the fewest draws.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustdup.attacks.losses import margin, misclassified

ASKED_AGAIN = 4  # times the draws of a step: how often the images between which an attack chooses are asked


def asked_again(eot: int) -> int:
    """Return how often an attack under EOT asks about each image between which it chooses; 0 without EOT."""
    return ASKED_AGAIN * eot if eot > 1 else 0


def height(correct_share: Tensor, margins: Tensor, draws: int) -> Tensor:
    """Return one number a sample by which images are ordered, lower is worse for the model: the share, then the margin.

    Args:
        correct_share: share of right draws (N,) in [0, 1].
        margins: mean margin over them (N,); not a number counts as lowest.
        draws: their number. The margin only decides between equal shares.
    """
    margins = margins.nan_to_num(nan=-torch.inf)
    tie = torch.where(margins.isinf(), margins.sign(), margins / (1 + margins.abs()))
    return correct_share + tie / (4 * draws)


def expected_height(model: nn.Module, images: Tensor, labels: Tensor, draws: int) -> Tensor:
    """Ask a model `draws` times about images (N, C, H, W) with labels (N,), and return their `height` (N,)."""
    share, margins = torch.zeros(len(images), device=images.device), torch.zeros(len(images), device=images.device)
    with torch.no_grad():
        for _ in range(draws):
            logits = model(images)
            share += ~misclassified(logits, labels) / draws
            margins += margin(logits, labels).float() / draws
    return height(share, margins, draws)


def keep_fewest_right(
    model: nn.Module, candidates: tuple[Tensor, Tensor], labels: Tensor, eot: int, best: tuple[Tensor, Tensor]
) -> None:
    """Ask again about images (N, C, H, W), and keep those of least height among the best so far: (images, heights), in place.

    The fewest right draws of many looks are luck in part: what is chosen between is asked anew.
    """
    for images in candidates:
        asked = expected_height(model, images, labels, asked_again(eot))
        lower = asked < best[1]
        best[0][lower], best[1][lower] = images[lower], asked[lower]


def query_passes(queries: int, eot: int, every: int) -> int:
    """Return the forward passes of a first look and `queries` further ones, each the mean of `eot` draws.

    Above one draw what is kept is asked again every so many queries.
    """
    again = (queries - 1) // every if eot > 1 else 0
    return (1 + queries + again) * eot


def mean_logits(model: nn.Module, images: Tensor, draws: int) -> Tensor:
    """Return the mean of the logits (N, K) over `draws` calls on images (N, C, H, W)."""
    with torch.no_grad():
        total: Tensor = model(images)
        for _ in range(draws - 1):
            total = total + model(images)
    return total / draws if draws > 1 else total
