"""The data of a training run: what is trained on, what is held out to choose the checkpoint, and what is known of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.config import DuplicationOptions, TrainConfig
from robustdup.data.batches import EntryOptions, TrainingSet
from robustdup.data.cache import load_pixels
from robustdup.data.dataset import Samples
from robustdup.data.selection import choose
from robustdup.data.sources import open_samples, split_taken
from robustdup.data.streaming import StreamingSet
from robustdup.duplication.make import make_plan
from robustdup.duplication.plan import DuplicationPlan
from robustdup.errors import UserError
from robustdup.jobs.extra_data import read_extra
from robustdup.jobs.training_images import (
    Images,
    as_floats,
    duplicates_of,
    fingerprint_of,
    margins_of,
    read_images,
    statistics,
)
from robustdup.plugins import Registry
from robustdup.records import DataInfo, DuplicationInfo, ExtraDataInfo
from robustdup.rng import SampleRng
from robustdup.training.validation import ValidationSet

FOR_STATISTICS = 5_000  # images on disk from which mean and deviation are taken
OTHER_SPLIT = 1 << 31  # where the indices of images begin that leak in from another split

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainingData:
    """The training entries and the validation images, with what the network must fit and the record must say."""

    entries: TrainingSet | StreamingSet
    validation: ValidationSet | None
    plan: DuplicationPlan
    duplication: DuplicationInfo | None
    extra: ExtraDataInfo | None
    info: DataInfo
    n_excluded: int
    channels: int
    size: tuple[int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    events: list[str]
    tested: tuple[str, Tensor] | None = None  # what the test data are called, and their first image (1, C, H, W)


def prepare_data(
    config: TrainConfig, registry: Registry, device: torch.device, *, say: Say = lambda _: None
) -> TrainingData:
    """Read the training split, hold out the validation images, and make the duplication plan. Raises UserError.

    Training images are those of the split that are neither held out nor a near-duplicate of one that is. All that is
    drawn is keyed by the images' indices in the split, so that runs on other data or doses are paired with this one.
    """
    samples = open_samples(config.data, config.data_options(), registry, lenient=True)
    split = split_taken(samples, config.split)
    tested = open_test_samples(config, registry) if config.evaluate else None  # a mistake would come out after training
    name = f"{config.data} ({split})"
    index, selection, note = choose(samples, n=config.n, sample=config.sample, seed=config.seed, place=name)
    count = validation_count(config.validation, len(index))
    events = [*getattr(samples, "notes", ()), *note]
    say(f"reading {len(index):,} images of {name}")
    every = read_images(samples, index, config)
    held = held_out_positions(index, count, config.seed)
    kept = torch.ones(len(index), dtype=torch.bool)
    kept[held] = False
    n_excluded = 0
    if count and not config.keep_near_duplicates:
        say(f"looking for near-duplicates of {count:,} validation images")
        near = duplicates_of(every, held, kept, registry, events)
        kept[near] = False
        n_excluded = len(near)
    if not kept.any():
        message = f"No image of {name} is left to train on: {count} are held out and {n_excluded} are near them."
        raise UserError(message, code="no-data")
    class_names = list(samples.class_names)
    classes = len(class_names) or numbered_classes(every.labels, name)
    if tested is not None:
        check_test_labels(config, tested, every.labels, class_names, classes)
    source = every.only(kept)
    plan, other = _plan(config, source, class_names, registry, say)
    some = source.take(torch.arange(0, len(source), max(1, len(source) // FOR_STATISTICS)))
    mean, std = statistics(some if source.pixels is None else source.pixels)
    info = DataInfo(
        spec=config.data,
        split=split,
        config=config.data_config,
        revision=getattr(samples, "revision", None) or config.revision,
        n_total=len(samples),
        selection=selection,
        image_shape=list(some.shape[1:]),
        class_names=class_names,
        fingerprint=fingerprint_of(every),
    )
    held_out = every.take(held) if count else None
    validation = None if held_out is None else ValidationSet(as_floats(held_out), every.labels[held], index[held])
    more = read_extra(
        config, source, registry, class_names=class_names, classes=classes, held_out=held_out, events=events, say=say
    )
    return TrainingData(
        entries=_entries(config, source, classes, plan, other, None if more is None else more[0], device),
        validation=validation,
        plan=plan,
        duplication=_duplication_info(plan, config),
        extra=None if more is None else more[1],
        info=info,
        n_excluded=n_excluded,
        channels=some.shape[1],
        size=(some.shape[2], some.shape[3]),
        classes=classes,
        mean=mean,
        std=std,
        events=events,
        tested=None if tested is None else (_test_name(config, tested), tested.fetch([0])[0]),
    )


def open_test_samples(config: TrainConfig, registry: Registry) -> Samples:
    """Return the samples that a training is tested on, undecoded. Raises UserError, also where they are those of training."""
    samples = open_samples(
        config.test_data or config.data, config.data_options(config.test_split), registry, lenient=True
    )
    split = split_taken(samples, config.test_split)
    if split == config.test_split or config.test_data not in (None, config.data):
        return samples
    trained = open_samples(config.data, config.data_options(), registry, lenient=True)
    if split == split_taken(trained, config.split):
        raise UserError(
            f"{config.data} has no split {config.test_split!r}: its {split!r} is what is trained on, and says nothing about "
            "other images. Name others (test_data=…, --test-data …), or evaluate nothing (evaluate=none).",
            code="no-test-data",
        )
    return samples


def check_test_labels(
    config: TrainConfig, tested: Samples, labels: Tensor, class_names: list[str], classes: int
) -> None:
    """Raise UserError where test labels are above those of training, labels (N,), or of other classes altogether."""
    place = _test_name(config, tested)
    labels_of = getattr(tested, "labels", None)  # a source may have none, or all of them at once
    if labels_of is None:
        return
    there = set(labels_of(range(len(tested))) if callable(labels_of) else torch.as_tensor(labels_of).tolist())
    if not class_names and not tested.class_names and max(there, default=0) >= classes:
        raise UserError(
            f"The labels of {place} go up to {max(there)}, those that are trained on up to {classes - 1}: the network would have "
            "no output for them.",
            code="model-and-data",
        )
    if class_names and class_names == list(tested.class_names) and there and not there & set(labels.tolist()):
        shown = ", ".join(class_names[number] for number in sorted(there)[:5])
        raise UserError(
            f"No class of {place} ({shown}) is trained on. Are the folders or labels of the two splits called by other names?",
            code="model-and-data",
        )


def _test_name(config: TrainConfig, tested: Samples) -> str:
    return f"{config.test_data or config.data} ({split_taken(tested, config.test_split)})"


def check_test_shape(name: str, images: Tensor, model: nn.Module, shape: tuple[int, ...]) -> None:
    """Raise UserError where test images have another shape (C, H, W) than those of training and the network cannot take it."""
    if tuple(images.shape[1:]) == shape:
        return
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(images)
    except RuntimeError as error:
        raise UserError(
            f"Images of {name} have the shape {tuple(images.shape[1:])}, those that are trained on {shape}, and the network "
            "takes one of them alone. Give --grey, or --resize and --crop.",
            code="model-and-data",
        ) from error
    finally:
        model.train(training)


def numbered_classes(labels: Tensor, name: str) -> int:
    """Return the number of classes of labels (N,) without names. Raises UserError where most numbers are unused."""
    values = labels.unique(sorted=True).tolist()  # type: ignore[no-untyped-call]
    count = int(values[-1]) + 1
    if count > 2 * len(values) + 8:
        shown = f"{', '.join(map(str, values[:5]))}, …, {values[-1]}"
        raise UserError(
            f"The labels of {name} have {len(values)} values ({shown}), and the network would get {count:,} outputs. Number "
            "the classes 0, 1, 2, … (datasets: class_encode_column), or give folders named by class.",
            code="gap-labels",
        )
    return count


def validation_count(validation: float, total: int) -> int:
    """Return how many of `total` images are held out: a share below 1, or a number. Raises UserError for too many."""
    count = round(validation * total) if validation < 1 else int(validation)
    if validation >= 1 and count != validation:
        raise UserError(
            f"validation is a share below 1 or a whole number of images, got {validation:g}.", code="bad-value"
        )
    if count >= total:
        raise UserError(
            f"validation = {validation:g} holds out {count:,} images, but there are only {total:,}: none is left to train on.",
            code="no-data",
        )
    return count


def held_out_positions(index: Tensor, count: int, seed: int) -> Tensor:
    """Return the positions (count,) of the held-out images, in rising order: those with the smallest random words."""
    words = SampleRng(seed, index).fold("validation").bits()
    return words.argsort(stable=True)[:count].sort().values


def _plan(
    config: TrainConfig, source: Images, class_names: list[str], registry: Registry, say: Say
) -> tuple[DuplicationPlan, Images | None]:
    """Return the plan, and for `leak` the images of the split that leaks in, with indices of their own."""
    options, other = config.duplicate, None
    if options.scheme == "leak":
        if source.pixels is None:
            raise UserError(
                "duplicate.scheme = leak needs all images in memory: in_memory = yes.", code="options-conflict"
            )
        samples = open_samples(config.data, config.data_options(options.leak_from), registry, lenient=True)
        leaking = split_taken(samples, options.leak_from)
        if leaking == split_taken(source.samples, config.split):
            raise UserError(
                f"A split does not leak into itself: {leaking!r} is the split of training and what leaks into it.",
                code="bad-value",
            )
        say(f"reading {len(samples):,} images of {config.data} ({leaking})")
        pixels, labels = load_pixels(samples, list(range(len(samples))))
        other = Images(samples, torch.arange(len(samples)) + OTHER_SPLIT, labels, pixels)
    plan = make_plan(
        source.labels,
        options,
        seed=config.seed,
        scores=_scores(config, source, registry, say),
        class_names=class_names,
        n_other=0 if other is None else len(other),
        other_labels=None if other is None else other.labels,
    )
    return plan, other


def _scores(config: TrainConfig, source: Images, registry: Registry, say: Say) -> Tensor | None:
    """Return the margins of `score_model` on the source images, where the scheme ranks them: the lower, the harder."""
    if config.duplicate.scheme not in ("hardest", "easiest"):
        return None
    if config.score_model is None:
        raise UserError(
            f"duplicate.scheme = {config.duplicate.scheme} ranks images by a model's margin: name it with score_model.",
            code="missing-option",
        )
    say(f"scoring {len(source):,} images with {config.score_model}")
    parts = torch.split(torch.arange(len(source)), 256)
    batches = ((as_floats(source.take(some)), source.labels[some]) for some in parts)
    return margins_of(config.score_model, batches, registry, allow_pickle=config.allow_pickle)


def _entries(
    config: TrainConfig,
    source: Images,
    classes: int,
    plan: DuplicationPlan,
    leaking: Images | None,
    extra: Images | None,
    device: torch.device,
) -> TrainingSet | StreamingSet:
    images, weights, used = source, None, plan
    if config.as_weights and config.duplicate.scheme != "none":
        every = plan.weights()
        images, weights = source.only(every > 0), every[every > 0]
        used = make_plan(images.labels, DuplicationOptions.model_validate({}), seed=plan.seed)
    options = EntryOptions(
        seed=config.seed,
        augment=config.augment,
        padding=config.padding,
        share_augmentation=config.share_augmentation,
        classes=classes,
        device=device,
        extra_share=config.extra_share,
        transforms=config.transforms or "",
        mix=config.mix or "",
    )
    for others in (leaking, extra):
        images = images if others is None else images.followed_by(others)
    common: dict[str, Any] = {"plan": used, "index": images.index, "weights": weights, "options": options}
    if images.pixels is None:
        return StreamingSet(images.samples, images.labels, **common, workers=config.loader_workers)
    return TrainingSet(images.pixels, images.labels, **common, extra=0 if extra is None else len(extra))


def _duplication_info(plan: DuplicationPlan, config: TrainConfig) -> DuplicationInfo | None:
    if config.duplicate.scheme == "none":
        return None
    rates = plan.readings()
    return DuplicationInfo(
        scheme=plan.scheme,
        mode=plan.mode,
        dose=plan.dose,
        hash=plan.hash,
        entries=len(plan),
        unique=rates.unique,
        near=None if plan.near is None else plan.near.text,
        as_weights=config.as_weights,
        options=plan.options,
        rates=asdict(rates),
    )
