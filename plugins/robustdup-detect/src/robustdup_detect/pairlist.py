"""Sets of pairs: which pictures, how sure, and by which map; turned round, joined, and from different pictures to all rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustdup_detect.groups import Groups, identical_across

IN_PLACE = 0.98  # share of both pictures
FEW_FEATURES = 10  # local features of a picture below which they say nothing


@dataclass(frozen=True)
class Pairs:
    """Pairs of pictures: `a`, `b` (P,) int64, `score` (P,) float32 in [0, 1], `mirrored` (P,) bool, `warp` (P, 4), `turn` (P,).

    The pixel at x of picture a (mirrored first where `mirrored`, then turned clockwise by `turn` degrees; -1 to 1 across it)
    is that of b at scale * x + shift; `warp` is scale x, scale y, shift x, shift y. Without `turn`, none is turned.
    """

    a: Tensor
    b: Tensor
    score: Tensor
    mirrored: Tensor
    warp: Tensor
    turn: Tensor = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.turn is None:
            object.__setattr__(self, "turn", torch.zeros(len(self.a)))

    def __len__(self) -> int:
        return len(self.a)

    def __getitem__(self, rows: Tensor) -> Pairs:
        return Pairs(*(getattr(self, part.name)[rows] for part in fields(Pairs)))


def matrices(pairs: Pairs) -> Tensor:
    """Return the maps (P, 2, 3) from places of a to those of b (-1 to 1 across a picture)."""
    angle = torch.deg2rad(pairs.turn)
    sign = torch.where(pairs.mirrored, -1.0, 1.0)
    cos, sin = angle.cos(), angle.sin()
    turned = torch.stack([torch.stack([sign * cos, -sin], dim=1), torch.stack([sign * sin, cos], dim=1)], dim=1)
    return torch.cat([pairs.warp[:, :2, None] * turned, pairs.warp[:, 2:, None]], dim=2)


def in_place(pairs: Pairs) -> Tensor:
    """Return which pairs (P,) lie on one another but for a rim: of neither picture more than IN_PLACE is left out."""
    scale, shift = pairs.warp[:, :2].clamp(min=1e-6), pairs.warp[:, 2:]
    low, high = ((-1 - shift) / scale).clamp(min=-1), ((1 - shift) / scale).clamp(max=1)
    share = (high - low).clamp(min=0).prod(dim=1) / 4  # of the first picture
    return torch.maximum(share, (share * scale.prod(dim=1)).clamp(max=1)) >= IN_PLACE


def confirmed(whole: Pairs, local: Pairs, width: int, features: tuple[Any, Any]) -> Tensor:
    """Return which of the pairs `whole` of large pictures (P,) their local features do not contradict; b is below `width`.

    A pattern that repeats itself agrees with itself wherever it is laid: two parts of one brick wall look like one picture in
    32 pixels. So where both pictures have local features, `features` of them, and these do not lie alike (then the
    pair would be in `local`), only a pair in place is believed.
    """
    few = np.minimum(*features) < FEW_FEATURES
    known = np.isin(whole.a.numpy() * width + whole.b.numpy(), local.a.numpy() * width + local.b.numpy())
    return in_place(whole) | torch.from_numpy(few | known)


def by_matrices(a: Any, b: Any, score: Tensor, maps: Tensor) -> Pairs:
    """Return pairs whose maps are (P, 2, 3); of a map that shears, the turn between its two axes is taken."""
    mirrored = torch.linalg.det(maps[:, :, :2]) < 0
    sign = torch.where(mirrored, -1.0, 1.0)
    square = maps[:, :, :2] * torch.stack([sign, torch.ones_like(sign)], dim=1)[:, None]
    scale = square.norm(dim=2).clamp(min=1e-6)
    turns = square / scale[:, :, None]
    angle = torch.atan2(turns[:, 1, 0] - turns[:, 0, 1], turns[:, 0, 0] + turns[:, 1, 1])
    warp = torch.cat([scale, maps[:, :, 2]], dim=1)
    turn = torch.rad2deg(angle)
    turn = torch.where(turn < -179.5, turn + 360, turn)  # upside down is 180
    return Pairs(torch.as_tensor(a), torch.as_tensor(b), score, mirrored, warp, turn)


def with_identical(judged: Pairs, hashes_a: Any, hashes_b: Any | None, groups: tuple[Groups, Groups]) -> Pairs:
    """Return pairs of groups as pairs of rows, with the identical ones (score 1) beside them, by falling score.

    `hashes_a` and `hashes_b` are those of the groups (`hashes_b` None: pairs within one set).
    """
    a, b = groups
    if hashes_b is None:
        parts = [_of_rows(judged, a.first[judged.a.numpy()], a.first[judged.b.numpy()]), identical_pairs(*a.others())]
    else:
        same_a, same_b = identical_across(hashes_a, hashes_b)
        width = max(len(b.first), 1)
        known = np.isin(judged.a.numpy() * width + judged.b.numpy(), same_a * width + same_b)
        judged = joined([judged[torch.from_numpy(~known)], identical_pairs(same_a, same_b)])
        parts = [_of_rows(judged, a.first[judged.a.numpy()], b.first[judged.b.numpy()])]
        place, rows = a.expand(judged.a.numpy())
        parts.append(_of_rows(parts[0][torch.from_numpy(place)], rows, None))
        place, rows = b.expand(judged.b.numpy())
        parts.append(_of_rows(parts[0][torch.from_numpy(place)], None, rows))
    return best_first(joined(parts))


def best_first(pairs: Pairs) -> Pairs:
    """Return pairs by falling score, then by rows."""
    return pairs[torch.from_numpy(np.lexsort((pairs.b.numpy(), pairs.a.numpy(), -pairs.score.numpy())))]


def _of_rows(pairs: Pairs, a: Any | None, b: Any | None) -> Pairs:
    return replace(
        pairs, a=pairs.a if a is None else torch.as_tensor(a), b=pairs.b if b is None else torch.as_tensor(b)
    )


def identical_pairs(a: Any, b: Any) -> Pairs:
    n = len(a)
    return Pairs(
        torch.as_tensor(a, dtype=torch.int64), torch.as_tensor(b, dtype=torch.int64), torch.ones(n),
        torch.zeros(n, dtype=torch.bool), torch.tensor([1.0, 1.0, 0.0, 0.0]).repeat(n, 1),
    )  # fmt: skip


def turned_round(pairs: Pairs) -> Pairs:
    """Return the pairs with a and b exchanged, and the maps that then hold."""
    maps = matrices(pairs)
    back = torch.linalg.inv(maps[:, :, :2])
    return by_matrices(pairs.b, pairs.a, pairs.score, torch.cat([back, -back @ maps[:, :, 2:]], dim=2))


def best_ways(pairs: Pairs, width: int) -> Pairs:
    """Return each pair once, as it scores best, by falling score; b is below `width`."""
    pairs = pairs[pairs.score.argsort(descending=True, stable=True)]
    _, first = np.unique((pairs.a * width + pairs.b).numpy(), return_index=True)
    return pairs[torch.from_numpy(np.sort(first))]


def joined(parts: Sequence[Pairs]) -> Pairs:
    """Return several sets of pairs as one."""
    return Pairs(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Pairs)))
