"""Where an evaluation on corruptions would stand on RobustBench's corruption boards, or why it cannot be said."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from robustdup.leaderboard.images import reference
from robustdup.leaderboard.rank import FULL, Place, place_among
from robustdup.leaderboard.table import Leaderboard, load, plain_name
from robustdup.records.base import Accuracy
from robustdup.statistics import wilson
from robustdup_corruptions.effective import EffectiveRobustness, effective_robustness
from robustdup_corruptions.record import CorruptionRecord

BOARD = "corruptions"
IMAGENET_N = 5_000  # images that RobustBench takes of each kind and severity


class CorruptionRank(BaseModel):
    """Where a record would stand. Not `comparable`: no rank, and `reasons` says why.

    `published` is the number of a model of RobustBench's zoo in [0, 1]. Places on 3D Common Corruptions
    (https://arxiv.org/abs/2203.01441) are shown by `leaderboard show --threat corruptions`; nothing of them is measured here.
    """

    model_config = ConfigDict(extra="forbid")

    comparable: bool
    reasons: list[str]
    notes: list[str]
    dataset: str | None
    leaderboard_date: str
    leaderboard_source: str
    n: int
    corruption_accuracy: Accuracy | None
    place: Place | None = None
    published: float | None = None
    effective: EffectiveRobustness | None = None
    made_here: bool | None = None

    def sentence(self) -> str:
        """Return the result in one line."""
        if self.place is not None:
            own = "" if self.made_here is not False else "By what the record states alone: it was not made here. "
            return (
                f"{own}RobustBench {self.dataset} corruptions: place {self.place.text} by mean corruption accuracy "
                f"(table of {self.leaderboard_date})."
            )
        return f"No RobustBench rank: {'; '.join(reason.rstrip('.') for reason in self.reasons)}."


def corruption_position(
    record: CorruptionRecord, answers: pa.Table | None = None, table: Leaderboard | None = None, *,
    made_here: bool | None = None, clean: float | None = None,
) -> CorruptionRank:  # fmt: skip
    """Return where an evaluation on corruptions would stand, or why it cannot be compared.

    Args:
        record: the record.
        answers: its corrupted.parquet, whose labels are compared with those of CIFAR-10's test set.
        table: the published results; those that ship, or were fetched, if not given.
        made_here: whether the record was read from a file that was written under this account.
        clean: clean accuracy of the model in [0, 1], for effective robustness; the record's own if not given.
    """
    table = table if table is not None else load()
    dataset = _dataset(record)
    reasons = _unfit(record, dataset)
    notes = ["whether the pixels are the published ones was not checked: their hashes do not ship"]
    if dataset == "cifar10" and record.source == "arrays":
        wrong = _wrong_labels(answers)
        if wrong:
            reasons.append(f"{wrong} of the labels checked are not those of CIFAR-10's test set in its order")
    result = CorruptionRank(
        comparable=not reasons, reasons=reasons, notes=notes if record.source != "made" else [], dataset=dataset,
        leaderboard_date=table.date, leaderboard_source=table.source, n=record.n,
        corruption_accuracy=record.corruption_accuracy, made_here=made_here,
    )  # fmt: skip
    board = table.boards.get((dataset or "", BOARD), ())
    own = _zoo_name(record)
    entry = next((entry for entry in board if plain_name(entry.model_id) == own), None) if own else None
    result.published = None if entry is None or entry.corruptions_acc is None else entry.corruptions_acc / 100
    if not reasons and record.corruption_accuracy is not None and dataset is not None:
        full = FULL.get(dataset, IMAGENET_N)
        others = [(e.model_id, e.corruptions_acc) for e in board if e is not entry and e.corruptions_acc is not None]
        clean = clean if clean is not None or record.clean_accuracy is None else record.clean_accuracy.value
        accuracy, compared = record.corruption_accuracy, [e for e in board if e is not entry]
        if clean is not None:
            result.effective = effective_robustness(compared, clean, (accuracy.value, accuracy.low, accuracy.high))
        result.place = place_among(
            others, _predicted(record.corruption_accuracy, record.n, full), exact=record.n >= full
        )
    return result


def _dataset(record: CorruptionRecord) -> str | None:
    """Return the board's dataset by the layout of the data, its shape and the number of classes."""
    shape, classes = record.data.image_shape, record.model.num_classes
    if record.source == "folders":
        return "imagenet" if classes == 1000 else None
    return {10: "cifar10", 100: "cifar100"}.get(classes) if shape == [3, 32, 32] else None


def _unfit(record: CorruptionRecord, dataset: str | None) -> list[str]:
    reasons = []
    if record.source == "made":
        reasons.append(
            f"the images were made here ({record.made_with}), and the board is about the published ones: name their folder "
            "with --data"
        )
    elif dataset is None:
        reasons.append("RobustBench has corruption boards for CIFAR-10-C, CIFAR-100-C and ImageNet-C alone")
    if record.missing:
        reasons.append(
            f"the mean is over {15 - len(record.missing)} of fifteen kinds: {', '.join(record.missing)} are missing"
        )
    if not record.complete and not record.missing:
        reasons.append(f"the board takes all five severities, this run {', '.join(map(str, record.severities))}")
    if dataset == "imagenet" and record.n > IMAGENET_N:
        reasons.append(f"RobustBench takes its own list of {IMAGENET_N:,} images")
    if record.data.selection in ("sample", "stratified") and record.source == "arrays":
        reasons.append("a random subset was measured; RobustBench takes the first n")
    model = record.model
    if model.wavering:
        reasons.append("the model does not repeat itself; RobustBench takes deterministic models only")
    if model.mode != "eval":
        reasons.append(f"the model was not in eval mode ({model.mode})")
    return reasons


def _wrong_labels(answers: pa.Table | None) -> int:
    """Return how many labels of the first images differ from CIFAR-10's test set; 0 where there is nothing to compare."""
    if answers is None or not {"index", "label"} <= set(answers.column_names):
        return 0
    index, labels = (np.asarray(answers[name].to_pylist(), dtype=np.int64) for name in ("index", "label"))
    known = reference().labels
    inside = (index >= 0) & (index < len(known))
    return int((labels[inside] != known[index[inside]]).sum())


def _predicted(accuracy: Accuracy, n: int, full: int) -> Accuracy:
    """Return the accuracy with the interval that predicts the board's whole set from n of its images."""
    if n >= full:
        return accuracy
    low, high = wilson(accuracy.value * n, n, population=full)
    return Accuracy(value=accuracy.value, low=low, high=high)


def _zoo_name(record: CorruptionRecord) -> str:
    source, colon, rest = record.model.spec.partition(":")
    return plain_name(rest.split("/")[-1]) if colon and source.lower() == "robustbench" else ""
