"""From a data spec to images with labels: `builtin:digits`, a Hub id, a local folder, or a plugin's `scheme:rest`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from robustdup.config import DataOptions
from robustdup.data.dataset import ImageDataset, Samples, make_dataset
from robustdup.data.selection import choose
from robustdup.errors import UserError, unknown
from robustdup.plugins import Registry


def load_images(
    spec: str, options: DataOptions | None = None, *, n: int | None = None, sample: int | None = None, seed: int = 0,
    registry: Registry,
) -> ImageDataset:  # fmt: skip
    """Return the images and labels of a spec: all, the first `n`, or a random `sample` drawn from `seed`.

    The first n are the samples that RobustBench takes (https://robustbench.github.io), unless the labels come in order: then
    n are drawn, each class by its share (see `choose`). The sample depends only on the seed and the number of samples, and
    comes in their order. Raises UserError.
    """
    options = options or DataOptions()
    if n is not None and sample is not None:
        raise UserError(
            f"Give either the first samples (n = {n}) or a random sample (sample = {sample}), not both.",
            code="bad-option",
        )
    samples = open_samples(spec, options, registry)
    index, selection, told = choose(samples, n=n, sample=sample, seed=seed, place=f"{spec} ({options.split})")
    images, labels = samples.fetch(index.tolist())
    return make_dataset(
        images,
        labels,
        index,
        spec=spec,
        options=replace(options, revision=getattr(samples, "revision", None) or options.revision),
        class_names=samples.class_names,
        n_total=len(samples),
        selection=selection,
        notes=(*getattr(samples, "notes", ()), *told),
    )


def open_samples(spec: str, options: DataOptions, registry: Registry) -> Samples:
    """Return the samples behind a spec without decoding any image. Raises UserError.

    A known scheme goes to its source; otherwise an existing path is a local folder (or a parquet file), and NAME or
    OWNER/NAME a dataset of the Hugging Face Hub.
    """
    scheme, colon, rest = spec.partition(":")
    if colon and scheme in registry.data:
        samples: Samples = registry.data[scheme].load(rest, options)
        return samples
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
    raise UserError(
        f"There is no folder {spec!r}; Hub ids look like owner/name, for instance uoft-cs/cifar10.", code="unknown-data"
    )
