"""Routes through a mask: models whose gradients an attack of the run has followed, and whether they lead anywhere.

A route is the attacked model itself under a loss that ignores the scale of its logits, or a copy that was made to see
through a mask. It leads somewhere when it says what the judged model says, when its margin falls as its gradient promises,
when no pixel matters that has no gradient, when the judged model answers no otherwise where attacks end, when its gradient
leads across the boundary of the judged model where that is near, and when an attack along it breaks at eps = 0.5 what must
break there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.guided import Guided
from robustdup.attacks.inner import find_inner
from robustdup.attacks.isolation import isolated
from robustdup.attacks.losses import cw, misclassified
from robustdup.attacks.passes import Count, Passes, input_gradient
from robustdup.attacks.pgd import ascent, pgd
from robustdup.attacks.see_through import SeeThrough, smooth_copy
from robustdup.evaluation.context import Context, fresh_copy
from robustdup.evaluation.gradients import FOLLOWS, apart, evades, is_zero, misses_boundary, unseen_matter
from robustdup.evaluation.masking import LOOKED_AT, THRESHOLDS, more_than_one
from robustdup.projections import row_sum
from robustdup.records import Outcome
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

STEP = 1 / 2  # of eps, over which the margin must fall as promised, over all samples together
# Of the samples, at most, for which its gradient does not lead to the boundary; a single one always.
MISSES = 0.2
AGREES = 0.98  # of the answers of a route, at least, that are the judged model's; chance is allowed for
SCALE_FREE = ("apgd-dlr", "apgd-t", "fab", "fab-t", "cosine-pgd", "cosine-pgd-t")  # do not care how large logits are

Make = Callable[[Context, Tensor], nn.Module | None]


@dataclass(frozen=True)
class Left:
    """Samples that no attack has broken: `images` and the worst so far (n, C, H, W), `labels` (n,), `index` (n,)."""

    images: Tensor
    adv_images: Tensor
    labels: Tensor
    index: Tensor


@dataclass(frozen=True)
class Followed:
    """A stage that ran: the `name` of its attack, its `source`, its `options`, and an Outcome for each sample (N,)."""

    name: str
    source: str
    options: Mapping[str, Any]
    outcome: Tensor


def find_route(
    context: Context, left: Left, threat: ThreatModel, stages: Sequence[Followed], *, own: bool
) -> tuple[str, Count]:
    """Return the name of an attack that was seen to get through, empty where there is none, and what looking cost.

    Args:
        context: what the evaluation runs on.
        left: samples that are left; the first 64 are looked at.
        threat: the threat model.
        stages: what ran.
        own: whether the gradients of the attacked model itself may count.
    """
    left = Left(*(tensor[:LOOKED_AT].to(context.device) for tensor in vars(left).values()))
    spent = Count()
    for name, make in _routes(stages, own=own):
        try:
            model = make(context, left.images)
            if model is None:
                continue
            route, original = context.looking_at(model), context.looking_at(context.original.model)
            with isolated(model, seed=context.seed):
                leads = leads_somewhere(original, route, left, threat, seed=context.seed)
        except Exception:  # a model may fail in any way under gradients; then this route leads nowhere  # noqa: BLE001
            continue
        spent = spent + original.count + route.count
        if leads:
            return name, spent
    return "", spent


def _routes(stages: Sequence[Followed], *, own: bool) -> list[tuple[str, Make]]:
    """Return (name of an attack, what makes the model whose gradients it followed) for stages that left samples."""
    routes: list[tuple[str, Make]] = []
    for stage in stages:
        if stage.source != "native" or not bool((stage.outcome == Outcome.ROBUST).any()):
            continue
        if own and (stage.name in SCALE_FREE or stage.options.get("loss") in ("margin", "dlr")):
            routes.append((stage.name, lambda context, _: fresh_copy(context.attacked)))
            own = False
        if stage.name == "straight-through" and all(name != stage.name for name, _ in routes):
            routes += [(stage.name, lambda context, _: SeeThrough(fresh_copy(context.attacked)))]
            routes += [(stage.name, _smooth)]
        if stage.name == "surrogate" and all(name != stage.name for name, _ in routes):
            routes += [(stage.name, _inside)]
    return routes


def _smooth(context: Context, images: Tensor) -> nn.Module:
    copied = fresh_copy(context.attacked)
    return Guided(smooth_copy(copied, images), copied)


def _inside(context: Context, images: Tensor) -> nn.Module | None:
    """The network inside the model, where there is one: a student is no proof."""
    copied = fresh_copy(context.attacked)
    inner = find_inner(copied, images)
    return None if inner is None else SeeThrough(copied, inner=inner)


def leads_somewhere(original: Passes, route: Passes, left: Left, threat: ThreatModel, *, seed: int) -> bool:
    """Say whether an attack that follows the gradients of `route` sees what the judged model does.

    Args:
        original: the judged model.
        route: a model with gradients that stands for it.
        left: samples that no attack has broken.
        threat: the threat model.
        seed: of the attack at eps = 0.5.
    """
    images, adv_images, labels, index = left.images, left.adv_images, left.labels, left.index
    answers = _answers(original, left)
    unsure = 1 - _same(answers, _answers(original, left)) if original.draws > 1 else 0.0  # near the boundary, by chance
    if _same(answers, _answers(route, left)) < AGREES - 2 * unsure:
        return False
    zero = torch.zeros_like(labels, dtype=torch.bool)
    promised = fallen = 0.0
    usual = apart(images, threat)
    for part in (adv_images, usual):
        gradient, before, _ = input_gradient(route, part, lambda logits, rows: cw(logits, labels[rows]))
        zero |= is_zero(gradient)
        gradient = gradient.nan_to_num(0, 0, 0)
        moved = (part + STEP * threat.radius * ascent(part, gradient, threat)).clamp(0, 1)
        if part is usual:
            promises = row_sum((gradient * (moved - part)).flatten(1))
            promised = float(promises.sum())
            with torch.no_grad():
                fallen = float((cw(route(moved), labels) - before).double().sum())
            unseen = unseen_matter(route, part, gradient, labels, before, promises, threat)
    if (
        float(zero.double().mean()) > THRESHOLDS["zero_gradients"]
        or float(unseen.double().mean()) > THRESHOLDS["unseen"]
    ):
        return False
    repeats = original.draws == 1
    share = float(evades(original, images, adv_images, labels, threat).double().mean()) if repeats else 0.0
    if not fallen > FOLLOWS * promised or more_than_one({"evades": share}, "evades", len(labels)):
        return False
    if repeats and _misses(original, route, images, labels, threat):
        return False
    return threat.norm != "Linf" or _breaks_at_half(original, route, images, labels, index, seed)


def _misses(original: Passes, route: Passes, images: Tensor, labels: Tensor, threat: ThreatModel) -> bool:
    share = float(misses_boundary(original, route, images, labels, threat).double().mean())
    return more_than_one({"misses_boundary": share}, "misses_boundary", len(labels), limit=MISSES)


def _answers(model: Passes, left: Left) -> Tensor:
    """Return the classes that a model gives to the clean images and to the worst ones (2n,)."""
    with torch.no_grad():
        return torch.cat([model(part).argmax(dim=1) for part in (left.images, left.adv_images)])


def _same(first: Tensor, second: Tensor) -> float:
    return float((first == second).double().mean())


def _breaks_at_half(original: Passes, route: Passes, images: Tensor, labels: Tensor, index: Tensor, seed: int) -> bool:
    """Say whether an attack at eps = 0.5 leaves no more than the grey image explains."""
    half, rng = ThreatModel("Linf", "0.5"), SampleRng(seed, index).fold("route")
    adv_images = half.project(images, pgd(route, images, labels, half, rng=rng, steps=20, loss="margin"))
    with torch.no_grad():
        kept = ~misclassified(original(adv_images), labels)
        grey = original(torch.full_like(images[:1], 0.5)).argmax(dim=1)
    excess = float(kept.double().mean()) - float((labels == grey).double().mean())
    return excess <= THRESHOLDS["robust_at_half"]
