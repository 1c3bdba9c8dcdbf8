from __future__ import annotations

import pytest
import torch
from torch import nn


class Linear(nn.Module):
    """Two classes by the mean of the image: class 1 where it is above one half. Known margins, known optima."""

    def __init__(self, scale: float = 10.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.rows = 0
        self.calls: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.rows += images.shape[0]
        self.calls.append(images.shape[0])
        signal = self.scale * (images.double().flatten(1).mean(dim=1) - 0.5).float()
        return torch.stack([-signal, signal], dim=1)


@pytest.fixture
def linear() -> Linear:
    return Linear().eval()


@pytest.fixture
def points() -> tuple[torch.Tensor, torch.Tensor]:
    """40 flat grey images 0.30 … 0.70 (1x4x4) and their labels: the distance to the boundary is |value - 0.5| in Linf."""
    values = torch.linspace(0.3, 0.7, 40)
    images = values.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    return images, (values > 0.5).long()
