"""An evaluation: a configuration becomes model, data, attacks and workers, they run, and a record comes out."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.attacks.isolation import isolated
from robustdup.attacks.passes import Count
from robustdup.config import EvalConfig, parse_attacks, validate
from robustdup.data.dataset import ImageDataset, from_tensors
from robustdup.data.sources import load_images
from robustdup.errors import RunError, UserError, unknown
from robustdup.evaluation import diagnostics
from robustdup.evaluation.bench import (
    Bench,
    check_unchanged,
    choose_device,
    clean_verdict,
    cpu_threads,
    make_bench,
    remarks,
)
from robustdup.evaluation.calls import Call, Caller, PlannedStage, Work, make_call
from robustdup.evaluation.cascade import CascadeResult, Points, run_cascade
from robustdup.evaluation.equip import dress, equip
from robustdup.evaluation.folder import STATE, locked, open_folder, save_run
from robustdup.evaluation.record import Run, make_record
from robustdup.evaluation.summary import min_distance, sample_rows
from robustdup.models.load import fingerprint, load_model
from robustdup.plugins import AttackSpec, Registry, Stage, load_plugins
from robustdup.records import EvaluationRecord, Progress
from robustdup.runners import WorkerPlace, open_runner
from robustdup.runners.local import usable_cores
from robustdup.threat import ThreatModel

WORTH_WORKERS = 30.0  # seconds that a run must threaten to take before starting other processes for it
MOST_WORKERS = 8  # started unasked: each holds torch and the model


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation leaves: the record, the rows of samples.parquet, and the worst images (N, C, H, W)."""

    record: EvaluationRecord
    samples: dict[str, list[Any]]
    worst: Tensor
    folder: Path | None


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
    """Evaluate what `config` names and return record, samples and worst images; with a `folder` they are saved there.

    `model`, `attack_model` and `data` replace those of the configuration (notebooks). With `resume` an unfinished run in
    `folder` goes on. With `spread` a long run may start workers of its own accord, for callers whose main module can be
    imported again. Raises UserError for a mistake and RunError where no result can come out.
    """
    started = time.perf_counter()
    registry = registry if registry is not None else load_plugins(config.plugin)
    threats = parse_threats(config)
    events: list[str] = []
    stages = plan(config, registry, threats[-1], events)
    data = data if data is not None else load_data(config, registry)
    events += data.notes
    device = choose_device(config.device)
    original, stand_in = _models(config, model, attack_model, registry)
    for name, given in (("model", original), ("attack model", stand_in)):
        if given is not None and not isinstance(given, nn.Module):
            raise UserError(f"The {name} must be a torch.nn.Module, got a {type(given).__name__}.")
    was_training = any(module.training for module in original.modules())
    with contextlib.ExitStack() as stack:
        if folder is not None:
            open_folder(folder, config, resume)
            stack.enter_context(locked(folder))
        stack.enter_context(isolated(original))
        stack.enter_context(isolated(stand_in))
        bench = make_bench(config, original, stand_in, device)
        stack.enter_context(cpu_threads(config, bench, data.images[0]))
        events += remarks(original, bench)
        weights = fingerprint(bench.judged.model)
        clean = clean_verdict(bench, data, config, weights, folder)
        bench.draws = config.judge_draws if clean.randomized else 1
        events += equip(bench, config, data.images, clean, stages, folder)
        points = Points(data.images, data.labels, data.index, clean.judged)
        caller = stack.enter_context(
            _workers(config, model, attack_model, bench, points, clean.randomized, weights, spread)
        )
        results: list[CascadeResult] = []
        for threat in threats:
            state = None if folder is None else folder / STATE / f"eps-{threat.eps_text.replace('/', '_')}"
            result = run_cascade(
                stages, points, threat, bench, individual=config.individual, minimise=config.min_distance, folder=state,
                progress=progress, caller=caller,
            )  # fmt: skip
            results.append(result)
        signs, probe_passes = (
            diagnostics.diagnose(bench, points, clean, results, config, was_training=was_training)
            if config.diagnostics
            else ([], Count())
        )
        check_unchanged(bench, data.images, clean, weights)
        run = Run(config, data, original, stand_in, weights, bench, points, clean, results, signs, probe_passes, events)
        record = make_record(run, seconds=time.perf_counter() - started, folder=folder, command=command)
        nearest = min_distance(points, results) if config.min_distance else None
        rows, worst = sample_rows(points, data.hashes, results, nearest), results[-1].worst
        if folder is not None:
            save_run(folder, record, rows, worst, data, config)
    return Evaluation(record, rows, worst, folder)


@dataclass(frozen=True)
class WorkerOrder:
    """What a worker needs to make calls as the parent would: models only where they were given as objects."""

    config: EvalConfig
    model: nn.Module | None
    attack_model: nn.Module | None
    weights: str
    micro_batch: int
    smaller: tuple[int, ...]
    judge_micro_batch: int | None
    draws: int
    usual_margin: float
    examples: Tensor
    randomized: bool


@contextlib.contextmanager
def _workers(
    config: EvalConfig, model: nn.Module | None, attack_model: nn.Module | None, bench: Bench, points: Points,
    randomized: bool, weights: str, spread: bool,
) -> Iterator[Caller | None]:  # fmt: skip
    """Open the workers that the configuration asks for; None where this process makes the calls itself."""
    bench.workers = config.workers or _usual_workers(config, model, bench, spread)
    if bench.workers == 1 and config.runner == "local":
        yield None
        return
    right = (~points.clean.broken).nonzero()[: bench.micro_batch, 0]
    order = WorkerOrder(
        config=config, model=model, attack_model=attack_model, weights=weights, micro_batch=bench.micro_batch,
        smaller=bench.smaller, judge_micro_batch=bench.judged.micro_batch, draws=bench.draws,
        usual_margin=bench.usual_margin, examples=points.images[right], randomized=randomized,
    )  # fmt: skip
    share = max(1, len(usable_cores()) // bench.workers)
    with open_runner(
        config.runner,
        bench.workers,
        functools.partial(evaluation_worker, order),
        devices=None if config.device == "auto" and bench.device.type == "cuda" else (str(bench.device),),
        threads=config.threads or min(torch.get_num_threads(), share),
        describe=lambda work: f"the call of stage {work.number + 1} on {len(work.rows)} points",
    ) as runner:
        yield runner.map


def _usual_workers(config: EvalConfig, model: nn.Module | None, bench: Bench, spread: bool) -> int:
    """Return how many workers to take where none are asked for: cores that one thread would leave idle are used.

    A model given as an object may be one that cannot be sent; then, and for other devices, this process works alone.
    """
    if config.runner != "local":
        return len(usable_cores())
    idle = spread and bench.device.type == "cpu" and torch.get_num_threads() == 1
    if not idle or bench.longest < WORTH_WORKERS or model is not None:
        return 1
    return min(len(usable_cores()), MOST_WORKERS)


def evaluation_worker(order: WorkerOrder, place: WorkerPlace) -> Callable[[Work], Call]:
    """Set up one worker of an evaluation: it loads the model anew and makes the calls that it is given."""
    config = order.config
    torch.set_num_threads(place.threads)
    sys.stdout = sys.stderr  # what a model prints here must not stand between the lines of the parent's record
    registry = load_plugins(config.plugin)
    stages = plan(config, registry, parse_threats(config)[-1], [])
    original, stand_in = _models(config, order.model, order.attack_model, registry)
    bench = make_bench(config, original, stand_in, torch.device(place.device or "cpu"))
    if fingerprint(bench.judged.model) != order.weights:
        raise RunError(f"Worker {place.number} loaded other weights for {config.model!r} than the parent has.")
    bench.micro_batch, bench.judged.micro_batch = order.micro_batch, order.judge_micro_batch
    bench.smaller, bench.draws, bench.usual_margin = order.smaller, order.draws, order.usual_margin
    if any(stage.spec.batching == "pool" for stage in stages) and len(order.examples):
        dress(bench, config, order.examples.to(bench.device), order.randomized)
    return lambda work: make_call(work, stages, bench)


def _models(
    config: EvalConfig, model: nn.Module | None, attack_model: nn.Module | None, registry: Registry
) -> tuple[nn.Module, nn.Module | None]:
    """Return the model to judge, given or loaded, and the one to attack where it is another."""
    load = functools.partial(load_model, registry=registry, allow_pickle=config.allow_pickle)
    if attack_model is None and config.attack_model is not None:
        attack_model = load(config.attack_model)
    return model if model is not None else load(config.model), attack_model


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str = "Linf",
    eps: str | float | None = None,
    attacks: str | Sequence[Any] = "autoattack",
    attack_model: nn.Module | str | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
    **options: Any,
) -> EvaluationRecord:
    """Evaluate a model on images in memory and return the record that `robustdup eval` would write.

    `images` (N, C, H, W) in [0, 1], `labels` (N,) int64; `eps` is 8/255, 0.5 or 12 by norm if not given. `attacks` is text
    as on the command line, or a list of names and of functions marked with `@robustdup.attack`. `attack_model` is attacked
    in place of the model (BPDA, a surrogate). `options` are the other keys of `EvalConfig`. With `out` a run folder is
    written. Raises UserError for a mistake.
    """
    registry = load_plugins(options.get("plugin") or ())
    config = validate(
        EvalConfig,
        {
            **options, "model": "python", "data": "python", "norm": norm, "eps": "" if eps is None else str(eps),
            "attacks": attacks if isinstance(attacks, str) else ",".join(_named(a, registry) for a in attacks),
            "out": str(out) if out is not None else None,
            "attack_model": attack_model if isinstance(attack_model, str | None) else "python",
        },
    )  # fmt: skip
    data = given_data(images, labels, config)
    folder = Path(out) if out is not None else None
    return run_evaluation(
        config, model=model, attack_model=None if isinstance(attack_model, str) else attack_model, data=data,
        registry=registry, progress=progress, folder=folder, resume=resume, command="robustdup.evaluate(…)",
    ).record  # fmt: skip


def given_data(images: Any, labels: Any, config: EvalConfig) -> ImageDataset:
    if config.sample is not None:
        raise UserError("sample= is for datasets that are loaded. Index images and labels yourself, or use n=.")
    if config.n is not None and config.n > len(images):
        raise UserError(f"n = {config.n} is above the {len(images)} images given.")
    rows = slice(None, config.n)
    return from_tensors(images[rows], labels[rows], spec="python")


def _named(attack: Any, registry: Registry) -> str:
    if isinstance(attack, str):
        return attack
    spec = getattr(attack, "__robustdup_attack__", None)
    if not isinstance(spec, AttackSpec):
        raise UserError(f"{attack!r} is neither an attack's name nor a function marked with @robustdup.attack.")
    registry.add_attack(replace(spec, source="python"))
    return spec.name


def parse_threats(config: EvalConfig) -> list[ThreatModel]:
    """Return the threat models that `eps` names, smallest first: the last is the one of the verdict. Raises UserError."""
    texts = [text.strip() for text in config.eps.split(",") if text.strip()]
    if not texts:
        raise UserError("eps is empty. Write for instance --eps 8/255.")
    threats = {threat.eps: threat for threat in (ThreatModel(config.norm, text) for text in texts)}
    return [threats[eps] for eps in sorted(threats)]


def plan(config: EvalConfig, registry: Registry, threat: ThreatModel, events: list[str]) -> list[PlannedStage]:
    """Return the stages that the configuration names, their options checked. Raises UserError before anything runs."""
    named = parse_attacks(config.attacks)
    for name in config.options:
        if name not in {attack for attack, _ in named}:
            raise unknown("attack in options:", name, [attack for attack, _ in named])
    stages: list[PlannedStage] = []
    for name, options in named:
        if name.startswith("autoattack") and config.precision != "fp32":
            raise UserError(
                f"{name!r} means fp32, not {config.precision}: low precision changes which steps are taken. "
                "Use --attacks fast, or --precision fp32."
            )
        written = {**config.options.get(name, {}), **options}
        members = registry.stages(name, written)
        for stage in members:
            spec = registry.get_attack(stage.attack)
            if stage.norms and threat.norm not in stage.norms:
                continue
            if threat.norm in spec.norms or spec.kind == "unbounded":
                stages.append(_planned(stage, spec, registry, config, written))
            elif len(members) > 1:
                events.append(f"{stage.attack} of {name} does not know {threat.norm} and was left out.")
            else:
                able = [
                    other.name for other in registry.attacks.values() if threat.norm in other.norms and other.available
                ]
                raise UserError(
                    f"Attack {spec.name!r} works in {', '.join(spec.norms)}, not in {threat.norm}. "
                    f"Attacks for {threat.norm}: {', '.join(sorted(able)[:8])}, … (robustdup attacks list --norm {threat.norm})."
                )
    if not stages:
        raise UserError(f"No stage of {config.attacks!r} works in {threat.norm}.")
    if config.min_distance:
        stages = _minimising(stages, registry, config, events)
    for flag, given in (("loss", config.loss is not None), ("eot", config.eot > 1)):
        if given and not any(flag in stage.options for stage in stages):
            raise UserError(
                f"--{flag} is for native gradient attacks such as pgd; none of {config.attacks!r} takes it."
            )
    return stages


def _minimising(
    stages: list[PlannedStage], registry: Registry, config: EvalConfig, events: list[str]
) -> list[PlannedStage]:
    """Let minimum-norm attacks search to the end; where there is none, add the native one of published strength."""
    if not any(stage.spec.kind == "minimum-norm" for stage in stages):
        events.append(
            "min_distance: fab-t was added, since none of the attacks looks for the nearest adversarial image."
        )
        stages = [*stages, _planned(Stage("fab-t"), registry.get_attack("fab-t"), registry, config, {})]
    switch = {"stop_within_eps": False}
    return [
        replace(stage, options={**stage.options, **switch}, call_options={**stage.call_options, **switch})
        if "stop_within_eps" in stage.spec.parameters
        else stage
        for stage in stages
    ]


def _planned(
    stage: Stage, spec: AttackSpec, registry: Registry, config: EvalConfig, written: Mapping[str, Any]
) -> PlannedStage:
    """Check the options of a stage; --loss and --eot go to native attacks, where no such option was written with them."""
    options = dict(stage.options)
    if spec.source == "native":
        general = {"loss": config.loss, "eot": config.eot if config.eot > 1 else None}
        options |= {
            name: value
            for name, value in general.items()
            if value is not None and name in spec.parameters and name not in written
        }
    options = spec.check_options(options)
    call_options = dict(options)
    if spec.source == "native" and isinstance(options.get("loss"), str):
        if options["loss"] not in registry.losses:
            raise unknown("loss", options["loss"], registry.losses)
        call_options["loss"] = registry.losses[options["loss"]].function
    return PlannedStage(spec, options, call_options, stage.take, stage.when)


def load_data(config: EvalConfig, registry: Registry) -> ImageDataset:
    return load_images(
        config.data, config.data_options(), n=config.n, sample=config.sample, seed=config.seed, registry=registry
    )
