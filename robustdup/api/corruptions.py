"""Show a model common corruptions from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustdup.api.given import as_dataset
from robustdup.api.options import EvaluateOptions
from robustdup.plugins import load_plugins

if TYPE_CHECKING:
    from typing import Unpack

    from torch import nn


def evaluate_corruptions(
    model: nn.Module | str, data: Any, labels: Any = None, *, kinds: Sequence[str] = (), severities: Sequence[int] = (),
    n: int | None = None, out: str | Path | None = None, **options: Unpack[EvaluateOptions],
) -> Any:  # fmt: skip
    """Evaluate a model on the common corruptions of https://arxiv.org/abs/1903.12261: accuracy by kind and severity.

    Args:
        model: a module that takes images (N, C, H, W) in [0, 1] to logits (N, K), or a spec as for `load_model`.
        data: a folder of published images (CIFAR-10-C, CIFAR-100-C, ImageNet-C), or clean images, of which corrupted ones are
            made: what `load_data` returned, images with `labels`, a `DataLoader`, a `datasets.Dataset`.
        labels: int64 (N,), where `data` is a tensor or array of images.
        kinds: such as "fog" and "gaussian_noise"; all if not given.
        severities: from 1 to 5; all if not given.
        n: take the first n samples.
        out: the run folder; nothing is kept if not given.
        options: the other settings of `robustdup eval` that are not about attacks, by name.

    Returns:
        The record, a `robustdup_corruptions.record.CorruptionRecord`: `corruption_accuracy`, `kinds`, `mce`, `clean_accuracy`.

    Raises:
        UserError: an unknown kind, severity 6, a folder without a kind that is named, labels of another length.
        Unavailable: the plugin robustdup-corruptions, or the library that makes corruptions, is not installed.
    """
    from robustdup.config import EvalConfig, validate

    registry = load_plugins(options.get("plugin") or ())
    corruptions = registry.get_threat("corruptions")
    assert corruptions is not None
    folder = isinstance(data, str | Path) and labels is None
    dataset = None if folder else as_dataset(data, labels, n=n)
    asked = ",".join(
        f"{name}=[{','.join(map(str, values))}]"
        for name, values in (("kinds", kinds), ("severities", severities))
        if values
    )
    config = validate(
        EvalConfig,
        {
            **options, "model": model if isinstance(model, str) else "python", "n": n, "out": None if out is None else str(out),
            "data": str(data) if dataset is None else dataset.spec, "threat": f"corruptions({asked})" if asked else "corruptions",
        },
    )  # fmt: skip
    return corruptions.evaluate(
        config, model=None if isinstance(model, str) else model, data=dataset, registry=registry,
        folder=None if out is None else Path(out), command="robustdup.evaluate_corruptions(…)",
    ).record  # fmt: skip
