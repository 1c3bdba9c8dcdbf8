"""Whether a robust accuracy may be believed: where gradients look masked, an attack must be seen to get through.

A *route* is a model with gradients that an attack of the run has followed: the attacked model itself under a loss that
ignores the scale of its logits, or a copy that was made to see through a mask. A route leads somewhere when it says what
the judged model says, when its margin falls as its gradient promises, and when an attack along it breaks at eps = 0.5
what must break there. Where gradients look masked and no route leads anywhere, the number is an upper bound only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustdup.attacks.isolation import isolated
from robustdup.attacks.losses import cw, misclassified
from robustdup.attacks.passes import Count, Passes, input_gradient
from robustdup.attacks.pgd import ascent, pgd
from robustdup.evaluation.cascade import CascadeResult, CleanSamples
from robustdup.evaluation.context import Context, fresh_copy
from robustdup.evaluation.masking import FOLLOWS, LOOKED_AT, THRESHOLDS, is_zero
from robustdup.projections import row_sum
from robustdup.records import Diagnostic, Outcome
from robustdup.records.verdict import DOUBTFUL
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

STEP = 1 / 2  # of eps, over which the margin must fall as promised, over all samples together
AGREES = 0.98  # of the answers of a route, at least, that are the judged model's
SCALE_FREE = ("apgd-dlr", "apgd-t", "fab", "fab-t", "cosine-pgd", "cosine-pgd-t")  # do not care how large logits are


@dataclass(frozen=True)
class Weighed:
    """What became of serious signs: the `signs`, milder where an attack got through, and the `doubts` that are left."""

    signs: list[Diagnostic]
    doubts: list[str]
    passes: Count


def weigh(
    context: Context, samples: CleanSamples, results: Sequence[CascadeResult], signs: list[Diagnostic]
) -> Weighed:
    """Say whether the robust accuracy may be believed, given signs of masked gradients.

    Args:
        context: what the evaluation ran on.
        samples: the samples of the run.
        results: a cascade for each eps, rising.
        signs: what the diagnostics show.
    """
    last = results[-1]
    reasons = [sign.message for sign in signs if sign.severity == "serious" and sign.code in DOUBTFUL]
    for result in results:
        reasons += [] if result.masking is None else [f"{reason}." for reason in result.masking.reasons]
    left = ~samples.clean.is_adv & ~last.broken
    if not reasons:
        return Weighed(signs, [], Count())
    if not bool(left.any()):
        return Weighed(_milder(signs, "Every sample fell all the same"), [], Count())
    rows = left.nonzero()[:LOOKED_AT, 0]
    tensors = (samples.images, last.adv_images, samples.labels, samples.index)
    images, adv_images, labels, index = (tensor[rows].to(context.device) for tensor in tensors)
    passes = Count()
    black_box_won = any(sign.code == "black_box_beats_white_box" for sign in signs) or any(
        result.masking.signs["black_box_won"] > THRESHOLDS["black_box_won"] for result in results if result.masking
    )
    for name, make in routes(last, own=not black_box_won):
        model = make(context)
        if model is None:
            continue
        route = Passes(model, context.micro_batch)
        original = Passes(context.original.model, context.micro_batch)
        try:
            with isolated(model, seed=context.seed):
                leads = leads_somewhere(
                    original, route, images, adv_images, labels, index, last.threat, seed=context.seed
                )
        except Exception:  # a model may fail in any way under gradients; then this route leads nowhere  # noqa: BLE001
            leads = False
        passes = passes + original.count + route.count
        if leads:
            return Weighed(_milder(signs, f"{name} was seen to get through"), [], passes)
    return Weighed(signs, list(dict.fromkeys(reasons)), passes)


def routes(result: CascadeResult, *, own: bool) -> list[tuple[str, Callable[[Context], nn.Module | None]]]:
    """Return (name of an attack, what makes the model whose gradients it followed) for stages that left samples standing.

    With `own` the gradients of the attacked model count as well, of the first stage that followed them.
    """
    found: list[tuple[str, Callable[[Context], nn.Module | None]]] = []
    for stage in result.stages:
        spec = stage.stage.spec
        scale_free = spec.name in SCALE_FREE or stage.stage.options.get("loss") in ("margin", "dlr")
        if own and scale_free and spec.source == "native" and bool((stage.outcome == Outcome.ROBUST).any()):
            found.append((spec.name, lambda context: fresh_copy(context.attacked)))
            own = False
    return found


def leads_somewhere(
    original: Passes, route: Passes, images: Tensor, adv_images: Tensor, labels: Tensor, index: Tensor,
    threat: ThreatModel, *, seed: int,
) -> bool:  # fmt: skip
    """Say whether an attack that follows the gradients of `route` sees what the judged model does.

    Args:
        original: the judged model.
        route: a model with gradients that stands for it.
        images: clean images (n, C, H, W) in [0, 1] that no attack has broken.
        adv_images: the worst image of each so far (n, C, H, W).
        labels: their classes (n,).
        index: their rows in the dataset (n,).
        threat: the threat model.
        seed: of the attack at eps = 0.5.
    """
    with torch.no_grad():
        same = [original(part).argmax(dim=1) == route(part).argmax(dim=1) for part in (images, adv_images)]
    if float(torch.cat(same).double().mean()) < AGREES:
        return False
    zero = torch.zeros_like(labels, dtype=torch.bool)
    promised = fallen = 0.0
    for part in (adv_images, images):
        gradient, before, _ = input_gradient(route, part, lambda logits, rows: cw(logits, labels[rows]))
        zero |= is_zero(gradient)
        gradient = gradient.nan_to_num(0, 0, 0)
        moved = (part + STEP * threat.radius * ascent(part, gradient, threat)).clamp(0, 1)
        if part is images:
            promised = float(row_sum((gradient * (moved - part)).flatten(1)).sum())
            with torch.no_grad():
                fallen = float((cw(route(moved), labels) - before).double().sum())
    if float(zero.double().mean()) > THRESHOLDS["zero_gradients"] or not fallen > FOLLOWS * promised:
        return False
    return threat.norm != "Linf" or _breaks_at_half(original, route, images, labels, index, seed)


def _breaks_at_half(original: Passes, route: Passes, images: Tensor, labels: Tensor, index: Tensor, seed: int) -> bool:
    """Say whether an attack at eps = 0.5 leaves no more than the grey image explains."""
    half, rng = ThreatModel("Linf", "0.5"), SampleRng(seed, index).fold("route")
    adv_images = half.project(images, pgd(route, images, labels, half, rng=rng, steps=20, loss="margin"))
    with torch.no_grad():
        kept = ~misclassified(original(adv_images), labels)
        grey = original(torch.full_like(images[:1], 0.5)).argmax(dim=1)
    excess = float(kept.double().mean()) - float((labels == grey).double().mean())
    return excess <= THRESHOLDS["robust_at_half"]


def _milder(signs: list[Diagnostic], but: str) -> list[Diagnostic]:
    """Return the signs with those of masked gradients as warnings, and why."""
    return [
        sign.model_copy(update={"severity": "warning", "message": f"{sign.message} {but}."})
        if sign.severity == "serious" and sign.code in DOUBTFUL and sign.code != "more_eps_more_accuracy"
        else sign
        for sign in signs
    ]
