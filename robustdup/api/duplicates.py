"""Put duplicates into a `datasets.Dataset`, and find those that are there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from robustdup.api.options import DuplicateOptions
from robustdup.errors import UserError
from robustdup.plugins import load_plugins

if TYPE_CHECKING:
    from typing import Unpack

D = TypeVar("D")


def duplicate(
    dataset: D, *, scheme: str = "uniform", seed: int = 0, split: str = "train", image_column: str | None = None,
    label_column: str | None = None, other: Any = None, scores: Any = None, **options: Unpack[DuplicateOptions],
) -> D:  # fmt: skip
    """Return a dataset with duplicates, and the columns `source_index` and `copy` that tell them.

    Args:
        dataset: a `datasets.Dataset`, a `DatasetDict` (its `split` is duplicated) or an `IterableDataset` (read once
            to count its samples).
        scheme: which samples are copied: uniform, class_skewed, power_law, single, whole_set, hardest, easiest,
            conflicting, leak.
        seed: of everything that is drawn; a higher dose with the same seed contains the lower one.
        split: of a `DatasetDict`, the split that is duplicated.
        image_column: needed for near copies only; found by itself if not named.
        label_column: needed for schemes by class only; found by itself if not named.
        other: the split that leaks in, for scheme leak.
        scores: (N,) a margin per sample, the lower the harder, for hardest and easiest.
        options: `dose` (share of entries that are copies, 0 to below 1), `fraction`, `copies`, `mode`, `control`, `near`, and the
            others of `robustdup data duplicate`.

    Returns:
        A dataset of the same type. No image is copied in memory.

    Raises:
        UserError: an option that the scheme does not take, a dose that cannot be met, or a column that is missing.
    """
    import datasets
    import torch

    from robustdup.config import validate
    from robustdup.config.duplication import DuplicationOptions
    from robustdup.duplication.apply import apply_plan
    from robustdup.duplication.make import looks_at_labels, make_plan

    source: Any = dataset
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise UserError(
                f"There is no split {split!r} to duplicate; there are {', '.join(dataset)}.", code="unknown-split"
            )
        source = dataset[split]
    config = validate(DuplicationOptions, {"scheme": scheme, **options})
    labels, class_names = _labels(source, label_column, needed=looks_at_labels(config))
    plan = make_plan(
        labels, config, seed=seed, class_names=class_names, scores=None if scores is None else torch.as_tensor(scores),
        n_other=0 if other is None else len(other), other_labels=None if other is None else _labels(other, label_column)[0],
    )  # fmt: skip
    return apply_plan(plan, dataset, other=other, split=split, image_column=image_column, label_column=label_column)


def _labels(dataset: Any, column: str | None, *, needed: bool = False) -> tuple[Any, list[str]]:
    """Return the labels (N,) and class names; zeros where nothing depends on them and none are to be found."""
    import datasets
    import torch

    if isinstance(dataset, datasets.IterableDataset):
        rows = [row[column] for row in dataset] if column else None
        if rows is None and needed:
            raise UserError("A stream's labels are read by name: give label_column=.", code="no-labels")
        count = len(rows) if rows is not None else sum(1 for _ in dataset)
        return torch.as_tensor(rows if rows is not None else [0] * count, dtype=torch.int64), []
    if not isinstance(dataset, datasets.Dataset):
        raise UserError(
            f"duplicate() takes a datasets.Dataset, DatasetDict or IterableDataset, got a {type(dataset).__name__}. "
            "Tensors become one with datasets.Dataset.from_dict({'image': …, 'label': …}).", code="bad-data",
        )  # fmt: skip
    named = [name for name in (column, "label", "labels") if name in dataset.features]
    if not named:
        if needed or column is not None:
            raise UserError(
                f"There is no column of labels; the columns are {', '.join(dataset.features)}. Name one with label_column=.",
                code="no-labels",
            )
        return torch.zeros(len(dataset), dtype=torch.int64), []
    feature = dataset.features[named[0]]
    values = dataset.select_columns([named[0]]).with_format("arrow")[:][named[0]].to_pylist()
    if not needed and not all(isinstance(value, int) and value >= 0 for value in values):
        return torch.zeros(len(dataset), dtype=torch.int64), []
    try:
        return torch.tensor(values, dtype=torch.int64), list(getattr(feature, "names", None) or [])
    except (TypeError, ValueError):
        raise UserError(
            f"Column {named[0]!r} does not hold class numbers. Encode it: dataset.class_encode_column({named[0]!r}).",
            code="bad-labels",
        ) from None


def find_duplicates(dataset: Any, *, against: Any = None, image_column: str | None = None, finder: str = "") -> Any:
    """Find duplicates within a dataset, or between two.

    Args:
        dataset: a `datasets.Dataset` with an image column, what `load_data` returned, or images (N, C, H, W), uint8 or in [0, 1].
            Images of several sizes are compared as squares of one size.
        against: another one; then pairs lie across the two.
        image_column: of a `datasets.Dataset`; found by itself if not named.
        finder: the name of a duplicate finder; the first that is installed if not given.

    Returns:
        Pairs with the tensors `a` and `b` (P,): indices of the samples, and what else the finder tells.

    Raises:
        Unavailable: no plugin searches for duplicates here.
        UserError: what is given holds no images, or a column is missing.
    """
    registry = load_plugins()
    spec = registry.get_duplicate_finder(finder)
    first = _pixels(dataset, image_column)
    return spec.find(first) if against is None else spec.find(first, _pixels(against, image_column))


def drop_duplicates(
    dataset: Any, *, keep: Literal["first", "last", "none"] = "first", against: Any = None, image_column: str | None = None,
    finder: str = "",
) -> Any:  # fmt: skip
    """Return a dataset without its exact and near duplicates.

    A sample leaves only where it is itself a duplicate of one that stays: likeness is not handed on from sample to sample.

    Args:
        dataset: a `datasets.Dataset` with an image column.
        keep: which of two duplicates stays: the first, the last, or none of them.
        against: another dataset (or images): samples that also occur there leave, and duplicates within the first one stay.
        image_column: found by itself if not named.
        finder: the name of a duplicate finder; the first that is installed if not given.

    Returns:
        The samples that stay, in their order: `dataset.select(rows)`.

    Raises:
        Unavailable: no plugin searches for duplicates here.
        UserError: the data is no `datasets.Dataset`, or `keep` is none of the three.
    """
    import datasets

    from robustdup.duplication.representatives import representatives

    if keep not in ("first", "last", "none"):
        raise UserError(f"keep must be first, last or none, got {keep!r}.", code="bad-value")
    if not isinstance(dataset, datasets.Dataset):
        raise UserError(
            f"drop_duplicates() takes a datasets.Dataset, got a {type(dataset).__name__}. Of images in memory, "
            "find_duplicates() gives the pairs.",
            code="bad-data",
        )
    if not len(dataset) or (against is not None and not len(against)):
        return dataset.select(range(len(dataset)))
    pairs = find_duplicates(dataset, against=against, image_column=image_column, finder=finder)
    a, b = pairs.a.tolist(), pairs.b.tolist()
    if against is not None:
        leaving = set(a)
    elif keep == "none":
        leaving = {*a, *b}
    else:
        order = range(len(dataset))
        stands = representatives(
            len(dataset),
            pairs.a.numpy(),
            pairs.b.numpy(),
            pairs.score.numpy(),
            order[::-1] if keep == "last" else order,
        )
        leaving = {row for row in order if stands[row] != row}
    return dataset.select([row for row in range(len(dataset)) if row not in leaving])


def _pixels(data: Any, image_column: str | None) -> Any:
    """Return images as uint8 (N, C, H, W)."""
    import datasets
    import torch

    from robustdup.config import DataOptions
    from robustdup.data.batches import to_bytes
    from robustdup.data.dataset import ImageDataset
    from robustdup.data.splits import split_columns
    from robustdup.data.table import TableSamples

    if isinstance(data, ImageDataset):
        data = data.images
    if isinstance(data, torch.Tensor):
        return data if data.dtype == torch.uint8 else to_bytes(data)
    if not isinstance(data, datasets.Dataset):
        splits = f" Name one of its splits: data[{next(iter(data), 'train')!r}]." if isinstance(data, dict) else ""
        raise UserError(
            "Duplicates are looked for in a datasets.Dataset, in what load_data returned, or in images (N, C, H, W) as a tensor; "
            f"got a {type(data).__name__}.{splits}", code="bad-data",
        )  # fmt: skip
    if not len(data):
        raise UserError("There are no rows in the dataset given.", code="no-data")
    options = DataOptions(split=str(getattr(data, "split", None) or "given"), image_column=image_column)
    opened, columns = split_columns(data, options, "the dataset", needs_labels=False)
    labelled = opened.select_columns([columns.image]).add_column("label", [0] * len(data))  # pairs need no labels
    samples = TableSamples(
        labelled, DataOptions(split=options.split, image_column=columns.image, label_column="label"), "the dataset"
    )
    try:
        images, _ = samples.fetch(range(len(samples)))
    except UserError as error:
        if error.code != "different-sizes":
            raise
        images = _squeezed([samples.fetch([row])[0] for row in range(len(samples))])
    return to_bytes(images)


def _squeezed(images: Sequence[Any]) -> Any:
    """Return images, each (1, C, H, W), as squares of one size: 96 pixels where half of them or more have 64 a side, else 32."""
    import torch
    import torch.nn.functional as F

    shorter = sorted(min(image.shape[-2:]) for image in images)
    side = 96 if shorter[len(shorter) // 2] >= 64 else 32
    return torch.cat([
        F.interpolate(image.expand(-1, 3, -1, -1), (side, side), mode="bilinear", align_corners=False, antialias=True)
        for image in images
    ])  # fmt: skip
