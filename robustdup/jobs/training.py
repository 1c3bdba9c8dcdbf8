"""A training run: a configuration becomes data, network, objective and attack, they run, and a record comes out."""

from __future__ import annotations

import contextlib
import functools
import platform
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustdup.attacks.isolation import isolated
from robustdup.attacks.losses import fooled
from robustdup.attacks.passes import Passes
from robustdup.config import EvalConfig, TrainConfig, parse_call, rerun_command, validate
from robustdup.data.batches import Stream, budget_samples
from robustdup.device import choose_device, count_operations
from robustdup.errors import UserError
from robustdup.jobs.evaluation import run_evaluation
from robustdup.jobs.training_data import HeldOut, TrainingData, prepare_data
from robustdup.models.architectures import build_network
from robustdup.models.attack_copy.layout import fits_channels_last
from robustdup.models.load import count_parameters, fingerprint, load_model
from robustdup.models.trained import NETWORK_FILE, describe_network, save_network, save_weights
from robustdup.plugins import AttackSpec, ObjectiveSpec, Registry, load_plugins
from robustdup.records import (
    RECORD_FILE,
    CheckpointResult,
    EvaluationRecord,
    Threat,
    TimeTo,
    TrainEnvironment,
    TrainingRecord,
    TrainProgress,
    ValidationPoint,
    load_record,
    load_training_record,
    now,
    save_training_record,
    versions,
)
from robustdup.records import folder as run_folder
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel
from robustdup.training.checkpoint import CHECKPOINT_FILE, FREE_TO_CHANGE
from robustdup.training.inner import CPU_ROWS, Inner, prepare_inner
from robustdup.training.loop import run_training as run_loop
from robustdup.training.objectives import check_model, find_objective
from robustdup.training.parts import Outcome, Parts, Validate
from robustdup.training.processes import Processes, open_processes
from robustdup.training.tracking import check_trackers
from robustdup.training.updates import UpdateRule, make_update

VALIDATION_ROWS = 128
SMALL = 2e8  # multiply-adds of an inner pass below which CPU threads wait for each other longer than they compute
BEST: Literal["best"] = "best"
LAST: Literal["last"] = "last"

Show = Callable[[TrainProgress], None]


def run_training(
    config: TrainConfig, *, folder: Path, registry: Registry | None = None, resume: bool = False,
    progress: Show = lambda _: None, command: str | None = None,
) -> TrainingRecord:  # fmt: skip
    """Train what `config` names and return the record; network, weights, record and evaluations are saved in `folder`.

    With `resume` an unfinished run in `folder` goes on, to the same weights; a finished one returns its record. Under
    `accelerate launch` or `torchrun` every process calls this, and the first one writes.
    Raises UserError for a mistake and RunError where no result can come out.
    """
    registry = registry if registry is not None else load_plugins(config.plugin)
    if resume and (folder / RECORD_FILE).is_file():
        run_folder.check_same(
            folder, config.model_dump(mode="json"), run_folder.saved_content(folder), elsewhere=FREE_TO_CHANGE
        )
        return load_training_record(folder)
    orders = check(config, registry)
    with contextlib.ExitStack() as stack:
        processes = stack.enter_context(open_processes(config.device))
        device = processes.device or choose_device(config.device)
        if processes.first:
            run_folder.start(folder, config.model_dump(mode="json"), resume=resume, elsewhere=FREE_TO_CHANGE)
            stack.enter_context(run_folder.locked(folder))
        processes.from_first("started")
        stack.enter_context(isolated())
        try:
            return _train(config, orders, registry, processes, device, folder, resume, progress, command)
        except UserError:
            if processes.first and not resume and not (folder / run_folder.STATE / CHECKPOINT_FILE).exists():
                (folder / NETWORK_FILE).unlink(missing_ok=True)
                run_folder.withdraw(folder)
            raise


def train(
    *, out: str | Path | None = None, resume: bool = False, progress: Show = lambda _: None, **options: Any
) -> TrainingRecord:
    """Train and return the record that `robustdup train` would write; `options` are the keys of `TrainConfig`.

    `robustdup.train(data="uoft-cs/cifar10", objective="trades(beta=6)", duplicate={"scheme": "uniform", "dose": 0.5})`.
    The run folder is `out`, or a new one in `runs`. Raises UserError for a mistake.
    """
    config = validate(TrainConfig, {**options, "out": None if out is None else str(out)})
    folder = Path(out) if out is not None else run_folder.fresh_folder("train", config.model, config.data)
    return run_training(config, folder=folder, resume=resume, progress=progress)


@dataclass(frozen=True)
class Orders:
    """What a configuration asks for, read and checked before anything is loaded."""

    threat: ThreatModel
    objective: ObjectiveSpec
    objective_options: dict[str, Any]
    update: UpdateRule
    inner: Inner
    referee: AttackSpec
    referee_options: dict[str, Any]


def check(config: TrainConfig, registry: Registry) -> Orders:
    """Return what the configuration asks for. Raises UserError for whatever cannot be."""
    check_trackers(config.track)
    budget_samples(2**31, 1, config.budget())  # of any data: what is given, and that it is above nothing
    threat = ThreatModel(config.norm, config.eps)
    objective, checked = find_objective(config.objective, registry)
    referee, referee_options = parse_call(config.validation_attack, "validation attack")
    spec = registry.get_attack(referee)
    if threat.norm not in spec.norms:
        raise UserError(f"The validation attack {referee!r} works in {', '.join(spec.norms)}, not in {threat.norm}.")
    return Orders(
        threat=threat, objective=objective, objective_options=checked,
        update=make_update(config.update, objective, checked, threat),
        inner=prepare_inner(config.attack, registry, threat, bn=config.inner_bn, smoothing=config.label_smoothing),
        referee=spec, referee_options=spec.check_options(referee_options),
    )  # fmt: skip


def _train(
    config: TrainConfig, orders: Orders, registry: Registry, processes: Processes, device: torch.device, folder: Path,
    resume: bool, progress: Show, command: str | None,
) -> TrainingRecord:  # fmt: skip
    say = functools.partial(_say, progress)
    data = prepare_data(config, registry, device, say=say)
    model = _network(config, data, registry)
    initial = fingerprint(model)
    if processes.first:
        save_network(
            folder,
            describe_network(
                config.model,
                channels=data.channels,
                size=data.size,
                classes=data.classes,
                mean=data.mean,
                std=data.std,
                class_names=data.info.class_names,
            ),
        )
    model = model.to(device)
    data.entries.channels_last = config.channels_last and fits_channels_last(model, device)
    check_model(orders.objective, model)
    options = dict(orders.objective_options)
    module = _objective_module(orders, model, data, config, device)
    if module is not None:
        options["module"] = module
    parts = Parts(
        model=model, objective=functools.partial(orders.objective.function, **options), update=orders.update,
        inner=orders.inner, stream=functools.partial(Stream, data.entries), entries=len(data.entries), module=module,
        processes=processes,
        kept={"data": data.info.fingerprint, "plan": data.plan.hash, "initial": initial},
        on_best=lambda weights: save_weights(folder, BEST, weights),  # before the run ends: it may be killed
    )  # fmt: skip
    threads = config.threads or usual_threads(model, data, device)
    outcome = run_loop(
        parts, config.model_copy(update={"threads": threads}), device=device, folder=folder, resume=resume,
        validate=validator(data.held_out, orders, config, device), progress=progress,
    )  # fmt: skip
    if not processes.first:
        return _record(config, orders, data, model, outcome, processes, device, threads, folder, initial, [], command)
    save_weights(folder, BEST, outcome.best)
    save_weights(folder, LAST, outcome.last)
    results = checkpoint_results(config, data, registry, outcome)
    _evaluate(config, registry, folder, results, say)
    record = _record(
        config, orders, data, model, outcome, processes, device, threads, folder, initial, results, command
    )
    save_training_record(record, folder)
    shutil.rmtree(folder / run_folder.STATE, ignore_errors=True)
    return record


def usual_threads(model: nn.Module, data: TrainingData, device: torch.device) -> int:
    """Return the CPU threads that suit a model where none are asked for: one for a small one, counted and not timed."""
    image = torch.zeros(data.channels, *data.size, device=device)
    small = device.type == "cpu" and count_operations(model, image) * CPU_ROWS < SMALL
    return 1 if small else torch.get_num_threads()


def _objective_module(
    orders: Orders, model: nn.Module, data: TrainingData, config: TrainConfig, device: torch.device
) -> nn.Module | None:
    """Build the weights that an objective has of its own, from the seed of the run."""
    if orders.objective.module is None:
        return None
    examples = torch.rand(2, data.channels, *data.size, device=device)
    with isolated(model, seed=config.seed):
        return orders.objective.module(model, examples, **orders.objective_options).to(device)  # type: ignore[no-any-return]


def _say(progress: Show, message: str) -> None:
    progress(
        TrainProgress(
            step=0,
            n_steps=0,
            epoch=0.0,
            loss=None,
            accuracy=None,
            clean_accuracy=None,
            robust_accuracy=None,
            images_per_second=0.0,
            seconds=0.0,
            seconds_left=None,
            message=message,
        )
    )


def _network(config: TrainConfig, data: TrainingData, registry: Registry) -> nn.Module:
    model = build_network(
        config.model, channels=data.channels, size=data.size, classes=data.classes, mean=data.mean, std=data.std,
        seed=config.seed, registry=registry,
    )  # fmt: skip
    if config.init is not None:
        start = load_model(config.init, registry=registry, allow_pickle=config.allow_pickle)
        try:
            model.load_state_dict(start.state_dict())
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(
                f"init = {config.init!r} has weights of another network than {config.model!r}: {reason}"
            ) from None
    return model


def validator(
    held_out: HeldOut | None, orders: Orders, config: TrainConfig, device: torch.device
) -> Validate | None:  # fmt: skip
    """Return what the loop asks about a candidate: clean and robust accuracy on the validation images, and the rows used."""
    if held_out is None:
        return None
    answers = point_by_point(held_out, orders, config, device)

    def ask(model: nn.Module) -> tuple[float, float, int, int]:
        right, held, passes = answers(model)
        n = len(right)
        return int(right.sum()) / n, int(held.sum()) / n, passes.count.forward, passes.count.backward

    return ask


def point_by_point(
    held_out: HeldOut, orders: Orders, config: TrainConfig, device: torch.device
) -> Callable[[nn.Module], tuple[Tensor, Tensor, Passes]]:  # fmt: skip
    """Return what tells of a model which images it gets right (N,), which also under attack (N,), and the passes of that.

    The attack starts alike for every model (draws are keyed by the images' rows), and is judged by a pass of its own.
    """
    images, labels = held_out.images.to(device), held_out.labels.to(device)
    rng = SampleRng(config.seed, held_out.index.to(device)).fold("validation attack")

    def answer(model: nn.Module) -> tuple[Tensor, Tensor, Passes]:
        passes = Passes(model, min(VALIDATION_ROWS, len(labels)))
        with torch.no_grad():
            clean = ~fooled(passes(images), labels)
        right = clean.nonzero().squeeze(1)
        function = orders.referee.function
        assert function is not None
        with isolated(model, seed=rng.call_seed()):
            adv_images = function(
                passes, images[right], labels[right], orders.threat, rng=rng[right], **orders.referee_options
            )
        adv_images = orders.threat.project(images[right], adv_images.detach())
        held = torch.zeros_like(clean)
        with torch.no_grad():
            held[right] = ~fooled(passes(adv_images), labels[right])
        return clean, held, passes

    return answer


def checkpoint_results(
    config: TrainConfig, data: TrainingData, registry: Registry, outcome: Outcome
) -> list[CheckpointResult]:
    """Return what validation said of best and last, with the fingerprints of their weights."""
    results = []
    seen = {point.step: point for point in outcome.validation}
    network = _network(config.model_copy(update={"init": None}), data, registry)
    for name, step, state in ((BEST, outcome.best_step, outcome.best), (LAST, outcome.last_step, outcome.last)):
        network.load_state_dict(state)
        point = seen.get(step)
        result = CheckpointResult(name=name, step=step, fingerprint=fingerprint(network))
        if point is not None:
            result.validation_clean, result.validation_robust = point.clean_accuracy, point.robust_accuracy
        results.append(result)
    return results


def _evaluate(
    config: TrainConfig, registry: Registry, folder: Path, results: list[CheckpointResult], say: Callable[[str], None]
) -> None:
    """Evaluate best and last on the test split with verified attacks; equal weights are evaluated once."""
    if not config.evaluate:
        return
    done: dict[str, EvaluationRecord] = {}
    for result in results:
        record = done.get(result.fingerprint)
        if record is None:
            say(f"evaluating {result.name} with {config.evaluate}")
            place = folder / f"evaluation-{result.name}"
            order = _evaluation(config, folder, result.name)
            finished = (place / RECORD_FILE).is_file()
            record = (
                load_record(place)
                if finished
                else run_evaluation(order, registry=registry, folder=place, resume=place.is_dir()).record
            )
            done[result.fingerprint] = record
        result.clean_accuracy, result.robust_accuracy = record.clean_accuracy, record.robust_accuracy
        result.n, result.attacks, result.evaluation = record.n, config.evaluate, record.run_id


def _evaluation(config: TrainConfig, folder: Path, name: str) -> EvalConfig:
    """Return the configuration of an evaluation of a checkpoint in `folder`."""
    return validate(
        EvalConfig,
        {
            "model": f"run:{folder}@{name}", "data": config.test_data or config.data, "split": config.test_split,
            "data_config": config.data_config, "revision": config.revision, "image_column": config.image_column,
            "label_column": config.label_column, "resize": config.resize, "crop": config.crop, "grey": config.grey,
            "n": config.test_n, "norm": config.norm, "eps": config.eps, "attacks": config.evaluate,
            "device": config.device, "seed": config.seed, "allow_pickle": config.allow_pickle, "plugin": config.plugin,
        },
    )  # fmt: skip


def _record(
    config: TrainConfig, orders: Orders, data: TrainingData, model: nn.Module, outcome: Outcome, processes: Processes,
    device: torch.device, threads: int, folder: Path, initial: str, results: list[CheckpointResult], command: str | None,
) -> TrainingRecord:  # fmt: skip
    stream = Stream(data.entries, config.batch_size, max(outcome.samples, 1))
    uses_attack = orders.objective.attacks
    return TrainingRecord(
        run_id=folder.name, created=now(), status=outcome.status, reason=outcome.reason,
        command=command or rerun_command("train", config), objective=config.objective, update=config.update,
        inner_attack=config.attack if uses_attack else "",
        threat=Threat(norm=orders.threat.norm, eps=orders.threat.radius, eps_text=orders.threat.eps_text),
        architecture=config.model, parameters=count_parameters(model),
        budget={key: float(value) for key, value in config.budget().items()},
        steps=outcome.steps, samples_seen=outcome.samples, unique_samples_seen=stream.unique_seen(outcome.samples),
        epochs=outcome.epochs, batch_size=config.batch_size, seconds=outcome.seconds,
        validation_seconds=outcome.validation_seconds, images_per_second=outcome.images_per_second,
        peak_memory=outcome.peak_memory, passes=outcome.passes, curve=outcome.curve, validation=outcome.validation,
        n_validation=0 if data.held_out is None else len(data.held_out.labels), n_kept_out=data.n_kept_out,
        time_to=times_to(outcome.validation, config.targets), checkpoints=results, data=data.info,
        duplication=data.duplication, initial_fingerprint=initial, events=[*data.events, *outcome.events],
        seed=config.seed, config=config.model_dump(mode="json"),
        environment=TrainEnvironment(
            device=str(device),
            device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
            threads=threads, processes=processes.count, python=platform.python_version(),
            platform=platform.platform(), precision=config.precision, compiled=outcome.compiled,
            channels_last=data.entries.channels_last, folded=orders.inner.folded,
        ),
        versions=versions({parse_call(config.attack, "attack")[0].split(":")[0]}),
    )  # fmt: skip


def times_to(points: list[ValidationPoint], targets: Iterable[float]) -> list[TimeTo]:
    """Return when validation first reached each target, clean and robust; None where it never did."""
    times = []
    for kind in ("clean", "robust"):
        for target in targets:
            first = next((p for p in points if getattr(p, f"{kind}_accuracy") >= target), None)
            times.append(
                TimeTo(
                    kind=kind,
                    target=target,
                    step=None if first is None else first.step,
                    samples=None if first is None else first.samples,
                    seconds=None if first is None else first.seconds,
                )
            )
    return times
