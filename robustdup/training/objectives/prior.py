"""FGSM-PGI: single-step training whose attack starts where that of the epochs before ended."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.noise import ball_noise
from robustdup.errors import UserError
from robustdup.rng import SampleRng
from robustdup.threat import parse_eps
from robustdup.training.inner import InnerAttack
from robustdup.training.objectives.adversarial import correct, cross_entropy
from robustdup.training.pgd import check_step, direction, project_delta
from robustdup.training.updates import LossAndMetrics

EPOCH_BITS = 48  # of a sample's key, where its epoch begins


def fgsm_pgi(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    attack: InnerAttack,
    rng: SampleRng,
    strength: float = 10.0,
    decay: float = 0.3,
    reset: int = 40,
    step_size: str | float | None = None,
) -> LossAndMetrics:
    """Return CE(adversarial) + strength * mean over classes of (adversarial logits - logits at the start)^2.

    This is the form with momentum over epochs. Of each training image a perturbation and a momentum of gradients are kept,
    which follow crop and flip. The attack starts at the perturbation and makes one step of `step_size` (eps if None) along
    the gradient; the next start is the same step along decay * momentum + gradient / mean of its magnitude. Each `reset`
    epochs both begin anew, at uniform noise and at zero. https://arxiv.org/abs/2207.08859

    The gradient is that of the inner network in its BatchNorm mode (the authors: train mode). The images at the start are a
    pass of their own, in train mode, whose answers are trained too. Needs one process. "correct" is of the adversarial
    images, "correct_start" of those at the start.
    """
    threat = attack.threat
    step = threat.radius if step_size is None else float(parse_eps(step_size))

    def moved() -> tuple[Tensor, Tensor]:
        anew = ((rng.index >> EPOCH_BITS) % reset == 0)[:, None, None, None]
        noise = ball_noise(images, threat, rng.fold("fgsm_pgi"))
        start = project_delta(torch.where(anew, noise, attack.recall("start").to(images)), threat)
        start_images = (images + start).clamp(0, 1)
        gradient = attack.gradient(start_images, labels)
        momentum = torch.where(anew, torch.zeros_like(start), attack.recall("momentum").to(images)) * decay
        size = gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-20)
        momentum = momentum + gradient / size
        attack.remember("momentum", momentum)
        attack.remember("start", project_delta(start + step * direction(images, momentum.clone(), threat), threat))
        delta = project_delta(start + step * direction(images, gradient, threat), threat)
        return start_images, (images + delta).clamp(0, 1)

    start_images, adv_images = attack.once("fgsm_pgi", moved, images, labels)
    before, after = model(start_images), model(adv_images)
    drift = (after.float() - before.float()).square().mean(dim=1)
    loss = cross_entropy(after, labels, attack.label_smoothing) + strength * drift
    metrics = {"correct": correct(after, labels), "correct_start": correct(before, labels), "drift": drift.detach()}
    return loss, metrics


fgsm_pgi.keeps_memory = True  # type: ignore[attr-defined]


def check_fgsm_pgi(*, strength: float, decay: float, reset: int, step_size: str | float | None, **_: Any) -> None:
    """Raise UserError for values that cannot be."""
    if strength < 0 or not 0 <= decay < 1 or reset < 1:
        raise UserError(
            "fgsm_pgi: strength must be 0 or more, decay in [0, 1) and reset (epochs) at least 1; got "
            f"strength={strength:g}, decay={decay:g}, reset={reset}.",
            code="bad-value",
        )
    check_step(step_size)
