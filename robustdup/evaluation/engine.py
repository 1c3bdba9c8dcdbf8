"""An evaluation from its parts: a model, images, stages and options go in; a record and adversarial images come out.

Nothing here knows a configuration: `robustdup.jobs` turns one into these parts, and a library user may call this alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from robustdup.attacks.isolation import isolated
from robustdup.attacks.passes import Count
from robustdup.data.dataset import ImageDataset, on_8bit_grid
from robustdup.device import cpu_threads
from robustdup.errors import UserError
from robustdup.evaluation.calls import Caller, PlannedStage, stages_in
from robustdup.evaluation.cascade import CascadeResult, CleanSamples, begin, go_on, run_cascade
from robustdup.evaluation.certified import CERTIFICATES, Certified, save_certified
from robustdup.evaluation.clean import CleanAnswers, check_unchanged, clean_answers, not_finite_note
from robustdup.evaluation.context import Context, EngineOptions, check_modules, make_context, remarks
from robustdup.evaluation.diagnostics import diagnose
from robustdup.evaluation.draws import enough_draws
from robustdup.evaluation.expected import judged_afresh
from robustdup.evaluation.micro_batch import choose_packing
from robustdup.evaluation.record import FinishedRun, RunInfo, make_record
from robustdup.evaluation.reliability import settle, weigh, weigh_union
from robustdup.evaluation.stages import for_model
from robustdup.evaluation.summary import min_distance, outcomes, sample_rows
from robustdup.evaluation.vacuous import check_eps
from robustdup.models.load import fingerprint
from robustdup.plugins.exits import no_exits
from robustdup.records import Diagnostic, EvaluationRecord, Progress, save_record, save_samples, write_atomic
from robustdup.records.samples import CERTIFIED_MARGIN
from robustdup.threat import ThreatModel
from robustdup.union import ball_name, is_union

ADVERSARIAL_FILE = "images/adversarial.safetensors"
CLEAN_FILE = "images/clean.safetensors"

# What opens the workers of a run: it gets what they need to know, and gives a caller, or None to make all calls here.
Workers = Callable[[Context, CleanSamples, CleanAnswers, str], contextlib.AbstractContextManager[Caller | None]]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation leaves.

    Args:
        record: the record.
        samples: the columns of samples.parquet.
        adv_images: the worst image of each sample (N, C, H, W), the clean one where no attack ran.
        outcomes: what became of each sample at the largest eps, an Outcome each (N,).
        folder: the run folder, where there is one.
        certified: what was proven before the attacks, where asked for.
    """

    record: EvaluationRecord
    samples: dict[str, list[Any]]
    adv_images: Tensor
    outcomes: Tensor
    folder: Path | None = None
    certified: Certified | None = None


def evaluate_model(
    model: nn.Module,
    data: ImageDataset,
    stages: list[PlannedStage],
    threats: Sequence[ThreatModel],
    options: EngineOptions | None = None,
    *,
    attack_model: nn.Module | None = None,
    device: torch.device | None = None,
    about: RunInfo | None = None,
    workers: Workers = lambda *_: contextlib.nullcontext(),
    progress: Callable[[Progress], None] = lambda _: None,
) -> Evaluation:
    """Evaluate a model and return record, samples and adversarial images.

    Args:
        model: images (N, C, H, W) in [0, 1] -> logits (N, K).
        data: the images, with labels (N,).
        stages: attacks with their options, in order.
        threats: threat models of one norm, eps rising, where the last is the one of the result; or of several norms, where
            the result speaks of their union.
        options: how to compute; the usual ones if not given.
        attack_model: what is attacked in place of the model (BPDA, a surrogate).
        device: where to compute; the CPU if not given.
        about: what the record says of the run, and where its calls are saved.
        workers: opens the processes that share the samples.
        progress: is told of each call.

    Raises:
        UserError: for a mistake.
        RunError: where no result can come out.
    """
    started = time.perf_counter()
    options, about, device = options or EngineOptions(), about or RunInfo(), device or torch.device("cpu")
    check_modules(model, attack_model)
    union = is_union(threats)
    if union and options.min_distance:
        raise UserError(
            "--min-distance looks for the smallest eps in one norm: leave it out, or name one norm.", code="bad-option"
        )
    large_eps = [note for threat in (threats if union else threats[-1:]) for note in check_eps(data.images, threat)]
    was_training = any(module.training for module in model.modules())
    with contextlib.ExitStack() as stack:
        stack.enter_context(isolated(model))
        stack.enter_context(isolated(attack_model))
        stack.enter_context(no_exits())  # all the time: another thread that loads a model changes no name meanwhile
        context = make_context(model, attack_model, device, options)
        original = context.original.model
        stack.enter_context(
            cpu_threads(options.threads, original, data.images[0], rows=context.micro_batch, device=device)
        )
        weights = fingerprint(original)
        clean = clean_answers(
            context,
            data,
            weights,
            draws=options.draws,
            plugins=about.plugins,
            settings=about.settings,
            state=about.state,
        )
        context.draws = options.draws if clean.randomized else 1
        context.batch_dependent = clean.batch_dependent
        context.batch_size_given |= clean.batch_dependent
        context.gradient_draws = enough_draws(clean.answers.margin, clean.answers.correct_share)
        stages, averaged = for_model(stages, randomized=clean.randomized, draws=context.gradient_draws)
        context.held += [options, about, data, clean, threats, stages]
        notes = large_eps + remarks(model, context) + not_finite_note(clean) + averaged
        notes += choose_packing(context, options, data.images, clean, stages, about.state)
        afresh = judged_afresh(context, data.images, data.labels) if clean.wavering else None
        certified = _kept(about.certified, clean)
        proven = None if certified is None else certified.mask(len(data.labels))
        samples = CleanSamples(data.images, data.labels, data.index, clean.answers, afresh, proven)
        caller = stack.enter_context(workers(context, samples, clean, weights))
        results: list[CascadeResult] = []
        for threat in threats:
            ball = ball_name(threat) if union else ""
            place = f"eps-{ball or threat.eps_text}".replace("/", "_").replace(" ", "-")
            folder = None if about.state is None else about.state / place
            apart = not union or options.each_norm or options.individual or not results
            results.append(
                run_cascade(
                    stages_in(stages, threat.norm),
                    samples,
                    threat,
                    context,
                    individual=options.individual,
                    min_distance=options.min_distance,
                    folder=folder,
                    progress=progress,
                    caller=caller,
                    start=begin(samples, threat, ball) if apart else go_on(results[-1], threat, ball),
                )
            )
        signs: list[Diagnostic] = []
        probe_passes, doubts = Count(), None
        if options.diagnostics:
            signs, probe_passes = diagnose(
                context, samples, clean, results, mode=options.mode, was_training=was_training
            )
            weighed = (
                weigh_union(context, samples, results, signs) if union else weigh(context, samples, results, signs)
            )
            signs, probe_passes = weighed.signs, probe_passes + weighed.passes
            doubts = [sign.message for sign in signs if sign.code == "remembers"] + weighed.doubts
            if any(sign.code == "zero_gradients" for sign in signs):
                notes += settle(results, weighed.route)
        check_unchanged(context, data.images, clean, weights)
        run = FinishedRun(
            options,
            about,
            data,
            model,
            attack_model,
            weights,
            context,
            samples,
            clean,
            results,
            signs,
            probe_passes,
            notes,
            doubts,
            certified,
        )
        record = make_record(run, seconds=time.perf_counter() - started)
        nearest = min_distance(samples, results) if options.min_distance else None
        rows = sample_rows(samples, data.hashes, results, nearest)
        if certified is not None:
            margins: list[float | None] = [None] * len(rows["position"])
            for position, margin in zip(certified.position.tolist(), certified.margin.tolist(), strict=True):
                margins[position] = margin  # the first rows are those on clean images
            rows[CERTIFIED_MARGIN.name] = margins
    return Evaluation(record, rows, results[-1].adv_images, outcomes(samples, results[-1]), certified=certified)


def _kept(certified: Certified | None, clean: CleanAnswers) -> Certified | None:
    """Return the certificates of samples that the referee gets right. Raises UserError where answers are not repeated."""
    if certified is None:
        return None
    if clean.wavering and not certified.asked:
        return None
    if clean.wavering:
        why = "it answers at random" if clean.randomized else "its answers depend on the batch"
        raise UserError(f"--certify cannot be used for this model: {why}. Leave it out.", code="not-certifiable")
    return certified.among(~clean.answers.is_adv)


def save_result(folder: Path, result: Evaluation, data: ImageDataset, *, images: bool = True) -> None:
    """Write images, samples and, last, the record of an evaluation into its run folder."""
    if images:
        tensors = {"images": result.adv_images.contiguous(), "labels": data.labels, "index": data.index}
        write_atomic(folder / ADVERSARIAL_FILE, save(tensors))
        write_atomic(folder / CLEAN_FILE, save({"images": _as_bytes(data.images)}))
    if result.certified is not None:
        save_certified(folder / CERTIFICATES, result.certified)
    save_samples(result.samples, folder)
    save_record(result.record, folder)


def _as_bytes(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) in [0, 1] as bytes where they lie on the 8-bit grid, as they are otherwise."""
    return ((images * 255).round().to(torch.uint8) if on_8bit_grid(images) else images).contiguous()
