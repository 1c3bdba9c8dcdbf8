"""The cascade: attacks in order on the samples that are left, each call judged by the referee and saved.

(stage, call) is the unit of saving and resuming. Which samples a stage holds follows from the stages before it alone, so
that a run that was killed, or whose calls were made by several workers, continues as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from robustdup.evaluation.calls import CLOSE, Call, Caller, PlannedStage, Work, call_here, load_call, save_call
from robustdup.evaluation.context import Context
from robustdup.evaluation.expected import judged_afresh, not_above
from robustdup.evaluation.guard import Refused
from robustdup.evaluation.held import ONLY_TOLD
from robustdup.evaluation.masking import LOOKED_AT, MaskingSigns, look_first, masking_signs
from robustdup.evaluation.referee import Answers
from robustdup.evaluation.routes import Followed, Left, find_route
from robustdup.evaluation.under_way import Tick, Watch
from robustdup.records import Outcome, Progress
from robustdup.threat import ThreatModel

CALL_SECONDS = 60.0  # what a call of a `pool` attack should take, since a kill loses it
LONGEST_CALL = 300.0  # seconds that the first call of a stage may take if every sample survives
LARGEST_CALL = {
    "cpu": 256,
    "cuda": 4096,
}  # samples: a GPU must be kept busy, a CPU has less to gain than memory to lose
CALL_MEMORY = 2**28  # pixels of all samples in a call; an attack keeps some ten tensors of that size


@dataclass(frozen=True)
class CleanSamples:
    """The samples under attack, on CPU: `images` (N, C, H, W) float32, `labels` (N,), `index` (N,), clean answers.

    `afresh` (N,) is the share of correct answers by fresh draws, or in the stated batch, of a model that does not repeat
    itself; None for any other. `certified` (N,) bool are those that no attack can break, by proof; None where none was
    looked for.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    clean: Answers
    afresh: Tensor | None = None
    certified: Tensor | None = None


@dataclass
class StageResult:
    """All calls of a stage; `outcome` (N,) uint8 holds an Outcome for each sample of the run.

    `expected_after` is the accuracy left after it, of a model that does not repeat itself.
    """

    stage: PlannedStage
    calls: list[Call] = field(metadata={ONLY_TOLD: True})
    outcome: Tensor
    expected_after: float | None = None


@dataclass
class CascadeResult:
    """Stages in order, and the worst case of each sample: `adv_images`, their margin and share of correct draws.

    `nearest` (N,) is the distance of the nearest adversarial image seen, inside the ball or out, infinite where there
    was none. `masking` says what was looked at before stages that run only on signs of gradient masking, None where there
    were none. `expected` (N,) is the share of correct answers, judged afresh, of a model that does not repeat itself.
    `ball` is the name of the ball where the threat model is a union over norms.
    """

    threat: ThreatModel
    stages: list[StageResult]
    broken: Tensor
    undecided: Tensor
    adv_images: Tensor
    margin: Tensor
    correct_share: Tensor
    nearest: Tensor
    masking: MaskingSigns | None = None
    expected: Tensor | None = None
    ball: str = ""

    @property
    def name(self) -> str:
        """How rows and tables call this cascade: by its ball in a union, by its eps otherwise."""
        return self.ball or self.threat.eps_text

    def left(self, candidates: Tensor) -> Tensor:
        """Return which of the candidates (N,) bool still have something to lose: right in any draw at all."""
        if self.expected is None:
            return candidates & ~self.broken
        return candidates & ((self.correct_share > 0) | (self.expected > 0))

    def judge_afresh(self, samples: CleanSamples, context: Context) -> None:
        """Judge the kept images of a model that does not repeat itself; where the clean image does worse, it is kept."""
        if samples.afresh is None:
            return
        shares = judged_afresh(context, self.adv_images, samples.labels)
        self.expected, restored = not_above(samples.afresh, shares)
        self.adv_images[restored] = samples.images[restored]
        self.margin[restored] = samples.clean.margin[restored]
        self.correct_share[restored] = samples.clean.correct_share[restored]
        self.broken = self.expected <= 0.5

    def take_in(self, outcome: Tensor, call: Call) -> None:
        """Note the outcomes of a call in `outcome` (N,), and keep what is worse than the worst so far."""
        verdict, rows = call.verdict, call.positions
        if verdict is None:
            outcome[rows] = Outcome.UNDECIDED
            self.undecided[rows] = True
            return
        outcome[rows] = torch.where(verdict.is_adv, Outcome.BROKEN, Outcome.ROBUST).to(torch.uint8)
        worse = (verdict.correct_share < self.correct_share[rows]) | (
            (verdict.correct_share == self.correct_share[rows]) & (verdict.margin < self.margin[rows])
        )
        self.adv_images[rows[worse]] = verdict.adv_images[worse]
        self.margin[rows[worse]] = verdict.margin[worse]
        self.correct_share[rows[worse]] = verdict.correct_share[worse]
        self.broken[rows] |= verdict.is_adv
        # What breaks within the ball does so at eps, whatever rounding has added to its distance.
        distance = torch.where(verdict.is_adv, verdict.distance.clamp(max=self.threat.radius), torch.inf)
        raw_distance = torch.where(verdict.raw_is_adv, verdict.raw_distance, torch.inf)
        self.nearest[rows] = torch.minimum(self.nearest[rows], torch.minimum(distance, raw_distance))


def run_cascade(
    stages: list[PlannedStage],
    samples: CleanSamples,
    threat: ThreatModel,
    context: Context,
    *,
    individual: bool = False,
    min_distance: bool = False,
    folder: Path | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    caller: Caller | None = None,
    start: CascadeResult | None = None,
) -> CascadeResult:
    """Run the stages on the samples that the clean model gets right; survivors only, unless `individual`.

    A model that answers at random gets a sample right in some of its draws. Each sample that is right in any draw is
    attacked, and attacked on until it is right in none.

    Args:
        stages: attacks with their options, in order.
        samples: images with labels, and what the model says of them.
        threat: the threat model.
        context: what the evaluation runs on.
        individual: whether every stage runs on all of these samples.
        min_distance: whether attacks that look for the nearest adversarial image do.
        folder: where each call is saved, and found again when the same run is continued.
        progress: is told of each stage, of each call, and now and then inside calls.
        caller: makes the calls; here if not given.
        start: what it begins with, see `begin` and `go_on`; nothing broken if not given.
    """
    candidates = samples.clean.correct_share > 0
    if samples.certified is not None:  # a pass would be spent in vain
        candidates &= ~samples.certified
    result = begin(samples, threat) if start is None else start
    context.held += [stages, samples, result]
    make = caller if caller is not None else call_here(stages, context)
    watch = Watch(progress)
    for number, stage in enumerate(stages):
        if stage.when != "always" and not _masks_gradients(result, samples, context):
            continue
        if stage.when == "blind" and _gets_through(result, samples, context):
            continue
        all_candidates = individual or (min_distance and stage.spec.kind == "minimum-norm")
        left = candidates if all_candidates else result.left(candidates)
        rows = _nearest(left.nonzero()[:, 0], result.margin, stage.take)

        def report(
            call: Call | None, done: int, stage: PlannedStage = stage, number: int = number, total: int = len(rows)
        ) -> None:
            event = Progress(
                eps_text=result.name,
                stage=number,
                n_stages=len(stages),
                attack=stage.spec.name,
                done=done,
                total=total,
                survivors=int((candidates & ~result.broken).sum()),
                n=len(candidates),
                forward_passes=call.attack_passes.forward if call is not None else 0,
                seconds=call.seconds if call is not None else 0.0,
                message="; ".join(filter(None, [call.error, *call.notes])) if call is not None else "",
            )
            if call is None:
                watch.begin(event)
            else:
                watch.end_call(int(call.positions[0]), event)

        report(None, 0)

        stage_folder = None if folder is None else folder / f"{number:02d}-{_slug(stage.spec.name)}"
        size = CallSize(stage, context, samples.images[0].numel(), len(rows))
        result.stages.append(
            _run_stage(stage, number, rows, samples, size, result, stage_folder, report, make, watch.tick)
        )
        result.judge_afresh(samples, context)
        if result.expected is not None:
            open_rows = result.undecided & ~result.broken
            result.stages[-1].expected_after = float(torch.where(open_rows, 0.0, result.expected).mean())
    result.undecided &= ~result.broken
    return result


def begin(samples: CleanSamples, threat: ThreatModel, ball: str = "") -> CascadeResult:
    """Return a cascade in which nothing has run: the worst image of each sample is its clean one."""
    nobody = torch.zeros_like(samples.clean.is_adv)
    return CascadeResult(
        threat=threat,
        stages=[],
        broken=nobody,
        undecided=nobody.clone(),
        adv_images=samples.images.clone(),
        margin=samples.clean.margin.clone(),
        correct_share=samples.clean.correct_share.clone(),
        nearest=torch.full_like(samples.clean.margin, torch.inf),
        expected=None if samples.afresh is None else samples.afresh.clone(),
        ball=ball,
    )


def go_on(before: CascadeResult, threat: ThreatModel, ball: str) -> CascadeResult:
    """Return a cascade in another ball that starts where the one before it ended."""
    names = ("broken", "undecided", "adv_images", "margin", "correct_share", "expected")
    kept = {name: value.clone() for name in names if (value := getattr(before, name)) is not None}
    return CascadeResult(threat, stages=[], nearest=torch.full_like(before.nearest, torch.inf), ball=ball, **kept)


def followed(result: CascadeResult) -> list[Followed]:
    """Return what ran, for the question which of it gets through a mask."""
    return [
        Followed(stage.stage.spec.name, stage.stage.spec.source, stage.stage.options, stage.outcome)
        for stage in result.stages
    ]


def _masks_gradients(result: CascadeResult, samples: CleanSamples, context: Context) -> bool:
    """Look for signs of gradient masking once, on what the stages so far have left."""
    if result.masking is None:
        stages = [(stage.stage.spec.knowledge, stage.outcome) for stage in result.stages]
        left = ~samples.clean.is_adv & ~result.broken
        rows = (~samples.clean.is_adv).nonzero()[:LOOKED_AT, 0]
        seen = None
        if len(rows):
            seen = look_first(
                context, samples.images[rows], samples.labels[rows], samples.index[rows], result.threat.norm
            ).probe
        result.masking = masking_signs(
            context, samples.images, samples.labels, result.adv_images, left, result.threat, stages, seen
        )
    return bool(result.masking.reasons)


def _gets_through(result: CascadeResult, samples: CleanSamples, context: Context) -> bool:
    """Say whether an attack so far was seen to get through the mask, or left nothing to look at."""
    assert result.masking is not None
    rows = (~samples.clean.is_adv & ~result.broken).nonzero()[:, 0]
    if len(rows) == 0:
        return True
    if not result.masking.route and result.masking.looked_after != len(result.stages):
        left = Left(samples.images[rows], result.adv_images[rows], samples.labels[rows], samples.index[rows])
        name, passes = find_route(context, left, result.threat, followed(result), own=not result.masking.misled)
        result.masking = replace(
            result.masking, route=name, looked_after=len(result.stages), passes=result.masking.passes + passes
        )
    return bool(result.masking.route)


def _run_stage(
    stage: PlannedStage,
    number: int,
    rows: Tensor,
    samples: CleanSamples,
    size: CallSize,
    result: CascadeResult,
    folder: Path | None,
    report: Callable[[Call, int], None],
    caller: Caller,
    tick: Tick,
) -> StageResult:
    """Run one stage call by call on `rows`, or take saved calls; the worst case so far is kept in `result`."""
    outcome = torch.full((len(samples.labels),), Outcome.NOT_ATTACKED, dtype=torch.uint8)
    size.context.held.append(outcome)
    saved = _saved_calls(folder, rows, None if stage.spec.batching == "pool" else size.now)
    calls: dict[int, Call] = {}

    def keep(start: int, call: Call) -> None:
        _refuse_unchanged(call, samples, size.context)
        result.take_in(outcome, call)
        if call.verdict is not None:
            # The worst images are kept already; those of every stage, or views that hold them, would fill the memory.
            call.verdict = replace(call.verdict, adv_images=call.verdict.adv_images[:0].clone())
        calls[start] = call
        report(call, sum(len(kept.positions) for kept in calls.values()))

    for start, call in saved.items():
        keep(start, call)
    starts: list[int] = []

    def works() -> Iterator[Work]:
        for start, part in _missing(rows, saved, size):
            starts.append(start)
            images, labels, index = (tensor[part] for tensor in (samples.images, samples.labels, samples.index))
            yield Work(number, result.threat, part, images, labels, index)

    for order, call in enumerate(caller(works(), tick)):
        if folder is not None:
            save_call(folder / f"{starts[order]:07d}.safetensors", call)
        size.learn(call)
        keep(starts[order], call)
    return StageResult(stage, [calls[start] for start in sorted(calls)], outcome)


def _refuse_unchanged(call: Call, samples: CleanSamples, context: Context) -> None:
    """Let no image that is the clean one count as broken: the clean one is right, or it would not have been attacked.

    Raises Refused where a model that answers without chance was clearly right: then another one has judged.
    """
    verdict, rows = call.verdict, call.positions
    if verdict is None or not bool(verdict.is_adv.any()):
        return
    wrong = verdict.is_adv & (verdict.adv_images == samples.images[rows]).flatten(1).all(dim=1)
    if not bool(wrong.any()):
        return
    clean = samples.clean
    clear = clean.margin[rows[wrong]] > CLOSE * context.usual_margin
    if context.draws == 1 and bool(clear.any()):
        raise Refused(
            f"{int(clear.sum())} unchanged images, which the model gets right, came back as broken: what judged them was "
            "not the model any more, and the results cannot be trusted."
        )
    verdict.is_adv[wrong] = False
    verdict.margin[wrong], verdict.correct_share[wrong] = clean.margin[rows[wrong]], clean.correct_share[rows[wrong]]
    verdict.raw_is_adv[wrong & verdict.unchanged] = False


@dataclass
class CallSize:
    """How many samples the next call takes. Results of `pool` attacks do not depend on it, so it follows the clock."""

    stage: PlannedStage
    context: Context
    pixels: int
    n: int
    now: int = field(init=False)

    def __post_init__(self) -> None:
        self.now = self.context.batch_size
        if self.stage.spec.batching == "whole":
            self.now = 2**62
        elif self._free:
            passes = self.stage.passes
            longest = 0.0
            if passes is not None and self.context.seconds is not None:
                forward, both = self.context.seconds
                longest = (passes[0] - passes[1]) * forward + passes[1] * both
            self.now = self._bounded(int(LONGEST_CALL / max(longest, 1e-9)), self.now)

    @property
    def _free(self) -> bool:
        return self.stage.spec.batching == "pool" and not self.context.batch_size_given

    def learn(self, call: Call) -> None:
        """Take more samples in the next call where this one was quick, fewer where it was slow."""
        if self._free and not call.error:
            per_sample = call.seconds / max(len(call.positions), 1)
            self.now = self._bounded(int(CALL_SECONDS / max(per_sample, 1e-9)), 4 * self.now)

    def _bounded(self, size: int, most: int) -> int:
        share = math.ceil(self.n / self.context.workers)
        largest = LARGEST_CALL.get(self.context.device.type, LARGEST_CALL["cuda"])
        most = min(most, largest, CALL_MEMORY // max(self.pixels, 1), share)
        return max(min(size, most), self.context.micro_batch)


def _saved_calls(folder: Path | None, rows: Tensor, size: int | None) -> dict[int, Call]:
    """Return the saved calls of a stage by their start in `rows`; of the given size, where calls depend on it."""
    calls: dict[int, Call] = {}
    end = 0
    for path in sorted(folder.glob("*.safetensors")) if folder is not None and folder.is_dir() else []:
        start = int(path.stem) if path.stem.isdigit() else -1
        call = load_call(path) if start >= end else None
        count = len(call.positions) if call is not None else 0
        if call is None or not count or not torch.equal(call.positions, rows[start : start + count]):
            continue
        if size is not None and (start % size or count != min(size, len(rows) - start)):
            continue
        calls[start], end = call, start + count
    return calls


def _missing(rows: Tensor, saved: dict[int, Call], size: CallSize) -> Iterator[tuple[int, Tensor]]:
    """Walk what saved calls leave of `rows`, in parts of the size that is right at that time."""
    start = 0
    for end in sorted([*saved, len(rows)]):
        while start < end:
            part = rows[start : min(start + size.now, end)].clone()  # a slice would carry all rows to a worker
            yield start, part
            start += len(part)
        if end in saved:
            start = end + len(saved[end].positions)


def _nearest(rows: Tensor, margin: Tensor, take: float) -> Tensor:
    """Keep the share `take` of rows with the smallest margin so far, on either side, in dataset order."""
    if take >= 1.0:
        return rows
    count = math.ceil(take * len(rows))
    return rows[margin[rows].abs().argsort(stable=True)[:count].sort().values]


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)
