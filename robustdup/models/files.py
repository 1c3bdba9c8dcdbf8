"""Models from a Python file, `path/to/model.py:factory@weights`, and weights from a checkpoint.

A checkpoint is safetensors, or what `torch.load(weights_only=True)` takes; pickles are loaded only on request.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.errors import UserError, unknown
from robustdup.plugins.loading import FreshSource

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema")  # keys under which checkpoints nest
_PREFIXES = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, Lightning
_SPEC = re.compile(r"(?P<file>.+\.py):(?P<factory>[^@:/\\]*)(?:@(?P<weights>.+))?")


def is_file_spec(spec: str) -> bool:
    """True for specs that name a Python file."""
    return re.search(r"\.py(:|@|$)", spec) is not None


def load_from_file(spec: str, *, allow_pickle: bool = False) -> nn.Module:
    """Call the factory that a spec names (this runs the file) and load its weights, if any. Raises UserError."""
    match = _SPEC.fullmatch(spec)
    if match is None or not match["factory"]:
        raise UserError(
            f"Cannot read the model {spec!r}. Write path/to/model.py:factory, or …:factory@weights.safetensors.",
            code="bad-spec",
        )
    file = Path(match["file"]).expanduser()
    if not file.is_file():
        raise UserError(f"There is no file {match['file']!r} for the model {spec!r}.", code="missing-file")
    weights = Path(match["weights"]).expanduser() if match["weights"] else None
    if weights is not None and not weights.is_file():
        raise UserError(f"There is no weights file {match['weights']!r} for the model {spec!r}.", code="missing-file")
    model = _call(file, match["factory"])
    if weights is not None:
        load_weights(model, weights, allow_pickle=allow_pickle)
    return model


def _call(file: Path, name: str) -> nn.Module:
    module = _import(file)
    factory = getattr(module, name, None)
    if factory is None:
        raise unknown(f"model factory of {file.name}:", name, _functions(file))
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise UserError(
            f"{name!r} in {file.name} is a {type(factory).__name__}, not a function that returns a model.",
            code="bad-factory",
        )
    needed = _needed(factory)
    if needed:
        raise UserError(
            f"{file.name}:{name} needs the argument {needed!r}; a factory is called without arguments.",
            code="bad-factory",
        )
    try:
        model = factory()
    except Exception as error:
        raise UserError(
            f"{file.name}:{name}() failed with {type(error).__name__}: {error}", code="bad-factory"
        ) from error
    if not isinstance(model, nn.Module):
        raise UserError(
            f"{file.name}:{name}() returned a {type(model).__name__}, not a torch.nn.Module.", code="bad-factory"
        )
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
        raise UserError(f"{str(file)!r} is not a Python file.", code="bad-file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up here
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)
    try:
        loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(
            f"{str(file)!r} cannot be imported: {type(error).__name__}: {error}", code="bad-file"
        ) from error
    finally:
        sys.path.remove(folder)
    return module


def _functions(file: Path) -> list[str]:
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def load_weights(model: nn.Module, file: Path, *, allow_pickle: bool = False) -> None:
    """Load a checkpoint into a model, strictly. Raises UserError for a broken file, a pickle, or keys that do not fit."""
    state = unwrap(read_checkpoint(file, allow_pickle=allow_pickle), model, file)
    expected = model.state_dict()
    missing, unexpected = _difference(expected, state), _difference(state, expected)
    if missing or unexpected:
        parts = [
            f"{len(keys)} keys are {what}, the first is {keys[0]!r}"
            for what, keys in (("missing from it", missing), ("not in the model", unexpected))
            if keys
        ]
        raise UserError(
            f"{str(file)!r} does not fit the model: {'; '.join(parts)}. Is it another architecture?",
            code="other-network",
        )
    for name, value in expected.items():
        if isinstance(value, Tensor) and tuple(value.shape) != tuple(state[name].shape):
            raise UserError(
                f"{str(file)!r} does not fit the model: {name!r} has the shape {tuple(state[name].shape)} in the file and "
                f"{tuple(value.shape)} in the model.",
                code="other-network",
            )
    model.load_state_dict(state)


def read_checkpoint(file: Path, *, allow_pickle: bool = False) -> Any:
    """Return what a checkpoint holds, on the CPU. Raises UserError for anything that is not one."""
    with file.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise UserError(f"{str(file)!r} is empty: the download or the copy failed.", code="damaged-checkpoint")
    if head.lstrip()[:1] == b"<":
        raise UserError(
            f"{str(file)!r} is a web page, not a checkpoint: the download failed. Open it to see what it says.",
            code="damaged-checkpoint",
        )
    if head.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{str(file)!r} is a Git LFS pointer, not the weights: run 'git lfs pull'.", code="damaged-checkpoint"
        )
    if file.suffix != ".safetensors" and not head.startswith((b"PK", b"\x80")):  # a zip, or a bare pickle
        raise UserError(
            f"{str(file)!r} is not a checkpoint: neither safetensors (by its ending) nor written by torch.save.",
            code="damaged-checkpoint",
        )
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" not in str(error).lower():
            raise _broken(file, error) from error
        if not allow_pickle:
            raise UserError(
                f"{str(file)!r} holds more than weights: loading it as a pickle can run any code of whoever made it. "
                "Save the state dict alone (safetensors, or torch.save(model.state_dict())), or, if you trust the file, "
                "give --allow-pickle.",
                code="refused-pickle",
            ) from error
    except Exception as error:
        raise _broken(file, error) from error
    try:
        return torch.load(file, map_location="cpu", weights_only=False)
    except Exception as error:
        raise _broken(file, error) from error


def unwrap(content: Any, model: nn.Module, file: Path) -> dict[str, Tensor]:
    """Return the state dict inside a checkpoint, without the usual wrappers and prefixes. Raises UserError."""
    if isinstance(content, nn.Module):
        content = content.state_dict()
    expected = set(model.state_dict())
    for _ in range(3):
        if not isinstance(content, Mapping) or expected & set(content):
            break
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping | nn.Module)), None)
        if inner is None:
            break
        content = inner.state_dict() if isinstance(inner, nn.Module) else inner
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise UserError(
            f"{str(file)!r} holds a {type(content).__name__} without weights, not a state dict.",
            code="damaged-checkpoint",
        )
    state = {str(key): value for key, value in content.items()}
    for _ in _PREFIXES:
        prefix = next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None)
        if prefix is None or expected & set(state):
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _difference(some: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    return [key for key in some if key not in others]


def _broken(file: Path, error: Exception) -> UserError:
    detail = str(error).strip().split("\n")[0] or type(error).__name__
    return UserError(
        f"{str(file)!r} is not a whole checkpoint: {detail} Download or copy it again.", code="damaged-checkpoint"
    )
