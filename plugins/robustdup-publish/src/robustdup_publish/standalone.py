"""A trained network as files that load without robustdup: weights, and the code of its architecture."""

from __future__ import annotations

import importlib
import inspect
import json
import re

from robustdup.config import parse_call
from robustdup.models.trained import NetworkDescription
from robustdup.plugins import Registry
from robustdup.plugins.options import Deferred, resolved

OWN = ("robustdup.models.networks", "robustdup.models.resnets")
HEAD = '''"""The network of this folder, as robustdup trained it. Needs torch and safetensors: `model = load()`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn


class UserError(ValueError):
    """Settings that no network can have."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)


'''
TAIL = '''

def build() -> nn.Module:
    """Return the network without its weights: images (N, C, H, W) in [0, 1] -> logits (N, K), normalised inside."""
    return {function}(**{arguments})


def load(folder: str | Path = Path(__file__).parent) -> nn.Module:
    """Return the trained network in eval mode."""
    from safetensors.torch import load_file

    model = build()
    model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return model.eval()
'''


def modeling_code(description: NetworkDescription, registry: Registry) -> str | None:
    """Return Python code that builds a network without robustdup; None for one whose code is not robustdup's own."""
    if ":" in description.spec.partition("(")[0]:
        return None
    name, options = parse_call(description.spec, "architecture")
    known = registry.architectures.get(name)
    build = None if known is None else known.build
    target = build.target.partition(":") if isinstance(build, Deferred) else ("", "", "")
    if known is None or target[0] not in OWN:
        return None
    arguments = {
        "channels": description.channels,
        "size": tuple(description.size),
        "classes": description.classes,
        "mean": _each(description.mean, description.channels),
        "std": _each(description.std, description.channels),
        **known.check_options(options),
    }
    sources = [_body(module) for module in OWN[: OWN.index(target[0]) + 1]]
    return HEAD + "\n\n".join(sources) + TAIL.format(function=resolved(build).__name__, arguments=arguments)


def _each(values: list[float], channels: int) -> list[float]:
    return list(values) * (channels if len(values) == 1 else 1)


def _body(module: str) -> str:
    """Return the source of a module from its first definition on, without docstring and imports."""
    source = inspect.getsource(importlib.import_module(module))
    last = [match.end() for match in re.finditer(r"^(?:from|import) .*\n", source, flags=re.MULTILINE)][-1]
    return source[last:].strip() + "\n"


def configuration(description: NetworkDescription) -> str:
    """Return what a program may want to know of the network, as JSON."""
    content = description.model_dump(mode="json", exclude={"schema_name", "schema_version"})
    return (
        json.dumps({**content, "input": "images (N, C, H, W) in [0, 1]", "output": "logits (N, classes)"}, indent=2)
        + "\n"
    )
