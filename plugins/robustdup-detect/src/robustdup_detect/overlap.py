"""Is it the same picture where two pictures overlap? One is laid on the other by a map, and what agrees is measured.

The map is refined by Gauss-Newton steps on the brightness of both, with parts that fit nothing (text, a watermark, what
covers the picture) weighing little. Contrast, gamma and negatives are fitted; then the overlap is looked at block by block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robustdup_detect.verify import BATCH, _luma, _smooth

PICTURE = 96  # pixels a side of the pictures that are compared
GRID = 40  # points a side of the overlap at which they are compared, each a mean of 2 x 2
BLOCKS = 8  # blocks a side of the overlap
STEPS = 5
LEAST_OVERLAP = 0.02  # share of the first picture
AGREES = 0.6  # correlation of a block that shows the same in both
MEASURES = ("matches", "share", "agreeing", "luma", "detail", "overlap")
LOWEST = (0.0, 0.0, 0.0, -1.0, -1.0, 0.0)


def compare_overlap(
    first: Tensor, second: Tensor, maps: Tensor, matches: Tensor, share: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the measures float32 (N, 6), named by MEASURES, and the refined maps (N, 2, 3).

    `first`, `second` are pictures uint8 (N, 3, S, S), `maps` (N, 2, 3) take places of the first (-1 to 1 across) to those of
    the second, `matches` (N,) is how many local features lie alike, `share` (N,) how many of those that both could show.
    """
    if not len(first):
        return torch.empty(0, len(MEASURES)), torch.empty(0, 2, 3)
    parts = [
        _compare(first[rows], second[rows], maps[rows], matches[rows], share[rows])
        for rows in torch.split(torch.arange(len(first)), BATCH // 4)
    ]
    measures, refined = zip(*parts, strict=True)
    return torch.cat(measures), torch.cat(refined)


def _compare(first: Tensor, second: Tensor, maps: Tensor, matches: Tensor, matched: Tensor) -> tuple[Tensor, Tensor]:
    luma_a, luma_b = _luma(first.float()), _luma(second.float())
    places, share = _overlap(maps)
    enough = share >= LEAST_OVERLAP
    places[~enough] = _overlap(torch.eye(2, 3).expand(1, 2, 3))[0]
    planes = _with_slopes(luma_b)
    target = _smooth(_sample(luma_a[:, None], places)[:, 0])
    refined = _refine(target, planes, places, maps)
    values = _smooth(_sample(planes[:, :1], _moved(places, refined))[:, 0])
    inside = _inside(_moved(places, refined))
    covered = share * inside.mean(dim=(1, 2))
    predicted = _toned(target, values, inside)
    agreeing, kept = _agreement(target, predicted, inside)
    flat_a, flat_b, weight = target.flatten(1), predicted.flatten(1), kept.flatten(1)
    fine_a, fine_b = ((plane - _smooth(_smooth(plane))).flatten(1) for plane in (target, predicted))
    area = (covered * torch.linalg.det(refined[:, :, :2]).abs()).clamp(max=1)  # share of the second picture
    measures = torch.stack(
        [
            (matches.float() + 1).log(), matched, agreeing, _correlated(flat_a, flat_b, weight),
            _correlated(fine_a, fine_b, weight, 1.0),
            torch.maximum(covered, area),
        ],
        dim=1,
    )  # fmt: skip
    return torch.where(enough[:, None], measures, torch.tensor(LOWEST)), refined


def _overlap(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the points (N, G, G, 2) of the first picture's part that the second shows too, and how large it is (N,)."""
    axis = (torch.arange(25) + 0.5) * 2 / 25 - 1
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).expand(len(maps), 25, 25, 2)
    inside = _inside(_moved(grid, maps)) > 0
    share = inside.float().mean(dim=(1, 2))
    far = torch.where(inside[..., None], grid, 2.0).flatten(1, 2).amin(dim=1)
    near = torch.where(inside[..., None], grid, -2.0).flatten(1, 2).amax(dim=1)
    low, high = (far - 1 / 25).clamp(-1, 1), (near + 1 / 25).clamp(-1, 1)
    fine = (torch.arange(GRID) + 0.5) / GRID
    across = low[:, None, :1] + (high - low)[:, None, :1] * fine[None, :, None]
    down = low[:, None, 1:] + (high - low)[:, None, 1:] * fine[None, :, None]
    places = torch.stack([across[:, None, :, 0].expand(-1, GRID, -1), down[:, :, None, 0].expand(-1, -1, GRID)], dim=-1)
    part = ((high - low).clamp(min=0) / 2).prod(dim=1)
    return places.contiguous(), part * (share > 0)


def _moved(places: Tensor, maps: Tensor) -> Tensor:
    """Return places (N, H, W, 2) as maps (N, 2, 3) take them."""
    moved: Tensor = torch.einsum("nij,nhwj->nhwi", maps[:, :, :2], places) + maps[:, None, None, :, 2]
    return moved


def _inside(places: Tensor) -> Tensor:
    return (places.abs() <= 0.99).all(dim=-1).float()


def _sample(planes: Tensor, places: Tensor) -> Tensor:
    """Return planes (N, C, S, S) at places (N, G, G, 2), each a mean over the distance to the next place."""
    sampled: Tensor = torch.zeros(())
    step_x, step_y = (
        (places[:, :, 1:] - places[:, :, :-1]).mean(dim=(1, 2)),
        (places[:, 1:] - places[:, :-1]).mean(dim=(1, 2)),
    )
    for right in (-0.25, 0.25):
        for down in (-0.25, 0.25):
            grid = places + (right * step_x + down * step_y)[:, None, None]
            sampled = sampled + F.grid_sample(planes, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled / 4


def _with_slopes(luma: Tensor) -> Tensor:
    """Return luma (N, S, S), smoothed for its slopes, with these across and down: (N, 3, S, S); a picture is 2 wide."""
    smooth = _smooth(luma)
    wide = F.pad(smooth[:, None], (1, 1, 1, 1), mode="replicate")[:, 0] * (luma.shape[-1] / 4)
    return torch.stack([luma, wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2], wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1]], dim=1)


def _refine(target: Tensor, planes: Tensor, places: Tensor, maps: Tensor) -> Tensor:
    """Return maps (N, 2, 3) that lay the second picture better on the first one's overlap `target` (N, G, G)."""
    n = len(target)
    x, y = places.unbind(dim=-1)
    ones = torch.ones_like(x)
    room = 0.3 * target.flatten(1).std(dim=1)[:, None, None] + 4
    best, best_loss = maps, torch.full((n,), 2.0)
    gain = offset = None
    for step in range(STEPS + 1):
        moved = _moved(places, maps)
        sampled = _sample(planes, moved)
        sampled = torch.stack([_smooth(sampled[:, channel]) for channel in range(3)], dim=1)
        inside = _inside(moved)
        values, across, down = sampled.unbind(dim=1)
        gain, offset = _linear(target, values, inside, room)
        left = target - gain * values - offset
        weight = inside / (1 + (left / room).square()).square()
        loss = 1 - weight.sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp(min=1)
        better = (loss < best_loss) & (inside.mean(dim=(1, 2)) > 0.3)
        best, best_loss = torch.where(better[:, None, None], maps, best), torch.where(better, loss, best_loss)
        if step == STEPS:
            break
        columns = torch.stack(
            [
                gain * across * x, gain * across * y, gain * across, gain * down * x, gain * down * y, gain * down,
                values, ones,
            ],
            dim=1,
        ).flatten(2)  # fmt: skip
        weighted = columns * weight.flatten(1)[:, None]
        normal = weighted @ columns.mT
        normal = normal + torch.diag_embed(normal.diagonal(dim1=1, dim2=2) * 1e-3 + 1e-3)
        change = torch.linalg.solve(normal, weighted @ left.flatten(1)[..., None])[:, :6, 0].view(n, 2, 3)
        maps = maps + change.clamp(-0.05, 0.05)
    return best


def _linear(target: Tensor, values: Tensor, inside: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """Return gain and offset (N, 1, 1) with which values come nearest to the target, odd parts left aside."""
    weight = inside
    gain = offset = torch.zeros(len(target), 1, 1)
    for _ in range(4):
        total = weight.sum(dim=(1, 2), keepdim=True).clamp(min=1)
        mean_a, mean_b = ((plane * weight).sum(dim=(1, 2), keepdim=True) / total for plane in (target, values))
        covariance = ((target - mean_a) * (values - mean_b) * weight).sum(dim=(1, 2), keepdim=True) / total
        variance = ((values - mean_b).square() * weight).sum(dim=(1, 2), keepdim=True) / total
        gain = covariance / (variance + 1)
        offset = mean_a - gain * mean_b
        weight = inside / (1 + ((target - gain * values - offset) / room).square()).square()
    return gain, offset


def _toned(target: Tensor, values: Tensor, inside: Tensor) -> Tensor:
    """Return values (N, G, G) after the curve, a parabola, that brings them nearest to the target, odd parts left aside."""
    scaled = (values - 128) / 64
    columns = torch.stack([torch.ones_like(scaled), scaled, scaled.square()], dim=1).flatten(2)
    flat, within = target.flatten(1), inside.flatten(1)
    room = 0.3 * flat.std(dim=1, keepdim=True) + 4
    weight, predicted = within, flat
    for _ in range(4):
        weighted = columns * weight[:, None]
        normal = weighted @ columns.mT + torch.eye(3) * 1e-2
        solved = torch.linalg.solve(normal, weighted @ flat[..., None])
        predicted = (columns * solved).sum(dim=1)
        weight = within / (1 + ((flat - predicted) / room).square()).square()
    return predicted.view_as(values)


def _agreement(target: Tensor, predicted: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share (N,) of the blocks inside that show the same, and their pixels, 1 or 0 (N, G, G)."""
    size = GRID // BLOCKS

    def pooled(plane: Tensor) -> Tensor:
        return F.avg_pool2d(plane[:, None], size)[:, 0]

    mean_a, mean_b = pooled(target), pooled(predicted)
    var_a, var_b = pooled(target.square()) - mean_a.square(), pooled(predicted.square()) - mean_b.square()
    covariance = pooled(target * predicted) - mean_a * mean_b
    error = pooled((target - predicted).square()).sqrt()
    spread = target.flatten(1).std(dim=1)[:, None, None]
    alike = covariance / ((var_a.clamp(min=0) + 4) * (var_b.clamp(min=0) + 4)).sqrt()
    agrees = ((alike > AGREES) & (error < 0.6 * spread + 6)) | (error < 0.12 * spread + 2)
    seen = (pooled(inside) > 0.7).float()
    good = agrees.float() * seen
    share = good.sum(dim=(1, 2)) / seen.sum(dim=(1, 2)).clamp(min=1)
    kept = good.repeat_interleave(size, dim=1).repeat_interleave(size, dim=2) * inside
    return share, kept


def _correlated(first: Tensor, second: Tensor, weight: Tensor, floor: float = 4.0) -> Tensor:
    """Return the inverse hyperbolic tangent of the weighted correlation (N,) of (N, P) with (N, P)."""
    total = weight.sum(dim=1, keepdim=True).clamp(min=1)
    a, b = (values - (values * weight).sum(dim=1, keepdim=True) / total for values in (first, second))
    room = floor * total[:, 0]
    covariance = (a * b * weight).sum(dim=1)
    power = ((a.square() * weight).sum(dim=1) + room) * ((b.square() * weight).sum(dim=1) + room)
    return torch.atanh((covariance / power.sqrt()).clamp(-0.9999, 0.9999))
