"""What a checkpoint may name without running a stranger's code: numbers, settings, layers of torch, classes of the given file.

Of any other class nothing is run either: what an object of it holds is read as a plain mapping.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import types
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

Named = Callable[..., Any] | tuple[Callable[..., Any], str]
# Modules of Python's own library whose objects are values; functions and classes of all others are refused.
VALUES = ("datetime", "decimal", "fractions", "uuid", "enum", "collections", "zoneinfo", "ipaddress")


class Unqueued:
    """Stands for a queue, which the reader fills as a list."""

    def __new__(cls, *_: Any, **__: Any) -> list[Any]:  # type: ignore[misc]
        """Return an empty list."""
        return []


class Unloaded:
    """Stands for a class that is not loaded: an object of it becomes a plain mapping, its attributes those of the object."""

    def __new__(cls, *_: Any, **__: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        """Return an empty mapping, which the reader fills; the arguments are dropped."""
        return OrderedDict()


def harmless(file: Path, module: ModuleType | None) -> list[Named]:
    """Return what `torch.load(weights_only=True)` may be allowed besides, for one file.

    Numbers, arrays and types of numpy, settings (Namespace, paths), layers of torch by their classes, and classes of `module`,
    which the user named to be run, also where the file says that they were in `__main__`; other classes than those of
    Python's library as `Unloaded`. None of them runs code from the file.
    """
    allowed: list[Named] = [
        argparse.Namespace, types.SimpleNamespace, defaultdict, (frozenset, "builtins.frozenset"), np.dtype, np.ndarray,
        *_numpy_types(), *_paths(),
    ]  # fmt: skip
    for core in ("core", "_core"):
        allowed += [
            (part, f"numpy.{core}.multiarray.{part.__name__}") for part in (multiarray.scalar, multiarray._reconstruct)
        ]
    known = {name for each in allowed if isinstance(each, tuple) for name in [each[1]]}
    for name in _globals_of(file) - known:
        target = _layer(name) or _of_module(name, module) or _stand_in(name)
        if target is not None:
            allowed.append((target, name))
    return allowed


multiarray: Any = np._core.multiarray  # type: ignore[attr-defined]


def _numpy_types() -> list[Named]:
    kinds = [getattr(np.dtypes, name) for name in dir(np.dtypes) if name.endswith("DType")]
    import _codecs  # numpy writes its numbers as text in latin-1

    return [*(kind for kind in kinds if isinstance(kind, type)), (_codecs.encode, "_codecs.encode")]


def _paths() -> list[Named]:
    kinds = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    return [(pathlib.PurePath, f"{place}.{kind}") for place in ("pathlib", "pathlib._local") for kind in kinds]


def _globals_of(file: Path) -> set[str]:
    """Return what a file names that is not allowed by torch itself; none for old files, which do not say it beforehand."""
    try:
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # noqa: BLE001
        return set()


def _stand_in(name: str) -> type | None:
    """Return what stands for a class that is not loaded; None for what Python's own library has, but for values."""
    module = name.rpartition(".")[0]
    top = IMPORT_MAPPING.get(module, module).partition(".")[0]  # files name modules as Python 2 called them
    if top in sys.stdlib_module_names and top not in VALUES:
        return None
    if top == "numpy" or (top == "torch" and not module.startswith("torch.nn.")):
        return None
    return Unqueued if name == "collections.deque" else Unloaded


def _layer(name: str) -> type | None:
    """Return a class of layers of torch by its whole name, `torch.nn.modules.conv.Conv2d`."""
    place, _, last = name.rpartition(".")
    if not place.startswith("torch.nn.modules."):
        return None
    value = getattr(sys.modules.get(place), last, None)
    return value if isinstance(value, type) and issubclass(value, nn.Module) else None


def _of_module(name: str, module: ModuleType | None) -> type | None:
    """Return a network's class of the user's own file, where the checkpoint names one that stood in the same file."""
    place, _, last = name.rpartition(".")
    if module is None or place not in ("__main__", module.__name__, Path(str(module.__file__)).stem):
        return None
    value = getattr(module, last, None)
    return value if isinstance(value, type) and issubclass(value, nn.Module) else None


@contextmanager
def main_is(module: ModuleType | None) -> Iterator[None]:
    """Let a pickle find in `__main__`, and under the file's own name, what stands in the user's file."""
    if module is None:
        yield
        return
    main, stem = sys.modules["__main__"], Path(str(module.__file__)).stem
    lent = {name: value for name, value in vars(module).items() if not hasattr(main, name)}
    before = sys.modules.get(stem)
    vars(main).update(lent)
    sys.modules.setdefault(stem, module)
    try:
        yield
    finally:
        for name in lent:
            vars(main).pop(name, None)
        if before is None:
            sys.modules.pop(stem, None)


def is_torchscript(file: Path) -> bool:
    """Tell whether a file is a TorchScript archive."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False
    return "constants.pkl" in names
