"""What minimum-norm attacks keep: each sample's nearest adversarial image, and how it is pulled to the boundary in the end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.losses import fools
from robustdup.errors import UserError
from robustdup.projections import COUNTS, fold_length, per_sample, project_l0
from robustdup.threat import ThreatModel

NEAREST_SHARE = 2.0**-20  # of the way to the clean image: a shorter one is not looked for


@dataclass
class Nearest:
    """Of each sample the nearest adversarial image so far, else the last iterate: `images` (N, ...), `distance` (N,).

    The distance is infinite where none was met.
    """

    images: Tensor
    distance: Tensor

    @classmethod
    def none(cls, images: Tensor) -> Nearest:
        """Start with no adversarial image at all."""
        return cls(images.clone(), images.new_full((len(images),), torch.inf))

    def offer(self, index: Tensor, iterates: Tensor, distance: Tensor, is_adv: Tensor) -> None:
        """Keep the iterates (n, ...) of the samples `index` (n,) that are adversarial and nearer than what is known."""
        improved = (is_adv & (distance < self.distance[index])).nonzero()[:, 0]  # one wait for a GPU; masks wait each
        place = index[improved]
        self.images[place], self.distance[place] = iterates[improved], distance[improved]

    def keep_last(self, index: Tensor, iterates: Tensor) -> None:
        """Keep the last iterates (n, ...) of those of the samples `index` (n,) for which none was met."""
        none = self.distance[index].isinf()
        self.images[index[none]] = iterates[none]

    def result(self, images: Tensor, threat: ThreatModel) -> Tensor:
        """Return the nearest adversarial images, and the last iterates projected onto the ball where there is none."""
        none = self.distance.isinf()
        self.images[none] = threat.project(images[none], self.images[none])
        return self.images

    def searched(self, threat: ThreatModel, *, stop_within_eps: bool) -> Tensor:
        """Return the samples that are still searched, as (n,) indices: with `stop_within_eps` those not broken within eps."""
        open_rows = (
            self.distance > threat.radius if stop_within_eps else torch.ones_like(self.distance, dtype=torch.bool)
        )
        return open_rows.nonzero()[:, 0]


def pull_back(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    nearest: Nearest,
    *,
    halvings: int,
    stop_within_eps: bool,
) -> None:
    """Bisect the way from each sample's nearest adversarial image to its clean one `halvings` times; results go into `nearest`.

    The share of the way is bisected on a logarithmic scale, since a search ends near the boundary: the tenth halving finds it
    to 2% of that share. Costs one forward pass a halving, of the samples that have an adversarial image. The ways are those
    of `toward_clean`.
    """
    index = nearest.searched(threat, stop_within_eps=stop_within_eps)
    index = index[nearest.distance[index].isfinite()]
    start, clean = nearest.images[index], images[index]
    not_adv = torch.ones_like(nearest.distance[index])
    adv = NEAREST_SHARE * not_adv
    for _ in range(halvings if len(index) else 0):
        middle = (adv * not_adv).sqrt()
        candidates = toward_clean(clean, start, threat.norm, 1 - middle)
        is_adv = fools(model, candidates, labels[index])
        nearest.offer(index, candidates, fold_length(candidates - clean, threat.norm), is_adv)
        adv, not_adv = torch.where(is_adv, middle, adv), torch.where(is_adv, not_adv, middle)


def toward_clean(images: Tensor, adv_images: Tensor, norm: str, share: Tensor) -> Tensor:
    """Return images whose distance to the clean ones is `share` (N,), in [0, 1], of what it was, all (N, ...).

    In L2 and L1 they lie on the straight line, in Linf the change is clipped, and in L0 the largest changes stay: they go on
    to 0 or 1, since a change counts as one however large it is.
    """
    delta = adv_images - images
    if norm in COUNTS:
        kept = project_l0(images, adv_images, (share * fold_length(delta, norm)).floor(), norm) - images
        return torch.where(kept > 0, 1.0, torch.where(kept < 0, 0.0, images))
    if norm == "Linf":
        bound = per_sample(share * fold_length(delta, "Linf"), delta)
        return (images + delta.clamp(-bound, bound)).clamp(0, 1)
    return (images + per_sample(share, delta) * delta).clamp(0, 1)


def search_cost(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (forward, backward) passes of a sample that goes on to the end: one of each a step, a last look, halvings."""
    return options["steps"] + 1 + options["halvings"], options["steps"]


def cosine(first: float, last: float, step: int, steps: int) -> float:
    """Return what falls from `first` to `last` along half a cosine, at `step` of `steps`."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2


def check_between(attack: str, option: str, value: float, low: float, high: float) -> None:
    """Raise UserError for a number that is not above `low` and at most `high`."""
    if not low < value <= high:
        text = f"above {low:g}" + (f" and at most {high:g}" if high < math.inf else "")
        raise UserError(f"{attack}: {option} must be {text}, got {value}.", code="bad-option")


def kept(keep: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the rows of tensors (n, ...) where `keep` (n,) bool is true: themselves where all are."""
    rows = keep.nonzero()[:, 0]  # one wait for a GPU; a mask waits for each tensor
    return tensors if len(rows) == len(keep) else tuple(tensor[rows] for tensor in tensors)
