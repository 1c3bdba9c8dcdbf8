"""Models: small architectures, and safe loading of classifiers from a spec."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustdup.plugins.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from robustdup.models.load import ModelOptions


def register(registry: Registry) -> None:
    """Register the built-in model sources and the architectures to train."""
    from robustdup.models.architectures import register_architectures

    register_architectures(registry)
    registry.add_model_source(
        "builtin", _load_builtin, description="Small classifiers that come with robustdup, offline.",
        examples=("builtin:digits-robust", "builtin:digits-standard"),
    )  # fmt: skip
    registry.add_model_source(
        "hf", _load_hf, description="Image classifiers of Hugging Face transformers, where it is installed.",
        examples=("hf:microsoft/resnet-50",),
    )  # fmt: skip

    def load_run(rest: str, options: ModelOptions) -> nn.Module:
        from robustdup.models.trained import load_trained

        return load_trained(rest, registry)

    registry.add_model_source(
        "run", load_run, description="Networks trained by robustdup, from their run folder.",
        examples=("run:FOLDER", "run:FOLDER@last"),
    )  # fmt: skip


def _load_hf(rest: str, options: ModelOptions) -> nn.Module:
    from robustdup.models.transformers_source import load_hf

    return load_hf(rest)


def _load_builtin(rest: str, options: ModelOptions) -> nn.Module:
    from robustdup.models.load import load_builtin

    return load_builtin(rest, options)
