"""Images of a split as a training reads them: kept in memory or left on the disk, compared, fingerprinted, averaged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from robustdup.attacks.losses import margin
from robustdup.config import TrainConfig
from robustdup.data.batches import to_bytes
from robustdup.data.cache import load_pixels, searched
from robustdup.data.dataset import Samples
from robustdup.data.streaming import read_labels
from robustdup.errors import UserError, how_to_install
from robustdup.models.load import load_model
from robustdup.plugins import Registry
from robustdup.plugins.options import resolved

IN_MEMORY = 8 * 2**30  # bytes of pixels that are kept in memory without being asked to
FOR_FINGERPRINT = 1_000  # images on disk that stand for all
SMALLEST_FOR_NEAR = 16  # pixels a side below which near-duplicates cannot be told from similar images


@dataclass(frozen=True)
class Images:
    """Images of a split with their labels (N,) and indices (N,): `pixels` (N, C, H, W), or None where they stay on disk."""

    samples: Samples
    index: Tensor
    labels: Tensor
    pixels: Tensor | None

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, kept: Tensor) -> Images:
        """Keep the images that a mask or an index names."""
        pixels = None if self.pixels is None else self.pixels[kept]
        return Images(self.samples, self.index[kept], self.labels[kept], pixels)

    def followed_by(self, others: Images) -> Images:
        """Return these images with others behind them, all in memory, as floats where one of both is."""
        pixels, more = self.pixels, others.pixels
        assert pixels is not None
        assert more is not None
        if pixels.dtype != more.dtype:
            pixels, more = as_floats(pixels), as_floats(more)
        index, labels = torch.cat([self.index, others.index]), torch.cat([self.labels, others.labels])
        return Images(self.samples, index, labels, torch.cat([pixels, more]))

    def take(self, positions: Tensor) -> Tensor:
        """Return the pixels at these positions, read if need be."""
        if self.pixels is not None:
            return self.pixels[positions]
        return load_pixels(self.samples, self.index[positions].tolist())[0]


def read_images(samples: Samples, index: Tensor, config: TrainConfig) -> Images:
    """Read all images into memory, unless they are too many or are asked to stay where they are."""
    first, _ = samples.fetch([int(index[0])])
    keep = config.in_memory is True or (config.in_memory == "auto" and first.numel() * len(index) <= IN_MEMORY)
    if keep:
        pixels, labels = load_pixels(samples, index.tolist())
        return Images(samples, index, labels, pixels)
    return Images(samples, index, read_labels(samples, index), None)


def duplicates_of(images: Images, held: Tensor, kept: Tensor, registry: Registry, events: list[str]) -> Tensor:
    """Return the positions of training images that are duplicates of held-out ones: near ones, or exact ones of tiny images."""
    positions, pixels = kept.nonzero().squeeze(1), images.pixels
    if pixels is None:
        events.append(
            "The images stay on disk: near-duplicates of validation images were not looked for. Find and remove them with "
            "'robustdup data detect'."
        )
        return positions[:0]
    return positions[duplicates_among(pixels[positions], pixels[held], registry, events)]


def duplicates_among(pixels: Tensor, held: Tensor, registry: Registry, events: list[str]) -> Tensor:
    """Return the positions of the images that are duplicates of held-out ones: near ones, or exact ones of tiny images."""
    shape = "x".join(str(side) for side in pixels.shape[1:])
    if min(pixels.shape[2:]) < SMALLEST_FOR_NEAR or pixels.shape[1] not in (1, 3):
        reason = f"Near-duplicates cannot be told from similar images of {shape} values"
    elif not registry.duplicate_finders:
        reason = f"No plugin here searches for near-duplicates ({how_to_install('robustdup[detect]')})"
    else:
        finder, a, b = registry.get_duplicate_finder(), as_bytes(held), as_bytes(pixels)
        # The cells of a study hold out the same images again and again.
        return searched(
            lambda: (resolved(finder.find), digest(a), digest(b)), lambda: torch.unique(finder.find(a, b).b)
        )
    event = f"{reason}: only exact duplicates of validation images were kept out of training."
    events += [] if event in events else [event]
    contents = {image.numpy().tobytes() for image in as_bytes(held)}
    same = [place for place, image in enumerate(as_bytes(pixels)) if image.numpy().tobytes() in contents]
    return torch.tensor(same, dtype=torch.int64)


def as_bytes(pixels: Tensor) -> Tensor:
    """Return pixels (N, C, H, W), bytes or floats in [0, 1], as bytes."""
    return pixels if pixels.dtype == torch.uint8 else to_bytes(pixels)


def statistics(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of images (N, C, H, W), in units of [0, 1]."""
    count, total, square = 0, torch.zeros(pixels.shape[1]).double(), torch.zeros(pixels.shape[1]).double()
    for part in torch.split(pixels, 2048):
        values = as_floats(part).double()
        count += values.numel() // values.shape[1]
        total += values.sum(dim=(0, 2, 3))
        square += values.square().sum(dim=(0, 2, 3))
    mean = total / count
    std = (square / count - mean.square()).clamp(min=1e-6).sqrt()
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(max(v, 0.05), 4) for v in std.tolist())


def as_floats(pixels: Tensor) -> Tensor:
    """Return pixels (N, C, H, W), bytes or floats, as floats in [0, 1]."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def fingerprint_of(images: Images) -> str:
    """Return one SHA-256 (hex) over the images, their labels and their order; of images on disk, over some of them."""
    every = 1 if images.pixels is not None else max(1, len(images) // FOR_FINGERPRINT)
    pixels = images.take(torch.arange(0, len(images), every))
    return digest(pixels, images.labels, n=len(images))


def digest(pixels: Tensor, *others: Tensor, n: int | None = None) -> str:
    """Return one SHA-256 (hex) over pixels, their type and shape, the number `n` that they stand for, and other tensors."""
    content = hashlib.sha256(f"{pixels.dtype}{tuple(pixels.shape)}{len(pixels) if n is None else n}".encode())
    for part in (pixels, *others):
        content.update(part.contiguous().numpy().tobytes())
    return content.hexdigest()


def margins_of(
    spec: str, batches: Iterable[tuple[Tensor, Tensor]], registry: Registry, *, allow_pickle: bool
) -> Tensor:
    """Return the logit of the true class minus the largest other one, float32 (n,): the lower, the harder for a model.

    Args:
        spec: the model.
        batches: images (k, C, H, W) in [0, 1] with labels (k,), n in all.
        registry: the sources of models.
        allow_pickle: whether weights may be pickles.

    Raises:
        UserError: a label that is none of the model's classes.
    """
    model = load_model(spec, registry=registry, allow_pickle=allow_pickle)
    margins = []
    with torch.inference_mode():
        for images, labels in batches:
            logits = model(images)
            if int(labels.max()) >= logits.shape[1]:
                raise UserError(
                    f"{spec} knows {logits.shape[1]} classes, but a label is {int(labels.max())}.", code="bad-labels"
                )
            margins.append(margin(logits, labels))
    return torch.cat(margins).float()
