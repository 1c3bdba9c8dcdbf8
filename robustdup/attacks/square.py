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

Where few samples are left, a query is asked together with the next ones, as they are if it is refused, as 89 to 97 in a
hundred are: only what comes before the first that is kept counts, and bits, verdicts and reported passes are those of one
query after the other (see `robustdup.attacks.ahead`).

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

from robustdup.attacks.ahead import ahead, room, take
from robustdup.attacks.expectation import mean_logits, query_passes
from robustdup.attacks.losses import ce, margin, misclassified
from robustdup.attacks.square_windows import CHUNK, Moves, Windows, draw_moves, stretches, window_sides
from robustdup.errors import AttackWarning, UserError, check_counts, unknown
from robustdup.projections import project_l1_changed, row_sum
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

AHEAD = 16  # queries of a sample that are asked at once, at most
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


@dataclass
class _Search:
    """One restart at work: samples that are left, their streams and the moves of this chunk, and where those go that leave."""

    asked: _Question
    threat: ThreatModel
    windows: Windows
    sides: list[int]
    outcome: _Outcome
    rows: _Rows
    streams: SampleRng
    moves: Moves | None = None

    def draw(self, first: int) -> None:
        """Draw the moves of the chunk that begins with the query `first`; under EOT what is kept is asked again."""
        if first and self.asked.eot > 1:
            self.rows.loss, _, _ = self.asked.ask(self.rows.iterate, self.rows.labels)
        sides, pair = self.sides[first : first + CHUNK], self.windows.pair
        self.moves = draw_moves(self.streams, sides, self.asked.shape, first // CHUNK, pair)

    def query(self, number: int) -> None:
        """Make one query of every sample that is left."""
        if len(self.rows.index) and self.moves is not None:
            edits, used = _propose(self.rows, self.moves, number % CHUNK, self.windows, self.sides[number], self.threat)
            _write(self.rows.iterate, edits)
            self.look(edits, used)

    def look(self, edits: list[Edit], used: Tensor) -> None:
        """Ask about the samples' iterates, undo the edits where they do not improve them, and let samples leave."""
        rows = self.rows
        losses, is_adv, leaves = self.asked.ask(rows.iterate, rows.labels)
        improved = losses < rows.loss
        accepted = improved | leaves
        _write(rows.iterate, edits, accepted)
        rows.used = torch.where(accepted, used, rows.used)
        rows.loss = torch.where(improved, losses, rows.loss)
        if bool(leaves.any()):
            self._leave(leaves, losses, is_adv)

    def queries(self, first: int, last: int) -> None:
        """Make the queries from `first` up to `last`, with windows of one side, several of each sample at once.

        All of them start from the same iterate, as if they were refused; those behind the first that is kept are made again.
        """
        rows, drawn, length, model = self.rows, self.moves, last - first, self.asked.model
        assert drawn is not None
        done, looks = [0] * len(rows.index), [length] * len(rows.index)
        leaving, is_adv = torch.zeros(2, len(rows.index), dtype=torch.bool, device=rows.index.device)
        loss = rows.loss.clone()  # of the last query of those that leave
        with ahead(model):
            while unfinished := [row for row, made in enumerate(done) if made < length]:
                count = min(room(model, len(unfinished)), AHEAD)
                plan = [(row, made) for row in unfinished for made in range(done[row], min(done[row] + count, length))]
                of, number = torch.tensor(plan, device=rows.index.device).T
                part, moves = _keep(rows, of), drawn.at(of, first % CHUNK + number)
                edits, used = _propose(part, moves, 0, self.windows, self.sides[first], self.threat)
                _write(part.iterate, edits)
                losses, wrong, leaves = self.asked.ask(part.iterate, part.labels)
                improved = losses < part.loss
                kept: dict[int, int] = {}
                for place, (accepted, leaves_now) in enumerate(torch.stack([improved | leaves, leaves]).T.tolist()):
                    row, made = plan[place]
                    if row in kept:
                        continue
                    done[row] = made + 1
                    if accepted:
                        kept[row] = place
                    if leaves_now:
                        looks[row], done[row] = made + 1, length
                at = torch.tensor(list(kept), dtype=of.dtype, device=of.device)
                first_kept = torch.tensor(list(kept.values()), dtype=of.dtype, device=of.device)
                rows.iterate[at], rows.used[at] = part.iterate[first_kept], used[first_kept]
                rows.loss[at] = torch.where(improved, losses, part.loss)[first_kept]
                leaving[at], is_adv[at], loss[at] = leaves[first_kept], wrong[first_kept], losses[first_kept]
        take(model, torch.tensor(looks), [False] * length)
        if bool(leaving.any()):
            self._leave(leaving, loss, is_adv)

    def _leave(self, leaves: Tensor, losses: Tensor, is_adv: Tensor) -> None:
        """Let samples go, with their losses (n,) and whether they are misclassified (n,)."""
        rows, outcome = self.rows, self.outcome
        left = rows.index[leaves]
        outcome.adv_images[left] = rows.iterate[leaves].view(-1, *self.asked.shape)
        outcome.lowest[left], outcome.is_adv[left] = losses[leaves], is_adv[leaves]
        stay = ~leaves
        self.rows, self.streams = _keep(rows, stay), self.streams[stay]
        self.moves = None if self.moves is None else _keep(self.moves, stay)


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
    windows, streams = Windows(asked.shape, threat.norm, images), rng.fold("queries")
    rows = _start(images, labels, threat, rng.fold("start"), windows, index)
    search = _Search(asked, threat, windows, sides, outcome, rows, streams)
    search.look([(None, rows.iterate, rows.iterate)], rows.used)
    for first, last in stretches(sides):
        if len(search.rows.index) == 0:
            return
        if first % CHUNK == 0:
            search.draw(first)
        if asked.eot == 1 and room(asked.model, len(search.rows.index)) > 1:
            search.queries(first, last)
        else:
            for number in range(first, last):
                search.query(number)
    rows = search.rows
    best = rows.loss <= outcome.lowest[rows.index]
    outcome.adv_images[rows.index[best]] = rows.iterate[best].view(-1, *asked.shape)
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
