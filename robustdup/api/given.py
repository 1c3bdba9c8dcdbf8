"""Take data in whatever form a notebook has it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from robustdup.errors import UserError

if TYPE_CHECKING:
    import torch

    from robustdup.data.dataset import ImageDataset

IMAGE_KEYS = ("image", "images", "img", "pixel_values", "x", "input", "inputs")
MOST_STREAMED = 10_000  # samples that are taken of a stream without a length, unless n says otherwise
LABEL_KEYS = ("label", "labels", "fine_label", "target", "targets", "y", "class")


def as_dataset(data: Any, labels: Any = None, *, n: int | None = None) -> ImageDataset:
    """Return data in any form that a notebook has as one dataset in memory.

    Args:
        data: what `load_data` returned; images (N, C, H, W) in [0, 1], with `labels` (N,), or both as a pair; a
            `DataLoader` or another
            iterable of (images, labels) batches or of dicts that hold both; a `torch.utils.data.Dataset` of (image, label); a
            `datasets.Dataset` or `datasets.IterableDataset`.
        labels: int64 (N,), for images as a tensor or array.
        n: take the first n samples; where the labels come in order of class, n with each class by its share.

    Raises:
        UserError: the form is unknown, images are not in [0, 1], or labels do not fit.
    """
    import torch

    from robustdup.data.dataset import ImageDataset

    if n is not None and (isinstance(n, bool) or not hasattr(n, "__index__")):
        raise UserError(f"n is a whole number of samples, got {n!r}.", code="bad-value")
    if labels is not None:
        return _from_arrays(data, labels, n)
    if isinstance(data, ImageDataset):
        return _part(data, n)
    if isinstance(data, str | os.PathLike):
        raise UserError(
            f"evaluate(model, data) takes data that are read: robustdup.load_data({os.fspath(data)!r}).",
            code="bad-data",
        )
    if (pair := _named_pair(data)) is not None:  # {"images": …, "labels": …}, what np.load gives of a .npz
        return _from_arrays(*pair, n)
    if _is_hub_dataset(data):
        return _from_hub_dataset(data, n)
    if isinstance(data, torch.Tensor) or (not hasattr(data, "__iter__") and not hasattr(data, "__getitem__")):
        raise UserError(
            f"evaluate(model, data) takes a dataset, a DataLoader or images with labels, got a {type(data).__name__}. "
            "Give images and labels: evaluate(model, images, labels).", code="bad-data",
        )  # fmt: skip
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, tuple) and len(part) == 2 for part in data):
        raise UserError(
            "This looks like (x_train, y_train), (x_test, y_test), as keras.datasets gives them: name one of the two, data[1] "
            "for the test images.", code="bad-data",
        )  # fmt: skip
    if isinstance(data, tuple | list) and len(data) == 2 and all(hasattr(part, "shape") for part in data):
        return _from_arrays(data[0], data[1], n)
    if hasattr(data, "__len__") and hasattr(data, "__getitem__") and not hasattr(data, "__iter__"):
        return _from_torch_dataset(data, n)
    return _from_batches(data, n)


@dataclass(frozen=True)
class _Labelled:
    """What `choose` looks at: how many samples there are, and their labels where they are known."""

    count: int
    labels: Any

    def __len__(self) -> int:
        return self.count


def _from_arrays(images: Any, labels: Any, n: int | None) -> ImageDataset:
    """Take images and labels as tensors or arrays; only those that are kept are looked at."""
    import torch

    from robustdup.data.dataset import from_tensors
    from robustdup.data.selection import choose

    images, labels, notes = _usual_arrays(images, labels)
    _enough(n, len(images))
    if n is None or n == len(images) or len(labels) != len(images):
        return replace(from_tensors(images, labels, spec="python"), notes=tuple(notes))
    index, _, remarks = choose(_Labelled(len(images), labels), n=n, place="the data given")
    rows = torch.as_tensor(images)[index], torch.as_tensor(labels)[index]
    part = from_tensors(*rows, index=index, spec="python")
    return _marked(part, len(images), [*notes, *remarks], stratified=bool(remarks))


def _named_pair(data: Any) -> tuple[Any, Any] | None:
    """Return images and labels of a mapping that names both, all samples in each; None for other data."""
    if not isinstance(data, Mapping) or _is_hub_dataset(data):
        return None
    return _images_and_labels(data, "A mapping", "'images' and 'labels'")


def _usual_arrays(images: Any, labels: Any) -> tuple[Any, Any, list[str]]:
    """Return images and labels of other libraries (JAX, Keras) as tensors, channels first, bytes by 255; and what to tell.

    Labels in a column and one-hot rows are class numbers. What is in none of these forms is left as it is, to be refused.
    """
    import torch

    images, labels = _as_tensor(images), _as_tensor(labels)
    notes = []
    if isinstance(images, torch.Tensor):
        if images.ndim == 4 and images.shape[1] not in (1, 3, 4) and images.shape[3] in (1, 3, 4):
            images = images.permute(0, 3, 1, 2)
            notes.append("The images given have their channels last; they are put first.")
        if images.dtype == torch.uint8 and images.ndim == 4:
            images = images.float() / 255
            notes.append("The images given are bytes; they are divided by 255.")
    if isinstance(labels, torch.Tensor) and labels.ndim == 2:
        if labels.shape[1] == 1:
            labels = labels[:, 0]
        elif bool(((labels == 0) | (labels == 1)).all()) and bool((labels.sum(dim=1) == 1).all()):
            labels = labels.argmax(dim=1)
            notes.append("The labels given are one-hot rows; the place of the 1 is the class.")
    return images, labels, notes


def _as_tensor(values: Any) -> Any:
    """Return an array of another library as a tensor; anything else as it is."""
    import numpy as np
    import torch

    if isinstance(values, torch.Tensor) or not (hasattr(values, "__array__") or hasattr(values, "__dlpack__")):
        return values
    try:
        array = np.asarray(values) if hasattr(values, "__array__") else None
        return torch.utils.dlpack.from_dlpack(values) if array is None else torch.as_tensor(np.ascontiguousarray(array))
    except (TypeError, ValueError, RuntimeError, BufferError):
        return values


def _part(data: ImageDataset, n: int | None) -> ImageDataset:
    """Return `n` samples of data in memory."""
    from robustdup.data.dataset import from_tensors
    from robustdup.data.selection import choose

    if n is None or n == len(data):
        return data
    _enough(n, len(data))
    index, _, remarks = choose(data, n=n, place="the data given")
    part = from_tensors(
        data.images[index], data.labels[index], class_names=data.class_names, index=data.index[index], spec=data.spec,
        split=data.split,
    )  # fmt: skip
    return _marked(part, len(data), [*data.notes, *remarks], stratified=bool(remarks))


def _marked(part: ImageDataset, total: int, notes: Sequence[str], *, stratified: bool) -> ImageDataset:
    """Return a part of given data with its notes; the first n of data given are themselves data given."""
    if not stratified:
        return replace(part, notes=tuple(notes))
    return replace(part, notes=tuple(notes), selection="stratified", n_total=total)


def _enough(n: int | None, there: int) -> None:
    if n is not None and n > there:
        raise UserError(f"n = {n} is above the {there} images given.", code="bad-value")


def _check_ends(count: int) -> None:
    """Raise UserError where a stream without a length goes on and on: it may have no end."""
    if count > MOST_STREAMED:
        raise UserError(
            f"A stream has no length, and this one has more than {MOST_STREAMED:,} samples: say how many to take with n=.",
            code="bad-value",
        )


def _has_length(data: Any) -> bool:
    try:
        len(data)
    except TypeError:
        return False
    return True


def _is_hub_dataset(data: Any) -> bool:
    return type(data).__module__.split(".")[0] == "datasets"


def _from_hub_dataset(data: Any, n: int | None) -> ImageDataset:
    """Read a `datasets.Dataset`, or the first `n` rows of an `IterableDataset`."""
    import datasets

    from robustdup.config import DataOptions
    from robustdup.data.dataset import make_dataset
    from robustdup.data.selection import choose
    from robustdup.data.table import open_rows

    if isinstance(data, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise UserError(f"Name the split to evaluate: data[{next(iter(data), 'test')!r}].", code="bad-data")
    streamed = isinstance(data, datasets.IterableDataset)
    split = str(data.split or "given")
    if streamed:
        rows = list(data.take(MOST_STREAMED + 1 if n is None else n))
        if n is None:
            _check_ends(len(rows))
        data = datasets.Dataset.from_list(rows, features=data.features)
    options = DataOptions(split=split)
    samples: Any = open_rows(data, options, f"the dataset ({split})")
    _enough(n, len(samples))
    index, selection, remarks = choose(samples, n=n, place="the dataset given")
    images, labels = samples.fetch(index.tolist())
    if streamed:
        remarks += _stream_order(labels)
    return make_dataset(
        images,
        labels,
        index,
        spec="python",
        options=options,
        class_names=samples.class_names,
        n_total=len(samples),
        selection="given" if streamed else selection,
        notes=(*samples.notes, *remarks),
    )


def _from_torch_dataset(data: Any, n: int | None) -> ImageDataset:
    """Read a `torch.utils.data.Dataset` of single samples; its `targets` or `labels` say in which order they come."""
    from robustdup.data.selection import choose

    _enough(n, len(data))
    labels = next((column for name in ("targets", "labels") if (column := getattr(data, name, None)) is not None), None)
    labels = labels if labels is not None and not callable(labels) and len(labels) == len(data) else None
    index, _, remarks = choose(_Labelled(len(data), labels), n=n, place="the dataset given")
    part = _stacked((data[i] for i in index.tolist()), data)
    if n is None or n == len(data):
        return part
    notes = remarks or (_stream_order(part.labels) if labels is None else [])
    return _marked(replace(part, index=index), len(data), notes, stratified=bool(remarks))


def _from_batches(data: Any, n: int | None) -> ImageDataset:
    """Read a `DataLoader`, or another iterable, up to `n` samples: in which order others come is not known."""
    part = _stacked(data, getattr(data, "dataset", data), n)
    _enough(n, len(part))
    return replace(part, notes=tuple(_stream_order(part.labels))) if n is not None else part


def _stacked(rows: Any, owner: Any, n: int | None = None) -> ImageDataset:
    """Return samples, or batches of them, as one dataset of at most `n`; `owner` may know the `classes`."""
    import torch

    from robustdup.data.dataset import from_tensors

    images: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    count, streamed = 0, n is None and not _has_length(rows) and not _has_length(owner)
    for row in rows:
        pixels, label = _pair(row)
        images.append(pixels[None] if label.ndim == 0 else pixels)
        labels.append(label[None] if label.ndim == 0 else label)
        count += len(labels[-1])
        if n is not None and count >= n:
            break
        if streamed:
            _check_ends(count)
    if not images:
        raise UserError("There are no images in the data given.", code="no-data")
    kept = torch.cat(labels)[:n]
    names = _class_names(owner, kept)
    return from_tensors(torch.cat(images)[:n], kept, class_names=names, spec="python")


def _class_names(owner: Any, labels: torch.Tensor) -> list[str] | None:
    """Return the `classes` of a torchvision dataset where they cover the labels."""
    names = getattr(owner, "classes", None)
    if not isinstance(names, list | tuple) or labels.is_floating_point() or int(labels.max()) >= len(names):
        return None
    return [str(name) for name in names]


def _images_and_labels(row: Mapping[Any, Any], what: str, names: str, *, got: str = "") -> tuple[Any, Any]:
    """Return what a mapping holds under usual names of images and labels. Raises UserError, which says what to name them."""
    keys = [next((key for key in row if str(key).lower() in usual), None) for usual in (IMAGE_KEYS, LABEL_KEYS)]
    if None in keys:
        raise UserError(
            f"{what} must hold images and labels, got {got}{', '.join(map(str, row)) or 'nothing'}. Name them {names}.",
            code="bad-data",
        )
    return row[keys[0]], row[keys[1]]


def _pair(row: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the image or images and the label or labels of a row: a pair, more behind these, or a dict that names them."""
    import torch

    if isinstance(row, Mapping):
        row = _images_and_labels(row, "A batch", "'image' and 'label'", got="a dict with ")
    if not isinstance(row, list | tuple) or len(row) < 2:
        raise UserError(
            f"A batch must be (images, labels), got a {type(row).__name__}. Wrap your loader so that it yields pairs.",
            code="bad-data",
        )
    image, label = row[:2]  # an index, a path or a group may follow
    if isinstance(label, Mapping) and len(keys := [key for key in label if str(key).lower() in LABEL_KEYS]) == 1:
        label = label[keys[0]]
    if type(image).__module__.split(".")[0] == "PIL":
        from robustdup.config import DataOptions
        from robustdup.data.decode import to_tensor

        image = to_tensor(image, DataOptions())
    try:
        pixels, classes = torch.as_tensor(_as_tensor(image)), torch.as_tensor(_as_tensor(label))
    except (TypeError, ValueError, RuntimeError):
        raise _no_pair(row) from None
    single = pixels.ndim == 3
    if pixels.ndim not in (3, 4) or (len(row) > 2 and classes.ndim != 1 - single):
        raise _no_pair(row)
    batch, classes, _ = _usual_arrays(pixels[None] if single else pixels, classes[None] if single else classes)
    return (batch[0], classes[0]) if single else (batch, classes)


def _no_pair(row: Sequence[Any]) -> UserError:
    kinds = ", ".join(f"{type(part).__name__} {tuple(getattr(part, 'shape', ()))}" for part in row)
    return UserError(
        f"A batch must be images (N, C, H, W), then labels (N,), got ({kinds}). Wrap your loader so that it yields these.",
        code="bad-data",
    )


def _stream_order(labels: torch.Tensor) -> list[str]:
    """Say where the first samples of a stream are in order of class; those that come later are not known."""
    from robustdup.data.selection import STREAM_IN_ORDER, order_sign

    sign = order_sign(labels)
    if sign is None and len(labels) > 1 and bool((labels == labels[0]).all()):
        sign = "all are of one class"
    return [STREAM_IN_ORDER.format(n=len(labels), place="the data given", sign=sign)] if sign else []
