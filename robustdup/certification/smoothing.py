"""Randomised smoothing: a certificate in L2 for what a network answers to most noisy copies of an image.

https://arxiv.org/abs/1902.02918. It is about the smoothed classifier, which answers by vote under Gaussian noise, and it
holds with a stated confidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.stats import beta, norm
from torch import Tensor, nn

from robustdup.rng import SampleRng

BATCH = 256  # noisy copies in one pass


@dataclass(frozen=True)
class SmoothedCertificates:
    """What the votes say of each sample.

    Attributes:
        predictions: int64 (N,): the class that was certified, -1 where the classifier abstains.
        radii: float64 (N,): the L2 radius in pixels of [0, 1] within which the vote is for that class; 0 if it abstains.
        confidence: that a radius holds, for each sample.
    """

    predictions: Tensor
    radii: Tensor
    confidence: float


def certify_smoothed(
    model: nn.Module, images: Tensor, rng: SampleRng, *, sigma: float, draws: int = 1000, first_draws: int = 100,
    alpha: float = 0.001,
) -> SmoothedCertificates:  # fmt: skip
    """Certify the classifier that answers by vote under noise N(0, sigma^2) on every pixel.

    Args:
        model: images (N, C, H, W) -> logits (N, K); noisy images leave [0, 1].
        images: float32 (N, C, H, W) in [0, 1].
        rng: One stream of randomness per sample.
        sigma: Standard deviation of the noise, in pixels of [0, 1].
        draws: Noisy copies that the certificate rests on.
        first_draws: Other copies, from which the class is guessed.
        alpha: How often a radius may be wrong: 1 - confidence.

    Returns:
        Classes and radii: sigma times the normal quantile of the Clopper-Pearson lower bound of the class's share.
    """
    predictions = torch.full((len(images),), -1)
    radii = torch.zeros(len(images), dtype=torch.float64)
    for i in range(len(images)):
        guessing, voting = rng[i : i + 1].fold("guess"), rng[i : i + 1].fold("vote")
        guess = int(_votes(model, images[i : i + 1], guessing, sigma, first_draws).argmax())
        votes = int(_votes(model, images[i : i + 1], voting, sigma, draws)[guess])
        low = float(beta.ppf(alpha, votes, draws - votes + 1)) if votes else 0.0
        if low > 0.5:
            predictions[i] = guess
            radii[i] = sigma * float(norm.ppf(low))
    return SmoothedCertificates(predictions, radii, 1 - alpha)


def _votes(model: nn.Module, image: Tensor, rng: SampleRng, sigma: float, draws: int) -> Tensor:
    """Return how many noisy copies of an image (1, C, H, W) each class gets (K,)."""
    votes: Tensor | None = None
    with torch.no_grad():
        for batch, start in enumerate(range(0, draws, BATCH)):
            noise = rng.normal((min(BATCH, draws - start), *image.shape[1:]), draw=batch)[0]
            logits = model(image + sigma * noise.to(image))
            counts = torch.bincount(logits.argmax(1), minlength=logits.shape[1]).cpu()
            votes = counts if votes is None else votes + counts
    assert votes is not None
    return votes
