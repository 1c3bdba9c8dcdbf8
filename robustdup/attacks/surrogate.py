"""Surrogate: attack a smooth stand-in that the program finds or fits, judge the model, and refine by its answers.

Where there is a network inside the model whose answers are the model's, that network, in front of what was done to its
scores, is the stand-in (`inner`). Where there is none, a small one learns for seconds what the model says around the
samples (`student`, as in https://arxiv.org/abs/1602.02697). A sample leaves when the model itself is wrong; what survives
the transfer is refined by answers alone (`rays`), from the direction that the stand-in pointed in.

It is a `batch` attack: a student learns from all samples of a call.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.apgd import apgd
from robustdup.attacks.cosine_pgd import cosine_pgd, cosine_pgd_t
from robustdup.attacks.guided import Guided, counted
from robustdup.attacks.inner import find_inner
from robustdup.attacks.losses import fools
from robustdup.attacks.passes import Passes
from robustdup.attacks.rays import search_rays
from robustdup.attacks.see_through import SeeThrough
from robustdup.attacks.student import BATCH, fit_student
from robustdup.errors import AttackWarning, check_counts
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

POOR = 0.5  # of the model's answers: a student that gives fewer is said to be poor


def surrogate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    *,
    rng: SampleRng,
    fit_steps: int = 200,
    steps: int = 20,
    targets: int = 4,
    queries: int = 200,
) -> Tensor:
    """Attack a stand-in and refine by the model's answers; samples that survive return what came nearest.

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: clean images (N, C, H, W) in [0, 1].
        labels: true classes (N,).
        threat: the ball to stay in.
        rng: the samples' streams.
        fit_steps: for which a student learns, where one is needed; 0 for none.
        steps: of each run on the stand-in.
        targets: wrong classes to aim at after the untargeted run; 0 for none.
        queries: answers by which a survivor is refined in Linf and L2; 0 for none.

    Returns:
        Images (N, C, H, W) inside the ball and [0, 1].

    Raises:
        UserError: a setting that cannot work.
    """
    check_counts("surrogate", steps=steps)
    check_counts("surrogate", least=0, fit_steps=fit_steps, targets=targets, queries=queries)
    adv_images, remaining = images.clone(), torch.arange(len(images), device=images.device)
    if len(images) == 0:
        return adv_images
    guide = find_guide(model, images, threat, fit_steps=fit_steps, seed=rng.call_seed())
    if guide is not None:
        view = Guided(guide, model)
        if threat.norm == "L1":
            adv_images = apgd(view, images, labels, threat, rng=rng, loss="margin", steps=steps)
        else:
            adv_images = cosine_pgd(view, images, labels, threat, rng=rng, steps=steps)
        remaining = remaining[~fools(model, adv_images, labels)]
        if targets and len(remaining) and threat.norm != "L1":
            part, true = images[remaining], labels[remaining]
            candidates = cosine_pgd_t(view, part, true, threat, rng=rng[remaining], targets=targets, steps=steps)
            is_adv = fools(model, candidates, true)
            adv_images[remaining[is_adv]] = candidates[is_adv]
            remaining = remaining[~is_adv]
    if queries and len(remaining) and threat.norm != "L1":
        part = images[remaining]
        start = torch.where(adv_images[remaining] - part < 0, -1.0, 1.0).to(part)
        adv_images[remaining] = search_rays(model, part, labels[remaining], threat, start, queries)
    return adv_images


def surrogate_cost(options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the (forward, backward) passes that a surviving sample costs, in a call of 64, at most."""
    runs = 1 + options["targets"]
    forward = runs * (options["steps"] + 1)
    return 2 * forward + options["queries"] + options["fit_steps"] + 20, runs * options["steps"]


def find_guide(model: nn.Module, images: Tensor, threat: ThreatModel, *, fit_steps: int, seed: int) -> nn.Module | None:
    """Return the network inside the model, or a student of it; None where there is none and none is to be fitted."""
    own = model.model if isinstance(model, Passes) else model
    inner = find_inner(own, images[:BATCH])
    if inner is not None:
        return counted(SeeThrough(own, inner=inner), model)
    if not fit_steps:
        return None
    student, agreement = fit_student(model, images, threat, steps=fit_steps, seed=seed % 2**63)
    if agreement < POOR:
        text = f"surrogate: the student gives the model's answer on {agreement:.0%} of the images only; its attack is weak."
        warnings.warn(text, AttackWarning, stacklevel=2)
    return student
