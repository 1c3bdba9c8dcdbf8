"""Load models and data by a spec, and take data in whatever form a notebook has it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustdup.errors import UserError
from robustdup.plugins import Registry, load_plugins

if TYPE_CHECKING:
    from torch import nn

    from robustdup.data.dataset import ImageDataset


def load_model(
    spec: str, *, allow_pickle: bool = False, plugins: Iterable[str | Path] = (), registry: Registry | None = None
) -> nn.Module:
    """Load a classifier by its spec, in eval mode.

    Args:
        spec: `file.py:factory@weights`, `builtin:NAME`, `run:FOLDER`, `robustbench:NAME`, `hf:MODEL_ID`, and what plugins add.
        allow_pickle: load weights that are pickles; they can run any code.
        plugins: plugin files to load, besides those that are installed.
        registry: use this registry in place of loading plugins.

    Returns:
        A module that takes float images (N, C, H, W) in [0, 1] to logits (N, K).

    Raises:
        UserError: the spec is unknown, or its files cannot be read or do not fit.
    """
    from robustdup.models.load import load_model as load

    return load(spec, registry=registry or load_plugins(plugins), allow_pickle=allow_pickle).eval()


def load_data(
    spec: str, *, split: str = "test", n: int | None = None, sample: int | None = None, seed: int = 0,
    plugins: Iterable[str | Path] = (), registry: Registry | None = None, **options: Any,
) -> ImageDataset:  # fmt: skip
    """Load labelled images by their spec.

    Args:
        spec: `builtin:digits`, a folder, or the id of a dataset of the Hugging Face Hub.
        split: the split to read.
        n: take the first n samples, as RobustBench does.
        sample: take a random subset of this many samples, drawn from `seed`.
        seed: of the random subset.
        plugins: plugin files to load, besides those that are installed.
        registry: use this registry in place of loading plugins.
        options: `config`, `revision`, `image_column`, `label_column`, `resize`, `crop` (pixels), `grey`.

    Returns:
        A dataset with `images` float32 (N, C, H, W) in [0, 1], `labels` int64 (N,), `index` (rows of the split), `class_names`.

    Raises:
        UserError: the data cannot be found or read, or the columns cannot be told.
    """
    from robustdup.config import DataOptions
    from robustdup.data.sources import load_images

    return load_images(
        spec, DataOptions(split=split, **options), n=n, sample=sample, seed=seed, registry=registry or load_plugins(plugins)
    )  # fmt: skip


def as_dataset(data: Any, labels: Any = None, *, n: int | None = None) -> ImageDataset:
    """Return data in any form that a notebook has as one dataset in memory.

    Args:
        data: what `load_data` returned; images (N, C, H, W) in [0, 1], with `labels` (N,); a `DataLoader` or another
            iterable of (images, labels) batches; a `torch.utils.data.Dataset` of (image, label); a `datasets.Dataset`.
        labels: int64 (N,), for images as a tensor or array.
        n: take the first n samples.

    Raises:
        UserError: the form is unknown, images are not in [0, 1], or labels do not fit.
    """
    import torch

    from robustdup.data.dataset import ImageDataset, from_tensors

    if labels is not None:
        _enough(n, len(data))
        return from_tensors(data[:n], labels[:n], spec="python")
    if isinstance(data, ImageDataset):
        if n is None or n == len(data):
            return data
        _enough(n, len(data))
        return from_tensors(
            data.images[:n], data.labels[:n], class_names=data.class_names, index=data.index[:n], spec=data.spec,
            split=data.split,
        )  # fmt: skip
    if _is_hub_dataset(data):
        return _from_hub_dataset(data, n)
    if isinstance(data, torch.Tensor) or (not hasattr(data, "__iter__") and not hasattr(data, "__getitem__")):
        raise UserError(
            f"evaluate(model, data) takes a dataset, a DataLoader or images with labels, got a {type(data).__name__}. "
            "Give images and labels: evaluate(model, images, labels).", code="bad-data",
        )  # fmt: skip
    return _from_batches(data, n)


def _enough(n: int | None, there: int) -> None:
    if n is not None and n > there:
        raise UserError(f"n = {n} is above the {there} images given.", code="bad-value")


def _is_hub_dataset(data: Any) -> bool:
    return type(data).__module__.split(".")[0] == "datasets"


def _from_hub_dataset(data: Any, n: int | None) -> ImageDataset:
    """Read a `datasets.Dataset`, or the first `n` rows of an `IterableDataset`."""
    import datasets
    import torch

    from robustdup.config import DataOptions
    from robustdup.data.dataset import make_dataset
    from robustdup.data.table import TableSamples

    if isinstance(data, datasets.DatasetDict | datasets.IterableDatasetDict):
        raise UserError(f"Name the split to evaluate: data[{next(iter(data), 'test')!r}].", code="bad-data")
    if isinstance(data, datasets.IterableDataset):
        if n is None:
            raise UserError("A streamed dataset has no length: say how many samples to take with n=.", code="bad-value")
        data = datasets.Dataset.from_list(list(data.take(n)), features=data.features)
    split = str(data.split or "given")
    options = DataOptions(split=split)
    samples = TableSamples(data, options, f"the dataset ({split})")
    _enough(n, len(samples))
    index = torch.arange(len(samples) if n is None else n)
    images, labels = samples.fetch(index.tolist())
    return make_dataset(
        images,
        labels,
        index,
        spec="python",
        options=options,
        class_names=samples.class_names,
        n_total=len(samples),
        selection="all" if n is None else "first",
        notes=tuple(samples.notes),
    )


def _from_batches(data: Any, n: int | None) -> ImageDataset:
    """Read a `DataLoader`, or a dataset of single (image, label) pairs, up to `n` samples."""
    import torch

    from robustdup.data.dataset import from_tensors

    images: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    count = 0
    rows = data if hasattr(data, "__iter__") else (data[i] for i in range(len(data)))
    for row in rows:
        if not isinstance(row, list | tuple) or len(row) != 2:
            raise UserError(
                f"A batch must be (images, labels), got a {type(row).__name__}. Wrap your loader so that it yields pairs.",
                code="bad-data",
            )
        image, label = torch.as_tensor(row[0]), torch.as_tensor(row[1])
        single = label.ndim == 0
        images.append(image[None] if single else image)
        labels.append(label[None] if single else label)
        count += len(labels[-1])
        if n is not None and count >= n:
            break
    if not images:
        raise UserError("There are no images in the data given.", code="no-data")
    _enough(n, count)
    return from_tensors(torch.cat(images)[:n], torch.cat(labels)[:n], spec="python")
