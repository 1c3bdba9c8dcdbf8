"""A model that remembers, for every sample, the best image that an attack asked it about."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robustdup import ThreatModel

ROUNDING = 1e-6


class Watched(nn.Module):
    """Calls `model` and keeps for each sample the nearest misclassified image, or else the one of lowest margin.

    Several foolbox attacks return the clean image, a black one or NaN for a sample that they give up, although they asked
    the model about useful images on the way. Only calls with as many rows as `images` (N, C, H, W) are looked at:
    foolbox never reorders a batch. Images outside [0, 1], and outside the ball if `bounded`, are not kept.
    """

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, bounded: bool) -> None:
        super().__init__()
        self.training = False
        self.call = (model,)  # in a tuple: not a submodule, so that nothing done to this module reaches the model
        self.images, self.labels, self.threat, self.bounded = images, labels, threat, bounded
        self.best = images.clone()
        self.seen = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.is_adv = torch.zeros_like(self.seen)
        self.value = torch.full((len(images),), torch.inf, dtype=torch.float64, device=images.device)

    def forward(self, images: Tensor) -> Any:
        """Return the model's logits, and look at what was asked."""
        logits = self.call[0](images)
        if images.shape == self.images.shape:
            with torch.no_grad():
                self._look(images.detach(), logits.detach())
        return logits

    def _look(self, images: Tensor, logits: Tensor) -> None:
        distance = self.threat.distance(self.images, images)
        true = logits.gather(1, self.labels[:, None])[:, 0]
        other = logits.scatter(1, self.labels[:, None], -torch.inf).amax(dim=1)
        margin = (true - other).double()
        is_adv = logits.argmax(dim=1) != self.labels
        flat = images.flatten(1)
        allowed = margin.isfinite() & (flat >= -ROUNDING).all(dim=1) & (flat <= 1 + ROUNDING).all(dim=1)
        allowed &= is_adv | (distance > 0)
        if self.bounded:
            allowed &= distance <= self.threat.radius + self.threat.tolerance
        value = torch.where(is_adv, distance, margin)
        improved = allowed & ((is_adv & ~self.is_adv) | ((is_adv == self.is_adv) & (value < self.value)))
        self.best[improved] = images[improved]
        self.value = torch.where(improved, value, self.value)
        self.seen |= improved
        self.is_adv |= improved & is_adv

    def instead_of_giving_up(self, result: Tensor) -> Tensor:
        """Put the best image seen in every row of `result` that is clean, black or not finite.

        A black row of which nothing but the clean image was seen becomes the clean image: the attack never left it.
        """
        flat = result.flatten(1)
        given_up = ~flat.isfinite().all(dim=1) | (flat == 0).all(dim=1) | (result == self.images).flatten(1).all(dim=1)
        rows = given_up & (self.seen | flat.isfinite().all(dim=1))
        return torch.where(rows.view(-1, *[1] * (result.ndim - 1)), self.best, result)
