"""Tensors that leave torch, for NumPy or PIL, and what comes back: matched by shape, the newest first."""

from __future__ import annotations

import torch
from torch import Tensor

KEPT = 64  # tensors under way at most
TURNS = ((0, 1, 2), (1, 2, 0), (2, 0, 1))  # of (C, H, W): as it is, channels last, channels first again


class Detours:
    """What left torch and has not come back."""

    def __init__(self) -> None:
        self.under_way: list[Tensor] = []

    def leave(self, source: Tensor) -> None:
        """Note a tensor with a gradient that leaves."""
        self.under_way = [*self.under_way[-KEPT + 1 :], source]

    def back(self, result: Tensor) -> Tensor | None:
        """Return what `result` stands for: what left in its shape, its channels moved and its scale changed if need be.

        None where nothing that is under way fits.
        """
        for place in range(len(self.under_way) - 1, -1, -1):
            fitting = _fit(self.under_way[place], result)
            if fitting is not None:
                del self.under_way[place]
                return _scaled(fitting, result)
        return None


def _fit(source: Tensor, result: Tensor) -> Tensor | None:
    if source.shape == result.shape:
        return source
    for turn in TURNS[1:]:
        if source.dim() == 3 and result.dim() == 3 and source.permute(turn).shape == result.shape:
            return source.permute(turn)
        if source.dim() == 4 and result.dim() == 4:
            turned = source.permute(0, *(1 + axis for axis in turn))
            if turned.shape == result.shape:
                return turned
    squeezed = source.squeeze()
    return squeezed.view_as(result) if squeezed.shape == result.squeeze().shape else None


def _scaled(source: Tensor, result: Tensor) -> Tensor:
    """Bytes stand for 255 times what lies in [0, 1], and the other way round."""
    largest, largest_back = float(source.detach().abs().max()), float(result.abs().max()) if result.numel() else 0.0
    if largest <= 1.0 and (result.dtype == torch.uint8 or largest_back > 2.0):
        return source * 255
    if largest > 2.0 and result.is_floating_point() and largest_back <= 1.0:
        return source / 255
    return source
