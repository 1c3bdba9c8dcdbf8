"""Load models and data by a spec."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustdup.plugins import Registry, load_plugins

if TYPE_CHECKING:
    from torch import nn

    from robustdup.data.dataset import ImageDataset


def load_model(
    spec: str, *, allow_pickle: bool = False, normalize: str | None = None, plugins: Iterable[str | Path] = (),
    registry: Registry | None = None,
) -> nn.Module:  # fmt: skip
    """Load a classifier by its spec, in eval mode.

    Args:
        spec: `file.py:factory@weights`, `builtin:NAME`, `run:FOLDER`, `robustbench:NAME`, `hf:MODEL_ID`, and what plugins add.
        allow_pickle: load weights that are pickles; they can run any code.
        normalize: what the model leaves to its caller: "imagenet", "cifar10", …, or means and deviations, "0.5,0.5".
        plugins: plugin files to load, besides those that are installed.
        registry: use this registry in place of loading plugins.

    Returns:
        A module that takes float images (N, C, H, W) in [0, 1] to logits (N, K).

    Raises:
        UserError: the spec is unknown, or its files cannot be read or do not fit.
    """
    from robustdup.models.adapt import Adaptation, adapted, notes_of
    from robustdup.models.load import load_model as load
    from robustdup.models.normalisation import parse_normalisation

    model = load(spec, registry=registry or load_plugins(plugins), allow_pickle=allow_pickle)
    for note in notes_of(model):
        warnings.warn(note, UserWarning, stacklevel=2)
    return adapted(model, Adaptation(normalise=parse_normalisation(normalize))).eval()


def load_data(
    spec: str, *, split: str = "test", n: int | None = None, sample: int | None = None, seed: int = 0,
    plugins: Iterable[str | Path] = (), registry: Registry | None = None, **options: Any,
) -> ImageDataset:  # fmt: skip
    """Load labelled images by their spec.

    Args:
        spec: `builtin:digits`, a folder, or the id of a dataset of the Hugging Face Hub.
        split: the split to read.
        n: take the first n samples, as RobustBench does; where the labels come in order of class, n by chance, with each
            class by its share.
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
