"""A cell of a study: one training and its evaluation, and everything that is measured on the result."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.config import TrainConfig, validate
from robustdup.data.batches import TrainingSet, to_bytes
from robustdup.data.cache import DatasetCache, caching
from robustdup.data.selection import choose
from robustdup.data.sources import load_images, open_samples
from robustdup.device import choose_device
from robustdup.errors import RunError, UserError
from robustdup.jobs.extra_data import extra_options
from robustdup.jobs.training import check, run_training
from robustdup.jobs.training_data import TrainingData, open_test_samples, prepare_data
from robustdup.jobs.training_images import SMALLEST_FOR_NEAR
from robustdup.models.load import load_model
from robustdup.plugins import Registry, load_plugins
from robustdup.records import RECORD_FILE, TrainingRecord, load_record, now
from robustdup.records.folder import CONFIG_FILE, STATE
from robustdup.rng import SampleRng
from robustdup.training.validation import ValidationSet, correct_per_sample
from robustdup_study.answers import answers_to_test_images, calibration, of_class_shares
from robustdup_study.cell_record import CellOrder, CellResult, Measurement, telling
from robustdup_study.grid import Grid, build_grid
from robustdup_study.recipe import StudyConfig

TRAIN = "train"
ROWS = 256
SPOT_CHECK = 64  # rows of a split that are decoded to tell it from another
MEMORY = DatasetCache()  # so that the cells of a worker decode an image once
MOST_NEAR = 8  # sets of training images of which it is remembered which test images are near them

Metrics = dict[str, float | None]
Samples = dict[str, list[int]]


def run_cell(order: CellOrder) -> CellResult:
    """Train, evaluate and measure one cell; an unfinished training in its folder goes on. Raises what training raises."""
    with caching(MEMORY):
        return _run_cell(order)


def _run_cell(order: CellOrder) -> CellResult:
    here = {"device": order.device, "threads": order.threads}
    config = validate(TrainConfig, {**order.settings, **here, "out": None})
    folder = Path(order.folder) / TRAIN
    registry = load_plugins(config.plugin)
    done = (folder / RECORD_FILE).is_file() and (folder / "last.safetensors").is_file()
    begun = done or (folder / STATE / CONFIG_FILE).is_file()
    if folder.is_dir() and not begun:
        shutil.rmtree(folder)  # killed before it had begun, or its result was lost after its weights had been dropped
    told = telling(order.key)
    record = run_training(
        config,
        folder=folder,
        registry=registry,
        resume=begun,
        progress=lambda event: told(event.step, event.n_steps or 0),
    )
    if record.status != "complete":
        raise RunError(f"Training stopped: {record.reason}", code="training-stopped")
    metrics = of_training(record) | of_checkpoints(record, folder)
    measured, samples, right = of_model(config, folder, registry, order.measure)
    metrics = measured | metrics  # what the referee said wins,
    if order.measure.get("clean_on"):  # unless more images were asked for
        metrics["clean_accuracy"] = measured["clean_accuracy"]
    if metrics.get("train_accuracy") is not None and metrics.get("clean_accuracy") is not None:
        metrics["memorisation_gap"] = (metrics["train_accuracy"] or 0.0) - (metrics["clean_accuracy"] or 0.0)
    if not order.keep_weights:
        _drop_heavy(folder)
    return CellResult(
        key=order.key, created=now(), status="complete", measurements=[Measurement(metrics=metrics)], config=order.settings,
        duplication={} if record.duplication is None else record.duplication.rates,
        samples=samples, answers=answers_to_test_images(right, _last_evaluation(record, folder)),
        training=record.model_dump(mode="json", exclude={"curve", "validation"}),
    )  # fmt: skip


def _last_evaluation(record: TrainingRecord, folder: Path) -> Path | None:
    """Return the folder of the last checkpoint's evaluation: that of the best one, where they are the same."""
    names = [
        result.evaluation for result in record.checkpoints if result.name == "last" and result.evaluation is not None
    ]
    return folder / names[0] if names else None


def of_training(record: TrainingRecord) -> Metrics:
    """Return what the training cost, and when validation reached which accuracy."""
    passes = record.passes
    metrics: Metrics = {
        "steps": record.steps, "samples": record.samples_seen, "unique_samples": record.unique_samples_seen,
        "seconds": record.seconds, "forward_passes": passes.attack_forward + passes.train_forward,
        "backward_passes": passes.attack_backward + passes.train_backward,
    }  # fmt: skip
    for reached in record.time_to:
        name = f"{reached.kind}_{round(100 * reached.target)}"
        metrics[f"steps_to_{name}"], metrics[f"samples_to_{name}"] = reached.step, reached.samples
        metrics[f"seconds_to_{name}"] = reached.seconds
    return metrics


def of_checkpoints(record: TrainingRecord, folder: Path) -> Metrics:
    """Return test accuracies of the last and the best checkpoint, their worst classes, and how far they lie apart."""
    metrics: Metrics = {}
    for result in record.checkpoints:
        prefix = "" if result.name == "last" else "best_"
        if result.clean_accuracy is None or result.robust_accuracy is None:
            continue
        metrics[f"{prefix}clean_accuracy"] = result.clean_accuracy.value
        metrics[f"{prefix}robust_accuracy"] = result.robust_accuracy.value
        if result.evaluation is not None and (folder / result.evaluation / RECORD_FILE).is_file():
            classes = load_record(folder / result.evaluation).per_class
            for kind in ("clean", "robust"):
                values = [v for of_class in classes if (v := getattr(of_class, f"{kind}_accuracy")) is not None]
                metrics[f"{prefix}worst_class_{kind}"] = min(values) if values else None
    # Where there was one candidate only, nothing was chosen: then nothing is known of overfitting.
    for kind in ("clean", "robust") if len(record.validation) > 1 else ():
        best, last = metrics.get(f"best_{kind}_accuracy"), metrics.get(f"{kind}_accuracy")
        if best is not None and last is not None:
            metrics[f"best_minus_last_{kind}"] = best - last
    return metrics


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits (N, K) of images (N, C, H, W) in [0, 1], on the CPU."""
    device = next(model.parameters()).device
    return torch.cat([model(part.to(device)).float().cpu() for part in torch.split(images, ROWS)])


def of_model(
    config: TrainConfig, folder: Path, registry: Registry, measure: Mapping[str, Any]
) -> tuple[Metrics, Samples, Tensor]:  # fmt: skip
    """Return what is measured on the last checkpoint itself: calibration, training images, near and shifted test images.

    With it come the answers to training images, and whether each test image is classified rightly, bool (N,).
    """
    device = choose_device(config.device)
    model = load_model(f"run:{folder}@last", registry=registry).eval().to(device)
    rows = open_test_samples(config, registry)
    index, _, _ = choose(rows, n=measure.get("clean_on") or config.test_n, place="clean_on")
    images, labels = rows.fetch(index.tolist())
    logits = logits_of(model, images)
    metrics: Metrics = dict(zip(("ece", "nll"), calibration(logits, labels), strict=True))
    is_correct = logits.argmax(dim=1) == labels
    metrics["clean_accuracy"] = float(is_correct.double().mean())
    data = prepare_data(config, registry, device)
    metrics |= of_class_shares(logits, labels, data.entries)
    trained, samples = of_training_images(config, model, data, registry, int(measure.get("metrics_on", 0)), device)
    metrics |= trained
    if measure.get("near_test"):
        metrics["clean_accuracy_without_near"] = without_near(is_correct, images, data, registry)
    if measure.get("shifted"):
        other, _, split = str(measure["shifted"]).partition("@")
        shifted = load_images(other, config.data_options(split or config.test_split), registry=registry)
        answers = logits_of(model, shifted.images).argmax(dim=1)
        metrics["shifted_accuracy"] = float((answers == shifted.labels).double().mean())
    return metrics, samples, is_correct


def of_training_images(
    config: TrainConfig, model: nn.Module, data: TrainingData, registry: Registry, most: int, device: torch.device
) -> tuple[Metrics, Samples]:
    """Return clean and robust accuracy on training images that were duplicated and on those that were not, `most` of each.

    Which images are looked at follows from their row alone, so that over seeds the same image is met on both sides; the
    answers to each of them are returned too. Robust means under the attack of validation.
    """
    entries = data.entries
    if not most or not isinstance(entries, TrainingSet):  # images on disk are not read once more
        return {}, {}
    originals = (entries.copy == 0).nonzero().flatten()
    counts = torch.bincount(entries.image, minlength=entries.n_images)[entries.image[originals]]
    order = SampleRng(0, entries.index[originals].cpu()).fold("measured").bits().argsort(stable=True)
    originals, counts = originals[order], counts[order]
    groups = {"duplicated": counts > 1, "single": counts == 1, "train": counts > 0}
    first = {name: members.nonzero().flatten()[:most] for name, members in groups.items()}
    looked_at = torch.cat([first["duplicated"], first["single"]]).sort().values  # the first of all are among them
    chosen = originals[looked_at]
    pixels = entries.pixels[entries.image[chosen]]
    images = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    points = ValidationSet(images, entries.labels[chosen], entries.index[chosen])
    attack = check(config, registry).validation_attack
    is_correct, is_robust, _ = correct_per_sample(points, attack, seed=config.seed, device=device)(model)
    metrics: Metrics = {}
    for name, members in first.items():
        members_of = torch.isin(looked_at, members)
        if members_of.any():
            metrics[f"{name}_accuracy"] = float(is_correct[members_of].double().mean())
            metrics[f"{name}_robust"] = float(is_robust[members_of].double().mean())
    duplicated, single = metrics.get("duplicated_accuracy"), metrics.get("single_accuracy")
    if duplicated is not None and single is not None:
        metrics["duplicated_minus_single"] = duplicated - single
    answers = {
        "index": points.index,
        "copies": counts[looked_at] - 1,
        "correct": is_correct.long(),
        "robust": is_robust.long(),
    }
    return metrics, {name: values.tolist() for name, values in answers.items()}


def without_near(right: Tensor, images: Tensor, data: TrainingData, registry: Registry) -> float | None:
    """Return the accuracy on test images without a near-duplicate in training; None for tiny images and those on disk."""
    if min(images.shape[2:]) < SMALLEST_FOR_NEAR or not isinstance(data.entries, TrainingSet):
        return None
    pixels = data.entries.pixels.cpu()
    trained = pixels if pixels.dtype == torch.uint8 else to_bytes(pixels)
    clear = _without_near(to_bytes(images), trained, registry)
    return float(right[clear].double().mean()) if clear.any() else None


def _without_near(tested: Tensor, trained: Tensor, registry: Registry) -> Tensor:
    """Return a mask (N,) of the test images without a near-duplicate; cells that train on the same images look once."""
    digest = hashlib.sha256(f"{tuple(tested.shape)} {tuple(trained.shape)}".encode())
    for part in (tested, trained):
        digest.update(part.contiguous().numpy().tobytes())
    key = digest.hexdigest()
    if key not in _near:
        clear = torch.ones(len(tested), dtype=torch.bool)
        clear[torch.unique(registry.get_duplicate_finder().find(tested, trained).a)] = False
        while len(_near) >= MOST_NEAR:
            _near.pop(next(iter(_near)))
        _near[key] = clear
    return _near[key]


_near: dict[str, Tensor] = {}


def data_fingerprint(settings: Mapping[str, Any], registry: Registry, shifted: str | None = None) -> str:
    """Return what tells the data of a cell from other data: sizes, classes, and some images and labels of each split.

    Rows evenly over each split are decoded; the whole training split's fingerprint is in each training's record.
    """
    config = validate(TrainConfig, {**settings, "out": None})
    open_test_samples(config, registry)  # refuses what is trained on
    places = [(config.data, config.split), (config.test_data or config.data, config.test_split)]
    if config.duplicate.scheme == "leak":
        places.append((config.data, config.duplicate.leak_from))
    if shifted:
        other, _, split = shifted.partition("@")
        places.append((other, split or config.test_split))
    opened = [(spec, split, config.data_options(split)) for spec, split in places]
    if config.extra_data is not None:
        opened.append((config.extra_data, config.extra_split or "train", extra_options(config)))
    digest = hashlib.sha256()
    for spec, split, options in opened:
        rows = open_samples(spec, options, registry, lenient=True)
        if len(rows) == 0:
            raise UserError(f"There are no samples in {spec} ({split}).", code="no-data")
        chosen = sorted({i * len(rows) // SPOT_CHECK for i in range(SPOT_CHECK)})
        images, labels = rows.fetch(chosen)
        digest.update(f"{len(rows)} {list(rows.class_names)} {tuple(images.shape)}\n".encode())
        digest.update(images.float().contiguous().numpy().tobytes() + labels.long().numpy().tobytes())
    return digest.hexdigest()


def training_grid(config: StudyConfig) -> Grid:
    """Return the grid of a recipe for robustdup's own training, checked against what it takes and the data there is.

    Raises:
        UserError: A cell cannot be trained; the message names it.
    """
    registry = load_plugins(config.plugin)
    return build_grid(
        config,
        registry,
        lambda train: data_fingerprint(train, registry, config.shifted),
        lambda train: check(train, registry),
    )


def _drop_heavy(folder: Path) -> None:
    """Remove weights, and the images and rows of evaluations: records stay."""
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    for path in folder.glob("evaluation-*/images"):
        shutil.rmtree(path, ignore_errors=True)
