"""From a finished run to its record: the worst case over eps, the last judgement, and all that one needs to run it again."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.passes import Count
from robustdup.data.dataset import ImageDataset
from robustdup.evaluation.cascade import CascadeResult, CleanSamples
from robustdup.evaluation.certified import Certified
from robustdup.evaluation.clean import CleanAnswers
from robustdup.evaluation.context import Context, EngineOptions
from robustdup.evaluation.expected import judged_afresh, not_above
from robustdup.evaluation.metrics import accuracy
from robustdup.evaluation.referee import judge_images
from robustdup.evaluation.summary import attack_results, ball_results, class_results, distance_summary, min_distance
from robustdup.models.adapt import inner, order_of
from robustdup.models.load import count_parameters, fingerprint
from robustdup.records import (
    UNION,
    CurvePoint,
    DataInfo,
    Diagnostic,
    Environment,
    Escalation,
    EvaluationRecord,
    ModelInfo,
    Outcome,
    PassTotals,
    Threat,
    no_substance,
    now,
    versions,
)
from robustdup.union import is_union, union_name

ROUNDED_AT_ONCE = 256  # images


@dataclass(frozen=True)
class RunInfo:
    """What a record says of a run besides its results, and where its calls are saved.

    Args:
        run_id: name of the run.
        command: what runs it again.
        model: spec of the model.
        attack_model: spec of the attacked model, where it is another.
        config: the settings, by name.
        settings: a digest of those that change what is computed.
        plugins: plugin files that were loaded.
        runner: where the workers are.
        notes: what a reader should know that was seen before the run.
        signs: what speaks against the result already before the run.
        state: folder in which what is done is kept; None keeps nothing.
        seconds: seconds spent before the run, on loading for instance.
        certified: what was proven of the samples before the run.
    """

    run_id: str = "in-memory"
    command: str = ""
    model: str = "python"
    attack_model: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    settings: str = ""
    plugins: tuple[str, ...] = ()
    runner: str = "local"
    notes: tuple[str, ...] = ()
    signs: tuple[Diagnostic, ...] = ()
    state: Path | None = None
    seconds: float = 0.0
    certified: Certified | None = None


@dataclass(frozen=True)
class FinishedRun:
    """A run whose attacks are done: what it was given and what came of it. `results` holds a cascade an eps, rising."""

    options: EngineOptions
    about: RunInfo
    data: ImageDataset
    model: nn.Module
    attack_model: nn.Module | None
    weights: str
    context: Context
    samples: CleanSamples
    clean: CleanAnswers
    results: list[CascadeResult]
    diagnostics: list[Diagnostic]
    probe_passes: Count
    notes: list[str]
    doubts: list[str] | None = None  # why the robust accuracy is a bound only; None where it was not looked at
    certified: Certified | None = None  # what of `about.certified` holds by the referee


def make_record(run: FinishedRun, *, seconds: float) -> EvaluationRecord:
    """Take the worst case over all eps into the last cascade, judge its final examples, and return the record."""
    options, about, samples, last = run.options, run.about, run.samples, run.results[-1]
    clean_share = samples.clean.correct_share if samples.afresh is None else samples.afresh
    union, several = is_union([result.threat for result in run.results]), len(run.results) > 1
    curve = {}
    balls = ball_results(run.results, samples) if union else []
    if several and not union:  # before the union: each eps alone
        curve = _curve(run.results, samples, exact_distances=options.min_distance)
    by_eps = {
        r.name: attack_results(r, samples, individual=options.individual, before=run.results[:i] if union else ())
        for i, r in enumerate(run.results)
    }
    _unite(run.results, union=union)
    correct, correct_8bit = _last_judgement(run)
    n_undecided, n = int(last.undecided.sum()), len(samples.labels)
    calls = [call for result in run.results for stage in result.stages for call in stage.calls]
    attacks = [attack for stages in by_eps.values() for attack in stages] if union else by_eps[last.name]
    record = EvaluationRecord(
        run_id=about.run_id,
        created=now(),
        status="failed" if calls and all(call.verdict is None for call in calls) else "complete",
        command=about.command,
        n=n,
        threat=_threat(run.results),
        tolerance=max(result.threat.tolerance for result in run.results) if union else last.threat.tolerance,
        clean_accuracy=accuracy(clean_share.numpy()),
        robust_accuracy=accuracy(correct.numpy(), undecided=n_undecided),
        reliable=None if run.doubts is None else not run.doubts,
        unreliable_reasons=run.doubts or [],
        robust_accuracy_8bit=float(correct_8bit.mean()),
        n_undecided=n_undecided,
        n_not_attacked=_left_out(run),
        attacks=attacks,
        union=balls,
        individual=options.individual,
        escalation=_escalation(run.results if union else [last]),
        min_distance=distance_summary(min_distance(samples, run.results), last.threat, float(correct.mean()))
        if options.min_distance
        else None,
        certification=None if run.certified is None else run.certified.part(n),
        interval_about=interval_text(run.data.selection, len(run.data), run.data.n_total),
        curve=curve,
        curve_attacks=by_eps if several else {},
        per_class=class_results(samples.labels, run.data.class_names, run.clean.num_classes, clean_share, correct),
        diagnostics=[*about.signs, *run.diagnostics],
        events=[*about.notes, *run.notes, *dict.fromkeys(note for call in calls for note in call.notes)],
        passes=_pass_totals(run),
        seconds=max(about.seconds + seconds, sum(call.seconds for call in calls)),
        seed=options.seed,
        config=about.config,
        data=data_info(run.data),
        model=_model_info(run),
        environment=environment(run.context, about.runner),
        versions=versions({*(attack.source for attack in attacks), about.model.split(":")[0]}),
    )
    nothing = no_substance(record)
    return record.model_copy(
        update={"reliable": False, "unreliable_reasons": [nothing, *(run.doubts or [])]} if nothing else {}
    )


def _left_out(run: FinishedRun) -> int:
    """Count the samples that are right, not certified, and that no stage took: nothing was tried on them."""
    left = ~run.samples.clean.is_adv
    if run.samples.certified is not None:
        left &= ~run.samples.certified
    for result in run.results:
        for stage in result.stages:
            left &= stage.outcome == Outcome.NOT_ATTACKED
    return int(left.sum())


def _threat(results: list[CascadeResult]) -> Threat:
    """Return the threat model of the result: the largest eps, or the union of all balls."""
    threats = [result.threat for result in results]
    if is_union(threats):
        return Threat(norm=UNION, eps=threats[0].radius, eps_text=union_name(threats))
    return Threat(norm=threats[-1].norm, eps=threats[-1].radius, eps_text=threats[-1].eps_text)


def _unite(results: list[CascadeResult], *, union: bool) -> None:
    """Let what breaks a sample within a smaller ball, or another ball of a union, break it within the last.

    What is undecided in one ball of a union stays so, unless another breaks it.
    """
    last = results[-1]
    for smaller in results[:-1]:
        rows = smaller.broken & ~last.broken
        if smaller.expected is not None and last.expected is not None:
            rows = smaller.expected < last.expected
            last.expected[rows] = smaller.expected[rows]
        last.adv_images[rows] = smaller.adv_images[rows]
        last.margin[rows] = smaller.margin[rows]
        last.correct_share[rows] = smaller.correct_share[rows]
        last.broken |= smaller.broken
        if union:
            last.undecided |= smaller.undecided
    last.undecided &= ~last.broken


def _last_judgement(run: FinishedRun) -> tuple[Tensor, Tensor]:
    """Return the share of correct answers on the final examples (N,), as they are and rounded to 8 bits.

    A model that does not repeat itself was asked afresh after the last stage: the draws that chose an example do not judge
    it, see `expected`. Undecided samples are 0.
    """
    context, last, seed = run.context, run.results[-1], run.options.seed
    labels = run.samples.labels.to(context.device)
    correct = (~run.samples.clean.is_adv & ~last.broken).double()
    if last.expected is not None and run.samples.afresh is not None:
        open_rows, images = last.undecided, (last.adv_images * 255).round() / 255
        rounded, _ = not_above(run.samples.afresh, judged_afresh(context, images, run.samples.labels))
        return torch.where(open_rows, 0.0, last.expected), torch.where(open_rows, 0.0, rounded)
    rounded, rows = correct.clone(), last.broken.nonzero()[:, 0]
    for part in torch.split(rows, ROUNDED_AT_ONCE):
        images = (last.adv_images[part].to(context.device) * 255).round() / 255
        answers = judge_images(
            context.original, images, labels[part.to(context.device)], draws=context.draws, seed=seed + 2
        )
        rounded[part] = answers.correct_share
    return torch.where(last.undecided, 0.0, correct), torch.where(last.undecided, 0.0, rounded)


def _curve(results: list[CascadeResult], samples: CleanSamples, *, exact_distances: bool) -> dict[str, CurvePoint]:
    """Return the accuracy left at each eps; with `exact_distances` the nearest image seen at any eps counts at each."""
    is_correct = ~samples.clean.is_adv
    broken = torch.zeros_like(is_correct)
    nearest = min_distance(samples, results) if exact_distances else torch.full(is_correct.shape, torch.inf)
    curve, expected = {}, samples.afresh
    for result in results:
        alone = float((is_correct & ~result.broken & ~result.undecided).double().mean())
        broken = broken | result.broken | (nearest <= result.threat.radius + result.threat.tolerance)
        undecided = result.undecided & ~broken
        standing = (is_correct & ~broken & ~undecided).double().numpy()
        if expected is not None and result.expected is not None:
            alone = float(torch.where(result.undecided, 0.0, result.expected).mean())
            expected = torch.minimum(expected, result.expected)
            standing = torch.where(undecided, 0.0, expected).numpy()
        value = accuracy(standing, undecided=int(undecided.sum()))
        curve[result.threat.eps_text] = CurvePoint(**value.model_dump(), eps=result.threat.radius, alone=alone)
    return curve


def interval_text(selection: str, n: int, total: int) -> str:
    """Return what the intervals of a record speak of: n samples that were chosen from `total` as `selection` says."""
    taken = {
        "all": f"all {n} of the split",
        "first": f"the first {n} of {total}, as if they were drawn at random",
        "sample": f"{n} of {total}, drawn at random",
        "stratified": f"{n} of {total}, drawn at random with each class by its share",
        "given": f"the {n} given",
    }["all" if selection == "first" and n == total else selection]
    return (
        f"95% Wilson intervals about images of this kind, from {taken}. They cover the choice of images, "
        "not the strength of the attack or its seed."
    )


def _pass_totals(run: FinishedRun) -> PassTotals:
    calls = [call for result in run.results for stage in result.stages for call in stage.calls]
    spent = sum((call.attack_passes for call in calls), Count())
    looked = sum((result.masking.passes for result in run.results if result.masking is not None), Count())
    refereed = sum((call.referee_passes for call in calls), Count())
    return PassTotals(
        clean=len(run.samples.labels) * run.context.draws * (1 if run.samples.afresh is None else 2),
        attacks_forward=spent.forward,
        attacks_backward=spent.backward,
        referee=refereed.forward,
        diagnostics_forward=run.probe_passes.forward + looked.forward,
        diagnostics_backward=run.probe_passes.backward + looked.backward,
        padding=spent.padding + refereed.padding + run.probe_passes.padding + looked.padding,
    )


def data_info(data: ImageDataset) -> DataInfo:
    """Return what a record says of the images."""
    return DataInfo(
        spec=data.spec,
        split=data.split,
        config=data.config,
        revision=data.revision,
        n_total=data.n_total,
        selection=data.selection,
        image_shape=list(data.images.shape[1:]),
        class_names=list(data.class_names),
        fingerprint=data.fingerprint,
    )


def _model_info(run: FinishedRun) -> ModelInfo:
    return ModelInfo(
        spec=run.about.model,
        architecture=type(inner(run.model)).__name__,
        fingerprint=run.weights,
        num_classes=run.clean.num_classes,
        parameters=count_parameters(run.model),
        mode=run.options.mode,
        randomized=run.clean.randomized,
        judge_draws=run.context.draws,
        batch_dependent=run.clean.batch_dependent,
        judged_in_batches_of=run.context.original.micro_batch if run.clean.batch_dependent else None,
        attack_model=run.about.attack_model,
        attack_model_fingerprint=fingerprint(run.attack_model) if run.attack_model is not None else None,
        class_order=order_of(run.model),
    )


def _escalation(results: Sequence[CascadeResult]) -> Escalation | None:
    """Return why an ensemble went on, or did not; in a union from the first ball in which it did."""
    seen = [result.masking for result in results if result.masking is not None]
    if not seen:
        return None
    masking = next((signs for signs in seen if signs.reasons), seen[0])
    return Escalation(
        escalated=bool(masking.reasons),
        reasons=list(masking.reasons),
        signs=masking.signs,
        forward_passes=masking.passes.forward,
        backward_passes=masking.passes.backward,
    )


def environment(context: Context, runner: str) -> Environment:
    """Return where this runs, how it packs rows, and what the native attacks' copy of the model is."""
    copy = context.attack_copy
    cuda = context.device.type == "cuda"
    return Environment(
        device=str(context.device),
        device_name=torch.cuda.get_device_name(context.device)
        if cuda
        else (platform.processor() or platform.machine()),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        platform=platform.platform(),
        micro_batch=context.micro_batch,
        batch_size=context.batch_size,
        attack_precision=copy.precision if copy is not None else "fp32",
        tf32=copy is not None and copy.precision == "tf32",
        workers=context.workers,
        runner=runner,
        folded=copy.folded if copy is not None else 0,
        channels_last=copy is not None and copy.channels_last,
        compiled=copy.compiled if copy is not None else "off",
    )
