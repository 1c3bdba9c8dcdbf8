"""One adapter for every row: a row of the table becomes an attack that keeps robustdup's contract."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from robustdup import AttackSpec, RunError, Unavailable, UserError
from robustdup_torchattacks.row import Row

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robustdup import SampleRng, ThreatModel
    from robustdup_torchattacks.guard import Guard

VERSION = "3.5.1"
ROUNDING = 1e-6  # how far a pixel may leave [0, 1] by rounding; more is a violation and is left for the referee to see


def missing() -> str:
    """Return why torchattacks cannot be used here, without importing it; empty where it can."""
    if importlib.util.find_spec("torchattacks") is None:
        return f"torchattacks is not installed: pip install --no-deps torchattacks=={VERSION}"
    try:
        found = importlib.metadata.version("torchattacks")
    except importlib.metadata.PackageNotFoundError:
        return f"a torchattacks without version is on the path, not the package: pip install torchattacks=={VERSION}"
    return "" if found == VERSION else f"torchattacks {found} is installed, and this table is of {VERSION}"


def load() -> ModuleType:
    """Import torchattacks, on first use."""
    try:
        return importlib.import_module("torchattacks")
    except Exception as error:
        raise Unavailable(f"torchattacks cannot be imported: {type(error).__name__}: {error}") from error


def make_spec(row: Row, reason: str = "") -> AttackSpec:
    """Build the spec of a row; with a `reason` it is listed as unavailable."""

    def function(
        model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng, **options: Any
    ) -> Tensor:
        return run(row, model, images, labels, threat, rng, spec.check_options(options))

    function.__name__ = function.__qualname__ = row.name
    function.__doc__ = row.description
    function.__signature__ = signature(row, function)  # type: ignore[attr-defined]
    left_out = "".join(f" Left out, {name} = {text}." for name, (text, _) in row.steps.items())
    spec = AttackSpec(
        name=f"torchattacks:{row.name}", function=function, norms=row.norms, kind=row.kind, knowledge=row.knowledge,
        url=row.url, batching="batch", cost=row.cost, description=row.description + left_out, quick=row.quick,
        warning=row.warning, undemonstrated=row.undemonstrated, available=not reason, reason=reason,
    )  # fmt: skip
    return spec


def signature(row: Row, function: Callable[..., Any]) -> inspect.Signature:
    """Return the function's signature with the row's real options and defaults in place of **options."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    defaults = {**row.options, **dict.fromkeys(row.steps), **row.own}
    if row.takes_classes:
        defaults["n_classes"] = None
    for name, default in defaults.items():
        annotation: Any = type(default) if default is not None else "float | None"
        if name in row.choices:
            annotation = Literal[row.choices[name]]  # type: ignore[valid-type]
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    return inspect.Signature(parameters)


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


def run(
    row: Row,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    rng: SampleRng,
    given: Mapping[str, Any],
) -> Tensor:
    """Run one attack on a batch: images (N, C, H, W) in [0, 1] -> the same shape, dtype and device, detached.

    Raises UserError for input that the class cannot take, RunError for what torchattacks raises.
    """
    import torch

    from robustdup import isolated
    from robustdup_torchattacks import builders
    from robustdup_torchattacks.guard import Guard

    options = fill_in(row, given, threat)
    if row.kind == "bounded" and threat.norm not in row.norms:
        raise UserError(f"torchattacks:{row.name} works in {' or '.join(row.norms)}; the threat model is {threat}.")
    for check in row.checks:
        check(row.name, images, options)
    toolkit, seed = load(), rng.call_seed()
    if not len(images):
        return images.clone()
    with isolated(model, seed=seed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torchattacks")
        for parameter in model.parameters():
            parameter.requires_grad_(False)  # no weight gradients: neither filled nor computed
        guard = Guard(model, images, shift=row.shift)
        classes = class_count(row, guard, options, images)
        start = images.detach().to(torch.float32).contiguous()
        call = Call(row, toolkit, guard, options, threat, seed, classes)
        batches = [slice(i, i + 1) for i in range(len(start))] if row.row_by_row(options) else [slice(None)]
        try:
            adv = torch.cat([getattr(builders, row.build)(call, start[part], labels[part]) for part in batches])
        except (UserError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if "out of memory" in str(error) or "allocate memory" in str(error):
                raise
            raise RunError(f"torchattacks:{row.name} failed: {type(error).__name__}: {error}") from error
    boxed = adv.detach().clamp(0, 1)
    adv = torch.where((adv - boxed).abs() <= ROUNDING, boxed, adv.detach())
    return adv.to(images.dtype)


def class_count(row: Row, guard: Guard, options: Mapping[str, Any], images: Tensor) -> int:
    """Return the model's number of classes where the class needs it (else 0). Raises UserError where they are too few."""
    least = row.least_classes(options)
    if not row.takes_classes and least <= 2:
        return 0
    classes = guard.count_classes(images)
    if classes < least:
        raise UserError(
            f"torchattacks:{row.name} compares the {least} largest logits and needs a model with at least {least} "
            f"classes; this one has {classes}. Use torchattacks:PGD or torchattacks:Square."
        )
    wanted = options.get("n_classes")
    if wanted is not None and not 2 <= wanted <= classes:
        raise UserError(
            f"Option 'n_classes' of attack 'torchattacks:{row.name}' must be from 2 to the model's {classes} classes, "
            f"got {wanted}. Leave it out to attack towards all wrong classes."
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
                f"Option {name!r} of attack 'torchattacks:{row.name}' must be at least {least}, got {value}."
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
        number = float(Fraction(value.replace(" ", ""))) if isinstance(value, str) else float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        number = 0.0
    if isinstance(value, bool) or not 0 < number < float("inf"):
        raise UserError(
            f"Option {name!r} of attack 'torchattacks:{row.name}' must be a number above 0 in pixel units of [0, 1], "
            f"such as 2/255, got {value!r}. Left out it is {row.steps[name][0]}."
        )
    return number
