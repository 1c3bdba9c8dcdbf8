"""An evaluation: a configuration becomes model, data, attacks and workers, they run, and a record comes out."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.config import EvalConfig, parse_attacks, rerun_command, validate
from robustdup.data.dataset import ImageDataset, from_tensors
from robustdup.data.sources import load_images
from robustdup.device import choose_device
from robustdup.errors import RunError, UserError, unknown
from robustdup.evaluation.calls import Call, Caller, PlannedStage, Work, lost_call, make_call
from robustdup.evaluation.cascade import CleanSamples
from robustdup.evaluation.clean import CleanAnswers, has_calls
from robustdup.evaluation.context import Context, EngineOptions, check_modules, make_attack_copy, make_context
from robustdup.evaluation.draws import Draws
from robustdup.evaluation.earlier import first_stage, overlap, read_earlier
from robustdup.evaluation.engine import Evaluation, evaluate_model, save_result
from robustdup.evaluation.record import RunInfo
from robustdup.evaluation.stages import NativeOptions, for_model, plan_stages
from robustdup.evaluation.under_way import Tick, UnderWay
from robustdup.jobs.certification import certify_first, check_certifiable
from robustdup.jobs.models import Fitted, check_gradient, fit_model
from robustdup.jobs.second_judge import judge_again
from robustdup.models.adapt import PLAIN, Adaptation, adapted
from robustdup.models.code import code_fingerprint
from robustdup.models.load import fingerprint, load_model
from robustdup.plugins import Registry, load_plugins
from robustdup.plugins.loading import check_loaded
from robustdup.precision import attack_precision
from robustdup.records import RECORD_FILE, EvaluationRecord, Progress, load_record
from robustdup.records import folder as run_folder
from robustdup.records.folder import CONFIG_FILE, STATE, freed_by_mistakes, locked
from robustdup.runners import WorkerPlace, open_runner, tell
from robustdup.runners.local import usable_cores
from robustdup.threat import ThreatModel
from robustdup.union import is_union, parse_balls

ELSEWHERE = ("out", "plugin", "device", "workers", "runner")  # settings that do not change what is computed
WORTH_WORKERS = 30.0  # seconds that a run must threaten to take before starting other processes for it
# What a context finds out by looking at model and images, and each worker takes over.
CHOSEN = ("micro_batch", "sizes", "fill", "draws", "usual_margin", "worth_compiling")
MOST_WORKERS = 8  # started unasked: each holds torch and the model


def run_evaluation(
    config: EvalConfig,
    *,
    model: nn.Module | None = None,
    attack_model: nn.Module | None = None,
    data: ImageDataset | None = None,
    registry: Registry | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    folder: Path | None = None,
    resume: bool = False,
    command: str | None = None,
    spread: bool = False,
) -> Evaluation:
    """Evaluate what `config` names and return record, samples and adversarial images.

    Args:
        config: what to evaluate, and how.
        model: replaces that of the configuration (notebooks), and so do `attack_model` and `data`.
        attack_model: what is attacked in place of the model.
        data: the images, with labels.
        registry: attacks, ensembles and sources; those of the configuration's plugins if not given.
        progress: is told of each call.
        folder: the run folder, in which everything is saved; None keeps nothing.
        resume: whether an unfinished run in `folder` goes on.
        command: what the record says runs it again; made from the configuration if not given.
        spread: whether a long run may start workers of its own accord, for callers whose main module can be imported
            again.

    Raises:
        UserError: for a mistake.
        RunError: where no result can come out.
    """
    started = time.perf_counter()
    registry = registry if registry is not None else load_plugins(config.plugin)
    threats = parse_threats(config)
    stages, notes = plan_for(config, registry, threats)
    data_given = data is not None
    data = data if data is not None else load_data(config, registry)
    if config.replay is not None:
        notes = [*notes, overlap(read_earlier(config.replay), data.hashes, tuple(data.images.shape[1:]))]
    device = choose_device(config.device)
    original, stand_in = load_models(config, model, attack_model, registry)
    code = code_fingerprint(original) if model is None else None
    fitted, fitted_stand_in = fit_models(config, original, stand_in, data, device)
    without = check_gradient(fitted_stand_in or fitted, stages, stand_in=stand_in is not None)
    notes = [*notes, *without]
    if config.certify:
        check_certifiable(config, fitted.model, threats[-1])
    original, stand_in = fitted.model, None if fitted_stand_in is None else fitted_stand_in.model
    given = GivenModels(model, attack_model, fitted.adaptation, fitted_stand_in.adaptation if fitted_stand_in else None)
    for remark in [*without, *(f"{sign.message} {sign.advice}" for sign in fitted.signs)]:  # the run may take hours
        progress(_remark(remark, stages, threats[0], len(data)))
    with contextlib.ExitStack() as stack:
        if folder is not None:
            run_folder.start(folder, config.model_dump(mode="json"), resume=resume, elsewhere=ELSEWHERE)
            stack.enter_context(locked(folder))
            stack.enter_context(freed_by_mistakes(folder, resume=resume, has_begun=lambda: has_calls(folder / STATE)))
        state = folder / STATE if folder is not None else None
        certified = certify_first(config, original, data, threats, state)
        if certified is not None:
            sentence = (
                f"{len(certified.position)} of {len(data)} samples are proven to be robust ({certified.seconds:.1f} s)."
            )
            progress(_remark(" ".join([sentence, *certified.notes]), stages, threats[0], len(data)))
        about = RunInfo(
            run_id=folder.name if folder is not None else "in-memory",
            command=command or rerun_command("eval", config),
            model=config.model,
            attack_model=config.attack_model,
            config=config.model_dump(mode="json"),
            settings=_digest(config),
            plugins=tuple(config.plugin),
            runner=config.runner,
            notes=(*notes, *data.notes, *fitted.notes),
            signs=fitted.signs,
            state=state,
            seconds=time.perf_counter() - started,
            certified=certified,
        )
        try:
            result = evaluate_model(
                original, data, stages, threats, engine_options(config, device), attack_model=stand_in, device=device,
                about=about, workers=functools.partial(_workers, config, given, spread), progress=progress,
            )  # fmt: skip
            result.record.events += judge_again(
                config, result, data, stages, code=code, model=original, adaptation=fitted.adaptation
            )
        except UserError as error:
            if error.code == "model-and-data" and (unnamed := _unnamed(config, model, data_given)):
                raise UserError(f"{error} {unnamed}", code=error.code) from error
            raise
        except RunError as error:
            if folder is not None and error.code == "model-changed":
                run_folder.refuse(folder, str(error))
            raise
        if folder is None:
            return result
        save_result(folder, result, data, images=config.save_images)
        if result.record.n_undecided == 0:
            shutil.rmtree(folder / STATE, ignore_errors=True)
    return replace(result, folder=folder)


def _unnamed(config: EvalConfig, model: nn.Module | None, data_given: bool) -> str:
    """Return what was taken in place of a model or of data that nobody named, where the other one was named."""
    usual_model, usual_data = (EvalConfig.model_fields[name].default for name in ("model", "data"))
    own_model, own_data = model is not None or config.model != usual_model, data_given or config.data != usual_data
    if own_model and not own_data:
        return f"The data are {usual_data}, since none were named: --data path/to/images."
    if own_data and not own_model:
        return f"The model is {usual_model}, since none was named: --model path/to/model.py:factory@weights."
    return ""


def _digest(config: EvalConfig) -> str:
    """Return a digest of all settings that change what is computed: no call of others is taken for one of this run."""
    settings = {key: value for key, value in config.model_dump(mode="json").items() if key not in ELSEWHERE}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _remark(message: str, stages: list[PlannedStage], threat: ThreatModel, n: int) -> Progress:
    """Return the event that says something before the first stage."""
    return Progress(
        eps_text=threat.eps_text, stage=0, n_stages=len(stages), attack=stages[0].spec.name, done=0, total=n, survivors=n,
        n=n, forward_passes=0, seconds=0.0, message=message,
    )  # fmt: skip


def engine_options(config: EvalConfig, device: torch.device) -> EngineOptions:
    """Return how the engine is to compute what `config` asks for on a device: by settings of the same name, but for two."""
    other: dict[str, Any] = {"draws": config.judge_draws, "precision": attack_precision(config.precision, device)}
    same = {field.name: getattr(config, field.name) for field in fields(EngineOptions) if field.name not in other}
    return EngineOptions(**same, **other)


def parse_threats(config: EvalConfig) -> list[ThreatModel]:
    """Return the threat models that `eps` names, smallest first: the last is the one of the result. Raises UserError.

    Where `threat` names a union over norms, they are its balls, in its order.
    """
    if config.threat is not None:
        return parse_balls(config.threat)
    texts = [text.strip() for text in config.eps.split(",") if text.strip()]
    if not texts:
        raise UserError("eps is empty. Write for instance --eps 8/255.", code="bad-value")
    threats = {threat.eps: threat for threat in (ThreatModel(config.norm, text) for text in texts)}
    return [threats[eps] for eps in sorted(threats)]


def plan_for(
    config: EvalConfig, registry: Registry, threats: list[ThreatModel]
) -> tuple[list[PlannedStage], list[str]]:
    """Return the stages for all threat models, those of a union each for its ball. Raises UserError before anything runs."""
    if not is_union(threats):
        return plan(config, registry, threats[-1])
    stages, notes = [], []
    for threat in threats:
        own, remarks = plan(config, registry, threat, union=True)
        stages += [replace(stage, norm=threat.norm) for stage in own]
        notes += remarks
    return stages, list(dict.fromkeys(notes))


def plan(
    config: EvalConfig, registry: Registry, threat: ThreatModel, *, union: bool = False
) -> tuple[list[PlannedStage], list[str]]:
    """Return the stages that the configuration names, and notes on them. Raises UserError before anything runs.

    In one ball of a `union`, an attack that does not know its norm is left out, unless none is left.
    """
    check_loaded(registry, config.plugin)
    attacks = parse_attacks(config.attacks)
    names = [name for name, _ in attacks]
    for name in config.options:
        if name not in names:
            raise unknown("attack in options:", name, names)
    stages, notes = plan_stages(
        [(name, {**config.options.get(name, {}), **written}) for name, written in attacks], registry, threat,
        native=NativeOptions(config.loss, config.eot), precision=config.precision, min_distance=config.min_distance,
        union=union,
    )  # fmt: skip
    if config.replay is not None:
        stages = [first_stage(read_earlier(config.replay)), *stages]
    return stages, notes


def load_data(config: EvalConfig, registry: Registry) -> ImageDataset:
    """Load the images that the configuration names."""
    return load_images(
        config.data, config.data_options(), n=config.n, sample=config.sample, seed=config.seed, registry=registry
    )


def load_models(
    config: EvalConfig, model: nn.Module | None, attack_model: nn.Module | None, registry: Registry
) -> tuple[nn.Module, nn.Module | None]:
    """Return the model to judge, given or loaded, and the one to attack where it is another."""
    load = functools.partial(load_model, registry=registry, allow_pickle=config.allow_pickle)
    if attack_model is None and config.attack_model is not None:
        attack_model = load(config.attack_model)
    original = model if model is not None else load(config.model)
    check_modules(original, attack_model)
    return original, attack_model


def fit_models(
    config: EvalConfig, original: nn.Module, stand_in: nn.Module | None, data: ImageDataset, device: torch.device
) -> tuple[Fitted, Fitted | None]:
    """Return the model to judge and the one to attack as classifiers of the data. Raises UserError where they cannot be."""
    fitted = fit_model(original, data, config, device)
    return fitted, None if stand_in is None else fit_model(stand_in, data, config, device, search=False)


# --- a run that is done, or that goes on ---


def check_same(folder: Path, config: EvalConfig) -> None:
    """Raise UserError where the run in `folder` was started with other settings than `config`."""
    saved = validate(EvalConfig, run_folder.saved_content(folder)).model_dump(mode="json")
    run_folder.check_same(folder, config.model_dump(mode="json"), saved, elsewhere=ELSEWHERE)


def finished_record(folder: Path) -> EvaluationRecord | None:
    """Return the record of a run that is done; None where attacks are left to run, or samples to decide.

    What a kill may have left of its state is removed.
    """
    if not (folder / RECORD_FILE).is_file():
        return None
    record = load_record(folder)
    if record.n_undecided and (folder / STATE / CONFIG_FILE).is_file():
        return None
    shutil.rmtree(folder / STATE, ignore_errors=True)
    return record


# --- workers ---


@dataclass(frozen=True)
class GivenModels:
    """Models that were given as objects, and how those given and those loaded are adapted."""

    model: nn.Module | None
    attack_model: nn.Module | None
    adaptation: Adaptation
    attack_adaptation: Adaptation | None


@dataclass(frozen=True)
class WorkerOrder:
    """What a worker needs to make calls as the parent would: models only where they were given as objects.

    `chosen` is what the parent's context found out by looking at model and images: see `CHOSEN`.
    """

    config: EvalConfig
    given: GivenModels
    weights: str
    code: str
    chosen: dict[str, Any]
    referee_micro_batch: int | None
    examples: Tensor
    randomized: bool
    gradient_draws: Draws


@contextlib.contextmanager
def _workers(
    config: EvalConfig, given: GivenModels, spread: bool, context: Context,
    samples: CleanSamples, clean: CleanAnswers, weights: str,
) -> Iterator[Caller | None]:  # fmt: skip
    """Open the workers that the configuration asks for; None where this process makes the calls itself."""
    context.workers = config.workers or _usual_workers(config, given.model, context, spread)
    if clean.batch_dependent:  # who shares a batch would follow from who shares the samples
        context.workers = 1
        yield None
        return
    if context.workers == 1 and config.runner == "local":
        yield None
        return
    correct = (~samples.clean.is_adv).nonzero()[: context.micro_batch, 0]
    order = WorkerOrder(
        config=config,
        given=given,
        weights=weights,
        code=code_fingerprint(context.original.model),
        chosen={name: getattr(context, name) for name in CHOSEN},
        referee_micro_batch=context.original.micro_batch,
        examples=samples.images[correct],
        randomized=clean.randomized,
        gradient_draws=context.gradient_draws,
    )
    share = max(1, len(usable_cores()) // context.workers)
    with open_runner(
        config.runner,
        context.workers,
        functools.partial(evaluation_worker, order),
        devices=None if config.device == "auto" and context.device.type == "cuda" else (str(context.device),),
        threads=config.threads or min(torch.get_num_threads(), share),
        describe=lambda work: f"the call of stage {work.number + 1} on {len(work.positions)} samples",
        lost=lambda work, death: lost_call(work, death.how),
    ) as runner:

        def caller(works: Iterable[Work], tick: Tick) -> Iterator[Call]:
            return runner.map(works, listener=lambda note: tick(note) if isinstance(note, UnderWay) else None)

        yield caller


def _usual_workers(config: EvalConfig, model: nn.Module | None, context: Context, spread: bool) -> int:
    """Return how many workers to take where none are asked for: cores that one thread would leave idle are used.

    A model given as an object may be one that cannot be sent; then, and for other devices, this process works alone.
    """
    if config.runner != "local":
        return len(usable_cores())
    idle = spread and context.device.type == "cpu" and torch.get_num_threads() == 1
    if not idle or context.longest < WORTH_WORKERS or model is not None:
        return 1
    return min(len(usable_cores()), MOST_WORKERS)


def evaluation_worker(order: WorkerOrder, place: WorkerPlace) -> Callable[[Work], Call]:
    """Set up one worker of an evaluation: it loads the model anew and makes the calls that it is given."""
    config, device = order.config, torch.device(place.device or "cpu")
    options = engine_options(config, device)
    torch.set_num_threads(place.threads)
    sys.stdout = sys.stderr  # what a model prints here must not stand between the lines of the parent's record
    registry = load_plugins(config.plugin)
    stages, _ = plan_for(config, registry, parse_threats(config))
    stages, _ = for_model(stages, randomized=order.randomized, draws=order.gradient_draws)
    original, stand_in = load_models(config, order.given.model, order.given.attack_model, registry)
    original = adapted(original, order.given.adaptation)
    if stand_in is not None:
        stand_in = adapted(stand_in, order.given.attack_adaptation or PLAIN)
    context = make_context(original, stand_in, device, options)
    if fingerprint(context.original.model) != order.weights:
        raise RunError(
            f"Worker {place.number} loaded other weights for {config.model!r} than the parent has.",
            code="other-weights",
        )
    if code_fingerprint(context.original.model) != order.code:
        raise RunError(
            f"The code of {config.model!r} was changed while the run was at work: worker {place.number} would run another "
            "model than the parent. Put it back as it was, and go on with --resume.",
            code="other-code",
        )
    context.held.append(stages)
    context.original.micro_batch = order.referee_micro_batch
    for name, value in order.chosen.items():
        setattr(context, name, value)
    if any(stage.spec.batching == "pool" for stage in stages) and len(order.examples):
        make_attack_copy(context, options, order.examples.to(context.device), order.randomized)
    return lambda work: make_call(work, stages, context, tell)


# --- what is in memory ---


def given_data(images: Any, labels: Any, config: EvalConfig) -> ImageDataset:
    """Return images and labels in memory as a dataset: the first n, where the configuration says so."""
    if config.sample is not None:
        raise UserError(
            "sample= is for datasets that are loaded. Index images and labels yourself, or use n=.", code="bad-option"
        )
    if config.n is not None and config.n > len(images):
        raise UserError(f"n = {config.n} is above the {len(images)} images given.", code="bad-value")
    rows = slice(None, config.n)
    return from_tensors(images[rows], labels[rows], spec="python")
