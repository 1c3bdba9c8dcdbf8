"""The stand-in that torchattacks is given for the model: it shields the model and repairs what is wrong with logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Guard(nn.Module):
    """Images (N, C, H, W) float32 -> logits (N, K) float32, whatever the model's own dtype.

    - `train()` and `eval()` do nothing: torchattacks switches the whole tree on every call, and the mode is the caller's.
    - `parameters()` yields one tensor on the images' device, which is where torchattacks reads its device from.
    - `shift` moves each row of logits by a constant so that the smallest is 1. Softmax losses do not change; the margins
      of CW, EAD and UPGD multiply logits by a one-hot mask and read the zeros as logits, which is wrong below 0
      (https://github.com/Harry24k/adversarial-attacks-pytorch/pull/168).
    - A Parameter gets memory of its own: EAD's first iterate shares the clean image's, and its first step in place moved
      the image that distances are measured from (and out of the box).
    """

    def __init__(self, model: nn.Module, images: Tensor, *, shift: bool = False) -> None:
        super().__init__()
        self.model = model
        self.dtype = images.dtype
        self.shift = shift
        self.training = model.training
        self._place = torch.zeros((), device=images.device)

    def forward(self, images: Tensor) -> Tensor:
        """Return the model's logits; gradients flow back to `images`, contiguous."""
        if isinstance(images, nn.Parameter):
            images.data = images.data.clone()
        if images.requires_grad and torch.is_grad_enabled():
            images = images.view_as(images)
            images.register_hook(Tensor.contiguous)  # type: ignore[no-untyped-call]  # channels-last gradients cannot be viewed flat
        logits: Tensor = self.model(images.to(self.dtype)).float()
        return logits - logits.amin(dim=1, keepdim=True).detach() + 1 if self.shift else logits

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Yield the place of the images, never the model's weights."""
        yield self._place  # type: ignore[misc]

    def train(self, mode: bool = True) -> Guard:
        """Leave the model's mode alone."""
        return self

    @torch.no_grad()
    def count_classes(self, images: Tensor) -> int:
        """Return the number of classes K, from one forward pass of one row."""
        return int(self.model(images[:1].to(self.dtype)).shape[1])

    @torch.no_grad()
    def wrong_class(self, images: Tensor, labels: Tensor, which: str) -> Tensor:
        """Return a wrong class for each image (N,): `runner-up` and `least-likely` by the logits, `next` = label + 1."""
        logits: Tensor = self(images)
        if which == "next":
            return (labels + 1) % logits.shape[1]
        sign = 1 if which == "runner-up" else -1
        return (sign * logits).scatter(1, labels[:, None], float("-inf")).argmax(dim=1)
