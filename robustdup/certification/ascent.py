"""Adam uphill on a few tensors (https://arxiv.org/abs/1412.6980): `torch.optim` imports its compiler, which takes seconds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MEAN, SQUARE = 0.9, 0.999  # what is kept of the running means


class Ascent:
    """Moves tensors along the gradient of a sum; `rate` may be changed between steps."""

    def __init__(self, tensors: Sequence[Tensor], rate: float) -> None:
        self.tensors = [tensor.requires_grad_() for tensor in tensors]
        self.rate = rate
        self.steps = 0
        self._mean = [torch.zeros_like(tensor) for tensor in tensors]
        self._square = [torch.zeros_like(tensor) for tensor in tensors]

    def step(self, values: Tensor) -> None:
        """Make one step that raises the sum of `values`, which were computed from the tensors."""
        gradients = torch.autograd.grad(values, self.tensors, torch.ones_like(values), allow_unused=True)
        self.steps += 1
        with torch.no_grad():
            for tensor, gradient, mean, square in zip(self.tensors, gradients, self._mean, self._square, strict=True):
                if gradient is None:
                    continue
                mean.lerp_(gradient, 1 - MEAN)
                square.lerp_(gradient**2, 1 - SQUARE)
                size = (square / (1 - SQUARE**self.steps)).sqrt() + 1e-8
                tensor += self.rate * mean / (1 - MEAN**self.steps) / size
