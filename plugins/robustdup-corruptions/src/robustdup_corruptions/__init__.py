"""Common corruptions for robustdup: `eval --threat corruptions`, its record, page, rank, comparison and evidence."""

from __future__ import annotations

from robustdup import Registry
from robustdup.plugins import RecordKind, ThreatSpec


def register(registry: Registry) -> None:
    """Register the threat `corruptions` and the kind of its records; nothing of it is imported."""
    here = "robustdup_corruptions"
    registry.add_threat(
        ThreatSpec(
            "corruptions",
            evaluate=f"{here}.run:run_corruptions",
            load=f"{here}.run:finished_corruptions",
            show=f"{here}.tables:show_corruptions",
        )
    )
    registry.add_record_kind(
        RecordKind(
            "robustdup.corruptions",
            load=f"{here}.record:load_corruption_record",
            title=f"{here}.tables:title",
            page=f"{here}.page:corruption_page",
            sections=f"{here}.page:corruption_sections",
            markdown=f"{here}.tables:markdown",
            rank=f"{here}.command:rank",
            compare=f"{here}.command:compare",
            verify=f"{here}.evidence:verify_corruptions",
            files=("corrupted.parquet",),
            templates=here,
            description="An evaluation on common corruptions.",
        )
    )
