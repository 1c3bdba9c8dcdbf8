"""Options of plugged-in functions: their keyword-only parameters, checked against names, annotations and defaults."""

from __future__ import annotations

import importlib
import inspect
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from robustdup.errors import UserError, unknown


@dataclass(frozen=True)
class Deferred:
    """A function named as "module:function": imported when it is first called, or asked for its parameters."""

    target: str

    def __post_init__(self) -> None:
        module, colon, name = self.target.partition(":")
        if not (colon and module and name):
            raise UserError(f"{self.target!r} names no function: write 'module:function'.", code="bad-spec")

    @cached_property
    def function(self) -> Callable[..., Any]:
        """The function itself. Raises what importing its module raises."""
        module, _, name = self.target.partition(":")
        target: Any = importlib.import_module(module)
        for part in name.split("."):
            target = getattr(target, part)
        return target  # type: ignore[no-any-return]

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature of the function, as `inspect.signature` asks for it."""
        return inspect.signature(self.function)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call the function."""
        return self.function(*arguments, **options)


def deferred(function: Any) -> Any:
    """Return "module:function" as what imports it on first use, and anything else as it is."""
    return Deferred(function) if isinstance(function, str) else function


def resolved(function: Any) -> Any:
    """Return the function behind a deferred one, and anything else as it is."""
    return function.function if isinstance(function, Deferred) else function


def keywords(function: Callable[..., Any], besides: Sequence[str] = ()) -> dict[str, inspect.Parameter]:
    """Return the keyword-only parameters of a function other than `besides`, by name: its options.

    Annotations that are text are read (`from __future__ import annotations`), where their names can be found.
    """
    function = resolved(function)
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):  # a name that exists for type checkers only; a callable without annotations
        hints = {}
    parameters = inspect.signature(function).parameters.values()
    return {
        p.name: p.replace(annotation=hints.get(p.name, p.annotation))
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.name not in besides
    }


# What every attack takes besides its options.
ATTACK_PARAMETERS = (
    *(
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for name in ("model", "images", "labels", "threat")
    ),
    inspect.Parameter("rng", inspect.Parameter.KEYWORD_ONLY),
)


def attack_signature(
    options: Mapping[str, Any], choices: Mapping[str, Sequence[str]] | None = None
) -> inspect.Signature:
    """Return the signature of an attack with these options, for wrappers of toolkits: their functions take `**options`.

    Args:
        options: the default of each option, by name.
        choices: the words that an option accepts, for those that accept only some.
    """
    parameters = list(ATTACK_PARAMETERS)
    for name, default in options.items():
        words = (choices or {}).get(name)
        annotation: Any = Literal[tuple(words)] if words else inspect.Parameter.empty
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, kind, default=default, annotation=annotation))
    return inspect.Signature(parameters)


# What other toolkits call the same: theirs -> ours.
ELSEWHERE_CALLED = {
    **dict.fromkeys(("alpha", "eps_iter", "stepsize", "eps_step", "rel_stepsize", "abs_stepsize"), "step_size"),
    **dict.fromkeys(
        ("n_iter", "iters", "iterations", "nb_iter", "num_steps", "n_steps", "max_iter", "num_iter", "iter"), "steps"
    ),
    **dict.fromkeys(("n_restarts", "num_restarts", "nb_restarts", "num_random_init", "random_restarts"), "restarts"),
    **dict.fromkeys(("n_queries", "max_queries", "num_queries", "query_limit"), "queries"),
    **dict.fromkeys(("eot_iter", "n_eot", "eot_samples"), "eot"),
    **dict.fromkeys(("loss_fn", "loss_type", "objective"), "loss"),
}
RADIUS = ("eps", "epsilon", "epsilons", "max_norm", "radius")


def _other_word(owner: str, option: str, value: Any, known: Mapping[str, inspect.Parameter]) -> UserError | None:
    """Return the error for what other toolkits call an option; None where it is no such word."""
    ours = ELSEWHERE_CALLED.get(option.lower())
    if ours in known:
        return UserError(
            f"{owner[0].upper()}{owner[1:]} calls {option!r} {ours!r}: write {ours}={value}.", code="unknown-option"
        )
    if option.lower() in RADIUS and owner.startswith("attack"):
        return UserError(
            f"{option!r} is no option of {owner}: the radius is that of the run, --eps {value}.", code="unknown-option"
        )
    return None


def check_keywords(
    owner: str, name: str, known: Mapping[str, inspect.Parameter], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return `options` in the types of their defaults. Raises UserError for an unknown name or a wrong type."""
    checked = {}
    for option, value in options.items():
        if option not in known:
            raise _other_word(owner, option, value, known) or unknown(f"option of {owner}:", option, known)
        checked[option] = _check_value(owner, known[option], value)
    missing = [option for option, p in known.items() if p.default is p.empty and option not in checked]
    if missing:
        raise UserError(
            f"{owner[0].upper()}{owner[1:]} needs the option {missing[0]!r}: write {name}({missing[0]}=…).",
            code="missing-option",
        )
    return checked


def _is_endless(value: Any) -> bool:
    """Say whether a value is an infinite number, or one that no library of numbers takes."""
    return isinstance(value, int | float) and not abs(value) < (2**63 if isinstance(value, int) else math.inf)


def _check_value(owner: str, parameter: inspect.Parameter, value: Any) -> Any:
    default, annotation = parameter.default, parameter.annotation
    place = f"Option {parameter.name!r} of {owner}"
    if typing.get_origin(annotation) is Literal:
        try:
            return TypeAdapter(annotation).validate_python(value)
        except ValidationError:
            allowed = map(str, typing.get_args(annotation))
            raise unknown(f"value of {place[0].lower() + place[1:]}:", str(value), allowed) from None
    if isinstance(value, float) and math.isnan(value) and not isinstance(default, int):
        raise UserError(f"{place} must be a number, got {value!r}.", code="bad-option")
    if _is_endless(value) and not _is_endless(default) and isinstance(value, float) <= isinstance(default, float):
        raise UserError(f"{place} is larger than any number that it may be.", code="bad-option")
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise UserError(f"{place} must be true or false, got {value!r}.", code="bad-option")
    elif isinstance(default, int):
        if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
            raise UserError(f"{place} must be a whole number such as {default}, got {value!r}.", code="bad-option")
        return int(value)
    elif isinstance(default, float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{place} must be a number such as {default}, got {value!r}.", code="bad-option")
        return float(value)
    elif isinstance(default, str) and not (isinstance(value, str) or callable(value)):
        raise UserError(f"{place} must be a word such as {default!r}, got {value!r}.", code="bad-option")
    return value
