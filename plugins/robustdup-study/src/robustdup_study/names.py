"""What a study's metrics, factors and rows of the grid are called, in its page, its figures and its links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robustdup.report.format import missing, number, percent, signed
from robustdup_study.metrics import is_share
from robustdup_study.records import StudyRecord
from robustdup_study.report import varying

Place = tuple[tuple[str, str], ...]


def words(metric: str) -> str:
    """Return a metric or factor as a person reads it."""
    return metric.replace("_", " ")


def dose_name(record: StudyRecord) -> str:
    """Return the name of the factor that is the dose."""
    return str(record.recipe.get("analysis", {}).get("dose", "dose"))


def metrics_of(record: StudyRecord) -> list[str]:
    """Return the metrics of the analysis that were measured; all measured ones where the recipe names none."""
    measured = list(dict.fromkeys(mean.metric for mean in record.means))
    named = [name for name in record.recipe.get("analysis", {}).get("metrics", []) if name in measured]
    return named or measured


def place_of(factors: Mapping[str, Any], names: Sequence[str]) -> Place:
    """Return what tells a combination of factors from others."""
    return tuple((name, str(factors[name])) for name in names if name in factors)


def grid_names(record: StudyRecord) -> list[str]:
    """Return the factors that tell the rows of the grid from each other."""
    levels: dict[str, set[str]] = {}
    for row in record.runs:
        for name, value in row.factors.items():
            levels.setdefault(name, set()).add(str(value))
    return [name for name, values in levels.items() if len(values) > 1]


def grid_links(record: StudyRecord) -> dict[tuple[Place, float], str]:
    """Return a link to each row of the grid, by the factors besides the dose and the dose."""
    dose, names = dose_name(record), varying(record)
    rows: dict[Place, str] = {}
    links: dict[tuple[Place, float], str] = {}
    for row in record.runs:
        link = rows.setdefault(place_of(row.factors, grid_names(record)), f"#place-{len(rows)}")
        if is_number(row.factors.get(dose)):
            links.setdefault((place_of(row.factors, names), float(row.factors[dose])), link)
    return links


def place_text(place: Place) -> str:
    """Return a combination of factors in words."""
    return (
        ", ".join(value if not value.replace(".", "").isdigit() else f"{words(name)} {value}" for name, value in place)
        or "all"
    )


def value_text(metric: str, value: float | None) -> str:
    """Return a value of a metric as it is written."""
    return percent(value) if is_share(metric) else number(value)


def difference_text(metric: str, value: float | None) -> str:
    """Return a difference of a metric as it is written, with its sign."""
    if is_share(metric) or value is None or missing(value):
        return signed(value)
    return (f"{value:+,.0f}" if abs(value) >= 1000 else f"{value:+.3g}").replace("-", "−")


def is_number(value: Any) -> bool:
    """Say whether a level of a factor is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
