"""Sparse-RS: random search over a few changed places, from logits alone. No gradient is ever asked for. https://arxiv.org/abs/2006.12834

An image has eps changed places, each set to 0 or 1 in every channel: pixels in L0-pixels, as published, single values in L0. A
query gives some of them up for others, with values drawn anew, and is kept when it lowers the margin. The
share that moves falls with the queries.

Deviations: places and values are drawn for each sample, where the published code shares the former over the batch. A place that
was given up may be taken again, with other values; without that a wrong value of the right place would stay. What is drawn
equal to the clean place has one channel turned, so that always eps places are changed. The schedule, made for 10,000 queries,
is fitted to `queries`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.expectation import mean_logits, query_passes
from robustdup.attacks.losses import margin, misclassified
from robustdup.attacks.nearest import check_between
from robustdup.errors import check_counts
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

PUBLISHED = 10_000  # queries that the schedule was made for
# After so many of them, the share that moves is the first one divided by so much.
SCHEDULE = ((0, 2), (50, 4), (200, 5), (500, 6), (1000, 8), (2000, 10), (4000, 12), (6000, 15), (8000, 20))
CHUNK = 64  # queries whose randomness is drawn at once; a part of what a seed means
WORD = 32  # bits of a draw


def sparse_rs(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    rng: SampleRng,
    queries: int = 10_000,
    first_share: float = 0.3,
    eot: int = 1,
) -> Tensor:
    """Lower the margin by moving few of the changed places at a time; survivors return their best iterate.

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: clean images (N, C, H, W) in [0, 1].
        labels: true classes (N,).
        threat: L0 or L0-pixels; its eps is how many places change.
        rng: the samples' streams.
        queries: at most, besides the first look.
        first_share: of the changed places that moves at first, above 0 and at most 1.
        eot: draws of a model that answers at random, whose mean is looked at in each query; above 1 no sample leaves, and
            what is kept is asked again every so many queries.

    Returns:
        Images (N, C, H, W) inside the ball and [0, 1].

    Raises:
        UserError: a setting that cannot work.
    """
    check_counts("sparse-rs", queries=queries, eot=eot)
    check_between("sparse-rs", "first_share", first_share, 0, 1)
    shape = images.shape[1:]
    channels = shape[0] if threat.norm == "L0-pixels" else 1
    clean = images.detach().reshape(len(images), channels, -1)
    count = min(int(threat.radius), clean.shape[2])
    index = torch.arange(len(images), device=images.device)
    result, streams = clean.clone(), rng.fold("queries")
    order = rng.fold("places").bits((clean.shape[2],)).argsort(dim=1, stable=True)  # the first `count` are changed
    bits = rng.fold("values").bits((count, channels // WORD + 2))
    iterate = _written(clean, order[:, :count], _corners(clean, order[:, :count], bits))
    lowest, proposed, new_order = clean.new_full((len(images),), torch.inf), iterate, order
    for query in range(-1, queries):
        if query >= 0:
            moving = moved_places(query, queries, count, first_share)
            if query % CHUNK == 0:
                if query and eot > 1:
                    lowest = margin(mean_logits(model, iterate.view(-1, *shape), eot), labels).to(clean)
                bits = streams.bits((CHUNK, moving, channels // WORD + 4), draw=query // CHUNK)
            new_order, proposed = _propose(clean, iterate, order, count, bits[:, query % CHUNK, :moving])
        logits = mean_logits(model, proposed.view(-1, *shape), eot)
        losses = margin(logits, labels[index]).to(clean)
        is_adv = misclassified(logits, labels[index]) & (eot == 1)
        better = (losses < lowest) | is_adv
        order, lowest = torch.where(better[:, None], new_order, order), torch.where(better, losses, lowest)
        iterate = torch.where(better[:, None, None], proposed, iterate)
        if bool(is_adv.any()):
            left = ~is_adv
            result[index[is_adv]] = iterate[is_adv]
            index, clean, iterate, order, lowest, bits = (t[left] for t in (index, clean, iterate, order, lowest, bits))
            streams = streams[left]
            if len(index) == 0:
                break
    result[index] = iterate
    return result.view_as(images)


def sparse_rs_cost(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (forward, backward) passes that a surviving sample costs under these options."""
    return query_passes(options["queries"], options.get("eot", 1), CHUNK), 0


def moved_places(query: int, queries: int, count: int, first_share: float) -> int:
    """Return how many of `count` changed places move in a query, counted from 0 of `queries`: at least one."""
    published_query = query * PUBLISHED // queries
    divisor = max([divisor for after, divisor in SCHEDULE if published_query > after], default=1)
    return max(int(count * first_share / divisor), 1)


def _propose(clean: Tensor, iterate: Tensor, order: Tensor, count: int, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next `order` (n, P) and the images (n, C, P) that come of it, by draws `bits` (n, m, words).

    The first m places, chosen of the `count` that are changed, are given up; as many are taken of these and the clean ones.
    """
    moving = bits.shape[1]
    order = _to_front(order, bits[..., 0], 0, count)
    given_up = order[:, :moving]
    proposed = _written(iterate, given_up, _read(clean, given_up))
    order = torch.cat([order[:, moving:count], given_up, order[:, count:]], dim=1)
    order = _to_front(order, bits[..., 1], count - moving, order.shape[1])
    taken = order[:, count - moving : count]
    return order, _written(proposed, taken, _corners(clean, taken, bits[..., 2:]))


def _to_front(order: Tensor, bits: Tensor, start: int, end: int) -> Tensor:
    """Bring as many places of order[:, start:end] as there are bits (n, m) to its front, all choices equally likely."""
    order = order.clone()
    for first in range(start, start + bits.shape[1]):
        chosen = first + ((bits[:, first - start, None] * (end - first)) >> WORD)
        here, there = order[:, first, None].clone(), order.gather(1, chosen)
        order.scatter_(1, chosen, here)
        order[:, first, None] = there
    return order


def _corners(clean: Tensor, places: Tensor, bits: Tensor) -> Tensor:
    """Draw values (n, C, m) of 0 and 1 for places (n, m) by bits (n, m, words), none equal to the clean one in all channels."""
    channels = clean.shape[1]
    channel = torch.arange(channels, device=places.device)
    values = ((bits[:, :, channel // WORD] >> (channel % WORD)) & 1).transpose(1, 2).to(clean.dtype)
    turned = channel[:, None] == ((bits[:, :, -1] * channels) >> WORD)[:, None]
    same = (values == _read(clean, places)).all(dim=1, keepdim=True)
    return torch.where(same & turned, 1 - values, values)


def _read(images: Tensor, places: Tensor) -> Tensor:
    """Return the values (n, C, m) at places (n, m) of images (n, C, P)."""
    return images.gather(2, places[:, None].expand(-1, images.shape[1], -1))


def _written(images: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """Return images (n, C, P) with values (n, C, m) at places (n, m)."""
    return images.scatter(2, places[:, None].expand(-1, images.shape[1], -1), values)
