"""From a finished run to its record: the worst case over eps, the last judgement, and all that one needs to run it again."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from robustdup.attacks.passes import Count
from robustdup.config import EvalConfig, rerun_command
from robustdup.data.dataset import ImageDataset
from robustdup.evaluation.bench import Bench, CleanVerdict
from robustdup.evaluation.cascade import CascadeResult, Points
from robustdup.evaluation.metrics import accuracy
from robustdup.evaluation.referee import judge_images
from robustdup.evaluation.summary import attack_results, class_results, distance_summary, min_distance
from robustdup.models.load import count_parameters, fingerprint
from robustdup.records import (
    CurvePoint,
    DataInfo,
    Diagnostic,
    Environment,
    Escalation,
    EvaluationRecord,
    ModelInfo,
    PassTotals,
    Threat,
    now,
)

ROUNDED_AT_ONCE = 256  # images
TOOLKITS = {
    "torchattacks": ("torchattacks",),
    "art": ("adversarial-robustness-toolbox",),
    "foolbox": ("foolbox",),
    "robustbench": ("pyautoattack", "robustbench"),
    "pyautoattack": ("pyautoattack",),
}


@dataclass(frozen=True)
class Run:
    """A run whose attacks are done: what it was given and what came of it. `results` holds a cascade an eps, rising."""

    config: EvalConfig
    data: ImageDataset
    model: nn.Module
    attack_model: nn.Module | None
    weights: str
    bench: Bench
    points: Points
    clean: CleanVerdict
    results: list[CascadeResult]
    diagnostics: list[Diagnostic]
    probe_passes: Count
    events: list[str]


def make_record(run: Run, *, seconds: float, folder: Path | None, command: str | None) -> EvaluationRecord:
    """Take the worst case over all eps into the last cascade, judge its final examples, and return the record."""
    config, points, last = run.config, run.points, run.results[-1]
    population = _population(run.data)
    several = len(run.results) > 1
    curve = _curve(run.results, points, population) if several else {}  # before the union: each eps alone
    by_eps = {r.threat.eps_text: attack_results(r, points, individual=config.individual) for r in run.results}
    _unite(run.results)
    correct, correct_8bit = _last_judgement(run)
    undecided, n = int(last.undecided.sum()), len(points.labels)
    calls = [call for result in run.results for stage in result.stages for call in stage.calls]
    return EvaluationRecord(
        run_id=folder.name if folder is not None else "in-memory",
        created=now(),
        status="failed" if calls and all(call.verdict is None for call in calls) else "complete",
        command=command or rerun_command("eval", config),
        n=n,
        threat=Threat(norm=last.threat.norm, eps=last.threat.radius, eps_text=last.threat.eps_text),
        tolerance=last.threat.tolerance,
        clean_accuracy=accuracy(points.clean.correct_share.numpy(), population=population),
        robust_accuracy=accuracy(correct.numpy(), population=population, undecided=undecided),
        robust_accuracy_8bit=float(correct_8bit.mean()),
        n_undecided=undecided,
        attacks=by_eps[last.threat.eps_text],
        individual=config.individual,
        escalation=_escalation(last),
        min_distance=distance_summary(min_distance(points, run.results), last.threat.radius, last.threat.eps_text)
        if config.min_distance
        else None,
        interval_about=_interval_text(n, population),
        curve=curve,
        curve_attacks=by_eps if several else {},
        per_class=class_results(
            points.labels, run.data.class_names, run.clean.num_classes, points.clean.correct_share, correct
        ),
        diagnostics=run.diagnostics,
        events=[*run.events, *dict.fromkeys(note for call in calls for note in call.notes)],
        passes=_pass_totals(run),
        seconds=max(seconds, sum(call.seconds for call in calls)),
        seed=config.seed,
        config=config.model_dump(mode="json"),
        data=_data_info(run.data),
        model=_model_info(run),
        environment=environment(run.bench, config),
        versions=versions({*(attack.source for attack in by_eps[last.threat.eps_text]), config.model.split(":")[0]}),
    )


def _unite(results: list[CascadeResult]) -> None:
    """Let what breaks a point within a smaller ball break it within the largest."""
    last = results[-1]
    for smaller in results[:-1]:
        rows = smaller.broken & ~last.broken
        for mine, theirs in (
            (last.worst, smaller.worst),
            (last.margin, smaller.margin),
            (last.correct_share, smaller.correct_share),
        ):
            mine[rows] = theirs[rows]
        last.broken |= smaller.broken
    last.undecided &= ~last.broken


def _last_judgement(run: Run) -> tuple[Tensor, Tensor]:
    """Return the share of correct answers on the final examples (N,), as they are and rounded to 8 bits.

    A randomised model is asked afresh, so that the draws that chose an example do not judge it. Undecided points are 0.
    """
    bench, last, seed = run.bench, run.results[-1], run.config.seed
    labels = run.points.labels.to(bench.device)
    correct = (~run.points.clean.broken & ~last.broken).double()
    if run.clean.randomized:
        worst = last.worst.to(bench.device)
        correct = judge_images(bench.judged, worst, labels, draws=bench.draws, seed=seed + 1).correct_share
    after, rows = correct.clone(), last.broken.nonzero()[:, 0]
    for part in torch.split(rows, max(len(rows), 1) if run.clean.randomized else ROUNDED_AT_ONCE):
        rounded = (last.worst[part].to(bench.device) * 255).round() / 255
        again = judge_images(bench.judged, rounded, labels[part.to(bench.device)], draws=bench.draws, seed=seed + 2)
        after[part] = again.correct_share
    return torch.where(last.undecided, 0.0, correct), torch.where(last.undecided, 0.0, after)


def _curve(results: list[CascadeResult], points: Points, population: int | None) -> dict[str, CurvePoint]:
    right = ~points.clean.broken
    broken = torch.zeros_like(right)
    curve = {}
    for result in results:
        alone = float((right & ~result.broken & ~result.undecided).double().mean())
        broken = broken | result.broken
        undecided = result.undecided & ~broken
        standing = (right & ~broken & ~undecided).double().numpy()
        at = accuracy(standing, population=population, undecided=int(undecided.sum()))
        curve[result.threat.eps_text] = CurvePoint(**at.model_dump(), eps=result.threat.radius, alone=alone)
    return curve


def _population(data: ImageDataset) -> int | None:
    """The size of the split that the points predict; None where they are all of it, or were given."""
    return data.n_total if data.selection in ("first", "sample") and len(data.labels) < data.n_total else None


def _interval_text(n: int, population: int | None) -> str:
    about = f"the whole split of {population} images" if population is not None else "images like these"
    return (
        f"95% Wilson intervals about {about}, from {n}. They cover the choice of images, "
        "not the strength of the attack or its seed."
    )


def _pass_totals(run: Run) -> PassTotals:
    calls = [call for result in run.results for stage in result.stages for call in stage.calls]
    spent = sum((call.attack_passes for call in calls), Count())
    looked = sum((result.suspicion.passes for result in run.results if result.suspicion is not None), Count())
    refereed = sum((call.referee_passes for call in calls), Count())
    return PassTotals(
        clean=len(run.points.labels) * run.bench.draws,
        attacks_forward=spent.forward,
        attacks_backward=spent.backward,
        referee=refereed.forward,
        diagnostics_forward=run.probe_passes.forward + looked.forward,
        diagnostics_backward=run.probe_passes.backward + looked.backward,
        padding=spent.padding + refereed.padding + run.probe_passes.padding + looked.padding,
    )


def _data_info(data: ImageDataset) -> DataInfo:
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


def _model_info(run: Run) -> ModelInfo:
    return ModelInfo(
        spec=run.config.model,
        architecture=type(run.model).__name__,
        fingerprint=run.weights,
        num_classes=run.clean.num_classes,
        parameters=count_parameters(run.model),
        mode=run.config.mode,
        randomized=run.clean.randomized,
        judge_draws=run.bench.draws,
        attack_model=run.config.attack_model,
        attack_model_fingerprint=fingerprint(run.attack_model) if run.attack_model is not None else None,
    )


def _escalation(result: CascadeResult) -> Escalation | None:
    found = result.suspicion
    if found is None:
        return None
    return Escalation(
        escalated=bool(found.reasons),
        reasons=list(found.reasons),
        seen=found.seen,
        forward_passes=found.passes.forward,
        backward_passes=found.passes.backward,
    )


def environment(bench: Bench, config: EvalConfig) -> Environment:
    """Return where this runs, how it packs rows, and what the native attacks' copy of the model is."""
    prepared = bench.prepared
    cuda = bench.device.type == "cuda"
    return Environment(
        device=str(bench.device),
        device_name=torch.cuda.get_device_name(bench.device) if cuda else (platform.processor() or platform.machine()),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        platform=platform.platform(),
        micro_batch=bench.micro_batch,
        batch_size=bench.batch_size,
        attack_precision=prepared.precision if prepared is not None else "fp32",
        tf32=prepared is not None and prepared.precision == "tf32",
        workers=bench.workers,
        runner=config.runner,
        folded=prepared.folded if prepared is not None else 0,
        channels_last=prepared is not None and prepared.channels_last,
        compiled=prepared.compiled if prepared is not None else "off",
    )


def versions(sources: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions of robustdup, of what it computes with, and of the toolkits behind the given sources."""
    names = ["robustdup", "torch", "torchvision", "numpy", "datasets", "scikit-learn"]
    names += [package for source in sorted(set(sources)) for package in TOOLKITS.get(source, ())]
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
