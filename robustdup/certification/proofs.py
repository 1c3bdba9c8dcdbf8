"""Certify samples: CROWN on all, alpha-CROWN on those that stay open, and the checker's word on each of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustdup.certification.checker import Step, proven_margin
from robustdup.certification.crown import Slopes, interval_bounds, margin_rows, margins
from robustdup.certification.graph import Operation, read_network
from robustdup.certification.matrices import LARGEST, checker_steps
from robustdup.certification.region import Region, region_of
from robustdup.errors import UserError
from robustdup.threat import ThreatModel

BATCH = 16  # samples that are bounded at once
STEPS = 20  # of gradient ascent on the slopes
HOPELESS = 3.0  # where CROWN's margin lies this many times the clean margin below 0 in a whole batch, no more is tried

Progress = Callable[[int, int], None]  # samples done, samples in all


@dataclass(frozen=True)
class Certificates:
    """What was proven, sample by sample.

    Attributes:
        correct: bool (N,): classified correctly on the clean image.
        certified: bool (N,): correct, and the checker proved that no image in the ball inside [0, 1] is misclassified.
        margins: float64 (N,): the margin that was proven to be the least; -inf where nothing was tried or nothing found.
        methods: which bound the checker accepted, "" where none: "crown" or "alpha-crown".
        slopes: by sample that is certified, by rectifier: float32 (size,) slopes of its lower lines, which the checker needs
            to prove it again.
        seconds: in all.
        notes: what a reader should know, such as that time was up.
    """

    correct: Tensor
    certified: Tensor
    margins: Tensor
    methods: list[str]
    seconds: float
    notes: list[str] = field(default_factory=list)
    slopes: dict[int, dict[int, np.ndarray[Any, Any]]] = field(default_factory=dict)


def certify_samples(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seconds: float | None = None,
    progress: Progress = lambda done, total: None,
) -> Certificates:  # fmt: skip
    """Prove for as many samples as possible that no adversarial example exists.

    Args:
        model: Deterministic, in eval mode: images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: float32 (N, C, H, W) in [0, 1].
        labels: int64 (N,).
        threat: Linf, L2 or L1. The ball is taken with the referee's tolerance, so that no image that the referee accepts is
            outside.
        seconds: Samples that are not begun by then stay open; no limit where None.
        progress: Told after each batch.

    Raises:
        UserError: not-boundable, with the layer that cannot be bounded.
    """
    start = time.monotonic()
    model.eval()
    with torch.no_grad():
        correct = torch.cat([model(part).argmax(1) for part in torch.split(images, 256)]).to(labels.device) == labels
    operations = read_network(model, images[:4])
    largest = max(int(np.prod(operation.shape)) for operation in operations)
    if largest > LARGEST:
        raise UserError(
            f"The network cannot be bounded here: a value has {largest:,} numbers, and {LARGEST:,} are the most.",
            code="not-boundable",
        )
    steps = checker_steps(operations)
    n = len(images)
    found = Certificates(
        correct.cpu(),
        torch.zeros(n, dtype=torch.bool),
        torch.full((n,), -torch.inf, dtype=torch.float64),
        [""] * n,
        0.0,
    )
    todo = correct.nonzero().squeeze(1)
    for done, rows in enumerate(torch.split(todo, BATCH)):
        if seconds is not None and time.monotonic() - start > seconds:
            found.notes.append(f"Time was up after {seconds:g} s: {len(todo) - done * BATCH} samples were not tried.")
            break
        region = region_of(images[rows], threat)
        with torch.no_grad():
            least, slopes = margins(operations, region, labels[rows])
        if done == 0 and _hopeless(operations, region, labels[rows], least):
            found.notes.append("Bounds are far from proving anything at this eps; the other samples were not tried.")
            break
        _check(steps, region, labels[rows], rows.tolist(), least, slopes, "crown", found)
        _ascend(operations, steps, region, labels[rows], rows.tolist(), found)
        progress(min((done + 1) * BATCH, len(todo)), len(todo))
    return Certificates(
        found.correct, found.certified, found.margins, found.methods, time.monotonic() - start, found.notes,
        found.slopes,
    )  # fmt: skip


def _hopeless(operations: list[Operation], region: Region, labels: Tensor, least: Tensor) -> bool:
    """Say whether CROWN's margins (N,) of a batch are so far below zero that no sample like these will be certified."""
    with torch.no_grad():
        clean = interval_bounds(operations, Region(region.images, "Linf", 0.0)).low[-1]
        rows = margin_rows(labels, clean.shape[1]).to(clean)
        largest = (rows @ clean.unsqueeze(2)).squeeze(2).amin(1)
    return bool((least < -HOPELESS * largest.clamp(min=1e-6)).all())


def _ascend(
    operations: list[Operation], steps: list[Step], region: Region, labels: Tensor, rows: list[int], found: Certificates
) -> None:
    """Try alpha-CROWN on the samples of a batch that are still open."""
    left = [place for place, row in enumerate(rows) if not found.certified[row]]
    if not left:
        return
    part = Region(region.images[left], region.norm, region.radius)
    least, slopes = margins(operations, part, labels[left], steps=STEPS)
    _check(steps, part, labels[left], [rows[place] for place in left], least, slopes, "alpha-crown", found)


def _check(
    steps: list[Step], region: Region, labels: Tensor, rows: list[int], least: Tensor, slopes: Slopes, method: str,
    found: Certificates,
) -> None:  # fmt: skip
    """Have the checker prove what was claimed; a claim alone is worth nothing."""
    for place, row in enumerate(rows):
        if not bool(least[place] > 0):
            found.margins[row] = max(float(found.margins[row]), float(least[place]))
            continue
        # As they are kept: what is proven again is what was proven.
        hints = {number: slope[place].detach().float().flatten().cpu().numpy() for number, slope in slopes.items()}
        proven = proven_margin(
            steps, region.images[place].double().flatten().cpu().numpy(), int(labels[place]),
            norm=region.norm, radius=region.radius,
            slopes={number: slope.astype(np.float64) for number, slope in hints.items()},
        )  # fmt: skip
        found.margins[row] = proven
        if proven > 0:
            found.certified[row] = True
            found.methods[row] = method
            found.slopes[row] = hints
