"""Typed configuration: defaults in code, then a YAML file, then KEY=VALUE overrides. An unknown key is an error."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from robustdup.errors import UserError, unknown


class Config(BaseModel):
    """Base of every configuration: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


# The radii of RobustBench and AutoAttack (https://github.com/fra31/auto-attack), and ones that 8x8 digits can tell apart.
USUAL_EPS = {"linf": "8/255", "l2": "0.5", "l1": "12"}
DIGITS_POINTS = 200
DIGITS_EPS = {"linf": "0.15", "l2": "0.5", "l1": "2"}


class EvalConfig(Config):
    """What `robustdup eval` needs. Field descriptions are the help texts of the flags."""

    model: str = Field(
        "builtin:digits-robust",
        description="Model: builtin:NAME, robustbench:NAME, run:FOLDER, file.py:factory@weights, …",
    )
    data: str = Field("builtin:digits", description="Data: builtin:digits, a Hub dataset id, or a local folder.")
    split: str = Field("test", description="Split of the data.")
    data_config: str | None = Field(None, description="Configuration (subset) of a Hub dataset.")
    revision: str | None = Field(None, description="Revision of a Hub dataset: branch, tag or commit.")
    image_column: str | None = Field(None, description="Column of the images; found by itself if not named.")
    label_column: str | None = Field(None, description="Column of the labels; found by itself if not named.")
    resize: int | None = Field(None, description="Resize the shorter side to this many pixels.")
    crop: int | None = Field(None, description="Crop the centre to this many pixels, after resizing.")
    grey: bool = Field(False, description="Turn images into one grey channel.")
    n: int | None = Field(
        None,
        description="Take the first N points, as RobustBench does; all if not given, but 200 of the 500 built-in digits "
        "for autoattack, so that a first look takes less than a minute.",
        ge=1,
    )
    sample: int | None = Field(None, description="Take a random subset of this many points, drawn from the seed.", ge=1)
    norm: str = Field("Linf", description="Norm of the threat model: Linf, L2 or L1.")
    eps: str = Field(
        "",
        description=(
            "Radius in pixel units of [0, 1]: 8/255, 0.5, or several for a curve: 2/255,4/255,8/255. "
            "[default: Linf 8/255, L2 0.5, L1 12; for builtin:digits Linf 0.15, L2 0.5, L1 2]"
        ),
    )
    attacks: str = Field(
        "autoattack",
        description="Attacks, in order: names of attacks and ensembles, with options: 'fgsm,pgd(steps=40,restarts=2)'.",
    )
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Options by attack: options.pgd.steps=40."
    )
    individual: bool = Field(
        False, description="Run each attack on all points instead of on survivors, to compare attacks."
    )
    attack_model: str | None = Field(
        None, description="Attack this model and judge --model: BPDA, stand-ins, transfer."
    )
    loss: str | None = Field(None, description="Loss for every native gradient attack that takes one.")
    eot: int = Field(
        1, description="Gradient draws a step for randomised models (EOT), for attacks that take it.", ge=1
    )
    judge_draws: int = Field(20, description="Fresh draws by which a randomised model is judged.", ge=1)
    mode: Literal["eval", "as-is"] = Field("eval", description="Put the model in eval mode, or leave it as it comes.")
    seed: int = Field(0, description="Seed of everything random.", ge=0)
    batch_size: int | None = Field(
        None,
        description="Points in one call of an attack, which is what a kill can lose; chosen by the device if not given.",
        ge=1,
    )
    micro_batch: int | None = Field(
        None, description="Rows in one padded model call; chosen by the device if not given.", ge=1
    )
    threads: int | None = Field(
        None, description="CPU threads; one for models too small to share out, all otherwise, if not given.", ge=1
    )
    device: str = Field("auto", description="cpu, cuda, cuda:1, mps, or auto.")
    workers: int | None = Field(
        None,
        description="Processes (or actors of a cluster) that share the points; the result is the same. If not given: one "
        "for each core where a small model computes with one thread and the run may take long, otherwise one.",
        ge=1,
    )
    runner: str = Field("local", description="Where the workers are: local, or ray (a cluster).")
    fold: bool = Field(
        True, description="Attack a copy with BatchNorm folded into convolutions; the original is judged."
    )
    compile: Literal["auto", "off", "on", "cudagraphs"] = Field(
        "auto", description="Compile the copy that native attacks use: auto is off on a CPU and on with CUDA."
    )
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32", description="Precision of the copy that native attacks use; the judge is always fp32."
    )
    min_distance: bool = Field(
        False, description="Also look for the smallest eps of every point, and report robust accuracy over eps."
    )
    allow_pickle: bool = Field(
        False, description="Load weights that are pickles. They can run any code: only from people you trust."
    )
    diagnostics: bool = Field(True, description="Look for signs that the number should not be believed.")
    save_images: bool = Field(True, description="Keep the adversarial images (exact) in the run folder.")
    plugin: list[str] = Field(default_factory=list, description="Plugin files to load, besides installed plugins.")
    out: str | None = Field(None, description="Run folder; runs/<time>-<model> if not given.")

    @model_validator(mode="after")
    def _usual_eps(self) -> EvalConfig:
        """Fill in the radius that the field reports for this norm, and the points of a first look, where none are given."""
        if not self.eps:
            usual = DIGITS_EPS if self.data == "builtin:digits" else USUAL_EPS
            self.__dict__["eps"] = usual.get(self.norm.lower(), "8/255")
        if (self.data, self.attacks) == ("builtin:digits", "autoattack") and self.n is None and self.sample is None:
            self.__dict__["n"] = DIGITS_POINTS
        return self


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
        content.update(_read_yaml(Path(file)))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"{override!r} is neither a configuration file nor KEY=VALUE.")
        _set(content, key.strip().split("."), parse_value(text))
    for key, value in (values or {}).items():
        content[key] = value
    return validate(kind, content)


def validate(kind: type[C], content: Mapping[str, Any]) -> C:
    """Return `content` as a configuration of this kind. Raises UserError that names the first wrong field."""
    for key in content:
        if key not in kind.model_fields:
            raise unknown("configuration key", key, kind.model_fields)
    ready = {key: _as_text(kind, key, value) for key, value in content.items()}
    try:
        return kind.model_validate(ready)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"Configuration key {place!r}: {first['msg'].lower()}, got {first['input']!r}.") from None


def _as_text(kind: type[Config], key: str, value: Any) -> Any:
    """A number or a list written where text is meant (eps=0.5, attacks=[fgsm, pgd]) becomes that text."""
    annotation = kind.model_fields[key].annotation
    if annotation in (str, str | None):
        if isinstance(value, list):
            return ",".join(str(part) for part in value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
    return value


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"There is no configuration file {str(path)!r}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{str(path)!r} is not valid YAML: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{str(path)!r} must hold KEY: VALUE lines, found a {type(content).__name__}.")
    return {str(key): value for key, value in content.items()}


def _set(content: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = content.setdefault(key, {})
        if not isinstance(inner, dict):
            raise UserError(f"Configuration key {'.'.join(keys)!r}: {key!r} already has a plain value.")
        content = inner
    content[keys[-1]] = value


def parse_value(text: str) -> Any:
    """Read one value as YAML does; `1e-3` is a number too. Raises UserError."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"{text!r} is not a value (YAML: 3, 0.5, true, name, [a, b]).") from None
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def rerun_command(command: str, config: Config) -> str:
    """Return a command line that runs this configuration again: what cannot be left out, since defaults depend on each other."""
    wanted = {name: value for name, value in config.model_dump(mode="json").items() if name != "out"}

    def unlike(given: Mapping[str, Any]) -> dict[str, Any]:
        """What comes out otherwise than wanted where only these values are given."""
        try:
            made = type(config).model_validate(given).model_dump(mode="json")
        except ValidationError:
            return {name: value for name, value in wanted.items() if name not in given}
        return {name: value for name, value in wanted.items() if made[name] != value}

    given: dict[str, Any] = {}
    while more := {name: value for name, value in unlike(given).items() if name not in given}:
        given |= more
    for name in list(given):
        rest = {key: value for key, value in given.items() if key != name}
        if unlike(rest) == unlike(given):
            given = rest
    words = ["robustdup", command]
    for name in wanted:
        if name in given:
            value = given[name]
            parsed = parse_value(value) if isinstance(value, str) else None
            plain = isinstance(value, str) and _as_text(type(config), name, parsed) == value
            words.append(f"{name}={value if plain else json.dumps(value)}")
    return shlex.join(words)


def parse_attacks(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Read 'fgsm,pgd(steps=40)' as [('fgsm', {}), ('pgd', {'steps': 40})]. Raises UserError."""
    parts = _split(text)
    if not parts:
        raise UserError("No attack is named. Write for instance --attacks pgd, or --attacks 'fgsm,pgd(steps=40)'.")
    attacks = []
    for part in parts:
        match = re.fullmatch(r"([^()\s]+)\s*(?:\((.*)\))?", part, flags=re.DOTALL)
        if match is None:
            raise UserError(f"Cannot read {part!r}. Write NAME or NAME(option=value, option=value).")
        options = {}
        for option in _split(match[2] or ""):
            key, equals, value = option.partition("=")
            if not equals:
                raise UserError(f"Cannot read {option!r} in {part!r}. Write NAME(option=value, option=value).")
            options[key.strip()] = parse_value(value)
        attacks.append((match[1], options))
    return attacks


def parse_call(text: str, what: str) -> tuple[str, dict[str, Any]]:
    """Read one 'name' or 'name(option=value)' as (name, options); `what` names it in errors. Raises UserError."""
    calls = parse_attacks(text) if text.strip() else []
    if len(calls) != 1:
        raise UserError(f"Give one {what}, as NAME or NAME(option=value); got {text!r}.")
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
