"""`robustdup export`: a trained network for others, loadable without robustdup."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from robustdup.errors import UserError, unknown, user_path
from robustdup.report.format import escape


def export_command(
    run: str = typer.Argument(..., help="Run folder of 'robustdup train': FOLDER, FOLDER@best or FOLDER@last."),
    to: str = typer.Option(
        ...,
        "--to",
        help="safetensors (weights and the network's code), pt2 (torch.export), onnx, or hub (a folder for the Hub).",
    ),
    out: str | None = typer.Option(None, "--out", help="New folder for the files; RUN-export-KIND if not given."),
    repo: str | None = typer.Option(None, "--repo", help="With --to hub: upload the folder to OWNER/NAME."),
    json: bool = typer.Option(False, "--json", help="Print what was written as JSON, and nothing else."),
) -> int:
    """Write the network of a training run, with its normalisation and a card, so that it loads without robustdup."""
    from robustdup.plugins import load_plugins
    from robustdup.records import write_atomic
    from robustdup_publish.card import exported_card
    from robustdup_publish.export import KINDS, export_run  # torch is imported from here on

    if to not in KINDS:
        raise unknown("kind of export", to, KINDS)
    if repo is not None and to != "hub":
        raise UserError("--repo is for --to hub.", code="options-conflict")
    run = run.removeprefix("run:").rstrip("/")
    place, name = (run[:-5], run[-4:]) if run.endswith(("@best", "@last")) else (run, "best")
    folder = Path(out) if out is not None else Path(f"{place}-export-{to}")
    record, evaluation = _records(user_path(place), name)
    exported = export_run(run, to, folder, load_plugins())  # type: ignore[arg-type]
    card = exported_card(
        record, evaluation, exported.kind, classes=exported.description.class_names, difference=exported.difference
    )
    write_atomic(folder / "README.md", card.encode())
    if repo is not None:
        _upload(folder, repo)
    files = [*exported.files, "README.md"]
    if json:
        print(
            json_module.dumps({"folder": str(folder), "files": files, "difference": exported.difference, "repo": repo})
        )
        return 0
    console = Console()
    console.print(f"{escape(str(folder))}: {', '.join(files)}", soft_wrap=True)
    if to == "hub" and repo is None:
        console.print(f"Upload it with: hf upload OWNER/NAME {escape(str(folder))}", soft_wrap=True)
    return 0


def _records(folder: Path, name: str) -> tuple[Any, Any]:
    """Return the record of a training run and that of the evaluation of its checkpoint, if there is one."""
    from robustdup.records import RECORD_FILE, load_record, load_training_record

    record = load_training_record(folder)
    names = [result.evaluation for result in record.checkpoints if result.name == name and result.evaluation]
    place = folder / names[0] if names else None
    return record, load_record(place) if place is not None and (place / RECORD_FILE).is_file() else None


def _upload(folder: Path, repo: str) -> None:
    """Put a folder into a repository of the Hub. Raises UserError where that fails."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repo, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"The folder {str(folder)!r} is written, but cannot be uploaded to {repo}: {reason}", code="cannot-upload"
        ) from error
