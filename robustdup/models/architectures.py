"""Networks to train, by spec: `small-resnet(width=24)`, `wide-resnet`, `timm:NAME`, `file.py:factory`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from robustdup.config import parse_call
from robustdup.errors import UserError, plain, unknown
from robustdup.models.adapt import Adaptation, adapted
from robustdup.models.attack_copy.agreement import undisturbed
from robustdup.models.files import is_file_spec, load_from_file
from robustdup.models.normalisation import parse_normalisation
from robustdup.models.timm_source import PREFIX, timm_network
from robustdup.plugins import Architecture, Registry

HUB = "hf:"  # a network of transformers, on the Hub or in a folder


def build_network(
    spec: str, *, channels: int, size: int | tuple[int, int], classes: int, mean: Sequence[float], std: Sequence[float],
    seed: int, registry: Registry, normalize: str | None = None,
) -> nn.Module:  # fmt: skip
    """Return the network of a spec with weights drawn from `seed`: images (N, channels, *size) in [0, 1] -> logits.

    A spec is the name of an architecture, with options as 'name(option=value)'; 'timm:NAME'; 'hf:ID'; or 'file.py:factory', a
    function without arguments (the file is run). `mean` and `std` have one value a channel, or one for all; `normalize`
    says others, which are put before a network of a file too. The global random state is left alone. Raises UserError.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(channels, height, width) < 1 or classes < 2:
        raise UserError(
            f"A classifier needs images and at least two classes; got {channels} channels of {height}x{width} pixels and "
            f"{classes} classes.",
            code="bad-data",
        )
    normalisation = parse_normalisation(normalize)
    if normalisation is not None:
        normalisation.layer(channels)
        mean, std = normalisation.mean, normalisation.std
        if normalisation.bgr and not is_file_spec(spec):
            raise UserError(
                f"--normalize {normalize} feeds blue first: only a file.py:factory needs that.", code="bad-option"
            )
    mean, std = (_per_channel(noun, values, channels) for noun, values in (("mean", mean), ("std", std)))
    with undisturbed(nn.Identity(), seed):
        network = _build(spec, registry, channels, (height, width), classes, mean, std)
        if is_file_spec(spec):
            network = adapted(network, Adaptation(normalise=normalisation))
        if spec.strip() not in registry.architectures:  # what is not known to take any size, or has options
            _check(spec, network, channels, (height, width), classes)
    return network


def _build(
    spec: str, registry: Registry, channels: int, size: tuple[int, int], classes: int, mean: Sequence[float],
    std: Sequence[float],
) -> nn.Module:  # fmt: skip
    if is_file_spec(spec):
        return load_from_file(spec)
    if spec.startswith(HUB):
        from robustdup.models.transformers_source import hf_network

        return hf_network(spec.removeprefix(HUB), channels=channels, classes=classes, mean=mean, std=std)
    name, options = parse_call(spec, "architecture")
    known = registry.architectures.get(name)
    if known is not None:
        options = known.check_options(options)
        built = _built(spec, known, options, channels=channels, size=size, classes=classes, mean=mean, std=std)
        if not isinstance(built, nn.Module):
            raise UserError(
                f"The architecture {name!r} built a {type(built).__name__}, not a torch.nn.Module.", code="not-a-module"
            )
        return built
    if name.startswith(PREFIX):
        return timm_network(
            name.removeprefix(PREFIX), options, channels=channels, size=size, classes=classes, mean=mean, std=std
        )
    raise unknown("architecture", name, [*registry.architectures, f"{PREFIX}NAME", f"{HUB}ID", "file.py:factory"])


def _built(spec: str, known: Architecture, options: dict[str, Any], **given: Any) -> Any:
    """Return what an architecture builds. Raises UserError for options by which it cannot be."""
    try:
        return known.build(**given, **options)
    except UserError:
        raise
    except (RuntimeError, ValueError, TypeError, ArithmeticError, MemoryError) as error:
        raise UserError(f"{spec} cannot be built: {plain(error, 200)}", code="model-and-data") from error


def _per_channel(noun: str, values: Sequence[float], channels: int) -> list[float]:
    if len(values) not in (1, channels) or (noun == "std" and min(values) <= 0):
        kind = "positive value" if noun == "std" else "value"
        raise UserError(f"{noun} must have one {kind} a channel ({channels}), got {list(values)}.", code="bad-value")
    return [float(value) for value in values] * (channels if len(values) == 1 else 1)


def _check(spec: str, network: nn.Module, channels: int, size: tuple[int, int], classes: int) -> None:
    """Raise UserError unless a network takes such images and gives logits of so many classes."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        with torch.no_grad():
            logits = network.eval()(torch.zeros(2, channels, *size))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"{spec} fails on images of {channels}x{size[0]}x{size[1]}: {type(error).__name__}: {error}",
            code="model-and-data",
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    if getattr(logits, "shape", None) != (2, classes):
        raise UserError(
            f"{spec} must return logits of {classes} classes, got {getattr(logits, 'shape', type(logits))}.",
            code="model-and-data",
        )
