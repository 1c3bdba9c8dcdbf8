"""`robustdup report RUN...`: pages for a browser from records alone; `--card`: the section of a model card."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from robustdup.errors import RobustdupError, RunError, UserError
from robustdup.records import (
    MANIFEST,
    RECORD_FILE,
    EvaluationRecord,
    find_record,
    load_record,
    load_samples,
    schema_of,
    write_atomic,
)
from robustdup.records.origin import file_made_here
from robustdup.records.training import TRAINING_SCHEMA


def report(
    runs: list[str] = typer.Argument(metavar="RUN...", help="Run folders, or record files."),  # noqa: B008
    to: str | None = typer.Option(None, "--to", help="Folder for the pages; RUN/report or ./report if not given."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Write into a folder that holds something else."),
    open_page: bool = typer.Option(False, "--open", help="Open the page in a browser."),
    gallery: int = typer.Option(240, "--gallery", min=0, help="How many samples to show as pictures."),
    each: bool | None = typer.Option(
        None, "--each/--no-each", help="A page for every run beside the comparison; up to 12 runs if not given."
    ),
    clean_images: bool = typer.Option(
        False, "--clean-images", help="Read clean images again from their data, for runs that kept none."
    ),
    card: bool = typer.Option(
        False, "--card", help="Print a section for a model card instead; --to: a file, with .eval_results/ beside it."
    ),
) -> None:
    """Make pages that need no network: what a run found, or several compared."""
    if card:
        _card(runs, to, overwrite=overwrite)
        return
    from robustdup.report.html import write_report

    folder = Path(to) if to else _default_folder(runs)
    pictures = _clean_images(runs) if clean_images else {}
    index = write_report(runs, folder, overwrite=overwrite, gallery=gallery, each=each, clean_images=pictures)
    print(index)
    if open_page and not webbrowser.open(index.resolve().as_uri()):
        raise RunError(f"No browser could be opened. The page is {str(index)!r}.")


def _default_folder(runs: list[str]) -> Path:
    if len(runs) > 1:
        return Path("report")
    place = Path(runs[0])
    folder = place if place.is_dir() else place.parent
    return Path("report") if (folder / MANIFEST).is_file() else folder / "report"


def _card(runs: list[str], to: str | None, *, overwrite: bool) -> None:
    from robustdup.report.card import eval_results, model_card

    if len(runs) != 1:
        raise UserError(f"A model card is about one run; {len(runs)} were given.")
    folder = find_record(runs[0]).parent
    tested = next(
        (folder / f"evaluation-{name}" for name in ("best", "last") if (folder / f"evaluation-{name}").is_dir()), None
    )
    if schema_of(runs[0]) == TRAINING_SCHEMA and tested is not None and (tested / RECORD_FILE).is_file():
        folder = tested  # a training is judged by the evaluation of its best checkpoint
        place, record = tested / RECORD_FILE, load_record(tested)
    else:
        place, record = find_record(runs[0]), load_record(runs[0])
    try:
        samples = load_samples(folder)
    except UserError:
        samples = None  # the rank then says that the images could not be checked
    text = model_card(record, samples, made_here=file_made_here(place))
    if to is None:
        print(text, end="")
        return
    path = Path(to)
    if path.exists() and not overwrite:
        raise UserError(f"{to!r} is there already. Choose another --to, or replace it with --overwrite.")
    write_atomic(path, text.encode())
    print(path)
    results = eval_results(record)
    if results is not None:
        beside = path.parent / ".eval_results" / "robustdup.yaml"
        beside.parent.mkdir(exist_ok=True)
        write_atomic(beside, results.encode())
        print(beside)


def _clean_images(runs: list[str]) -> dict[int, Any]:
    """Read the images that evaluations were about from their data, checked by their fingerprint; imports torch."""
    from robustdup.records import SCHEMA
    from robustdup.report.gallery import CLEAN

    pictures = {}
    for place, run in enumerate(runs):
        if schema_of(run) != SCHEMA:
            continue
        record = load_record(run)
        if (find_record(run).parent / CLEAN).is_file():
            continue  # it kept them
        try:
            pictures[place] = _images_of(record)
        except RobustdupError as error:
            Console(stderr=True).print(Text(f"{run}: no clean images: {error}"), style="yellow")
    return pictures


def _images_of(record: EvaluationRecord) -> Any:
    from robustdup.config import EvalConfig, validate
    from robustdup.jobs import load_data
    from robustdup.jobs.trust import code_of_data
    from robustdup.plugins import load_plugins

    if record.data.selection == "given":
        raise UserError("the run was given its images by a program.")
    config = validate(EvalConfig, record.config)
    if (code := code_of_data(config.data)) is not None:
        raise UserError(f"its data would be read by {code}: a record alone must not run code.", code="untrusted-code")
    if record.data.selection in ("first", "stratified"):
        config = config.model_copy(update={"n": record.n})
    data = load_data(config, load_plugins())  # not the record's own plugins: reading a record must not run code
    if data.fingerprint != record.data.fingerprint:
        raise UserError("the data has other images now than the record's.")
    return data.images.numpy()
