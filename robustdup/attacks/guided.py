"""Attack one model and ask another: gradients of a guide, answers of the judged model.

What an attack sees are the logits of the guide, changed as little as needed where the judged model answers otherwise: its
answer is lifted just above the others. So a sample leaves an attack when the judged model is wrong, and not when the
guide is, and gradients stay the guide's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustdup.attacks.passes import Passes

LIFT = 1e-3  # of the largest logit's size, and of 1: how far above the others an answer is lifted


class Guided(nn.Module):
    """The logits of `guide` with the answers of `judged`: images (N, C, H, W) -> logits (N, K)."""

    def __init__(self, guide: nn.Module, judged: nn.Module) -> None:
        super().__init__()
        self.guide, self.judged = guide, judged
        self.training = guide.training  # mirror, without touching the models

    def forward(self, images: Tensor) -> Tensor:
        """Return logits whose largest is the judged model's answer, with the gradient of the guide."""
        logits: Tensor = self.guide(images)
        with torch.no_grad():
            answers = self.judged(images.detach()).argmax(dim=1)[:, None]
            others = logits.scatter(1, answers, -torch.inf).amax(dim=1, keepdim=True)
            short = others + LIFT * (1 + others.abs()) - logits.gather(1, answers)
            lift = torch.where(logits.argmax(dim=1, keepdim=True) != answers, short, 0.0).to(logits.dtype)
        if not bool(lift.any()):
            return logits
        return logits.scatter_add(1, answers, lift)


def inside(model: nn.Module, wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Return a model whose passes are counted, packed and looked at as those of `model`, around another one inside."""
    if not isinstance(model, Passes):
        return wrap(model)
    passes = Passes(wrap(model.model), model.micro_batch, model.sizes, fill=model.fill)
    passes.count, passes.looks, passes.watch = model.count, model.looks, model.watch
    return passes


def counted(model: nn.Module, outer: nn.Module) -> nn.Module:
    """Return `model` with its passes counted among those of `outer`, where that counts."""
    if not isinstance(outer, Passes):
        return model
    passes = Passes(model)
    passes.count = outer.count
    return passes
