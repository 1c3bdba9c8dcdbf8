"""Models: small architectures, and safe loading of classifiers from a spec."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustdup.plugins import Registry

if TYPE_CHECKING:
    from torch import nn

    from robustdup.models.load import ModelOptions

RESNET = "robustdup.models.resnets"


def register(registry: Registry) -> None:
    """Register the built-in model sources and the architectures to train; none of them is imported."""
    for name, build, description, url in (
        ("small-cnn", "robustdup.models.networks:small_cnn", "Three convolutions: the built-in digits classifiers.", ""),
        ("small-resnet", "robustdup.models.resnets:small_resnet", "A small residual network for CPUs.", ""),
        ("resnet18", f"{RESNET}:resnet18", "ResNet-18, with a 3x3 stem up to 64 pixels.", "https://arxiv.org/abs/1512.03385"),
        ("preact-resnet18", f"{RESNET}:preact_resnet18", "PreActResNet-18.", "https://arxiv.org/abs/1603.05027"),
        (
            "wide-resnet", f"{RESNET}:wide_resnet", "Wide residual network: WRN-28-10 by default.",
            "https://arxiv.org/abs/1605.07146",
        ),
    ):  # fmt: skip
        registry.add_architecture(name, build, description=description, url=url)
    registry.add_model_source(
        "builtin", "robustdup.models.load:load_builtin",
        description="Small classifiers that come with robustdup, offline.",
        examples=("builtin:digits-robust", "builtin:digits-certified", "builtin:digits-standard"),
    )  # fmt: skip
    registry.add_model_source(
        "hf", _load_hf, description="Image classifiers of Hugging Face transformers, where it is installed.",
        examples=("hf:microsoft/resnet-50",),
    )  # fmt: skip

    registry.add_model_source(
        "timm", "robustdup.models.timm_source:load_timm",
        description="Networks of timm with their pretrained weights, or with a checkpoint, normalised as they were trained.",
        examples=("timm:resnet18.a1_in1k", "timm:resnet18(num_classes=10)@weights.pth"),
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
