"""The network inside a wrapper: the module whose answers are the model's before anything was done to its scores.

Wrappers that round, clip, reshape or vote on scores leave the network that computes them whole. It is found by what it
says: the first module of a forward pass whose output has a column for each class and nearly always the model's answer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.see_through import SeeThrough

AGREES = 0.9  # of the answers, at least


class InnerLogits(nn.Module):
    """What the module of that name says inside `model`, with gradients that pass: images (N, C, H, W) -> logits (N, K)."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """Run the model as far as the module, and return its output."""
        seen: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            seen.append(output)
            raise _EnoughError

        handle = self.model.get_submodule(self.name).register_forward_hook(keep)
        try:
            with torch.enable_grad():
                part = images if images.requires_grad else images.detach().requires_grad_()
                SeeThrough(self.model)(part)
        except _EnoughError:
            pass
        finally:
            handle.remove()
        logits = seen[0] + (0 * part.flatten(1).sum(dim=1, keepdim=True)).to(seen[0].dtype)
        return logits if torch.is_grad_enabled() else logits.detach()


class _EnoughError(Exception):
    """The module has spoken: the rest of the model need not run."""


def find_inner(model: nn.Module, images: Tensor) -> str | None:
    """Return the name of the module inside `model` that gives its answers first; None where there is none.

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: some images (N, C, H, W); the more, the surer.
    """
    outputs: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 2 and len(output) == len(images) and name not in outputs:
                outputs[name] = output.detach().clone()

        return keep

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            logits = model(images)
    finally:
        for handle in handles:
            handle.remove()
    answers = logits.argmax(dim=1)
    for name, output in outputs.items():  # in the order in which they spoke
        if output.shape == logits.shape and output.is_floating_point():
            agreement = float((output.argmax(dim=1) == answers).double().mean())
            if agreement >= AGREES and not torch.equal(output, logits):
                return name
    return None
