"""Gradient-masked models: wrappers that make a network look robust without making it so.

Each stands for a way in which published defences hid their gradients (https://arxiv.org/abs/1802.00420); none is random, and
each keeps the predictions on clean images, or nearly. Attacks and diagnostics were tuned on all but `thermometer`, in front
of `builtin:digits-robust`; that mask, and other networks, are held out, for the tests of what was tuned.

`masked(name, model)` wraps any classifier; `stand_in(name, model)` is the same network for an attacker who knows the mask.
This file is a plugin that offers both as model specs:

    robustdup eval --plugin benchmarks/masked.py --model masked:quantised/builtin:digits-robust --attacks fast
    … --attack-model unmasked:quantised/builtin:digits-robust
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from robustdup.errors import UserError, unknown
from robustdup.models.load import ModelOptions, load_model
from robustdup.plugins import Registry


class Masked(nn.Module):
    """A classifier between a mask of its images and one of its logits."""

    def __init__(self, model: nn.Module, before: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.before, self.model, self.after = before, model, after
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> logits (N, K)."""
        return self.after(self.model(self.before(images)))  # type: ignore[no-any-return]


class Scaled(nn.Module):
    """Multiply the logits, so that softmax saturates and the gradient of the cross-entropy underflows to zero.

    What defensive distillation does (https://arxiv.org/abs/1511.04508) as https://arxiv.org/abs/1608.04644 found. Losses
    that ignore scale see through it.
    """

    def __init__(self, factor: float = 1e4) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        """Logits (N, K) -> logits (N, K) with the same order."""
        return logits * self.factor


class Clipped(nn.Module):
    """Say of no class that it lies more than `ceiling` behind the first: where all do, every loss is flat.

    Hides confidence, which leaves scores and gradients alike without a slope (https://arxiv.org/abs/1602.02697, gradient
    masking). Predictions stay exactly the same.
    """

    def __init__(self, ceiling: float = 0.05) -> None:
        super().__init__()
        self.ceiling = ceiling

    def forward(self, logits: Tensor) -> Tensor:
        """Logits (N, K) -> logits (N, K) in [-ceiling, 0]."""
        return (logits - logits.amax(dim=1, keepdim=True)).clamp(min=-self.ceiling)


class Quantised(nn.Module):
    """Round every pixel to one of `levels` values: the gradient is exactly zero everywhere.

    Bit-depth reduction: https://arxiv.org/abs/1704.01155 and https://arxiv.org/abs/1711.00117.
    """

    def __init__(self, levels: int = 17) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> the same shape and range."""
        return (images * (self.levels - 1)).round() / (self.levels - 1)


class Thermometer(nn.Module):
    """Climb from level to level in short ramps, `share` of the way wide: most pixels see no gradient, a few a steep one.

    Thermometer encoding (https://openreview.net/forum?id=S18Su--CW), decoded again for a network that was trained without.
    """

    def __init__(self, levels: int = 17, share: float = 0.1) -> None:
        super().__init__()
        self.levels = levels
        self.share = share

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> the same shape and range."""
        height = images * (self.levels - 1)
        floor = height.floor().detach()
        return (floor + ((height - floor - 0.5) / self.share + 0.5).clamp(0, 1)) / (self.levels - 1)


class Shattered(nn.Module):
    """Add a ripple too low to matter and too fast to follow: true gradients whose sign is right hardly more than half the time.

    Stands for erratic activations such as k-winners-take-all (https://arxiv.org/abs/1905.10510). The slope of the ripple
    lies in [-steepness, steepness], its height is `amplitude` in pixel units.
    """

    def __init__(self, amplitude: float = 1 / 255, steepness: float = 30.0) -> None:
        super().__init__()
        self.amplitude = amplitude
        self.frequency = steepness / amplitude

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> the same shape, within `amplitude` of them."""
        return images + self.amplitude * torch.sin(self.frequency * images)


class StraightThrough(nn.Module):
    """What a mask computes, with the gradient of the identity: BPDA, https://arxiv.org/abs/1802.00420."""

    def __init__(self, mask: nn.Module) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> what the mask returns."""
        return images + (self.mask(images) - images).detach()  # type: ignore[no-any-return]


BEFORE: dict[str, Callable[[], nn.Module]] = {
    "shattered": Shattered, "quantised": Quantised, "thermometer": Thermometer,
}  # fmt: skip
AFTER: dict[str, Callable[[], nn.Module]] = {"scaled": Scaled, "clipped": Clipped}
MASKS = ("scaled", "shattered", "quantised", "thermometer", "clipped")


def masked(name: str, model: nn.Module) -> nn.Module:
    """Return `model` behind the mask of that name, in the mode that it is in. Raises UserError with the nearest name."""
    if name in AFTER:
        return Masked(model, nn.Identity(), AFTER[name]())
    if name in BEFORE:
        return Masked(model, BEFORE[name](), nn.Identity())
    raise unknown("mask", name, MASKS)


def stand_in(name: str, model: nn.Module) -> nn.Module:
    """Return what an attacker who knows the mask would attack: the same predictions with gradients that lead somewhere.

    A mask of the images passes gradients straight through (BPDA); one of the logits is taken off.
    """
    if name in BEFORE:
        return Masked(model, StraightThrough(BEFORE[name]()), nn.Identity())
    return model if name in AFTER else masked(name, model)


def register(registry: Registry) -> None:
    """Register `masked:MASK/SPEC` and, for attackers who know the mask, `unmasked:MASK/SPEC`."""

    def load(wrap: Callable[[str, nn.Module], nn.Module], rest: str, options: ModelOptions) -> nn.Module:
        mask, slash, spec = rest.partition("/")
        if not slash:
            raise UserError(f"Write masked:MASK/MODEL, such as masked:quantised/builtin:digits-robust, not {rest!r}.")
        return wrap(mask, load_model(spec, registry=registry, allow_pickle=options.allow_pickle).eval())

    registry.add_model_source("masked", partial(load, masked), description="A classifier behind a mask of gradients.")
    registry.add_model_source("unmasked", partial(load, stand_in), description="The same for who knows the mask.")
