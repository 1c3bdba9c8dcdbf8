"""From a data spec to labelled images: `builtin:digits`, a Hub id, a local folder, or a plugin's `scheme:rest`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from robustdup.config import DataOptions
from robustdup.data.dataset import ImageDataset, Samples, Selection, make_dataset
from robustdup.errors import UserError, unknown
from robustdup.plugins import Registry
from robustdup.rng import SampleRng


def load_images(
    spec: str, options: DataOptions | None = None, *, n: int | None = None, sample: int | None = None, seed: int = 0,
    registry: Registry,
) -> ImageDataset:  # fmt: skip
    """Return the labelled images of a spec: all, the first `n`, or a random `sample` drawn from `seed`.

    The first n are the points that RobustBench takes (https://robustbench.github.io); the sample depends only on the
    seed and the number of rows, and comes in the order of the rows. Raises UserError.
    """
    options = options or DataOptions()
    if n is not None and sample is not None:
        raise UserError(f"Give either the first points (n = {n}) or a random sample (sample = {sample}), not both.")
    rows = open_samples(spec, options, registry)
    index, selection = select(len(rows), n=n, sample=sample, seed=seed, place=f"{spec} ({options.split})")
    images, labels = rows.fetch(index.tolist())
    return make_dataset(
        images, labels, index, class_names=rows.class_names, spec=spec, split=options.split, config=options.config,
        revision=getattr(rows, "revision", None) or options.revision, n_total=len(rows), selection=selection,
        notes=tuple(getattr(rows, "notes", ())),
    )  # fmt: skip


def open_samples(spec: str, options: DataOptions, registry: Registry) -> Samples:
    """Return the rows behind a spec without decoding any image. Raises UserError.

    A known scheme goes to its source; otherwise an existing path is a local folder (or a parquet file), and NAME or
    OWNER/NAME a dataset of the Hugging Face Hub.
    """
    scheme, colon, rest = spec.partition(":")
    if colon and scheme in registry.data:
        rows: Samples = registry.data[scheme].load(rest, options)
        return rows
    from robustdup.data.cache import cached
    from robustdup.data.hub import looks_like_hub_id, open_hub, open_local
    from robustdup.data.table import TableSamples

    path = Path(spec).expanduser()
    place = f"{spec} ({options.split})"
    if spec and path.exists():
        return cached((str(path.absolute()), options), lambda: TableSamples(open_local(path, options), options, place))
    if colon and "/" not in scheme and "\\" not in scheme and len(scheme) > 1:
        examples = [example for source in registry.data.values() for example in source.examples]
        raise unknown("data", spec, [*examples, *(f"{name}:…" for name in registry.data)])
    if looks_like_hub_id(spec):
        return cached((spec, options), lambda: TableSamples(open_hub(spec, options), options, place))
    raise UserError(f"There is no folder {spec!r}; Hub ids look like owner/name, for instance uoft-cs/cifar10.")


def select(
    total: int, *, n: int | None = None, sample: int | None = None, seed: int = 0, place: str = "the data"
) -> tuple[Tensor, Selection]:
    """Return the chosen rows (n,) int64 in rising order, and how they were chosen. Raises UserError.

    The sample takes the rows with the smallest random words, one word a row, keyed by (seed, row).
    """
    if total == 0:
        raise UserError(f"There are no rows in {place}.")
    for name, wanted in (("n", n), ("sample", sample)):
        if wanted is not None and wanted < 1:
            raise UserError(f"{name} must be at least 1, got {wanted}.")
        if wanted is not None and wanted > total:
            raise UserError(f"{name} = {wanted} is more than {place} has: {total} rows.")
    rows = torch.arange(total)
    if n is not None:
        return rows[:n], "first"
    if sample is None:
        return rows, "all"
    words = SampleRng(seed, rows).fold("data sample").bits()
    return words.argsort(stable=True)[:sample].sort().values, "sample"
