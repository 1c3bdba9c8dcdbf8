"""An evaluation on common corruptions: published images or ones made here are shown to the model, and a record comes out."""

from __future__ import annotations

import importlib.metadata
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from robustdup.attacks.isolation import isolated
from robustdup.config import EvalConfig, parse_call, rerun_command
from robustdup.data.batches import to_bytes
from robustdup.data.dataset import ImageDataset
from robustdup.device import choose_device, cpu_threads
from robustdup.errors import UserError, unknown
from robustdup.evaluation.clean import CleanAnswers, clean_answers, not_finite_note
from robustdup.evaluation.context import Context, make_context, remarks
from robustdup.evaluation.metrics import accuracy
from robustdup.evaluation.record import data_info, environment
from robustdup.evaluation.referee import judge_images
from robustdup.jobs.evaluation import ELSEWHERE, engine_options, load_data, load_models
from robustdup.jobs.models import fit_model
from robustdup.models.adapt import inner, order_of
from robustdup.models.load import count_parameters, fingerprint
from robustdup.plugins import Registry, load_plugins
from robustdup.records import Accuracy, ModelInfo, atomic_path, now, versions
from robustdup.records import folder as run_folder
from robustdup_corruptions.judged_sets import (
    Judged,
    JudgedSet,
    Key,
    pixels_digest,
    save_set,
    saved_sets,
    table_of,
)
from robustdup_corruptions.making import strengths_of
from robustdup_corruptions.record import (
    ALEXNET_ERRORS,
    COMMON,
    FAMILY_OF,
    KINDS,
    SEVERITIES,
    TABLE_FILE,
    CorruptionRecord,
    CorruptionResult,
    SeverityResult,
    load_corruption_record,
    save_corruption_record,
)
from robustdup_corruptions.sets import CorruptedSet, Corruptions, corrupted_sets, find_corruptions

WORD = "corruptions"
PICTURES_FILE = "images/corrupted.npz"  # the first sample under every kind and severity
LIBRARY = "imagecorruptions-imaug"
JUDGED_AT_ONCE = 2048  # images
NOT_FOR_CORRUPTIONS = (
    "attacks", "attack_model", "min_distance", "individual", "each_norm", "loss", "options", "replay", "certify",
)  # fmt: skip
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Order:
    """Which kinds and severities are asked for; no kinds are all that there are."""

    kinds: list[str]
    severities: list[int]


@dataclass(frozen=True)
class CorruptionRun:
    """What an evaluation on corruptions leaves: its record, who was right (columns of a table), and pictures of one sample."""

    record: CorruptionRecord
    table: dict[str, Any]
    pictures: dict[str, Any]


def parse_order(text: str) -> Order:
    """Read 'corruptions' or 'corruptions(kinds=[fog,snow],severities=[1,5])'. Raises UserError."""
    _, options = parse_call(text, "threat model")
    for name in options:
        if name not in ("kinds", "severities"):
            raise unknown("option of corruptions:", name, ["kinds", "severities"])
    kinds, severities = (options.get(name, []) for name in ("kinds", "severities"))
    kinds = kinds if isinstance(kinds, list) else [kinds]
    severities = severities if isinstance(severities, list) else [severities]
    for kind in kinds:
        if str(kind) not in KINDS:
            raise unknown("corruption", str(kind), KINDS)
    for severity in severities:
        if type(severity) is not int or severity not in SEVERITIES:
            raise UserError(f"Severity {severity!r} does not exist: severities go from 1 to 5.", code="bad-value")
    return Order([kind for kind in KINDS if kind in kinds], sorted(set(severities)) or list(SEVERITIES))


def run_corruptions(
    config: EvalConfig, *, model: nn.Module | None = None, data: ImageDataset | None = None, registry: Registry | None = None,
    folder: Path | None = None, resume: bool = False, command: str | None = None, progress: Tell = lambda *_: None,
) -> CorruptionRun:  # fmt: skip
    """Show a model corrupted images, and return the record and who was right.

    Args:
        config: what to evaluate.
        model: replaces that of the configuration, and so does `data`, the clean images.
        data: clean images, of which corrupted ones are made.
        registry: models and data sources.
        folder: the run folder; None keeps nothing.
        resume: whether an unfinished run in `folder` goes on: sets that were judged are not made and judged again.
        command: what the record says runs it again.
        progress: is told of each set: its name, its number, and how many there are.

    Raises:
        UserError: for a mistake: a folder without a kind that was asked for, labels of another length, severity 6.
    """
    started = time.perf_counter()
    order = parse_order(config.threat or WORD)
    _refuse_attacks(config)
    registry = registry if registry is not None else load_plugins(config.plugin)
    corruptions = find_corruptions(config.data, order.kinds, order.severities) if data is None else None
    if corruptions is None:
        clean = data if data is not None else load_data(config, registry)
        corruptions = Corruptions("made", order.kinds or list(KINDS), order.severities, clean=clean, seed=config.seed)
    corruptions.seed = config.seed
    judged: Judged = {}
    sets = corrupted_sets(
        corruptions,
        config.data,
        config.data_options(),
        n=config.n,
        sample=config.sample,
        registry=registry,
        done=judged,
    )
    first = next(sets)
    device = choose_device(config.device)
    original, _ = load_models(config, model, None, registry)
    shown = corruptions.clean or first.data
    fitted = fit_model(original, shown, config, device, search=corruptions.clean is not None)
    state = None if folder is None else folder / run_folder.STATE
    with ExitStack() as stack:
        if folder is not None:
            run_folder.start(folder, config.model_dump(mode="json"), resume=resume, elsewhere=ELSEWHERE)
            stack.enter_context(run_folder.locked(folder))
            stack.enter_context(run_folder.freed_by_mistakes(folder, resume=resume, has_begun=lambda: bool(judged)))
        stack.enter_context(isolated(fitted.model))
        context = make_context(fitted.model, None, device, engine_options(config, device))
        judge = context.original.model
        stack.enter_context(
            cpu_threads(config.threads, judge, shown.images[0], rows=context.micro_batch, device=device)
        )
        weights = fingerprint(judge)
        clean_said = clean_answers(
            context, shown, weights, draws=config.judge_draws, plugins=config.plugin, state=state
        )
        context.draws = config.judge_draws if clean_said.randomized else 1
        if resume and state is not None:
            judged.update(saved_sets(state, keys_of(corruptions)))
        spent = sum(each.seconds for each in judged.values()), sum(each.making for each in judged.values())
        left = sets if (first.kind, first.severity) in judged else itertools.chain([first], sets)
        judged = _judge_sets(context, left, judged, corruptions, state=state, progress=progress)
        record = _record(config, corruptions, shown, clean_said, judged, fitted.model, context, weights)
        notes = [*shown.notes, *fitted.notes, *remarks(fitted.model, context), *not_finite_note(clean_said)]
        record = record.model_copy(
            update={
                "run_id": folder.name if folder is not None else "in-memory",
                "command": command or rerun_command("eval", config),
                "events": [*record.events, *notes, *(f"{sign.message} {sign.advice}" for sign in fitted.signs)],
                "seconds": time.perf_counter() - started + spent[0],
                "making_seconds": corruptions.making_seconds + spent[1],
            }
        )
        pictures = {f"{kind} {severity}": each.picture for (kind, severity), each in judged.items()}
        run = CorruptionRun(record, table_of(judged), pictures)
        if folder is not None:
            save_run(folder, run)
    if state is not None:
        shutil.rmtree(state, ignore_errors=True)
    return run


def finished_corruptions(folder: Path) -> CorruptionRecord:
    """Return the record of a run on corruptions that is done, and remove what a kill may have left of its state."""
    record = load_corruption_record(folder)
    shutil.rmtree(folder / run_folder.STATE, ignore_errors=True)
    return record


def save_run(folder: Path, run: CorruptionRun) -> None:
    """Write the table of answers, the pictures and, last, the record into the run folder."""
    with atomic_path(folder / TABLE_FILE) as temporary:
        pq.write_table(pa.table(run.table), temporary, compression="zstd")
    with atomic_path(folder / PICTURES_FILE) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **run.pictures)
    save_corruption_record(run.record, folder)


def _refuse_attacks(config: EvalConfig) -> None:
    """Raise UserError for settings of attacks: corruptions are no attacks."""
    for name in NOT_FOR_CORRUPTIONS:
        if getattr(config, name) != EvalConfig.model_fields[name].get_default(call_default_factory=True):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"Corruptions are no attacks, and {flag} is for attacks: leave it out.", code="bad-option")


def _judge_sets(
    context: Context, sets: Iterator[CorruptedSet], judged: Judged, corruptions: Corruptions, *, state: Path | None,
    progress: Tell,
) -> Judged:  # fmt: skip
    """Judge the sets that `judged` does not hold, keep each in `state`, and return all in the order of kinds and severities."""
    keys = keys_of(corruptions)
    clock, made = time.perf_counter(), corruptions.making_seconds
    for part in sets:
        key = (part.kind, part.severity)
        progress(f"{part.kind} {part.severity}", len(judged), len(keys))
        judged_set = _judge_set(context, part)
        now = time.perf_counter()
        judged[key] = replace(judged_set, seconds=now - clock, making=corruptions.making_seconds - made)
        clock, made = now, corruptions.making_seconds
        if state is not None:
            save_set(state, key, judged[key])
    progress("", len(keys), len(keys))
    return {key: judged[key] for key in keys}


def keys_of(corruptions: Corruptions) -> list[Key]:
    """Return the kinds and severities of all sets, in their order."""
    return [(kind, severity) for kind in corruptions.kinds for severity in corruptions.severities]


def _judge_set(context: Context, part: CorruptedSet) -> JudgedSet:
    images, labels = part.data.images, part.data.labels
    answers = [
        judge_images(
            context.original, some.to(context.device), labels[start : start + len(some)].to(context.device),
            draws=context.draws, seed=context.seed + 1,
        )
        for start, some in ((start, images[start : start + JUDGED_AT_ONCE]) for start in range(0, len(images), JUDGED_AT_ONCE))
    ]  # fmt: skip
    return JudgedSet(
        right=torch.cat([answer.correct_share for answer in answers]),
        prediction=torch.cat([answer.prediction for answer in answers]),
        margin=torch.cat([answer.margin for answer in answers]),
        labels=labels, index=part.data.index, picture=to_bytes(images[0]).permute(1, 2, 0).numpy(),
        pixels=pixels_digest(images),
    )  # fmt: skip


def _record(
    config: EvalConfig, corruptions: Corruptions, shown: ImageDataset, clean: CleanAnswers, judged: Judged, model: nn.Module,
    context: Context, weights: str,
) -> CorruptionRecord:  # fmt: skip
    made = corruptions.clean is not None
    imagenet = corruptions.source == "folders" and clean.num_classes == 1000
    kinds = [_of_kind(kind, judged, imagenet=imagenet) for kind in corruptions.kinds]
    counted = [key for key in judged if key[0] in COMMON]
    complete = not corruptions.missing and corruptions.severities == list(SEVERITIES)
    ratios = [kind.relative_error for kind in kinds if kind.relative_error is not None and kind.family != "extra"]
    n = min(len(each.right) for each in judged.values())
    events = []
    if corruptions.missing:
        events.append(
            f"{len(corruptions.missing)} of the fifteen kinds were not evaluated: {', '.join(corruptions.missing)}. "
            "The mean is over those that were."
        )
    events += corruptions.strays
    with_library = ""
    if made:
        strengths = strengths_of(min(shown.images.shape[2:]))
        with_library = f"{LIBRARY} {importlib.metadata.version(LIBRARY)}, {strengths}"
    return CorruptionRecord(
        run_id="", created=now(), command="", n=n, source=corruptions.source, made_with=with_library,
        clean_accuracy=accuracy(clean.answers.correct_share.numpy()) if made else None,
        corruption_accuracy=_mean(judged, counted) if counted else None,
        mce=float(np.mean(ratios)) if complete and imagenet else None,
        kinds=kinds, missing=corruptions.missing, severities=corruptions.severities, events=events,
        interval_about=(
            f"95% Wilson intervals about images of this kind, from {n} of each kind and severity; a sample counts by its "
            "share of right answers. They cover the choice of images, not that of the corruptions."
        ),
        seconds=0.0, seed=config.seed, config=config.model_dump(mode="json"), data=data_info(shown),
        model=ModelInfo(
            spec=config.model, architecture=type(inner(model)).__name__, fingerprint=weights, num_classes=clean.num_classes,
            parameters=count_parameters(model), mode=config.mode, randomized=clean.randomized, judge_draws=context.draws,
            batch_dependent=clean.batch_dependent, class_order=order_of(model),
            judged_in_batches_of=context.original.micro_batch if clean.batch_dependent else None,
        ),
        environment=environment(context, "local"), versions=versions(),
    )  # fmt: skip


def _of_kind(kind: str, judged: Judged, *, imagenet: bool) -> CorruptionResult:
    keys = [key for key in judged if key[0] == kind]
    mean = _mean(judged, keys)
    whole = [severity for _, severity in keys] == list(SEVERITIES)
    baseline = ALEXNET_ERRORS.get(kind) if imagenet and whole else None
    return CorruptionResult(
        kind=kind, family=FAMILY_OF[kind], accuracy=mean,
        relative_error=None if baseline is None else (1 - mean.value) / baseline,
        severities=[
            SeverityResult(
                severity=key[1], n=len(judged[key].right), accuracy=accuracy(judged[key].right.numpy()), pixels=judged[key].pixels
            )
            for key in keys
        ],
    )  # fmt: skip


def _mean(judged: Judged, keys: list[tuple[str, int]]) -> Accuracy:
    """Return the mean accuracy over sets, each with the same weight; where they hold the same samples, with their interval.

    A sample counts by its share of right answers, whose variance is at most that of a single answer: Wilson's interval is
    then no narrower than it should be.
    """
    rights = [judged[key].right for key in keys]
    if len({len(right) for right in rights}) == 1:
        return accuracy(torch.stack(rights).mean(dim=0).numpy())
    n = min(len(right) for right in rights)
    value = float(np.mean([float(right.mean()) for right in rights]))
    return accuracy(np.full(n, value))
