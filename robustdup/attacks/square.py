"""Square: random search over square windows, from logits alone. No gradient is ever asked for.

It follows the published attack and its settings in AutoAttack: vertical stripes (Linf) or a grid of tiles (L2, L1) to
start with, then one window a query, smaller and smaller, kept when it lowers the loss. What differs:

- Position, sign and orientation of every window are drawn for each sample. The published code shares the positions over the
  batch, in Linf the signs too, in L2 and L1 the orientation. Each sample by itself sees the same distribution.
- Only the pixels of the windows are read and written. In L2 the published code scales the whole image to length eps
  after each move; that factor is 1 up to rounding, because the window takes exactly the length that is free, and here
  the window takes up the rounding too. (It is not 1 where a window cancels out altogether: images one pixel wide.)
- In Linf every pixel lies on a bound of its ball or of [0, 1], so that adding 2 eps and clipping is moving it to a bound.
- In L1 what the projection takes away is taken away to the last bit. The published code leaves changes of about 1e-8,
  and a window with no other change in it takes up their direction.
- The start grid is cut at the borders of the image, and its tiles are at least one pixel wide: there are sizes (12, 14,
  or below 5) where the published code stops with an error.
- The last iterate of a sample that survives is returned, of several restarts the one with the lowest loss.

As published, windows stop one pixel short of the last row and column, which small windows therefore never reach.

A sample leaves when its margin is not above 0, as published: a tie counts, and so do logits that are not finite. With
restarts, a sample that left on a tie and is still classified correctly is attacked again, as published.

Windows and their draws are in `square_windows`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from robustdup.attacks.expectation import mean_logits, query_passes
from robustdup.attacks.losses import ce, margin, misclassified
from robustdup.attacks.square_windows import CHUNK, Moves, Windows, draw_moves, window_sides
from robustdup.errors import AttackWarning, UserError, check_counts, unknown
from robustdup.projections import project_l1_changed, row_sum
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

L1_SLACK = 1 - 1e-6  # the published code projects onto a ball smaller by this factor

Edit = tuple[Tensor | None, Tensor, Tensor]  # pixels of each sample (all where None), what they were, what they become


def square(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    rng: SampleRng,
    queries: int = 5000,
    p_init: float = 0.8,
    restarts: int = 1,
    loss: Literal["margin", "ce"] = "margin",
    rescale_schedule: bool = False,
    eot: int = 1,
) -> Tensor:
    """Lower the margin (or raise the cross-entropy) by random search; samples that survive return their best iterate.

    Warns (AttackWarning) for images that are not square: windows are limited by the shorter side.
    https://arxiv.org/abs/1912.00049

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: clean images (N, C, H, W) in [0, 1].
        labels: true classes (N,).
        threat: the ball to stay in.
        rng: the samples' streams.
        queries: at most, for each start.
        p_init: share of the image that the first windows cover, above 0 and at most 1.
        restarts: number of starts.
        loss: "margin" or "ce".
        rescale_schedule: fit the published schedule for 10,000 queries to `queries`.
        eot: draws of a model that answers at random, whose mean is looked at in each query; above 1 no sample leaves, and
            what is kept is asked again every so many queries, since the draws that chose it flatter it.

    Returns:
        Images (N, C, H, W) inside the ball and [0, 1].

    Raises:
        UserError: an unknown loss, or a setting that cannot work.
    """
    _check(queries, restarts, p_init, loss, eot)
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
            outcome = _Outcome(adv_images, lowest, torch.zeros_like(lowest, dtype=torch.bool))
            asked = _Question(model, images.shape[1:], loss, eot)
            _search(asked, images[remaining], labels[remaining], threat, streams, sides, remaining, outcome)
            remaining = remaining[~outcome.is_adv[remaining]]
    return adv_images


def square_cost(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (forward, backward) passes that a surviving sample costs under these options."""
    return options["restarts"] * query_passes(options["queries"], options.get("eot", 1), CHUNK), 0


@dataclass
class _Outcome:
    """What samples leave with: the images and losses of all, and who is misclassified."""

    adv_images: Tensor
    lowest: Tensor
    is_adv: Tensor


@dataclass
class _Rows:
    """The samples still searched for; images as (n, D). `used`: squared length (L2) or length (L1) of the change so far."""

    index: Tensor
    labels: Tensor
    clean: Tensor
    iterate: Tensor
    used: Tensor
    loss: Tensor


@dataclass(frozen=True)
class _Question:
    """What a query asks: logits of images of `shape`, the mean of `eot` draws, and the loss of them."""

    model: nn.Module
    shape: torch.Size
    loss: str
    eot: int

    def ask(self, iterate: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return of images as rows (n, D) the losses (n,), which are misclassified (n,), and which leave (n,)."""
        logits = mean_logits(self.model, iterate.view(-1, *self.shape), self.eot).to(iterate.dtype)
        margins = margin(logits, labels)
        losses = margins if self.loss == "margin" else -ce(logits, labels)
        is_adv = misclassified(logits, labels)
        return losses, is_adv, (is_adv | ~(margins > 0)) & (self.eot == 1)


def _search(
    asked: _Question,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    rng: SampleRng,
    sides: list[int],
    index: Tensor,
    outcome: _Outcome,
) -> None:
    """Run one restart on `images`, the samples `index` of all; write what comes out of it into `outcome`."""
    shape = asked.shape
    windows = Windows(shape, threat.norm, images)
    rows = _start(images, labels, threat, rng.fold("start"), windows, index)
    streams = rng.fold("queries")
    edits: list[Edit] = [(None, rows.iterate, rows.iterate)]
    used, moves = rows.used, None
    for query in range(-1, len(sides)):
        if query >= 0:
            offset = query % CHUNK
            if offset == 0:
                if query and asked.eot > 1:
                    rows.loss, _, _ = asked.ask(rows.iterate, rows.labels)
                moves = draw_moves(streams, sides[query : query + CHUNK], shape, query // CHUNK, windows.pair)
            assert moves is not None
            edits, used = _propose(rows, moves, offset, windows, sides[query], threat)
            _write(rows.iterate, edits)
        losses, is_adv, leaves = asked.ask(rows.iterate, rows.labels)
        improved = losses < rows.loss
        accepted = improved | leaves
        _write(rows.iterate, edits, accepted)
        rows.used = torch.where(accepted, used, rows.used)
        rows.loss = torch.where(improved, losses, rows.loss)
        if bool(leaves.any()):
            left = rows.index[leaves]
            outcome.adv_images[left], outcome.lowest[left] = rows.iterate[leaves].view(-1, *shape), losses[leaves]
            outcome.is_adv[left] = is_adv[leaves]
            stay = ~leaves
            rows, streams = _keep(rows, stay), streams[stay]
            moves = None if moves is None else _keep(moves, stay)
            if len(rows.index) == 0:
                return
    best = rows.loss <= outcome.lowest[rows.index]
    outcome.adv_images[rows.index[best]] = rows.iterate[best].view(-1, *shape)
    outcome.lowest[rows.index[best]] = rows.loss[best]


_Kept = TypeVar("_Kept", _Rows, Moves)


def _keep(kept: _Kept, rows: Tensor) -> _Kept:
    return type(kept)(**{field.name: getattr(kept, field.name)[rows] for field in fields(kept)})


def _write(images: Tensor, edits: list[Edit], accepted: Tensor | None = None) -> None:
    """Make the edits in `images` (n, D), one after the other; given `accepted` (n,), undo those of the others."""
    for pixels, old, new in edits:
        value = new if accepted is None else torch.where(accepted[:, None], new, old)
        if pixels is None:
            images.copy_(value)
        else:
            images.scatter_(1, pixels, value)


def _start(
    images: Tensor, labels: Tensor, threat: ThreatModel, rng: SampleRng, windows: Windows, index: Tensor
) -> _Rows:
    """Return each sample at its start: stripes of height H at a distance of eps in Linf, a grid of tiles in L2 and L1."""
    count, channels, _, width = images.shape
    used = torch.zeros(count, dtype=torch.float64, device=images.device)
    clean = images.detach().flatten(1)
    if threat.norm == "Linf":
        sign = rng.signs((channels, 1, width), dtype=images.dtype)
        iterate = (images.detach() + threat.radius * sign).clamp(0, 1).flatten(1)
    else:
        delta = _tiles(images, rng, windows).flatten(1)
        if threat.norm == "L2":
            iterate = (clean + threat.sphere_scale(delta)).clamp(0, 1)
            used = row_sum((iterate.double() - clean.double()).square())
        else:
            iterate, used = project_l1_changed(clean, clean + delta, threat.radius * L1_SLACK)
    loss = images.new_full((count,), torch.inf)
    return _Rows(index=index, labels=labels, clean=clean, iterate=iterate, used=used, loss=loss)


def _tiles(images: Tensor, rng: SampleRng, windows: Windows) -> Tensor:
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
            window = delta[:, :, top : top + side, start : start + side]
            window.copy_(tile[:, :, : window.shape[2], : window.shape[3]])
    return delta


def _propose(
    rows: _Rows, moves: Moves, query: int, windows: Windows, side: int, threat: ThreatModel
) -> tuple[list[Edit], Tensor]:
    """Return the edits of a query and what the change of each sample would come to (see `_Rows.used`)."""
    pixels = moves.corner[:, query, None] + windows.offsets(side)
    old, clean = rows.iterate.gather(1, pixels), rows.clean.gather(1, pixels)
    sign = moves.sign[:, query, :, None]
    if not windows.pair:
        shift = (threat.radius * sign.to(clean.dtype)).expand(-1, -1, side * side).flatten(1)
        return [(pixels, old, (clean + shift).clamp_(0, 1))], rows.used
    pixels2 = moves.corner2[:, query, None] + windows.offsets(side)
    old2, clean2 = rows.iterate.gather(1, pixels2), rows.clean.gather(1, pixels2)
    axis = torch.arange(side, device=pixels.device)
    shifted = [by[:, query, None] + axis for by in (moves.down, moves.along)]
    within = [(pixel >= 0) & (pixel < side) for pixel in shifted]
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
    moved = rows.iterate.scatter(1, pixels2, clean2).scatter_(1, pixels, new)
    moved, used = project_l1_changed(rows.clean, moved, threat.radius * L1_SLACK)
    return [(None, rows.iterate.clone(), moved)], used


def _sizes(delta: Tensor, norm: str) -> Tensor:
    """Sum squares (L2) or absolute values (L1) of each channel: (n, C, k) float64 -> (n, C), the same bits in any company."""
    terms = delta.square() if norm == "L2" else delta.abs()
    return row_sum(terms.flatten(0, 1)).view(delta.shape[:2])


def _check(queries: int, restarts: int, p_init: float, loss: str, eot: int) -> None:
    check_counts("square", queries=queries, restarts=restarts, eot=eot)
    if not 0 < p_init <= 1:
        raise UserError(
            f"square: p_init is a share of the image, above 0 and at most 1, got {p_init}.", code="bad-option"
        )
    if loss not in ("margin", "ce"):
        raise unknown("loss of square:", str(loss), ("margin", "ce"))
