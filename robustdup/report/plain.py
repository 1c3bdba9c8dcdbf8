"""Fields of a record that is read as plain JSON: what is missing or of another kind is nothing, not an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Content = Mapping[str, Any]


def list_of(record: Content, key: str) -> list[Any]:
    """Return a list; an empty one where there is none."""
    found = record.get(key)
    return found if isinstance(found, list) else []


def count_of(record: Content, key: str) -> int | None:
    """Return a whole number."""
    found = record.get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def number_of(value: Any) -> float | None:
    """Return a value as a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def inside(record: Content, key: str) -> Content:
    """Return a nested object; an empty one where there is none."""
    found = record.get(key)
    return found if isinstance(found, Mapping) else {}
