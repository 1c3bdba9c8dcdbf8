"""From a data spec to images with labels: `builtin:digits`, a Hub id, a local folder, or a plugin's `scheme:rest`."""

from __future__ import annotations

from dataclasses import replace

import torch

from robustdup.config import DataOptions
from robustdup.data.dataset import ImageDataset, Samples, make_dataset
from robustdup.data.layouts.opened import Opened, pick
from robustdup.data.selection import choose
from robustdup.errors import UserError, unknown, user_path
from robustdup.plugins import Registry


def load_images(
    spec: str, options: DataOptions | None = None, *, n: int | None = None, sample: int | None = None, seed: int = 0,
    registry: Registry, lenient: bool = True,
) -> ImageDataset:  # fmt: skip
    """Return the images and labels of a spec: all, the first `n`, or a random `sample` drawn from `seed`.

    The first n are the samples that RobustBench takes (https://robustbench.github.io), unless the labels come in order: then
    n are drawn, each class by its share (see `choose`). The sample depends only on the seed and the number of samples, and
    comes in their order. `lenient` is that of `open_samples`. Raises UserError.
    """
    options = options or DataOptions()
    if n is not None and sample is not None:
        raise UserError(
            f"Give either the first samples (n = {n}) or a random sample (sample = {sample}), not both.",
            code="bad-option",
        )
    samples = open_samples(spec, options, registry, lenient=lenient)
    split = split_taken(samples, options.split)
    index, selection, remarks = choose(samples, n=n, sample=sample, seed=seed, place=f"{spec} ({split})")
    images, labels = samples.fetch(index.tolist())
    data = make_dataset(
        images,
        labels,
        index,
        spec=spec,
        options=replace(options, split=split, revision=getattr(samples, "revision", None) or options.revision),
        class_names=samples.class_names,
        n_total=len(samples),
        selection=selection,
        notes=(*getattr(samples, "notes", ()), *remarks, *_from_one(samples, torch.unique(labels).tolist())),
    )
    return replace(data, outputs=getattr(samples, "outputs", None))


def open_samples(spec: str, options: DataOptions, registry: Registry, *, lenient: bool = False) -> Samples:
    """Return the samples behind a spec without decoding any image. Raises UserError.

    A known scheme goes to its source; otherwise an existing path is a local folder or file, and NAME or OWNER/NAME a dataset of
    the Hugging Face Hub. With `lenient`, validation data or the only split serve where there are no test data, and the only
    split where there are no training data, with a note.
    """
    scheme, colon, rest = spec.partition(":")
    if colon and scheme in registry.data:
        samples: Samples = registry.data[scheme].load(rest, options)
        return samples
    from robustdup.data.cache import cached
    from robustdup.data.hub import load_hub, load_local, looks_like_hub_id

    path = user_path(spec)
    if spec and path.exists():
        key = str(path.absolute()), options, lenient
        return cached(key, lambda: _chosen(load_local(path, options), options, spec, lenient=lenient))
    if colon and "/" not in scheme and "\\" not in scheme and len(scheme) > 1:
        examples = [example for source in registry.data.values() for example in source.examples]
        raise unknown("data", spec, [*examples, *(f"{name}:…" for name in registry.data)])
    if looks_like_hub_id(spec):
        return cached(
            (spec, options, lenient), lambda: _chosen(load_hub(spec, options), options, spec, lenient=lenient)
        )
    raise UserError(
        f"There is no file or folder {spec!r}; Hub ids look like owner/name, for instance uoft-cs/cifar10.",
        code="unknown-data",
    )


def split_taken(samples: Samples, wanted: str) -> str:
    """Return the name of the split that samples are of, which may be another one than was wanted."""
    return getattr(samples, "split", None) or wanted


def _from_one(samples: Samples, labels: list[int]) -> list[str]:
    """Say where class numbers without names run from 1 to K: models count from 0."""
    if samples.class_names or len(labels) < 3 or labels != list(range(1, len(labels) + 1)):
        return []
    return [
        f"The labels run from 1 to {len(labels)}. Models count classes from 0: if these are the same classes, subtract 1."
    ]


def _chosen(opened: Opened, options: DataOptions, spec: str, *, lenient: bool) -> Samples:
    """Return the samples of the split that `options` wants. Raises UserError."""
    from robustdup.data.labels import with_class_numbers
    from robustdup.data.table import open_rows

    opened = with_class_numbers(opened, options, spec)
    name, notes = pick(opened, options.split, spec, lenient=lenient)
    return open_rows(opened.splits[name], options, f"{spec} ({name})", split=name, notes=notes)
