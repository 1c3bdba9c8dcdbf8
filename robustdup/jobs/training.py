"""A training run: a configuration becomes data, network, objective and attack, they run, and a record comes out."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from robustdup.attacks.isolation import isolated
from robustdup.config import EvalConfig, TrainConfig, parse_call, validate
from robustdup.config.fields import NORMS, DataFields
from robustdup.data.batches import Stream
from robustdup.data.mixing import Mixing
from robustdup.data.transforms import Transforms
from robustdup.device import choose_device, count_operations
from robustdup.errors import UserError
from robustdup.jobs.evaluation import parse_threats, plan, run_evaluation
from robustdup.jobs.training_data import TrainingData, check_test_shape, prepare_data
from robustdup.jobs.training_record import BEST, LAST, Assembled, checkpoint_results, make_record
from robustdup.models.architectures import build_network
from robustdup.models.attack_copy.layout import fits_channels_last
from robustdup.models.files import is_file_spec
from robustdup.models.load import count_parameters, fingerprint
from robustdup.models.start import head_of, start_from
from robustdup.models.trained import NETWORK_FILE, describe_network, save_network, save_weights
from robustdup.plugins import ObjectiveSpec, Registry, load_plugins
from robustdup.precision import TrainingPrecision, training_precision
from robustdup.projections import COUNTS
from robustdup.records import (
    RECORD_FILE,
    CheckpointResult,
    EvaluationRecord,
    Progress,
    TrainingRecord,
    TrainProgress,
    load_record,
    load_training_record,
    save_training_record,
    write_atomic,
)
from robustdup.records import folder as run_folder
from robustdup.records.origin import file_made_here
from robustdup.threat import ThreatModel
from robustdup.training.checkpoint import CHECKPOINT_FILE, FREE_TO_CHANGE
from robustdup.training.curriculum import make_curriculum
from robustdup.training.frozen import freeze
from robustdup.training.inner import CPU_ROWS, Inner, prepare_inner
from robustdup.training.loop import fit
from robustdup.training.memory import Memory
from robustdup.training.objectives import check_mixed, check_model, find_objective, needs_memory
from robustdup.training.options import TrainerOptions
from robustdup.training.parts import Parts, ShowProgress
from robustdup.training.processes import Processes, open_processes
from robustdup.training.schedule import make_budget
from robustdup.training.tracking import check_trackers
from robustdup.training.updates import UpdateRule, make_update
from robustdup.training.validation import Validate, ValidationAttack, find_validation_attack, make_validate

# Codes of what is left of an evaluation that cannot go on.
UNUSABLE = ("damaged-run", "damaged-record", "other-run", "not-empty", "no-run")
PRECISION_FILE = "precision.txt"
SMALL = 2e8  # multiply-adds of an inner pass below which CPU threads wait for each other longer than they compute

Say = Callable[[str], None]


def run_training(
    config: TrainConfig,
    *,
    folder: Path,
    registry: Registry | None = None,
    resume: bool = False,
    progress: ShowProgress = lambda _: None,
) -> TrainingRecord:
    """Train what `config` names and return the record; network, weights, record and evaluations are saved in `folder`.

    With `resume` an unfinished run in `folder` goes on, to the same weights; a finished one returns its record. Under
    `accelerate launch` or `torchrun` every process calls this, and the first one writes.
    Raises UserError for a mistake and RunError where no result can come out.
    """
    registry = registry if registry is not None else load_plugins(config.plugin)
    settings = config.model_dump(mode="json")
    if resume and (folder / RECORD_FILE).is_file():
        run_folder.check_same(folder, settings, run_folder.saved_content(folder), elsewhere=FREE_TO_CHANGE)
        return load_training_record(folder)
    orders = check(config, registry)
    say = functools.partial(_say, progress)
    with contextlib.ExitStack() as stack:
        processes = stack.enter_context(open_processes(config.device))
        device = processes.device or choose_device(config.device)
        if processes.first:
            run_folder.start(folder, settings, resume=resume, elsewhere=FREE_TO_CHANGE)
            stack.enter_context(run_folder.locked(folder))
        processes.from_first("started")
        stack.enter_context(isolated())
        try:
            run = assemble(config, orders, registry, processes, device, folder, say)
            result = fit(
                run.parts,
                run.options,
                device=device,
                folder=folder,
                resume=resume,
                validate=_validate(run, orders),
                progress=progress,
            )
            if not processes.first:
                return make_record(run, result, [], folder)
            save_weights(folder, BEST, result.best)
            save_weights(folder, LAST, result.last)
            results = checkpoint_results(network_for(config, run.data, registry), result)
            _evaluate(config, registry, folder, results, progress)
            record = make_record(run, result, results, folder)
            save_training_record(record, folder)
            shutil.rmtree(folder / run_folder.STATE, ignore_errors=True)
            return record
        except UserError:
            if processes.first and not resume and not (folder / run_folder.STATE / CHECKPOINT_FILE).exists():
                (folder / NETWORK_FILE).unlink(missing_ok=True)
                run_folder.withdraw(folder)
            raise


@dataclass(frozen=True)
class Orders:
    """What a configuration asks for, read and checked before anything is loaded."""

    threat: ThreatModel
    objective: ObjectiveSpec
    objective_options: dict[str, Any]
    update: UpdateRule
    inner: Inner
    validation_attack: ValidationAttack


def check(config: TrainConfig, registry: Registry) -> Orders:
    """Return what the configuration asks for. Raises UserError for whatever cannot be."""
    check_trackers(config.track)
    make_budget(config.budget(), config.batch_size, 2**31)  # of any data: what is given, and that it is above nothing
    threat = ThreatModel(config.norm, config.eps)
    if threat.norm in COUNTS:
        raise UserError(
            f"Training knows the norms {', '.join(NORMS)}, not {threat.norm}; robustdup eval attacks in it what was trained in "
            "another.",
            code="other-norm",
        )
    objective, options = find_objective(config.objective, registry)
    check_mixed(objective, parse_call(config.attack, "inner attack")[0], config.mix)
    if config.transforms:
        Transforms(config.transforms, (8, 8))
    if config.mix:
        Mixing(config.mix)
    if config.evaluate:  # a typo here would come out when training is over
        evaluation = _evaluation(config, Path(), LAST)
        plan(evaluation, registry, parse_threats(evaluation)[-1])
    inner = prepare_inner(config.attack, registry, threat, bn=config.inner_bn, smoothing=config.label_smoothing)
    if config.steps_schedule and not objective.attacks:
        raise UserError(
            f"steps_schedule is about the inner attack, which {objective.name} does not run. Take pgd_at, trades or mart.",
            code="options-conflict",
        )
    inner.curriculum = make_curriculum(
        config.eps_schedule, config.steps_schedule, threat, attack=inner.name, objective=objective.name
    )
    if config.transforms and needs_memory(objective):
        raise UserError(
            f"{objective.name} keeps what it found for each image where the image is cropped and mirrored; transforms change it "
            "otherwise: leave them out, or take n_fgsm.",
            code="options-conflict",
        )
    return Orders(
        threat=threat,
        objective=objective,
        objective_options=options,
        update=make_update(config.update, objective, options, threat),
        inner=inner,
        validation_attack=find_validation_attack(config.validation_attack, registry, threat),
    )


def assemble(
    config: TrainConfig,
    orders: Orders,
    registry: Registry,
    processes: Processes,
    device: torch.device,
    folder: Path,
    say: Say,
) -> Assembled:
    """Read the data, build the network, and put together what `fit` trains. The network is described in `folder`."""
    data = prepare_data(config, registry, device, say=say)
    model = network_for(config, data, registry)
    if data.tested is not None:
        check_test_shape(*data.tested, model, (data.channels, *data.size))
    data.events.extend(_started(model, config, data, registry))
    frozen = _frozen(model, config, data)
    initial = fingerprint(model)
    if processes.first:
        save_network(
            folder,
            describe_network(
                config.model, **_shapes(data), normalize=config.normalize, class_names=data.info.class_names
            ),
        )
    model = model.to(device)
    data.entries.channels_last = config.channels_last and fits_channels_last(model, device)
    check_model(orders.objective, model)
    if needs_memory(orders.objective):
        orders.inner.memory = _memory(orders, data, processes, device)
    module = _objective_module(orders, model, data, seed=config.seed, device=device)
    own_weights = {} if module is None else {"module": module}
    parts = Parts(
        model=model,
        objective=functools.partial(orders.objective.function, **orders.objective_options, **own_weights),
        update=orders.update,
        inner=orders.inner,
        stream=functools.partial(Stream, data.entries),
        entries=len(data.entries),
        module=module,
        processes=processes,
        data={
            "data": data.info.fingerprint,
            "plan": data.plan.hash,
            "initial": initial,
            **({} if data.extra is None else {"extra": data.extra.fingerprint}),
        },
        settings=config.model_dump(mode="json"),
        frozen=frozen,
        watched_by=0 if data.validation is None or orders.objective.name == "standard" else len(data.validation.labels),
        on_best=functools.partial(save_weights, folder, BEST),  # before the run ends: it may be killed
    )
    threads = config.threads or usual_threads(model, data, device)
    operations = count_operations(model, torch.zeros(data.channels, *data.size, device=device))
    precision = training_precision(config.precision, device, operations=operations)
    options = trainer_options(config, threads, _kept_precision(folder, processes, precision))
    return Assembled(config, orders.threat, orders.objective, parts, options, data, device)


def _memory(orders: Orders, data: TrainingData, processes: Processes, device: torch.device) -> Memory:
    """Return the memory of an objective that keeps values for each training entry. Raises UserError for several processes."""
    if processes.count > 1:
        raise UserError(
            f"{orders.objective.name} keeps values for each image in one process: run it without accelerate or torchrun.",
            code="options-conflict",
        )
    entries = data.entries
    entries.keep_moves = True
    return Memory(entries.image.shape[0], (data.channels, *data.size), padding=entries.options.cropped, device=device)


def _validate(run: Assembled, orders: Orders) -> Validate | None:
    """Return what judges candidates for the best checkpoint; None where no images are held out."""
    if run.data.validation is None:
        return None
    return make_validate(run.data.validation, orders.validation_attack, seed=run.options.seed, device=run.device)


def _kept_precision(folder: Path, processes: Processes, chosen: str) -> str:
    """Return the precision that the run in `folder` was started with, wherever it goes on; else the chosen one, kept."""
    path = folder / run_folder.STATE / PRECISION_FILE
    if processes.first:
        if path.exists():
            chosen = _read_precision(path)
        else:
            write_atomic(path, f"{chosen}\n".encode())
    return processes.from_first(chosen)


def _read_precision(path: Path) -> str:
    """Return the precision that a run keeps. Raises UserError where it is none."""
    try:
        kept = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        kept = ""
    known = get_args(TrainingPrecision)
    if kept not in known:
        raise UserError(
            f"{str(path)!r} is damaged: it names no precision ({', '.join(known)}). Write there the one that the run was "
            "started with, or start again in another --out.",
            code="damaged-run",
        )
    return kept


def trainer_options(config: TrainConfig, threads: int | None, precision: str) -> TrainerOptions:
    """Return the settings of the configuration that concern the trainer: those of the same name, and what was chosen."""
    values = {field.name: getattr(config, field.name) for field in fields(TrainerOptions)}
    return TrainerOptions(
        **{**values, "milestones": tuple(config.milestones), "threads": threads, "precision": precision}
    )


def usual_threads(model: nn.Module, data: TrainingData, device: torch.device) -> int:
    """Return the CPU threads that suit a model where none are asked for: one for a small one, counted and not timed."""
    image = torch.zeros(data.channels, *data.size, device=device)
    small = device.type == "cpu" and count_operations(model, image) * CPU_ROWS < SMALL
    return 1 if small else torch.get_num_threads()


def network_for(config: TrainConfig, data: TrainingData, registry: Registry) -> nn.Module:
    """Build the network that fits the data, with initial weights from the seed of the run."""
    return build_network(config.model, **_shapes(data), seed=config.seed, registry=registry, normalize=config.normalize)


def _shapes(data: TrainingData) -> dict[str, Any]:
    """Return what a network must fit: channels, size and classes, and the mean and deviation that it normalises by."""
    names = ("channels", "size", "classes", "mean", "std")
    return {name: getattr(data, name) for name in names}


def _started(model: nn.Module, config: TrainConfig, data: TrainingData, registry: Registry) -> list[str]:
    """Load the weights of `config.init` into the model and return what to tell. Raises UserError for those of another network."""
    if config.init is None:
        if config.new_head:
            raise UserError("new_head is about the weights to start from: name them with init.", code="missing-option")
        return []
    return start_from(
        model, config.init, classes=data.classes, registry=registry, allow_pickle=config.allow_pickle,
        new_head=config.new_head,
    )  # fmt: skip


def _frozen(model: nn.Module, config: TrainConfig, data: TrainingData) -> list[nn.Module]:
    """Freeze the parts that `config.freeze` names, tell how much is left to train, and return the frozen modules."""
    if not config.freeze:
        return []
    if config.swa:
        message = "swa measures the statistics of BatchNorm anew and does not go with freeze: average with ema."
        raise UserError(message, code="options-conflict")
    frozen = freeze(model, config.freeze, head_of(model, data.classes))
    left = sum(value.numel() for value in model.parameters() if value.requires_grad)
    data.events.append(f"{left:,} of {count_parameters(model):,} parameters are trained; frozen: {config.freeze}.")
    if config.init is None and not is_file_spec(config.model):
        data.events.append("What is frozen has the weights that were drawn at random: init names trained ones.")
    return frozen


def _objective_module(
    orders: Orders, model: nn.Module, data: TrainingData, *, seed: int, device: torch.device
) -> nn.Module | None:
    """Build the weights that an objective has of its own, from the seed of the run."""
    if orders.objective.module is None:
        return None
    examples = torch.rand(2, data.channels, *data.size, device=device)
    with isolated(model, seed=seed):
        return orders.objective.module(model, examples, **orders.objective_options).to(device)  # type: ignore[no-any-return]


def _say(progress: ShowProgress, message: str, evaluation: Progress | None = None) -> None:
    """Tell what is done before and after training itself."""
    progress(TrainProgress(message=message, evaluation=evaluation))


def _evaluate(
    config: TrainConfig, registry: Registry, folder: Path, results: list[CheckpointResult], progress: ShowProgress
) -> None:
    """Evaluate best and last on the test split with verified attacks; equal weights are evaluated once."""
    if not config.evaluate:
        return
    records: dict[str, EvaluationRecord] = {}
    for result in results:
        record = records.get(result.fingerprint)
        if record is None:
            message = f"evaluating {result.name} with {config.evaluate}"
            tell = functools.partial(_say, progress, message)
            tell()
            evaluation = _evaluation(config, folder, result.name)
            record = _evaluated(evaluation, registry, folder / f"evaluation-{result.name}", tell)
            records[result.fingerprint] = record
        result.clean_accuracy, result.robust_accuracy = record.clean_accuracy, record.robust_accuracy
        result.n, result.attacks, result.evaluation = record.n, config.evaluate, record.run_id


def _evaluated(
    evaluation: EvalConfig, registry: Registry, folder: Path, progress: Callable[[Progress], None]
) -> EvaluationRecord:
    """Run an evaluation in `folder`, or what is left of it, and return its record; what was damaged is done again."""
    if (folder / RECORD_FILE).is_file() and file_made_here(folder / RECORD_FILE):
        return load_record(folder)
    (folder / RECORD_FILE).unlink(missing_ok=True)  # of a disk or an editor
    run = functools.partial(run_evaluation, evaluation, registry=registry, folder=folder, progress=progress)
    try:
        return run(resume=folder.is_dir()).record
    except UserError as error:
        if not folder.is_dir() or error.code not in UNUSABLE:
            raise
        shutil.rmtree(folder)
        return run(resume=False).record


def _evaluation(config: TrainConfig, folder: Path, name: str) -> EvalConfig:
    """Return the configuration of an evaluation of a checkpoint in `folder`."""
    reading = {name: getattr(config, name) for name in DataFields.model_fields}
    settings = {name: getattr(config, name) for name in ("norm", "eps", "device", "seed", "allow_pickle", "plugin")}
    data = {**reading, "data": config.test_data or config.data, "split": config.test_split, "n": config.test_n}
    return validate(EvalConfig, {**settings, **data, "model": f"run:{folder}@{name}", "attacks": config.evaluate})
