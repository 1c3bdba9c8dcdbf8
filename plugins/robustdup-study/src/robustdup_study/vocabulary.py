"""Recipes and records from before control conditions were called so: their factor `arm` becomes `condition`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ARM, CONDITION = "arm", "condition"
OWN_PROTOCOL = "train"  # in that of a publication, an arm may be something else


def has_arms(recipe: Mapping[str, Any]) -> bool:
    """Say whether a recipe of robustdup's own training calls control conditions arms."""
    factors = recipe.get("factors")
    return recipe.get("protocol", OWN_PROTOCOL) == OWN_PROTOCOL and isinstance(factors, Mapping) and ARM in factors


def with_conditions(content: Any, key: str = "") -> Any:
    """Return a recipe, a record or a part of one with `condition` for `arm`: as a key, as a contrast, in terms of an ANOVA.

    The arms of published figures stay.
    """
    if key == "published":
        return content
    if isinstance(content, Mapping):
        return {CONDITION if name == ARM else name: with_conditions(value, name) for name, value in content.items()}
    if isinstance(content, list):
        return [with_conditions(value, key) for value in content]
    if key in ("contrast", "contrasts") and content == ARM:
        return CONDITION
    if key == "term" and isinstance(content, str):
        return " × ".join(CONDITION if factor == ARM else factor for factor in content.split(" × "))
    return content


def renamed(content: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return what was read with the present names of its fields."""
    return {names.get(key, key): value for key, value in content.items()}
