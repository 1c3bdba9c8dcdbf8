"""What `python -m benchmarks.timing train` is told. Torch is not imported here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from robustdup.config import Config, TrainConfig


class TrainTimingConfig(Config):
    """What `python -m benchmarks.timing train` needs. Field descriptions are the help texts of the flags."""

    model: str = Field("small-resnet", description="Architecture to train.")
    data: str = Field("builtin:digits", description="Data: builtin:digits, a Hub dataset id, or a local folder.")
    split: str = Field("train", description="Split to train on.")
    n: int = Field(1280, description="Train on the first N images, once in each repeat.", ge=1)
    norm: str = Field("Linf", description="Norm of the threat model.")
    eps: str = Field("8/255", description="Radius in pixel units of [0, 1].")
    steps: int = Field(10, description="Steps of the inner PGD, of 2.5 eps / steps each.", ge=1)
    inner_bn: Literal["eval", "train"] = TrainConfig.model_fields["inner_bn"]  # type: ignore[assignment]
    batch_size: int = Field(128, description="Images in a step.", ge=1)
    contenders: str | None = Field(
        None, description="What to compare, with commas; all that are there if not given: robustdup, robustdup-fp32 (where "
        "--precision is another), pytorch-loop, torchattacks-pgd, art-madry-pgd.",
    )  # fmt: skip
    repeats: int = Field(3, description="Epochs of each contender, taken in turn.", ge=1)
    threads: int | None = Field(None, description="CPU threads, the same for all; all cores if not given.", ge=1)
    precision: Literal["fp32", "tf32", "bf16"] = Field("fp32", description="Precision of robustdup's own loop.")
    compile: Literal["auto", "off", "on", "cudagraphs"] = Field("auto", description="Compile in robustdup's own loop.")
    device: str = Field("auto", description="cpu, cuda, cuda:1, or auto.")
    seed: int = Field(0, description="Seed of everything random.", ge=0)
    plugin: list[str] = Field(default_factory=list, description="Plugin files to load, besides installed plugins.")
