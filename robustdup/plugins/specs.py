"""What robustdup knows of everything that can be plugged in.

Wherever a function is wanted, its name as "module:function" will do: it is imported when it is first used, so that
registering a hundred attacks imports none of them.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from robustdup.errors import UserError, unknown
from robustdup.plugins.options import Deferred, check_keywords, deferred, keywords

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robustdup.threat import ThreatModel

Function = Any  # a function, or its name as "module:function"
Kind = Literal["bounded", "minimum-norm", "unbounded"]
Knowledge = Literal["white-box", "score-based", "decision-based", "transfer"]
Batching = Literal["pool", "batch", "whole"]
KINDS, KNOWLEDGE, BATCHING = (typing.get_args(words) for words in (Kind, Knowledge, Batching))
NORMS = ("Linf", "L2", "L1", "L0", "L0-pixels")
When = Literal["always", "masked", "blind"]


def _defer(spec: object, *fields: str) -> None:
    """Make of each function that a frozen spec has by name what imports it on first use."""
    for field_name in fields:
        object.__setattr__(spec, field_name, deferred(getattr(spec, field_name)))


class AttackFunction(Protocol):
    """The contract of an attack: a plain function, whose keyword-only parameters besides `rng` are its options."""

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        /,
        *args: Any,  # none; it takes both for type checkers to allow a function any keywords
        **options: Any,
    ) -> Tensor:
        """Return adversarial images.

        Args:
            model: images (N, C, H, W) in [0, 1] -> logits (N, K); normalisation is inside.
            images: clean images (N, C, H, W) in [0, 1].
            labels: true classes (N,), int64.
            threat: the ball to stay in, inside [0, 1].
            options: `rng`, a `robustdup.SampleRng` with the streams of these samples and the only source of randomness;
                and what a user may set.

        Returns:
            Images (N, C, H, W), one for each sample, broken or not.

        Raises:
            UserError: an option or an input that cannot be.
        """
        ...


@dataclass(frozen=True)
class AttackSpec:
    """What robustdup knows of an attack.

    `function` keeps the contract of `AttackFunction`; it is None where the attack cannot run here, and `reason` says why.
    `cost` is the (forward, backward) passes that a surviving sample costs
    at the default options, or a function of the options that returns them; None where unknown. `quick` holds options
    under which the conformance test runs the attack quickly. `warning` is shown whenever the attack is used;
    `undemonstrated` says what was seen where the attack ran but did not beat noise of equal norm. `aliases` are other names
    that a user may give it; records have `name`.
    """

    name: str
    function: AttackFunction | None
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
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for noun, value, allowed in (
            ("kind of attack", self.kind, KINDS),
            ("knowledge", self.knowledge, KNOWLEDGE),
            ("batching", self.batching, BATCHING),
        ):
            if value not in allowed:
                raise unknown(noun, str(value), allowed)
        if isinstance(self.norms, str) or not set(self.norms) <= set(NORMS):
            raise UserError(
                f"Attack {self.name!r}: norms must be a list of {', '.join(map(repr, NORMS))}; got {self.norms!r}.",
                code="bad-spec",
            )
        object.__setattr__(self, "norms", tuple(self.norms))
        if self.available and self.function is None:
            raise UserError(
                f"Attack {self.name!r} has no function. Give one, or available=False with a reason.", code="bad-spec"
            )
        if not self.available and not self.reason:
            raise UserError(f"Attack {self.name!r} is unavailable without a reason.", code="bad-spec")
        _defer(self, "function", "cost")
        if isinstance(self.function, Deferred):
            return  # looked at when it is used
        if self.function is not None and "rng" not in inspect.signature(self.function).parameters:
            raise UserError(
                f"Attack {self.name!r} does not take 'rng'. Its signature must be "
                "(model, images, labels, threat, *, rng, **options).",
                code="bad-spec",
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
        """Return the (forward, backward) passes of a surviving sample under these options, where known."""
        if callable(self.cost):
            return self.cost({**self.defaults, **(options or {})})
        return self.cost


def register_attack(
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


def spec_of(attack: Any) -> AttackSpec:
    """Return a spec, or that of a function marked with `@robustdup.register_attack`. Raises UserError for anything else."""
    spec = attack if isinstance(attack, AttackSpec) else getattr(attack, "__robustdup_attack__", None)
    if not isinstance(spec, AttackSpec):
        raise UserError(
            f"{attack!r} is neither an attack's name nor a function marked with @robustdup.register_attack(name, norms=[…]).",
            code="bad-attack",
        )
    return spec


@dataclass(frozen=True)
class Stage:
    """One step of an ensemble: an attack with options, on the fraction `take` of survivors nearest to being broken.

    `norms` limits it to those norms (all that the attack knows, if empty). A stage with `when="masked"` runs only where
    the stages before it saw signs that the model masks its gradients, one with `when="blind"` only where, besides, none of
    them was seen to get through. Raises UserError for what cannot be.
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
            raise UserError(
                f"Stage {self.attack!r}: take must be above 0 and at most 1, got {self.take}.", code="bad-spec"
            )
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
class CommandSpec:
    """A command of the command line: `words` such as ("data", "detect"), `help` in one sentence.

    `command` is a function that typer can call, or a `typer.Typer` for a group of commands, as an object or by name.
    """

    words: tuple[str, ...]
    command: Any
    help: str


@dataclass(frozen=True)
class FigureSpec:
    """A kind of figure that `robustdup plot` makes of runs: see `robustdup.report.plots`.

    `chart(runs, width)` returns a `robustdup.report.charts.Chart`, rows of charts, a specification of Vega-Lite (as
    `altair.Chart.to_dict()` gives it), or an SVG; `width` is "one" or "two" columns. `suits(runs)` says whether this is
    what one wants to see of runs when no kind is named; the first of a kind of record that suits is taken.
    """

    about: str
    chart: Function
    one_run: bool = False
    suits: Function | None = None

    def __post_init__(self) -> None:
        _defer(self, "chart", "suits")


@dataclass(frozen=True)
class RecordKind:
    """A kind of record: how it is read, and what is made of it.

    `schema` is the `schema_name` of its record.json. The other fields are functions, given as such or by name:

    - `load(path) -> record` reads and checks the file, older versions too;
    - `title(record) -> str` says what to call a run;
    - `page(run, name) -> robustdup.report.html.page.Page` makes its page of a `robustdup.report.runs.Run`;
    - `sections(runs, links) -> list of Section` compares several runs of this kind on the first page of a report;
    - `markdown(record) -> str` is its report in words and tables, for terminals, pages and documents alike;
    - `figures` are its kinds of `robustdup plot` by name, the usual one first;
    - `unfinished(folder) -> UnfinishedRun or None` recognises a folder of this kind without a record yet;
    - `rank(path, table, *, clean, as_json)` prints where `leaderboard rank` puts it in a `Leaderboard`;
    - `compare(runs, *, as_json)` prints what `compare` says of runs that are all of this kind;
    - `verify(folder, changes, *, trust, model, images, labels) -> Signed` rechecks its bundle: the record and `files`.

    `samples` says that a table `samples.parquet` lies beside the record: it is read as `run.samples`.
    `templates` names the package whose folder `templates/` holds the page's own Jinja templates.
    """

    schema: str
    load: Function
    title: Function
    page: Function | None = None
    sections: Function | None = None
    markdown: Function | None = None
    figures: Mapping[str, FigureSpec] = field(default_factory=dict)
    unfinished: Function | None = None
    rank: Function | None = None
    compare: Function | None = None
    verify: Function | None = None
    files: tuple[str, ...] = ()
    samples: bool = False
    templates: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        _defer(self, "load", "title", "page", "sections", "markdown", "unfinished", "rank", "compare", "verify")


@dataclass(frozen=True)
class ThreatSpec:
    """What `eval --threat NAME` shows a model in place of attacks; NAME may have options: 'corruptions(kinds=[fog])'.

    `evaluate(config, *, model=None, data=None, registry=None, folder=None, resume=False, command=None, progress)` runs it, on a
    model and data in memory where they are given, and returns something with a `record`; `progress(name, number, total)` is told
    of each part. `load(folder)` reads the record of a finished run, `show(record, folder, form=)` prints it in a
    `robustdup.report.terminal.Form`.
    """

    name: str
    evaluate: Function
    load: Function
    show: Function

    def __post_init__(self) -> None:
        _defer(self, "evaluate", "load", "show")


@dataclass(frozen=True)
class FinderSpec:
    """A search for duplicates in memory: `find(a, b=None) -> pairs` with tensors `a`, `b` (P,) of indices.

    `a` and `b` are images uint8 (N, C, H, W); without `b` pairs are looked for within `a`, each once.
    """

    name: str
    find: Callable[..., Any]
    description: str = ""


@dataclass(frozen=True)
class PluginStatus:
    """A plugin that was found: where it came from, and why it failed if it did."""

    name: str
    origin: str
    version: str
    ok: bool
    reason: str = ""
