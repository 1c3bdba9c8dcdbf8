"""Muon: steps of orthogonal directions for weights that are matrices, SGD for everything else.

The momentum of a weight (a convolution's as outputs x (inputs x height x width)) is replaced by the nearest matrix whose
singular values are about one, found by a few Newton-Schulz iterations, so that no direction of a layer learns slower than
the others. https://kellerjordan.github.io/posts/muon/, which for convolutions fixes the length of each weight as
https://github.com/KellerJordan/cifar10-airbench does: behind a normalisation the length says nothing, and the step is then
a share of it. torch.optim.Muon takes two dimensions only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the fifth-degree polynomial whose iteration drives singular values to one


class Muon(torch.optim.SGD):
    """SGD with Nesterov momentum in which groups marked `orthogonal` step along orthogonal directions.

    Their `lr` is the step as a share of the weight's length, which is held at the square root of its outputs (weights behind
    a normalisation: all convolutions and hidden layers of usual networks), and they do not decay.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, momentum: float, iterations: int = 4) -> None:
        super().__init__(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)
        self.iterations = iterations

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Make one step; `closure` as everywhere in torch.optim."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        matrices = [group for group in self.param_groups if group.get("orthogonal")]
        rest = [group for group in self.param_groups if not group.get("orthogonal")]
        for group in matrices:
            alike: dict[tuple[int, ...], list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    # A CPU gains nothing by it, and one matrix at a time keeps its bits.
                    key = tuple(weight.shape) if weight.is_cuda else (len(alike),)
                    alike.setdefault(key, []).append(weight)
            for weights in alike.values():
                self._orthogonal_step(weights, group["lr"], group["momentum"])
        every, self.param_groups = self.param_groups, rest
        try:
            super().step()
        finally:
            self.param_groups = every
        return loss

    def _orthogonal_step(self, weights: list[Tensor], rate: float, momentum: float) -> None:
        """Step all weights of one shape at once: on a GPU a dozen small matrices take as long as one."""
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        grads = [weight.grad for weight in weights if weight.grad is not None]
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, grads)
        ahead = torch._foreach_add(grads, torch._foreach_mul(buffers, momentum))
        flat = [each.flatten(1) for each in ahead]
        single = len(flat) == 1
        directions = orthogonalised(flat[0] if single else torch.stack(flat), self.iterations)
        directions = directions[None] if single else directions
        for weight, direction in zip(weights, directions, strict=True):
            weight.mul_(len(weight) ** 0.5 / weight.norm().clamp(min=1e-12))
            weight.add_(direction.view(weight.shape), alpha=-rate)


def orthogonalised(matrices: Tensor, iterations: int = 4) -> Tensor:
    """Return one matrix (m, n), or several (k, m, n), with their singular values near one (0.7 to 1.2), singular vectors kept.

    Zeros stay zeros. On CUDA the iterations run in bf16, as the author's do. https://kellerjordan.github.io/posts/muon/
    """
    a, b, c = COEFFICIENTS
    x = matrices.mT if (tall := matrices.shape[-2] > matrices.shape[-1]) else matrices
    add = torch.baddbmm if matrices.ndim == 3 else torch.addmm
    length = x.norm() if matrices.ndim == 2 else torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
    x = x / (length + 1e-7)
    x = x.bfloat16() if matrices.is_cuda else x
    for _ in range(iterations):
        square = x @ x.mT
        x = add(x, add(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)
