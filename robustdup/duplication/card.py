"""The card of a duplicated dataset: what was done to which data, in every reading of the dose, and how to undo it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import yaml

from robustdup.data.splits import Splits
from robustdup.duplication.plan import PLAN_FILE, DuplicationPlan, plan_header

if TYPE_CHECKING:
    import datasets

ClassRow = tuple[str, int, int, int]  # name, rows of the source, entries, copies

_READINGS = {
    "n_source": "rows of the source",
    "entries": "entries",
    "copies": "of these, copies",
    "dose": "dose: share of entries that are copies",
    "percent_of_source": "copies in percent of the source",
    "size_factor": "size against the source (steps of an epoch)",
    "extra_passes": "extra passes",
    "copied_samples": "samples that are copied",
    "max_multiplicity": "most entries of one sample",
    "mean_multiplicity_of_copied": "mean entries of a copied sample",
    "dropped": "samples that left",
    "unique": "distinct images",
    "effective_sample_size": "effective sample size (Kish)",
}


def dataset_card(
    plan: DuplicationPlan, source: Splits, split: str, written: Mapping[str, datasets.Dataset],
    classes: Sequence[ClassRow], *, command: str = "", notes: Sequence[str] = (),
) -> str:  # fmt: skip
    """Return the text of README.md: YAML that `datasets` and the Hub read, then what a person wants to know."""
    on_hub = ":" not in source.spec and source.spec.count("/") == 1 and source.revision is not None
    head: dict[str, Any] = {
        # No "configs": datasets 5.2 then takes a folder of the same name and patterns for the one in their cache; the
        # files are found by their names (https://huggingface.co/docs/hub/datasets-file-names-and-splits).
        "task_categories": ["image-classification"],
        "tags": ["robustdup", "duplicates"],
        **({"source_datasets": [source.spec]} if on_hub else {}),
        "robustdup": {**plan_header(plan), "source": source.spec, "revision": source.revision, "split": split},
    }
    named = f"`{source.spec}`" + (f" at commit `{source.revision}`" if source.revision else "")
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {source.spec}, duplicated: {plan.scheme}",
        f"The split `{split}` of {named}, with duplicates put in on purpose. {_sentence(plan)} The licence and the terms "
        "of the source hold for this dataset too.",
        "The column `source_index` is the row of an image in the source split, `copy` is 0 for an original and 1, 2, … for "
        f"its copies. `dataset.filter(lambda row: row['copy'] == 0)` leaves the originals. {_others(plan, split, written)}",
        f"## The dose\n\n{_readings(plan)}",
        f"## Classes\n\n{_classes(classes)}",
        f"## The plan\n\n`{PLAN_FILE}` holds the plan, hash `{plan.hash}`: `robustdup.duplication.plan.load_plan` reads it.",
    ]
    if notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in notes))
    if command:
        parts.append(f"## Made with\n\n```\n{command}\n```")
    return "\n\n".join(parts) + "\n"


def _sentence(plan: DuplicationPlan) -> str:
    options = ", ".join(
        f"{key} = {', '.join(value) if isinstance(value, list) else value}" for key, value in plan.options.items()
    )
    near = f" Every copy was changed by `{plan.near.text}`." if plan.near is not None else ""
    wrong = " Copies carry a wrong label." if plan.labels is not None else ""
    return f"Options: {options}; seed = {plan.seed}.{near}{wrong}"


def _others(plan: DuplicationPlan, split: str, written: Mapping[str, datasets.Dataset]) -> str:
    leaked = (
        f"Numbers of `source_index` from {plan.n_source} on are rows of the split `{plan.options['leak_from']}`. "
        if plan.scheme == "leak"
        else ""
    )
    others = [f"`{name}`" for name in written if name != split]
    return leaked + (f"As they were: {', '.join(others)}." if others else "")


def _readings(plan: DuplicationPlan) -> str:
    values = asdict(plan.readings())
    lines = [f"| {text} | {_number(values[key])} |" for key, text in _READINGS.items()]
    return "\n".join(["| reading | value |", "|---|---:|", *lines])


def _classes(classes: Sequence[ClassRow]) -> str:
    lines = [f"| {name} | {rows} | {entries} | {copies} |" for name, rows, entries, copies in classes]
    return "\n".join(["| class | in the source | entries | of these, copies |", "|---|---:|---:|---:|", *lines])


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
