"""Do two models agree? Logits and input gradients on example images, compared step by step."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from robustdup.rng import seed_torch

# Largest difference that a copy may make, by precision: (logits relative to their scale, a row's input gradient
# relative to its length). 0.045 is a cosine of 0.999, and sees a changed length besides.
TOLERANCE = {"fp32": (1e-4, 0.045), "tf32": (2e-2, 0.3), "bf16": (1e-1, 0.7)}


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
    """Make two sets of images, two seeds, two batch sizes: what tracing bakes in shows as a difference.

    Args:
        images: examples (n, C, H, W) in [0, 1].
        rows: images per call.
    """
    images = images.detach()[:rows]
    images = images.repeat(-(-rows // max(len(images), 1)), 1, 1, 1)[:rows]
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
    # Gradients are compared a little off the clean images: flat patches tie under max pooling, where two different
    # gradients are both right.
    probes = [Probe(images, 1, False), Probe(0.9 * images + 0.1 * noise, 2, True)]
    return [*probes, Probe(images[: (rows + 1) // 2].flip(-1), 3, True)]


def answers(model: nn.Module, probes: list[Probe]) -> list[Answer]:
    """Ask a model about each probe; its buffers and the global random state stay as they are.

    Raises:
        ValueError: the model returns no logits (N, K).
    """
    results = []
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
        results.append(Answer(logits.detach(), gradient))
    return results


def differences(expected: list[Answer], actual: list[Answer]) -> tuple[float, float]:
    """Return the largest (logit difference by the logits' scale, gradient difference by its row's length)."""
    largest = [0.0, 0.0]
    for first, second in zip(expected, actual, strict=True):
        finite = first.logits.isfinite()
        if first.logits.shape != second.logits.shape or not torch.equal(finite, second.logits.isfinite()):
            return float("inf"), float("inf")
        scale = first.logits[finite].abs().max().clamp(min=1) if finite.any() else torch.tensor(1.0)
        gap = (first.logits - second.logits)[finite].abs()
        largest[0] = max(largest[0], float(gap.max() / scale) if len(gap) else 0.0)
        rows = finite.all(dim=1)
        if first.gradient is not None and second.gradient is not None and rows.any():
            gradients = (answer[rows].double().flatten(1) for answer in (first.gradient, second.gradient))
            largest[1] = max(largest[1], _gradient_difference(*gradients))
    return largest[0], largest[1]


def within(differences: tuple[float, float], allowed: tuple[float, float]) -> bool:
    """Tell whether differences are no larger than allowed: then predictions are equal too, but for ties at that level."""
    return all(difference <= limit for difference, limit in zip(differences, allowed, strict=True))


def reason_of(error: Exception) -> str:
    """Return the kind of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _gradient_difference(first: Tensor, second: Tensor) -> float:
    if not torch.equal(first.isfinite(), second.isfinite()):
        return float("inf")
    first, second = first.nan_to_num(0, 0, 0), second.nan_to_num(0, 0, 0)
    length = first.norm(dim=1)
    floor = 1e-6 * length.max().clamp(min=1e-12)  # rows without a gradient: rounding is no difference
    return float(((first - second).norm(dim=1) / length.clamp(min=float(floor))).max())


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
            seed_torch(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
