"""Write what RobustBench asks of a new model: a model_info file with the numbers, and the text of the claim.

See "Adding a new model" at https://github.com/RobustBench/robustbench and its template for new models.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from robustdup.errors import UserError
from robustdup.leaderboard.rank import RankResult, position
from robustdup.leaderboard.table import Leaderboard
from robustdup.records import Accuracy, EvaluationRecord, write_atomic

CLAIM = Path(__file__).parent / "claim.md.j2"
TEST_SET = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}  # samples that RobustBench evaluates


class Paper(BaseModel):
    """What only the author knows; what is missing is marked in the files."""

    model_config = ConfigDict(extra="forbid")

    title: str | None = None
    url: str | None = None
    authors: str | None = None
    venue: str | None = None
    architecture: str | None = None
    extra_data: bool | None = None
    reported: str | None = None
    checkpoint: str | None = None
    forward_passes: int = 1
    name: str | None = None


class Submission(BaseModel):
    """The files that were written, and the fields that the author must still fill."""

    model_config = ConfigDict(extra="forbid")

    files: list[str]
    missing: list[str]
    draft: bool


def submit(
    record: EvaluationRecord,
    samples: pa.Table | None,
    to: str | Path,
    paper: Paper | None = None,
    *,
    draft: bool = False,
    table: Leaderboard | None = None,
) -> Submission:
    """Write `model_info/<dataset>/<threat>/<name>.json` and `claim.md` into the folder `to`.

    Raises UserError for a record that cannot be compared with the leaderboard (see `position`) and, unless `draft`,
    for one of fewer samples than RobustBench evaluates.
    """
    paper = paper or Paper()
    result = position(record, samples, table)
    if not result.comparable or result.dataset is None:
        reasons = "; ".join(result.reasons)
        raise UserError(f"Run {record.run_id} cannot be submitted: {reasons}.", code="not-comparable")
    full = TEST_SET[result.dataset]
    if record.n < full and not draft:
        raise UserError(
            f"Run {record.run_id} has {record.n} samples; RobustBench evaluates {full} of {result.dataset}. "
            "Evaluate them all, or write a draft with --draft.",
            code="too-few-samples",
        )
    info, missing = model_info(record, result, paper)
    name = paper.name or _name(paper)
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or name.startswith("."):
        raise UserError(
            f"--name {name!r} must be letters, digits, '_', '-' and '.': for instance Rice2020Overfitting.",
            code="bad-option",
        )
    folder = Path(to)
    json_file = folder / "model_info" / result.dataset / result.threat_model / f"{name}.json"
    claim_file = folder / "claim.md"
    write_atomic(json_file, (json.dumps(info, indent=2, ensure_ascii=False) + "\n").encode())
    write_atomic(claim_file, claim(record, result, paper, name, full).encode())
    if paper.checkpoint is None:
        missing.append("--checkpoint-url")
    if paper.name is None and name == "NameYearFirstWord":
        missing.append("--name")
    return Submission(files=[str(json_file), str(claim_file)], missing=missing, draft=record.n < full)


def model_info(record: EvaluationRecord, result: RankResult, paper: Paper) -> tuple[dict[str, Any], list[str]]:
    """Return the content of the model_info file, and the options that would fill the marked fields."""
    missing: list[str] = []

    def need(value: Any, field: str, option: str) -> Any:
        if value is not None:
            return value
        missing.append(option)
        return _mark(field)

    robust = _percent(record.robust_accuracy.value)
    info = {
        "link": need(paper.url, "address of the paper", "--paper-url"),
        "name": need(paper.title, "title of the paper", "--paper-title"),
        "authors": need(paper.authors, "authors", "--authors"),
        "additional_data": need(paper.extra_data, "true or false: trained on additional data", "--extra-data"),
        "number_forward_passes": paper.forward_passes,
        "dataset": result.dataset,
        "venue": need(paper.venue, "venue, or arXiv with month and year", "--venue"),
        "architecture": paper.architecture or record.model.architecture,
        "eps": result.leaderboard_eps,
        "clean_acc": _percent(record.clean_accuracy.value),
        "reported": paper.reported or robust,
        "autoattack_acc": robust,
        "unreliable": False,
    }
    return info, missing


def claim(record: EvaluationRecord, result: RankResult, paper: Paper, name: str, full: int) -> str:
    """Return the claim as Markdown, with the fields of RobustBench's template for new models."""
    from jinja2 import Environment, StrictUndefined

    templates = Environment(trim_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True)
    templates.filters |= {"percent": _percent, "interval": _interval}
    template = templates.from_string(CLAIM.read_text(encoding="utf-8"))
    return template.render(record=record, result=result, paper=paper, name=name, full=full, mark=_mark)


def _mark(field: str) -> str:
    return f"FILL IN: {field}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def _interval(accuracy: Accuracy) -> str:
    return f"{_percent(accuracy.low)}% to {_percent(accuracy.high)}%"


def _name(paper: Paper) -> str:
    """RobustBench's convention: surname of the first author, year, first word of the title."""
    year = re.search(r"(19|20)\d\d", paper.venue or "")
    if not (paper.authors and paper.title and year):
        return "NameYearFirstWord"
    surname = re.split(r",| and ", paper.authors)[0].split()[-1]
    word = re.sub(r"[^A-Za-z0-9]", "", paper.title.split()[0])
    return re.sub(r"[^A-Za-z0-9-]", "", surname) + year[0] + word
