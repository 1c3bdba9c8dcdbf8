"""What this plugin adds to robustdup: the command `study`, and the record of a study with its page and figures."""

from __future__ import annotations

from robustdup import Registry
from robustdup.plugins import FigureSpec, RecordKind

HERE = "robustdup_study"


def register(registry: Registry) -> None:
    """Register studies; nothing of them is imported."""
    registry.add_command("study", f"{HERE}.command:app", help="What duplication does, with error bars.")
    registry.add_record_kind(
        RecordKind(
            "robustdup.study",
            load=f"{HERE}.records:load_study_record",
            title=f"{HERE}.records:title",
            page=f"{HERE}.page:study_page",
            markdown=f"{HERE}.report:markdown",
            unfinished=f"{HERE}.page:unfinished",
            templates=HERE,
            description="A study: many cells of training and evaluation.",
            figures={
                "dose": FigureSpec(
                    "a study's means over doses, with 95% intervals",
                    f"{HERE}.figures:plot_doses",
                    one_run=True,
                ),
                "effects": FigureSpec(
                    "a study's effects of copies, with 95% intervals and margins",
                    f"{HERE}.figures:plot_effects",
                    one_run=True,
                ),
            },
        )
    )
