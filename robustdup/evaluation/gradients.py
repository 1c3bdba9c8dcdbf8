"""Whether gradients lead where they point: zero ones, erratic ones, and ones of which a part is lost or turned.

Each is measured on some samples in a few passes; `masking` says from which size on it counts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustdup.attacks.losses import ce, cw
from robustdup.attacks.passes import input_gradient
from robustdup.attacks.pgd import ascent
from robustdup.projections import per_sample, row_sum
from robustdup.threat import ThreatModel

# The gradient should hold over steps as attacks make them. On honest networks, standard or robust, 95% of samples rise
# by over 0.7 of what it promises for any step up to eps; behind a ripple all rise by less than 0.1 of it.
STEPS = (1 / 16, 1 / 2)  # of eps
FOLLOWS = 0.5  # of the rise that the gradient promises
# A gradient of which a part is lost or turned still leads, and is followed, but not to the end. On ordinary networks, of all
# objectives here and in all three norms, the median over the small step is within 7% of what is promised, and no pixel has
# a gradient of exactly zero.
MOST_KEPT = 1000.0  # times the promise, which is all that is noted
UNSEEN = 0.02  # of what the gradient promises over the large step: a change by pixels of zero gradient that matters


def gradient_signs(
    model: nn.Module, clean: Tensor, adv_images: Tensor, labels: Tensor, threat: ThreatModel
) -> dict[str, float]:
    """Return signs that gradients mislead, of samples `clean`, `adv_images` (n, C, H, W), `labels` (n,).

    `zero_gradients`: the share of samples with a zero gradient, of the cross-entropy or the margin. `erratic`: the share of
    those where over a step against the gradient of the margin, a small one or a large one, from the clean image, the margin
    falls by less than half of what the gradient promises. `kept_promise`: which part of the promise is kept over the small
    step, at the median. `unseen`: the share of those where pixels whose gradient is zero change the margin.
    """
    zero = torch.zeros_like(labels, dtype=torch.bool)
    for images in (clean, adv_images):
        gradient, _, _ = input_gradient(model, images, lambda logits, rows: ce(logits, labels[rows]))
        zero |= is_zero(gradient)
    gradient, before, _ = input_gradient(model, clean, lambda logits, rows: cw(logits, labels[rows]))
    flat = is_zero(gradient)
    gradient = gradient.nan_to_num(0, 0, 0)
    direction, erratic, kept = ascent(clean, gradient, threat), torch.zeros_like(zero), 1.0
    for step in STEPS:
        moved = (clean + step * threat.radius * direction).clamp(0, 1)
        promised = row_sum((gradient * (moved - clean)).flatten(1))
        rise = _rise(model, moved, labels, before)
        erratic |= (promised > 0) & ~(rise > FOLLOWS * promised)
        if step == STEPS[0] and bool((promised > 0).any()):
            kept = min(max(float((rise / promised)[promised > 0].median()), -MOST_KEPT), MOST_KEPT)
    unseen = unseen_matter(model, clean, gradient, labels, before, promised, threat)
    shares = {"zero_gradients": zero | flat, "erratic": erratic, "unseen": unseen}
    return {name: float(rows.double().mean()) for name, rows in shares.items()} | {"kept_promise": kept}


def unseen_matter(
    model: nn.Module, clean: Tensor, gradient: Tensor, labels: Tensor, before: Tensor, promised: Tensor,
    threat: ThreatModel,
) -> Tensor:  # fmt: skip
    """Tell of which samples pixels whose gradient is exactly zero change the margin, where others have one: (n,) bool.

    Args:
        model: images (n, C, H, W) in [0, 1] -> logits (n, K).
        clean: clean images (n, C, H, W) in [0, 1].
        gradient: of the margin there (n, C, H, W).
        labels: their classes (n,).
        before: the margin against the model there (n,).
        promised: by how much the gradient promises that to rise over the large step (n,).
        threat: the threat model.
    """
    hidden = (gradient == 0) & ~per_sample(is_zero(gradient), gradient)
    rows = hidden.flatten(1).any(dim=1)
    if not bool(rows.any()):
        return rows
    towards_grey = torch.where(clean < 0.5, 1.0, -1.0).to(clean) * hidden
    moved = (clean + STEPS[1] * threat.sphere_scale(towards_grey)).clamp(0, 1)
    return rows & (_rise(model, moved, labels, before).abs() > UNSEEN * promised)


def _rise(model: nn.Module, images: Tensor, labels: Tensor, before: Tensor) -> Tensor:
    """Return by how much the margin against the model is above what it was (n,)."""
    with torch.no_grad():
        return (cw(model(images), labels) - before).double()


def is_zero(gradient: Tensor) -> Tensor:
    """Tell of which samples the gradient (N, ...) is exactly zero everywhere, or not finite: (N,) bool."""
    flat = gradient.flatten(1)
    return (flat == 0).all(dim=1) | ~flat.isfinite().all(dim=1)
