"""Flags made from a configuration model: one system, two spellings (--batch-size 64 and batch_size=64)."""

from __future__ import annotations

import copy
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic.fields import FieldInfo

from robustdup.config import Config
from robustdup.errors import UserError

LONGEST = 76  # letters of a flag with its choices: what a terminal of 80 columns has room for
OUTPUT = "Output"  # the panel of what a command has besides its configuration

# What several commands have.
RESUME = typer.Option(
    None, "--resume", metavar="[RUN]", help="Go on with an unfinished run: its folder, that of --out, or the latest."
)
TRUST = typer.Option(
    False,
    "--trust",
    help="Run the code that a run of somebody else names, of --resume or of run:FOLDER, without naming it again.",
)
JSON = typer.Option(False, "--json", help="Print JSON and nothing else.")
RECORD_AS_JSON = typer.Option(False, "--json", help="Print the record, and nothing else, on standard output.")


def with_flags(
    kind: type[Config],
    command: Callable[..., Any],
    *,
    only: Iterable[str] | None = None,
    words: tuple[str, str] = ("[CONFIG] [KEY=VALUE ...]", "A YAML file, and any setting as KEY=VALUE."),
) -> Callable[..., Any]:
    """Return `command(words, flags, **own)` as a function with one flag for each plain field of the configuration.

    `flags` holds what the user gave, by field name. `words` are the positional words (CONFIG and KEY=VALUE). Flags stand
    in the order of `kind.panels`; `only` names the fields that the command uses, all if not given. `words` is what help
    calls the positional words, and what it says of them.
    """
    own = [p for name, p in inspect.signature(command).parameters.items() if name not in ("words", "flags")]

    def run(**given: Any) -> Any:
        words = given.pop("words") or []
        of_command = {p.name: given.pop(p.name) for p in own}
        flags = {name: value for name, value in given.items() if value is not None and value != []}
        return command(words=words, flags=flags, **of_command)

    parameters = [_parameter("words", list[str], typer.Argument(None, metavar=words[0], help=words[1]))]
    used = set(kind.model_fields) if only is None else set(only)
    by_word = []
    for panel, name in _in_panels(kind):
        field = kind.model_fields[name]
        if name not in used:
            continue
        if _nested(field.annotation):
            by_word.append((f"{name}.KEY=VALUE", field.description or ""))
        else:
            parameters.append(_flag(name, field, panel))
    for p in own:
        info = copy.copy(p.default)  # other commands may have it too
        info.rich_help_panel = info.rich_help_panel or OUTPUT
        parameters.append(_parameter(p.name, p.annotation, info))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__doc__ = command.__doc__
    run.by_word = by_word  # type: ignore[attr-defined]
    return run


def _in_panels(kind: type[Config]) -> Iterator[tuple[str | None, str]]:
    """Walk all fields with their panels; those that are in none come last."""
    for panel, names in kind.panels.items():
        for name in names:
            yield panel, name
    placed = {name for names in kind.panels.values() for name in names}
    for name in kind.model_fields:
        if name not in placed:
            yield None, name


def _nested(annotation: Any) -> bool:
    """True for settings that hold settings: they are written as KEY.INNER=VALUE."""
    return typing.get_origin(annotation) is dict or (inspect.isclass(annotation) and issubclass(annotation, Config))


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _flag(name: str, field: FieldInfo, panel: str | None) -> inspect.Parameter:
    """A flag that is None unless given; numbers are read by the configuration, so that both spellings act alike."""
    flag, annotation, text = "--" + name.replace("_", "-"), field.annotation, field.description or ""
    default = field.get_default(call_default_factory=True, validated_data={})
    if default not in (None, [], False, "") and "[default:" not in text:
        text += f" [default: {str(default).lower() if isinstance(default, bool) else default}]"
    if annotation in (bool, bool | None):
        info = typer.Option(None, f"{flag}/--no-{flag[2:]}", help=text, rich_help_panel=panel)
        return _parameter(name, bool | None, info)
    if typing.get_origin(annotation) is list:
        return _parameter(name, list[str], typer.Option([], flag, help=text, metavar="TEXT", rich_help_panel=panel))
    allowed, numeric = choices(field), annotation in (int, int | None)
    metavar = "|".join(allowed) if allowed else "INTEGER" if numeric else "NUMBER" if _is_number(field) else "TEXT"
    if len(flag) + len(metavar) > LONGEST:
        metavar = "NAME"  # the text names them
    info = typer.Option(
        None,
        flag,
        help=text,
        metavar=metavar,
        rich_help_panel=panel,
        autocompletion=(lambda: allowed) if allowed else None,
    )
    return _parameter(name, (int if numeric else str) | None, info)


def _is_number(field: FieldInfo) -> bool:
    return field.annotation in (float, float | None)


def choices(field: FieldInfo) -> list[str]:
    """Return the words that a field takes, where these are few: those of a Literal, or what the field names itself."""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "choices" in extra:
        return [str(word) for word in typing.cast("list[Any]", extra["choices"])]
    words = []
    for part in typing.get_args(field.annotation) if not _is_literal(field.annotation) else (field.annotation,):
        words += [str(word) for word in typing.get_args(part)] if _is_literal(part) else []
    mixed = bool in typing.get_args(field.annotation)
    return [*words, "true", "false"] if words and mixed else words


def _is_literal(annotation: Any) -> bool:
    return typing.get_origin(annotation) is typing.Literal


def split_words(words: list[str]) -> tuple[str | None, list[str]]:
    """Return (configuration file, overrides) from positional words. Raises UserError for a second file."""
    files = [word for word in words if "=" not in word or Path(word).is_file()]
    overrides = [word for word in words if word not in files]
    if files and all(re.fullmatch(r"[\d./]+", word) and not Path(word).is_file() for word in files):
        raise UserError(
            f"{files[0]!r} stands alone. Several values go with commas and no spaces: --eps 2/255,4/255,8/255.",
            code="two-files",
        )
    if len(files) > 1:
        raise UserError(
            f"{files[1]!r} is neither KEY=VALUE nor the only configuration file ({files[0]!r} is another).",
            code="two-files",
        )
    return (files[0] if files else None), overrides
