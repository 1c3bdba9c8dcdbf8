"""`robustdup leaderboard submit` and `robustdup leaderboard refresh`."""

from __future__ import annotations

import typer
from rich.text import Text

from robustdup.cli.flags import JSON
from robustdup.records import find_record, load_record, load_samples, to_json
from robustdup.records.origin import file_made_here
from robustdup.report.terminal import console
from robustdup_publish.claim import Paper, submit
from robustdup_publish.refresh import BASE, refresh


def submit_command(  # noqa: PLR0913
    run: str = typer.Argument(help="Run folder, or its record.json."),
    to: str | None = typer.Option(None, "--to", help="Folder for the files; RUN/robustbench if not given."),
    name: str | None = typer.Option(None, "--name", help="Name of the entry: NameYearFirstWordOfTitle."),
    title: str | None = typer.Option(None, "--paper-title"),
    url: str | None = typer.Option(None, "--paper-url"),
    authors: str | None = typer.Option(None, "--authors", help="Names, separated by commas."),
    venue: str | None = typer.Option(None, "--venue", help="Such as 'ICML 2026' or 'arXiv, Nov 2026'."),
    architecture: str | None = typer.Option(None, "--architecture", help="Such as WideResNet-28-10."),
    extra_data: bool | None = typer.Option(None, "--extra-data/--no-extra-data", help="Trained on additional data."),
    reported: str | None = typer.Option(None, "--reported", help="Robust accuracy that the paper reports, in percent."),
    checkpoint: str | None = typer.Option(None, "--checkpoint-url", help="Address of checkpoint and code."),
    forward_passes: int = typer.Option(1, "--forward-passes", help="Forward passes of one prediction.", min=1),
    draft: bool = typer.Option(False, "--draft", help="Write even from fewer samples than RobustBench evaluates."),
    as_json: bool = JSON,
) -> None:
    """Write what RobustBench asks of a new model: a model_info file and the text of the claim."""
    paper = Paper(
        title=title, url=url, authors=authors, venue=venue, architecture=architecture, extra_data=extra_data,
        reported=reported, checkpoint=checkpoint, forward_passes=forward_passes, name=name,
    )  # fmt: skip
    path = find_record(run)
    folder = path.parent
    result = submit(load_record(run), load_samples(folder), to or folder / "robustbench", paper, draft=draft)
    if as_json:
        print(to_json(result))
        return
    out = console()
    if not file_made_here(path):
        out.print(
            Text("This record was not made here: what is written rests on what it states. See 'robustdup verify'.")
        )
    for file in result.files:
        out.print(Text(f"Wrote {file}"))
    if result.missing:
        out.print(Text(f"Still to fill in (marked FILL IN), or give: {', '.join(result.missing)}"))
    if result.draft:
        out.print(Text("A draft: RobustBench evaluates the whole test set."))


def refresh_command(
    url: str = typer.Option(BASE, "--url", help="Base address of the repository's archive, or of a .zip itself."),
    to: str | None = typer.Option(None, "--to", help="File for the table; the cache if not given."),
    as_json: bool = JSON,
) -> None:
    """Fetch RobustBench's present table and say what changed."""
    result = refresh(url, to)
    if as_json:
        print(to_json(result))
        return
    out = console()
    counts = f"{len(result.added)} added, {len(result.changed)} changed, {len(result.removed)} removed"
    commit = f" at commit {result.commit[:12]}" if result.commit else ""
    out.print(Text(f"{result.n} entries{commit}: {counts}. Wrote {result.path}"))
    for change in ("added", "changed", "removed", "skipped"):
        for line in getattr(result, change):
            out.print(Text(f"  {change}: {line}"))
