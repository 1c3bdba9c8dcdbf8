"""Duplicates that are already there: found in memory (`near_duplicates`) or in datasets of any size (`run_detection`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustdup_detect.pairs import Pairs as Pairs
    from robustdup_detect.pairs import near_duplicates as near_duplicates
    from robustdup_detect.run import run_detection as run_detection

_PLACES = {"near_duplicates": "pairs", "Pairs": "pairs", "run_detection": "run"}

__all__ = ["Pairs", "near_duplicates", "run_detection"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that importing this package does nothing heavy."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
