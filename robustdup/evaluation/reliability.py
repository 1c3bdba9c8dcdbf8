"""Whether a robust accuracy may be believed: where gradients look masked, an attack must be seen to get through.

Where none of the routes that attacks took through the mask leads anywhere (`routes`), the number is an upper bound only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from robustdup.attacks.passes import Count
from robustdup.evaluation.cascade import CascadeResult, CleanSamples, followed
from robustdup.evaluation.context import Context
from robustdup.evaluation.masking import LOOKED_AT, MISLED
from robustdup.evaluation.routes import Left, find_route
from robustdup.records import Diagnostic, Outcome
from robustdup.records.verdict import DOUBTFUL


@dataclass(frozen=True)
class Weighed:
    """What became of serious signs: the `signs`, milder where an attack got through, and the `doubts` that are left.

    `route` names the attack that was seen to get through; empty where there is none, or none was needed.
    """

    signs: list[Diagnostic]
    doubts: list[str]
    passes: Count
    route: str = ""


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
    standing = Left(samples.images[rows], last.adv_images[rows], samples.labels[rows], samples.index[rows])
    misled = any(sign.code in MISLED and sign.severity == "serious" for sign in signs)
    misled |= any(result.masking.misled for result in results if result.masking)
    name, passes = find_route(context, standing, last.threat, followed(last), own=not misled)
    if name:
        return Weighed(_milder(signs, f"{name} was seen to get through"), [], passes, name)
    return Weighed(signs, list(dict.fromkeys(reasons)), passes)


def settle(results: Sequence[CascadeResult], route: str) -> list[str]:
    """Decide samples that are undecided only because a model without gradients has none for gradient attacks.

    That those cannot run there is no failure that another try would mend. What was seen to get through has the word, and
    where nothing was, the other attacks that finished; their number is a bound, as gradients are masked.

    Args:
        results: a cascade for each eps.
        route: the attack that was seen to get through; empty where there is none.

    Returns:
        What was decided, in a sentence; nothing where nothing was.
    """
    decided = 0
    for result in results:
        mendable, survived = torch.zeros_like(result.undecided), torch.zeros_like(result.undecided)
        for stage in result.stages:
            for call in stage.calls:
                mendable[call.positions] |= bool(call.error) and not call.lost_gradient
            if stage.stage.spec.name == route or not route:
                survived |= stage.outcome == Outcome.ROBUST
        settled = result.undecided & survived & ~mendable
        result.undecided &= ~settled
        decided += int(settled.sum())
    if not decided:
        return []
    by = f"{route}, which was seen to get through" if route else "the others, of which none was seen to get through"
    return [
        f"Attacks that follow the gradient, which the model lacks, could not run; {decided} samples are decided by {by}."
    ]


def weigh_union(
    context: Context, samples: CleanSamples, results: Sequence[CascadeResult], signs: list[Diagnostic]
) -> Weighed:
    """Say the same of a union over norms: it is doubted where no attack is seen to get through in one of its balls.

    Args:
        context: what the evaluation ran on.
        samples: the samples of the run.
        results: a cascade for each ball.
        signs: what the diagnostics show.
    """
    broken = torch.stack([result.broken for result in results]).any(dim=0)
    parts = [weigh(context, samples, [replace(result, broken=broken)], signs) for result in results]
    doubts = list(dict.fromkeys(doubt for part in parts for doubt in part.doubts))
    passes = sum((part.passes for part in parts), Count())
    route = "" if doubts else next((part.route for part in parts if part.route), "")
    return Weighed(signs if doubts else parts[0].signs, doubts, passes, route)


def _milder(signs: list[Diagnostic], but: str) -> list[Diagnostic]:
    """Return the signs with those of masked gradients as warnings, and why."""
    return [
        sign.model_copy(update={"severity": "warning", "message": f"{sign.message} {but}."})
        if sign.severity == "serious" and sign.code in DOUBTFUL and sign.code != "more_eps_more_accuracy"
        else sign
        for sign in signs
    ]
