"""What the adapter knows of one torchattacks class: the fields of a row of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustdup.plugins import Kind, Knowledge

Options = Mapping[str, Any]
Cost = Callable[[Options], tuple[float, float]]
Step = tuple[str, Callable[[float, Options], float]]  # how the default reads, and its value from (eps, options)

BOTH = ("Linf", "L2")
CLASSES = 10  # costs that grow with the number of classes are given for ten


@dataclass(frozen=True)
class Row:
    """One class of torchattacks 3.5.1.

    `options` are the constructor's options and defaults without model, eps, norm, seed and device, which come from the
    threat model, the generator and the images; `steps` are those whose default follows eps; `own` are options that this
    plugin adds. `eps` is the name of the eps argument, None where there is none. `least_classes` returns the number of
    classes that the code cannot do without. `shift` is a repair of `Guard`.
    """

    name: str
    norms: tuple[str, ...]
    url: str
    description: str
    options: Options = field(default_factory=dict)
    steps: Mapping[str, Step] = field(default_factory=dict)
    own: Options = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    eps: str | None = "eps"
    takes_norm: bool = False
    takes_seed: bool = False
    takes_classes: bool = False
    least_classes: Callable[[Options], int] = lambda options: 2
    kind: Kind = "bounded"
    knowledge: Knowledge = "white-box"
    cost: Cost | None = None
    quick: Options = field(default_factory=dict)
    warning: str = ""
    undemonstrated: str = ""
    checks: tuple[Callable[[str, Any, Options], None], ...] = ()
    shift: bool = False
    row_by_row: Callable[[Options], bool] = lambda options: False
    least: Mapping[str, int] = field(default_factory=dict)  # whole-number options may not be below 1, except for these
    build: str = "plain"  # or the name of a function in builders.py


def share(divisor: float) -> Step:
    """Return the default eps / divisor."""
    return f"eps / {divisor:g}", lambda eps, options: eps / divisor


def each(*names: str, extra: float = 0) -> Cost:
    """Return the cost of a loop: the product of these options, forward and backward, plus `extra` forward passes."""

    def cost(options: Options) -> tuple[float, float]:
        passes = 1.0
        for name in names:
            passes *= options[name]
        return passes + extra, passes

    return cost


def other_classes(options: Options) -> int:
    """Return how many wrong classes a targeted attack goes through."""
    return int(options["n_classes"] or CLASSES) - 1
