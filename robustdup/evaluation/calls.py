"""One call of an attack on some samples: it attacks a copy of the model, the referee judges, and the call is saved.

A call is a pure function of its work, the stages and the model, so that it may be made here, by another process, or
again after a kill.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import math
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from robustdup.attacks.isolation import isolated
from robustdup.attacks.losses import misclassified
from robustdup.attacks.passes import Count, Passes
from robustdup.device import out_of_memory
from robustdup.errors import LONGEST_REASON, AttackWarning, RunError, UserError, error_text, plain
from robustdup.evaluation.context import Context, fresh_copy
from robustdup.evaluation.guard import Refused, guard_of
from robustdup.evaluation.referee import Verdict, join, judge
from robustdup.evaluation.saved import load_tensors, save_tensors
from robustdup.evaluation.under_way import Tick, UnderWay
from robustdup.plugins import AttackSpec
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

MOST_WARNINGS = 20  # of one call that are kept
CLOSE = 0.01  # of the usual clean margin: nearer than this, folding may change a verdict


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its attack found and its options checked. `call_options` may hold callables (losses) for options.

    `norm` names the ball that it is for, where the threat model is a union over norms. `draws` is how many answers of a model
    that answers at random the attack gets the mean of, where it averages none itself.
    """

    spec: AttackSpec
    options: dict[str, Any]
    call_options: dict[str, Any]
    take: float = 1.0
    when: str = "always"
    norm: str | None = None
    draws: int = 1

    @property
    def passes(self) -> tuple[float, float] | None:
        """The (forward, backward) passes of a surviving sample, where known."""
        cost = self.spec.passes(self.options)
        if cost is None or self.draws == 1:
            return cost
        forward, backward = cost
        return (forward + backward) * self.draws, backward * self.draws  # gradients are those of fresh draws


def stages_in(stages: Sequence[PlannedStage], norm: str) -> list[PlannedStage]:
    """Return the stages for the ball of one norm, in order: all, unless the threat model is a union."""
    return [stage for stage in stages if stage.norm in (None, norm)]


@dataclass(frozen=True)
class Work:
    """What one call is to do: the samples at `positions` (n,) of the run, by the stage of that number, within `threat`."""

    number: int
    threat: ThreatModel
    positions: Tensor
    images: Tensor
    labels: Tensor
    index: Tensor


@dataclass
class Call:
    """One call of an attack: which samples, and what came of it. `error` where it failed: its samples are undecided.

    `broken_after` says how many samples the attack dropped after how many passes per sample (forward and backward), and
    `lost_gradient` whether the model answered without a gradient where the attack asked for one.
    """

    positions: Tensor
    verdict: Verdict | None
    seconds: float
    attack_passes: Count
    referee_passes: Count
    error: str = ""
    notes: list[str] = field(default_factory=list)
    broken_after: list[tuple[int, int]] = field(default_factory=list)
    lost_gradient: bool = False


Caller = Callable[[Iterable[Work], Tick], Iterator[Call]]
TICK_SECONDS = 0.5


def call_here(stages: list[PlannedStage], context: Context) -> Caller:
    """Return a caller that makes every call in this process, one after the other."""
    return lambda works, tick: (make_call(work, stages, context, tick) for work in works)


def make_call(work: Work, stages: list[PlannedStage], context: Context, tick: Tick | None = None) -> Call:
    """Run an attack on some samples and judge what it returns; a failure makes its samples undecided.

    Raises Refused where the attack changed the judge for good.
    """
    stage, started = stages_in(stages, work.threat.norm)[work.number], time.perf_counter()
    attacked = _model_for(stage, context)
    if tick is not None:
        attacked.watch = _watching(attacked, stage, work, tick)
    before = context.original.count.copy()
    attempt = _Attempt(stage, context, attacked)
    error, verdict = "", None
    with warnings.catch_warnings(record=True) as caught, _interrupts() as pressed:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", AttackWarning)
        try:
            verdict = _attack_in_memory(attempt, work, torch.arange(len(work.positions)))
        except _TickFailed as failure:
            raise failure.__cause__ or failure from None
        except Refused:
            raise
        except BaseException as failure:  # an attack may fail in any way; the run goes on and says so
            if issubclass(type(failure), KeyboardInterrupt) and (pressed or _by_signal(failure)):
                raise
            error = _failure_text(failure)
    notes = [plain(note, LONGEST_REASON) for note in attempt.notes]
    warned = [warning.message for warning in caught if issubclass(warning.category, AttackWarning)]
    notes += dict.fromkeys(plain(warning, LONGEST_REASON) for warning in warned[:MOST_WARNINGS])
    if _ruined(attacked.model, stage, context):
        notes.append(f"{stage.spec.name} changed the weights of its copy of the model; the copy was thrown away.")
    pool = stage.spec.batching == "pool"
    return Call(
        positions=work.positions,
        verdict=verdict,
        seconds=time.perf_counter() - started,
        attack_passes=sum(attempt.further_passes, _count(attacked)),
        referee_passes=context.original.count - before,
        error=error,
        notes=notes,
        broken_after=dropped(attacked, verdict) if pool and verdict is not None else [],
        lost_gradient=attacked.lost_gradient is True,
    )


def lost_call(work: Work, how: str) -> Call:
    """Return the call whose workers all died: its samples are undecided, the run goes on, and --resume tries it again."""
    error = f"Gave up: each worker that tried this call died; the last one {how}."
    return Call(work.positions, None, 0.0, Count(), Count(), error=error)


def _failure_text(failure: BaseException) -> str:
    """Return what a failure of an attack says, and where it came from, in text that can be saved and shown."""
    if issubclass(type(failure), UserError):  # it names the option; the line that raised it says nothing
        return error_text(failure)
    frames = traceback.extract_tb(failure.__traceback__)
    place = f" ({plain(Path(frames[-1].filename).name)}:{frames[-1].lineno})" if frames else ""
    return f"{error_text(failure)}{place}"


@contextlib.contextmanager
def _interrupts() -> Iterator[list[bool]]:
    """Tell Ctrl-C from an attack that raises KeyboardInterrupt itself: yield a list that is empty until it was pressed."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield [True]  # somebody else handles it: every interrupt is believed
        return
    pressed: list[bool] = []

    def press(number: int, frame: object) -> None:
        pressed.append(True)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _by_signal(failure: BaseException) -> bool:
    """Say whether an exception came out of a handler of signals, such as a scheduler's that asks for the end."""
    handlers = {getattr(signal.getsignal(number), "__code__", None) for number in signal.valid_signals()} - {None}
    return any(frame.f_code in handlers for frame, _ in traceback.walk_tb(failure.__traceback__))


def _count(attacked: Passes) -> Count:
    """Return what was counted; zeros where an attack wrote something else there."""
    count = attacked.count
    return count if type(count) is Count and all(type(value) is int for value in vars(count).values()) else Count()


class _TickFailed(BaseException):
    """What was told of the progress raised: no failure of the attack, so nothing of an attack may catch it."""


def _watching(attacked: Passes, stage: PlannedStage, work: Work, tick: Tick) -> Callable[[], None]:
    """Return what tells `tick`, at once and then at most every half second, how many of the expected passes are made."""
    cost = stage.passes
    expected = 0.0 if cost is None else sum(cost) * len(work.positions)
    last = -math.inf

    def watch() -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last >= TICK_SECONDS:
            last = now
            passes = attacked.count.forward + attacked.count.backward
            try:
                share = min(passes / expected, 1.0) if expected else 0.0
                tick(UnderWay(int(work.positions[0]), len(work.positions), share, passes))
            except BaseException as failure:
                raise _TickFailed from failure

    return watch


def _model_for(stage: PlannedStage, context: Context) -> Passes:
    """Return what the attack gets: the attack copy in micro-batches for `pool` attacks, a fresh copy otherwise.

    robustdup's own attacks share one attack copy, which may be compiled; any other gets a copy that it may ruin.
    """
    if stage.spec.batching != "pool":
        return Passes(fresh_copy(context.attacked), draws=stage.draws)
    if context.attack_copy is None:
        model = fresh_copy(context.attacked)
    elif stage.spec.source == "native":
        model = context.attack_copy.model
    else:
        compiled = context.attack_copy.compiled != "off"
        model = fresh_copy(context.attacked if compiled else context.attack_copy.model)
    return Passes(model, context.micro_batch, context.sizes, draws=stage.draws, fill=context.fill)


def _ruined(model: nn.Module, stage: PlannedStage, context: Context) -> bool:
    copy = context.attack_copy
    if model is context.attacked or stage.spec.source == "native":
        return False
    plain = stage.spec.batching != "pool" or copy is None or copy.compiled != "off"
    return not _same_weights(model, context.attacked if plain or copy is None else copy.model)


def _same_weights(model: nn.Module, other: nn.Module) -> bool:
    weights, others = model.state_dict(), other.state_dict()
    return weights.keys() == others.keys() and all(
        value.shape == others[name].shape and torch.equal(torch.nan_to_num(value), torch.nan_to_num(others[name]))
        for name, value in weights.items()
        if isinstance(value, Tensor)
    )


@dataclass
class _Attempt:
    """What one call runs on, and what it leaves besides a verdict: notes, and passes through models made on the way."""

    stage: PlannedStage
    context: Context
    attacked: Passes
    notes: list[str] = field(default_factory=list)
    further_passes: list[Count] = field(default_factory=list)


@dataclass(frozen=True)
class _Batch:
    """Some samples of a call on the device of the run: images (n, C, H, W), labels (n,) and their randomness."""

    images: Tensor
    labels: Tensor
    rng: SampleRng
    threat: ThreatModel

    def __getitem__(self, rows: Tensor) -> _Batch:
        return _Batch(self.images[rows], self.labels[rows], self.rng[rows], self.threat)


def _attack_in_memory(attempt: _Attempt, work: Work, rows: Tensor) -> Verdict:
    """Attack and judge the rows (n,) of the work; where memory runs out, they are halved and tried again."""
    stage, context, attacked = attempt.stage, attempt.context, attempt.attacked
    images, labels, index = (tensor[rows].to(context.device) for tensor in (work.images, work.labels, work.index))
    rng = SampleRng(context.seed, index).fold(stage.spec.name).fold(work.number)
    try:
        batch = _Batch(images, labels, rng, work.threat)
        return _again_where_unearned(attempt, batch, _attack_and_judge(attempt, attacked, batch))
    except (RuntimeError, MemoryError) as failure:
        if not out_of_memory(failure) or len(rows) == 1:
            raise
    half = len(rows) // 2
    for model in (attacked, context.original):
        model.micro_batch = model.micro_batch and max(1, min(model.micro_batch, half))
        model.fill = min(model.fill, model.micro_batch or 0)
    if (
        context.device.type != "cpu"
    ):  # further calls would run out of memory again; on a CPU bits hang on the micro-batch
        context.micro_batch, context.sizes = max(1, min(context.micro_batch, half)), ()
        context.fill = min(context.fill, context.micro_batch)
    attempt.notes.append(f"Out of memory with {len(rows)} samples in a call of {stage.spec.name}; went on with {half}.")
    return join([_attack_in_memory(attempt, work, part) for part in (rows[:half], rows[half:])])


def _attack_and_judge(attempt: _Attempt, attacked: Passes, batch: _Batch) -> Verdict:
    """Let the attack run on `attacked`, watched by the guard of the judge, and judge what it returns."""
    stage, context, guard = attempt.stage, attempt.context, guard_of(attempt.context)
    bounded, seed = stage.spec.kind == "bounded", batch.rng.fold("referee").call_seed()
    given = _Batch(batch.images.clone(), batch.labels.clone(), batch.rng[:], batch.threat.copy())
    watch = guard.around(stage.spec.name, attempt.notes, batch)
    with isolated(attacked.model, seed=batch.rng.call_seed()), watch:
        returned = _attack(stage, attacked, given)
    adv_images = _checked(returned, stage.spec.name, batch.images)
    verdict = judge(
        context.original,
        batch.images,
        adv_images,
        batch.labels,
        batch.threat,
        bounded=bounded,
        draws=context.draws,
        seed=seed,
    )
    guard.check()
    return verdict


def _attack(stage: PlannedStage, model: Passes, batch: _Batch) -> Tensor:
    """Call the attack with what is its own: copies of images, labels, threat model, streams and options."""
    assert stage.spec.function is not None  # a planned stage is available
    options = {name: value if callable(value) else copy.deepcopy(value) for name, value in stage.call_options.items()}
    try:
        returned = stage.spec.function(model, batch.images, batch.labels, batch.threat, rng=batch.rng, **options)
    except Refused as failure:  # which is the guard's to say
        raise RunError(f"{stage.spec.name} raised what only the guard may raise.", code="attack-failed") from failure
    if not isinstance(returned, Tensor):
        kind = type(returned).__name__
        raise RunError(f"{stage.spec.name} returned a {kind}, not a tensor of images.", code="no-images")
    if type(returned) is Tensor:
        return returned
    with torch._C.DisableTorchFunctionSubclass():  # what a class says of its tensors is its own word
        content = Tensor.numpy(Tensor.as_subclass(returned, Tensor), force=True)
    return torch.from_numpy(content.copy())


def _checked(returned: Tensor, name: str, images: Tensor) -> Tensor:
    """Return a copy of what an attack returned like `images`. Raises RunError where it is no batch of images at all."""
    if type(returned) is not Tensor or returned.shape != images.shape:
        shape = tuple(returned.shape)
        raise RunError(f"{name} returned shape {shape} for images of {tuple(images.shape)}.", code="no-images")
    if not returned.dtype.is_floating_point:
        raise RunError(f"{name} returned {returned.dtype}, not floating-point images.", code="no-images")
    return returned.detach().to(images).clone(memory_format=torch.contiguous_format)


def _again_where_unearned(attempt: _Attempt, batch: _Batch, verdict: Verdict) -> Verdict:
    """Attack the original where the attack copy gave in and the original does not: rounding must not decide.

    Such samples left their attack early without being broken, and would lose the rest of its steps.
    """
    stage, context = attempt.stage, attempt.context
    close = ~verdict.is_adv & (verdict.margin < CLOSE * context.usual_margin)
    on_copy = context.attack_copy is not None and stage.spec.batching == "pool"
    if not on_copy or context.draws > 1 or context.stand_in or not bool(close.any()):
        return verdict
    rows = close.nonzero()[:, 0]
    copy = Passes(attempt.attacked.model, context.micro_batch, context.sizes)
    with isolated(copy.model), torch.no_grad():
        logits = copy(verdict.adv_images[rows].to(context.device))
    attempt.further_passes.append(copy.count)
    rows = rows[misclassified(logits, batch.labels[rows.to(context.device)]).cpu()]
    if len(rows) == 0:
        return verdict
    original = Passes(fresh_copy(context.attacked), context.micro_batch, context.sizes, fill=context.fill)
    second = _attack_and_judge(attempt, original, batch[rows.to(context.device)]).tensors()
    attempt.further_passes.append(original.count)
    attempt.notes.append(
        f"{stage.spec.name}: {len(rows)} samples were attacked again on the original model, "
        "since only its attack copy was fooled."
    )
    for name, values in verdict.tensors().items():
        values[rows] = second[name]
    return verdict


def _looks(attacked: Passes) -> list[tuple[int, int]]:
    """Return the looks that were noted; none where an attack wrote something else there."""
    looks = attacked.looks if type(attacked.looks) is list else []
    sound = all(type(look) is tuple and [type(part) for part in look] == [int, int] for look in looks)
    return looks if sound else []


def dropped(attacked: Passes, verdict: Verdict) -> list[tuple[int, int]]:
    """Return (passes per sample, samples dropped) pairs from the looks of an attack that drops the rows it has broken.

    What was broken and not seen to be dropped was broken at the last look. Empty where the number of rows did not only
    fall: then the looks say nothing of that kind.
    """
    total = _count(attacked)
    looks, spent = _looks(attacked), total.forward + total.backward
    rows = [count for count, _ in looks]
    if not rows or any(after > before for before, after in itertools.pairwise(rows)):
        return []
    drops, per_sample = [], 0.0
    for (count, before), (left, after) in zip(looks, [*looks[1:], (rows[-1], spent)], strict=True):
        per_sample += (after - before) / max(count, 1)
        if count > left:
            drops.append((round(per_sample), count - left))
    missing = int(verdict.is_adv.sum()) - sum(count for _, count in drops)
    return [*drops, (round(per_sample), missing)] if missing > 0 else drops


def save_call(path: Path, call: Call) -> None:
    """Write a call so that it is either whole or not there."""
    tensors = {"positions": call.positions, **(call.verdict.tensors() if call.verdict else {})}
    head = {
        "seconds": call.seconds,
        "attack_passes": vars(call.attack_passes),
        "referee_passes": vars(call.referee_passes),
        "error": call.error,
        "notes": call.notes,
        "broken_after": call.broken_after,
    }
    ready = {name: (t.to(torch.uint8) if t.dtype == torch.bool else t).contiguous() for name, t in tensors.items()}
    save_tensors(path, ready, {"call": json.dumps(head)})


def load_call(path: Path) -> Call | None:
    """Read a saved call; None where it is damaged or had failed."""
    try:
        tensors, metadata = load_tensors(path)
        head: Mapping[str, Any] = json.loads(metadata["call"])
        if head["error"]:
            return None
        positions = tensors.pop("positions")
        for name in ("is_adv", "unchanged", "raw_is_adv"):
            tensors[name] = tensors[name].bool()
        return Call(
            positions=positions,
            verdict=Verdict(**tensors),
            seconds=head["seconds"],
            attack_passes=Count(**head["attack_passes"]),
            referee_passes=Count(**head["referee_passes"]),
            notes=head["notes"],
            broken_after=[(passes, count) for passes, count in head["broken_after"]],
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None
