"""What this plugin adds to robustdup: the command `data detect`, its record and page, and a search in memory."""

from __future__ import annotations

from robustdup import Registry
from robustdup.plugins import RecordKind

HERE = "robustdup_detect"


def register(registry: Registry) -> None:
    """Register near-duplicate search; nothing of it is imported."""
    registry.add_command(
        "data detect",
        f"{HERE}.command:detect_command",
        help="Find exact and near duplicates within a split, or between two.",
    )
    registry.add_record_kind(
        RecordKind(
            "robustdup.duplicates",
            load=f"{HERE}.page:load_content",
            title=f"{HERE}.page:title",
            page=f"{HERE}.page:duplicates_page",
            unfinished=f"{HERE}.page:unfinished",
            description="A search for duplicates.",
        )
    )
    registry.add_duplicate_finder(
        "near", f"{HERE}.pairs:near_duplicates", description="Small changes, crops, mirrored and recompressed copies."
    )
