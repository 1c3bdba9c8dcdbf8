"""Models from a Python file, `path/to/model.py:factory@weights`, and weights from a checkpoint.

What a checkpoint is, `checkpoint_file` tells; pickles are loaded only on request.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from robustdup.errors import UserError, error_text, unknown, user_path
from robustdup.inflation import read_text
from robustdup.models.adapt import keep_names, keep_notes
from robustdup.models.checkpoint_file import read_checkpoint, weights_file
from robustdup.models.class_names import names_in
from robustdup.models.state_dicts import fit_state
from robustdup.plugins.exits import Exit, no_exits
from robustdup.plugins.loading import import_file

_SPEC = re.compile(r"(?P<file>.+?\.py):(?P<factory>[^@:/\\(]*)(?P<options>\(.*?\))?(?:@(?P<weights>.+))?", re.DOTALL)


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
    file = user_path(match["file"])
    if not file.is_file():
        raise UserError(f"There is no file {match['file']!r} for the model {spec!r}.", code="missing-file")
    weights, named = place_of_weights(match["weights"])
    if weights is not None and not weights.is_file():
        raise UserError(f"There is no weights file {str(weights)!r} for the model {spec!r}.", code="missing-file")
    module = _import(file)
    model = _call(file, module, match["factory"], match["options"] or "()")
    if weights is not None:
        load_weights(model, weights, allow_pickle=allow_pickle, named=named, module=module)
    return model


def place_of_weights(text: str | None) -> tuple[Path | None, str | None]:
    """Split FILE#NAME into the file and the set of weights in it; a file may have a # in its name."""
    if not text:
        return None, None
    whole = user_path(text)
    file, mark, named = text.rpartition("#")
    if whole.exists() or not mark:
        return weights_file(whole), None
    return weights_file(user_path(file)), named


def _call(file: Path, module: ModuleType, name: str, written: str) -> nn.Module:
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
    arguments, options = _read_arguments(f"{file.name}:{name}{written}", written)
    needed = _needed(factory, arguments, options)
    if needed:
        raise UserError(
            f"{file.name}:{name} needs the argument {needed!r}: write {file.name}:{name}({needed}=…).",
            code="bad-factory",
        )
    try:
        with no_exits():
            model = factory(*arguments, **options)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise UserError(f"{file.name}:{name}{written} failed with {error_text(error)}", code="bad-factory") from error
    if not isinstance(model, nn.Module):
        raise UserError(
            f"{file.name}:{name}{written} returned a {type(model).__name__}, not a torch.nn.Module.", code="bad-factory"
        )
    return model


def _read_arguments(spec: str, written: str) -> tuple[list[Any], dict[str, Any]]:
    """Read '(10, act="silu")' as positional and named values; bare words are text. Raises UserError."""
    try:
        call = ast.parse(f"f{written}", mode="eval").body
        if not isinstance(call, ast.Call) or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError
        arguments = [_value(node) for node in call.args]
        return arguments, {str(keyword.arg): _value(keyword.value) for keyword in call.keywords}
    except (ValueError, SyntaxError):
        raise UserError(
            f"Cannot read the arguments of {spec}. Write values: file.py:make(10), file.py:make(depth=28, act='silu').",
            code="bad-spec",
        ) from None


def _value(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def _needed(factory: object, arguments: list[Any], options: dict[str, Any]) -> str | None:
    """Return an argument without a default that is not given; calling says what else is wrong."""
    try:
        parameters = list(inspect.signature(factory).parameters.values())[len(arguments) :]  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    missing = (p.name for p in parameters if p.default is p.empty and p.kind not in optional and p.name not in options)
    return next(missing, None)


def _import(file: Path) -> ModuleType:
    """Import the file under a name of its own; modules beside it can be imported by it."""
    name = f"robustdup_model_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)
    try:
        with no_exits():
            return import_file(name, file)
    except (Exception, SystemExit, Exit) as error:
        raise UserError(f"{str(file)!r} cannot be imported: {error_text(error)}", code="bad-file") from error
    finally:
        sys.path.remove(folder)


def _functions(file: Path) -> list[str]:
    body = ast.parse(read_text(file)).body
    return [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def load_weights(
    model: nn.Module,
    file: Path,
    *,
    allow_pickle: bool = False,
    named: str | None = None,
    module: ModuleType | None = None,
) -> None:
    """Load a checkpoint into a model; what a reader should know of that, and names of classes, are kept with it.

    Args:
        model: the network.
        file: the checkpoint.
        allow_pickle: whether it may run code.
        named: the set of weights to take, where it holds several.
        module: the file that the network comes from, whose classes the checkpoint may name.

    Raises:
        UserError: a broken file, a pickle, or weights that do not fit.
    """
    content = read_checkpoint(file, allow_pickle=allow_pickle, module=module)
    fit, notes = fit_state(content, model, repr(str(file)), named=named)
    model.load_state_dict(fit.state, strict=False)
    keep_notes(model, notes)
    if isinstance(content, Mapping):
        keep_names(model, names_in(content))
