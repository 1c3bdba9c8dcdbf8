"""The functions and classes that a result rests on: which they are, and whether an attack put others in their place.

A snapshot holds what torch, robustdup, the builtins and the classes of a model consist of. What was replaced afterwards
is found by identity, and put back: functions, their code and what they enclose, the bases of classes, the modules that
other code imports, and, of robustdup, constants and tables too.
"""

from __future__ import annotations

import builtins
import contextlib
import operator
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import EnumMeta
from pathlib import Path
from types import BuiltinFunctionType, CellType, FunctionType, MethodDescriptorType, ModuleType, WrapperDescriptorType
from typing import Any

import torch
from torch import nn

PACKAGES = ("robustdup", "torch.nn", "torch.autograd")  # whose modules are watched as far as they are imported
MODULES = (
    "torch", "torch._C", "torch._C._nn", "torch._VF", "torch._tensor", "torch.functional", "torch.overrides", "torch.linalg",
    "torch.special", "torch.fft", "math", "numpy", "random", "json", "hashlib", "safetensors", "safetensors.torch",
    "json.encoder", "json.decoder", "os", "pathlib", "subprocess", "tempfile", "pickle", "shutil", "copy", "dataclasses",
    "functools", "operator", "fractions", "pyarrow.parquet", "pydantic.main", "contextlib", "enum", "numbers", "collections",
    "itertools", "io", "posixpath", "ntpath", "genericpath", "copyreg", "multiprocessing.reduction", "torch.random",
    "torch.library", "numpy.random", "numpy._core._methods", "numpy._core.fromnumeric", "numpy._core.numeric",
    "pyarrow.parquet.core",
)  # fmt: skip
OF_CLASSES = ("torch.nn", "contextlib", "pathlib", "json.encoder", "json.decoder")  # whose own classes are watched too
KINDS = frozenset(
    (
        FunctionType,
        BuiltinFunctionType,
        MethodDescriptorType,
        WrapperDescriptorType,
        property,
        staticmethod,
        classmethod,
        ModuleType,
    )
)
OWN = "robustdup"
OF_TORCH = str(Path(torch.__file__).parent)
SCHEMAS = ("__pydantic_validator__", "__pydantic_serializer__", "__pydantic_core_schema__")  # of a record
CAUGHT = (("warnings", "showwarning"), ("warnings", "_showwarnmsg_impl"))  # who catches warnings sets these
PARTS = ("__code__", "__defaults__", "__kwdefaults__")  # of a Python function
MISSING = object()


@dataclass(frozen=True)
class _Space:
    """A module or class: how many names it has, and which of them are watched, with what they stand for.

    `kind` is what the module or class itself is of; `tables` are copies of the dicts, lists and sets that are constants of
    robustdup.
    """

    owner: Any
    kind: type
    label: str
    every: frozenset[str]
    names: tuple[str, ...]
    values: tuple[Any, ...]
    read: Callable[[Any], tuple[Any, ...]]
    tables: tuple[tuple[str, Any, Any], ...]


class WatchedCode:
    """A snapshot of what can be called in the modules and classes that decide a result."""

    def __init__(self, models: Iterable[nn.Module] = ()) -> None:
        classes = {torch.Tensor, torch._C.TensorBase, nn.Parameter, torch.autograd.Function}
        classes |= {base for model in models for module in model.modules() for base in type(module).__mro__}
        stood_on = [
            value for module in _own_modules() for value in list(vars(module).values()) if isinstance(value, ModuleType)
        ]
        names = {base.__module__ for base in classes} | set(MODULES) | {module.__name__ for module in stood_on}
        inside = tuple(f"{package}." for package in PACKAGES)
        modules = [
            module
            for name, module in list(sys.modules.items())
            if isinstance(module, ModuleType) and (name in names or f"{name}.".startswith(inside))
        ]
        for module in modules:
            if module.__name__.partition(".")[0] == OWN or module.__name__ in OF_CLASSES:
                named = [value for value in list(vars(module).values()) if isinstance(value, type)]
                classes |= {base for value in named for base in value.__mro__}
        classes |= {type(base) for base in classes if type(base) is not type}
        inner = {base for model in models for module in model.modules() for base in type(module).__mro__}
        self._of_model = {id(base) for base in inner if f"{base.__module__}.".partition(".")[0] != "torch"}
        self._modules = {module.__name__: module for module in modules if sys.modules.get(module.__name__) is module}
        self._builtins = {name: value for name, value in builtins.__dict__.items() if _callable(value)}
        self._spaces = [
            _space(module, module.__name__, module.__name__) for module in modules if module is not builtins
        ]
        self._spaces += [
            _space(base, base.__qualname__, base.__module__, whole=id(base) in self._of_model)
            for base in classes
            if base.__module__ != "builtins"
        ]
        own = [base for base in classes if base.__module__.partition(".")[0] == OWN]
        fields = [vars(base)["__dataclass_fields__"] for base in own if "__dataclass_fields__" in vars(base)]
        self._fields = [(table, dict(table), [(field, field.name) for field in table.values()]) for table in fields]
        self._schemas = [(base, name, vars(base)[name]) for base in own for name in SCHEMAS if _is_built(base, name)]
        self._bases = [(base, base.__bases__) for base in classes if base.__module__ != "builtins"]
        functions = {id(v): v for space in self._spaces for v in space.values if type(v) is FunctionType}
        self._functions = tuple(functions.values())
        self._parts = {part: tuple(map(operator.attrgetter(part), self._functions)) for part in PARTS}
        self._keywords = [(f, f.__kwdefaults__, dict(f.__kwdefaults__)) for f in self._functions if f.__kwdefaults__]
        cells = {id(cell): cell for function in self._functions for cell in function.__closure__ or ()}
        self._cells = [(cell, cell.cell_contents) for cell in cells.values() if _is_filled(cell)]

    def put_back(self) -> list[str]:
        """Put back what was replaced since, and return its names. Raises TypeError where that cannot be done."""
        # Nothing that the builtins name may be called before they are what they were.
        changed = [
            f"builtins.{name}" for name in self._builtins if builtins.__dict__.get(name) is not self._builtins[name]
        ]
        builtins.__dict__.update(self._builtins)
        for kind, before in self._bases:
            if kind.__bases__ != before:
                changed.append(f"the bases of {kind.__qualname__}")
                kind.__bases__ = before
        for space in self._spaces:
            if type(space.owner) is not space.kind:
                changed.append(f"the class of {space.label}")
                space.owner.__class__ = space.kind
            if _differs(space):
                changed += self._put_back_names(space)
            for name, table, kept in space.tables:
                if not alike(table, kept):
                    changed.append(f"{space.label}.{name}")
                    refill(table, kept)
        changed += self._put_back_fields()
        for name, module in self._modules.items():
            if sys.modules.get(name) is not module:
                changed.append(f"the module {name}")
                sys.modules[name] = module
        return changed + self._put_back_parts()

    def _put_back_fields(self) -> list[str]:
        """Put back what dataclasses and records know of their fields, and by what records are read and written."""
        changed = []
        for table, kept, names in self._fields:
            if not alike(table, kept) or any(field.name != name for field, name in names):
                changed.append("the fields of a class")
                refill(table, kept)
                for field, name in names:
                    field.name = name
        for kind, name, value in self._schemas:
            if vars(kind).get(name) is not value:
                changed.append(f"{kind.__qualname__}.{name}")
                type.__setattr__(kind, name, value)
        return changed

    def _put_back_parts(self) -> list[str]:
        """Put back code, defaults and what functions enclose, and return what a reader should hear of."""
        changed = []
        for part, before in self._parts.items():
            if any(map(operator.is_not, map(operator.attrgetter(part), self._functions), before)):
                for function, value in zip(self._functions, before, strict=True):
                    if getattr(function, part) is not value:
                        changed.append(f"{part} of {function.__qualname__}")
                        setattr(function, part, value)
        for function, keywords, kept in self._keywords:
            if not alike(keywords, kept):
                changed.append(f"__kwdefaults__ of {function.__qualname__}")
                refill(keywords, kept)
        for cell, content in self._cells:
            if not _is_filled(cell) or cell.cell_contents is not content:
                if _callable(content):
                    changed.append(f"what encloses {getattr(content, '__qualname__', type(content).__name__)}")
                cell.cell_contents = content
        return changed

    def _put_back_names(self, space: _Space) -> list[str]:
        """Put back the names of a module or class, and return those that a reader should hear of."""
        changed = []
        for name, value, current in list(_replaced(space)):
            memory = id(space.owner) in self._of_model and not _callable(value) and value is not MISSING
            if not memory and not _wrapped_by_torch(current, value):
                changed.append(f"{space.label}.{name}")
            _set(space.owner, name, value)
        return changed


def _own_modules() -> list[ModuleType]:
    """Return the modules of robustdup: what they name (time, warnings) is what they stand on."""
    return [module for name, module in list(sys.modules.items()) if f"{name}.".startswith(f"{OWN}.") and module]


def _is_built(kind: type, name: str) -> bool:
    """Say whether a class of records has what this name stands for: pydantic makes some of it when it is first asked for."""
    return name in vars(kind) and not type(vars(kind)[name]).__name__.startswith("Mock")


def _callable(value: Any) -> bool:
    return type(value) in KINDS or issubclass(type(value), type)


def _space(owner: Any, label: str, home: str, *, whole: bool = False) -> _Space:
    """Return what is watched of a module or class that module `home` holds; `whole`: every name, not what can be called."""
    content, own = dict(vars(owner)), home.partition(".")[0] == OWN
    # `_callable` written out: there are some 16,000 names
    every = own or whole
    values = {
        name: value
        for name, value in content.items()
        if (
            (kind := type(value)) in KINDS
            or issubclass(kind, type)
            or (every and not name.startswith("__") and not _is_slot(value))
        )
        and (home, name) not in CAUGHT
    }
    constants = values if own else {}
    tables = [
        (name, value, value.copy())
        for name, value in constants.items()
        if type(value) in (dict, list, set) and name.isupper()
    ]
    if own and isinstance(owner, EnumMeta):
        tables += [(name, table, table.copy()) for name, table in _of_members(owner)]
    names = tuple(values)
    # All values in one call: there are some 16,000. The first name once more, since of a single one no tuple would come.
    read = operator.itemgetter(*names, names[0]) if names else tuple
    return _Space(owner, type(owner), label, frozenset(content), names, tuple(values.values()), read, tuple(tables))


def _differs(space: _Space) -> bool:
    """Say whether a module or class has other names than it had, or one of them stands for something else."""
    now = vars(space.owner)
    try:
        return len(now) != len(space.every) or any(map(operator.is_not, space.read(now), space.values))
    except KeyError:
        return True


def _of_members(owner: EnumMeta) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Walk the tables by which an enumeration and its members know their names and values."""
    yield from (("_member_map_", owner._member_map_), ("_value2member_map_", owner._value2member_map_))
    yield from ((name, vars(member)) for name, member in owner._member_map_.items())


def _is_slot(value: Any) -> bool:
    """Say whether a name of a class is a place in its instances, or kept by the machinery of classes."""
    return type(value).__name__ in ("member_descriptor", "getset_descriptor", "_abc_data")


def _is_filled(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def alike(table: Any, kept: Any) -> bool:
    """Say whether a dict, list or set holds the very things that a copy of it does, in the same order."""
    if len(table) != len(kept):
        return False
    if isinstance(kept, dict):
        return list(table) == list(kept) and all(map(operator.is_, table.values(), kept.values()))
    return bool(table == kept) if isinstance(kept, set) else all(map(operator.is_, table, kept))


def refill(table: Any, kept: Any) -> None:
    """Let a dict, list or set hold what a copy of it does."""
    table.clear()
    if isinstance(kept, list):
        table.extend(kept)
    else:
        table.update(kept)


def _wrapped_by_torch(current: Any, value: Any) -> bool:
    """Say whether torch itself wrapped a function, as its compiler does when it is first imported: no attack's doing."""
    inner = (getattr(current, "_torchdynamo_orig_callable", None), getattr(current, "__wrapped__", None))
    code = getattr(current, "__code__", None)
    return code is not None and code.co_filename.startswith(OF_TORCH) and any(part is value for part in inner)


def _replaced(space: _Space) -> Iterator[tuple[str, Any, Any]]:
    """Walk the names that stand for something else now: with what they stood for (MISSING: for nothing), and stand for."""
    now = vars(space.owner)
    for name, value in zip(space.names, space.values, strict=True):
        if (current := now.get(name, MISSING)) is not value:
            yield name, value, current
    for name in set(now) - space.every:
        special = name.startswith("__")
        if isinstance(space.owner, type):
            inherited = any(name in vars(base) for base in space.owner.__mro__[1:])
            hides = _callable(now[name]) or hasattr(type(now[name]), "__get__") or (inherited and not special)
        else:  # a name that a module did not have, and the builtins do, would be taken in place of the builtin
            hides = name in builtins.__dict__ and not special
        if hides:
            yield name, MISSING, now[name]


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
