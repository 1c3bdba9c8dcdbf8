"""What the answers of a model rest on besides its weights: lists, tables, arrays, objects and functions that its parts hold,
defaults and what functions enclose, and the globals of the user's files that their code names.

A copy of a model shares some of that with the original, and an attack may reach the rest. It is noted before a call, and
put back after it, in silence, as a module's memory of its last call is.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import dis
import functools
import sys
import sysconfig
from collections import deque
from collections.abc import Iterable, Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustdup.evaluation.held import MOST_VALUES, as_bytes

MOST = 20_000  # things that are looked at, and members of a list: a model that holds more has a dataset in it
ROOM = 2**24  # values of tensors and arrays in all
TABLES = ("_parameters", "_buffers", "_modules")  # of a module, which the guard has
LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("purelib", "platlib", "stdlib", "platstdlib"))
OWN = __name__.partition(".")[0]
PLAIN = (str, bytes, int, float, complex, bool, type(None), BuiltinFunctionType, torch.dtype, torch.device)
MISSING = object()
OF_CLASSES = (FunctionType, property, staticmethod, classmethod)


class ModelState:
    """The plain state of models at one time."""

    def __init__(self, models: Iterable[nn.Module]) -> None:
        parts = [module for model in models for module in model.modules()]
        self._parts = {id(module) for module in parts}
        self._seen: dict[int, Any] = {}  # kept, so that no identity is given twice
        self._tables: list[tuple[Any, Any]] = []
        self._arrays: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._functions: list[tuple[FunctionType, CodeType, Any, Any]] = []
        self._cells: list[tuple[Any, Any]] = []
        self._globals: list[tuple[dict[str, Any], str, Any]] = []
        self._room = ROOM
        waiting: deque[Any] = deque(parts)
        while waiting and len(self._seen) < MOST:
            value = waiting.popleft()
            if id(value) in self._seen or type(value) in PLAIN:
                continue
            self._seen[id(value)] = value
            with contextlib.suppress(Exception):  # an object of a stranger may refuse to be looked at
                waiting.extend(list(self._hold(value)))

    def put_back(self) -> list[str]:
        """Put back what is different now, in silence: an empty list."""
        for function, *parts in self._functions:
            for name, part in zip(("__code__", "__defaults__", "__kwdefaults__"), parts, strict=True):
                if getattr(function, name) is not part:
                    setattr(function, name, part)
        for cell, content in self._cells:
            cell.cell_contents = content
        for space, name, value in self._globals:
            space[name] = value
        for table, content in self._tables:
            if len(table) != len(content) or any(a is not b for a, b in zip(_flat(table), _flat(content), strict=True)):
                table.clear()
                (table.update if isinstance(table, dict | set) else table.extend)(content)
        for array, kept in self._arrays:
            if array.tobytes() != kept.tobytes():
                array.flags.writeable = True
                array[...] = kept
        for tensor, before in self._tensors:
            if tensor.shape != before.shape or not torch.equal(as_bytes(tensor), as_bytes(before)):
                with torch.no_grad():
                    tensor.data = before.clone()
        return []

    def _hold(self, value: Any) -> Iterator[Any]:
        """Note a value, and walk what it consists of."""
        if isinstance(value, Tensor):
            if value.layout == torch.strided and not value.is_meta and self._has_room(value.numel()):
                self._tensors.append((value, value.detach().clone()))
        elif isinstance(value, np.ndarray):
            if not value.dtype.hasobject and self._has_room(value.size):
                self._arrays.append((value, value.copy()))
        elif isinstance(value, dict | list | set | deque):
            if type(value).__module__ in ("builtins", "collections") and len(value) <= MOST:
                self._tables.append((value, value.copy()))
                yield from value.values() if isinstance(value, dict) else value
        elif isinstance(value, FunctionType):
            yield from self._of_function(value)
        elif isinstance(value, type):
            if _is_users(value.__module__):
                yield from (part for part in vars(value).values() if isinstance(part, OF_CLASSES))
        elif (parts := _inside(value)) is not None:
            yield from parts
        elif not isinstance(value, ModuleType):
            yield from self._of_object(value)

    def _of_object(self, value: Any) -> Iterator[Any]:
        kind, content = type(value), vars(value)
        if kind.__module__.partition(".")[0] == OWN:  # networks, what is put around models, what counts their passes
            held = content.values() if isinstance(value, nn.Module) else [content] * _is_frozen(value)
            yield from (part for part in held if part is content or _is_frozen(part))
            return
        yield from kind.__mro__
        if id(value) in self._parts:  # the guard puts its attributes back; here is what they hold
            yield from (part for name, part in content.items() if name not in TABLES and "hooks" not in name)
        elif isinstance(value, (nn.Module, SimpleNamespace, argparse.Namespace)) or _is_users(kind.__module__):
            yield content

    def _has_room(self, size: int) -> bool:
        """Say whether so many values more are kept, and count them."""
        fits = size <= min(MOST_VALUES, self._room)
        self._room -= size if fits else 0
        return fits

    def _of_function(self, function: FunctionType) -> Iterator[Any]:
        if not _is_users(function.__globals__.get("__name__"), function.__code__.co_filename):
            return
        self._functions.append((function, function.__code__, function.__defaults__, function.__kwdefaults__))
        yield from (function.__defaults__, function.__kwdefaults__)
        for cell in function.__closure__ or ():
            if (content := _content(cell)) is not MISSING:
                self._cells.append((cell, content))
                yield content
        of_globals, attributes = _names(function.__code__)
        for name in of_globals & function.__globals__.keys():
            value = function.__globals__[name]
            self._globals.append((function.__globals__, name, value))
            yield value
            if isinstance(value, ModuleType) and _is_users(value.__name__):  # settings.SCALE
                for attribute in attributes & vars(value).keys():
                    self._globals.append((vars(value), attribute, vars(value)[attribute]))
                    yield vars(value)[attribute]


def _inside(value: Any) -> Iterable[Any] | None:
    """Return what a value consists of that itself never changes; None for others."""
    if isinstance(value, tuple | frozenset):
        return value
    if isinstance(value, MethodType):
        return value.__func__, value.__self__
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    if isinstance(value, property):
        return value.fget, value.fset
    return (value.__func__,) if isinstance(value, staticmethod | classmethod) else None


def _flat(table: Any) -> Iterator[Any]:
    """Walk what a container holds; of a dict keys, then values."""
    yield from table
    if isinstance(table, dict):
        yield from table.values()


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


@functools.cache
def _names(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Return the globals that code reads, and all names that it asks for, with those of the functions inside."""
    read = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    asked = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            inner_read, inner_asked = _names(constant)
            read, asked = read | inner_read, asked | inner_asked
    return frozenset(read), frozenset(asked)


def _is_frozen(value: Any) -> bool:
    """Say whether a value is a dataclass that nothing honest changes."""
    parameters = getattr(type(value), "__dataclass_params__", None)
    return dataclasses.is_dataclass(value) and bool(getattr(parameters, "frozen", False))


def _is_users(name: str | None, file: str | None = None) -> bool:
    """Say whether a module, by its name and file, is of the user: neither of an installed package nor of Python or robustdup."""
    if not isinstance(name, str) or name.partition(".")[0] in (OWN, "torch", "builtins"):
        return False
    file = file or getattr(sys.modules.get(name), "__file__", None)
    return file is None or not file.startswith(LIBRARIES)
