"""A section for a model card: metadata with results that the Hugging Face Hub reads, and the same in words.

The metadata has the Hub's form for results (https://huggingface.co/docs/hub/model-cards#evaluation-results); a dataset is
named by its id on the Hub where the record's data spec can be one.
"""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from robustdup.errors import RobustdupError
from robustdup.leaderboard import position
from robustdup.records import Accuracy, EvaluationRecord, bound_text, doubt_text, doubts
from robustdup.report.format import attack_label, percent, printable
from robustdup.report.tables import alone_text, ball_label

ABSOLUTE = re.compile(r"(?:(?<=^)|(?<=[:=,@]))/(?!/)[^:=@,]*/([^:=@,/]+)")
TAGS = ["adversarial-robustness", "robustdup"]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def model_card(record: EvaluationRecord, samples: pa.Table | None = None, *, made_here: bool | None = None) -> str:
    """Return the card: YAML metadata between lines of dashes, then Markdown.

    `samples` are for the leaderboard's rank, and `made_here` says whether the record was read from a file that was written
    under this account: if not, the card says that its rank rests on what the record states.
    """
    record = printable(record)
    metadata = {"pipeline_tag": "image-classification", "tags": TAGS, "model-index": [_index(record)]}
    front = yaml.dump(metadata, Dumper=_OneLine, sort_keys=False, allow_unicode=True, width=100_000)
    return f"---\n{front}---\n\n{section(record, samples, made_here=made_here)}"


def eval_results(record: EvaluationRecord) -> str | None:
    """Return what the Hub reads from `.eval_results/*.yaml` of a model's repository; None where there is nothing for it.

    It shows results about datasets of the Hub that are registered as benchmarks
    (https://huggingface.co/docs/hub/eval-results). Values are in percent. A robust accuracy with undecided samples, or
    one that is not to be believed, is not among them: it is no result yet.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    data = record.data
    if not HUB_ID.fullmatch(data.spec) or "/" not in data.spec or Path(data.spec).exists():
        return None
    subset = f"{data.split} split, {record.n} of {data.n_total} images"
    threat = record.threat.short
    results = [("clean_accuracy", record.clean_accuracy, subset)]
    if record.status == "complete" and not (record.n_undecided or record.n_not_attacked or doubts(record)):
        attacks = ", ".join(attack_label(attack) for attack in record.attacks)
        results.append(
            ("robust_accuracy", record.robust_accuracy, f"{threat}; {attacks}; {subset}; seed {record.seed}")
        )
    entries = [
        EvalResultEntry(
            dataset_id=data.spec,
            task_id=task,
            value=round(100 * accuracy.value, 2),
            dataset_revision=data.revision,
            date=record.created[:10] or None,
            notes=f"95% interval {100 * accuracy.low:.2f} to {100 * accuracy.high:.2f}; {notes}",
        )
        for task, accuracy, notes in results
        if math.isfinite(accuracy.value)
    ]
    if not entries:
        return None
    return yaml.dump(eval_result_entries_to_yaml(entries), Dumper=_OneLine, sort_keys=False, allow_unicode=True)


class _OneLine(yaml.SafeDumper):
    """Writes text with line breaks in quotes on one line, so that no line of a name can end the metadata."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if len(text.splitlines()) > 1 else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_OneLine.add_representer(str, _text)


def _index(record: EvaluationRecord) -> dict[str, Any]:
    data = record.data
    name = _dataset_id(data.spec)
    dataset: dict[str, Any] = {"name": name, "type": name, "split": data.split}
    dataset |= {key: value for key, value in (("config", data.config), ("revision", data.revision)) if value}
    asked = str(record.config.get("attacks", "")) or ", ".join(attack.name for attack in record.attacks)
    bound = {"reliable": False, "upper_bound": True} if doubts(record) else {}
    metrics = [
        _metric("Clean accuracy", record.clean_accuracy),
        _metric(
            "Robust accuracy (upper bound, gradients masked)" if bound else "Robust accuracy", record.robust_accuracy,
            {**bound, "norm": record.threat.norm, "eps": record.threat.eps_text, "attacks": asked, "seed": record.seed},
        ),
    ]  # fmt: skip
    result = {
        "task": {"type": "image-classification", "name": "Image classification"},
        "dataset": {**dataset, "args": {"n": record.n, "selection": data.selection, "fingerprint": data.fingerprint}},
        "metrics": [metric for metric in metrics if metric is not None],
    }
    return {"name": _elsewhere(record.model.spec), "results": [result] if result["metrics"] else []}


def _dataset_id(spec: str) -> str:
    """The id of a dataset on the Hub, or the plain name of another source: a path is nobody else's business."""
    if HUB_ID.fullmatch(spec) and not Path(spec).exists():
        return spec
    return re.sub(r"[^\w.-]+", "-", Path(spec).name).strip("-") or "data"


def _elsewhere(spec: str) -> str:
    """Return a spec with path/to/NAME for an absolute path in it, which is nobody else's business either."""
    return ABSOLUTE.sub(r"path/to/\1", spec)


def _command_elsewhere(command: str) -> str:
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    changed = [_elsewhere(word) for word in words]
    return command if changed == words else shlex.join(changed)


def _metric(name: str, accuracy: Accuracy, args: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """A result; None where it is not a number, which the Hub would refuse."""
    if not math.isfinite(accuracy.value):
        return None
    metric: dict[str, Any] = {"type": "accuracy", "name": name, "value": round(accuracy.value, 6)}
    return {**metric, "args": args} if args else metric


def section(record: EvaluationRecord, samples: pa.Table | None = None, *, made_here: bool | None = None) -> str:
    """Return what was found in Markdown: the table, what qualifies it, and the command that gives it again."""
    threat = record.threat.text
    data = f"{_plain(_dataset_id(record.data.spec))} ({_plain(record.data.split)}, {record.n} of {record.data.n_total} images)"
    doubt = doubt_text(record)
    verdict = [f"**Robust accuracy {bound_text(record)}, {_plain(doubt)}. Not to be believed.**", ""] if doubt else []
    robust = _row(f"robust ({threat})", record.robust_accuracy)
    certification = record.certification
    proven = [] if certification is None else [_row("certified, a lower bound", certification.accuracy)]
    if doubt:
        robust = f"| robust ({_plain(threat)}), an upper bound | {bound_text(record)} | |"
    lines = [
        "## Adversarial robustness", "", *verdict,
        f"Evaluated with robustdup {_plain(record.versions.get('robustdup', ''))} on {data}, within {threat}.", "",
        "| | accuracy | 95% interval |", "|---|---:|---:|",
        _row("clean", record.clean_accuracy), robust, *proven,
        *(f"| robust in {_plain(ball.name)} alone | {alone_text(ball)} | |" for ball in record.union), "",
        "| attack | attacked | broken | robust accuracy after |", "|---|---:|---:|---:|",
    ]  # fmt: skip
    lines += [
        f"| {_plain(ball_label(attack))} | {attack.n_attacked} | {attack.n_broken} | {percent(attack.robust_accuracy_after)} |"
        for attack in record.attacks
    ]
    lines += [
        "",
        *(f"- {_plain(remark)}" for remark in _remarks(record, samples, made_here)),
        "",
        "```",
        _fenced(_command_elsewhere(record.command)),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, accuracy: Accuracy) -> str:
    if not math.isfinite(accuracy.value):
        return f"| {_plain(name)} | not a number | |"
    return f"| {_plain(name)} | {percent(accuracy.value)} | {100 * accuracy.low:.2f} to {100 * accuracy.high:.2f} |"


def _remarks(record: EvaluationRecord, samples: pa.Table | None, made_here: bool | None = None) -> list[str]:
    remarks = [record.interval_about]
    if record.status != "complete" or record.n_undecided or record.n_not_attacked:
        remarks.append(
            f"This result is partial: {record.n_undecided} points are undecided, {record.n_not_attacked} were not attacked."
        )
    try:
        sentence = position(record, samples, made_here=made_here).sentence()
        remarks.append(sentence.replace(record.data.spec, _dataset_id(record.data.spec)))
    except RobustdupError as error:
        remarks.append(f"No RobustBench rank: {error}")
    remarks += [
        f"{sign.severity}: {sign.message} {sign.advice}" for sign in record.diagnostics if sign.severity != "info"
    ]
    return remarks


def _plain(text: str) -> str:
    """Return text that Markdown and HTML leave as it is, on one line."""
    one_line = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]<>|#&~])", r"\\\1", one_line)


def _fenced(text: str) -> str:
    """Return a command on one line that cannot end its code block."""
    return " ".join(text.split()).replace("```", "'''")
