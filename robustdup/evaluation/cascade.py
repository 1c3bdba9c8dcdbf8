"""The cascade: attacks in order on the points that are left, each call judged by the referee and saved.

(stage, call) is the unit of saving and resuming. Which points a stage holds follows from the stages before it alone, so
that a run that was killed, or whose calls were made by several workers, continues as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from robustdup.evaluation.bench import Bench
from robustdup.evaluation.calls import Call, Caller, PlannedStage, Work, call_here, load_call, save_call
from robustdup.evaluation.masking import Suspicion, suspicion
from robustdup.evaluation.referee import Judged
from robustdup.records import Progress
from robustdup.threat import ThreatModel

SURVIVED, BROKEN, UNDECIDED, NOT_ATTACKED = 0, 1, 2, 3

CALL_SECONDS = 60.0  # what a call of a `pool` attack should take, since a kill loses it
LONGEST_CALL = 300.0  # seconds that the first call of a stage may take if every point survives
LARGEST_CALL = {"cpu": 256, "cuda": 4096}  # points: a GPU must be kept busy, a CPU has less to gain than memory to lose
CALL_MEMORY = 2**28  # pixels of all points in a call; an attack keeps some ten tensors of that size


@dataclass(frozen=True)
class Points:
    """The points under attack, on CPU: `images` (N, C, H, W) float32, `labels` (N,), `index` (N,), clean verdict."""

    images: Tensor
    labels: Tensor
    index: Tensor
    clean: Judged


@dataclass
class StageResult:
    """All calls of a stage; `outcome` (N,) is SURVIVED, BROKEN, UNDECIDED or NOT_ATTACKED for each point of the run."""

    stage: PlannedStage
    calls: list[Call]
    outcome: Tensor


@dataclass
class CascadeResult:
    """Stages in order, and the worst case of each point: `worst` images, their margin and share of correct draws.

    `nearest` (N,) is the distance of the nearest adversarial image seen, inside the ball or out, infinite where there
    was none. `suspicion` says what was looked at before stages for masked models, None where there were none.
    """

    threat: ThreatModel
    stages: list[StageResult]
    broken: Tensor
    undecided: Tensor
    worst: Tensor
    margin: Tensor
    correct_share: Tensor
    nearest: Tensor
    suspicion: Suspicion | None = None


def run_cascade(
    stages: list[PlannedStage],
    points: Points,
    threat: ThreatModel,
    bench: Bench,
    *,
    individual: bool = False,
    minimise: bool = False,
    folder: Path | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    caller: Caller | None = None,
) -> CascadeResult:
    """Run the stages on the points that the clean model gets right; survivors only, unless `individual`.

    With `minimise` attacks that look for the nearest adversarial image run on all of these points. With a `folder` each
    call is saved there and found again when the same run is continued. `caller` makes the calls, here if not given.
    """
    candidates = ~points.clean.broken
    result = CascadeResult(
        threat=threat,
        stages=[],
        broken=torch.zeros_like(candidates),
        undecided=torch.zeros_like(candidates),
        worst=points.images.clone(),
        margin=points.clean.margin.clone(),
        correct_share=points.clean.correct_share.clone(),
        nearest=torch.full_like(points.clean.margin, torch.inf),
    )
    for number, stage in enumerate(stages):
        if stage.when == "masked" and not _suspected(result, points, bench):
            continue
        place = None if folder is None else folder / f"{number:02d}-{_slug(stage.spec.name)}"
        everyone = individual or (minimise and stage.spec.kind == "minimum-norm")
        left = candidates if everyone else candidates & ~result.broken
        rows = _nearest(left.nonzero()[:, 0], result.margin, stage.take)

        def report(
            call: Call, done: int, stage: PlannedStage = stage, number: int = number, total: int = len(rows)
        ) -> None:
            progress(
                Progress(
                    eps_text=threat.eps_text,
                    stage=number,
                    n_stages=len(stages),
                    attack=stage.spec.name,
                    done=done,
                    total=total,
                    survivors=int((candidates & ~result.broken).sum()),
                    n=len(candidates),
                    forward_passes=call.attack_passes.forward,
                    seconds=call.seconds,
                    message="; ".join(filter(None, [call.error, *call.notes])),
                )
            )

        make = caller if caller is not None else call_here(stages, bench)
        result.stages.append(_run_stage(stage, number, rows, points, bench, result, place, report, make))
    result.undecided &= ~result.broken
    return result


def _suspected(result: CascadeResult, points: Points, bench: Bench) -> bool:
    """Look for signs of masked gradients once, on what the stages so far have left standing."""
    if result.suspicion is None:
        stages = [(found.stage.spec.knowledge, found.outcome) for found in result.stages]
        standing = ~points.clean.broken & ~result.broken
        result.suspicion = suspicion(bench, points.images, points.labels, result.worst, standing, result.threat, stages)
    return bool(result.suspicion.reasons)


def _run_stage(
    stage: PlannedStage,
    number: int,
    rows: Tensor,
    points: Points,
    bench: Bench,
    result: CascadeResult,
    folder: Path | None,
    report: Callable[[Call, int], None],
    caller: Caller,
) -> StageResult:
    """Run one stage call by call on `rows`, or take saved calls; the worst case so far is kept in `result`."""
    outcome = torch.full((len(points.labels),), NOT_ATTACKED, dtype=torch.uint8)
    size = CallSize(stage, bench, points.images[0].numel(), len(rows))
    saved = _saved_calls(folder, rows, None if stage.spec.batching == "pool" else size.now)
    done, calls = 0, {}

    def keep(start: int, call: Call) -> None:
        nonlocal done
        done += len(call.rows)
        _update(result, outcome, call)
        if call.verdict is not None:
            # The worst images are kept already; those of every stage, or views that hold them, would fill the memory.
            call.verdict = replace(call.verdict, images=call.verdict.images[:0].clone())
        calls[start] = call
        report(call, done)

    for start, call in saved.items():
        keep(start, call)
    starts: list[int] = []

    def works() -> Iterator[Work]:
        for start, part in _missing(rows, saved, size):
            starts.append(start)
            images, labels, index = (t[part] for t in (points.images, points.labels, points.index))
            yield Work(number, result.threat, part, images, labels, index)

    for order, call in enumerate(caller(works())):
        if folder is not None:
            save_call(folder / f"{starts[order]:07d}.safetensors", call)
        size.learn(call)
        keep(starts[order], call)
    return StageResult(stage, [calls[start] for start in sorted(calls)], outcome)


@dataclass
class CallSize:
    """How many points the next call takes. Results of `pool` attacks do not depend on it, so it follows the clock."""

    stage: PlannedStage
    bench: Bench
    pixels: int
    points: int
    now: int = field(init=False)

    def __post_init__(self) -> None:
        self.now = self.bench.batch_size
        if self.stage.spec.batching == "whole":
            self.now = 2**62
        elif self._free:
            passes = self.stage.spec.passes(self.stage.options)
            longest = 0.0
            if passes is not None and self.bench.seconds is not None:
                forward, both = self.bench.seconds
                longest = (passes[0] - passes[1]) * forward + passes[1] * both
            self.now = self._bounded(int(LONGEST_CALL / max(longest, 1e-9)), self.now)

    @property
    def _free(self) -> bool:
        return self.stage.spec.batching == "pool" and not self.bench.batch_size_given

    def learn(self, call: Call) -> None:
        """Take more points in the next call where this one was quick, fewer where it was slow."""
        if self._free and not call.error:
            per_point = call.seconds / max(len(call.rows), 1)
            self.now = self._bounded(int(CALL_SECONDS / max(per_point, 1e-9)), 4 * self.now)

    def _bounded(self, size: int, most: int) -> int:
        share = math.ceil(self.points / self.bench.workers)
        largest = LARGEST_CALL.get(self.bench.device.type, LARGEST_CALL["cuda"])
        most = min(most, largest, CALL_MEMORY // max(self.pixels, 1), share)
        return max(min(size, most), self.bench.micro_batch)


def _saved_calls(folder: Path | None, rows: Tensor, size: int | None) -> dict[int, Call]:
    """Return the saved calls of a stage by their start in `rows`; of the given size, where calls depend on it."""
    found: dict[int, Call] = {}
    end = 0
    for path in sorted(folder.glob("*.safetensors")) if folder is not None and folder.is_dir() else []:
        start = int(path.stem) if path.stem.isdigit() else -1
        call = load_call(path) if start >= end else None
        if call is None or not torch.equal(call.rows, rows[start : start + len(call.rows)]) or len(call.rows) == 0:
            continue
        if size is not None and (start % size or len(call.rows) != min(size, len(rows) - start)):
            continue
        found[start], end = call, start + len(call.rows)
    return found


def _missing(rows: Tensor, saved: dict[int, Call], size: CallSize) -> Iterator[tuple[int, Tensor]]:
    """Walk what saved calls leave of `rows`, in parts of the size that is right at that time."""
    ends = sorted([*saved, len(rows)])
    start = 0
    for end in ends:
        while start < end:
            part = rows[start : min(start + size.now, end)].clone()  # a slice would carry all rows to a worker
            yield start, part
            start += len(part)
        if end in saved:
            start = end + len(saved[end].rows)


def _nearest(rows: Tensor, margin: Tensor, take: float) -> Tensor:
    """Keep the share `take` of rows with the smallest margin so far, in dataset order."""
    if take >= 1.0:
        return rows
    count = math.ceil(take * len(rows))
    return rows[margin[rows].argsort(stable=True)[:count].sort().values]


def _update(result: CascadeResult, outcome: Tensor, call: Call) -> None:
    if call.verdict is None:
        outcome[call.rows] = UNDECIDED
        result.undecided[call.rows] = True
        return
    verdict, rows = call.verdict, call.rows
    outcome[rows] = verdict.broken.to(torch.uint8)
    worse = (verdict.correct_share < result.correct_share[rows]) | (
        (verdict.correct_share == result.correct_share[rows]) & (verdict.margin < result.margin[rows])
    )
    at = rows[worse]
    result.worst[at] = verdict.images[worse]
    result.margin[at] = verdict.margin[worse]
    result.correct_share[at] = verdict.correct_share[worse]
    result.broken[rows] |= verdict.broken
    distance = torch.where(verdict.broken, verdict.distance, torch.inf)
    raw = torch.where(verdict.raw_broken, verdict.raw_distance, torch.inf)
    result.nearest[rows] = torch.minimum(result.nearest[rows], torch.minimum(distance, raw))


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)
