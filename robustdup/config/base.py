"""Typed configuration: defaults in code, then a YAML file, then KEY=VALUE overrides. An unknown key is an error."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from robustdup.errors import UserError, plain, unknown
from robustdup.inflation import read_text

SWITCHES = {True: ("on", "yes", "true"), False: ("off", "no", "false")}  # what YAML 1.1 reads as booleans
LONGEST = 200  # letters of a value that a message shows


class Config(BaseModel):
    """Base of every configuration: unknown keys are refused.

    A default may depend on the fields before it (`default_factory` of a field that takes them): a blank value then means
    that default too.
    """

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)
    recipes_of: ClassVar[str] = ""  # whose recipes a file may be named by: "eval", "train", "study"; any if empty
    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # how help groups the fields, the everyday ones first

    @model_validator(mode="before")
    @classmethod
    def _blank_is_usual(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        blank = {
            name: (None, "") if field.annotation is str else (None,)
            for name, field in cls.model_fields.items()
            if field.default_factory_takes_validated_data
        }
        return {name: value for name, value in values.items() if value not in blank.get(name, ())}


C = TypeVar("C", bound=Config)


def build(
    kind: type[C],
    file: str | Path | None = None,
    overrides: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
) -> C:
    """Return a configuration: `values` over `overrides` over the YAML `file` over the defaults.

    An override is KEY=VALUE, with dots for nested keys and the value in YAML. Raises UserError with the nearest key.
    """
    content: dict[str, Any] = {}
    if file is not None:
        content.update(_read_yaml(Path(file), kind.recipes_of))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"{override!r} is neither a configuration file nor KEY=VALUE.", code="bad-option")
        _set(content, key.strip().split("."), parse_value(text))
    content.update(values or {})
    return validate(kind, content)


def validate(kind: type[C], content: Mapping[str, Any]) -> C:
    """Return `content` as a configuration of this kind. Raises UserError that names the first wrong field."""
    for key in content:
        if key not in kind.model_fields:
            raise unknown("configuration key", key, kind.model_fields)
    ready = {key: _as_text(kind, key, value) for key, value in content.items()}
    for key, value in ready.items():
        _check_plain(kind, key, value)
    try:
        return kind.model_validate(ready)
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(cause := first.get("ctx", {}).get("error"), UserError):
            raise cause from None
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"Configuration key {place!r}: {first['msg'].lower()}, got {plain(repr(first['input']), LONGEST)}.",
            code="bad-value",
        ) from None


def _as_text(kind: type[BaseModel], key: str, value: Any) -> Any:
    """A number or a list written where text is meant (eps=0.5, attacks=[fgsm, pgd]) becomes that text.

    So does a word that YAML takes for a boolean (compile=on) where the field knows that word and no boolean.
    """
    annotation = kind.model_fields[key].annotation
    words = [word for word in get_args(annotation) if isinstance(word, str)]
    if isinstance(value, bool) and get_origin(annotation) is Literal and True not in get_args(annotation):
        return next((word for word in SWITCHES[value] if word in words), value)
    if annotation in (str, str | None):
        if isinstance(value, list):
            return ",".join(str(part) for part in value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
    return value


def _check_plain(kind: type[Config], key: str, value: Any) -> None:
    """Refuse what pydantic would take for something else: true for 1, and numbers that nothing can count to."""
    words = str(kind.model_fields[key].annotation)
    if isinstance(value, bool) and ("int" in words or "float" in words) and "bool" not in words:
        raise UserError(f"Configuration key {key!r}: a number is meant, got {str(value).lower()}.", code="bad-value")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"Configuration key {key!r}: the number is too large (up to 2^63 - 1).", code="bad-value")


MOST_VALUES = 100_000  # of a configuration, with what its aliases stand for


class _Once(yaml.SafeLoader):
    """Reads YAML in which no key stands twice (the first would be dropped in silence) and no alias stands for millions."""

    def get_single_node(self) -> yaml.Node | None:
        """Return what the file holds. Raises YAMLError where aliases make too much of it."""
        node = super().get_single_node()
        if node is not None and _count_values(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {MOST_VALUES:,} values")
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping. Raises ConstructorError for a key that stands twice."""
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else []:
            if isinstance(key, yaml.ScalarNode) and key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _count_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a part of YAML stands for; more than are allowed where it holds itself."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        each = [one for part in parts for one in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(_count_values(one, known) for one in each)
    return known[id(node)]


def _read_yaml(path: Path, recipes_of: str) -> dict[str, Any]:
    if not path.is_file():
        path = _recipe(path, recipes_of)
    try:
        content = yaml.load(read_text(path), Loader=_Once)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else plain(error, 500)
        raise UserError(
            f"{str(path)!r} is not valid YAML: {reason}{_meant(path, recipes_of)}", code="bad-file"
        ) from None
    if content is None:
        raise UserError(f"{str(path)!r} is empty: it must hold KEY: VALUE lines.", code="bad-file")
    if not isinstance(content, dict):
        found = f"found a {type(content).__name__}.{_meant(path, recipes_of)}"
        raise UserError(f"{str(path)!r} must hold KEY: VALUE lines, {found}", code="bad-file")
    return {str(key): value for key, value in content.items()}


def _recipe(path: Path, kind: str) -> Path:
    """Return the file of the recipe that is named in place of a file."""
    from robustdup.config.shipped import recipe_path, recipes

    if path.suffix in (".yaml", ".yml"):
        raise UserError(f"There is no configuration file {str(path)!r}.", code="missing-file")
    try:
        return recipe_path(path.as_posix(), kind)
    except UserError as error:
        listed = f" Recipes: {', '.join(recipes(kind))}." if error.code == "unknown-recipe" else f" {error}"
        raise UserError(
            f"There is no configuration file {str(path)!r}.{_meant(path, kind) or listed}", code="missing-file"
        ) from None


def _meant(path: Path, kind: str) -> str:
    """Return where models and data are named, for a file or folder that is there and does not look like a configuration."""
    if kind not in ("eval", "train") or not path.exists() or path.suffix in (".yaml", ".yml"):
        return ""
    return " A word that stands alone names a configuration file: a model goes behind --model, data behind --data."


def _set(content: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = content.setdefault(key, {})
        if not isinstance(inner, dict):
            raise UserError(
                f"Configuration key {'.'.join(keys)!r}: {key!r} already has a plain value.", code="bad-option"
            )
        content = inner
    content[keys[-1]] = value


def parse_value(text: str) -> Any:
    """Read one value as YAML does; `1e-3` is a number too. Raises UserError."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(
            f"{plain(text, LONGEST)!r} is not a value (YAML: 3, 0.5, true, name, [a, b]).", code="bad-value"
        ) from None
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def rerun_command(command: str, config: Config) -> str:
    """Return a command line that runs this configuration again: each setting that is not the default under those before."""
    words = [word for word in _settings(config) if not word.startswith("out=")]
    return shlex.join(["robustdup", command, *words])


def _settings(config: BaseModel, parent: str = "") -> Iterator[str]:
    """Yield KEY=VALUE for each setting that is not the default, those of a group of settings as GROUP.KEY=VALUE."""
    values = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        value, key = getattr(config, name), f"{parent}{name}"
        default = field.get_default(call_default_factory=True, validated_data=dict(config))
        if value == default:
            continue
        if isinstance(value, BaseModel) and isinstance(default, BaseModel):
            yield from _settings(value, f"{key}.")
            continue
        parsed = parse_value(value) if isinstance(value, str) else None
        plain = isinstance(value, str) and _as_text(type(config), name, parsed) == value
        yield f"{key}={value if plain else json.dumps(values[name])}"


def parse_attacks(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Read 'fgsm,pgd(steps=40)' as [('fgsm', {}), ('pgd', {'steps': 40})]. Raises UserError."""
    parts = _split(text)
    if not parts:
        raise UserError(
            "No attack is named. Write for instance --attacks pgd, or --attacks 'fgsm,pgd(steps=40)'.", code="no-attack"
        )
    attacks = []
    for part in parts:
        match = re.fullmatch(r"([^()\s]+)\s*(?:\((.*)\))?", part, flags=re.DOTALL)
        if match is None:
            raise UserError(f"Cannot read {part!r}. Write NAME or NAME(option=value, option=value).", code="bad-value")
        options = {}
        for option in _split(match[2] or ""):
            key, equals, value = option.partition("=")
            if not equals:
                raise UserError(
                    f"Cannot read {option!r} in {part!r}. Write NAME(option=value, option=value).", code="bad-value"
                )
            options[key.strip()] = parse_value(value)
        attacks.append((match[1], options))
    return attacks


def parse_call(text: str, kind: str) -> tuple[str, dict[str, Any]]:
    """Read one 'name' or 'name(option=value)' as (name, options); `kind` names it in errors. Raises UserError."""
    calls = parse_attacks(text) if text.strip() else []
    if len(calls) != 1:
        raise UserError(f"Give one {kind}, as NAME or NAME(option=value); got {text!r}.", code="bad-value")
    return calls[0]


def _split(text: str) -> list[str]:
    """Split at commas outside brackets; empty parts are dropped."""
    parts, depth, part = [], 0, ""
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += letter
    return [stripped for stripped in (p.strip() for p in [*parts, part]) if stripped]
