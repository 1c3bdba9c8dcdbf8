"""The cascade: attacks in order on the points that are left, each call judged by the referee and saved.

(stage, call) is the unit of saving and resuming. Which points a call holds follows from the stages before it alone, so
that a run that was killed continues as if it had not been.
"""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from robustdup.attacks.isolation import isolated
from robustdup.attacks.passes import Count, Passes
from robustdup.errors import RunError
from robustdup.evaluation.bench import Bench, fresh_copy, out_of_memory
from robustdup.evaluation.referee import Judged, Verdict, join, judge
from robustdup.records import Progress, write_atomic
from robustdup.registry import AttackSpec
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

SURVIVED, BROKEN, UNDECIDED, NOT_ATTACKED = 0, 1, 2, 3


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its attack found and its options checked. `call_options` may hold callables (losses) for options."""

    spec: AttackSpec
    options: dict[str, Any]
    call_options: dict[str, Any]
    take: float = 1.0


@dataclass(frozen=True)
class Points:
    """The points under attack, on CPU: `images` (N, C, H, W) float32, `labels` (N,), `index` (N,), clean verdict."""

    images: Tensor
    labels: Tensor
    index: Tensor
    clean: Judged


@dataclass
class Call:
    """One call of an attack: which points, and what came of it. `error` where it failed: its points are undecided."""

    rows: Tensor
    verdict: Verdict | None
    seconds: float
    attack_passes: Count
    referee_passes: Count
    error: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass
class StageResult:
    """All calls of a stage; `outcome` (N,) is SURVIVED, BROKEN, UNDECIDED or NOT_ATTACKED for each point of the run."""

    stage: PlannedStage
    calls: list[Call]
    outcome: Tensor


@dataclass
class CascadeResult:
    """Stages in order, and the worst case of each point: `worst` images, their margin and share of correct draws."""

    threat: ThreatModel
    stages: list[StageResult]
    broken: Tensor
    undecided: Tensor
    worst: Tensor
    margin: Tensor
    correct_share: Tensor


def run_cascade(
    stages: list[PlannedStage],
    points: Points,
    threat: ThreatModel,
    bench: Bench,
    *,
    individual: bool = False,
    folder: Path | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> CascadeResult:
    """Run the stages on the points that the clean model gets right; survivors only, unless `individual`.

    With a `folder` each call is saved there and found again when the same run is continued.
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
    )
    for number, stage in enumerate(stages):
        place = None if folder is None else folder / f"{number:02d}-{_slug(stage.spec.name)}"
        left = candidates if individual else candidates & ~result.broken
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

        result.stages.append(_run_stage(stage, number, rows, points, bench, result, place, report))
    result.undecided &= ~result.broken
    return result


def _run_stage(
    stage: PlannedStage,
    number: int,
    rows: Tensor,
    points: Points,
    bench: Bench,
    result: CascadeResult,
    folder: Path | None,
    report: Callable[[Call, int], None],
) -> StageResult:
    """Run one stage call by call on `rows`, or take saved calls; the worst case so far is kept in `result`."""
    outcome = torch.full((len(points.labels),), NOT_ATTACKED, dtype=torch.uint8)
    size = max(len(rows), 1) if stage.spec.batching == "whole" else bench.batch_size
    calls: list[Call] = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        place = folder / f"{start:07d}.safetensors" if folder is not None else None
        call = _load_call(place, part) if place is not None else None
        if call is None:
            call = _run_call(stage, number, part, points, result.threat, bench)
            if place is not None:
                _save_call(place, call)
        _update(result, outcome, call)
        if call.verdict is not None:  # the worst images are kept already; all of every stage would fill the memory
            call.verdict = replace(call.verdict, images=call.verdict.images[:0])
        calls.append(call)
        report(call, start + len(part))
    return StageResult(stage, calls, outcome)


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


def _run_call(
    stage: PlannedStage, number: int, rows: Tensor, points: Points, threat: ThreatModel, bench: Bench
) -> Call:
    """Run an attack on some points and judge what it returns; a failure makes its points undecided."""
    started = time.perf_counter()
    pool = stage.spec.batching == "pool"
    copied = fresh_copy(bench.attacked)
    attacked = Passes(copied, bench.micro_batch if pool else None)
    before = bench.judged.count.copy()
    notes: list[str] = []
    error, verdict = "", None
    try:
        verdict = _attack_rows(stage, number, rows, points, threat, bench, attacked, notes)
    except (Exception, SystemExit) as failure:  # an attack may fail in any way; the run goes on and says so
        where = traceback.extract_tb(failure.__traceback__)[-1]
        error = f"{type(failure).__name__}: {failure} ({Path(where.filename).name}:{where.lineno})"
    if copied is not bench.attacked and not _same_weights(copied, bench.attacked):
        notes.append(f"{stage.spec.name} changed the weights of its copy of the model; the copy was thrown away.")
    return Call(
        rows=rows,
        verdict=verdict,
        seconds=time.perf_counter() - started,
        attack_passes=attacked.count.copy(),
        referee_passes=bench.judged.count - before,
        error=error,
        notes=notes,
    )


def _attack_rows(
    stage: PlannedStage, number: int, rows: Tensor, points: Points, threat: ThreatModel, bench: Bench,
    attacked: Passes, notes: list[str],
) -> Verdict:  # fmt: skip
    """Attack and judge; where memory runs out, the rows are halved and tried again."""
    images, labels = points.images[rows].to(bench.device), points.labels[rows].to(bench.device)
    rng = SampleRng(bench.seed, points.index[rows].to(bench.device)).fold(stage.spec.name).fold(number)
    try:
        with isolated(attacked.model, seed=rng.call_seed()):
            adv = _called(stage, attacked, images, labels, threat, rng)
        return judge(
            bench.judged,
            images,
            adv,
            labels,
            threat,
            bounded=stage.spec.kind == "bounded",
            draws=bench.draws,
            seed=rng.fold("referee").call_seed(),
        )
    except (RuntimeError, MemoryError) as failure:
        if not out_of_memory(failure) or len(rows) == 1:
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(rows) // 2
    attacked.micro_batch = attacked.micro_batch and max(1, min(attacked.micro_batch, half))
    bench.judged.micro_batch = bench.judged.micro_batch and max(1, min(bench.judged.micro_batch, half))
    notes.append(f"Out of memory with {len(rows)} points in a call of {stage.spec.name}; went on with {half}.")
    return join(
        [
            _attack_rows(stage, number, part, points, threat, bench, attacked, notes)
            for part in (rows[:half], rows[half:])
        ]
    )


def _called(
    stage: PlannedStage, model: Passes, images: Tensor, labels: Tensor, threat: ThreatModel, rng: SampleRng
) -> Tensor:
    """Call the attack on copies, and check that what comes back is a batch of images at all."""
    assert stage.spec.function is not None  # a planned stage is available
    adv = stage.spec.function(model, images.clone(), labels.clone(), threat, rng=rng, **stage.call_options)
    if not isinstance(adv, Tensor):
        raise RunError(f"{stage.spec.name} returned a {type(adv).__name__}, not a tensor of images.")
    if adv.shape != images.shape:
        raise RunError(f"{stage.spec.name} returned shape {tuple(adv.shape)} for images of {tuple(images.shape)}.")
    if not adv.dtype.is_floating_point:
        raise RunError(f"{stage.spec.name} returned {adv.dtype}, not floating-point images.")
    return adv.detach().to(images)


def _same_weights(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(
        value.shape == theirs[name].shape and torch.equal(torch.nan_to_num(value), torch.nan_to_num(theirs[name]))
        for name, value in mine.items()
        if isinstance(value, Tensor)
    )


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)


def _save_call(path: Path, call: Call) -> None:
    tensors = {"rows": call.rows, **(call.verdict.tensors() if call.verdict else {})}
    head = {
        "seconds": call.seconds,
        "attack_passes": vars(call.attack_passes),
        "referee_passes": vars(call.referee_passes),
        "error": call.error,
        "notes": call.notes,
    }
    ready = {name: (t.to(torch.uint8) if t.dtype == torch.bool else t).contiguous() for name, t in tensors.items()}
    write_atomic(path, save(ready, metadata={"call": json.dumps(head)}))


def _load_call(path: Path, rows: Tensor) -> Call | None:
    """Read a saved call; None where there is none, where it is damaged, was of other points, or had failed."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            head: Mapping[str, Any] = json.loads(file.metadata()["call"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if head["error"] or not torch.equal(tensors.pop("rows"), rows):
            return None
        for name in ("broken", "unchanged", "raw_broken"):
            tensors[name] = tensors[name].bool()
        verdict = Verdict(**tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None
    return Call(
        rows=rows,
        verdict=verdict,
        seconds=head["seconds"],
        attack_passes=Count(**head["attack_passes"]),
        referee_passes=Count(**head["referee_passes"]),
        notes=head["notes"],
    )
