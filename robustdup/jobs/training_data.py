"""The data of a training run: what is trained on, what is held out to choose the checkpoint, and what is known of both."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from robustdup.config import DuplicationOptions, TrainConfig
from robustdup.data.batches import EntryOptions, TrainingSet, to_bytes
from robustdup.data.cache import load_pixels
from robustdup.data.dataset import Samples
from robustdup.data.selection import choose
from robustdup.data.sources import open_samples
from robustdup.data.streaming import StreamingSet, read_labels
from robustdup.duplication.make import make_plan
from robustdup.duplication.plan import DuplicationPlan
from robustdup.errors import UserError, how_to_install
from robustdup.plugins import Registry
from robustdup.records import DataInfo, DuplicationInfo
from robustdup.rng import SampleRng
from robustdup.training.validation import ValidationSet

IN_MEMORY = 8 * 2**30  # bytes of pixels that are kept in memory without being asked to
FOR_STATISTICS = 5_000  # images on disk from which mean and deviation are taken
FOR_FINGERPRINT = 1_000  # images on disk that stand for all
OTHER_SPLIT = 1 << 31  # where the indices of images begin that leak in from another split
SMALLEST_FOR_NEAR = 16  # pixels a side below which near-duplicates cannot be told from similar images

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainingData:
    """The training entries and the validation images, with what the network must fit and the record must say."""

    entries: TrainingSet | StreamingSet
    validation: ValidationSet | None
    plan: DuplicationPlan
    duplication: DuplicationInfo | None
    info: DataInfo
    n_excluded: int
    channels: int
    size: tuple[int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    events: list[str]


def prepare_data(
    config: TrainConfig, registry: Registry, device: torch.device, *, say: Say = lambda _: None
) -> TrainingData:
    """Read the training split, hold out the validation images, and make the duplication plan. Raises UserError.

    Training images are those of the split that are neither held out nor a near-duplicate of one that is. All that is
    drawn is keyed by the images' indices in the split, so that runs on other data or doses are paired with this one.
    """
    samples = open_samples(config.data, config.data_options(), registry)
    name = f"{config.data} ({config.split})"
    index, selection, told = choose(samples, n=config.n, sample=config.sample, seed=config.seed, place=name)
    count = validation_count(config.validation, len(index))
    events = [*getattr(samples, "notes", ()), *told]
    say(f"reading {len(index):,} images of {name}")
    every = _read(samples, index, config)
    held = held_out_positions(index, count, config.seed)
    kept = torch.ones(len(index), dtype=torch.bool)
    kept[held] = False
    n_excluded = 0
    if count and not config.keep_near_duplicates:
        say(f"looking for near-duplicates of {count:,} validation images")
        near = _duplicates_of(every, held, kept, registry, events)
        kept[near] = False
        n_excluded = len(near)
    if not kept.any():
        message = f"No image of {name} is left to train on: {count} are held out and {n_excluded} are near them."
        raise UserError(message, code="no-data")
    class_names = list(samples.class_names)
    classes = len(class_names) or numbered_classes(every.labels, name)
    source = every.only(kept)
    plan, other = _plan(config, source, class_names, registry, say)
    some = source.take(torch.arange(0, len(source), max(1, len(source) // FOR_STATISTICS)))
    mean, std = statistics(some if source.pixels is None else source.pixels)
    info = DataInfo(
        spec=config.data,
        split=config.split,
        config=config.data_config,
        revision=getattr(samples, "revision", None) or config.revision,
        n_total=len(samples),
        selection=selection,
        image_shape=list(some.shape[1:]),
        class_names=class_names,
        fingerprint=_fingerprint(every),
    )
    validation = ValidationSet(_floats(every.take(held)), every.labels[held], index[held]) if count else None
    return TrainingData(
        entries=_entries(config, source, classes, plan, other, device),
        validation=validation,
        plan=plan,
        duplication=_duplication_info(plan, config),
        info=info,
        n_excluded=n_excluded,
        channels=some.shape[1],
        size=(some.shape[2], some.shape[3]),
        classes=classes,
        mean=mean,
        std=std,
        events=events,
    )


@dataclass(frozen=True)
class _Images:
    """Images of a split with their labels (N,) and indices (N,): `pixels` (N, C, H, W), or None where they stay on disk."""

    samples: Samples
    index: Tensor
    labels: Tensor
    pixels: Tensor | None

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, kept: Tensor) -> _Images:
        """Keep the images that a mask or an index names."""
        pixels = None if self.pixels is None else self.pixels[kept]
        return _Images(self.samples, self.index[kept], self.labels[kept], pixels)

    def take(self, positions: Tensor) -> Tensor:
        """Return the pixels at these positions, read if need be."""
        if self.pixels is not None:
            return self.pixels[positions]
        return load_pixels(self.samples, self.index[positions].tolist())[0]


def _read(samples: Samples, index: Tensor, config: TrainConfig) -> _Images:
    """Read all images into memory, unless they are too many or are asked to stay where they are."""
    first, _ = samples.fetch([int(index[0])])
    keep = config.in_memory is True or (config.in_memory == "auto" and first.numel() * len(index) <= IN_MEMORY)
    if keep:
        pixels, labels = load_pixels(samples, index.tolist())
        return _Images(samples, index, labels, pixels)
    return _Images(samples, index, read_labels(samples, index), None)


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


def _duplicates_of(images: _Images, held: Tensor, kept: Tensor, registry: Registry, events: list[str]) -> Tensor:
    """Return the positions of training images that are duplicates of held-out ones: near ones, or exact ones of tiny images."""
    positions, pixels = kept.nonzero().squeeze(1), images.pixels
    if pixels is None:
        events.append(
            "The images stay on disk: near-duplicates of validation images were not looked for. Find and remove them with "
            "'robustdup data detect'."
        )
        return positions[:0]
    shape = "x".join(str(side) for side in pixels.shape[1:])
    if min(pixels.shape[2:]) < SMALLEST_FOR_NEAR or pixels.shape[1] not in (1, 3):
        reason = f"Near-duplicates cannot be told from similar images of {shape} values"
    elif not registry.duplicate_finders:
        reason = f"No plugin here searches for near-duplicates ({how_to_install('robustdup[detect]')})"
    else:
        as_bytes = pixels if pixels.dtype == torch.uint8 else to_bytes(pixels)
        pairs = registry.get_duplicate_finder().find(as_bytes[held], as_bytes[positions])
        return positions[torch.unique(pairs.b)]
    events.append(f"{reason}: only exact duplicates of validation images were kept out of training.")
    contents = {image.numpy().tobytes() for image in pixels[held]}
    same = [position for position in positions.tolist() if pixels[position].numpy().tobytes() in contents]
    return torch.tensor(same, dtype=torch.int64)


def _plan(
    config: TrainConfig, source: _Images, class_names: list[str], registry: Registry, say: Say
) -> tuple[DuplicationPlan, _Images | None]:
    """Return the plan, and for `leak` the images of the split that leaks in, with indices of their own."""
    options, other = config.duplicate, None
    if options.scheme == "leak":
        if source.pixels is None:
            raise UserError(
                "duplicate.scheme = leak needs all images in memory: in_memory = yes.", code="options-conflict"
            )
        samples = open_samples(config.data, config.data_options(options.leak_from), registry)
        say(f"reading {len(samples):,} images of {config.data} ({options.leak_from})")
        pixels, labels = load_pixels(samples, list(range(len(samples))))
        other = _Images(samples, torch.arange(len(samples)) + OTHER_SPLIT, labels, pixels)
    plan = make_plan(
        source.labels,
        options,
        seed=config.seed if options.seed is None else options.seed,
        scores=_scores(config, source, registry, say),
        class_names=class_names,
        n_other=0 if other is None else len(other),
        other_labels=None if other is None else other.labels,
    )
    return plan, other


def _scores(config: TrainConfig, source: _Images, registry: Registry, say: Say) -> Tensor | None:
    """Return the margins of `score_model` on the source images, where the scheme ranks them: the lower, the harder."""
    if config.duplicate.scheme not in ("hardest", "easiest"):
        return None
    if config.score_model is None:
        raise UserError(
            f"duplicate.scheme = {config.duplicate.scheme} ranks images by a model's margin: name it with score_model.",
            code="missing-option",
        )
    from robustdup.attacks.losses import margin
    from robustdup.models.load import load_model

    say(f"scoring {len(source):,} images with {config.score_model}")
    model = load_model(config.score_model, registry=registry, allow_pickle=config.allow_pickle)
    positions = torch.arange(len(source))
    with torch.no_grad():
        return torch.cat(
            [margin(model(_floats(source.take(some))), source.labels[some]) for some in torch.split(positions, 256)]
        )


def _entries(
    config: TrainConfig,
    source: _Images,
    classes: int,
    plan: DuplicationPlan,
    other: _Images | None,
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
    )
    pixels, labels, index = images.pixels, images.labels, images.index
    if pixels is None:
        workers = config.loader_workers
        return StreamingSet(
            images.samples, labels, plan=used, index=index, weights=weights, options=options, workers=workers
        )
    if other is not None and other.pixels is not None:
        pixels, labels = torch.cat([pixels, other.pixels]), torch.cat([labels, other.labels])
        index = torch.cat([index, other.index])
    return TrainingSet(pixels, labels, plan=used, index=index, weights=weights, options=options)


def statistics(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of images (N, C, H, W), in units of [0, 1]."""
    count, total, square = 0, torch.zeros(pixels.shape[1]).double(), torch.zeros(pixels.shape[1]).double()
    for part in torch.split(pixels, 2048):
        values = _floats(part).double()
        count += values.numel() // values.shape[1]
        total += values.sum(dim=(0, 2, 3))
        square += values.square().sum(dim=(0, 2, 3))
    mean = total / count
    std = (square / count - mean.square()).clamp(min=1e-6).sqrt()
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(max(v, 0.05), 4) for v in std.tolist())


def _floats(pixels: Tensor) -> Tensor:
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def _fingerprint(images: _Images) -> str:
    """Return one SHA-256 (hex) over the images, their labels and their order; of images on disk, over some of them."""
    every = 1 if images.pixels is not None else max(1, len(images) // FOR_FINGERPRINT)
    pixels = images.take(torch.arange(0, len(images), every))
    digest = hashlib.sha256(f"{pixels.dtype}{tuple(pixels.shape)}{len(images)}".encode())
    for part in (pixels, images.labels):
        digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()


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
