"""Square: random search over square windows, from logits alone. No gradient is ever asked for.

It follows the published attack and its settings in AutoAttack: vertical stripes (Linf) or a grid of tiles (L2, L1) to
start with, then one window a query, smaller and smaller, kept when it lowers the loss. What differs:

- Place, sign and orientation of every window are drawn for each row. The published code shares the places over the
  batch, in Linf the signs too, in L2 and L1 the orientation. Each row by itself sees the same distribution.
- Only the pixels of the windows are read and written. In L2 the published code scales the whole image to length eps
  after each move; that factor is 1 up to rounding, because the window takes exactly the length that is free, and here
  the window takes up the rounding too. (It is not 1 where a window cancels out altogether: images one pixel wide.)
- In Linf every pixel lies on a bound of its ball or box, so that adding 2 eps and clipping is moving it to a bound.
- In L1 what the projection takes away is taken away to the last bit. The published code leaves changes of about 1e-8,
  and a window with no other change in it takes up their direction.
- The start grid is cut at the borders of the image, and its tiles are at least one pixel wide: there are sizes (12, 14,
  or below 5) where the published code stops with an error.
- The last iterate of a row that survives is returned, of several restarts the one with the lowest loss.

As published, windows stop one place short of the last row and column, which small windows therefore never reach.

A row leaves when its margin is not above 0, as published: a tie counts, and so do logits that are not finite. With
restarts, a row that left on a tie and is still classified correctly is attacked again, as published.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from robustdup.attacks.losses import ce, margin, misclassified
from robustdup.errors import AttackWarning, UserError, unknown
from robustdup.projections import project_l1_changed, row_length, row_sum
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

CHUNK = 64  # queries whose randomness is drawn at once; a part of what a seed means, like the order of the draws
SCHEDULE = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # after each of these queries the window's area is halved
L1_SLACK = 1 - 1e-6  # the published code projects onto a ball smaller by this factor

Edit = tuple[Tensor | None, Tensor, Tensor]  # pixels of each row (all where None), what they were, what they become


def square(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng,
    queries: int = 5000, p_init: float = 0.8, restarts: int = 1, loss: Literal["margin", "ce"] = "margin",
    rescale_schedule: bool = False,
) -> Tensor:  # fmt: skip
    """Lower the margin (or raise the cross-entropy) by random search; rows that survive return their best iterate.

    Images (N, C, H, W) in [0, 1], labels (N,) -> images of the same shape, inside the ball and the box. `p_init` is the
    share of the image that the first windows cover; `rescale_schedule` fits the published schedule for 10,000 queries
    to `queries`. Warns (AttackWarning) for images that are not square: windows are limited by the shorter side. Raises
    UserError for an unknown loss or a setting that cannot work. Follows https://arxiv.org/abs/1912.00049.
    """
    _check(queries, restarts, p_init, loss)
    height, width = images.shape[-2:]
    if height != width:
        warnings.warn(
            f"square: the images are {height}x{width}, not square; windows are no larger than the shorter side, and "
            "the attack was not tuned for such images.",
            AttackWarning,
            stacklevel=2,
        )
    sides = window_sides(threat.norm, queries, p_init, height, width, rescale=rescale_schedule)
    adv_images = images.detach().clone()
    lowest = images.new_full((len(images),), torch.inf)
    remaining = torch.arange(len(images), device=images.device)
    with torch.no_grad():
        for restart in range(restarts):
            if len(remaining) == 0:
                break
            streams = rng[remaining].fold("restart").fold(restart)
            left = _Left(adv_images, lowest, torch.zeros_like(lowest, dtype=torch.bool))
            _search(model, images[remaining], labels[remaining], threat, streams, sides, loss, remaining, left)
            remaining = remaining[~left.fooled[remaining]]
    return adv_images


def square_cost(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (forward, backward) passes that a surviving point costs under these options."""
    return options["restarts"] * (1 + options["queries"]), 0


def window_sides(norm: str, queries: int, p_init: float, height: int, width: int, *, rescale: bool) -> list[int]:
    """Return the side of the window of each query, in pixels: odd and at least 3 in L2 and L1, where it fits."""
    sides = []
    for query in range(queries):
        place = int(query / queries * 10000) if rescale else query
        share = p_init / 2 ** sum(place > bound for bound in SCHEDULE)
        side = max(round(math.sqrt(share * height * width)), 1)
        if norm != "Linf":
            side = max(side, 3)
            side += side % 2 == 0
        sides.append(min(side, height, width))
    return sides


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


@dataclass
class _Left:
    """Where rows go when they leave: the images and losses of all points, and who is misclassified."""

    adv_images: Tensor
    lowest: Tensor
    fooled: Tensor


@dataclass
class _Rows:
    """The rows still searched for; images as (n, D). `used`: squared length in L2, length in L1, of the change so far."""

    index: Tensor
    labels: Tensor
    clean: Tensor
    point: Tensor
    used: Tensor
    loss: Tensor


@dataclass
class _Moves:
    """What a chunk of queries does, by row and query (n, CHUNK, ...).

    `corner` is the place of the window's first pixel, `corner2` that of the window given up (L2, L1), `down` and
    `along` how far the second lies from the first; `sign` is -1 or 1 for each channel, `turned` is 0 or 1.
    """

    corner: Tensor
    corner2: Tensor
    down: Tensor
    along: Tensor
    sign: Tensor
    turned: Tensor


def _search(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, rng: SampleRng, sides: list[int],
    loss: str, index: Tensor, left: _Left,
) -> None:  # fmt: skip
    """Run one restart on `images`, rows `index` of all points; write what comes out, and who was fooled, into `left`."""
    shape = images.shape[1:]
    windows = _Windows(shape, threat.norm, images)
    rows = _start(images, labels, threat, rng.fold("start"), windows, index)
    streams = rng.fold("queries")
    edits: list[Edit] = [(None, rows.point, rows.point)]
    used, moves = rows.used, None
    for query in range(-1, len(sides)):
        if query >= 0:
            at = query % CHUNK
            if at == 0:
                moves = _draw(streams, sides[query : query + CHUNK], shape, query // CHUNK, windows.pair)
            assert moves is not None
            edits, used = _propose(rows, moves, at, windows, sides[query], threat)
            _write(rows.point, edits)
        logits = model(rows.point.view(-1, *shape)).to(rows.point.dtype)
        gap = margin(logits, rows.labels)
        value = gap if loss == "margin" else -ce(logits, rows.labels)
        wrong = misclassified(logits, rows.labels)
        done = wrong | ~(gap > 0)
        better = value < rows.loss
        accepted = better | done
        _write(rows.point, edits, accepted)
        rows.used = torch.where(accepted, used, rows.used)
        rows.loss = torch.where(better, value, rows.loss)
        if bool(done.any()):
            gone = rows.index[done]
            left.adv_images[gone], left.lowest[gone] = rows.point[done].view(-1, *shape), value[done]
            left.fooled[gone] = wrong[done]
            keep = ~done
            rows, streams = _keep(rows, keep), streams[keep]
            moves = None if moves is None else _keep(moves, keep)
            if len(rows.index) == 0:
                return
    best = rows.loss <= left.lowest[rows.index]
    left.adv_images[rows.index[best]] = rows.point[best].view(-1, *shape)
    left.lowest[rows.index[best]] = rows.loss[best]


_Held = TypeVar("_Held", _Rows, _Moves)


def _keep(held: _Held, rows: Tensor) -> _Held:
    return type(held)(**{field.name: getattr(held, field.name)[rows] for field in fields(held)})


def _write(point: Tensor, edits: list[Edit], accepted: Tensor | None = None) -> None:
    """Make the edits in `point` (n, D), one after the other; given `accepted` (n,), undo those of the other rows."""
    for pixels, old, new in edits:
        value = new if accepted is None else torch.where(accepted[:, None], new, old)
        if pixels is None:
            point.copy_(value)
        else:
            point.scatter_(1, pixels, value)


class _Windows:
    """Places and patterns of windows for images of one shape, worked out once for each side."""

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


def _draw(rng: SampleRng, sides: list[int], shape: torch.Size, chunk: int, pair: bool) -> _Moves:
    """Draw a chunk of moves; a place is uniform over the rows 0 … H - side - 1 (0 where nothing else fits), as published."""
    channels, height, width = shape
    first = 4 if pair else 2
    words = rng.bits((CHUNK, first + channels // 32 + 1), draw=chunk)[:, : len(sides)]
    side = torch.tensor(sides, device=words.device)
    spans = [(size - side).clamp(min=1) for size in (height, width)]
    top, along = ((words[..., i] * span) >> 32 for i, span in enumerate(spans))
    top2, along2 = ((words[..., 2 + i] * span) >> 32 for i, span in enumerate(spans)) if pair else (top, along)
    coins = torch.stack([(words[..., first + k // 32] >> (k % 32)) & 1 for k in range(channels + 1)], dim=-1)
    return _Moves(
        corner=top * width + along, corner2=top2 * width + along2, down=top2 - top, along=along2 - along,
        sign=coins[..., :-1] * 2 - 1, turned=coins[..., -1],
    )  # fmt: skip


def _start(
    images: Tensor, labels: Tensor, threat: ThreatModel, rng: SampleRng, windows: _Windows, index: Tensor
) -> _Rows:
    """Place each row at its start: stripes of height H at a distance of eps in Linf, a grid of tiles in L2 and L1."""
    count, channels, _, width = images.shape
    used = torch.zeros(count, dtype=torch.float64, device=images.device)
    clean = images.detach().flatten(1)
    if threat.norm == "Linf":
        sign = rng.signs((channels, 1, width), dtype=images.dtype)
        point = (images.detach() + threat.radius * sign).clamp(0, 1).flatten(1)
    else:
        delta = _tiles(images, rng, windows).flatten(1)
        if threat.norm == "L2":
            point = (clean + threat.sphere_scale(delta)).clamp(0, 1)
            used = row_sum((point.double() - clean.double()).square())
        else:
            point, used = project_l1_changed(clean, clean + delta, threat.radius * L1_SLACK)
    loss = images.new_full((count,), torch.inf)
    return _Rows(index=index, labels=labels, clean=clean, point=point, used=used, loss=loss)


def _tiles(images: Tensor, rng: SampleRng, windows: _Windows) -> Tensor:
    """Return the start of L2 and L1, not yet scaled: about five by five patterns, each with its signs and turn."""
    _, channels, height, width = images.shape
    side = max(height // 5, 1)
    margin_width = max((height - side * 5) // 2, 0)
    tops = range(margin_width, margin_width + height // side * side, side)
    lefts = range(margin_width, margin_width + max(width // side, 1) * side, side)
    signs = rng.fold("signs").signs((len(tops), len(lefts), channels), dtype=images.dtype)
    turned = rng.fold("turns").integers(0, 2, (len(tops), len(lefts)))
    patterns = windows.patterns(side).to(images.dtype)
    delta = torch.zeros_like(images)
    for i, top in enumerate(tops):
        for j, start in enumerate(lefts):
            tile = patterns[turned[:, i, j]][:, None] * signs[:, i, j, :, None, None]
            place = delta[:, :, top : top + side, start : start + side]
            place.copy_(tile[:, :, : place.shape[2], : place.shape[3]])
    return delta


def _propose(
    rows: _Rows, moves: _Moves, query: int, windows: _Windows, side: int, threat: ThreatModel
) -> tuple[list[Edit], Tensor]:
    """Return the edits of a query and what the change of each row would come to (see `_Rows.used`)."""
    pixels = moves.corner[:, query, None] + windows.offsets(side)
    old, clean = rows.point.gather(1, pixels), rows.clean.gather(1, pixels)
    sign = moves.sign[:, query, :, None]
    if not windows.pair:
        shift = (threat.radius * sign.to(clean.dtype)).expand(-1, -1, side * side).flatten(1)
        return [(pixels, old, (clean + shift).clamp_(0, 1))], rows.used
    pixels2 = moves.corner2[:, query, None] + windows.offsets(side)
    old2, clean2 = rows.point.gather(1, pixels2), rows.clean.gather(1, pixels2)
    axis = torch.arange(side, device=pixels.device)
    places = [by[:, query, None] + axis for by in (moves.down, moves.along)]
    within = [(place >= 0) & (place < side) for place in places]
    outside = ~(within[0][:, :, None] & within[1][:, None, :]).flatten(1)[:, None]
    shape = (len(pixels), -1, side * side)
    delta = (old.double() - clean.double()).view(shape)
    delta2 = (old2.double() - clean2.double()).view(shape) * outside
    size, size2 = _sizes(delta, threat.norm), _sizes(delta2, threat.norm)
    l2 = threat.norm == "L2"
    pattern = windows.patterns(side)[moves.turned[:, query]].view(len(pixels), 1, -1)
    raw = pattern * sign + delta / (1e-12 + (size.sqrt() if l2 else size))[:, :, None]
    raw_size = _sizes(raw, threat.norm)
    channels = delta.shape[1]
    if l2:
        wanted = ((threat.radius**2 - rows.used)[:, None] / channels + size + size2).clamp(min=0).sqrt()
        raw_size = raw_size.sqrt()
    else:
        wanted = ((threat.radius - rows.used).clamp(min=0)[:, None] / channels + size + size2) * channels
    new_delta = (raw * (wanted / (1e-12 + raw_size))[:, :, None]).flatten(1)
    new = (clean.double() + new_delta).to(clean.dtype)
    if l2:
        new.clamp_(0, 1)
        change = _sizes((new.double() - clean.double()).view(shape), "L2") - size - size2
        return [(pixels2, old2, clean2), (pixels, old, new)], (rows.used + row_sum(change)).clamp(min=0)
    moved = rows.point.scatter(1, pixels2, clean2).scatter_(1, pixels, new)
    moved, used = project_l1_changed(rows.clean, moved, threat.radius * L1_SLACK)
    return [(None, rows.point.clone(), moved)], used


def _sizes(delta: Tensor, norm: str) -> Tensor:
    """Sum squares (L2) or absolute values (L1) of each channel: (n, C, k) float64 -> (n, C), the same bits in any company."""
    terms = delta.square() if norm == "L2" else delta.abs()
    return row_sum(terms.flatten(0, 1)).view(delta.shape[:2])


def _check(queries: int, restarts: int, p_init: float, loss: str) -> None:
    for name, count in {"queries": queries, "restarts": restarts}.items():
        if count < 1:
            raise UserError(f"square: {name} must be at least 1, got {count}.", code="bad-option")
    if not 0 < p_init <= 1:
        raise UserError(
            f"square: p_init is a share of the image, above 0 and at most 1, got {p_init}.", code="bad-option"
        )
    if loss not in ("margin", "ce"):
        raise unknown("loss of square:", str(loss), ("margin", "ce"))
