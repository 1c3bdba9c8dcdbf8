"""Models from a Python file: `path/to/model.py:factory`, with weights as `path/to/model.py:factory@weights`."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

from torch import nn

from robustdup.errors import UserError, unknown
from robustdup.models.weights_file import load_weights
from robustdup.plugins.loading import FreshSource

_SPEC = re.compile(r"(?P<file>.+\.py):(?P<factory>[^@:/\\]*)(?:@(?P<weights>.+))?")


def is_file_spec(spec: str) -> bool:
    """True for specs that name a Python file."""
    return re.search(r"\.py(:|@|$)", spec) is not None


def load_from_file(spec: str, *, allow_pickle: bool = False) -> nn.Module:
    """Call the factory that a spec names (this runs the file) and load its weights, if any. Raises UserError."""
    match = _SPEC.fullmatch(spec)
    if match is None or not match["factory"]:
        raise UserError(
            f"Cannot read the model {spec!r}. Write path/to/model.py:factory, or …:factory@weights.safetensors."
        )
    file = Path(match["file"]).expanduser()
    if not file.is_file():
        raise UserError(f"There is no file {match['file']!r} for the model {spec!r}.")
    weights = Path(match["weights"]).expanduser() if match["weights"] else None
    if weights is not None and not weights.is_file():
        raise UserError(f"There is no weights file {match['weights']!r} for the model {spec!r}.")
    model = _call(file, match["factory"])
    if weights is not None:
        load_weights(model, weights, allow_pickle=allow_pickle)
    return model


def _call(file: Path, name: str) -> nn.Module:
    module = _import(file)
    factory = getattr(module, name, None)
    if factory is None:
        raise unknown(f"model factory in {file.name}:", name, _functions(file))
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise UserError(f"{name!r} in {file.name} is a {type(factory).__name__}, not a function that returns a model.")
    needed = _needed(factory)
    if needed:
        raise UserError(f"{file.name}:{name} needs the argument {needed!r}; a factory is called without arguments.")
    try:
        model = factory()
    except Exception as error:
        raise UserError(f"{file.name}:{name}() failed with {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{file.name}:{name}() returned a {type(model).__name__}, not a torch.nn.Module.")
    return model


def _needed(factory: object) -> str | None:
    try:
        parameters = inspect.signature(factory).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return next((p.name for p in parameters if p.default is p.empty and p.kind not in optional), None)


def _import(file: Path) -> ModuleType:
    """Import the file under a name of its own; modules beside it can be imported by it."""
    name = f"robustdup_model_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"
    loader = FreshSource(name, str(file))
    spec = importlib.util.spec_from_file_location(name, file, loader=loader)
    if spec is None:
        raise UserError(f"{str(file)!r} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up here
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)
    try:
        loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"{str(file)!r} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
    return module


def _functions(file: Path) -> list[str]:
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
