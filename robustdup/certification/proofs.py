"""Certify samples: CROWN on all, alpha-CROWN and cases on those that stay open, and the checker's word on each of them."""

from __future__ import annotations

import time
from collections.abc import Callable
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
from robustdup.certification.region import Region, region_of
from robustdup.errors import UserError
from robustdup.threat import ThreatModel

BATCH = 16  # samples that are bounded at once
STEPS = 20  # of gradient ascent on the slopes
MOST_CLASSES = 20  # for which a probe is quick
DESCENT = 20  # steps that show that a sample can be broken
EASY = 0.5  # share of a first batch that CROWN has to prove, so that the checker is asked at once, without a claim
HOPELESS = 3.0  # where CROWN's margin lies this many times the clean margin below 0 in a whole batch, no more is tried

Progress = Callable[[int, int], None]  # samples done, samples in all


@dataclass(frozen=True)
class Certificates:
    """What was proven, sample by sample.

    Attributes:
        correct: bool (N,): classified correctly on the clean image.
        certified: bool (N,): correct, and the checker proved that no image in the ball inside [0, 1] is misclassified.
        margins: float64 (N,): the margin that was proven to be the least; -inf where nothing was tried or nothing found.
        methods: which bound the checker accepted, "" where none: "crown", "alpha-crown" or "branch-and-bound".
        slopes: by sample that is certified, by rectifier: float32 (size,) slopes of its lower lines, which the checker needs
            to prove it again.
        trees: by sample that was proven case by case, by the other class: the cases.
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
    trees: dict[int, dict[int, Tree]] = field(default_factory=dict)


def certify_samples(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, seconds: float | None = None,
    branch_seconds: float = 0.0, progress: Progress = lambda done, total: None,
    operations: list[Operation] | None = None,
) -> Certificates:  # fmt: skip
    """Prove for as many samples as possible that no adversarial example exists.

    Args:
        model: Deterministic, in eval mode: images (N, C, H, W) in [0, 1] -> logits (N, K).
        images: float32 (N, C, H, W) in [0, 1].
        labels: int64 (N,).
        threat: Linf, L2 or L1. The ball is taken with the referee's tolerance, so that no image that the referee accepts is
            outside.
        seconds: Samples that are not begun by then stay open; no limit where None.
        branch_seconds: For a sample that is still open, look for a proof by cases so long; 0 for not at all. Samples that a
            few steps of gradient descent break are not tried.
        progress: Told after each batch.
        operations: The model, where it was read before.

    Raises:
        UserError: not-boundable, with the layer that cannot be bounded.
    """
    start = time.monotonic()
    model.eval()
    with torch.no_grad():
        correct = torch.cat([model(part).argmax(1) for part in torch.split(images, 256)]).to(labels.device) == labels
    operations = operations or read_network(model, images[:4])
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
    units = count_rectifiers(operations)
    if branch_seconds > 0 and units > MOST_UNITS:
        found.notes.append(f"No proof by cases was looked for: {units:,} rectifiers, and {MOST_UNITS:,} are the most.")
    todo, is_easy = correct.nonzero().squeeze(1), False
    for done, rows in enumerate(torch.split(todo, BATCH)):
        if seconds is not None and time.monotonic() - start > seconds:
            found.notes.append(f"Time was up after {seconds:g} s: {len(todo) - done * BATCH} samples were not tried.")
            break
        region = region_of(images[rows], threat)
        if is_easy:
            _check(steps, region, labels[rows], rows.tolist(), None, _own_lines(operations, len(rows)), "crown", found)
        else:
            with torch.no_grad():
                least, slopes = margins(operations, region, labels[rows])
            if done == 0 and _hopeless(operations, region, labels[rows], least):
                found.notes.append(
                    "Bounds are far from proving anything at this eps; the other samples were not tried."
                )
                break
            is_easy = done == 0 and bool((least > 0).float().mean() >= EASY)
            _check(steps, region, labels[rows], rows.tolist(), least, slopes, "crown", found)
        _ascend(operations, steps, region, labels[rows], rows.tolist(), found)
        if branch_seconds > 0 and units <= MOST_UNITS:
            _branch(operations, steps, region, labels[rows], rows.tolist(), found, threat, branch_seconds)
        progress(min((done + 1) * BATCH, len(todo)), len(todo))
    return Certificates(
        found.correct, found.certified, found.margins, found.methods, time.monotonic() - start, found.notes,
        found.slopes, found.trees,
    )  # fmt: skip


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


def _branch(
    operations: list[Operation], steps: list[Step], region: Region, labels: Tensor, rows: list[int], found: Certificates,
    threat: ThreatModel, seconds: float,
) -> None:  # fmt: skip
    """Try proofs by cases on the samples of a batch that are still open, and that gradient descent does not break."""
    left = [place for place, row in enumerate(rows) if not found.certified[row]]
    if left:
        holds = ~_falls(operations, region.images[left], labels[left], threat)
        left = [place for place, kept in zip(left, holds.tolist(), strict=True) if kept]
    for place in left:
        part = Region(region.images[place : place + 1], region.norm, region.radius)
        label = labels[place : place + 1]
        least, slopes = margins(operations, part, label, steps=STEPS)
        lost = float(least) - _proven(steps, part, 0, int(label), _as_kept(slopes, 0))
        slack = 2 * max(lost, 0.0) + 1e-6
        trees = prove_by_cases(operations, part, int(label), slopes, seconds=seconds, slack=slack)
        if trees is not None:
            _check(steps, part, label, [rows[place]], None, slopes, "branch-and-bound", found, trees)


def _falls(operations: list[Operation], images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
    """Say of which images (N, C, H, W) a short descent on the margin finds a misclassified one in the ball: bool (N,)."""
    adv, broken = images.clone(), torch.zeros(len(images), dtype=torch.bool, device=images.device)
    for _ in range(DESCENT):
        with torch.enable_grad():
            adv.requires_grad_()
            logits = run(operations, adv)
            others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
            margin = logits.gather(1, labels[:, None]).squeeze(1) - others
            (gradient,) = torch.autograd.grad(margin.sum(), adv)
        broken |= margin.detach() < 0
        step = gradient.sign() if threat.norm == "Linf" else gradient
        adv = threat.project(images, adv.detach() - 0.25 * threat.sphere_scale(step))
    return broken


def _own_lines(operations: list[Operation], n: int) -> Slopes:
    """Return slopes that leave the choice of lines to the checker."""
    return {i: torch.full((n, *part.shape), torch.nan) for i, part in enumerate(operations) if part.kind == "rectifier"}


def _as_kept(slopes: Slopes, place: int) -> dict[int, np.ndarray[Any, Any]]:
    """Return the slopes of one sample as they are kept: what is proven again is what was proven."""
    return {number: slope[place].detach().float().flatten().cpu().numpy() for number, slope in slopes.items()}


def _proven(
    steps: list[Step], region: Region, place: int, label: int, hints: dict[int, np.ndarray[Any, Any]],
    trees: dict[int, Tree] | None = None,
) -> float:  # fmt: skip
    return proven_margin(
        steps, region.images[place].double().flatten().cpu().numpy(), label, norm=region.norm, radius=region.radius,
        slopes={number: slope.astype(np.float64) for number, slope in hints.items()}, trees=trees,
    )  # fmt: skip


def _check(
    steps: list[Step], region: Region, labels: Tensor, rows: list[int], least: Tensor | None, slopes: Slopes, method: str,
    found: Certificates, trees: dict[int, Tree] | None = None,
) -> None:  # fmt: skip
    """Have the checker prove what was claimed, on as many threads as torch has; a claim alone is worth nothing."""
    claimed = [place for place in range(len(rows)) if least is None or bool(least[place] > 0)]
    for place in set(range(len(rows))) - set(claimed):
        assert least is not None
        found.margins[rows[place]] = max(float(found.margins[rows[place]]), float(least[place]))
    kept = [_as_kept(slopes, place) for place in claimed]

    def prove(place: int, hints: dict[int, np.ndarray[Any, Any]]) -> float:
        return _proven(steps, region, place, int(labels[place]), hints, trees)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # numpy and scipy let each other's threads run
        proven = list(pool.map(prove, claimed, kept))
    for place, margin, hints in zip(claimed, proven, kept, strict=True):
        row = rows[place]
        found.margins[row] = margin
        if margin > 0:
            found.certified[row] = True
            found.methods[row] = method
            found.slopes[row] = hints
            if trees:
                found.trees[row] = trees
