"""Normalisation that a model leaves to its caller, `--normalize`: read, put in front, and looked for where it is missing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustdup.errors import UserError, unknown
from robustdup.exact import exact_number

# (mean, deviation) of the channels of images in [0, 1], as the usual training scripts write them.
NAMED: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5,), (0.5,)),  # to [-1, 1]
    "0..255": ((0.0,), (1 / 255,)),
    "caffe": ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,)),  # blue first
}
BLUE_FIRST = ("caffe",)
SAME = {
    "imagenet1k": "imagenet", "imagenet-1k": "imagenet", "cifar": "cifar10", "cifar-10": "cifar10",
    "cifar-100": "cifar100", "fashionmnist": "fashion-mnist", "fmnist": "fashion-mnist", "inception": "half",
    "-1..1": "half", "[-1,1]": "half", "255": "0..255", "bytes": "0..255", "openai-clip": "clip",
}  # fmt: skip
TRIED = ("imagenet", "cifar10", "cifar100", "half", "0..255", "caffe", "bgr")  # of images of three channels
TRIED_GREY = ("mnist", "fashion-mnist", "half", "0..255")


@dataclass(frozen=True)
class Normalisation:
    """(images - mean) / std for each channel, one value standing for all; `bgr` puts the last channel first, before that.

    `text` is what was written: a name of `NAMED`, or numbers.
    """

    text: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False

    def layer(self, channels: int | None = None) -> NormaliseInput:
        """Return it as a layer. Raises UserError where it has another number of channels than the images."""
        if channels is not None and {len(self.mean), len(self.std)} - {1, channels}:
            raise UserError(
                f"--normalize {self.text} has {max(len(self.mean), len(self.std))} channels, the images have {channels}. "
                "Give one value for all, or one each: mean,…,std,….",
                code="bad-normalisation",
            )
        return NormaliseInput(self)


class NormaliseInput(nn.Module):
    """Images (N, C, H, W) in [0, 1] -> what a model takes that leaves normalisation to its caller."""

    mean: Tensor
    std: Tensor

    def __init__(self, normalisation: Normalisation) -> None:
        super().__init__()
        for name in ("mean", "std"):
            values = getattr(normalisation, name)
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1))
        self.bgr = normalisation.bgr
        self.text = normalisation.text

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> the same shape, normalised."""
        normalised = (images - self.mean) / self.std
        return normalised.flip(1) if self.bgr else normalised


def parse_normalisation(text: str | None) -> Normalisation | None:
    """Read `--normalize`; None for nothing and for 'none'.

    A name (imagenet, cifar10, cifar100, …, 0..255, caffe), or numbers: mean and deviation of each channel, or one of each:
    '0.5,0.5', '0.4914,0.4822,0.4465,0.2471,0.2435,0.2616'; '+bgr' behind either feeds blue first. Raises UserError.
    """
    if text is None or text.strip().lower() in ("", "none", "no", "off"):
        return None
    words = text.strip()
    kept, plus, last = words.rpartition("+")
    bgr = plus != "" and last.strip().lower() == "bgr"
    name = (kept if bgr else words).strip().lower().replace("_", "-")
    name = SAME.get(name, name)
    if name == "bgr":
        return Normalisation(words, (0.0,), (1.0,), bgr=True)
    if name in NAMED:
        mean, std = NAMED[name]
        return Normalisation(words, mean, std, bgr or name in BLUE_FIRST)
    if re.search(r"[a-df-z]", re.sub(r"\b(mean|std)\b", "", name)):
        raise unknown("normalisation", text, [*NAMED, "bgr", "none"], see=_how())
    values = _numbers(name, text)
    half = len(values) // 2
    if len(values) < 2 or len(values) % 2 or min(values[half:]) <= 0:
        raise UserError(
            f"--normalize {text!r} is not as many means as deviations above 0. {_how()}", code="bad-normalisation"
        )
    return Normalisation(words, tuple(values[:half]), tuple(values[half:]), bgr)


def _how() -> str:
    return (
        f"Write one of {', '.join(NAMED)}, or the means and then the deviations of the channels: "
        "--normalize 0.4914,0.4822,0.4465,0.2471,0.2435,0.2616."
    )


def _numbers(name: str, text: str) -> list[float]:
    words = [word for word in re.split(r"[\s,;:=()\[\]]+|\bmean\b|\bstd\b", name) if word]
    try:
        return [float(exact_number(word)) for word in words]
    except (ValueError, ArithmeticError):
        raise UserError(f"--normalize {text!r} cannot be read. {_how()}", code="bad-normalisation") from None


def usual(channels: int, besides: Normalisation | None) -> Sequence[Normalisation | None]:
    """Return the normalisations worth trying on images of so many channels, in place of `besides`."""
    names = TRIED if channels == 3 else TRIED_GREY if channels == 1 else ("half", "0..255")
    ways = [parse_normalisation(name) for name in names]
    return [None, *(way for way in ways if way is None or way.text != besides.text)] if besides else ways
