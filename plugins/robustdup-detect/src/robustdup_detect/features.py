"""What a picture looks like in a few numbers: low frequencies, colour, edge directions; and the projection that is learned.

The projection is linear discriminant analysis in which every image is a class of its own and the images of a class are
its changed copies (shifted, cropped, brighter, …): directions in which different images differ most and copies least.
It needs no labels and is learned in seconds from the user's own images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 32  # pixels a side of the picture that features are made of
BATCH = 256  # images whose intermediate values fit the caches of a core
_YCC = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))  # ITU-R 601: luma, two colour differences


@dataclass(frozen=True)
class Embedder:
    """What turns pictures into features: `describe` takes pixels uint8 (N, 3, size, size) to float32 (N, F)."""

    size: int
    describe: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Projection:
    """From features to the embedding: `mean` (F,) and `weight` (F, D)."""

    mean: Tensor
    weight: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return embeddings float32 (N, D) of unit length from features (N, F)."""
        return F.normalize((features - self.mean) @ self.weight, dim=1)


def describe(pixels: Tensor) -> Tensor:
    """Return features float32 (N, F) of pixels uint8 (N, 3, 32, 32), none of which changes with brightness or contrast.

    Low frequencies of luma (10x10 of the DCT) and of colour (5x5), and how strong edges of eight directions are in a grid
    of 4x4 cells (after histograms of oriented gradients, https://doi.org/10.1109/CVPR.2005.177).
    """
    return torch.cat([_describe(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)])


def _describe(pixels: Tensor) -> Tensor:
    luma_waves, colour_waves, cells, directions = _bases()
    planes = torch.matmul(torch.tensor(_YCC), pixels.flatten(2).float()).view(len(pixels), 3, SIZE, SIZE)
    luma = planes[:, 0].flatten(1) @ luma_waves
    half = F.avg_pool2d(planes, 2)
    colour = (half[:, 1:].flatten(2) @ colour_waves).flatten(1)
    # The constants keep the noise of images without contrast from being blown up.
    contrast = luma.square().sum(dim=1, keepdim=True).sqrt() + 200
    grey = F.pad(half[:, :1], (1, 1, 1, 1), mode="replicate")
    across = (grey[:, :, 1:-1, 2:] - grey[:, :, 1:-1, :-2]).flatten(2)
    down = (grey[:, :, 2:, 1:-1] - grey[:, :, :-2, 1:-1]).flatten(2)
    edges = (across * directions[0] + down * directions[1]).relu_() @ cells
    edges = edges.flatten(1)
    edges = (edges / (edges.norm(dim=1, keepdim=True) + 50)).sqrt()
    return torch.cat([luma / contrast, colour / contrast, edges], dim=1)


@cache
def _bases() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the waves of luma and colour, the weights of the cells, and cosine and sine of eight directions."""
    luma, colour = _waves(SIZE, 10), _waves(SIZE // 2, 5)
    side = SIZE // 2
    centres = (torch.arange(4) + 0.5) * side / 4
    overlap = (1 - (torch.arange(side) + 0.5 - centres[:, None]).abs() / (side / 4)).clamp(min=0)
    angles = torch.arange(8)[:, None] * (2 * math.pi / 8)
    return (
        torch.kron(luma, luma)[1:].T.contiguous(),  # without the mean, which is brightness
        2 * torch.kron(colour, colour).T.contiguous(),
        torch.kron(overlap, overlap).T.contiguous(),
        torch.stack([angles.cos(), angles.sin()]),
    )


def _waves(size: int, count: int) -> Tensor:
    """Return the first `count` cosines of the orthonormal DCT-II of this size, float32 (count, size)."""
    waves = torch.cos(math.pi / size * (torch.arange(size) + 0.5) * torch.arange(count)[:, None]) * math.sqrt(2 / size)
    waves[0] /= math.sqrt(2)
    return waves


def learn_projection(features: Tensor, changes: Tensor, dimensions: int = 64) -> Projection:
    """Return the projection under which different images differ most and copies of one least.

    `features` (N, F) are those of images, `changes` (M, F) the features of changed copies minus those of their originals.
    """
    total = torch.cov(features.T).double()
    changes = changes.double()
    within = changes.T @ changes / (2 * max(len(changes), 1))
    # A little of the variance keeps directions that copies leave alone by chance from ruling.
    within += torch.diag(1e-3 * total.diagonal() + 1e-3 * within.diagonal() + 1e-9)
    factor = torch.linalg.cholesky(within)
    ratio = torch.linalg.solve_triangular(factor, total, upper=False)
    ratio = torch.linalg.solve_triangular(factor, ratio.T.contiguous(), upper=False)
    vectors = torch.linalg.eigh((ratio + ratio.T) / 2).eigenvectors.flip(1)[:, :dimensions]
    weight = torch.linalg.solve_triangular(factor.T, vectors, upper=True)
    if weight.shape[1] < dimensions:  # fewer features than that
        weight = F.pad(weight, (0, dimensions - weight.shape[1]))
    return Projection(features.mean(dim=0), weight.float().contiguous())


def canvas(pixels: Tensor, size: int = SIZE) -> Tensor:
    """Return pictures uint8 (N, 3, size, size): resized (antialiased), grey as colour."""
    if pixels.shape[-2:] != (size, size):
        parts = [
            F.interpolate(part.float(), (size, size), mode="bilinear", align_corners=False, antialias=True)
            for part in torch.split(pixels, BATCH)
        ]
        pixels = torch.cat(parts).round().clamp(0, 255).to(torch.uint8)
    return pixels.expand(-1, 3, -1, -1) if pixels.shape[1] == 1 else pixels


CLASSICAL = Embedder(SIZE, describe)
