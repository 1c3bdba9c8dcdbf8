"""One measurement in a fresh process: `python -m benchmarks.contender ORDER`, with the order as JSON.

The process loads model and data, says {"event": "started"} on standard output, makes one attack call, and says what came
of it, a line of JSON each. What toolkits print goes to standard error.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from benchmarks.baselines import BASELINES
from benchmarks.options import TimingConfig
from robustdup import jobs
from robustdup.attacks.isolation import isolated
from robustdup.attacks.passes import Passes
from robustdup.config import validate
from robustdup.data.dataset import ImageDataset, from_tensors
from robustdup.data.sources import load_images
from robustdup.device import choose_device
from robustdup.errors import UserError
from robustdup.evaluation.referee import judge, judge_images
from robustdup.models.load import load_model
from robustdup.plugins import Registry, load_plugins
from robustdup.records import versions
from robustdup.runners.local import usable_cores
from robustdup.threat import ThreatModel


class Counted(nn.Module):
    """A model that counts its rows: those that go in, and those of the gradients that come back to its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forward_rows = 0
        self.backward_rows = 0
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> the model's logits (N, K)."""
        self.forward_rows += images.shape[0]
        logits: Tensor = self.model(images)
        if logits.requires_grad:
            logits.register_hook(self._came_back)  # type: ignore[no-untyped-call]
        return logits

    def _came_back(self, gradient: Tensor) -> None:
        self.backward_rows += gradient.shape[0]


@dataclass
class Task:
    """What every contender is given: the frozen model, the points on its device, and the threat."""

    config: TimingConfig
    registry: Registry
    model: nn.Module
    data: ImageDataset
    device: torch.device
    threat: ThreatModel
    threads: int


def load(config: TimingConfig, n: int, threads: int) -> Task:
    """Load model and data and freeze the weights. Raises UserError for what the configuration gets wrong."""
    torch.set_num_threads(threads)
    registry = load_plugins(config.plugin)
    device = choose_device(config.device)
    evaluation = config.evaluation()
    threats = jobs.parse_threats(evaluation)
    if len(threats) > 1:
        raise UserError(f"A benchmark compares at one eps; got {config.eps!r}.")
    model = load_model(config.model, registry=registry, allow_pickle=config.allow_pickle).to(device)
    model.requires_grad_(False)
    data = load_images(config.data, config.data_options(), n=n, registry=registry)
    with torch.no_grad():
        model(data.images[:1].to(device))
    return Task(config, registry, model, data, device, threats[0], threads)


def run_baseline(task: Task, name: str, batch_size: int | None, started: Callable[[], None]) -> dict[str, Any]:
    """Call a baseline on all points and judge what comes back; passes are counted around the model."""
    baseline = BASELINES[name].function
    images, labels = task.data.images.to(task.device), task.data.labels.to(task.device)
    settings: dict[str, Any] = {"batch_size": batch_size, "seed": task.config.seed}
    with contextlib.suppress(Exception):  # without images it only imports what it needs
        baseline(task.model, images[:0].clone(), labels[:0].clone(), task.threat, **settings)
    counted = Counted(task.model)

    def call() -> Any:
        with isolated(seed=task.config.seed):
            return baseline(counted, images.clone(), labels.clone(), task.threat, **settings)

    adv_images, cost = timed(call, task.device, started)
    if not isinstance(adv_images, Tensor) or adv_images.shape != images.shape:
        got = f"shape {tuple(adv_images.shape)}" if isinstance(adv_images, Tensor) else f"a {type(adv_images).__name__}"
        raise UserError(f"Baseline {name!r} must return images of shape {tuple(images.shape)}; it returned {got}.")
    passes = {
        "forward_passes": counted.forward_rows,
        "backward_passes": counted.backward_rows,
        "counted_by": "benchmark",
    }
    return {**cost, **passes, **verdict(task, adv_images)}


def run_ours(task: Task, text: str, started: Callable[[], None]) -> dict[str, Any]:
    """Run one of robustdup's own, as `robustdup eval` would; passes are those of its record.

    Like that command it loads the model itself, and shares a long run between processes of one thread where the model is
    too small to keep several threads busy; their start is in the time.
    """
    alone = task.threads == 1 or task.device.type != "cpu"
    shared = {"diagnostics": False, "threads": task.threads if alone else None, "save_images": False}
    warm = task.config.evaluation(attacks="noise(draws=1)", **shared)
    jobs.run_evaluation(warm, data=first_points(task.data), registry=task.registry)
    config = task.config.evaluation(attacks=text, **shared)

    def call() -> jobs.Evaluation:
        return jobs.run_evaluation(config, data=task.data, registry=task.registry, spread=not alone)

    result, cost = timed(call, task.device, started)
    record = result.record
    if record.status == "failed":
        raise UserError("; ".join(dict.fromkeys(error for attack in record.attacks for error in attack.errors)))
    passes, notes = record.passes, list(record.events)
    if record.n_undecided:
        notes.append(f"{record.n_undecided} points are undecided: an attack failed on them.")
    return {
        **cost,
        "forward_passes": passes.clean + passes.attacks_forward + passes.referee + passes.diagnostics_forward,
        "backward_passes": passes.attacks_backward + passes.diagnostics_backward,
        "padding_rows": passes.padding,
        "counted_by": "robustdup",
        "undecided": record.n_undecided,
        "notes": notes,
        **verdict(task, result.adv_images),
    }


def first_points(data: ImageDataset) -> ImageDataset:
    """Return the first point alone, as data of its own."""
    return from_tensors(data.images[:1], data.labels[:1], spec=data.spec)


def timed(call: Callable[[], Any], device: torch.device, started: Callable[[], None]) -> tuple[Any, dict[str, Any]]:
    """Return what `call` returns, with its seconds and the memory that it took above what was held before.

    They are CPU seconds where one thread of a CPU computes: other work on the machine does not count then.
    """
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    reset_peak(device)
    before = peak(device)
    with memory_held() as held:
        started()
        start = clock()
        result = call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = clock() - start
    own, children = (max(column) for column in zip(*held, strict=True))
    if device.type == "cuda":
        own = 0  # what the GPU holds is asked of its allocator
    return result, {"seconds": seconds, "memory_bytes": max(0, peak(device) - before, own) + children}


@contextlib.contextmanager
def memory_held() -> Iterator[list[tuple[int, int]]]:
    """Look four times a second at the bytes that this process took on top, and at those of the processes started since.

    The kernel's own high-water mark misses nothing between two looks, but not every container lets it be set back.
    """
    process, over = psutil.Process(), threading.Event()
    before, held = process.memory_info().rss, [(0, 0)]
    there = {child.pid for child in process.children(recursive=True)}

    def look() -> None:
        while not over.wait(0.25):
            with contextlib.suppress(psutil.Error):  # a child may end while it is looked at
                started = [child for child in process.children(recursive=True) if child.pid not in there]
                children = sum(child.memory_info().rss for child in started)
                held.append((process.memory_info().rss - before, children))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield held
    finally:
        over.set()
        watcher.join()


def reset_peak(device: torch.device) -> None:
    """Let the high-water mark start from what is held now, where the system can."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # Linux alone, https://docs.kernel.org/filesystems/proc.html
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Return the most bytes held at once: by the CUDA allocator, or resident in this process.

    `ru_maxrss` of a process begins with that of its parent on Linux, so the kernel's own mark is read where it is there.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def verdict(task: Task, adv_images: Tensor) -> dict[str, Any]:
    """Judge images that came back: a point counts as robust that the model gets right on the clean image and on these."""
    images, labels = task.data.images.to(task.device), task.data.labels.to(task.device)
    model = Passes(task.model, 256)
    clean = judge_images(model, images, labels)
    judged = judge(model, images, adv_images.to(images), labels, task.threat)
    right, robust = ~clean.is_adv, ~(clean.is_adv | judged.is_adv)
    return {
        "clean_accuracy": float(right.double().mean()),
        "robust_accuracy": float(robust.double().mean()),
        "violations": int((judged.violation != 0).sum()),
    }


def where(task: Task) -> dict[str, str]:
    """Return what the times depend on: device, processor, platform and versions."""
    name = torch.cuda.get_device_name(task.device) if task.device.type == "cuda" else cpu_name()
    return {
        "device": str(task.device), "device_name": name, "cpu": cpu_name(), "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()), "platform": platform.platform(),
        **versions(("torchattacks", "art", "robustbench")),
    }  # fmt: skip


def cpu_name() -> str:
    """Return the processor's name, as the system gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def measure(order: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
    """Load, call and report: `order` holds config, contender, batch_size, n and threads."""
    try:
        task = load(validate(TimingConfig, order["config"]), order["n"], order["threads"])
    except Exception as error:  # noqa: BLE001
        say({"event": "not loaded", "reason": str(error) or type(error).__name__, "user": isinstance(error, UserError)})
        return
    name, batch_size = order["contender"], order["batch_size"]

    def started() -> None:
        say({"event": "started"})

    try:
        result = run_baseline(task, name, batch_size, started) if name in BASELINES else run_ours(task, name, started)
    except Exception as error:  # a toolkit may fail in any way: its row says how  # noqa: BLE001
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        say({"event": "failed", "reason": reason, "place": f"{Path(place.filename).name}:{place.lineno}"})
        return
    say({"event": "done", "environment": where(task), **result})


def end_with_parent() -> None:
    """End this process and what it started when standard input ends: the parent holds the other side, and has died."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        if os.getpgrp() == os.getpid():  # a session of its own, as the benchmark starts it
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str]) -> None:
    """Make the measurement that the order asks for; standard output carries its lines and nothing else."""
    end_with_parent()
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")

    def say(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=lines, flush=True)

    order = json.loads(arguments[0])
    # This process and what it starts have so many cores; Linux alone can hold them there.
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setaffinity(0, usable_cores()[: order["threads"]])
    measure(order, say)


if __name__ == "__main__":
    main(sys.argv[1:])
