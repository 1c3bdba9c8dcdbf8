"""The data of a training run: what is trained on, what is held out to choose the checkpoint, and what is known of both."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from robustdup.data.batches import TrainingSet, to_bytes
from robustdup.data.duplicate import DuplicationPlan, make_plan
from robustdup.data.duplication_options import DuplicationOptions
from robustdup.data.options import DataOptions
from robustdup.data.pixels import load_pixels
from robustdup.data.sources import open_rows, select
from robustdup.errors import UserError
from robustdup.records import DataInfo, DuplicationInfo
from robustdup.registry import Registry
from robustdup.rng import SampleRng
from robustdup.training.options import TrainConfig

SMALLEST_FOR_NEAR = 16  # pixels a side below which near-duplicates cannot be told from similar images

Say = Callable[[str], None]


@dataclass(frozen=True)
class HeldOut:
    """The validation images: float32 (V, C, H, W) in [0, 1], labels (V,), and their rows in the split (V,)."""

    images: Tensor
    labels: Tensor
    index: Tensor


@dataclass(frozen=True)
class TrainingData:
    """The training entries and the validation images, with what the network must fit and the record must say."""

    entries: TrainingSet
    held_out: HeldOut | None
    plan: DuplicationPlan
    duplication: DuplicationInfo | None
    info: DataInfo
    n_kept_out: int
    channels: int
    size: tuple[int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    events: list[str]


def data_options(config: TrainConfig, split: str) -> DataOptions:
    """Return how a split of the configuration's data is read."""
    return DataOptions(
        split=split, config=config.data_config, revision=config.revision, image_column=config.image_column,
        label_column=config.label_column, resize=config.resize, crop=config.crop, grey=config.grey,
    )  # fmt: skip


def prepare_data(
    config: TrainConfig, registry: Registry, device: torch.device, *, channels_last: bool, say: Say = lambda _: None
) -> TrainingData:
    """Read the training split, hold out the validation images, and make the duplication plan. Raises UserError.

    Training images are those of the split that are neither held out nor a near-duplicate of one that is. All that is
    drawn is keyed by the images' rows in the split, so that runs on other data or doses are paired with this one.
    """
    rows = open_rows(config.data, data_options(config, config.split), registry)
    place = f"{config.data} ({config.split})"
    index, selection = select(len(rows), n=config.n, sample=config.sample, seed=config.seed, place=place)
    count = validation_count(config.validation, len(index))
    events = list(getattr(rows, "notes", ()))
    say(f"reading {len(index):,} images of {place}")
    pixels, labels = load_pixels(rows, index.tolist())
    held = held_out_places(index, count, config.seed)
    kept = torch.ones(len(index), dtype=torch.bool)
    kept[held] = False
    n_kept_out = 0
    if count and not config.keep_near_duplicates:
        say(f"looking for near-duplicates of {count:,} validation images")
        near = _duplicates_of(pixels, held, kept, events)
        kept[near] = False
        n_kept_out = len(near)
    if not kept.any():
        raise UserError(
            f"No image of {place} is left to train on: {count} are held out and {n_kept_out} are near them."
        )
    classes = len(rows.class_names) or int(labels.max()) + 1
    source = _Source(pixels[kept], labels[kept], index[kept], list(rows.class_names), classes)
    plan, other = _plan(config, source, registry, say)
    entries = _entries(config, source, plan, other, device, channels_last)
    mean, std = statistics(source.pixels)
    info = DataInfo(
        spec=config.data, split=config.split, config=config.data_config,
        revision=getattr(rows, "revision", None) or config.revision, n_total=len(rows), selection=selection,
        image_shape=list(pixels.shape[1:]), class_names=source.class_names, fingerprint=_fingerprint(pixels, labels),
    )  # fmt: skip
    return TrainingData(
        entries=entries, held_out=_held_out(pixels, labels, index, held), plan=plan,
        duplication=_duplication_info(plan, config), info=info, n_kept_out=n_kept_out, channels=pixels.shape[1],
        size=(pixels.shape[2], pixels.shape[3]), classes=classes, mean=mean, std=std, events=events,
    )  # fmt: skip


@dataclass(frozen=True)
class _Source:
    """What duplication plans choose from: the images left to train on, and their rows in the split."""

    pixels: Tensor
    labels: Tensor
    index: Tensor
    class_names: list[str]
    classes: int


def validation_count(validation: float, total: int) -> int:
    """Return how many of `total` images are held out: a share below 1, or a number. Raises UserError for too many."""
    count = round(validation * total) if validation < 1 else int(validation)
    if validation >= 1 and count != validation:
        raise UserError(f"validation is a share below 1 or a whole number of images, got {validation:g}.")
    if count >= total:
        raise UserError(
            f"validation = {validation:g} holds out {count:,} images, but there are only {total:,}: none is left to train on."
        )
    return count


def held_out_places(index: Tensor, count: int, seed: int) -> Tensor:
    """Return the places (count,) of the held-out images, in rising order: those with the smallest random words."""
    words = SampleRng(seed, index).fold("validation").bits()
    return words.argsort(stable=True)[:count].sort().values


def _duplicates_of(pixels: Tensor, held: Tensor, kept: Tensor, events: list[str]) -> Tensor:
    """Return the places of training images that are duplicates of held-out ones: near ones, or exact ones of tiny images."""
    places = kept.nonzero().squeeze(1)
    if min(pixels.shape[2:]) < SMALLEST_FOR_NEAR:
        events.append(
            f"Images of {pixels.shape[2]}x{pixels.shape[3]} pixels are too small to tell near-duplicates from similar ones: "
            "only exact duplicates of validation images were kept out of training."
        )
        seen = {row.numpy().tobytes() for row in pixels[held]}
        same = [place for place in places.tolist() if pixels[place].numpy().tobytes() in seen]
        return torch.tensor(same, dtype=torch.int64)
    from robustdup.data.detect import near_duplicates

    as_bytes = pixels if pixels.dtype == torch.uint8 else to_bytes(pixels)
    pairs = near_duplicates(as_bytes[held], as_bytes[places])
    return places[torch.unique(pairs.index_b)]


def _plan(
    config: TrainConfig, source: _Source, registry: Registry, say: Say
) -> tuple[DuplicationPlan, tuple[Tensor, Tensor, Tensor] | None]:
    """Return the plan, and for `leak` the images, labels and numbers of the split that leaks in."""
    options, other = config.duplicate, None
    if options.scheme == "leak":
        rows = open_rows(config.data, data_options(config, options.leak_from), registry)
        say(f"reading {len(rows):,} images of {config.data} ({options.leak_from})")
        pixels, labels = load_pixels(rows, list(range(len(rows))))
        other = pixels, labels, torch.arange(len(rows)) + (1 << 31)  # numbers of their own, apart from the source's
    plan = make_plan(
        source.labels, options, seed=config.seed if options.seed is None else options.seed,
        scores=_scores(config, source, registry, say), class_names=source.class_names,
        n_other=0 if other is None else len(other[0]), other_labels=None if other is None else other[1],
    )  # fmt: skip
    return plan, other


def _scores(config: TrainConfig, source: _Source, registry: Registry, say: Say) -> Tensor | None:
    """Return the margins of `score_model` on the source images, where the scheme ranks them."""
    if config.duplicate.scheme not in ("hardest", "easiest"):
        return None
    if config.score_model is None:
        raise UserError(
            f"duplicate.scheme = {config.duplicate.scheme} ranks images by a model's margin: name it with score_model."
        )
    from robustdup.attacks.losses import margin
    from robustdup.models.load import load_model

    say(f"scoring {len(source.pixels):,} images with {config.score_model}")
    model = load_model(config.score_model, registry=registry, allow_pickle=config.allow_pickle)
    with torch.no_grad():
        parts = [
            -margin(model(_floats(pixels)), labels)
            for pixels, labels in zip(torch.split(source.pixels, 256), torch.split(source.labels, 256), strict=True)
        ]
    return torch.cat(parts)


def _entries(
    config: TrainConfig, source: _Source, plan: DuplicationPlan, other: tuple[Tensor, Tensor, Tensor] | None,
    device: torch.device, channels_last: bool,
) -> TrainingSet:  # fmt: skip
    pixels, labels, index = source.pixels, source.labels, source.index
    if other is not None:
        pixels, labels, index = (torch.cat(pair) for pair in zip((pixels, labels, index), other, strict=True))
    weights, used = None, plan
    if config.as_weights and config.duplicate.scheme != "none":
        every = plan.weights()
        chosen = every > 0
        pixels, labels, index, weights = pixels[chosen], labels[chosen], index[chosen], every[chosen]
        used = make_plan(labels, DuplicationOptions.model_validate({}), seed=plan.seed)
    return TrainingSet(
        pixels, labels, plan=used, index=index, weights=weights, seed=config.seed, augment=config.augment,
        padding=config.padding, share_augmentation=config.share_augmentation, channels_last=channels_last,
        classes=source.classes, device=device,
    )  # fmt: skip


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


def _held_out(pixels: Tensor, labels: Tensor, index: Tensor, held: Tensor) -> HeldOut | None:
    return HeldOut(_floats(pixels[held]), labels[held], index[held]) if len(held) else None


def _fingerprint(pixels: Tensor, labels: Tensor) -> str:
    """Return one SHA-256 (hex) over the images as they are kept, their labels and their order."""
    digest = hashlib.sha256(f"{pixels.dtype}{tuple(pixels.shape)}".encode())
    for part in (pixels, labels):
        digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _duplication_info(plan: DuplicationPlan, config: TrainConfig) -> DuplicationInfo | None:
    if config.duplicate.scheme == "none":
        return None
    readings = plan.readings()
    return DuplicationInfo(
        scheme=plan.scheme, mode=plan.mode, dose=plan.dose, hash=plan.hash, entries=len(plan), unique=readings.unique,
        near=None if plan.near is None else plan.near.text, as_weights=config.as_weights, options=plan.options,
        readings=asdict(readings),
    )  # fmt: skip
