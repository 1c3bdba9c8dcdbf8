"""What the table says of an attack. Imports neither torch nor ART."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustdup.plugins import Batching, Kind, Knowledge
    from robustdup_art.estimator import Layout


@dataclass(frozen=True)
class Entry:
    """A row of the table: an attack of ART and how to drive it.

    `options` are constructor arguments that a user may set, with ART's defaults; `changed` are those whose default
    differs here, with the reason; `extra` are options of this plugin that ART does not have. `fixed` are constructor
    arguments that the adapter sets, and `unused` ones that it leaves alone, with the reason. `eps` and `order` name the
    arguments that take the threat model's radius and norm. `steps` gives, as multiples of eps, what an option that is
    None becomes. `labels` is what ART's `y` is: the true labels, other classes as targets, or nothing.
    `single` calls ART once an image, each with its own seed. `shims` replaces names in ART's module during a call.
    `build(call)` and `generate(attack, call)` stand in for the plain calls; `check(shape, threat)` refuses an input.
    """

    name: str
    norms: tuple[str, ...]
    url: str
    description: str
    kind: Kind = "bounded"
    knowledge: Knowledge = "white-box"
    batching: Batching = "batch"
    warning: str = ""
    undemonstrated: str = ""
    cost: Any = None
    quick: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    changed: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)
    eps: str = ""
    order: str = ""
    steps: Mapping[str, float] = field(default_factory=dict)
    batch_size: int | None = None
    labels: str = "true"
    single: bool = False
    layout: Layout = "NCHW"
    probabilities: bool = False
    shims: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    build: Callable[..., Any] | None = None
    generate: Callable[..., Any] | None = None
    check: Callable[..., None] | None = None

    @property
    def defaults(self) -> dict[str, Any]:
        """All options that a user may set, with the defaults that hold here."""
        return {**self.options, **{name: value for name, (value, _) in self.changed.items()}, **self.extra}
