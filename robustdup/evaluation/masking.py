"""Signs that gradients mislead, looked for between the stages of an ensemble: whether to go on with the full one.

A cheap ensemble trusts gradients. These are the signs by which published defences that masked them were found out:
black-box success where white-box attacks failed, gradients of exactly zero, and a loss that does not follow its own
gradient (https://arxiv.org/abs/1802.00420, section 3.1; https://arxiv.org/abs/1902.06705).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robustdup.attacks.isolation import isolated
from robustdup.attacks.losses import ce, cw
from robustdup.attacks.passes import Count, Passes, input_gradient
from robustdup.attacks.pgd import ascent
from robustdup.evaluation.bench import Bench, fresh_copy
from robustdup.projections import row_sum
from robustdup.threat import ThreatModel

LOOKED_AT = 64  # points
BLACK_BOX = ("score-based", "decision-based", "transfer")
WON = 0.05  # of the points that white-box attacks left standing and a black-box one tried
ZERO = 0.05  # of the points looked at
ERRATIC = 0.25  # of the points looked at
# The gradient should hold over steps as attacks make them. On honest networks, standard or robust, 95% of points rise
# by over 0.7 of what it promises for any step up to eps; behind a ripple all rise by less than 0.1 of it.
STEPS = (1 / 16, 1 / 2)  # of eps
FOLLOWS = 0.5  # of the rise that the gradient promises


@dataclass(frozen=True)
class Suspicion:
    """What was looked at: `reasons` to distrust gradients in plain words, what was `seen`, and what looking cost."""

    reasons: tuple[str, ...]
    seen: dict[str, float]
    passes: Count = field(default_factory=Count)


def suspicion(
    bench: Bench, images: Tensor, labels: Tensor, worst: Tensor, standing: Tensor, threat: ThreatModel,
    stages: Sequence[tuple[str, Tensor]],
) -> Suspicion:  # fmt: skip
    """Look for signs of masked gradients on the points that are left `standing` (N,), and in the stages so far.

    `images`, `worst` (N, C, H, W): clean ones and the worst found so far; `stages` are (knowledge, outcome (N,)) pairs,
    outcome 1 where the stage broke a point, 0 where the point survived it. Nothing is suspected where nobody stands.
    """
    seen = {"black_box_won": black_box_won(stages)}
    rows = standing.nonzero()[:, 0]
    if len(rows) > LOOKED_AT:
        rows = rows[torch.linspace(0, len(rows) - 1, LOOKED_AT).long()]
    model = Passes(fresh_copy(bench.attacked), bench.micro_batch)
    reasons = []
    if seen["black_box_won"] > WON:
        reasons.append(f"black-box attacks broke {seen['black_box_won']:.1%} of what white-box attacks left standing")
    if len(rows):
        clean, found, truth = (t[rows].to(bench.device) for t in (images, worst, labels))
        try:
            with isolated(model.model, seed=bench.seed):
                seen |= gradient_signs(model, clean, found, truth, threat)
        except RuntimeError as error:
            reasons.append(f"gradients cannot be computed ({error})")
    if seen.get("zero_gradients", 0.0) > ZERO:
        reasons.append(f"the gradient is zero for {seen['zero_gradients']:.0%} of {len(rows)} points")
    if seen.get("erratic", 0.0) > ERRATIC:
        steps = " or ".join(f"eps/{round(1 / step)}" for step in STEPS)
        reasons.append(
            f"the loss does not follow its gradient over a step of {steps} for {seen['erratic']:.0%} of {len(rows)} points"
        )
    return Suspicion(tuple(reasons), seen, model.count)


def black_box_won(stages: Sequence[tuple[str, Tensor]]) -> float:
    """Return the largest share that a black-box stage broke of what all white-box stages before it had left standing.

    A single point is no sign: the share counts from the second on.
    """
    largest, white = 0.0, []
    for knowledge, outcome in stages:
        if knowledge == "white-box":
            white.append(outcome)
        elif knowledge in BLACK_BOX and white:
            left = torch.stack([found != 1 for found in white]).all(dim=0) & (outcome <= 1)
            won = int((left & (outcome == 1)).sum())
            if won > 1:
                largest = max(largest, won / int(left.sum()))
    return largest


def gradient_signs(
    model: nn.Module, clean: Tensor, worst: Tensor, labels: Tensor, threat: ThreatModel
) -> dict[str, float]:
    """Return the share of points with a zero gradient, of the cross-entropy or the margin, and with an erratic loss.

    Erratic: over a step against the gradient of the margin, a small one or a large one, from the clean image, the margin
    falls by less than half of what the gradient promises. `clean`, `worst` (n, C, H, W), `labels` (n,).
    """
    zero = torch.zeros_like(labels, dtype=torch.bool)
    for images in (clean, worst):
        gradient, _, _ = input_gradient(model, images, lambda logits, rows: ce(logits, labels[rows]))
        zero |= _nothing(gradient)
    gradient, before, _ = input_gradient(model, clean, lambda logits, rows: cw(logits, labels[rows]))
    zero |= _nothing(gradient)
    gradient = gradient.nan_to_num(0, 0, 0)
    direction, erratic = ascent(clean, gradient, threat), torch.zeros_like(zero)
    for step in STEPS:
        moved = (clean + step * threat.radius * direction).clamp(0, 1)
        promised = row_sum((gradient * (moved - clean)).flatten(1))
        with torch.no_grad():
            rise = (cw(model(moved), labels) - before).double()
        erratic |= (promised > 0) & ~(rise > FOLLOWS * promised)
    return {"zero_gradients": float(zero.double().mean()), "erratic": float(erratic.double().mean())}


def _nothing(gradient: Tensor) -> Tensor:
    flat = gradient.flatten(1)
    return (flat == 0).all(dim=1) | ~flat.isfinite().all(dim=1)
