"""Straight-through: follow the gradient of a copy that sees through rounding, signs, one-hot answers and detours.

What an attacker tries first who knows the mask (BPDA, https://arxiv.org/abs/1802.00420), without being told: the
operations are found while the model runs (`see_through`). First the copy keeps the model's own values, then a smooth one
takes its place, whose scores have a slope where the model's are flat; there too the model itself is asked whether it is
wrong. Each in short runs with a step that falls along half a cosine, untargeted and towards the likeliest classes.

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
from robustdup.attacks.losses import cw, margin, misclassified
from robustdup.attacks.passes import Passes, input_gradient
from robustdup.attacks.see_through import SeeThrough
from robustdup.errors import AttackWarning, check_counts
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel


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
    runs: tuple[tuple[str, bool], ...] = (
        ("untargeted", False),
        ("targeted", False),
        ("untargeted", True),
        ("targeted", True),
    )
    views = {smooth: view(model, smooth=smooth) for smooth in (False, True)}
    if not _look_through(views[False], images[:1], labels[:1]):
        return adv_images
    for number, (kind, smooth) in enumerate(runs):
        if len(remaining) == 0 or (kind == "targeted" and not targets):
            continue
        streams = rng[remaining].fold("run").fold(number)
        options: dict[str, Any] = {"steps": steps, "restarts": restarts, "eot": eot}
        part, true = images[remaining], labels[remaining]
        if threat.norm == "L1":
            found = (
                apgd(views[smooth], part, true, threat, rng=streams, loss="margin", **options)
                if kind == "untargeted"
                else part
            )
        elif kind == "untargeted":
            found = cosine_pgd(views[smooth], part, true, threat, rng=streams, **options)
        else:
            found = cosine_pgd_t(views[smooth], part, true, threat, rng=streams, targets=targets, **options)
        margins, is_adv = _judge(model, found, true)
        better = is_adv | (margins < lowest[remaining])
        adv_images[remaining[better]], lowest[remaining[better]] = found[better], margins[better]
        remaining = remaining[~is_adv]
    return adv_images


def straight_through_cost(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (forward, backward) passes that a surviving sample costs under these options, at most."""
    runs = options["restarts"] * (1 + options["targets"])
    backward = runs * options["steps"] * options["eot"]
    forward = backward + runs + 1
    return 3 * forward + 4, 2 * backward


def view(model: nn.Module, *, smooth: bool) -> nn.Module:
    """Return a model to attack in place of `model`: through it gradients pass, and it answers as the model does."""
    if not smooth:
        return inside(model, SeeThrough)
    own = model.model if isinstance(model, Passes) else model
    return inside(model, lambda inner: Guided(SeeThrough(inner, smooth=True), counted(own, model)))


def _judge(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        logits = model(images)
    return margin(logits, labels).to(images.dtype), misclassified(logits, labels)


def _look_through(model: nn.Module, images: Tensor, labels: Tensor) -> bool:
    """Say whether the copy runs at all; warn where it does not, and where no gradient passes through it either."""
    try:
        gradient, _, _ = input_gradient(model, images, lambda logits, rows: cw(logits, labels[rows]))
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        text = (
            f"straight-through: this model cannot be seen through ({type(error).__name__}: {error}); nothing was tried."
        )
        warnings.warn(text, AttackWarning, stacklevel=3)
        return False
    if not bool(gradient.nan_to_num(0, 0, 0).any()):
        text = "straight-through: no gradient passes through this model, so that only random starts were tried."
        warnings.warn(text, AttackWarning, stacklevel=3)
    return True
