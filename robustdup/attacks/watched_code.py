"""The functions and classes that a result rests on: which they are, and whether an attack put others in their place.

A snapshot holds what torch, robustdup, the builtins and the classes of a model consist of. What was replaced afterwards
is found by identity, and put back.
"""

from __future__ import annotations

import builtins
import contextlib
import operator
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, ModuleType, WrapperDescriptorType
from typing import Any

import torch
from torch import nn

PACKAGES = ("robustdup", "torch.nn", "torch.autograd")  # whose modules are watched as far as they are imported
MODULES = (
    "torch", "torch._C", "torch._C._nn", "torch._VF", "torch._tensor", "torch.functional", "torch.overrides", "torch.linalg",
    "torch.special", "torch.fft", "math", "numpy", "random", "json", "hashlib", "safetensors", "safetensors.torch",
)  # fmt: skip
BUILTINS = vars(builtins)
KINDS = frozenset(
    (
        FunctionType,
        BuiltinFunctionType,
        MethodDescriptorType,
        WrapperDescriptorType,
        property,
        staticmethod,
        classmethod,
    )
)
PARTS = ("__code__", "__defaults__", "__kwdefaults__")  # of a Python function
MISSING = object()


@dataclass(frozen=True)
class _Space:
    """A module or class: how many names it has, and which of them can be called, with what they stand for."""

    owner: Any
    label: str
    every: frozenset[str]
    names: tuple[str, ...]
    values: tuple[Any, ...]


class WatchedCode:
    """A snapshot of what can be called in the modules and classes that decide a result."""

    def __init__(self, models: Iterable[nn.Module] = ()) -> None:
        classes = {torch.Tensor, torch._C.TensorBase, nn.Parameter, torch.autograd.Function}
        classes |= {base for model in models for module in model.modules() for base in type(module).__mro__}
        names = {base.__module__ for base in classes} | set(MODULES)
        inside = tuple(f"{package}." for package in PACKAGES)
        modules = [
            module
            for name, module in list(sys.modules.items())
            if isinstance(module, ModuleType) and (name in names or f"{name}.".startswith(inside))
        ]
        for module in modules:
            if module.__name__.partition(".")[0] == "robustdup" or module is nn:
                classes |= {value for value in list(vars(module).values()) if isinstance(value, type)}
        self._builtins = {name: value for name, value in BUILTINS.items() if _callable(value)}
        self._spaces = [_space(module, module.__name__) for module in modules if module is not builtins]
        self._spaces += [_space(base, base.__qualname__) for base in classes if base.__module__ != "builtins"]
        functions = {id(v): v for space in self._spaces for v in space.values if type(v) is FunctionType}
        self._functions = tuple(functions.values())
        self._parts = {part: tuple(map(operator.attrgetter(part), self._functions)) for part in PARTS}

    def put_back(self) -> list[str]:
        """Put back what was replaced since, and return its names. Raises TypeError where that cannot be done."""
        # Nothing that the builtins name may be called before they are what they were.
        changed = [f"builtins.{name}" for name in self._builtins if BUILTINS.get(name) is not self._builtins[name]]
        BUILTINS.update(self._builtins)
        for space in self._spaces:
            now = vars(space.owner)
            if len(now) == len(space.every) and not any(map(operator.is_not, map(now.get, space.names), space.values)):
                continue
            for name, value in list(_replaced(space)):
                changed.append(f"{space.label}.{name}")
                _set(space.owner, name, value)
        for part, before in self._parts.items():
            if any(map(operator.is_not, map(operator.attrgetter(part), self._functions), before)):
                for function, value in zip(self._functions, before, strict=True):
                    if getattr(function, part) is not value:
                        changed.append(f"{part} of {function.__qualname__}")
                        setattr(function, part, value)
        return changed


def _callable(value: Any) -> bool:
    return type(value) in KINDS or issubclass(type(value), type)


def _space(owner: Any, label: str) -> _Space:
    content = dict(vars(owner))
    # `_callable` written out: there are some 16,000 names
    values = {name: v for name, v in content.items() if type(v) in KINDS or issubclass(type(v), type)}
    return _Space(owner, label, frozenset(content), tuple(values), tuple(values.values()))


def _replaced(space: _Space) -> Iterator[tuple[str, Any]]:
    """Walk the names that stand for something else now, with what they stood for (MISSING: for nothing)."""
    now = vars(space.owner)
    for name, value in zip(space.names, space.values, strict=True):
        # torch.compile wraps some functions of torch when it is first used.
        if (found := now.get(name, MISSING)) is not value and (
            getattr(found, "_torchdynamo_orig_callable", None) is not value
        ):
            yield name, value
    for name in set(now) - space.every:
        special = name.startswith("__")
        if isinstance(space.owner, type):
            inherited = any(name in vars(base) for base in space.owner.__mro__[1:])
            hides = _callable(now[name]) or (inherited and not special)
        else:  # a name that a module did not have, and the builtins do, would be taken in place of the builtin
            hides = name in BUILTINS and not special
        if hides:
            yield name, MISSING


def _set(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, ModuleType):
        if value is MISSING:
            vars(owner).pop(name, None)
        else:
            vars(owner)[name] = value
    elif value is MISSING:
        with contextlib.suppress(AttributeError):
            type.__delattr__(owner, name)
    else:
        type.__setattr__(owner, name, value)
