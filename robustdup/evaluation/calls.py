"""One call of an attack on some points: attacked on a copy of the model, judged by the referee, saved.

A call is a pure function of its work, the stages and the model, so that it may be made here, by another process, or
again after a kill.
"""

from __future__ import annotations

import itertools
import json
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from robustdup.attacks.isolation import isolated
from robustdup.attacks.losses import fooled
from robustdup.attacks.passes import Count, Passes
from robustdup.errors import AttackWarning, RunError
from robustdup.evaluation.bench import Bench, fresh_copy, out_of_memory
from robustdup.evaluation.referee import Verdict, join, judge
from robustdup.plugins import AttackSpec
from robustdup.records import write_atomic
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

CLOSE = 0.01  # of the usual clean margin: nearer than this, folding may change a verdict


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its attack found and its options checked. `call_options` may hold callables (losses) for options."""

    spec: AttackSpec
    options: dict[str, Any]
    call_options: dict[str, Any]
    take: float = 1.0
    when: str = "always"


@dataclass(frozen=True)
class Work:
    """What one call is to do: the points `rows` (n,) of the run, by the stage of that number, within `threat`."""

    number: int
    threat: ThreatModel
    rows: Tensor
    images: Tensor
    labels: Tensor
    index: Tensor


@dataclass
class Call:
    """One call of an attack: which points, and what came of it. `error` where it failed: its points are undecided.

    `fooled_after` says how many points the attack dropped after how many passes a point (forward and backward).
    """

    rows: Tensor
    verdict: Verdict | None
    seconds: float
    attack_passes: Count
    referee_passes: Count
    error: str = ""
    notes: list[str] = field(default_factory=list)
    fooled_after: list[tuple[int, int]] = field(default_factory=list)


Caller = Callable[[Iterable[Work]], Iterator[Call]]


def call_here(stages: list[PlannedStage], bench: Bench) -> Caller:
    """Return a caller that makes every call in this process, one after the other."""
    return lambda works: (make_call(work, stages, bench) for work in works)


def make_call(work: Work, stages: list[PlannedStage], bench: Bench) -> Call:
    """Run an attack on some points and judge what it returns; a failure makes its points undecided."""
    stage, started = stages[work.number], time.perf_counter()
    attacked = _model_for(stage, bench)
    before = bench.judged.count.copy()
    notes: list[str] = []
    again: list[Count] = []
    error, verdict = "", None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", AttackWarning)
        try:
            verdict = _attack_rows(stage, work, bench, attacked, notes, again)
        except (Exception, SystemExit) as failure:  # an attack may fail in any way; the run goes on and says so
            where = traceback.extract_tb(failure.__traceback__)[-1]
            error = f"{type(failure).__name__}: {failure} ({Path(where.filename).name}:{where.lineno})"
    notes += dict.fromkeys(str(warning.message) for warning in said if issubclass(warning.category, AttackWarning))
    if _ruined(attacked.model, stage, bench):
        notes.append(f"{stage.spec.name} changed the weights of its copy of the model; the copy was thrown away.")
    return Call(
        rows=work.rows,
        verdict=verdict,
        seconds=time.perf_counter() - started,
        attack_passes=sum(again, attacked.count),
        referee_passes=bench.judged.count - before,
        error=error,
        notes=notes,
        fooled_after=dropped(attacked, verdict) if stage.spec.batching == "pool" and verdict is not None else [],
    )


def _model_for(stage: PlannedStage, bench: Bench) -> Passes:
    """Return what the attack gets: the prepared model in micro-batches for `pool` attacks, a fresh copy otherwise.

    robustdup's own attacks share one prepared model, which may be compiled; any other gets a copy that it may ruin.
    """
    if stage.spec.batching != "pool":
        return Passes(fresh_copy(bench.attacked))
    if bench.prepared is None:
        return Passes(fresh_copy(bench.attacked), bench.micro_batch, bench.smaller)
    if stage.spec.source == "native":
        return Passes(bench.prepared.model, bench.micro_batch, bench.smaller)
    source = bench.attacked if bench.prepared.compiled != "off" else bench.prepared.model
    return Passes(fresh_copy(source), bench.micro_batch, bench.smaller)


def _ruined(model: nn.Module, stage: PlannedStage, bench: Bench) -> bool:
    prepared = bench.prepared
    if model is bench.attacked or stage.spec.source == "native":
        return False
    plain = stage.spec.batching != "pool" or prepared is None or prepared.compiled != "off"
    return not _same_weights(model, bench.attacked if plain or prepared is None else prepared.model)


def _attack_rows(
    stage: PlannedStage, work: Work, bench: Bench, attacked: Passes, notes: list[str], again: list[Count],
    part: Tensor | None = None,
) -> Verdict:  # fmt: skip
    """Attack and judge; where memory runs out, the rows are halved and tried again."""
    at = torch.arange(len(work.rows)) if part is None else part
    images, labels, index = (t[at].to(bench.device) for t in (work.images, work.labels, work.index))
    rng = SampleRng(bench.seed, index).fold(stage.spec.name).fold(work.number)
    try:
        verdict = _attack_and_judge(stage, attacked, images, labels, work.threat, rng, bench)
        return _again_where_unearned(verdict, stage, attacked, images, labels, work.threat, rng, bench, notes, again)
    except (RuntimeError, MemoryError) as failure:
        if not out_of_memory(failure) or len(at) == 1:
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(at) // 2
    attacked.micro_batch = attacked.micro_batch and max(1, min(attacked.micro_batch, half))
    bench.judged.micro_batch = bench.judged.micro_batch and max(1, min(bench.judged.micro_batch, half))
    notes.append(f"Out of memory with {len(at)} points in a call of {stage.spec.name}; went on with {half}.")
    return join([_attack_rows(stage, work, bench, attacked, notes, again, rows) for rows in (at[:half], at[half:])])


def _attack_and_judge(
    stage: PlannedStage, attacked: Passes, images: Tensor, labels: Tensor, threat: ThreatModel, rng: SampleRng,
    bench: Bench,
) -> Verdict:  # fmt: skip
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


def _again_where_unearned(
    verdict: Verdict, stage: PlannedStage, attacked: Passes, images: Tensor, labels: Tensor, threat: ThreatModel,
    rng: SampleRng, bench: Bench, notes: list[str], again: list[Count],
) -> Verdict:  # fmt: skip
    """Attack the original where the prepared model was fooled and the judged one is not: rounding must not decide.

    Such points left their attack early without being broken, and would lose the rest of its steps. What it costs is put
    into `again`.
    """
    near = ~verdict.broken & (verdict.margin < CLOSE * bench.usual_margin)
    folded = bench.prepared is not None and stage.spec.batching == "pool"
    if not folded or bench.draws > 1 or bench.stand_in or not bool(near.any()):
        return verdict
    rows = near.nonzero()[:, 0]
    at = rows.to(bench.device)
    second_look = Passes(attacked.model, bench.micro_batch, bench.smaller)
    with isolated(second_look.model), torch.no_grad():
        unearned = fooled(second_look(verdict.images[rows].to(bench.device)), labels[at]).cpu()
    again.append(second_look.count)
    if not bool(unearned.any()):
        return verdict
    rows, at = rows[unearned], at[unearned.to(at.device)]
    original = Passes(fresh_copy(bench.attacked), bench.micro_batch, bench.smaller)
    second = _attack_and_judge(stage, original, images[at], labels[at], threat, rng[at], bench)
    again.append(original.count)
    notes.append(
        f"{stage.spec.name}: {len(rows)} points were attacked again on the original model, "
        "since only its prepared copy was fooled."
    )
    for name, values in verdict.tensors().items():
        values[rows] = second.tensors()[name]
    return verdict


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


def dropped(attacked: Passes, verdict: Verdict) -> list[tuple[int, int]]:
    """Return (passes a point, points dropped) pairs from the looks of an attack that drops the rows it has fooled.

    What was broken and not seen to be dropped was found at the last look. Empty where the number of rows did not only
    fall: then the looks say nothing of that kind.
    """
    looks, spent = attacked.looks, attacked.count.forward + attacked.count.backward
    rows = [count for count, _ in looks]
    if not rows or any(after > before for before, after in itertools.pairwise(rows)):
        return []
    found, a_point = [], 0.0
    for (count, before), (left, after) in zip(looks, [*looks[1:], (rows[-1], spent)], strict=True):
        a_point += (after - before) / max(count, 1)
        if count > left:
            found.append((round(a_point), count - left))
    missing = int(verdict.broken.sum()) - sum(count for _, count in found)
    return [*found, (round(a_point), missing)] if missing > 0 else found


def save_call(path: Path, call: Call) -> None:
    """Write a call so that it is either whole or not there."""
    tensors = {"rows": call.rows, **(call.verdict.tensors() if call.verdict else {})}
    head = {
        "seconds": call.seconds,
        "attack_passes": vars(call.attack_passes),
        "referee_passes": vars(call.referee_passes),
        "error": call.error,
        "notes": call.notes,
        "fooled_after": call.fooled_after,
    }
    ready = {name: (t.to(torch.uint8) if t.dtype == torch.bool else t).contiguous() for name, t in tensors.items()}
    write_atomic(path, save(ready, metadata={"call": json.dumps(head)}))


def load_call(path: Path) -> Call | None:
    """Read a saved call; None where it is damaged or had failed."""
    try:
        with safe_open(path, framework="pt") as file:
            head: Mapping[str, Any] = json.loads(file.metadata()["call"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if head["error"]:
            return None
        rows = tensors.pop("rows")
        for name in ("broken", "unchanged", "raw_broken"):
            tensors[name] = tensors[name].bool()
        return Call(
            rows=rows,
            verdict=Verdict(**tensors),
            seconds=head["seconds"],
            attack_passes=Count(**head["attack_passes"]),
            referee_passes=Count(**head["referee_passes"]),
            notes=head["notes"],
            fooled_after=[(passes, count) for passes, count in head["fooled_after"]],
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None
