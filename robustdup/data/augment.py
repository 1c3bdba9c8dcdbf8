"""Random crop and horizontal flip of a batch, drawn for each sample from its own stream, on bytes or floats."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustdup.errors import unknown
from robustdup.rng import SampleRng

AUGMENT = ("crop-flip", "crop", "flip", "none")


def check_augment(augment: str) -> None:
    """Raise UserError for an unknown augmentation."""
    if augment not in AUGMENT:
        raise unknown("augmentation", augment, AUGMENT)


def augment_images(images: Tensor, rng: SampleRng, *, augment: str = "crop-flip", padding: int = 4) -> Tensor:
    """Return images (N, C, H, W) of any dtype, each moved and mirrored by draws from its own stream of `rng`.

    "crop" pads `padding` black pixels on every side and cuts a window of the old size at a random place, "flip" mirrors
    left and right with chance 1/2 (He et al. 2015, section 4.2, https://arxiv.org/abs/1512.03385). What is drawn is
    bit-equal on every device, and the same whether crop, flip or both are asked for. Raises UserError.
    """
    check_augment(augment)
    if augment == "none":
        return images
    down, right, mirrored = _draws(rng, padding)
    if padding and augment in ("crop-flip", "crop"):
        images = _crop(images, down, right, padding)
    if augment in ("crop-flip", "flip"):
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    return images


@dataclass(frozen=True)
class Moves:
    """How a batch of n images was moved: windows of a frame with `padding` around, and which of them are mirrored.

    `down` and `right` (n,) int64 are the corners of the windows in the frame, `mirrored` (n,) bool.
    """

    down: Tensor
    right: Tensor
    mirrored: Tensor
    padding: int

    def take(self, framed: Tensor) -> Tensor:
        """Return the windows (n, C, H, W) of values in frames (n, C, H + 2 padding, W + 2 padding), moved as the images."""
        height, width = (side - 2 * self.padding for side in framed.shape[2:])
        windows = framed.unfold(2, height, 1).unfold(3, width, 1)
        rows = torch.arange(len(framed), device=framed.device)
        values = windows[rows, :, self.down, self.right]
        return torch.where(self.mirrored[:, None, None, None], values.flip(-1), values)

    def put(self, framed: Tensor, values: Tensor) -> Tensor:
        """Return the frames with the windows' values (n, C, H, W) put back where `take` finds them."""
        height, width = values.shape[2:]
        values = torch.where(self.mirrored[:, None, None, None], values.flip(-1), values)
        device = framed.device
        down = self.down[:, None, None] + torch.arange(height, device=device)[None, :, None]
        right = self.right[:, None, None] + torch.arange(width, device=device)[None, None, :]
        rows = torch.arange(len(framed), device=device)[:, None, None]
        changed = framed.clone()
        changed[rows, :, down, right] = values.permute(0, 2, 3, 1)
        return changed


def moves_of(rng: SampleRng, *, augment: str = "crop-flip", padding: int = 4) -> Moves:
    """Return how `augment_images` moves images with these arguments; the padding is 0 where nothing is cropped."""
    down, right, mirrored = _draws(rng, padding)
    if augment not in ("crop-flip", "crop") or not padding:
        down, right, padding = torch.zeros_like(down), torch.zeros_like(right), 0
    return Moves(down, right, mirrored if augment in ("crop-flip", "flip") else torch.zeros_like(mirrored), padding)


def _draws(rng: SampleRng, padding: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the corner (down, right) of each window in 0..2 padding, and which images are mirrored."""
    words = rng.bits((3,))
    corners = (words[:, :2] * (2 * padding + 1)) >> 32
    return corners[:, 0], corners[:, 1], (words[:, 2] >> 31).bool()


def _crop(images: Tensor, down: Tensor, right: Tensor, padding: int) -> Tensor:
    height, width = images.shape[2:]
    padded = F.pad(images, (padding, padding, padding, padding))
    # A view of all windows (N, C, 2p+1, 2p+1, H, W): one is copied for each image, no index a pixel is made.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, down, right]
