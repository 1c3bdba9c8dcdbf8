"""What a study was measured on, in words: no verdict reaches further."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robustdup_study.cell_record import CellResult
from robustdup_study.recipe import StudyConfig, label, settings
from robustdup_study.records import StudyRun


def scope_of(config: StudyConfig, runs: Sequence[StudyRun], cells: Mapping[str, CellResult]) -> str:
    """Return network, data, images, steps and seeds of the finished cells: "small-resnet(width=12) of 73 thousand …"."""
    done = [run for run in runs if run.status == "complete"]
    parameters = {int(result.training["parameters"]) for result in cells.values() if result.training}
    images = _ends(done, "unique_samples") or _ends_of(_levels(config, "n"))
    parts = [
        _network(config, parameters),
        f"{_span(images)} distinct training images" if images else "",
        f"of {_alternatives(_levels(config, 'data'))}" if _levels(config, "data") else "",
        f"{_span(_ends(done, 'steps'))} optimizer steps",
        _epochs(config),
        f"{len({run.seed for run in done})} seed{'s' * (len({run.seed for run in done}) != 1)}",
    ]
    named = [part for part in parts if part and not part.startswith(" ")]
    text = ", ".join(named).replace(" training images, of ", " training images of ")
    return text if done else ""


def _network(config: StudyConfig, parameters: set[int]) -> str:
    models = _levels(config, "model")
    name = _alternatives(models) if models else ("the network of the paper" if config.protocol != "train" else "")
    if not parameters:
        return name
    size = " or ".join(_thousands(number) for number in sorted(parameters))
    return f"{name} of {size} parameters" if name else f"networks of {size} parameters"


def _thousands(number: int) -> str:
    if number < 10_000:
        return f"{number:,}"
    return f"{number / 1e3:.0f} thousand" if number < 1_000_000 else f"{number / 1e6:.1f} million"


def _epochs(config: StudyConfig) -> str:
    given = [budget["epochs"] for budget in config.budgets.values() if "epochs" in budget] or _levels(config, "epochs")
    return f"{_alternatives(given)} epochs" if given else ""


def _levels(config: StudyConfig, name: str) -> list[Any]:
    """Return the values that a setting has in a recipe: its factor's levels, those inside mappings, or the base's."""
    if name in config.factors:
        return [label(level) for level in config.factors[name]]
    inside = [
        settings(level)[name] for levels in config.factors.values() for level in levels if name in settings(level)
    ]
    return inside or ([config.base[name]] if name in config.base else [])


def _alternatives(values: Sequence[Any]) -> str:
    return " or ".join(dict.fromkeys(f"{value:g}" if isinstance(value, float) else str(value) for value in values))


def _ends(runs: Sequence[StudyRun], name: str) -> tuple[float, float] | None:
    return _ends_of([value for run in runs if (value := run.metrics.get(name)) is not None])


def _ends_of(values: Sequence[float]) -> tuple[float, float] | None:
    return (min(values), max(values)) if values else None


def _span(ends: tuple[float, float] | None) -> str:
    if ends is None:
        return ""
    low, high = (f"{end:,.0f}" for end in ends)
    return low if low == high else f"{low} to {high}"
