"""The windows of Square: their sides, their patterns, and the draws that place them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from torch import Tensor

from robustdup.projections import row_length
from robustdup.rng import SampleRng

CHUNK = 64  # queries whose randomness is drawn at once; a part of what a seed means, like the order of the draws
SCHEDULE = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # after each of these queries the window's area is halved


def window_sides(norm: str, queries: int, p_init: float, height: int, width: int, *, rescale: bool) -> list[int]:
    """Return the side of the window of each query, in pixels: odd and at least 3 in L2 and L1, where it fits."""
    sides = []
    for query in range(queries):
        scaled = int(query / queries * 10000) if rescale else query
        share = p_init / 2 ** sum(scaled > bound for bound in SCHEDULE)
        side = max(round(math.sqrt(share * height * width)), 1)
        if norm != "Linf":
            side = max(side, 3)
            side += side % 2 == 0
        sides.append(min(side, height, width))
    return sides


def stretches(sides: list[int]) -> Iterator[tuple[int, int]]:
    """Cut the queries into stretches (first, last + 1) that lie in one chunk and have windows of one side."""
    cuts = [query for query, side in enumerate(sides) if query % CHUNK == 0 or side != sides[query - 1]]
    return pairwise([*cuts, len(sides)])


def window_pattern(side: int, norm: str) -> Tensor:
    """Return the window's shape (side, side) in float64: a positive and a negative bump, together of length 1.

    A bump is a pile of concentric rectangles, the k-th added with weight 1 / k^2 in L2 and 1 / k^4 in L1.
    """
    power = 2 if norm == "L2" else 4

    def bump(rows: int, cols: int) -> Tensor:
        down, along = (torch.arange(rows) - rows // 2).abs(), (torch.arange(cols) - cols // 2).abs()
        weights = torch.arange(1, max(rows // 2, cols // 2) + 2, dtype=torch.float64) ** -power
        pile = weights.flip(0).cumsum(0).flip(0)[torch.maximum(down[:, None], along[None, :])]
        return pile / row_length(pile[None], norm)

    upper = bump(side // 2, side) if side > 1 else torch.zeros(0, side, dtype=torch.float64)
    both = torch.cat([upper, -bump(side - side // 2, side)])
    return both / row_length(both[None], norm)


class Windows:
    """Pixels and patterns of windows for images of one shape, worked out once for each side."""

    def __init__(self, shape: torch.Size, norm: str, like: Tensor) -> None:
        self.shape, self.norm, self.pair = shape, norm, norm != "Linf"
        self._like = like.new_empty(0)
        self._offsets: dict[int, Tensor] = {}
        self._patterns: dict[int, Tensor] = {}

    def offsets(self, side: int) -> Tensor:
        """Return where the pixels of a window lie, counted from its first: (C * side * side,), channel by channel."""
        if side not in self._offsets:
            channels, height, width = self.shape
            axis = torch.arange(side, device=self._like.device)
            plane = torch.arange(channels, device=self._like.device) * (height * width)
            self._offsets[side] = (plane[:, None, None] + axis[:, None] * width + axis).flatten()
        return self._offsets[side]

    def patterns(self, side: int) -> Tensor:
        """Return the pattern of a window upright and turned: (2, side, side) float64."""
        if side not in self._patterns:
            upright = window_pattern(side, self.norm).to(self._like.device)
            self._patterns[side] = torch.stack([upright, upright.T])
        return self._patterns[side]


@dataclass
class Moves:
    """What a chunk of queries does, by sample and query (n, CHUNK, ...).

    `corner` is the window's first pixel, `corner2` that of the window given up (L2, L1), `down` and
    `along` how far the second lies from the first; `sign` is -1 or 1 for each channel, `turned` is 0 or 1.
    """

    corner: Tensor
    corner2: Tensor
    down: Tensor
    along: Tensor
    sign: Tensor
    turned: Tensor

    def at(self, rows: Tensor, queries: Tensor) -> Moves:
        """Return of the moves those of single queries: samples (m,) and queries (m,) -> (m, 1, ...)."""
        return Moves(**{field.name: getattr(self, field.name)[rows, queries][:, None] for field in fields(self)})


def draw_moves(rng: SampleRng, sides: list[int], shape: torch.Size, chunk: int, pair: bool) -> Moves:
    """Draw a chunk of moves; positions are uniform over 0 … H - side - 1 (0 where nothing else fits), as published."""
    channels, height, width = shape
    first = 4 if pair else 2
    words = rng.bits((CHUNK, first + channels // 32 + 1), draw=chunk)[:, : len(sides)]
    side = torch.tensor(sides, device=words.device)
    spans = [(size - side).clamp(min=1) for size in (height, width)]
    top, along = ((words[..., i] * span) >> 32 for i, span in enumerate(spans))
    top2, along2 = ((words[..., 2 + i] * span) >> 32 for i, span in enumerate(spans)) if pair else (top, along)
    coins = torch.stack([(words[..., first + k // 32] >> (k % 32)) & 1 for k in range(channels + 1)], dim=-1)
    return Moves(
        corner=top * width + along,
        corner2=top2 * width + along2,
        down=top2 - top,
        along=along2 - along,
        sign=coins[..., :-1] * 2 - 1,
        turned=coins[..., -1],
    )
