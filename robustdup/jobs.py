"""The one place that assembles: a configuration becomes objects, they run, and a record comes out.

Commands, notebooks, study cells, benches and workers all call `evaluate` here.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import json
import platform
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from robustdup.attacks.isolation import isolated
from robustdup.attacks.passes import Count, Passes
from robustdup.config import EvalConfig, parse_attacks, validate
from robustdup.data.labelled import LabelledImages, from_tensors
from robustdup.data.sources import DataOptions, load_images
from robustdup.errors import RunError, UserError, unknown
from robustdup.evaluation import diagnostics
from robustdup.evaluation.bundle import EXAMPLES, Verification, check_manifest, read_claims, read_examples, recheck
from robustdup.evaluation.cascade import Bench, CascadeResult, PlannedStage, Points, fresh_copy, run_cascade
from robustdup.evaluation.metrics import accuracy
from robustdup.evaluation.referee import Judged, judge_images
from robustdup.evaluation.summary import attack_results, class_results, sample_rows
from robustdup.models.load import fingerprint, load_model
from robustdup.records import (
    RECORD_FILE,
    CurvePoint,
    DataInfo,
    Diagnostic,
    Environment,
    EvaluationRecord,
    ModelInfo,
    PassTotals,
    Progress,
    Threat,
    load_record,
    now,
    save_record,
    save_samples,
    write_atomic,
)
from robustdup.registry import AttackSpec, Registry, Stage, load_plugins
from robustdup.threat import ThreatModel

STATE = "state"
CONFIG_FILE = "config.json"
WORST_FILE = "images/adversarial.safetensors"
PROBE_POINTS = 64


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
    data: LabelledImages | None = None,
    registry: Registry | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    folder: Path | None = None,
    resume: bool = False,
    command: str | None = None,
) -> Evaluation:
    """Evaluate what `config` names and return record, samples and worst images; with a `folder` they are saved there.

    `model` and `data` replace those of the configuration (notebooks). With `resume` an unfinished run in `folder` goes on.
    Raises UserError for a mistake and RunError where no result came out; a KeyboardInterrupt leaves a partial record.
    """
    started = time.perf_counter()
    registry = registry if registry is not None else load_plugins(config.plugin)
    threats = parse_threats(config)
    events: list[str] = []
    stages = plan(config, registry, threats[-1], events)
    data = data if data is not None else _load_data(config, registry)
    device = choose_device(config.device)
    original = (
        model if model is not None else load_model(config.model, registry=registry, allow_pickle=config.allow_pickle)
    )
    stand_in = (
        None
        if config.attack_model is None
        else load_model(config.attack_model, registry=registry, allow_pickle=config.allow_pickle)
    )
    if folder is not None:
        _open_folder(folder, config, resume)

    with isolated(original), isolated(stand_in):
        was_training = any(module.training for module in original.modules())
        bench = _bench(config, original, stand_in, device)
        weights = fingerprint(bench.judged.model)
        clean, num_classes, randomized = _clean_verdict(bench, data, config, weights, folder)
        bench.draws = config.judge_draws if randomized else 1
        points = Points(data.images, data.labels, data.index, clean)
        results: list[CascadeResult] = []
        for threat in threats:
            state = None if folder is None else folder / STATE / f"eps-{threat.eps_text.replace('/', '_')}"
            results.append(
                run_cascade(
                    stages, points, threat, bench, individual=config.individual, folder=state, progress=progress
                )
            )
        signs, probe_passes = (
            _diagnose(bench, points, results, config, was_training, randomized, num_classes)
            if config.diagnostics
            else ([], Count())
        )
        if fingerprint(bench.judged.model) != weights:
            raise RunError("The judged model's weights changed during the run: its results cannot be trusted.")
        final = _final(bench, points, results, randomized, config)

    record = _record(
        config, data, original, stand_in, threats, results, points, final, signs, events, bench,
        weights=weights, num_classes=num_classes, randomized=randomized,
        probe_passes=probe_passes, seconds=time.perf_counter() - started, folder=folder, command=command,
    )  # fmt: skip
    rows = sample_rows(points, data.hashes, results)
    if folder is not None:
        _save(folder, record, rows, results[-1].worst, points, config)
    return Evaluation(record, rows, results[-1].worst, folder)


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    norm: str = "Linf",
    eps: str | float = "8/255",
    attacks: str | Sequence[Any] = "default",
    out: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
    **options: Any,
) -> EvaluationRecord:
    """Evaluate a model on images in memory and return the record that `robustdup eval` would write.

    `images` (N, C, H, W) in [0, 1], `labels` (N,) int64; `attacks` is text as on the command line, or a list of names and
    of functions marked with `@robustdup.attack`. `options` are the other keys of `EvalConfig`. With `out` a run folder is
    written. Raises UserError for a mistake.
    """
    registry = load_plugins(options.get("plugin") or ())
    config = validate(
        EvalConfig,
        {
            **options, "model": "python", "data": "python", "norm": norm, "eps": str(eps),
            "attacks": attacks if isinstance(attacks, str) else ",".join(_named(a, registry) for a in attacks),
            "out": str(out) if out is not None else None,
        },
    )  # fmt: skip
    data = _given_data(images, labels, config)
    folder = Path(out) if out is not None else None
    return run_evaluation(
        config, model=model, data=data, registry=registry, progress=progress, folder=folder, resume=resume,
        command="robustdup.evaluate(…)",
    ).record  # fmt: skip


def _given_data(images: Any, labels: Any, config: EvalConfig) -> LabelledImages:
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
    registry.add_attack(attack)
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
        members = registry.stages(name, {**config.options.get(name, {}), **options})
        for stage in members:
            spec = registry.get_attack(stage.attack)
            if threat.norm in spec.norms or spec.kind == "unbounded":
                stages.append(_planned(stage, spec, registry, config))
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
    return stages


def _planned(stage: Stage, spec: AttackSpec, registry: Registry, config: EvalConfig) -> PlannedStage:
    options = dict(stage.options)
    if config.loss is not None and "loss" in spec.parameters and "loss" not in options:
        options["loss"] = config.loss
    if config.eot > 1 and "eot" in spec.parameters and "eot" not in options:
        options["eot"] = config.eot
    options = spec.check_options(options)
    call_options = dict(options)
    if spec.source == "native" and isinstance(options.get("loss"), str):
        if options["loss"] not in registry.losses:
            raise unknown("loss", options["loss"], registry.losses)
        call_options["loss"] = registry.losses[options["loss"]].function
    return PlannedStage(spec, options, call_options, stage.take)


def choose_device(text: str) -> torch.device:
    """Return the device that `text` names; `auto` takes a GPU where there is one. Raises UserError."""
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise unknown("device", text, ["auto", "cpu", "cuda", "cuda:0", "mps"]) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"Device {text!r} is not there: {torch.cuda.device_count()} CUDA devices are. Use --device auto."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("Device 'mps' is not available here. Use --device auto.")
    return device


def _load_data(config: EvalConfig, registry: Registry) -> LabelledImages:
    options = DataOptions(
        split=config.split, config=config.data_config, revision=config.revision, image_column=config.image_column,
        label_column=config.label_column, resize=config.resize, crop=config.crop, grey=config.grey,
    )  # fmt: skip
    return load_images(config.data, options, n=config.n, sample=config.sample, seed=config.seed, registry=registry)


def _bench(config: EvalConfig, original: nn.Module, stand_in: nn.Module | None, device: torch.device) -> Bench:
    """Copy the model for judging and for attacking, in the right mode, on the device."""
    micro_batch = config.micro_batch or (256 if device.type == "cuda" else 32)
    judged = _placed(original, device, config.mode)
    attacked = judged if stand_in is None else _placed(stand_in, device, config.mode)
    return Bench(
        judged=Passes(judged, micro_batch),
        attacked=attacked,
        device=device,
        batch_size=config.batch_size or (512 if device.type == "cuda" else 128),
        micro_batch=micro_batch,
        draws=1,
        seed=config.seed,
    )


def _placed(model: nn.Module, device: torch.device, mode: str) -> nn.Module:
    with contextlib.suppress(RuntimeError, TypeError, AttributeError):
        model = copy.deepcopy(
            model
        )  # one that cannot be copied is judged as it is; its weights are compared at the end
    model = model.to(device)
    return model.eval() if mode == "eval" else model


def _judge_clean(bench: Bench, data: LabelledImages, config: EvalConfig) -> tuple[Judged, int, bool]:
    """Judge the clean images; find the number of classes and randomness. Raises UserError where it cannot take them."""
    images, labels = data.images.to(bench.device), data.labels.to(bench.device)
    shape = tuple(images.shape[1:])
    try:
        with torch.no_grad(), isolated(bench.judged.model):
            logits = bench.judged(images[: bench.micro_batch])
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"The model cannot take images of shape {shape}: {error}. Check channels (--grey) and size (--resize, --crop)."
        ) from error
    bench.judged.count = Count()
    if not bool(logits.isfinite().all()):
        raise UserError(
            "The model returns NaN or infinite logits on clean images. Check its weights and normalisation."
        )
    if int(labels.max()) >= logits.shape[1]:
        raise UserError(
            f"The labels go up to {int(labels.max())}, but the model has {logits.shape[1]} outputs. "
            "Do model and data belong together?"
        )
    few = slice(0, bench.micro_batch)
    randomized = diagnostics.is_randomized(bench.judged, images[few], labels[few])
    bench.judged.count = Count()
    draws = config.judge_draws if randomized else 1
    while True:
        try:
            clean = judge_images(bench.judged, images, labels, draws=draws, seed=config.seed)
            break
        except (torch.OutOfMemoryError, MemoryError):
            if not bench.judged.micro_batch or bench.judged.micro_batch == 1:
                raise RunError("Out of memory with a single image in a batch.") from None
            bench.judged.micro_batch //= 2
    if not bool(clean.margin.isfinite().all()):
        raise UserError(
            "The model returns NaN or infinite logits on clean images. Check its weights and normalisation."
        )
    return clean, logits.shape[1], randomized


def _clean_verdict(
    bench: Bench, data: LabelledImages, config: EvalConfig, weights: str, folder: Path | None
) -> tuple[Judged, int, bool]:
    """Judge the clean images, or take the saved verdict of the run that goes on.

    Returns the verdict, the number of classes and whether the model is randomised. Raises UserError where the data or
    the weights are no longer those that the run was started with.
    """
    path = None if folder is None else folder / STATE / "clean.safetensors"
    if path is not None and path.is_file():
        with safe_open(path, framework="pt") as file:
            head = file.metadata()
            saved = Judged(*(file.get_tensor(name) for name in ("prediction", "margin", "correct_share")))
        for what, mine in (("data", data.fingerprint), ("weights", weights)):
            if head[what] != mine:
                raise UserError(f"The {what} are not those that the run in {str(folder)!r} was started with.")
        return saved, int(head["num_classes"]), head["randomized"] == "True"
    clean, num_classes, randomized = _judge_clean(bench, data, config)
    if path is not None:
        head = {
            "data": data.fingerprint, "weights": weights,
            "num_classes": str(num_classes), "randomized": str(randomized),
        }  # fmt: skip
        write_atomic(path, save_tensors({**vars(clean)}, metadata=head))
    return clean, num_classes, randomized


def _diagnose(
    bench: Bench, points: Points, results: list[CascadeResult], config: EvalConfig,
    was_training: bool, randomized: bool, num_classes: int,
) -> tuple[list[Diagnostic], Count]:  # fmt: skip
    """Look at the model and at what the attacks did; returns the signs and the passes that the look cost."""
    right = (~points.clean.broken).nonzero()[:PROBE_POINTS, 0]
    signs = diagnostics.of_accuracy(float(points.clean.correct_share.mean()), num_classes)
    spent = Count()
    if len(right):
        judged = Passes(bench.judged.model, bench.micro_batch)
        attacked = Passes(fresh_copy(bench.attacked), bench.micro_batch)
        with isolated(attacked.model, seed=config.seed):
            found = diagnostics.probe(
                judged, attacked, points.images[right].to(bench.device), points.labels[right].to(bench.device),
                points.index[right].to(bench.device), config.norm, config.seed,
            )  # fmt: skip
        spent = judged.count + attacked.count
        signs += diagnostics.of_model(
            found, was_training=was_training, mode=config.mode, randomized=randomized, draws=config.judge_draws
        )
    for result in results:
        signs += diagnostics.of_cascade(result)
    n = len(points.labels)
    alone = {r.threat.eps_text: float((~points.clean.broken & ~r.broken).sum()) / n for r in results}
    signs += diagnostics.of_curve(alone, n)
    unique = {(sign.code, sign.message): sign for sign in signs}
    return list(unique.values()), spent


@dataclass(frozen=True)
class _Final:
    """Per point (N,): correct answers on the final example (1 or 0, a share if randomised), before and after 8 bits."""

    correct: Tensor
    undecided: Tensor
    correct_8bit: Tensor


def _final(bench: Bench, points: Points, results: list[CascadeResult], randomized: bool, config: EvalConfig) -> _Final:
    """Take the worst case over all eps, and judge the final examples once more: rounded, or by fresh draws."""
    last = results[-1]
    for smaller in results[:-1]:  # what breaks a point within a smaller ball breaks it within this one
        worse = smaller.broken & ~last.broken
        for name in ("worst", "margin", "correct_share"):
            getattr(last, name)[worse] = getattr(smaller, name)[worse]
        last.broken |= smaller.broken
    last.undecided &= ~last.broken
    labels = points.labels.to(bench.device)
    correct = (~points.clean.broken & ~last.broken).double()
    if randomized:
        fresh = judge_images(
            bench.judged, last.worst.to(bench.device), labels, draws=config.judge_draws, seed=config.seed + 1
        )
        correct = fresh.correct_share
    rounded = (last.worst.to(bench.device) * 255).round() / 255
    judged = judge_images(bench.judged, rounded, labels, draws=bench.draws, seed=config.seed + 2)
    correct_8bit = torch.where(last.broken, judged.correct_share, correct)
    correct = torch.where(last.undecided, 0.0, correct)
    return _Final(correct, last.undecided, torch.where(last.undecided, 0.0, correct_8bit))


def _record(
    config: EvalConfig, data: LabelledImages, original: nn.Module, stand_in: nn.Module | None,
    threats: list[ThreatModel], results: list[CascadeResult], points: Points, final: _Final, signs: list[Diagnostic],
    events: list[str], bench: Bench, *, weights: str, num_classes: int, randomized: bool,
    probe_passes: Count, seconds: float, folder: Path | None, command: str | None,
) -> EvaluationRecord:  # fmt: skip
    """Put everything together that one needs to trust the result and to run it again."""
    n = len(points.labels)
    population = data.n_total if data.selection in ("first", "sample") and n < data.n_total else None
    undecided = int(final.undecided.sum())
    attacks = attack_results(results[-1], points)
    calls = [call for result in results for stage in result.stages for call in stage.calls]
    spent = sum((call.attack_passes for call in calls), Count())
    refereed = sum((call.referee_passes for call in calls), Count())
    return EvaluationRecord(
        run_id=folder.name if folder is not None else "in-memory",
        created=now(),
        status="failed" if calls and all(call.verdict is None for call in calls) else "complete",
        command=command or rerun_command(config),
        n=n,
        threat=Threat(norm=threats[-1].norm, eps=threats[-1].radius, eps_text=threats[-1].eps_text),
        tolerance=threats[-1].tolerance,
        clean_accuracy=accuracy(points.clean.correct_share.numpy(), population=population),
        robust_accuracy=accuracy(final.correct.numpy(), population=population, undecided=undecided),
        robust_accuracy_8bit=float(final.correct_8bit.mean()),
        n_undecided=undecided,
        attacks=attacks,
        individual=config.individual,
        interval_about=_interval_text(n, population),
        curve=_curve(results, points, population) if len(threats) > 1 else {},
        curve_attacks={r.threat.eps_text: attack_results(r, points) for r in results} if len(threats) > 1 else {},
        per_class=class_results(
            points.labels, data.class_names, num_classes, points.clean.correct_share, final.correct
        ),
        diagnostics=signs,
        events=[*events, *dict.fromkeys(note for call in calls for note in call.notes)],
        passes=PassTotals(
            clean=n * bench.draws,
            attacks_forward=spent.forward,
            attacks_backward=spent.backward,
            referee=refereed.forward,
            diagnostics_forward=probe_passes.forward,
            diagnostics_backward=probe_passes.backward,
            padding=spent.padding + refereed.padding + probe_passes.padding,
        ),
        seconds=seconds,
        seed=config.seed,
        config=config.model_dump(mode="json"),
        data=DataInfo(
            spec=data.spec,
            split=data.split,
            config=data.config,
            revision=data.revision,
            n_total=data.n_total,
            selection=data.selection,
            image_shape=list(data.images.shape[1:]),
            class_names=list(data.class_names),
            fingerprint=data.fingerprint,
        ),
        model=ModelInfo(
            spec=config.model,
            architecture=type(original).__name__,
            fingerprint=weights,
            num_classes=num_classes,
            parameters=sum(p.numel() for p in original.parameters()),
            mode=config.mode,
            randomized=randomized,
            judge_draws=bench.draws,
            attack_model=config.attack_model,
            attack_model_fingerprint=fingerprint(stand_in) if stand_in is not None else None,
        ),
        environment=environment(bench),
        versions=versions({*(attack.source for attack in attacks), config.model.split(":")[0]}),
    )


def _curve(results: list[CascadeResult], points: Points, population: int | None) -> dict[str, CurvePoint]:
    right = ~points.clean.broken
    broken, undecided = torch.zeros_like(right), torch.zeros_like(right)
    curve = {}
    for result in results:
        alone = float((right & ~result.broken & ~result.undecided).double().mean())
        broken = broken | result.broken
        undecided = result.undecided & ~broken
        at = accuracy(
            (right & ~broken & ~undecided).double().numpy(), population=population, undecided=int(undecided.sum())
        )
        curve[result.threat.eps_text] = CurvePoint(**at.model_dump(), eps=result.threat.radius, alone=alone)
    return curve


def _interval_text(n: int, population: int | None) -> str:
    about = f"the whole split of {population} images" if population is not None else "images like these"
    return (
        f"95% Wilson intervals about {about}, from {n}. They cover the choice of images, "
        "not the strength of the attack or its seed."
    )


def environment(bench: Bench) -> Environment:
    """Return where this runs and how it packs rows."""
    cuda = bench.device.type == "cuda"
    return Environment(
        device=str(bench.device),
        device_name=torch.cuda.get_device_name(bench.device) if cuda else (platform.processor() or platform.machine()),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        platform=platform.platform(),
        micro_batch=bench.micro_batch,
        batch_size=bench.batch_size,
    )


def versions(sources: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions of robustdup, of what it computes with, and of the toolkits behind the given sources."""
    toolkits = {
        "torchattacks": ("torchattacks",),
        "art": ("adversarial-robustness-toolbox",),
        "foolbox": ("foolbox",),
        "robustbench": ("pyautoattack", "robustbench"),
        "pyautoattack": ("pyautoattack",),
    }
    names = ["robustdup", "torch", "torchvision", "numpy", "datasets", "scikit-learn"]
    names += [package for source in sorted(set(sources)) for package in toolkits.get(source, ())]
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def rerun_command(config: EvalConfig) -> str:
    """Return the command line that runs this configuration again."""
    words = ["robustdup", "eval"]
    defaults = EvalConfig()  # type: ignore[call-arg]
    for name, value in config.model_dump(mode="json").items():
        if name != "out" and value != getattr(defaults, name):
            text = value if isinstance(value, str) else json.dumps(value)
            words.append(f"{name}={text}")
    return shlex.join(words)


def default_folder(config: EvalConfig) -> Path:
    """Return `runs/<time>-<model>-<data>` for a run without a folder of its own."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", f"{config.model.split('@')[0]}-{config.data}").strip("-")[-60:]
    return Path("runs") / f"{time.strftime('%Y-%m-%dT%H%M%S')}-{slug}"


def saved_config(folder: Path) -> EvalConfig:
    """Return the configuration with which the run in `folder` was started. Raises UserError where there is none."""
    for path, key in ((folder / STATE / CONFIG_FILE, None), (folder / RECORD_FILE, "config")):
        if path.is_file():
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except json.JSONDecodeError as error:
                raise UserError(f"{str(path)!r} is not a whole JSON file ({error}).") from None
            return validate(EvalConfig, content if key is None else content[key])
    raise UserError(f"{str(folder)!r} holds no run to resume.")


def _open_folder(folder: Path, config: EvalConfig, resume: bool) -> None:
    """Start a run folder, or check that the one to resume was started with the same configuration."""
    state = folder / STATE / CONFIG_FILE
    mine = _comparable(config.model_dump(mode="json"))
    if state.is_file():
        if not resume:
            raise UserError(
                f"{str(folder)!r} holds an unfinished run. Go on with it by --resume, or choose another --out."
            )
        theirs = _comparable(saved_config(folder).model_dump(mode="json"))
        different = [key for key in mine if mine[key] != theirs.get(key)]
        if different:
            key = different[0]
            raise UserError(
                f"The run in {str(folder)!r} was started with {key}={theirs.get(key)!r}, not {mine[key]!r}. "
                "Resume it with the same settings, or choose another --out."
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{str(folder)!r} is not empty. Choose another --out; nothing is overwritten.")
    write_atomic(state, (json.dumps(config.model_dump(mode="json"), indent=2) + "\n").encode())


def _comparable(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in ("out", "plugin", "device")}


def _save(
    folder: Path,
    record: EvaluationRecord,
    rows: dict[str, list[Any]],
    worst: Tensor,
    points: Points,
    config: EvalConfig,
) -> None:
    """Write images, samples and, last, the record; then the state of the run is no longer needed."""
    if config.save_images:
        tensors = {"images": worst.contiguous(), "labels": points.labels, "index": points.index}
        write_atomic(folder / WORST_FILE, save_tensors(tensors))
    save_samples(rows, folder)
    save_record(record, folder)
    if record.n_undecided == 0:
        shutil.rmtree(folder / STATE, ignore_errors=True)


def verify_bundle(folder: Path, changes: Mapping[str, Any] | None = None) -> Verification:
    """Recheck a bundle with the referee alone: hashes, then every example on the model and data that are loaded here.

    `changes` are keys of EvalConfig that differ on this machine (data in another place, say). Raises UserError where the
    bundle was changed, or where data or weights are not those that it speaks of.
    """
    started = time.perf_counter()
    check_manifest(folder)
    record = load_record(folder)
    config = validate(EvalConfig, {**record.config, "out": None, "device": "auto", **(changes or {})})
    if "python" in (config.model, config.data):
        raise UserError(
            "This bundle was made from objects in memory: name what to load with --model and --data, "
            "or call robustdup.verify(folder, model, images, labels)."
        )
    registry = load_plugins(config.plugin)
    data = _load_data(config, registry)
    model = load_model(config.model, registry=registry, allow_pickle=config.allow_pickle)
    return _verify(folder, record, config, model, data, started)


def verify(
    bundle: str | Path, model: nn.Module, images: Tensor, labels: Tensor, *, device: str = "auto"
) -> Verification:
    """Recheck a bundle on a model and images in memory: images (N, C, H, W) in [0, 1], labels (N,) int64."""
    started = time.perf_counter()
    folder = Path(bundle)
    check_manifest(folder)
    record = load_record(folder)
    config = validate(EvalConfig, {**record.config, "out": None, "device": device})
    data = _given_data(images, labels, config)
    return _verify(folder, record, config, model, data, started)


def _verify(
    folder: Path, record: EvaluationRecord, config: EvalConfig, model: nn.Module, data: LabelledImages, started: float
) -> Verification:
    bench = _bench(config, model, None, choose_device(config.device))
    for what, stated, mine in (
        ("data", record.data.fingerprint, data.fingerprint),
        ("weights", record.model.fingerprint, fingerprint(bench.judged.model)),
    ):
        if stated != mine:
            raise UserError(
                f"The bundle is refused: the {what} here are not those of the bundle ({mine[:12]}, not {stated[:12]})."
            )
    adv, _, index = read_examples(folder / EXAMPLES)
    claims = read_claims(folder)
    if index is None or index.tolist() != data.index.tolist() or claims.index != data.index.tolist():
        raise UserError("The bundle is refused: its examples are not of the points that its record names.")
    if claims.hashes != list(data.hashes):
        raise UserError("The bundle is refused: the clean images are not those that its samples name.")
    threat = ThreatModel(record.threat.norm, record.threat.eps_text)
    found = recheck(
        bench.judged, data.images.to(bench.device), adv.to(bench.device), data.labels.to(bench.device), threat,
        claims=claims, draws=record.model.judge_draws, seed=config.seed + 1,
    )  # fmt: skip
    allowed = found.within_rounding / max(found.n, 1) + (0.05 if record.model.randomized else 1e-9)
    if abs(found.robust_accuracy - record.robust_accuracy.value) > allowed:
        found.problems.append(
            f"The record states a robust accuracy of {record.robust_accuracy.value:.4f}; its examples show "
            f"{found.robust_accuracy:.4f}."
        )
    return found.model_copy(update={"accepted": not found.problems, "seconds": time.perf_counter() - started})


def verify_examples(path: Path, config: EvalConfig) -> Verification:
    """Judge a file of adversarial examples from any tool, in the order of the points that `config` names.

    Labels or an index in the file must agree with the data. Raises UserError where shapes or labels do not fit.
    """
    started = time.perf_counter()
    adv, labels, index = read_examples(path)
    registry = load_plugins(config.plugin)
    if config.n is None and config.sample is None and index is None:
        config = config.model_copy(update={"n": len(adv)})
    data = _load_data(config, registry)
    rows = slice(None)
    if index is not None:
        places = {number: row for row, number in enumerate(data.index.tolist())}
        missing = [number for number in index.tolist() if number not in places]
        if missing:
            raise UserError(
                f"The file holds an example of point {missing[0]}, which is not among the {len(places)} points."
            )
        rows = torch.tensor([places[number] for number in index.tolist()])  # type: ignore[assignment]
    images, truth = data.images[rows], data.labels[rows]
    if adv.shape != images.shape:
        raise UserError(f"The file holds examples of shape {tuple(adv.shape)}; the points have {tuple(images.shape)}.")
    if labels is not None and not torch.equal(labels, truth):
        raise UserError("The labels in the file are not those of the data. Is the order the same?")
    model = load_model(config.model, registry=registry, allow_pickle=config.allow_pickle)
    bench = _bench(config, model, None, choose_device(config.device))
    at = bench.device
    found = recheck(bench.judged, images.to(at), adv.to(at), truth.to(at), parse_threats(config)[-1], seed=config.seed)
    return found.model_copy(update={"seconds": time.perf_counter() - started})
