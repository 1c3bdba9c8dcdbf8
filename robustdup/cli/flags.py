"""Flags made from a configuration model: one system, two spellings (--batch-size 64 and batch_size=64)."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from robustdup.config import Config
from robustdup.errors import UserError


def with_flags(kind: type[Config], command: Callable[..., Any]) -> Callable[..., Any]:
    """Return `command(words, flags, **own)` as a function with one flag for each plain field of the configuration.

    `flags` holds what the user gave, by field name. `words` are the positional words (CONFIG and KEY=VALUE).
    """
    own = [p for name, p in inspect.signature(command).parameters.items() if name not in ("words", "flags")]

    def run(**given: Any) -> Any:
        words = given.pop("words") or []
        mine = {p.name: given.pop(p.name) for p in own}
        flags = {name: value for name, value in given.items() if value is not None and value != []}
        return command(words=words, flags=flags, **mine)

    words = typer.Argument(None, metavar="[CONFIG] [KEY=VALUE ...]", help="A YAML file, and any setting as KEY=VALUE.")
    parameters = [_parameter("words", list[str], words)]
    for name, field in kind.model_fields.items():
        if not _nested(field.annotation):
            default = field.get_default(call_default_factory=True, validated_data={})
            parameters.append(_flag(name, field.annotation, default, field.description))
    parameters += [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__doc__ = command.__doc__
    return run


def _nested(annotation: Any) -> bool:
    """True for settings that hold settings: they are written as KEY.INNER=VALUE."""
    return typing.get_origin(annotation) is dict or (inspect.isclass(annotation) and issubclass(annotation, Config))


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _flag(name: str, annotation: Any, default: Any, description: str | None) -> inspect.Parameter:
    """A flag that is None unless given; numbers are read by the configuration, so that both spellings act alike."""
    flag = "--" + name.replace("_", "-")
    text = description or ""
    if default not in (None, [], False, "") and "[default:" not in text:
        text += f" [default: {str(default).lower() if isinstance(default, bool) else default}]"
    if annotation is bool:
        return _parameter(name, bool | None, typer.Option(None, f"{flag}/--no-{flag[2:]}", help=text))
    if typing.get_origin(annotation) is list:
        return _parameter(name, list[str], typer.Option([], flag, help=text))
    plain = _plain(annotation)
    return _parameter(
        name, plain | None, typer.Option(None, flag, help=text, metavar="INTEGER" if plain is int else "TEXT")
    )


def _plain(annotation: Any) -> Any:
    """int for int and int | None; str for everything else."""
    if isinstance(annotation, types.UnionType):
        annotation = next(part for part in typing.get_args(annotation) if part is not type(None))
    return int if annotation is int else str


def split_words(words: list[str]) -> tuple[str | None, list[str]]:
    """Return (configuration file, overrides) from positional words. Raises UserError for a second file."""
    files = [word for word in words if "=" not in word or Path(word).is_file()]
    overrides = [word for word in words if word not in files]
    if len(files) > 1:
        raise UserError(
            f"{files[1]!r} is neither KEY=VALUE nor the only configuration file ({files[0]!r} is another).",
            code="two-files",
        )
    return (files[0] if files else None), overrides
