"""What attacks run on: the judged original, copies to attack, the device, and how rows are packed."""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from robustdup.attacks.isolation import isolated
from robustdup.attacks.passes import Count, Passes
from robustdup.config import EvalConfig
from robustdup.data.dataset import ImageDataset
from robustdup.errors import RunError, UserError, unknown
from robustdup.evaluation.folder import STATE
from robustdup.evaluation.referee import Judged, judge_images
from robustdup.models.load import fingerprint
from robustdup.records import write_atomic

if TYPE_CHECKING:
    from robustdup.models.prepare import Prepared

SMALL = 1e9  # a micro-batch of fewer multiply-adds (some 20 ms) is computed by one thread


@dataclass
class Bench:
    """What attacks run on: the judged original, the model to attack, and how rows are packed.

    Every call of a wrapped attack gets a fresh copy of `attacked`, so that it may ruin it and harm neither the judge nor
    the next attack; native attacks share `prepared`. Points in a call: `batch_size`, where given; rows in a padded model
    call: `micro_batch`, and `smaller` numbers at which it computes the same bits. `seconds` are those of a row, (forward,
    forward and backward), where they were measured.
    """

    judged: Passes
    attacked: nn.Module
    device: torch.device
    batch_size: int
    micro_batch: int
    draws: int
    seed: int
    copied: bool = True  # False where the model refuses: then attacks run on the judged model itself
    stand_in: bool = False  # whether `attacked` is another model than the judged one
    prepared: Prepared | None = None
    smaller: tuple[int, ...] = ()
    seconds: tuple[float, float] | None = None
    longest: float = 0.0  # seconds that the run would take in one process if every point survived
    batch_size_given: bool = True
    workers: int = 1  # that share the points
    usual_margin: float = 0.0  # median of the clean margins, for what counts as close


@dataclass(frozen=True)
class CleanVerdict:
    """What the model says of the clean images, how many classes it knows, and whether it answers at random."""

    judged: Judged
    num_classes: int
    randomized: bool


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


def make_bench(config: EvalConfig, original: nn.Module, stand_in: nn.Module | None, device: torch.device) -> Bench:
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
        copied=judged is not original,
        stand_in=stand_in is not None,
        batch_size_given=config.batch_size is not None,
        workers=config.workers or 1,
    )


@contextlib.contextmanager
def cpu_threads(config: EvalConfig, bench: Bench, image: Tensor) -> Iterator[None]:
    """Compute with the number of CPU threads that is asked for, or that suits the model, and restore it afterwards.

    A small model waits for its threads longer than it computes. The choice counts operations and does not time them,
    so that the same run computes the same way wherever it is continued.
    """
    before = torch.get_num_threads()
    threads = config.threads or before
    if config.threads is None and bench.device.type == "cpu":
        with contextlib.suppress(Exception):  # a model that cannot take the image is reported when it is judged
            if 0 < operations(bench.judged.model, image) * bench.micro_batch < SMALL:
                threads = 1
    try:
        torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)


def operations(model: nn.Module, image: Tensor) -> int:
    """Count the multiply-adds of the convolutions and linear layers of `model` for one image (C, H, W)."""
    counts: list[int] = []

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        weight = module.get_parameter("weight")
        counts.append(output.numel() // (2 * weight.shape[0]) * weight.numel())

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with isolated(model), torch.no_grad():
            model(image[None].repeat(2, 1, 1, 1))
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts)


def _placed(model: nn.Module, device: torch.device, mode: str) -> nn.Module:
    with contextlib.suppress(Exception):  # a model may refuse to be copied in any way: then it is judged as it is
        model = copy.deepcopy(model).to(dtype=torch.float32)
    model = model.to(device)
    return model.eval() if mode == "eval" else model


def remarks(original: nn.Module, bench: Bench) -> list[str]:
    """Say what a reader should know of how the model is judged: in another precision, or not as a copy."""
    found = []
    dtypes = {str(p.dtype).removeprefix("torch.") for p in original.parameters() if p.is_floating_point()} - {"float32"}
    if not bench.copied:
        found.append(
            "The model cannot be copied, so attacks run on the very model that is judged; it is checked at the end."
        )
    elif dtypes:
        found.append(f"The model's weights came as {', '.join(sorted(dtypes))}; they are judged as float32.")
    return found


def check_unchanged(bench: Bench, points: Tensor, clean: CleanVerdict, weights: str) -> None:
    """Raise RunError where the judged model's weights or its answers on clean images (N, C, H, W) are not as before."""
    changed = fingerprint(bench.judged.model) != weights
    if not bench.copied and not clean.randomized:
        images = points.to(bench.device)
        now = judge_images(bench.judged, images, torch.zeros(len(images), dtype=torch.int64, device=bench.device))
        changed |= not torch.equal(now.prediction, clean.judged.prediction)
    if changed:
        raise RunError("The judged model's weights or answers changed during the run: its results cannot be trusted.")


def _judge_clean(bench: Bench, data: ImageDataset, config: EvalConfig) -> CleanVerdict:
    """Judge the clean images; find the number of classes and randomness. Raises UserError where it cannot take them."""
    images, labels = data.images.to(bench.device), data.labels.to(bench.device)
    shape = tuple(images.shape[1:])
    try:
        with isolated(bench.judged.model), torch.no_grad():
            logits = bench.judged(images[: bench.micro_batch])
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"The model cannot take images of shape {shape}: {error}. Check channels (--grey) and size (--resize, --crop)."
        ) from error
    bench.judged.count = Count()
    if logits.shape[1] < 2:
        raise UserError(
            "The model has one output. A classifier of two classes needs two: torch.cat([-logit, logit], 1)."
        )
    if not bool(logits.isfinite().all()):
        raise UserError(
            "The model returns NaN or infinite logits on clean images. Check its weights and normalisation."
        )
    if int(labels.max()) >= logits.shape[1]:
        raise UserError(
            f"The labels go up to {int(labels.max())}, but the model has {logits.shape[1]} outputs. "
            "Do model and data belong together?"
        )
    if bench.attacked is not bench.judged.model:
        _check_stand_in(bench, images[: bench.micro_batch], labels)
    few = slice(0, bench.micro_batch)
    randomized = is_randomized(bench.judged, images[few], labels[few])
    bench.judged.count = Count()
    draws = config.judge_draws if randomized else 1
    while True:
        try:
            clean = judge_images(bench.judged, images, labels, draws=draws, seed=config.seed)
            break
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if not bench.judged.micro_batch or bench.judged.micro_batch == 1:
                raise RunError("Out of memory with a single image in a batch.") from None
            bench.judged.micro_batch //= 2
    if not bool(clean.margin.isfinite().all()):
        raise UserError(
            "The model returns NaN or infinite logits on clean images. Check its weights and normalisation."
        )
    return CleanVerdict(clean, logits.shape[1], randomized)


def _check_stand_in(bench: Bench, images: Tensor, labels: Tensor) -> None:
    """Raise UserError where the model under attack cannot take the images or does not know the labels."""
    try:
        with isolated(bench.attacked), torch.no_grad():
            logits = Passes(bench.attacked, bench.micro_batch)(images)
    except Exception as error:
        shape = tuple(images.shape[1:])
        raise UserError(f"The attacked model (--attack-model) cannot take images of shape {shape}: {error}") from error
    if int(labels.max()) >= logits.shape[1]:
        raise UserError(
            f"The attacked model (--attack-model) has {logits.shape[1]} outputs, but the labels go up to "
            f"{int(labels.max())}. It must know the classes of the judged model."
        )


def clean_verdict(
    bench: Bench, data: ImageDataset, config: EvalConfig, weights: str, folder: Path | None
) -> CleanVerdict:
    """Judge the clean images, or take the saved verdict of the run that goes on.

    `weights` is the model's fingerprint. Raises UserError where the data, the weights or the plugin files are no longer
    those that the run in `folder` was started with.
    """
    path = None if folder is None else folder / STATE / "clean.safetensors"
    inputs = {
        "data": data.fingerprint, "weights": weights, "weights of the attacked model": fingerprint(bench.attacked),
        "plugin files": " ".join(
            hashlib.sha256(path.read_bytes()).hexdigest() for path in map(Path, config.plugin) if path.is_file()
        ),
    }  # fmt: skip
    if path is not None and path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                head = file.metadata()
                saved = Judged(*(file.get_tensor(name) for name in ("prediction", "margin", "correct_share")))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{str(path)!r} is damaged ({error}). Start the run again in another --out.") from None
        for what, mine in inputs.items():
            if head.get(what) != mine:
                raise UserError(f"The {what} are not those that the run in {str(folder)!r} was started with.")
        return CleanVerdict(saved, int(head["num_classes"]), head["randomized"] == "True")
    clean = _judge_clean(bench, data, config)
    if path is not None:
        head = {**inputs, "num_classes": str(clean.num_classes), "randomized": str(clean.randomized)}
        write_atomic(path, save_tensors({**vars(clean.judged)}, metadata=head))
    return clean


def is_randomized(model: Passes, images: Tensor, labels: Tensor) -> bool:
    """Tell whether two calls under different seeds differ on the same images (N, C, H, W) by more than rounding."""
    first = judge_images(model, images, labels, seed=1).margin
    second = judge_images(model, images, labels, seed=2).margin
    scale = first[first.isfinite()].abs().max().clamp(min=1.0) if first.isfinite().any() else torch.tensor(1.0)
    return bool(((first - second).abs().nan_to_num() > 1e-5 * scale).any())


def fresh_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model with frozen weights for attacking; the model itself where it cannot be copied."""
    try:
        copied = copy.deepcopy(model)
    except Exception:  # see _placed
        return model
    return copied.requires_grad_(False)


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on any device."""
    words = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in words or "can't allocate" in words
    )
