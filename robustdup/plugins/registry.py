"""One door for everything that can be plugged in: attacks, ensembles, losses, models, architectures, data, objectives.

A plugin is a function `register(registry)` named by an entry point of the group `robustdup.plugins`, or a file given
with `--plugin`. robustdup's own attacks, models and data come through the same door.
"""

from __future__ import annotations

import copy
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from robustdup.errors import Unavailable, UserError, unknown

ENTRY_POINTS = "robustdup.plugins"

Kind = Literal["bounded", "minimum-norm", "unbounded"]
Knowledge = Literal["white-box", "score-based", "decision-based", "transfer"]
Batching = Literal["pool", "batch", "whole"]
When = Literal["always", "masked"]


@dataclass(frozen=True)
class AttackSpec:
    """What robustdup knows of an attack.

    `function` is `attack(model, images, labels, threat, *, rng, **options) -> adversarial images`; it is None where the
    attack cannot run here, and `reason` says why. `cost` is the (forward, backward) passes that a surviving point costs
    at the default options, or a function of the options that returns them; None where unknown. `quick` holds options
    under which the conformance test runs the attack quickly. `warning` is shown whenever the attack is used;
    `undemonstrated` says what was seen where the attack ran but did not beat noise of equal norm.
    """

    name: str
    function: Callable[..., Any] | None
    norms: tuple[str, ...]
    kind: Kind = "bounded"
    knowledge: Knowledge = "white-box"
    url: str = ""
    batching: Batching = "batch"
    cost: tuple[float, float] | Callable[[Mapping[str, Any]], tuple[float, float]] | None = None
    description: str = ""
    quick: Mapping[str, Any] = field(default_factory=dict)
    warning: str = ""
    undemonstrated: str = ""
    available: bool = True
    reason: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        for what, value, allowed in (
            ("kind of attack", self.kind, typing.get_args(Kind)),
            ("knowledge", self.knowledge, typing.get_args(Knowledge)),
            ("batching", self.batching, typing.get_args(Batching)),
        ):
            if value not in allowed:
                raise unknown(what, str(value), allowed)
        if isinstance(self.norms, str) or not set(self.norms) <= {"Linf", "L2", "L1", "L0"}:
            raise UserError(
                f"Attack {self.name!r}: norms must be a list of 'Linf', 'L2', 'L1', 'L0'; got {self.norms!r}."
            )
        object.__setattr__(self, "norms", tuple(self.norms))
        if self.available and self.function is None:
            raise UserError(f"Attack {self.name!r} has no function. Give one, or available=False with a reason.")
        if not self.available and not self.reason:
            raise UserError(f"Attack {self.name!r} is unavailable without a reason.")
        if self.function is not None and "rng" not in inspect.signature(self.function).parameters:
            raise UserError(
                f"Attack {self.name!r} does not take 'rng'. Its signature must be "
                "(model, images, labels, threat, *, rng, **options)."
            )

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The options: keyword-only parameters of the function other than `rng`, by name."""
        return {} if self.function is None else keywords(self.function, besides=("rng",))

    @property
    def defaults(self) -> dict[str, Any]:
        """The options and their default values."""
        return {name: p.default for name, p in self.parameters.items()}

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options in the types of their defaults. Raises UserError for an unknown name or a wrong type."""
        return check_keywords(f"attack {self.name!r}", self.name, self.parameters, options)

    def passes(self, options: Mapping[str, Any] | None = None) -> tuple[float, float] | None:
        """Return the (forward, backward) passes of a surviving point under these options, where known."""
        if callable(self.cost):
            return self.cost({**self.defaults, **(options or {})})
        return self.cost


def keywords(function: Callable[..., Any], besides: Sequence[str] = ()) -> dict[str, inspect.Parameter]:
    """Return the keyword-only parameters of a function other than `besides`, by name: its options."""
    found = inspect.signature(function).parameters.values()
    return {p.name: p for p in found if p.kind is p.KEYWORD_ONLY and p.name not in besides}


def check_keywords(
    what: str, name: str, known: Mapping[str, inspect.Parameter], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return `options` in the types of their defaults. Raises UserError for an unknown name or a wrong type."""
    checked = {}
    for option, value in options.items():
        if option not in known:
            raise unknown(f"option of {what}:", option, known)
        checked[option] = _check_value(what, known[option], value)
    missing = [option for option, p in known.items() if p.default is p.empty and option not in checked]
    if missing:
        raise UserError(f"{what[0].upper()}{what[1:]} needs the option {missing[0]!r}: write {name}({missing[0]}=…).")
    return checked


def _check_value(what: str, parameter: inspect.Parameter, value: Any) -> Any:
    default, annotation = parameter.default, parameter.annotation
    place = f"Option {parameter.name!r} of {what}"
    if isinstance(annotation, str) and (choices := re.fullmatch(r"Literal\[(.*)\]", annotation)):
        allowed: tuple[Any, ...] = tuple(part.strip().strip("'\"") for part in choices[1].split(","))
    else:
        allowed = typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()
    if allowed and value not in allowed:
        raise unknown(f"value of {place[0].lower() + place[1:]}:", str(value), map(str, allowed))
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise UserError(f"{place} must be true or false, got {value!r}.")
    elif isinstance(default, int):
        if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
            raise UserError(f"{place} must be a whole number such as {default}, got {value!r}.")
        return int(value)
    elif isinstance(default, float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{place} must be a number such as {default}, got {value!r}.")
        return float(value)
    elif isinstance(default, str) and not (isinstance(value, str) or callable(value)):
        raise UserError(f"{place} must be a word such as {default!r}, got {value!r}.")
    return value


def attack(
    name: str,
    *,
    norms: Sequence[str],
    kind: Kind = "bounded",
    knowledge: Knowledge = "white-box",
    url: str = "",
    batching: Batching = "batch",
    cost: Any = None,
    description: str = "",
    quick: Mapping[str, Any] | None = None,
    warning: str = "",
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark a function as an attack: a file of such functions is a plugin (`--plugin my_attack.py`).

    The marked function stays a plain function. See `AttackSpec` for the fields.
    """

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        text = description or (inspect.getdoc(function) or "").split("\n")[0]
        spec = AttackSpec(
            name=name, function=function, norms=tuple(norms), kind=kind, knowledge=knowledge, url=url,
            batching=batching, cost=cost, description=text, quick=dict(quick or {}), warning=warning,
        )  # fmt: skip
        function.__robustdup_attack__ = spec  # type: ignore[attr-defined]
        return function

    return mark


@dataclass(frozen=True)
class Stage:
    """One step of an ensemble: an attack with options, on the fraction `take` of survivors nearest to being broken.

    `norms` limits it to those norms (all that the attack knows, if empty). A stage with `when="masked"` runs only where
    the stages before it saw signs that the model masks its gradients. Raises UserError for what cannot be.
    """

    attack: str
    options: Mapping[str, Any] = field(default_factory=dict)
    take: float = 1.0
    norms: tuple[str, ...] = ()
    when: When = "always"

    def __post_init__(self) -> None:
        if self.when not in typing.get_args(When):
            raise unknown("condition of a stage:", str(self.when), typing.get_args(When))
        if not 0 < self.take <= 1:
            raise UserError(f"Stage {self.attack!r}: take must be above 0 and at most 1, got {self.take}.")
        object.__setattr__(self, "norms", tuple(self.norms))


@dataclass(frozen=True)
class Ensemble:
    """A named list of stages, run in order on the survivors."""

    name: str
    stages: tuple[Stage, ...]
    description: str = ""
    url: str = ""


@dataclass(frozen=True)
class Source:
    """A loader of models or data behind a scheme: `scheme:rest` calls `load(rest, options)`."""

    scheme: str
    load: Callable[..., Any]
    description: str = ""
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Named:
    """Something plugged in under a name: a loss, a baseline."""

    name: str
    function: Callable[..., Any]
    description: str = ""
    url: str = ""


@dataclass(frozen=True)
class ObjectiveSpec:
    """What robustdup knows of a training objective.

    `function` is `objective(model, images, labels, *, attack, rng, **options) -> (loss (N,), metrics)`: see
    `robustdup.training`. `update` is the update rule that it needs ("" where any will do), `features` tells that it
    calls `model.features`, `attacks` that it calls the inner attack. `module(model, images, **options)` builds
    the weights of its own that an objective trains along; it gets them as the keyword `module`. `check(**options)`
    raises UserError for values that cannot be; it gets all options, and is called before anything is loaded.
    """

    name: str
    function: Callable[..., Any]
    update: str = ""
    features: bool = False
    attacks: bool = True
    module: Callable[..., Any] | None = None
    description: str = ""
    url: str = ""
    check: Callable[..., None] | None = None

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options in the types of their defaults. Raises UserError for an unknown name, type or value."""
        known = keywords(self.function, besides=("attack", "rng", "module"))
        checked = check_keywords(f"objective {self.name!r}", self.name, known, options)
        if self.check is not None:
            self.check(**{option: p.default for option, p in known.items()} | checked)
        return checked


@dataclass(frozen=True)
class Architecture:
    """A network to train: `build(*, channels, size, classes, mean, std, **options) -> nn.Module`.

    `size` is (height, width) of the images in pixels, `mean` and `std` (one value a channel) go into its first layer.
    """

    name: str
    build: Callable[..., Any]
    description: str = ""
    url: str = ""

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options in the types of their defaults. Raises UserError for an unknown name or a wrong type."""
        known = keywords(self.build, besides=("channels", "size", "classes", "mean", "std"))
        return check_keywords(f"architecture {self.name!r}", self.name, known, options)


@dataclass(frozen=True)
class PluginStatus:
    """A plugin that was found: where it came from, and why it failed if it did."""

    name: str
    origin: str
    version: str
    ok: bool
    reason: str = ""


class Registry:
    """Everything that plugins have registered, by name. A name is given once: a second one is refused."""

    def __init__(self) -> None:
        self.attacks: dict[str, AttackSpec] = {}
        self.ensembles: dict[str, Ensemble] = {}
        self.losses: dict[str, Named] = {}
        self.models: dict[str, Source] = {}
        self.data: dict[str, Source] = {}
        self.architectures: dict[str, Architecture] = {}
        self.objectives: dict[str, ObjectiveSpec] = {}
        self.baselines: dict[str, Named] = {}
        self.trainers: dict[str, Named] = {}
        self.plugins: list[PluginStatus] = []
        self._owner = "native"

    def add_attack(self, spec: AttackSpec | Callable[..., Any]) -> None:
        """Register a spec, or a function marked with `@robustdup.attack`. Raises UserError on a taken name."""
        if not isinstance(spec, AttackSpec):
            marked = getattr(spec, "__robustdup_attack__", None)
            if not isinstance(marked, AttackSpec):
                raise UserError(f"{spec!r} is not an attack: decorate it with @robustdup.attack(name, norms=[…]).")
            spec = marked
        prefix, colon, _ = spec.name.partition(":")
        spec = replace(spec, source=spec.source or (prefix if colon else self._owner))
        self._put("attack", self.attacks, spec.name, spec, also=self.ensembles)

    def add_ensemble(self, name: str, stages: Iterable[Stage], *, description: str = "", url: str = "") -> None:
        """Register a list of stages under a name that `--attacks` accepts."""
        self._put("ensemble", self.ensembles, name, Ensemble(name, tuple(stages), description, url), also=self.attacks)

    def add_loss(self, name: str, function: Callable[..., Any], *, description: str = "", url: str = "") -> None:
        """Register a loss `(logits (N, K), labels (N,)) -> (N,)` that gradient attacks maximise."""
        self._put("loss", self.losses, name, Named(name, function, description, url))

    def add_model_source(
        self, scheme: str, load: Callable[..., Any], *, description: str = "", examples: Sequence[str] = ()
    ) -> None:
        """Register a loader of models: `load(rest, options) -> nn.Module` for specs `scheme:rest`."""
        self._put("model source", self.models, scheme, Source(scheme, load, description, tuple(examples)))

    def add_data_source(
        self, scheme: str, load: Callable[..., Any], *, description: str = "", examples: Sequence[str] = ()
    ) -> None:
        """Register a loader of data: `load(rest, options)` for specs `scheme:rest`."""
        self._put("data source", self.data, scheme, Source(scheme, load, description, tuple(examples)))

    def add_architecture(self, name: str, build: Callable[..., Any], *, description: str = "", url: str = "") -> None:
        """Register a network to train: `build(*, channels, size, classes, mean, std, **options) -> nn.Module`."""
        self._put("architecture", self.architectures, name, Architecture(name, build, description, url))

    def add_objective(
        self, name: str, function: Callable[..., Any], *, update: str = "", features: bool = False, attacks: bool = True,
        module: Callable[..., Any] | None = None, description: str = "", url: str = "",
        check: Callable[..., None] | None = None,
    ) -> None:  # fmt: skip
        """Register a training objective `(model, images, labels, *, attack, rng, **options) -> (loss (N,), metrics)`."""
        text = description or (inspect.getdoc(function) or "").split("\n")[0]
        spec = ObjectiveSpec(name, function, update, features, attacks, module, text, url, check)
        self._put("objective", self.objectives, name, spec)

    def add_baseline(self, name: str, function: Callable[..., Any], *, description: str = "", url: str = "") -> None:
        """Register what a bench compares with: a toolkit at its published settings, as its user would call it.

        `baseline(model, images, labels, threat, *, batch_size, seed) -> adversarial images`, same shape and device. It gets
        all points, images (N, C, H, W) in [0, 1], and the frozen model in eval mode; `batch_size` None is the toolkit's
        own. It is called with no images first, untimed: import there what is needed, and return them.
        """
        self._put("baseline", self.baselines, name, Named(name, function, description, url))

    def add_trainer(self, name: str, function: Callable[..., Any], *, description: str = "", url: str = "") -> None:
        """Register what a bench of training compares with: adversarial training as a toolkit's user would write it.

        `trainer(model, images, labels, threat, *, steps, step_size, batch_size, lr, seed) -> None` trains `model` in place
        for one epoch on images (N, C, H, W) in [0, 1] with PGD. It is called with no images first, untimed.
        """
        self._put("trainer", self.trainers, name, Named(name, function, description, url))

    def _put(
        self, what: str, table: dict[str, Any], name: str, value: Any, also: Mapping[str, Any] | None = None
    ) -> None:
        if name in table or name in (also or {}):
            raise UserError(f"The {what} name {name!r} is already taken. Choose another, for instance 'mine:{name}'.")
        table[name] = value

    def get_attack(self, name: str) -> AttackSpec:
        """Return an attack that can run here. Raises UserError for an unknown name, Unavailable with the reason."""
        if name not in self.attacks:
            raise self._unknown_attack(name)
        spec = self.attacks[name]
        if not spec.available:
            raise Unavailable(f"Attack {name!r} cannot run here: {spec.reason}")
        return spec

    def stages(self, name: str, options: Mapping[str, Any] | None = None) -> tuple[Stage, ...]:
        """Return the stages behind the name of an attack or an ensemble. Options are for a single attack only."""
        if name in self.attacks:
            return (Stage(name, dict(options or {})),)
        if name not in self.ensembles:
            raise self._unknown_attack(name)
        if options:
            raise UserError(
                f"{name!r} is an ensemble and takes no options; list its attacks with 'attacks show {name}'."
            )
        return self.ensembles[name].stages

    def _unknown_attack(self, name: str) -> UserError:
        see = "See 'robustdup attacks list'."
        failed = [f"{plugin.name} ({plugin.reason})" for plugin in self.plugins if not plugin.ok]
        if failed:
            see += f" Plugins that did not load: {'; '.join(failed)}."
        return unknown("attack", name, [*self.attacks, *self.ensembles], see=see)

    def run_plugin(
        self,
        name: str,
        origin: str,
        version: str,
        load: Callable[[], Callable[[Registry], None]],
        *,
        source: str | None = None,
    ) -> None:
        """Let one plugin register; what it raises is kept as its status, and nothing of it stays half-registered.

        `source` is what its attacks with bare names are listed under; the plugin's name if not given.
        """
        tables = (
            "attacks",
            "ensembles",
            "losses",
            "models",
            "architectures",
            "data",
            "objectives",
            "baselines",
            "trainers",
        )
        before = {table: copy.copy(getattr(self, table)) for table in tables}
        self._owner = source or name
        try:
            load()(self)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may fail in any way; the rest must go on
            for table, content in before.items():
                setattr(self, table, content)
            reason = f"{type(error).__name__}: {error}" if not isinstance(error, UserError) else str(error)
            self.plugins.append(PluginStatus(name, origin, version, ok=False, reason=reason))
        else:
            self.plugins.append(PluginStatus(name, origin, version, ok=True))
        finally:
            self._owner = "native"


def load_plugins(files: Iterable[str | Path] = ()) -> Registry:
    """Return a registry with all installed plugins and the given files. One that fails is reported, never fatal."""
    registry = Registry()
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    own = {"native-attacks", "native-data", "native-models", "native-objectives"}
    for point in sorted(points, key=lambda p: (p.name not in own, p.name)):
        origin, version = (point.dist.name, point.dist.version) if point.dist else ("unknown", "")
        source = "native" if point.name in own else point.name
        registry.run_plugin(point.name, origin, version, point.load, source=source)
    for file in files:
        path = Path(file)
        registry.run_plugin(path.stem, str(path), "", lambda path=path: _load_file(path))  # type: ignore[misc]
    return registry


class FreshSource(importlib.machinery.SourceFileLoader):
    """Compile a user's file every time: cached bytecode is stale when a file of the same size changes within a second."""

    def get_code(self, fullname: str) -> types.CodeType:
        """Return the code of the file as it is now."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _load_file(path: Path) -> Callable[[Registry], None]:
    """Import a plugin file; what it registers is its `register(registry)` and every function marked as an attack."""
    if not path.is_file():
        raise UserError(f"there is no file {str(path)!r}")
    name = f"robustdup_plugin_{path.stem}"
    loader = FreshSource(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    if spec is None:
        raise UserError(f"{str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader.exec_module(module)
    marked = {id(value): value for value in vars(module).values() if hasattr(value, "__robustdup_attack__")}
    register = getattr(module, "register", None)
    if not marked and register is None:
        raise UserError(f"{path.name} has neither a function register(registry) nor one marked with @robustdup.attack")

    def run(registry: Registry) -> None:
        if register is not None:
            register(registry)
        for function in marked.values():
            taken = registry.attacks.get(function.__robustdup_attack__.name)
            if taken is None or taken.function is not function:  # its register() may have added it already
                registry.add_attack(function)

    return run
