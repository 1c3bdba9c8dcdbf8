"""`robustdup plot RUN... --to figure.pdf`: a figure for a paper, from records alone."""

from __future__ import annotations

from pathlib import Path

import typer


def plot(
    runs: list[str] = typer.Argument(metavar="RUN...", help="Run folders, or record files."),  # noqa: B008
    to: str = typer.Option(..., "--to", help="The file: figure.pdf, figure.svg or figure.png."),
    kind: str | None = typer.Option(
        None,
        "--kind",
        help="curve, accuracy, cascade, classes, leaderboard, examples, training, dose or effects; what fits if not given.",
    ),
    width: str = typer.Option("one", "--width", help="one or two columns: 3.25 or 6.75 inches."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace a file that is there."),
) -> None:
    """Draw a figure for a paper: sized for a column, colour-blind safe, the same bytes from the same record."""
    from robustdup.report.plots import plot as draw
    from robustdup.report.runs import read_run

    print(draw([read_run(place) for place in runs], Path(to), kind=kind, width=width, overwrite=overwrite))  # type: ignore[arg-type]
