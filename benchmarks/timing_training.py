"""Adversarial training side by side: robustdup's loop, a plain PyTorch loop, and what toolkits offer, in images a second.

All train the same network from the same weights on the same images, with the same PGD (steps, step size, radius), batch
size, optimizer and threads, one epoch at a time, in turn. Only training is timed, in CPU seconds where one thread computes.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from benchmarks.baselines import TRAINERS
from benchmarks.measured import Ratio, Spread, spread
from benchmarks.precisions import made_ready
from benchmarks.train_options import TrainTimingConfig
from robustdup.attacks.isolation import isolated
from robustdup.config import DataOptions
from robustdup.data.sources import load_images
from robustdup.device import choose_device
from robustdup.errors import RobustdupError, UserError, unknown
from robustdup.models.architectures import build_network
from robustdup.plugins import Registry, load_plugins
from robustdup.records import Part, now, versions
from robustdup.threat import ThreatModel

OURS, OURS_FP32, PLAIN = "robustdup", "robustdup-fp32", "pytorch-loop"
LR = 0.05  # small: all are timed at the same rate, and none may diverge
Say = Callable[[str], None]


class Trainer(Part):
    """A contender over its repeats: images a second, and how many times quicker robustdup was in the same repeat."""

    contender: str
    about: str
    status: Literal["done", "failed"]
    images_per_second: Spread | None = None
    ratio: Ratio | None = None
    reason: str = ""


class TrainTimingResult(Part):
    """The result of `python -m benchmarks.timing train`."""

    schema_name: Literal["benchmarks-train"] = "benchmarks-train"
    schema_version: Literal[1] = 1
    created: str
    config: dict[str, Any]
    parameters: int
    image_shape: list[int]
    device: str
    threads: int
    contenders: list[Trainer]
    versions: dict[str, str] = Field(default_factory=dict)


def run_train_timing(config: TrainTimingConfig, *, say: Say = lambda _: None) -> TrainTimingResult:
    """Time every contender `repeats` times, in turn, and return images a second and ratios.

    Raises UserError for a mistake; a contender that fails is listed with its reason.
    """
    registry = load_plugins(config.plugin)
    threat = ThreatModel(config.norm, config.eps)
    device = choose_device(config.device)
    data = load_images(config.data, DataOptions(split=config.split), n=config.n, registry=registry)
    images, labels = data.images.to(device), data.labels.to(device)
    classes = len(data.class_names) or int(labels.max()) + 1
    mean, std = images.mean(dim=(0, 2, 3)).tolist(), images.std(dim=(0, 2, 3)).tolist()
    network = build_network(
        config.model, channels=images.shape[1], size=(images.shape[2], images.shape[3]), classes=classes,
        mean=mean, std=std, seed=config.seed, registry=registry,
    )  # fmt: skip
    with _threads(config.threads) as threads:
        contenders = _contenders(config, registry, network.to(device), images, labels, threat)
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        failed: dict[str, str] = {}
        for repeat in range(config.repeats):
            names = list(contenders) if repeat % 2 == 0 else list(contenders)[::-1]
            for name in names:
                if name not in failed:
                    say(f"{name}, repeat {repeat + 1} of {config.repeats}")
                    try:
                        seconds[name].append(contenders[name][1]())
                    except RobustdupError as error:
                        failed[name] = str(error)
    return TrainTimingResult(
        created=now(), config=config.model_dump(mode="json"), parameters=sum(p.numel() for p in network.parameters()),
        image_shape=list(images.shape[1:]), device=str(device), threads=threads,
        contenders=[
            _summary(name, about, seconds[name], seconds[OURS], failed.get(name, ""), len(images))
            for name, (about, _) in contenders.items()
        ],
        versions=versions({"torchattacks", "art"}),
    )  # fmt: skip


def _contenders(
    config: TrainTimingConfig,
    registry: Registry,
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
) -> dict[str, tuple[str, Callable[[], float]]]:
    """Return what each contender is, and a function that trains one epoch and returns its seconds."""
    known = {PLAIN: ("a plain PyTorch loop with PGD written out", plain_trainer)}
    known |= {name: (each.description, each.function) for name, each in TRAINERS.items()}
    own = [OURS] if config.precision == "fp32" else [OURS, OURS_FP32]
    wanted = [name.strip() for name in config.contenders.split(",")] if config.contenders else [*own, *known]
    for name in wanted:
        if name not in (*own, *known):
            raise unknown("contender", name, [*own, *known])
    if OURS not in wanted:
        raise UserError(f"The contenders are compared with {OURS!r}, which is not among {config.contenders!r}.")
    settings = {
        "steps": config.steps, "step_size": 2.5 * threat.radius / config.steps, "batch_size": config.batch_size,
        "lr": LR, "seed": config.seed,
    }  # fmt: skip

    def toolkit(trainer: Callable[..., None]) -> Callable[[], float]:
        def run() -> float:
            model = copy.deepcopy(network)
            trainer(model, images[:0], labels[:0], threat, **settings)  # imports are not timed
            started = now_on(images.device)
            trainer(model, images, labels, threat, **settings)
            return now_on(images.device) - started

        return run

    ours = "robustdup's own loop: PGD on a folded copy, input gradients only, micro-batches that fit the cache"
    contenders: dict[str, tuple[str, Callable[[], float]]] = {}
    for name in own:
        precision = config.precision if name == OURS else "fp32"
        contenders[name] = (f"{ours}, in {precision}", functools.partial(_own_epoch, config, precision))
    contenders |= {name: (about, toolkit(trainer)) for name, (about, trainer) in known.items()}
    return {name: contenders[name] for name in wanted}


def _own_epoch(config: TrainTimingConfig, precision: str) -> float:
    """Train for one epoch as `robustdup train` does, without validation, evaluation or augmentation; return its seconds."""
    settings = {
        "model": config.model, "data": config.data, "split": config.split, "n": config.n, "objective": "pgd_at",
        "attack": f"pgd(steps={config.steps})", "norm": config.norm, "eps": config.eps, "inner_bn": config.inner_bn,
        "augment": "none", "epochs": 1.0, "batch_size": config.batch_size, "lr": LR, "schedule": "constant",
        "validation": 0, "evaluate": None, "precision": precision, "compile": config.compile,
        "device": config.device, "threads": config.threads, "seed": config.seed, "plugin": config.plugin,
    }  # fmt: skip
    with made_ready(settings) as trainer:
        started = now_on(trainer.device)
        for number, batch, share in trainer.batches():
            trainer.train_on(number, batch, share)
        return now_on(trainer.device) - started


def now_on(device: torch.device) -> float:
    """Return seconds: of one CPU thread its own, which others on the machine do not change; else those of the clock."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def plain_trainer(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, steps: int, step_size: float,
    batch_size: int, lr: float, seed: int,
) -> None:  # fmt: skip
    """Train `model` for one epoch as a tutorial would: PGD written out, the model in train mode, SGD with momentum.

    https://arxiv.org/abs/1706.06083. Raises UserError unless the norm is Linf.
    """
    if threat.norm != "Linf":
        raise UserError(f"The plain loop is written for Linf, not for {threat.norm}.")
    eps = threat.radius
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    with isolated(seed=seed):
        model.train()
        for rows in torch.split(torch.randperm(len(images), device=images.device), batch_size):
            clean, truth = images[rows], labels[rows]
            adv_images = (clean + torch.empty_like(clean).uniform_(-eps, eps)).clamp(0, 1)
            for _ in range(steps):
                adv_images.requires_grad_(True)
                (gradient,) = torch.autograd.grad(F.cross_entropy(model(adv_images), truth), adv_images)
                moved = adv_images.detach() + step_size * gradient.sign()
                adv_images = torch.minimum(torch.maximum(moved, clean - eps), clean + eps).clamp(0, 1)
            optimizer.zero_grad()
            F.cross_entropy(model(adv_images), truth).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def _summary(name: str, about: str, own_seconds: list[float], ours: list[float], reason: str, n: int) -> Trainer:
    if reason or not own_seconds:
        return Trainer(contender=name, about=about, status="failed", reason=reason)
    pairs = [theirs / own for theirs, own in zip(own_seconds, ours, strict=False)]
    ratio = None if name == OURS else Ratio(**spread(pairs).model_dump(), to=OURS, pairs=len(pairs))
    return Trainer(
        contender=name,
        about=about,
        status="done",
        images_per_second=spread([n / seconds for seconds in own_seconds]),
        ratio=ratio,
    )


@contextmanager
def _threads(wanted: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    if wanted is not None:
        torch.set_num_threads(wanted)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
