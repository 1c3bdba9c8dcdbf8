"""What one call of a torchattacks class is about: its options with all defaults, and the arguments that they become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from robustdup import UserError
from robustdup_torchattacks.row import Row

if TYPE_CHECKING:
    from torch import Tensor

    from robustdup import ThreatModel
    from robustdup_torchattacks.guard import Guard


@dataclass(frozen=True)
class Call:
    """What one call is about: the toolkit, the guarded model, the options with all defaults, the threat and the seed."""

    row: Row
    toolkit: ModuleType
    guard: Guard
    options: Mapping[str, Any]
    threat: ThreatModel
    seed: int
    classes: int

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments besides the model."""
        row = self.row
        given = {name: value for name, value in self.options.items() if name not in row.own}
        if row.eps:
            given[row.eps] = self.threat.radius
        if row.takes_norm:
            given["norm"] = self.threat.norm
        if row.takes_seed:
            given["seed"] = self.seed
        if row.takes_classes:
            given["n_classes"] = given["n_classes"] or self.classes
        return given

    def plain(self) -> Any:
        """Return the attack object of torchattacks."""
        return getattr(self.toolkit, self.row.name)(self.guard, **self.arguments())


def class_count(row: Row, guard: Guard, options: Mapping[str, Any], images: Tensor) -> int:
    """Return the model's number of classes where the class needs it (else 0). Raises UserError where they are too few."""
    least = row.least_classes(options)
    if not row.takes_classes and least <= 2:
        return 0
    classes = guard.count_classes(images)
    if classes < least:
        raise UserError(
            f"torchattacks:{row.name} compares the {least} largest logits and needs a model with at least {least} "
            f"classes; this one has {classes}. Use torchattacks:PGD or torchattacks:Square.",
            code="too-few-classes",
        )
    wanted = options.get("n_classes")
    if wanted is not None and not 2 <= wanted <= classes:
        raise UserError(
            f"Option 'n_classes' of attack 'torchattacks:{row.name}' must be from 2 to the model's {classes} classes, "
            f"got {wanted}. Leave it out to attack towards all wrong classes.",
            code="bad-option",
        )
    return classes


def fill_in(row: Row, given: Mapping[str, Any], threat: ThreatModel) -> dict[str, Any]:
    """Return all options: the row's defaults, those that follow eps, and what was given. Raises UserError."""
    options = {**row.options, **row.own, **given}
    if row.takes_classes:
        options.setdefault("n_classes", None)
    defaults = {**row.options, **row.own}
    for name, value in options.items():
        least = row.least.get(name, 1)
        whole = isinstance(defaults.get(name), int) and not isinstance(value, bool)
        if whole and value < least:
            raise UserError(
                f"Option {name!r} of attack 'torchattacks:{row.name}' must be at least {least}, got {value}.",
                code="bad-option",
            )
        if isinstance(value, list):
            options[name] = tuple(value)
    for name, (_, default) in row.steps.items():
        value = options.get(name)
        options[name] = default(threat.radius, options) if value is None else positive(row, name, value)
    return options


def positive(row: Row, name: str, value: Any) -> float:
    """Read a step size: a number or a fraction such as 2/255. Raises UserError unless it is above 0."""
    try:
        above, _, below = value.partition("/") if isinstance(value, str) else (value, "", "")
        number = float(above) / float(below or 1)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        number = 0.0
    if isinstance(value, bool) or not 0 < number < float("inf"):
        raise UserError(
            f"Option {name!r} of attack 'torchattacks:{row.name}' must be a number above 0 in pixel units of [0, 1], "
            f"such as 2/255, got {value!r}. Left out it is {row.steps[name][0]}.",
            code="bad-option",
        )
    return number
