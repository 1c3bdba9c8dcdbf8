"""Near-duplicate search for robustdup: in memory (`near_duplicates`) or in datasets of any size (`run_detection`)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from robustdup import Registry
from robustdup.plugins import RecordKind

if TYPE_CHECKING:
    from robustdup_detect.pairlist import Pairs as Pairs
    from robustdup_detect.pairs import near_duplicates as near_duplicates
    from robustdup_detect.run import run_detection as run_detection

_HOMES = {"near_duplicates": "pairs", "Pairs": "pairlist", "run_detection": "run"}

__all__ = ["Pairs", "near_duplicates", "register", "run_detection"]


def register(registry: Registry) -> None:
    """Register the command `data detect`, its record and page, and the search in memory; nothing of it is imported."""
    here = "robustdup_detect"
    registry.add_command(
        "data detect",
        f"{here}.command:detect_command",
        help="Find exact and near duplicates within a split, or between two.",
    )
    registry.add_record_kind(
        RecordKind(
            "robustdup.duplicates",
            load=f"{here}.record:load_duplicates",
            title=f"{here}.record:title",
            page=f"{here}.page:duplicates_page",
            unfinished=f"{here}.page:unfinished",
            templates=here,
            description="A search for duplicates.",
        )
    )
    registry.add_duplicate_finder(
        "near", f"{here}.pairs:near_duplicates", description="Small changes, crops, mirrored and recompressed copies."
    )


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that importing this package does nothing heavy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
