"""Everything that plugins have registered, by name.

A plugin is a function `register(registry)` named by an entry point of the group `robustdup.plugins`, or a file given
with `--plugin`. robustdup's own attacks, models and data come through the same door, and so do its larger parts.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from robustdup.errors import (
    LONGEST_REASON,
    Unavailable,
    UserError,
    error_text,
    how_to_install,
    missing_plugin,
    plain,
    unknown,
)  # fmt: skip
from robustdup.plugins.exits import no_exits
from robustdup.plugins.options import deferred
from robustdup.plugins.specs import (
    Architecture,
    AttackSpec,
    CommandSpec,
    Ensemble,
    FinderSpec,
    Named,
    ObjectiveSpec,
    PluginStatus,
    RecordKind,
    Source,
    Stage,
    ThreatSpec,
)


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
        self.commands: dict[tuple[str, ...], CommandSpec] = {}
        self.record_kinds: dict[str, RecordKind] = {}
        self.threats: dict[str, ThreatSpec] = {}
        self.duplicate_finders: dict[str, FinderSpec] = {}
        self.plugins: list[PluginStatus] = []
        self._owner = "native"

    def add_attack(self, spec: AttackSpec | Callable[..., Any]) -> None:
        """Register a spec, or a function marked with `@robustdup.register_attack`. Raises UserError on a taken name."""
        if not isinstance(spec, AttackSpec):
            marked = getattr(spec, "__robustdup_attack__", None)
            if not isinstance(marked, AttackSpec):
                raise UserError(
                    f"{spec!r} is not an attack: decorate it with @robustdup.register_attack(name, norms=[…]).",
                    code="bad-spec",
                )
            spec = marked
        prefix, colon, _ = spec.name.partition(":")
        is_foreign = spec.source == "native" != self._owner  # nobody else's attack is robustdup's own
        source = (not is_foreign and spec.source) or (prefix if colon else self._owner)
        self._put("attack", self.attacks, spec.name, replace(spec, source=source), also=self.ensembles)

    def add_ensemble(self, name: str, stages: Iterable[Stage], *, description: str = "", url: str = "") -> None:
        """Register a list of stages under a name that `--attacks` accepts."""
        self._put("ensemble", self.ensembles, name, Ensemble(name, tuple(stages), description, url), also=self.attacks)

    def add_loss(self, name: str, function: Callable[..., Any] | str, *, description: str = "", url: str = "") -> None:
        """Register a loss `(logits (N, K), labels (N,)) -> (N,)` that gradient attacks maximise."""
        self._put("loss", self.losses, name, Named(name, deferred(function), description, url))

    def add_model_source(
        self, scheme: str, load: Callable[..., Any] | str, *, description: str = "", examples: Sequence[str] = ()
    ) -> None:
        """Register a loader of models: `load(rest, options) -> nn.Module` for specs `scheme:rest`."""
        self._put("model source", self.models, scheme, Source(scheme, deferred(load), description, tuple(examples)))

    def add_data_source(
        self, scheme: str, load: Callable[..., Any] | str, *, description: str = "", examples: Sequence[str] = ()
    ) -> None:
        """Register a loader of data: `load(rest, options)` for specs `scheme:rest`."""
        self._put("data source", self.data, scheme, Source(scheme, deferred(load), description, tuple(examples)))

    def add_architecture(
        self, name: str, build: Callable[..., Any] | str, *, description: str = "", url: str = ""
    ) -> None:
        """Register a network to train: `build(*, channels, size, classes, mean, std, **options) -> nn.Module`."""
        self._put("architecture", self.architectures, name, Architecture(name, deferred(build), description, url))

    def add_objective(
        self, name: str, function: Callable[..., Any] | str, *, update: str = "", features: bool = False, attacks: bool = True,
        module: Callable[..., Any] | str | None = None, description: str = "", url: str = "",
        check: Callable[..., None] | str | None = None,
    ) -> None:  # fmt: skip
        """Register a training objective `(model, images, labels, *, attack, rng, **options) -> (loss (N,), metrics)`."""
        text = description or ("" if isinstance(function, str) else (inspect.getdoc(function) or "").split("\n")[0])
        spec = ObjectiveSpec(
            name, deferred(function), update, features, attacks, deferred(module), text, url, deferred(check)
        )
        self._put("objective", self.objectives, name, spec)

    def add_command(self, words: str, command: Any, *, help: str) -> None:
        """Register a command: `words` is "mine" or "data mine"; `command` a function or a `typer.Typer`, or its name."""
        names = tuple(words.split())
        self._put("command", self.commands, names, CommandSpec(names, deferred(command), help))

    def add_record_kind(self, kind: RecordKind) -> None:
        """Register a kind of record, under its schema."""
        self._put("kind of record", self.record_kinds, kind.schema, kind)

    def add_threat(self, spec: ThreatSpec) -> None:
        """Register what `eval --threat NAME` shows a model in place of attacks."""
        self._put("threat", self.threats, spec.name, spec)

    def add_duplicate_finder(self, name: str, find: Callable[..., Any] | str, *, description: str = "") -> None:
        """Register a search for duplicates: see `FinderSpec`. The first that is registered is the usual one."""
        self._put("duplicate finder", self.duplicate_finders, name, FinderSpec(name, deferred(find), description))

    def _put(
        self, noun: str, table: dict[Any, Any], name: Any, value: Any, also: Mapping[str, Any] | None = None
    ) -> None:
        if name in table or name in (also or {}):
            text = name if isinstance(name, str) else " ".join(name)
            raise UserError(
                f"The {noun} name {text!r} is already taken. Choose another, for instance 'mine:{text}'.",
                code="taken-name",
            )
        table[name] = value

    def get_attack(self, name: str) -> AttackSpec:
        """Return an attack that can run here. Raises UserError for an unknown name, Unavailable with the reason."""
        name = self._called(name)
        if name not in self.attacks:
            raise self._unknown_attack(name)
        spec = self.attacks[name]
        if not spec.available:
            raise Unavailable(f"Attack {name!r} cannot run here: {spec.reason}")
        return spec

    def get_threat(self, text: str | None) -> ThreatSpec | None:
        """Return what 'corruptions(kinds=[fog])' names; None for norms, radii and unions of them.

        Raises Unavailable where a plugin of ours has it that is not installed.
        """
        name = (text or "").partition("(")[0].strip().lower()
        if name not in self.threats and (error := missing_plugin(name)) is not None:
            raise error
        return self.threats.get(name)

    def get_duplicate_finder(self, name: str = "") -> FinderSpec:
        """Return a search for duplicates, the first registered if not named. Raises Unavailable where no plugin has one."""
        if not self.duplicate_finders:
            raise Unavailable(
                f"No plugin here searches for near-duplicates. Install one: {how_to_install('robustdup[detect]')}"
            )
        if name and name not in self.duplicate_finders:
            raise unknown("duplicate finder", name, self.duplicate_finders)
        return self.duplicate_finders[name] if name else next(iter(self.duplicate_finders.values()))

    def stages(self, name: str, options: Mapping[str, Any] | None = None) -> tuple[Stage, ...]:
        """Return the stages behind the name of an attack or an ensemble. Options are for a single attack only."""
        name = self._called(name)
        if name in self.attacks:
            return (Stage(name, dict(options or {})),)
        if name not in self.ensembles:
            raise self._unknown_attack(name)
        if options:
            raise UserError(
                f"{name!r} is an ensemble and takes no options; list its attacks with 'attacks show {name}'.",
                code="bad-option",
            )
        return self.ensembles[name].stages

    def _called(self, name: str) -> str:
        """Return the registered name of an attack that is given by one of its aliases; any other name as it is."""
        if name in self.attacks or name in self.ensembles:
            return name
        return next((spec.name for spec in self.attacks.values() if name in spec.aliases), name)

    def _unknown_attack(self, name: str) -> UserError:
        prefix, colon, _ = name.partition(":")
        loaded = {spec.name.partition(":")[0] for spec in self.attacks.values() if ":" in spec.name}
        failed_to_load = any(plugin.name == prefix and not plugin.ok for plugin in self.plugins)
        if colon and prefix not in loaded and not failed_to_load and (error := missing_plugin(prefix)) is not None:
            return error
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
        tables = [name for name, table in vars(self).items() if isinstance(table, dict)]
        before = {table: copy.copy(getattr(self, table)) for table in tables}
        self._owner = source or name
        try:
            with no_exits():
                load()(self)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may fail in any way; the rest must go on  # noqa: BLE001
            for table, content in before.items():
                setattr(self, table, content)
            reason = plain(error, LONGEST_REASON) if isinstance(error, UserError) else error_text(error)
            self.plugins.append(PluginStatus(name, origin, version, ok=False, reason=reason))
        else:
            self.plugins.append(PluginStatus(name, origin, version, ok=True))
        finally:
            self._owner = "native"
