"""Extra training images, generated ones mostly: read, labelled by a model where asked for, compared with the training data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from robustdup.config import DataOptions, TrainConfig
from robustdup.data.cache import load_pixels
from robustdup.data.passes_over import extra_rows
from robustdup.data.sources import open_samples
from robustdup.errors import UserError
from robustdup.jobs.training_images import Images, as_floats, duplicates_among, fingerprint_of
from robustdup.models.class_names import match_classes
from robustdup.models.load import load_model
from robustdup.plugins import Registry
from robustdup.records import ExtraDataInfo

FIRST_INDEX = 3 << 30  # where the indices of extra images begin: behind all that the training data can have

Say = Callable[[str], None]


def read_extra(
    config: TrainConfig,
    source: Images,
    registry: Registry,
    *,
    class_names: Sequence[str],
    classes: int,
    held_out: Tensor | None,
    events: list[str],
    say: Say,
) -> tuple[Images, ExtraDataInfo] | None:
    """Return extra images, with indices of their own, and what the record says of them; None where none are named.

    Args:
        config: extra_data, extra_split, extra_share, extra_labels, and how training images are read.
        source: the training images.
        registry: the sources of data and models.
        class_names: the classes of the training data; empty where unknown.
        classes: their number.
        held_out: the validation images (n, C, H, W), whose duplicates are left out; None keeps all.
        events: what the record says of the run; more is added.
        say: is told what is done.

    Raises:
        UserError: images of another shape, labels that are no class, training images that stay on the disk.
    """
    if config.extra_data is None:
        check_without(config)
        return None
    if source.pixels is None:
        raise UserError(
            "extra_data needs the training images in memory: in_memory = yes, or fewer of them (n, sample, resize).",
            code="options-conflict",
        )
    check_share(config)
    options = extra_options(config)
    samples = open_samples(config.extra_data, options, registry, lenient=True)
    name = config.extra_data
    say(f"reading {len(samples):,} extra images of {name}")
    pixels, labels = load_pixels(samples, range(len(samples)))
    if pixels.shape[1:] != source.pixels.shape[1:]:
        theirs, ours = ("x".join(map(str, images.shape[1:])) for images in (pixels, source.pixels))
        raise UserError(
            f"The extra images of {name} are {theirs} (channels, height, width), those of {config.data} are {ours}. resize, "
            "crop and grey are applied to both.",
            code="different-sizes",
        )
    given = labels
    if config.extra_labels is not None:
        labels = pseudo_labels(config, pixels, registry, classes, say)
    else:
        labels = _renumbered(labels, list(samples.class_names), list(class_names), name)
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise UserError(
            f"The labels of {name} run from {int(labels.min())} to {int(labels.max())}; {config.data} has the classes 0 to "
            f"{classes - 1}.",
            code="bad-labels",
        )
    index = torch.arange(len(labels))
    excluded = 0
    if held_out is not None and not config.keep_near_duplicates:
        say(f"looking for near-duplicates of validation images among {len(labels):,} extra images")
        kept = torch.ones(len(labels), dtype=torch.bool)
        kept[duplicates_among(pixels, held_out, registry, events)] = False
        excluded = int((~kept).sum())
        pixels, labels, index, given = pixels[kept], labels[kept], index[kept], given[kept]
    if not len(labels):
        raise UserError(f"No image of {name} is left: all are near validation images.", code="no-data")
    known = config.extra_labels is not None and bool((given >= 0).all())
    extra = Images(samples, index, labels, pixels)
    info = ExtraDataInfo(
        spec=name,
        split=options.split,
        n=len(labels),
        n_excluded=excluded,
        share=config.extra_share,
        in_batch=extra_rows(config.batch_size, config.extra_share),
        labels=config.extra_labels or "given",
        agreement=float((labels == given).double().mean()) if known else None,
        fingerprint=fingerprint_of(extra),
    )
    events += getattr(samples, "notes", ())
    return replace(extra, index=index + FIRST_INDEX), info


def extra_options(config: TrainConfig) -> DataOptions:
    """Return how the extra data is opened: like the training data, but with columns and a revision of its own."""
    options = replace(config.data_options(config.extra_split or "train"), config=None, revision=None)
    return replace(options, image_column=None, label_column=None, needs_labels=config.extra_labels is None)


def check_without(config: TrainConfig) -> None:
    """Raise UserError for settings of extra data where there is none."""
    for name in ("extra_split", "extra_labels"):
        if getattr(config, name) is not None:
            raise UserError(f"{name} is about extra data: name it with extra_data.", code="missing-option")
    if config.extra_share != TrainConfig.model_fields["extra_share"].default:
        raise UserError("extra_share is about extra data: name it with extra_data.", code="missing-option")


def check_share(config: TrainConfig) -> None:
    """Raise UserError for a share that gives a batch no extra image, or only such."""
    rows = extra_rows(config.batch_size, config.extra_share)
    if not 0 < rows < config.batch_size:
        raise UserError(
            f"extra_share = {config.extra_share:g} of a batch of {config.batch_size} is {rows} images: at least one of each kind "
            "is needed. Take a larger batch_size, or a share nearer to 0.5.",
            code="bad-value",
        )


def pseudo_labels(config: TrainConfig, pixels: Tensor, registry: Registry, classes: int, say: Say) -> Tensor:
    """Return the classes (N,) that the model `extra_labels` gives images (N, C, H, W). Raises UserError."""
    spec = str(config.extra_labels)
    say(f"labelling {len(pixels):,} extra images with {spec}")
    model = load_model(spec, registry=registry, allow_pickle=config.allow_pickle)
    answers = []
    with torch.no_grad():
        for part in torch.split(pixels, 256):
            logits = model(as_floats(part))
            if getattr(logits, "ndim", 0) != 2 or logits.shape[1] != classes:
                got = tuple(getattr(logits, "shape", ())) or type(logits).__name__
                raise UserError(
                    f"extra_labels: {spec} must answer with logits of the {classes} classes of {config.data}; got {got}.",
                    code="model-and-data",
                )
            answers.append(logits.argmax(dim=1))
    return torch.cat(answers)


def _renumbered(labels: Tensor, theirs: list[str], ours: list[str], name: str) -> Tensor:
    """Return labels (N,) by the numbers that the training data have for their names. Raises UserError."""
    if not theirs or not ours or theirs == ours:
        return labels
    match = match_classes(ours, theirs, outputs=len(ours), labels=labels.unique().tolist())  # type: ignore[no-untyped-call]
    if match.doubtful:
        raise UserError(
            f"The classes of {name} ({', '.join(theirs[:3])}, …) are not those of the training data ({', '.join(ours[:3])}, …).",
            code="bad-labels",
        )
    return labels if match.order is None else torch.tensor(match.order)[labels]
