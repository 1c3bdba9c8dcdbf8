"""Is it the same picture? Two pictures are aligned to a fraction of a pixel, and what is left is measured.

Alignment is least squares over shift, scale, contrast and brightness (inverse compositional: Baker and Matthews 2004,
https://doi.org/10.1023/B:VISI.0000011205.11775.fd), first at half resolution, which tells most merely similar pictures
apart, then at full resolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BATCH = 512  # pairs whose intermediate values fit the caches of a core
COARSE_STEPS, FINE_STEPS = 4, 5
COARSE_ENOUGH = 0.88  # correlation at half resolution; of changed copies of CIFAR-10 images 1 in 1,000 lies below
_LUMA = (0.299, 0.587, 0.114)
MEASURES = ("luma", "detail", "colour", "worst", "residual", "texture")  # of a pair; the score adds the similarity


def outline(pixels: Tensor) -> Tensor:
    """Return grey pictures of half the side, float16 (N, S/2, S/2), of pixels uint8 (N, 3, S, S)."""
    parts = [_half(_luma(part.float())).half() for part in torch.split(pixels, BATCH)]
    return torch.cat(parts) if parts else torch.empty(0, pixels.shape[2] // 2, pixels.shape[3] // 2).half()


def align_outlines(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the warps (N, 4) that lay the second outlines on the first, and how well they then correlate (N,).

    A warp is scale x, scale y, shift x, shift y: the pixel at x of the first (-1 to 1 across the picture) is the second's
    at scale * x + shift. Pairs below COARSE_ENOUGH are not of the same picture.
    """
    return _align(first.float(), second.float(), torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(len(first), 1), COARSE_STEPS)


def measure(first: Tensor, second: Tensor, warp: Tensor) -> tuple[Tensor, Tensor]:
    """Return the measures float32 (N, 6), named by MEASURES, of pictures uint8 (N, 3, S, S), and the refined warps (N, 4)."""
    pixels_a, pixels_b = first.float(), second.float()
    warp, _ = _align(_luma(pixels_a), _luma(pixels_b), warp, FINE_STEPS)
    return _compare(pixels_a, pixels_b, warp), warp


def _align(first: Tensor, second: Tensor, warp: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the warp (N, 4) that lays the second plane (N, S, S) on the first, and their correlation (N,) then."""
    n, side, _ = first.shape
    first, second = (plane - plane.mean(dim=(1, 2), keepdim=True) for plane in (_smooth(first), _smooth(second)))
    # The rim is left out: there, a shifted copy has a filled border whose edge would pull harder than the picture.
    core = slice(round(0.06 * side), side - round(0.06 * side))
    axis = _axis(side)[core]
    across, down = (slope[:, core, core] for slope in _slopes(first))
    target = first[:, core, core].flatten(1)
    columns = torch.stack(
        [
            across.flatten(1), (across * axis).flatten(1), down.flatten(1), (down * axis[:, None]).flatten(1),
            target, torch.ones_like(target),
        ],
        dim=1,
    )  # fmt: skip
    normal = columns @ columns.mT
    # Scale is held more firmly than shift: few pictures say much about it.
    size = normal.diagonal(dim1=1, dim2=2)[:, [0, 0, 2, 2, 4, 5]] + 1
    normal += torch.diag_embed(size * torch.tensor([1e-3, 1e-2, 1e-3, 1e-2, 1e-6, 1e-6]))
    inverse = torch.linalg.inv(normal)
    gain, offset = torch.ones(n, 1), torch.zeros(n, 1)
    best, best_warp = torch.full((n,), -2.0), warp
    for step in range(steps + 1):
        moved, inside = _move(second[:, None], warp, axis)
        values = moved.flatten(1)
        correlation = _correlation(target, values, inside)
        better = correlation > best
        best, best_warp = torch.where(better, correlation, best), torch.where(better[:, None], warp, best_warp)
        if step == steps:
            break
        # Where the second picture ends, the first says what to expect: no pull from there.
        values = torch.where(inside > 0, values, gain * target + offset)
        solved = ((values[:, None] @ columns.mT) @ inverse)[:, 0]  # the inverse is symmetric
        gain, offset = solved[:, 4:5].clamp(min=0.3), solved[:, 5:]
        change = solved[:, :4] / gain
        # The step was found on the first picture; the second takes its inverse.
        # Shift comes first: from afar, scale is pulled wherever a border or another object is.
        stretch = 1 / (1 + change[:, [1, 3]] * (step >= 2)).clamp(0.9, 1.1)
        push = -change[:, [0, 2]].clamp(-0.15, 0.15) * stretch
        scales = (warp[:, :2] * stretch).clamp(0.75, 1.34)
        shifts = (warp[:, 2:] + warp[:, :2] * push).clamp(-0.4, 0.4)
        warp = torch.cat([scales, shifts], dim=1)
    return best_warp, best


def _axis(side: int) -> Tensor:
    """Return the places of the pixels along a side, from -1 to 1 across the picture."""
    return (torch.arange(side) + 0.5) * 2 / side - 1


def _move(planes: Tensor, warp: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """Return planes (N, C, S, S) warped, at the places `axis` (P,) each way, and 1 where these lie inside (N, P * P)."""
    n, side = len(planes), planes.shape[-1]
    x, y = warp[:, 0:1] * axis + warp[:, 2:3], warp[:, 1:2] * axis + warp[:, 3:4]
    grid = torch.empty(n, len(axis), len(axis), 2)
    grid[..., 0], grid[..., 1] = x[:, None, :], y[:, :, None]
    moved = F.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=False)
    edge = 1 - 0.8 / side  # a little beyond the centres of the outermost pixels, since alignment is not exact
    inside = (y.abs() <= edge).float()[:, :, None] * (x.abs() <= edge).float()[:, None, :]
    return moved, inside.flatten(1)


def _luma(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.unbind(dim=1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def _half(planes: Tensor) -> Tensor:
    rows = planes[:, 0::2] + planes[:, 1::2]
    return (rows[:, :, 0::2] + rows[:, :, 1::2]) / 4


def _smooth(planes: Tensor) -> Tensor:
    """Return planes (N, S, S) after a binomial filter of three pixels each way."""
    wide = F.pad(planes[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    rows = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    return (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 16


def _slopes(planes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the slopes of planes (N, S, S) across and down, a picture being 2 wide."""
    wide = F.pad(planes[:, None], (1, 1, 1, 1), mode="replicate")[:, 0] * (planes.shape[-1] / 4)
    return wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2], wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1]


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum(dim=-1) / weight.sum(dim=-1).clamp(min=1)


def _correlation(first: Tensor, second: Tensor, weight: Tensor, floor: float = 1.0) -> Tensor:
    """Return the weighted correlation of (N, P) with (N, P); `floor` is the variance that counts as noise."""
    total = weight.sum(dim=1)
    a, b = (values - (torch.linalg.vecdot(values, weight) / total.clamp(min=1))[:, None] for values in (first, second))
    weighted = b * weight
    covariance, power_b = torch.linalg.vecdot(a, weighted), torch.linalg.vecdot(b, weighted)
    power_a = torch.linalg.vecdot(a, a * weight)
    correlation: Tensor = covariance / ((power_a + floor * total) * (power_b + floor * total)).sqrt().clamp(min=1e-6)
    return correlation


def _compare(first: Tensor, second: Tensor, warp: Tensor) -> Tensor:
    """Return the measures of pictures float (N, 3, S, S), the second warped onto the first."""
    n, _, side, _ = first.shape
    moved, inside = _move(second, warp, _axis(side))
    luma_a, luma_b = _luma(first), _luma(moved)
    a, b = luma_a.flatten(1), luma_b.flatten(1)
    fine_a, fine_b = ((plane - _smooth(_smooth(plane))).flatten(1) for plane in (luma_a, luma_b))
    gain, offset = _fit(a, b, inside)
    left = (a - gain * b - offset) * inside
    residual = _mean(left.square(), inside).sqrt()
    texture = (_mean(fine_a.square(), inside) * _mean(fine_b.square(), inside)).sqrt().sqrt()
    # The worst parts of the picture tell "same background, other object" from the same picture.
    spread = (_mean(a.square(), inside) - _mean(a, inside).square()).clamp(min=0) + 25
    parts, share = (
        F.avg_pool2d(plane.view(n, 1, side, side), side // 4).flatten(1) for plane in (left.square(), inside)
    )
    parts = torch.where(share > 0.3, parts / share.clamp(min=0.3), 0.0)
    worst = (parts.topk(2, dim=1).values.mean(dim=1) / spread).sqrt()
    colours = [(pixels[:, [0, 2]] - grey[:, None]).flatten(2) for pixels, grey in ((first, luma_a), (moved, luma_b))]
    other = gain[:, None] * colours[1]
    difference = (colours[0] - other).square().sum(dim=1)
    amount = (colours[0].square() + other.square()).sum(dim=1)
    colour = (_mean(difference, inside) / (_mean(amount, inside) + 300)).sqrt()
    return torch.stack(
        [
            torch.atanh(_correlation(a, b, inside).clamp(-0.9999, 0.9999)),
            torch.atanh(_correlation(fine_a, fine_b, inside).clamp(-0.9999, 0.9999)),
            colour, worst, (residual + 1).log(), (texture + 1).log(),
        ],
        dim=1,
    )  # fmt: skip


def _fit(target: Tensor, values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return gain and offset (N, 1) with which `values` come nearest to `target`."""
    a, b = _mean(target, weight)[:, None], _mean(values, weight)[:, None]
    covariance = _mean((target - a) * (values - b), weight)
    gain = (covariance / (_mean((values - b).square(), weight) + 1)).clamp(0.3, 3)[:, None]
    return gain, a - gain * b
