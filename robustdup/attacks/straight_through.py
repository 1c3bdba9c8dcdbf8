"""Straight-through: follow the gradient of a copy that sees through rounding, signs, one-hot answers and detours.

What an attacker tries first who knows the mask (BPDA, https://arxiv.org/abs/1802.00420), without being told: the
operations are found while the model runs (`see_through`). First the copy keeps the model's own values, then a smooth one
takes its place, whose scores have a slope where the model's are flat; there too the model itself is asked whether it is
wrong. Each in a short run with a step that falls along half a cosine, then the one that came nearer towards the likeliest
classes.

It is a `pool` attack: a sample leaves the moment the model misclassifies it, and all randomness is its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.apgd import apgd
from robustdup.attacks.cosine_pgd import cosine_pgd, cosine_pgd_t
from robustdup.attacks.guided import Guided, counted, inside
from robustdup.attacks.inner import PROBED, probing_images
from robustdup.attacks.losses import cw, margin, misclassified
from robustdup.attacks.passes import Passes, input_gradient
from robustdup.attacks.see_through import SeeThrough, smooth_copy
from robustdup.errors import AttackWarning, check_counts
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

SAME_WAY = 0.5  # cosine, on average, above which two gradients point the same way


def straight_through(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    rng: SampleRng,
    steps: int = 20,
    targets: int = 4,
    restarts: int = 1,
    eot: int = 1,
) -> Tensor:
    """Attack a copy that gradients pass through; samples that survive return their iterate of smallest margin.

    https://arxiv.org/abs/1802.00420

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: clean images (N, C, H, W) in [0, 1].
        labels: true classes (N,).
        threat: the ball to stay in.
        rng: the samples' streams.
        steps: for each run.
        targets: wrong classes to aim at after the untargeted runs; 0 for none.
        restarts: runs of each kind from random starts.
        eot: calls over which a gradient is averaged, for randomised models.

    Returns:
        Images (N, C, H, W) inside the ball and [0, 1].

    Raises:
        UserError: a setting that cannot work.
    """
    check_counts("straight-through", steps=steps, restarts=restarts, eot=eot)
    check_counts("straight-through", least=0, targets=targets)
    adv_images, remaining = images.clone(), torch.arange(len(images), device=images.device)
    lowest = images.new_full((len(images),), torch.inf)
    if len(images) == 0:
        return adv_images
    views = _views(model, images)
    if views is None:
        return adv_images
    hard, smooth = views
    by_smooth = torch.ones_like(labels, dtype=torch.bool)  # where the smooth copy came nearer: targeted runs follow it
    options = {"steps": steps, "restarts": restarts, "eot": eot}
    for number, (copied, aimed) in enumerate(((hard, False), (smooth, False), (hard, True), (smooth, True))):
        rows = remaining[by_smooth[remaining] == (copied is smooth)] if aimed else remaining
        if copied is None or len(rows) == 0 or (aimed and not targets):
            continue
        streams, part, true = rng[rows].fold("run").fold(number), images[rows], labels[rows]
        candidates = _run(copied, part, true, threat, streams, options, targets if aimed else 0)
        margins, is_adv = _judge(model, candidates, true)
        if not aimed:
            by_smooth[rows] = ((margins <= lowest[rows]) | naked(smooth)) if copied is smooth else False
        better = is_adv | (margins < lowest[rows])
        adv_images[rows[better]], lowest[rows[better]] = candidates[better], margins[better]
        remaining = remaining[~torch.isin(remaining, rows[is_adv])]
    return adv_images


def _run(
    copied: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, rng: SampleRng, options: Any, targets: int
) -> Tensor:
    """Attack a copy, untargeted or towards some classes; in L1 always untargeted."""
    if threat.norm == "L1":
        return images if targets else apgd(copied, images, labels, threat, rng=rng, loss="margin", **options)
    if targets:
        return cosine_pgd_t(copied, images, labels, threat, rng=rng, targets=targets, **options)
    return cosine_pgd(copied, images, labels, threat, rng=rng, **options)


def straight_through_cost(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (forward, backward) passes that a surviving sample costs under these options, in a call of 64, at most."""
    steps, targets = options["restarts"] * options["steps"] * options["eot"], options["targets"]
    run = steps + options["restarts"]
    return 3 * run + 2 * targets * run + 6 + 5 * PROBED / 64, (2 + targets) * steps + 2 * PROBED / 64


def _views(model: nn.Module, images: Tensor) -> tuple[nn.Module | None, nn.Module] | None:
    """Return what to attack in place of `model`: its copy, None where its gradient is not to be trusted, and its smooth copy.

    Both answer as the model does. The smooth one has the scores of the network inside, before anything was done to them,
    where there is one, and skips what was done to the images: where the other's gradient points elsewhere, it is a mask's.
    None, with a warning, where the model cannot be run so. All of it is asked on images that hang on no sample.
    """
    probes = probing_images(images)
    hard = inside(model, SeeThrough)
    if isinstance(model, Passes):
        model.count.forward += PROBED  # by which the network inside is found
    try:
        smooth = inside(model, lambda own: Guided(smooth_copy(own, images), counted(own, model)))
        with torch.no_grad():
            classes = model(probes).argmax(dim=1)
        slopes = [
            input_gradient(view, probes, lambda logits, rows: cw(logits, classes[rows]))[0]
            .nan_to_num(0, 0, 0)
            .flatten(1)
            for view in (hard, smooth)
        ]
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        text = (
            f"straight-through: this model cannot be seen through ({type(error).__name__}: {error}); nothing was tried."
        )
        warnings.warn(text, AttackWarning, stacklevel=3)
        return None
    if not any(bool(slope.any()) for slope in slopes):
        text = "straight-through: no gradient passes through this model, so that only random starts were tried."
        warnings.warn(text, AttackWarning, stacklevel=3)
    agreement = float(torch.cosine_similarity(slopes[0], slopes[1], dim=1).mean())
    return (hard if agreement > SAME_WAY else None), smooth


def naked(view: nn.Module) -> bool:
    """Say whether the copy in a smooth view has the scores of a network inside: the margins of the model say less than those."""
    guided = view.model if isinstance(view, Passes) else view
    return guided.guide.inner is not None  # type: ignore[union-attr]


def _judge(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        logits = model(images)
    return margin(logits, labels).to(images.dtype), misclassified(logits, labels)
