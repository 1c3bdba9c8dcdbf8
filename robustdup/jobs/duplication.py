"""From a configuration to a duplicated dataset on disk or on the Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustdup.config import DataOptions, DuplicateConfig
from robustdup.data.columns import Columns
from robustdup.data.hub import quiet
from robustdup.data.splits import Splits, label_tensor, open_splits, split_columns
from robustdup.data.table import TableSamples
from robustdup.duplication.apply import apply_plan, numbered, unreadable_rows
from robustdup.duplication.card import ClassRow, dataset_card
from robustdup.duplication.croissant import write_croissant
from robustdup.duplication.make import looks_at_labels, make_plan
from robustdup.duplication.plan import DuplicationPlan, plan_header, save_plan
from robustdup.duplication.write import HUB, check_target, push_folder, write_folder
from robustdup.errors import UserError, unknown, user_path
from robustdup.jobs.training_images import margins_of
from robustdup.plugins import load_plugins

if TYPE_CHECKING:
    import datasets

_SCORED = 512  # images that a model scores at once


@dataclass(frozen=True)
class Duplicated:
    """A duplicated dataset that was written: where, its plan, the rows of each split, the classes, and what to know."""

    to: str
    plan: DuplicationPlan
    rows: dict[str, int]
    classes: tuple[ClassRow, ...]
    notes: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        names = ("name", "source", "entries", "copies")
        return {
            "to": self.to, "plan": plan_header(self.plan), "readings": asdict(self.plan.readings()), "rows": self.rows,
            "classes": [dict(zip(names, row, strict=True)) for row in self.classes], "notes": list(self.notes),
        }  # fmt: skip


def duplicate(
    config: DuplicateConfig, to: str, *, overwrite: bool = False, private: bool = False, command: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Duplicated:  # fmt: skip
    """Duplicate a split and write the dataset to `to`, a folder or hub:owner/name. Raises UserError and RunError.

    `progress(rows done, rows in all)` is called while writing. Copied images that cannot be read are counted and listed in
    the notes: they are copied as they are; near copies of them, which cannot be made, are left out.
    """
    check_target(to, overwrite=overwrite)
    options = config.data_options()
    source = open_splits(config.data, options)
    split, remarks = source.name_of(config.split)
    config = config.model_copy(update={"split": split})
    place = f"{config.data} ({config.split})"
    needs_labels = looks_at_labels(config) or config.label_column is not None
    dataset, columns = split_columns(source.get(config.split), options, place, needs_labels=needs_labels)
    labels = label_tensor(dataset, columns, place) if columns.label else torch.zeros(len(dataset), dtype=torch.int64)
    other, other_labels, leaked = _leaking(config, source, options, needs_labels=needs_labels)
    plan = make_plan(
        labels, config, seed=0, class_names=columns.class_names, scores=_scores(config, dataset, columns, labels, place),
        n_other=0 if other is None else len(other), other_labels=other_labels,
    )  # fmt: skip
    notes = [
        *source.notes,
        *remarks,
        *leaked,
        *(columns.notes if columns.label else [f"{place} has no labels; the plan needs none."]),
    ]
    if plan.near is not None or config.check_images:
        plan, more = _readable(plan, dataset, other, columns.image)
        notes += more
    with quiet():
        made = apply_plan(plan, dataset, other=other, image_column=columns.image, label_column=columns.label or None)
    others = source.splits if config.other_splits else {config.split: dataset}
    written = {name: made if name == config.split else numbered(split) for name, split in others.items() if len(split)}
    class_names = columns.class_names if columns.label else ["(no labels)"]
    classes = _class_rows(plan, labels, other_labels, class_names)
    card = dataset_card(plan, source, config.split, written, classes, command=command, notes=notes)

    def beside(folder: Path) -> None:
        save_plan(plan, folder)
        write_croissant(folder, written, plan, source.spec)

    where = _write(to, written, card, plan, beside, overwrite=overwrite, private=private, progress=progress)
    return Duplicated(where, plan, {name: len(split) for name, split in written.items()}, tuple(classes), tuple(notes))


def _write(
    to: str, written: dict[str, datasets.Dataset], card: str, plan: DuplicationPlan, beside: Callable[[Path], None],
    *, overwrite: bool, private: bool, progress: Callable[[int, int], None],
) -> str:  # fmt: skip
    if not to.startswith(HUB):
        write_folder(user_path(to), written, card, beside, progress=progress)
        return to
    with tempfile.TemporaryDirectory(prefix="robustdup-") as temporary:
        folder = Path(temporary) / "dataset"
        write_folder(folder, written, card, beside, progress=progress)
        message = f"Duplicated with robustdup: {plan.scheme}, dose {plan.dose:.4g}, plan {plan.hash[:12]}"
        return push_folder(folder, to.removeprefix(HUB), private=private, overwrite=overwrite, message=message)


def _leaking(
    config: DuplicateConfig, source: Splits, options: DataOptions, *, needs_labels: bool
) -> tuple[datasets.Dataset | None, Tensor | None, tuple[str, ...]]:
    """Return the split that leaks in with its labels, and what to tell of the choice; None where none does."""
    if config.scheme != "leak":
        return None, None, ()
    split, remarks = source.name_of(config.leak_from)
    if split == config.split:
        raise UserError(
            f"A split does not leak into itself: split and leak_from are both {config.split!r}.", code="bad-value"
        )
    place = f"{config.data} ({split})"
    other, columns = split_columns(source.get(split), options, place, needs_labels=needs_labels)
    if not columns.label:
        return other, torch.zeros(len(other), dtype=torch.int64), remarks
    return other, label_tensor(other, columns, place), remarks


def _scores(
    config: DuplicateConfig, dataset: datasets.Dataset, columns: Columns, labels: Tensor, place: str
) -> Tensor | None:
    """Return the score of each row from its column or as a model's margin; None where the scheme needs none."""
    if config.scheme not in ("hardest", "easiest"):
        if config.score_model is not None:
            raise UserError(
                f"scheme = {config.scheme} does not use score_model; hardest and easiest do.", code="bad-option"
            )
        return None
    if config.score_model is not None and config.score_column is not None:
        raise UserError("Give score_column or score_model, not both.", code="conflicting-options")
    if config.score_model is not None:
        options = DataOptions(split=config.split, image_column=columns.image, label_column=columns.label)
        rows = TableSamples(dataset, options, place)
        parts = torch.split(torch.arange(len(rows)), _SCORED)
        batches = ((rows.fetch(part.tolist())[0], labels[part]) for part in parts)
        return margins_of(config.score_model, batches, load_plugins(), allow_pickle=config.allow_pickle)
    if config.score_column is None:
        raise UserError(
            f"scheme = {config.scheme} needs a score for each sample: give score_column or score_model.",
            code="no-score",
        )
    if config.score_column not in dataset.features:
        raise unknown(f"score column of {place}:", config.score_column, dataset.features)
    values = dataset.select_columns([config.score_column]).with_format("arrow")[:][config.score_column]
    try:
        return torch.tensor([float("nan") if value is None else float(value) for value in values.to_pylist()])
    except (TypeError, ValueError):
        raise UserError(f"Column {config.score_column!r} of {place} does not hold numbers.", code="bad-score") from None


def _readable(
    plan: DuplicationPlan, dataset: datasets.Dataset, other: datasets.Dataset | None, image: str
) -> tuple[DuplicationPlan, list[str]]:
    rows = torch.unique(plan.source_index[plan.copy > 0])
    broken = unreadable_rows([dataset] if other is None else [dataset, other], rows, image)
    if not broken:
        return plan, []
    shown = ", ".join(str(row) for row in broken[:20]) + (", …" if len(broken) > 20 else "")
    if plan.near is None:
        return plan, [
            f"{len(broken)} of the copied images cannot be read; they are written as they are, with their copies: rows {shown}."
        ]
    less = plan.without(torch.tensor(broken))
    return less, [
        f"{len(broken)} images cannot be read, so that their {len(plan) - len(less)} near copies were left out: rows {shown}."
    ]


def _class_rows(
    plan: DuplicationPlan, labels: Tensor, other_labels: Tensor | None, class_names: Sequence[str]
) -> list[ClassRow]:
    of_entries = plan.entry_labels(labels, other_labels)
    size = max(len(class_names), int(max(labels.max(), of_entries.max())) + 1)
    counts = [torch.bincount(part, minlength=size).tolist() for part in (labels, of_entries, of_entries[plan.copy > 0])]
    names = list(class_names) or [str(number) for number in range(size)]
    return [
        (name, rows, entries, copies) for name, rows, entries, copies in zip(names, *counts, strict=True)
    ]  # fmt: skip
