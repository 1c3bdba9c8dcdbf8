"""Images with their labels, and what identifies them: a hash for each image, a fingerprint for all."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from robustdup.config import DataOptions
from robustdup.errors import UserError

Selection = Literal["all", "first", "sample", "stratified", "given"]
GRID = 1e-4  # how far 255 times a value on the 8-bit grid may be from a whole number
IMAGES_AT_ONCE = 256  # whose distances to the grid are held in memory


class Samples(Protocol):
    """The samples of one split, decoded only when they are fetched: what a data source returns.

    A source may also have `labels(indices)`, which decodes no image, `revision` and `notes` for the record, and `outputs`: which
    output of a model each class is, where it has only some of the model's classes.
    """

    @property
    def class_names(self) -> Sequence[str]:
        """The classes in order; empty where unknown."""

    def __len__(self) -> int: ...

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images float32 (n, C, H, W) in [0, 1] and labels int64 (n,) of these samples, in this order."""


@dataclass(frozen=True)
class ImageDataset:
    """Images with their labels, in memory, and where they come from.

    `images` are float32 (N, C, H, W) in [0, 1], `labels` int64 (N,), `index` int64 (N,) the samples' indices in the split,
    `hashes` one SHA-256 an image. `n_total` samples does the split have. `notes` say what a reader should know, such as which
    of several columns was taken. `outputs` are those of a model that are its classes, where it has only some of the model's.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    class_names: list[str]
    hashes: list[str]
    fingerprint: str
    spec: str
    split: str
    config: str | None
    revision: str | None
    n_total: int
    selection: Selection
    notes: tuple[str, ...] = ()
    outputs: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return self.images.shape[0]


def on_8bit_grid(images: Tensor) -> bool:
    """Tell whether images (..., C, H, W) are bytes divided by 255: each value within 1e-4 / 255 of one, in [0, 1]."""
    for part in torch.split(images, IMAGES_AT_ONCE) if images.ndim > 3 else [images]:
        values = part.double() * 255
        levels = values.round()
        if not bool((((values - levels).abs() <= GRID) & (levels >= 0) & (levels <= 255)).all()):
            return False
    return True


def image_hashes(images: Tensor) -> list[str]:
    """Return the SHA-256 (hex) of each image of (N, C, H, W) in [0, 1].

    An image on the 8-bit grid (255 x is whole within 1e-4) is hashed as `HxWxC` and its bytes, rows first, channels
    last; any other as `HxWxC:float32` and its float32 values, little-endian, in the same order.
    """
    hashes = []
    for image in images.detach().cpu().float():
        channels, height, width = image.shape
        pixels = image.permute(1, 2, 0).contiguous()
        if on_8bit_grid(pixels):
            levels = (pixels.double() * 255).round().to(torch.uint8)
            content = f"{height}x{width}x{channels}".encode() + levels.numpy().tobytes()
        else:
            content = f"{height}x{width}x{channels}:float32".encode() + pixels.numpy().astype("<f4").tobytes()
        hashes.append(hashlib.sha256(content).hexdigest())
    return hashes


def fingerprint(images: Tensor, labels: Tensor) -> str:
    """Return one SHA-256 (hex) for images (N, C, H, W) with labels (N,), in this order."""
    return _fingerprint(image_hashes(images), labels)


def _fingerprint(hashes: Sequence[str], labels: Tensor) -> str:
    lines = (f"{digest} {label}\n" for digest, label in zip(hashes, labels.tolist(), strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def make_dataset(
    images: Tensor,
    labels: Tensor,
    index: Tensor,
    *,
    spec: str,
    options: DataOptions,
    class_names: Sequence[str],
    n_total: int,
    selection: Selection,
    notes: tuple[str, ...] = (),
) -> ImageDataset:
    """Return images with what identifies them, after checking them.

    Args:
        images: Float32 (N, C, H, W) in [0, 1].
        labels: Int64 (N,).
        index: The samples' indices in the split, int64 (N,).
        spec: What the user named the data.
        options: How it was read: its split, configuration and revision.
        class_names: The classes in order; empty where unknown.
        n_total: Samples of the split.
        selection: How the samples were chosen.
        notes: What a reader should know.

    Raises:
        UserError: bad-images or bad-labels.
    """
    check_images(images)
    check_labels(labels, images.shape[0], len(class_names) or None)
    hashes = image_hashes(images)
    return ImageDataset(
        images=images,
        labels=labels,
        index=index,
        class_names=list(class_names),
        hashes=hashes,
        fingerprint=_fingerprint(hashes, labels),
        spec=spec,
        split=options.split,
        config=options.config,
        revision=options.revision,
        n_total=n_total,
        selection=selection,
        notes=notes,
    )


def from_tensors(
    images: Any,
    labels: Any,
    *,
    class_names: Sequence[str] | None = None,
    index: Tensor | None = None,
    spec: str = "tensors",
    split: str = "given",
) -> ImageDataset:
    """Return given images and labels as a dataset, on the CPU.

    Args:
        images: Tensor or array (N, C, H, W) of any floating type, in [0, 1].
        labels: Tensor or array of integers (N,).
        class_names: The classes in order.
        index: The samples' own numbers, int64 (N,); 0..N-1 if not given.
        spec: What to call the data.
        split: What to call the split.

    Raises:
        UserError: bad-images, bad-labels or bad-value.
    """
    images, labels = _tensor("images", images), _tensor("labels", labels)
    check_images(images)
    check_labels(labels, images.shape[0], len(class_names) if class_names else None)
    n = images.shape[0]
    indices = torch.arange(n) if index is None else _tensor("index", index)
    if indices.dtype != torch.int64 or tuple(indices.shape) != (n,):
        came = f"{_short(indices.dtype)} of shape {tuple(indices.shape)}"
        raise UserError(f"index must be int64 of shape ({n},), got {came}.", code="bad-value")
    return make_dataset(
        images.detach().cpu().float().contiguous(),
        labels.detach().cpu().long().contiguous(),
        indices.cpu(),
        spec=spec,
        options=DataOptions(split=split),
        class_names=list(class_names or []),
        n_total=n,
        selection="given",
    )


def _tensor(name: str, values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(
            f"{name} must be a torch tensor or a numpy array, got a {type(values).__name__}.", code="bad-value"
        ) from None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_images(images: Tensor) -> None:
    """Raise UserError unless images are floats of shape (N, C, H, W), N > 0, finite and in [0, 1]."""
    if images.ndim != 4:
        raise UserError(
            f"images must have the shape (N, C, H, W), got {tuple(images.shape)}. "
            "Grey images have C = 1: images.unsqueeze(1).",
            code="bad-images",
        )
    if images.shape[0] == 0 or images.numel() == 0:
        raise UserError(f"There are no images: the shape is {tuple(images.shape)}.", code="bad-images")
    if not images.is_floating_point():
        advice = " Divide by 255: images.float() / 255." if images.dtype == torch.uint8 else ""
        raise UserError(f"images must be floats in [0, 1], got {_short(images.dtype)}.{advice}", code="bad-images")
    finite = images.isfinite().flatten(1).all(dim=1)
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        raise UserError(
            f"{int((~finite).sum())} images hold NaN or infinity, the first is number {first}.", code="bad-images"
        )
    low, high = float(images.min()), float(images.max())
    if low < 0:
        raise UserError(
            f"images must be in [0, 1], got values from {low:.4g} to {high:.4g}. "
            "They look normalised: move the normalisation into the model, and give plain pixels.",
            code="bad-images",
        )
    if high > 1:
        raise UserError(
            f"images must be in [0, 1], got values from {low:.4g} to {high:.4g}. Divide by 255: images / 255.",
            code="bad-images",
        )


def check_labels(labels: Tensor, n: int, classes: int | None = None) -> None:
    """Raise UserError unless labels are `n` integers from 0, below `classes` where that is known."""
    if labels.dtype.is_floating_point or labels.dtype == torch.bool or labels.dtype.is_complex:
        raise UserError(
            f"labels must be integers, got {_short(labels.dtype)}. Write labels.long() if they are class numbers.",
            code="bad-labels",
        )
    if labels.ndim != 1:
        raise UserError(
            f"labels must have the shape (N,), got {tuple(labels.shape)}. Class numbers, not one-hot rows.",
            code="bad-labels",
        )
    if labels.shape[0] != n:
        raise UserError(f"There are {n} images but {labels.shape[0]} labels.", code="bad-labels")
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise UserError(
            f"labels must be 0 or above, got {low}. (Some datasets mark a hidden label with -1.)", code="bad-labels"
        )
    if classes is not None and high >= classes:
        raise UserError(f"labels must be below the number of classes, {classes}; got {high}.", code="bad-labels")
