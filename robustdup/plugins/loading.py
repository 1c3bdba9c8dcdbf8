"""Finding plugins: installed ones by their entry points, and files that a user names."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from pathlib import Path

from robustdup.errors import UserError
from robustdup.inflation import check_length
from robustdup.plugins.registry import Registry
from robustdup.plugins.specs import RecordKind

ENTRY_POINTS = "robustdup.plugins"
NATIVE = "native-"  # what robustdup's own entry points begin with


def load_plugins(files: Iterable[str | Path] = (), *, installed: Collection[str] | None = None) -> Registry:
    """Return a registry with installed plugins and the given files. One that fails is reported, never fatal.

    Args:
        files: Python files that register attacks, models and more.
        installed: names of the installed plugins to load besides robustdup's own; None: all.
    """
    registry = Registry()
    for point, origin, version in _installed(_places()):
        native = point.name.startswith(NATIVE)
        if native or installed is None or point.name in installed:
            registry.run_plugin(point.name, origin, version, point.load, source="native" if native else point.name)
    for file in files:
        path = Path(file)
        registry.run_plugin(path.stem, str(path), "", lambda path=path: _load_file(path))  # type: ignore[misc]
    return registry


@cache
def record_kinds() -> Mapping[str, RecordKind]:
    """Return the kinds of records that robustdup and installed plugins know, by schema."""
    return load_plugins().record_kinds


def _places() -> tuple[tuple[str, float], ...]:
    """Return where Python looks for distributions, with when each place last changed."""
    folders = [Path(place).absolute() for place in sys.path]
    return tuple((str(folder), folder.stat().st_mtime if folder.exists() else 0.0) for folder in folders)


@cache
def _installed(places: tuple[tuple[str, float], ...]) -> tuple[tuple[importlib.metadata.EntryPoint, str, str], ...]:
    """Return the plugins at these places, robustdup's own first, each with the name and version of what it came with."""
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    named: dict[int, tuple[str, str]] = {}  # several points of one distribution: its metadata is read once
    for point in points:
        if id(point.dist) not in named:
            named[id(point.dist)] = _distribution(point)
    ordered = sorted(points, key=lambda p: (not p.name.startswith(NATIVE), p.name))
    return tuple((p, *named[id(p.dist)]) for p in ordered)


def _distribution(point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    """Return the name and version of what an entry point came with."""
    if point.dist is None:
        return "unknown", ""
    metadata = point.dist.metadata
    return metadata["Name"], metadata["Version"]


def check_loaded(registry: Registry, files: Iterable[str | Path]) -> None:
    """Raise UserError where one of the files that the user named did not load: what it registers would be missed later."""
    named = {str(Path(file)) for file in files}
    for plugin in registry.plugins:
        if not plugin.ok and plugin.origin in named:
            raise UserError(
                f"The plugin {plugin.origin!r} did not load: {plugin.reason.rstrip('.')}.", code="bad-plugin"
            )


class FreshSource(importlib.machinery.SourceFileLoader):
    """Compile a user's file every time: cached bytecode is stale when a file of the same size changes within a second."""

    def get_code(self, fullname: str) -> types.CodeType:
        """Return the code of the file as it is now. Raises UserError for a file of gigabytes."""
        path = self.get_filename(fullname)
        check_length(Path(path))
        return self.source_to_code(self.get_data(path), path)


def import_file(name: str, file: Path) -> types.ModuleType:
    """Import a user's file as the module `name`. Raises what the file raises; then there is no such module.

    Who looks through the modules, as test tools do, is not to read what could not be imported.
    """
    loader = FreshSource(name, str(file))
    spec = importlib.util.spec_from_file_location(name, file, loader=loader)
    assert spec is not None  # a loader is given
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up here
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _load_file(path: Path) -> Callable[[Registry], None]:
    """Import a plugin file; what it registers is its `register(registry)` and every function marked as an attack."""
    if not path.is_file():
        raise UserError(f"there is no file {str(path)!r}", code="missing-file")
    module = import_file(f"robustdup_plugin_{path.stem}", path)
    marked = {id(value): value for value in vars(module).values() if hasattr(value, "__robustdup_attack__")}
    register = getattr(module, "register", None)
    if not marked and register is None:
        raise UserError(
            f"{path.name} has neither a function register(registry) nor one marked with @robustdup.register_attack",
            code="bad-plugin",
        )

    def run(registry: Registry) -> None:
        if register is not None:
            register(registry)
        for function in marked.values():
            taken = registry.attacks.get(function.__robustdup_attack__.name)
            if taken is None or taken.function is not function:  # its register() may have added it already
                registry.add_attack(function)

    return run
