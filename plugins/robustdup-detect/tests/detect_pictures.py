"""Pictures that tests of detection make."""

import torch
import torch.nn.functional as F


def pictures(n, *, size=32, seed=0):
    """Pictures of a few soft shapes over a gradient, with texture: different from each other, like photographs."""
    random = torch.Generator().manual_seed(seed)
    parts = [
        F.interpolate(torch.rand(n, 3, cells, cells, generator=random), (size, size), mode="bicubic") * weight
        for cells, weight in ((2, 0.3), (4, 0.3), (8, 0.25), (16, 0.15))
    ]
    return (sum(parts) * 255).round().clamp(0, 255).to(torch.uint8)
