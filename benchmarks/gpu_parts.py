"""The parts of `benchmarks.gpu`, each a function that yields lines as it measures. On a CPU everything is small."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

import robustdup
from benchmarks.baselines import BASELINES, TRAINERS
from benchmarks.gpu import write
from benchmarks.timing_training import plain_trainer
from robustdup.config import TrainConfig, validate
from robustdup.data.augment import augment_images
from robustdup.data.cache import DatasetCache, caching
from robustdup.data.dataset import ImageDataset
from robustdup.jobs.training import run_training
from robustdup.models.architectures import build_network
from robustdup.plugins import load_plugins
from robustdup.precision import attack_precision, fp32_switches, fp32_switches_kept, set_tf32, training_precision
from robustdup.records import TrainingRecord, TrainProgress
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

Line = dict[str, Any]
EPS = "8/255"
WARM = 0.4  # share of the steps that are not timed: compiling, choosing kernels, the first clocks
FEW = 12_800  # images, of which the parts that measure no accuracy decode no more
EPOCHS = 30  # of a recipe that has the time
WORTH_COMPILING = 10  # epochs from which a recipe is compiled: for fewer it takes longer than it saves


@dataclass(frozen=True)
class Machine:
    """Where parts run and on what: `small` on a CPU. `data` is a spec of images 32x32, made up where none was given."""

    device: torch.device
    data: str
    split: str
    made_up: bool
    limit: float = 60.0  # seconds that the part has
    tell: Callable[[Line], None] = lambda line: None  # writes a line in the midst of a part

    @property
    def small(self) -> bool:
        """Whether everything is as small as will run."""
        return self.device.type == "cpu"

    @property
    def network(self) -> str:
        """The network that is measured."""
        return "small-resnet(width=4)" if self.small else "preact-resnet18"

    def wait(self) -> None:
        """Wait for what was started on the device."""
        if not self.small:
            torch.cuda.synchronize(self.device)


def run(name: str, *, data: str, device: str, out: Path, limit: float = 60.0) -> None:
    """Run one part, which has `limit` seconds, and write each line as it comes; on a CPU in one thread: small things wait."""
    kind = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if kind == "cpu" else threads)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        stack.enter_context(caching(DatasetCache()))  # runs of one part decode an image once
        there = Path(folder) / "made-up.npz"
        if not data:
            make_up(there, 160 if kind == "cpu" else 12_800)
        began = time.perf_counter()

        def tell(line: Line) -> None:
            write(out, {"part": name, **line, "at": round(time.perf_counter() - began, 2)})

        machine = Machine(torch.device(kind), data or str(there), "train" if data else "", not data, limit, tell)
        for line in FUNCTIONS[name](machine, Path(folder)):
            tell(line)


def make_up(file: Path, n: int) -> None:
    """Write n images of ten classes that a network can learn: noise about a colour and a place of the class's own."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 10
    images = rng.integers(60, 180, (n, 32, 32, 3))
    for number, label in enumerate(labels):
        row, column = 3 * label, 3 * (9 - label)
        images[number, row : row + 5, column : column + 5] += 70 * (label % 3 == np.arange(3))
    np.savez(file, image=images.clip(0, 255).astype(np.uint8), label=labels)


# --- the parts ---


def the_machine(machine: Machine, _: Path) -> Iterator[Line]:
    """What is here: versions, the device, the precisions that `auto` takes, torch's switches."""
    line: Line = {"torch": torch.__version__, "robustdup": robustdup.__version__, "device": str(machine.device)}
    line |= {"training_precision": training_precision("auto", machine.device), "made_up_data": machine.made_up}
    line |= {"attack_precision": attack_precision("auto", machine.device), "switches": list(fp32_switches())[:2]}
    if not machine.small:
        properties = torch.cuda.get_device_properties(machine.device)
        line |= {"name": properties.name, "memory": properties.total_memory, "cuda": torch.version.cuda}
    yield line


def bits(machine: Machine, _: Path) -> Iterator[Line]:
    """Whether draws and augmentations have the same bits here and on the CPU."""
    index = torch.arange(64) * 7919 + (5 << 32)
    here, there = SampleRng(1, index), SampleRng(1, index.to(machine.device))
    for draw in (0, 3):
        same = torch.equal(here.bits((33,), draw=draw), there.bits((33,), draw=draw).cpu())
        yield {"what": f"bits of draw {draw}", "same": same}
    yield {"what": "uniform", "same": torch.equal(here.uniform((7,)), there.uniform((7,)).cpu())}
    pixels = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    moved = augment_images(pixels.to(machine.device), there).cpu()
    yield {"what": "augmentation", "same": torch.equal(augment_images(pixels, here), moved)}
    normal = (here.normal((9,)) - there.normal((9,)).cpu()).abs().max()
    yield {"what": "normal draws", "largest_difference": float(normal)}


def broken(machine: Machine, _: Path) -> Iterator[Line]:
    """Whether the same samples are broken here and on the CPU, in three norms, in the precision of the attacks."""
    data, model = robustdup.load_data("builtin:digits", n=24), robustdup.load_model("builtin:digits-robust")
    attacks = "apgd-ce(steps=5),apgd-t(steps=4,targets=2),fab-t(steps=3,targets=2),square(queries=100)"
    for norm, eps in (("Linf", "0.15"), ("L2", "0.8"), ("L1", "3")):
        settings: dict[str, Any] = {
            "norm": norm, "eps": eps, "attacks": attacks, "individual": True, "progress": False,
            "micro_batch": 32, "diagnostics": False, "compile": "off",
        }  # fmt: skip
        first, *others = (
            robustdup.evaluate(model, data, **{**settings, "device": str(device), "precision": precision})
            for device, precision in (
                (torch.device("cpu"), "fp32"), (machine.device, "fp32"), (machine.device, "auto"),
            )
        )  # fmt: skip
        for other in others:
            counts = [attack.n_broken for attack in other.record.attacks]
            yield {
                "what": f"{norm} in {other.record.environment.attack_precision}", "broken": counts,
                "on_cpu": [attack.n_broken for attack in first.record.attacks],
                "same": list(first.outcomes) == list(other.outcomes),
            }  # fmt: skip


def training(machine: Machine, folder: Path) -> Iterator[Line]:
    """Training's images a second beside a plain loop under torch's own switches and under ours: what matters most first."""
    with fp32_switches_kept():
        plain = _plain_rate(machine, plain_trainer)
        yield {"what": "plain loop, torch's own switches", "images_per_second": plain}
        for precision, compiled in _ways(machine):
            name = f"robustdup {precision} compile={compiled}"
            try:
                rate, events = _rate(machine, folder / name.replace(" ", "-"), precision, compiled)
            except Exception as error:  # noqa: BLE001
                yield {"what": name, "error": str(error)[:500]}
                continue
            yield {"what": name, "images_per_second": rate, "training_over_plain_loop": rate / plain, "events": events}
        for switches in ("tf32", "fp32"):
            set_tf32(switches == "tf32", cuda=not machine.small)
            rate = _plain_rate(machine, plain_trainer)
            yield {"what": f"plain loop, {switches} switches", "images_per_second": rate}


def toolkits(machine: Machine, _: Path) -> Iterator[Line]:
    """Training's images a second of toolkits, under torch's own switches."""
    for name, trainer in TRAINERS.items():
        try:
            yield {"what": name, "images_per_second": _plain_rate(machine, trainer.function)}
        except Exception as error:  # noqa: BLE001
            yield {"what": name, "error": str(error)[:500]}


def attacks_timed(machine: Machine, folder: Path) -> Iterator[Line]:
    """The exact engine and `fast` beside the reference, on a network that was trained for a moment."""
    n = 8 if machine.small else 1000
    steps = 2 if machine.small else 150
    _trained(machine, folder / "net", objective="n_fgsm", steps=steps)
    model = robustdup.load_model(f"run:{folder / 'net'}@last")
    data = _load(machine, n)
    exact = "pgd(steps=2)" if machine.small else "autoattack"

    def timed(attacks: str, precision: Literal["auto", "fp32"]) -> tuple[float, Line]:
        began = time.perf_counter()
        done = robustdup.evaluate(
            model, data, eps=EPS, attacks=attacks, device=str(machine.device), precision=precision, progress=False,
            diagnostics=False,
        )  # fmt: skip
        seconds, ran = time.perf_counter() - began, done.record.environment
        return seconds, {
            "what": f"{attacks} {precision}", "seconds": seconds, "n": n, "robust": done.record.robust_accuracy.value,
            "precision": ran.attack_precision, "micro_batch": ran.micro_batch, "compiled": ran.compiled,
        }  # fmt: skip

    # What is promised first; strict fp32, which takes several times as long, last.
    took, line = timed("fast", "auto")
    yield {**line, "fast_seconds_for_10000": took * 10_000 / n}
    exact_took, line = timed(exact, "auto")
    yield line
    if not machine.small and importlib.util.find_spec("pyautoattack") is not None:
        images, labels = data.images.to(machine.device), data.labels.to(machine.device)
        network = model.to(machine.device).eval()
        for size in (1000, 500):
            began = time.perf_counter()
            BASELINES["pyautoattack"].function(
                network, images, labels, ThreatModel("Linf", EPS), batch_size=size, seed=0
            )
            machine.wait()
            took = time.perf_counter() - began
            yield {"what": f"pyautoattack, batch {size}", "seconds": took, "exact_over_pyautoattack": took / exact_took}
    for attacks in ("fast", exact):
        yield timed(attacks, "fp32")[1]


def memory(machine: Machine, folder: Path) -> Iterator[Line]:
    """Peak memory of a training step, and whether running out of memory is answered."""
    for batch in (16,) if machine.small else (128, 512, 2048):
        record = _trained(machine, folder / f"batch-{batch}", batch_size=batch, steps=2)
        yield {"what": f"peak memory at batch {batch}", "bytes": record.peak_memory}
    if machine.small:
        return
    total = torch.cuda.get_device_properties(machine.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 3e9 / total))
    data, model = robustdup.load_data("builtin:digits", n=64), robustdup.load_model("builtin:digits-robust")
    wide = nn.Sequential(nn.Upsample(scale_factor=64), nn.Conv2d(1, 32, 3), nn.AdaptiveAvgPool2d(8), _mean(), model)
    done = robustdup.evaluate(wide, data, eps="0.1", attacks="pgd(steps=2)", micro_batch=64, progress=False)
    yield {"what": "out of memory in an evaluation", "undecided": done.record.n_undecided, "events": done.record.events}


def n_fgsm(machine: Machine, folder: Path) -> Iterator[Line]:
    """N-FGSM for up to thirty epochs: seconds and accuracies."""
    yield from _recipe(machine, folder, objective="n_fgsm", ema=0.0)


def pgd(machine: Machine, folder: Path) -> Iterator[Line]:
    """PGD-10 with averaged weights for up to thirty epochs: seconds, and AutoAttack's verdict on 1,000 test images."""
    yield from _recipe(machine, folder, objective="pgd_at", ema=0.999)


def doses(machine: Machine, folder: Path) -> Iterator[Line]:
    """The published question at two doses of duplicates, for as many epochs as the time has."""
    for dose in (0.0, 0.5):
        plan = {"scheme": "uniform", "dose": dose} if dose else {}
        record = _trained(
            machine, folder / f"dose-{dose}", objective="n_fgsm", duplicate=plan, validation=16 if machine.small else 500,
            **({"steps": 2} if machine.small else {"epochs": 6.0}),
        )  # fmt: skip
        last = record.validation[-1]
        yield {"what": f"dose {dose}", "clean": last.clean_accuracy, "robust": last.robust_accuracy,
               "seconds": record.seconds}  # fmt: skip


FUNCTIONS: dict[str, Callable[[Machine, Path], Iterator[Line]]] = {
    "machine": the_machine, "bits": bits, "broken": broken, "training": training, "toolkits": toolkits,
    "attacks": attacks_timed, "memory": memory, "n_fgsm": n_fgsm, "pgd": pgd, "doses": doses,
}  # fmt: skip


# --- how it is measured ---


def _settings(machine: Machine, **options: Any) -> Line:
    batch = 16 if machine.small else 128
    usual = {
        "model": machine.network, "data": machine.data, "device": str(machine.device), "eps": EPS, "augment": "none",
        "attack": f"pgd(steps={2 if machine.small else 10},step_size=2/255)", "objective": "pgd_at", "batch_size": batch,
        "validation": 0, "evaluate": None, "lr": 0.1, "keep_near_duplicates": True, "seed": 0,
    }  # fmt: skip
    return usual | ({"split": machine.split} if machine.split else {}) | options


def _load(machine: Machine, n: int, split: str = "") -> ImageDataset:
    """Load the first n images of a split; made-up data have none."""
    split = "" if machine.made_up else split or machine.split
    return robustdup.load_data(machine.data, split=split, n=n) if split else robustdup.load_data(machine.data, n=n)


def _trained(machine: Machine, folder: Path, **options: Any) -> TrainingRecord:
    return robustdup.train(out=folder, **_settings(machine, **{"n": _few(machine), **options}))


def _few(machine: Machine) -> int | None:
    return None if machine.small else FEW


def _rate(machine: Machine, folder: Path, precision: str, compiled: str, **options: Any) -> tuple[float, list[str]]:
    """Return the images a second of the last steps of a run, and what the run noted."""
    steps, seen = (4 if machine.small else 120), list[tuple[int, float]]()

    def look(progress: TrainProgress) -> None:
        if progress.step:
            seen.append((progress.step, time.perf_counter()))

    settings = _settings(machine, n=_few(machine), precision=precision, compile=compiled, steps=steps, **options)
    record = run_training(validate(TrainConfig, settings), folder=folder, progress=look)
    first = next(moment for moment in seen if moment[0] >= WARM * steps or moment is seen[-2])
    rate = int(settings["batch_size"]) * (seen[-1][0] - first[0]) / max(seen[-1][1] - first[1], 1e-9)
    return rate, [event for event in record.events if machine.data not in event]  # made-up data have no splits


def _plain_rate(machine: Machine, trainer: Callable[..., None]) -> float:
    """Return the images a second of a trainer of `benchmarks.baselines`, after a first round."""
    n, batch = (32, 16) if machine.small else (2560, 128)
    data = _load(machine, n)
    images, labels = data.images.to(machine.device), data.labels.to(machine.device)
    threat, steps = ThreatModel("Linf", EPS), 2 if machine.small else 10
    epoch = functools.partial(trainer, steps=steps, step_size=2 / 255, batch_size=batch, lr=0.1, seed=0)
    network = build_network(
        machine.network, channels=3, size=(32, 32), classes=10, mean=(0.5,) * 3, std=(0.25,) * 3, seed=0,
        registry=load_plugins([]),
    ).to(machine.device)  # fmt: skip
    epoch(network, images[:0], labels[:0], threat)
    epoch(network, images[: 2 * batch], labels[: 2 * batch], threat)
    machine.wait()
    began = time.perf_counter()
    epoch(network, images, labels, threat)
    machine.wait()
    return n / (time.perf_counter() - began)


def _recipe(machine: Machine, folder: Path, **options: Any) -> Iterator[Line]:
    """Train a recipe, tell of each candidate as it is validated, and evaluate the best."""
    budget: Line = {"steps": 3}
    if not machine.small:
        rate, _ = _rate(machine, folder / "short", "auto", "off", objective=options["objective"])
        epochs = epochs_for(rate, FEW if machine.made_up else 50_000, machine.limit)
        budget = {"epochs": epochs, "compile": "on" if epochs >= WORTH_COMPILING else "off"}
        yield {"what": "budget", **budget, "images_per_second_before": rate}
    seen: list[float | None] = [None]

    def look(progress: TrainProgress) -> None:
        if progress.robust_accuracy not in seen:  # at once: time may run out
            seen.append(progress.robust_accuracy)
            machine.tell({"what": "candidate", "step": progress.step, "clean": progress.clean_accuracy,
                          "robust": progress.robust_accuracy, "seconds": progress.seconds})  # fmt: skip

    usual = {"augment": "crop-flip", "schedule": "one-cycle", "lr": 0.2, "weight_decay": 5e-4, "precision": "auto"}
    held = {"validation": 16 if machine.small else 500}
    settings = validate(TrainConfig, _settings(machine, **usual, **held, **budget, **options))
    record = run_training(settings, folder=folder / "run", progress=look)
    yield {"what": "training", "seconds": record.seconds, "validation_seconds": record.validation_seconds,
           "precision": record.environment.precision, "images_per_second": record.images_per_second}  # fmt: skip
    attacks = "pgd(steps=2)" if machine.small else "autoattack"
    data = _load(machine, 8 if machine.small else 1000, "test")
    done = robustdup.evaluate(
        robustdup.load_model(f"run:{folder / 'run'}"), data, eps=EPS, attacks=attacks, device=str(machine.device),
        progress=False,
    )  # fmt: skip
    robust = done.record.robust_accuracy.value
    goal = {} if machine.made_up or machine.small else {"robust_accuracy": robust}
    yield {"what": attacks, "clean": done.record.clean_accuracy.value, "robust": robust, **goal}


def epochs_for(rate: float, n: int, limit: float) -> float:
    """Return the epochs of n images, at most 30, that half of `limit` seconds has at so many images a second."""
    return min(float(EPOCHS), max(0.5, round(rate * limit / 2 / n, 1)))


def _ways(machine: Machine) -> list[tuple[str, str]]:
    """Return (precision, compile) in the order in which they are measured: what is promised first, then all precisions."""
    words = get_args(TrainConfig.model_fields["precision"].annotation)
    first = [] if machine.small else [("bf16", "cudagraphs"), ("bf16", "on"), ("bf16", "off"), ("tf32", "off")]
    return first + [way for word in words if word != "auto" and (way := (word, "off")) not in first]


def _mean() -> nn.Module:
    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            """Return the mean over channels (N, 1, H, W), between 0 and 1."""
            return images.mean(dim=1, keepdim=True).sigmoid()

    return Mean()
