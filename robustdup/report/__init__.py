"""What is made of records: tables in the terminal, Markdown, pages for a browser, figures for papers."""

from __future__ import annotations

from robustdup.plugins import FigureSpec, RecordKind, Registry

HERE = "robustdup.report"
FIGURES = f"{HERE}.evaluation_figures"


def register(registry: Registry) -> None:
    """Register robustdup's own kinds of records as a plugin registers its own; nothing of them is imported."""
    registry.add_record_kind(
        RecordKind(
            "robustdup.evaluation",
            load="robustdup.records:load_record",
            title=f"{HERE}.html.evaluation:title",
            page=f"{HERE}.html.evaluation:evaluation_page",
            sections=f"{HERE}.html.comparison:comparison_sections",
            unfinished=f"{HERE}.runs:unfinished_evaluation",
            samples=True,
            description="An evaluation of robust accuracy.",
            figures=_evaluation_figures(),
        )
    )
    registry.add_record_kind(
        RecordKind(
            "robustdup.training",
            load="robustdup.records:load_training_record",
            title=f"{HERE}.html.training:title",
            page=f"{HERE}.html.training:training_page",
            sections=f"{HERE}.html.training:training_sections",
            unfinished=f"{HERE}.runs:unfinished_training",
            description="A training run.",
            figures={
                "training": FigureSpec("validation accuracy over epochs", f"{HERE}.training_figures:plot_training"),
            },
        )
    )


def _evaluation_figures() -> dict[str, FigureSpec]:
    several = f"{FIGURES}:several"
    return {
        "curve": FigureSpec(
            "robust accuracy over eps, with 95% intervals", f"{FIGURES}:plot_curve", suits=f"{FIGURES}:has_curve"
        ),
        "accuracy": FigureSpec(
            "clean and robust accuracy of each run, with 95% intervals", f"{FIGURES}:plot_accuracy", suits=several
        ),
        "cascade": FigureSpec("which attack broke how many samples", f"{FIGURES}:plot_cascade", one_run=True),
        "passes": FigureSpec(
            "robust accuracy against the passes that a sample took", f"{HERE}.passes_figure:plot_passes"
        ),
        "classes": FigureSpec("clean and robust accuracy per class", f"{FIGURES}:plot_classes", one_run=True),
        "leaderboard": FigureSpec(
            "the run among RobustBench's published models", f"{FIGURES}:plot_leaderboard", one_run=True
        ),
        "examples": FigureSpec(
            "clean images, adversarial examples and their differences", f"{FIGURES}:plot_examples", one_run=True
        ),
    }
