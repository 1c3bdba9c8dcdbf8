"""The code of a model: one hash over the user's files that its classes and functions come from."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

OWN = Path(__file__).parents[1]  # robustdup itself, which has a version


def code_fingerprint(model: nn.Module | None) -> str:
    """Return one SHA-256 (hex) over the files that a model is made of, or "" where none of them is the user's.

    Those are the modules of its classes, and the modules that these name, as far as they are files of the user: neither of
    an installed package nor of Python or robustdup.
    """
    if model is None:
        return ""
    classes = {base for module in model.modules() for base in type(module).__mro__}
    files: dict[str, Path] = {}
    left = sorted({base.__module__ for base in classes})
    seen = set(left)
    installed = tuple(str(Path(path).resolve()) for path in _installed())
    while left:
        name = left.pop()
        module = sys.modules.get(name)
        file = _file_of(module, installed)
        if module is None or file is None:
            continue
        files[name] = file
        named = set(_names(vars(module).values())) - seen
        seen |= named
        left += sorted(named)
    digest = hashlib.sha256()
    for content in sorted(file.read_bytes() for file in set(files.values())):
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest() if files else ""


def _installed() -> Iterator[str]:
    paths = sysconfig.get_paths()
    yield from (paths[name] for name in ("purelib", "platlib", "stdlib", "platstdlib"))
    yield str(OWN)


def _file_of(module: ModuleType | None, installed: tuple[str, ...]) -> Path | None:
    name = getattr(module, "__file__", None)
    if not isinstance(name, str) or not name.endswith(".py"):
        return None
    path = Path(name).resolve()
    return None if str(path).startswith(installed) or not path.is_file() else path


def _names(values: Iterable[Any]) -> Iterator[str]:
    """Walk the names of the modules that values are, or come from."""
    for value in list(values):
        if isinstance(value, ModuleType):
            yield value.__name__
        elif isinstance(module := getattr(value, "__module__", None), str):
            yield module
