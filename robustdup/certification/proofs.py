"""Certify samples: CROWN on all; on those that it leaves open alpha-CROWN, then cases; and the checker's word on each.

What costs more is tried on fewer samples, and on none that gradient descent breaks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustdup.certification.branching import MOST_UNITS, count_rectifiers, prove_by_cases
from robustdup.certification.checker import Step, Tree, proven_margin
from robustdup.certification.crown import Slopes, interval_bounds, margin_rows, margins
from robustdup.certification.graph import Operation, read_network, run
from robustdup.certification.matrices import LARGEST, checker_steps
from robustdup.certification.region import Region, radius_of, region_of
from robustdup.errors import UserError
from robustdup.threat import ThreatModel

BATCH = 16  # samples that are bounded at once
STEPS = 20  # of gradient ascent on the slopes
MOST_CLASSES = 20  # for which a probe is quick
DESCENT = 20  # steps that show that a sample can be broken
EASY = 0.5  # share of a first batch that CROWN has to prove, so that the checker is asked at once, without a claim
HOPELESS = 3.0  # where CROWN's margin lies this many times the clean margin below 0 in a whole batch, no more is tried

Progress = Callable[[int, int], None]  # samples done, samples in all
Hints = dict[
    int, np.ndarray[Any, Any]
]  # by rectifier: float32 (size,) slopes of its lower lines; NaN is the checker's choice


@dataclass
class Certificates:
    """What was proven, sample by sample.

    Attributes:
        correct: bool (N,): classified correctly on the clean image.
        certified: bool (N,): correct, and the checker proved that no image in the ball inside [0, 1] is misclassified.
        margins: float64 (N,): the margin that was proven to be the least; -inf where nothing was tried or nothing found.
        methods: which bound the checker accepted, "" where none: "crown", "alpha-crown" or "branch-and-bound".
        seconds: in all.
        notes: what a reader should know, such as that time was up.
        slopes: by sample that is certified: what the checker needs to prove it again.
        trees: by sample that was proven case by case, by the other class: the cases.
    """

    correct: Tensor
    certified: Tensor
    margins: Tensor
    methods: list[str]
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    slopes: dict[int, Hints] = field(default_factory=dict)
    trees: dict[int, dict[int, Tree]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Task:
    """What is to be proven, until when, and what is found on the way.

    The network stands in two forms: operations of torch, which find bounds, and steps of the checker, which proves them.
    So do the samples: tensors on the model's device, and flat `pixels` (N, D) with their `classes`.
    `unfinished` are samples that time did not suffice for.
    """

    operations: list[Operation]
    steps: list[Step]
    images: Tensor
    labels: Tensor
    threat: ThreatModel
    deadline: float
    certificates: Certificates
    pixels: np.ndarray[Any, Any]
    classes: list[int]
    unfinished: set[int] = field(default_factory=set)

    def batch(self, rows: list[int]) -> tuple[Region, Tensor]:
        """Return the balls around some samples, and their labels."""
        chosen = torch.tensor(rows, dtype=torch.int64)
        return region_of(self.images[chosen], self.threat), self.labels[chosen]

    def seconds_left(self) -> float:
        """Return the time until the deadline, 0 after it."""
        return max(0.0, self.deadline - time.monotonic())


def certify_samples(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seconds: float | None = None,
    branch_seconds: float = 0.0, progress: Progress = lambda done, total: None,
    operations: list[Operation] | None = None,
) -> Certificates:  # fmt: skip
    """Prove for as many samples as possible that no adversarial example exists.

    Args:
        model: Deterministic, in eval mode: images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: float32 (N, C, H, W) in [0, 1], on the model's device.
        labels: int64 (N,).
        threat: Linf, L2 or L1. The ball is taken with the referee's tolerance, so that no image that the referee accepts is
            outside.
        seconds: In all: nothing more is begun after that. No limit where None.
        branch_seconds: Of CPU, for a sample that bounds leave open: look for a proof by cases so long; 0 for not at all.
            Those that are nearest to a proof come first.
        progress: Told how many of the correct samples CROWN was tried on.
        operations: The model, where it was read before.

    Raises:
        UserError: not-boundable, with the layer that cannot be bounded.
    """
    start = time.monotonic()
    model.eval()
    labels = labels.to(images.device)
    with torch.no_grad():
        correct = (torch.cat([model(part).argmax(1) for part in torch.split(images, 256)]) == labels).cpu()
    operations = operations or read_network(model, images[:4])
    largest = max(int(np.prod(operation.shape)) for operation in operations)
    if largest > LARGEST:
        raise UserError(
            f"The network cannot be bounded here: a value has {largest:,} numbers, and {LARGEST:,} are the most.",
            code="not-boundable",
        )
    nothing = torch.full((len(images),), -torch.inf, dtype=torch.float64)
    certificates = Certificates(correct, torch.zeros_like(correct), nothing, [""] * len(images))
    deadline = np.inf if seconds is None else start + seconds
    task = _Task(
        operations, checker_steps(operations), images, labels, threat, deadline, certificates,
        pixels=images.flatten(1).cpu().numpy(), classes=labels.tolist(),
    )  # fmt: skip
    left = _try_crown(task, correct.nonzero().squeeze(1).tolist(), progress)
    bounds = _try_ascent(task, _unbroken(task, left))
    if branch_seconds > 0:
        _try_cases(task, bounds, branch_seconds)
    if task.unfinished:
        certificates.notes.append(
            f"Time was up after {seconds:g} s: {len(task.unfinished)} samples were not tried, or not to the end."
        )
    certificates.seconds = time.monotonic() - start
    return certificates


def _try_crown(task: _Task, rows: list[int], progress: Progress) -> list[int]:
    """Certify what CROWN proves, and return the samples that it leaves open."""
    certificates, is_easy = task.certificates, False
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        if not task.seconds_left():
            task.unfinished.update(rows[start:])
            rows = rows[:start]
            break
        if is_easy:
            _check(task, dict.fromkeys(part, _own_lines(task.operations)), "crown")
        else:
            region, labels = task.batch(part)
            least, slopes = margins(task.operations, region, labels)
            if start == 0 and _hopeless(task.operations, region, labels, least):
                certificates.notes.append(
                    "Bounds are far from proving anything at this eps; the other samples were not tried."
                )
                return []
            is_easy = start == 0 and bool((least > 0).float().mean() >= EASY)
            _check(task, _claims(task, part, least, slopes), "crown")
        progress(start + len(part), len(rows))
    return [row for row in rows if not certificates.certified[row]]


def _try_ascent(task: _Task, rows: list[int]) -> dict[int, tuple[float, Slopes]]:
    """Certify what alpha-CROWN proves; return margin and slopes of the samples that it leaves open."""
    bounds: dict[int, tuple[float, Slopes]] = {}
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        if not task.seconds_left():
            task.unfinished.update(rows[start:])
            break
        region, labels = task.batch(part)
        least, slopes = margins(task.operations, region, labels, steps=STEPS)
        _check(task, _claims(task, part, least, slopes), "alpha-crown")
        for place, (row, margin) in enumerate(zip(part, least.tolist(), strict=True)):
            if not task.certificates.certified[row]:
                bounds[row] = margin, {number: slope[place : place + 1].detach() for number, slope in slopes.items()}
    return bounds


def _try_cases(task: _Task, bounds: Mapping[int, tuple[float, Slopes]], seconds: float) -> None:
    """Certify what can be proven case by case, the samples first that are nearest to a proof."""
    units = count_rectifiers(task.operations)
    if bounds and units > MOST_UNITS:
        note = f"No proof by cases was looked for: {units:,} rectifiers, and {MOST_UNITS:,} are the most."
        task.certificates.notes.append(note)
        return
    for row, (margin, slopes) in sorted(bounds.items(), key=lambda item: -item[1][0]):
        if not task.seconds_left():
            task.unfinished.add(row)
            continue
        hints = _as_kept(slopes, 0)
        lost_to_rounding = max(margin - _proven(task, row, hints), 0.0)
        region, label = task.batch([row])
        trees = prove_by_cases(
            task.operations, region, int(label), slopes, seconds=seconds, slack=2 * lost_to_rounding + 1e-6
        )
        if trees is not None:
            _check(task, {row: hints}, "branch-and-bound", trees)


def probe(operations: list[Operation], images: Tensor, labels: Tensor, threat: ThreatModel) -> float:
    """Return the share of a few samples that are correct and that CROWN, unchecked, proves; 0 for networks that are large.

    Args:
        operations: The network.
        images: float32 (N, C, H, W) in [0, 1].
        labels: int64 (N,).
        threat: Linf, L2 or L1.
    """
    if count_rectifiers(operations) > MOST_UNITS or operations[-1].shape[0] > MOST_CLASSES:
        return 0.0
    with torch.no_grad():
        correct = run(operations, images).argmax(1) == labels
        least, _ = margins(operations, region_of(images, threat), labels)
    return float((correct & (least > 0)).float().mean())


def other_precisions(model: nn.Module) -> str:
    """Name the precisions of a model's weights that rounding is not counted for: all but float32."""
    kinds = {str(weight.dtype).removeprefix("torch.") for weight in model.parameters() if weight.is_floating_point()}
    return ", ".join(sorted(kinds - {"float32"}))


def _hopeless(operations: list[Operation], region: Region, labels: Tensor, least: Tensor) -> bool:
    """Say whether CROWN's margins (N,) of a batch are so far below zero that no sample like these will be certified."""
    with torch.no_grad():
        clean = interval_bounds(operations, Region(region.images, "Linf", 0.0)).low[-1]
        rows = margin_rows(labels, clean.shape[1]).to(clean)
        largest = (rows @ clean.unsqueeze(2)).squeeze(2).amin(1)
    return bool((least < -HOPELESS * largest.clamp(min=1e-6)).all())


def _unbroken(task: _Task, rows: list[int]) -> list[int]:
    """Return the samples of which a short descent on the margin finds no misclassified image in the ball."""
    region, labels = task.batch(rows)
    images = region.images
    adv, broken = images.clone(), torch.zeros(len(rows), dtype=torch.bool, device=images.device)
    for _ in range(DESCENT if rows else 0):
        with torch.enable_grad():
            adv.requires_grad_()
            logits = run(task.operations, adv)
            others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
            margin = logits.gather(1, labels[:, None]).squeeze(1) - others
            (gradient,) = torch.autograd.grad(margin.sum(), adv)
        broken |= margin.detach() < 0
        step = gradient.sign() if task.threat.norm == "Linf" else gradient
        adv = task.threat.project(images, adv.detach() - 0.25 * task.threat.sphere_scale(step))
    return [row for row, is_broken in zip(rows, broken.tolist(), strict=True) if not is_broken]


def _own_lines(operations: list[Operation]) -> Hints:
    """Return slopes that leave the choice of lines to the checker."""
    return {
        number: np.full(int(np.prod(operation.shape)), np.nan, dtype=np.float32)
        for number, operation in enumerate(operations)
        if operation.kind == "rectifier"
    }


def _as_kept(slopes: Slopes, place: int) -> Hints:
    """Return the slopes of one sample as they are kept: what is proven again is what was proven."""
    return {number: slope[place].detach().float().flatten().cpu().numpy() for number, slope in slopes.items()}


def _claims(task: _Task, rows: list[int], least: Tensor, slopes: Slopes) -> dict[int, Hints]:
    """Return the slopes of the samples whose margin `least` (N,) is claimed to be above 0; note the others' margins."""
    claims = {}
    for place, (row, margin) in enumerate(zip(rows, least.tolist(), strict=True)):
        if margin > 0:
            claims[row] = _as_kept(slopes, place)
        else:
            task.certificates.margins[row] = max(float(task.certificates.margins[row]), margin)
    return claims


def _check(task: _Task, claims: Mapping[int, Hints], method: str, trees: dict[int, Tree] | None = None) -> None:
    """Have the checker prove what is claimed, on as many threads as torch has; a claim alone is worth nothing."""

    def prove(row: int) -> float:
        return _proven(task, row, claims[row], trees)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # numpy and scipy let each other's threads run
        proven = list(pool.map(prove, claims))
    certificates = task.certificates
    for (row, hints), margin in zip(claims.items(), proven, strict=True):
        certificates.margins[row] = margin
        if margin > 0:
            certificates.certified[row] = True
            certificates.methods[row] = method
            certificates.slopes[row] = hints
            if trees:
                certificates.trees[row] = trees


def _proven(task: _Task, row: int, hints: Hints, trees: dict[int, Tree] | None = None) -> float:
    """Return the margin that the checker proves of a sample."""
    return proven_margin(
        task.steps, task.pixels[row], task.classes[row], norm=task.threat.norm, radius=radius_of(task.threat),
        slopes={number: slope.astype(np.float64) for number, slope in hints.items()}, trees=trees,
    )  # fmt: skip
