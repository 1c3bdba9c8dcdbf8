"""A plan applied: to a `datasets.Dataset`, a split of a `DatasetDict`, a stream, or tensors; always the same entries.

Images of exact copies are neither copied in memory nor written: rows of the memory-mapped table are named again. Near copies
are other images; for a `Dataset` they are made once, by `Dataset.map`, into its cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from robustdup.data.columns import find_columns
from robustdup.data.decode import UNREADABLE, open_picture, plain_image
from robustdup.duplication.plan import NEW_COLUMNS, DuplicationPlan
from robustdup.errors import UserError

if TYPE_CHECKING:
    import datasets

D = TypeVar("D")


def apply_plan(
    plan: DuplicationPlan, data: D, *, other: Any = None, split: str = "train", image_column: str | None = None,
    label_column: str | None = None, index_column: str | None = None,
) -> D:  # fmt: skip
    """Return `data` with the entries of the plan and the columns `source_index` and `copy`. Raises UserError.

    A `Dataset` comes in the order of the plan. Of a `DatasetDict`, `split` is duplicated and the rest kept. A stream (an
    `IterableDataset`) yields the same entries in the order of its rows, copies right after their original; its rows are
    numbered as they come, so one that is shuffled, filtered or cut names the number of each row in `index_column`.
    `other` is the split that leaks in, as data of the same kind. The columns are found if not named, and needed only for
    near copies (images) and wrong labels.
    """
    import datasets

    names = {"image": image_column, "label": label_column}
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise UserError(
                f"There is no split {split!r} to duplicate; there are {', '.join(data)}.", code="unknown-split"
            )
        made = apply_plan(plan, data[split], other=other, image_column=image_column, label_column=label_column)
        return cast(D, datasets.DatasetDict({**data, split: made}))
    if isinstance(data, datasets.IterableDataset):
        return cast(D, _stream(plan, data, other, names, index_column))
    if isinstance(data, datasets.Dataset):
        return cast(D, _table(plan, data, other, names))
    raise UserError(
        f"A plan applies to a Dataset, DatasetDict or IterableDataset, not to a {type(data).__name__}.", code="bad-data"
    )


def numbered(dataset: datasets.Dataset) -> datasets.Dataset:
    """Return a split that stays as it is with the columns that a duplicated one has, so that both can be read together."""
    rows = torch.arange(len(dataset))
    return apply_plan(DuplicationPlan(rows, torch.zeros_like(rows), len(rows)), dataset)


def _check(plan: DuplicationPlan, names: Sequence[str], rows: int | None, other: Any) -> None:
    for name in NEW_COLUMNS:
        if name in names:
            raise UserError(
                f"There is a column {name!r} already, which duplication adds. Is this a duplicated dataset? "
                f"Else rename it: dataset.rename_column({name!r}, 'my_{name}').",
                code="already-duplicated",
            )
    if rows is not None and rows != plan.n_source:
        raise UserError(f"The plan is for {plan.n_source} rows, but the data has {rows}.", code="wrong-plan")
    if other is None and int(plan.source_index.max()) >= plan.n_source:
        raise UserError("The plan lets another split leak in: give that split as `other`.", code="wrong-plan")


def _table(plan: DuplicationPlan, dataset: datasets.Dataset, other: Any, names: dict[str, str | None]) -> Any:
    import datasets

    from robustdup.duplication.table import entry_dataset

    _check(plan, dataset.column_names, len(dataset), other)
    form = dataset.format
    if other is not None:
        if set(other.features) != set(dataset.features):
            raise UserError(
                f"The two splits have other columns: {', '.join(dataset.features)} and {', '.join(other.features)}.",
                code="bad-column",
            )
        same = other.features == dataset.features
        dataset = datasets.concatenate_datasets([dataset, other if same else other.cast(dataset.features)])
    columns = _columns(plan, dataset, names)
    made = entry_dataset(plan, dataset, columns.label if plan.labels is not None else None)
    if plan.near is not None:
        made = _with_near_copies(plan, made, columns.image)
    return made.with_format(form["type"], **form["format_kwargs"])


def _columns(plan: DuplicationPlan, dataset: Any, names: dict[str, str | None]) -> Any:
    if plan.near is None and plan.labels is None:
        return None
    return find_columns(
        dataset.features, image=names["image"], label=names["label"], place="the dataset",
        needs_labels=plan.labels is not None,
    )  # fmt: skip


def _with_near_copies(plan: DuplicationPlan, made: datasets.Dataset, image: str) -> datasets.Dataset:
    import datasets

    originals = int((plan.copy == 0).sum())
    copies = made.select(range(originals, len(made)))
    change = _near_images(plan, image)
    copies = copies.map(change, batched=True, batch_size=256, desc="Making near copies", features=made.features)
    return datasets.concatenate_datasets([made.select(range(originals)), copies])


def unreadable_rows(splits: Sequence[datasets.Dataset], rows: Tensor, image: str) -> list[int]:
    """Return those of the rows (k,), numbered through the splits, whose images cannot be read."""
    import datasets

    whole = datasets.concatenate_datasets([split.select_columns([image]) for split in splits])
    encoded = whole.cast_column(image, datasets.Image(decode=False))
    broken = []
    for row in rows.tolist():
        try:
            open_picture(encoded[row][image])
        except UNREADABLE:
            broken.append(row)
    return broken


def _near_images(plan: DuplicationPlan, image: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return the function that changes the images of a batch of entries, all of them copies."""
    near = plan.near
    assert near is not None

    def change(batch: dict[str, Any]) -> dict[str, Any]:
        by_shape: dict[tuple[int, ...], list[int]] = {}
        arrays = [_array(picture, row) for picture, row in zip(batch[image], batch["source_index"], strict=True)]
        for place, array in enumerate(arrays):
            by_shape.setdefault(array.shape, []).append(place)
        images: list[Any] = [None] * len(arrays)
        for places in by_shape.values():
            pixels = torch.from_numpy(np.stack([arrays[place] for place in places])).permute(0, 3, 1, 2)
            source, copy = (torch.tensor([batch[name][place] for place in places]) for name in NEW_COLUMNS)
            for place, pixel in zip(places, near(pixels.contiguous(), source, copy), strict=True):
                images[place] = _picture(pixel)
        return {image: images}

    return change


def _array(image: Any, row: int) -> Any:
    """Return a decoded image as uint8 (H, W, C). Raises UserError for pixels that are not 8 bits deep."""
    try:
        plain = plain_image(image)
        if plain.mode == "F":
            raise ValueError("has 16 bits, near copies are made of 8-bit pixels")
    except ValueError as error:
        raise UserError(f"The image in row {row} {error}.", code="unreadable-image") from None
    array = np.asarray(plain)
    return array[:, :, None] if array.ndim == 2 else array


def _picture(pixel: Tensor) -> Any:
    from PIL import Image

    return Image.fromarray(pixel[0].numpy() if pixel.shape[0] == 1 else pixel.permute(1, 2, 0).contiguous().numpy())


def _stream(
    plan: DuplicationPlan, stream: Any, other: Any, names: dict[str, str | None], index_column: str | None
) -> datasets.IterableDataset:
    """Return a stream of the entries; a generator counts the rows, so that several workers cannot count them apart."""
    import datasets

    features = stream.features
    _check(plan, list(features or ()), None, other)
    if index_column is not None and features is not None and index_column not in features:
        raise UserError(f"The stream has no column {index_column!r}; it has {', '.join(features)}.", code="no-column")
    columns = None
    if plan.near is not None or plan.labels is not None:
        if features is None:
            raise UserError(
                "The stream does not say what its columns hold, which near copies and wrong labels need.",
                code="no-column",
            )
        columns = find_columns(features, image=names["image"], label=names["label"], place="the stream")
    change = _near_images(plan, columns.image) if columns is not None and plan.near is not None else None
    label = columns.label if columns is not None and plan.labels is not None else None

    def entries() -> Iterator[dict[str, Any]]:
        sources, order = plan.source_index.sort(stable=True)
        for row, content in _numbered(stream, plan.n_source, index_column, other):
            first, last = torch.searchsorted(sources, torch.tensor([row, row + 1])).tolist()
            for entry in order[first:last].tolist():
                made = {**content, "source_index": row, "copy": int(plan.copy[entry])}
                if label is not None and plan.labels is not None:
                    made[label] = int(plan.labels[entry])
                if change is not None and made["copy"]:
                    made |= {name: values[0] for name, values in change({k: [v] for k, v in made.items()}).items()}
                yield made

    if features is not None:
        features = datasets.Features({**features, **{name: datasets.Value("int64") for name in NEW_COLUMNS}})
    made: datasets.IterableDataset = datasets.IterableDataset.from_generator(entries, features=features)
    return made


def _numbered(stream: Any, n_source: int, index_column: str | None, other: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a stream with their numbers, and then those of the other split."""
    seen = 0
    for seen, content in enumerate(stream, start=1):
        row = seen - 1 if index_column is None else int(content[index_column])
        if not 0 <= row < n_source:
            raise UserError(f"The plan is for {n_source} rows, but the stream brings row {row}.", code="wrong-plan")
        yield row, content
    if index_column is None and seen != n_source:
        raise UserError(
            f"The plan is for {n_source} rows, but the stream ended after {seen}. One that is cut, filtered or shuffled "
            "needs index_column: the number of each row in the source.",
            code="wrong-plan",
        )
    for row, content in enumerate(other if other is not None else ()):
        yield n_source + row, content
