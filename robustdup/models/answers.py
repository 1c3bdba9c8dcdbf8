"""Do two models say the same? Logits and input gradients on example images, compared step by step."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Probe:
    """Images to ask a model about, under a seed, with or without the gradient by them."""

    images: Tensor
    seed: int
    gradient: bool


@dataclass(frozen=True)
class Answer:
    """Logits (N, K) and, where asked for, input gradients (N, C, H, W) of a fixed mix of the logits."""

    logits: Tensor
    gradient: Tensor | None


def probes_of(images: Tensor, rows: int) -> list[Probe]:
    """Two sets of images, two seeds, two batch sizes: what tracing bakes in shows as a difference."""
    images = images.detach()[:rows]
    images = images.repeat(-(-rows // max(len(images), 1)), 1, 1, 1)[:rows]
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
    # Gradients are compared a little off the clean images: flat patches tie under max pooling, where two different
    # gradients are both right.
    probes = [Probe(images, 1, False), Probe(0.9 * images + 0.1 * noise, 2, True)]
    return [*probes, Probe(images[: (rows + 1) // 2].flip(-1), 3, True)]


def answers(model: nn.Module, probes: list[Probe]) -> list[Answer]:
    """Ask a model about each probe; its buffers and the global random state stay as they are."""
    found = []
    for probe in probes:
        images = probe.images.clone().requires_grad_(probe.gradient)
        gradient = None
        with undisturbed(model, probe.seed), torch.set_grad_enabled(probe.gradient):
            logits = model(images.clone())
            if logits.ndim != 2 or len(logits) != len(images):
                raise ValueError(f"logits of shape {tuple(logits.shape)} for {len(images)} images")
            if probe.gradient:
                weights = torch.arange(logits.shape[1], device=logits.device).add(1).cos()
                (gradient,) = torch.autograd.grad((logits * weights).sum(), images)
        found.append(Answer(logits.detach(), gradient))
    return found


def differences(truth: list[Answer], ours: list[Answer]) -> tuple[float, float]:
    """Return the largest (logit difference by the logits' scale, gradient difference by its row's length)."""
    worst = [0.0, 0.0]
    for one, two in zip(truth, ours, strict=True):
        finite = one.logits.isfinite()
        if one.logits.shape != two.logits.shape or not torch.equal(finite, two.logits.isfinite()):
            return float("inf"), float("inf")
        scale = one.logits[finite].abs().max().clamp(min=1) if finite.any() else torch.tensor(1.0)
        gap = (one.logits - two.logits)[finite].abs()
        worst[0] = max(worst[0], float(gap.max() / scale) if len(gap) else 0.0)
        rows = finite.all(dim=1)
        if one.gradient is not None and two.gradient is not None and rows.any():
            first, second = (grad[rows].double().flatten(1) for grad in (one.gradient, two.gradient))
            worst[1] = max(worst[1], _gradient_difference(first, second))
    return worst[0], worst[1]


def _gradient_difference(one: Tensor, two: Tensor) -> float:
    if not torch.equal(one.isfinite(), two.isfinite()):
        return float("inf")
    one, two = one.nan_to_num(0, 0, 0), two.nan_to_num(0, 0, 0)
    length = one.norm(dim=1)
    floor = 1e-6 * length.max().clamp(min=1e-12)  # rows without a gradient: rounding is no difference
    return float(((one - two).norm(dim=1) / length.clamp(min=float(floor))).max())


@contextmanager
def undisturbed(model: nn.Module, seed: int) -> Iterator[None]:
    """Seed the global generators inside the block; put them and the model's buffers back afterwards."""
    states = random.getstate(), np.random.get_state()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = sorted({p.device.index or 0 for p in [*model.parameters(), *model.buffers()] if p.is_cuda})
    try:
        with torch.random.fork_rng(devices):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
