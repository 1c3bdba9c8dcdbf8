"""Images and labels that lie in arrays: which axis is which, which scale, and the samples of a split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from robustdup.data.classes import number_classes
from robustdup.data.columns import picture_table
from robustdup.data.decode import check_options, fit, stack, to_tensor
from robustdup.errors import UserError

if TYPE_CHECKING:
    import datasets

    from robustdup.config import DataOptions

CHANNELS = (1, 3, 4)
LOOKED_AT = 64  # images whose smoothness is measured
SMOOTHER = 0.8  # of the other reading's roughness, below which a reading is believed
FEW = 16  # pixels, below which values say nothing of the scale


@dataclass(frozen=True)
class Arrays:
    """One split in memory: `images` uint8 or float32 in [0, 1], (N, C, H, W); `labels` int64 (N,), or None."""

    images: np.typing.NDArray[Any]
    labels: np.typing.NDArray[np.int64] | None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


def make_arrays(images: Any, labels: Any, place: str, *, class_names: Sequence[str] = ()) -> Arrays:
    """Return images and labels of any usual form as a split.

    Args:
        images: (N, H, W, C), (N, C, H, W), (N, H, W), (H, W, C, N), or rows (N, D) of pixels, planes one after the other or
            channels side by side, told by which is smoother; bytes, whole numbers to 255 or 65,535, or floats in [0, 1] or
            [0, 255].
        labels: class numbers (N,), (N, 1) or (1, N), whole floats, true and false, one-hot rows (N, K), or text; None for none.
        place: what to call the data.
        class_names: the classes in order, where they are known.

    Raises:
        UserError: bad-images or bad-labels.
    """
    images, labels = np.asarray(images), None if labels is None else np.asarray(labels)
    turned = []
    if labels is not None and images.ndim == 4 and images.shape[-1] == labels.size != len(images):
        images, turned = np.moveaxis(images, -1, 0), [f"The samples of {place} lie along the last axis."]
    pixels, notes = _pixels(images, place)
    notes = [*turned, *notes]
    if labels is None:
        return Arrays(pixels, None, tuple(class_names), tuple(notes))
    if labels.shape == (1, len(pixels)):
        labels = labels[0]
    numbers, names, remarks = class_numbers(labels, place)
    if len(numbers) != len(pixels):
        raise UserError(f"{place} has {len(pixels)} images but {len(numbers)} labels.", code="bad-labels")
    return Arrays(pixels, numbers, tuple(class_names or names), (*notes, *remarks))


def class_numbers(
    labels: np.typing.NDArray[Any], place: str
) -> tuple[np.typing.NDArray[np.int64], list[str], list[str]]:
    """Return labels of any usual form as class numbers (N,), the class names where they were text, and what to tell."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.dtype.kind in "biuf":
        if not (np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all()):
            raise UserError(
                f"The labels of {place} are rows that are not one-hot: one class an image is needed.", code="bad-labels"
            )
        return (
            labels.argmax(axis=1).astype(np.int64),
            [],
            [f"The labels of {place} are one-hot rows; the place of the 1 is the class."],
        )
    if labels.ndim != 1:
        raise UserError(
            f"The labels of {place} have the shape {labels.shape}; give one class an image.", code="bad-labels"
        )
    kind = labels.dtype.kind
    if kind == "b":
        return labels.astype(np.int64), ["False", "True"], []
    if kind in "iu":
        return labels.astype(np.int64), [], []
    if kind == "f":
        if not np.isfinite(labels).all() or (labels != np.round(labels)).any():
            raise UserError(f"The labels of {place} are fractions, not classes.", code="bad-labels")
        return labels.astype(np.int64), [], []
    text = [value.decode() if isinstance(value, bytes) else str(value) for value in labels.tolist()]
    names, numbers, remarks = number_classes(text)
    return np.array([numbers[word] for word in text], dtype=np.int64), names, remarks


def _pixels(images: np.typing.NDArray[Any], place: str) -> tuple[np.typing.NDArray[Any], list[str]]:
    values, notes = _scaled(images, place)
    shape = values.shape
    if values.ndim == 2:
        side = math.isqrt(shape[1] // 3) if shape[1] % 3 == 0 else 0
        if side and 3 * side * side == shape[1]:
            return _flat_colours(values, side, place, notes)
        side = math.isqrt(shape[1])
        if side * side == shape[1]:
            return values.reshape(-1, 1, side, side), notes
    if values.ndim == 3:
        return values[:, None], notes
    if values.ndim == 4 and shape[3] in CHANNELS and (shape[1] not in CHANNELS or shape[1] == shape[2] != shape[3]):
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2)), notes
    if values.ndim == 4 and shape[1] in CHANNELS:
        return values, notes
    raise UserError(
        f"The images of {place} have the shape {shape}; (N, H, W, C), (N, C, H, W), (N, H, W) or square rows (N, D) are read, "
        f"with C = 1, 3 or 4.", code="bad-images",
    )  # fmt: skip


def _flat_colours(
    values: np.typing.NDArray[Any], side: int, place: str, notes: list[str]
) -> tuple[np.typing.NDArray[Any], list[str]]:
    """Return rows of pixels as (N, 3, side, side): planes one after the other as in CIFAR, unless the other way is smoother."""
    planes = values.reshape(-1, 3, side, side)
    pixels = values.reshape(-1, side, side, 3).transpose(0, 3, 1, 2)
    rough = [float(np.abs(np.diff(each[:LOOKED_AT].astype(np.float32), axis=3)).mean()) for each in (planes, pixels)]
    if rough[1] < SMOOTHER * rough[0]:
        return np.ascontiguousarray(pixels), [
            *notes,
            f"The rows of {place} hold the channels of each pixel side by side.",
        ]
    return planes, notes


def _scaled(images: np.typing.NDArray[Any], place: str) -> tuple[np.typing.NDArray[Any], list[str]]:
    """Return images as bytes, or as float32 in [0, 1]."""
    if images.dtype.kind not in "biuf" or images.size == 0:
        raise UserError(
            f"There are no numbers to read as images in {place}: {images.dtype}, {images.shape}.", code="bad-images"
        )
    if images.dtype == np.uint8 and (int(images.max()) != 1 or images[0].size < FEW):
        return images, []
    low, high = float(images.min()), float(images.max())
    if not math.isfinite(low) or not math.isfinite(high):
        raise UserError(f"The images of {place} hold NaN or infinity.", code="bad-images")
    if low < 0:
        raise UserError(
            f"The images of {place} have values from {low:.4g} to {high:.4g}. They look normalised: give plain pixels, and "
            "put the normalisation into the model.", code="bad-images",
        )  # fmt: skip
    if images.dtype.kind == "f" and 0 < high <= 1.001 / 255 and images[0].size >= FEW:
        raise UserError(
            f"The images of {place} have values to {high:.4g} and would be black: were they divided by 255 twice?",
            code="bad-images",
        )
    if images.dtype.kind == "b" or high <= 1:
        notes = [f"The bytes of {place} are 0 and 1 alone; they are taken as black and white."]
        return images.astype(np.float32), notes if images.dtype == np.uint8 else []
    if high <= 255:
        whole = images.dtype.kind in "iu" or bool((images == np.round(images)).all())
        scaled = images.astype(np.uint8) if whole else images.astype(np.float32) / np.float32(255)
        return scaled, [f"The pixels of {place} are numbers up to {high:.4g}; they are divided by 255."]
    if high <= 65535 and images.dtype.kind in "iu":
        return images.astype(np.float32) / np.float32(65535), [
            f"The pixels of {place} have 16 bits; they are divided by 65,535."
        ]
    raise UserError(
        f"The images of {place} have values from {low:.4g} to {high:.4g}: the scale is unknown.", code="bad-images"
    )


class ArraySamples:
    """The samples of a split that lies in arrays."""

    revision = None
    split: str | None = None

    def __init__(self, arrays: Arrays, options: DataOptions, place: str) -> None:
        check_options(options)
        labels = arrays.labels
        if labels is None and options.needs_labels:
            raise UserError(f"{place} has images but no labels.", code="no-label")
        self._labels = np.full(len(arrays), -1, dtype=np.int64) if labels is None else labels
        self._arrays, self._options, self._place = arrays, options, place
        self.class_names, self.notes = list(arrays.class_names), arrays.notes

    def __len__(self) -> int:
        return len(self._arrays)

    def add_notes(self, notes: tuple[str, ...]) -> None:
        """Put notes before those of the arrays."""
        self.notes = (*notes, *self.notes)

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images float32 (n, C, H, W) in [0, 1] and labels int64 (n,) of these samples. Raises UserError."""
        index = np.asarray(list(indices), dtype=np.int64)
        pixels = self._arrays.images[index]
        options = self._options
        if options.grey or options.resize is not None or options.crop is not None:
            try:
                images = stack([_shaped(image, options) for image in pixels], list(indices), self._place)
            except ValueError as error:
                raise UserError(f"An image of {self._place} {error}.", code="bad-option") from None
        else:
            images = torch.from_numpy(np.ascontiguousarray(pixels)).float()
            images = images / 255 if pixels.dtype == np.uint8 else images
        return images, torch.from_numpy(self._labels[index])

    def labels(self, indices: Sequence[int]) -> list[int]:
        """Return the labels of these samples."""
        return [int(label) for label in self._labels[np.asarray(list(indices), dtype=np.int64)]]


def _shaped(image: np.typing.NDArray[Any], options: DataOptions) -> Tensor:
    """Return one image (C, H, W) resized, cropped and made grey: bytes as a picture file would be."""
    if image.dtype == np.uint8 and image.shape[0] in (1, 3):
        return to_tensor(picture(image), options)
    tensor = torch.from_numpy(np.ascontiguousarray(image)).float() / (255 if image.dtype == np.uint8 else 1)
    if options.grey and len(tensor) == 3:
        tensor = (tensor * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=0, keepdim=True)
    return fit(tensor, replace(options, grey=False)).clamp(0, 1)


def picture(image: np.typing.NDArray[Any]) -> Any:
    """Return bytes (C, H, W) as a PIL image."""
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)))


def as_table(arrays: Arrays, split: str) -> tuple[datasets.Dataset, tuple[str, ...]]:
    """Return a split as a `datasets.Dataset` of PNG pictures, and what to tell of pixels that are not bytes."""
    images, notes = arrays.images, arrays.notes
    if images.dtype != np.uint8:
        levels = np.round(images * np.float32(255))
        if np.abs(levels / 255 - images).max() > 1e-6:
            notes = (*notes, "The pixels are not bytes: as pictures they are rounded to the nearest of 256 levels.")
        images = levels.astype(np.uint8)
    labels = None if arrays.labels is None else arrays.labels.tolist()
    return picture_table([encoded(image) for image in images], labels, arrays.class_names, split), notes


def encoded(image: np.typing.NDArray[Any]) -> dict[str, Any]:
    """Return bytes (C, H, W) as PNG, as `datasets` keeps pictures."""
    import io

    content = io.BytesIO()
    picture(image).save(content, "PNG", compress_level=1)
    return {"bytes": content.getvalue(), "path": None}
