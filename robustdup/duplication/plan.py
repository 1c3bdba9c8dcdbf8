"""A plan of duplication: an index array over the source, how it reads in numbers, and the file that keeps it.

Images are never copied. The entries are the originals that stay, in the order of the source, and then the first copies, the
second copies, and so on; nothing may depend on that order.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustdup.data.describe import effective_sample_size
from robustdup.duplication.near_copies import NearTransform, parse_near
from robustdup.errors import UserError
from robustdup.records import write_atomic

FORMAT = "robustdup.plan/1"
PLAN_FILE = "plan.safetensors"
NEW_COLUMNS = ("source_index", "copy")  # of a duplicated dataset


@dataclass(frozen=True)
class DoseReadings:
    """One plan in the words of everybody: each paper states the dose in another one.

    `dose` is the share of the entries that are copies, `percent_of_source` the copies as a percentage of the source's
    rows, `size_factor` the entries over the source's rows (steps of an epoch), `extra_passes` what that is above one.
    `multiplicity` are entries a sample: the most, and the mean over the copied samples. `unique` are distinct images, and
    `effective_sample_size` is Kish's, (sum e)^2 / sum e^2 over the entries e of each sample.
    """

    n_source: int
    entries: int
    originals: int
    copies: int
    copied_samples: int
    dropped: int
    unique: int
    dose: float
    percent_of_source: float
    size_factor: float
    extra_passes: float
    max_multiplicity: int
    mean_multiplicity_of_copied: float
    effective_sample_size: float


@dataclass(frozen=True, eq=False)
class DuplicationPlan:
    """Which rows of the source make up the training set, and which of its entries are copies.

    `source_index` int64 (M,): the row of the source; `n_source + r` means row r of the other split (`leak`). `copy` int64
    (M,): 0 for an original, 1.. for its copies. `labels` int64 (M,) where copies carry other labels than their source,
    else None. `near` changes the images of entries with `copy` > 0. The rest says how the plan was made.
    """

    source_index: Tensor
    copy: Tensor
    n_source: int
    labels: Tensor | None = None
    near: NearTransform | None = None
    scheme: str = "none"
    mode: str = "append"
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.source_index.shape[0]

    @property
    def dose(self) -> float:
        """The share of the entries that are copies."""
        return float((self.copy > 0).sum()) / len(self)

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the entries, their labels and the transform of near copies, the same on every platform.

        Two ways to ask for the same entries have the same hash.
        """
        near = "" if self.near is None else f"{self.near.text} {self.near.seed}"
        head = f"{FORMAT}\n{self.n_source} {len(self)} {int(self.labels is not None)}\n{near}\n"
        digest = hashlib.sha256(head.encode())
        for part in (self.source_index, self.copy, self.labels):
            if part is not None:
                digest.update(_little_endian(part))
        return digest.hexdigest()

    def entries_per_sample(self) -> Tensor:
        """Return how many entries each sample has, int64 (n_source,); longer where another split leaks in."""
        return torch.bincount(self.source_index, minlength=self.n_source)

    def weights(self) -> Tensor:
        """Return loss weights equivalent to the plan in expectation, float32 (n_source,), mean 1 over the samples kept.

        A sample with e of the M entries weighs e * kept / M, and 0 where it left: the weighted mean of the loss over the
        kept samples is then the mean over the entries. The batches, augmentation draws and BatchNorm statistics differ.
        Raises UserError where copies are not the sample itself (near, conflicting, leak).
        """
        if self.near is not None or self.labels is not None or int(self.source_index.max()) >= self.n_source:
            reason = "near copies" if self.near is not None else f"scheme = {self.scheme}"
            raise UserError(
                f"{reason[0].upper()}{reason[1:]} cannot be expressed as loss weights: its copies are other samples.",
                code="bad-option",
            )
        counts = self.entries_per_sample().double()
        return (counts * ((counts > 0).sum() / counts.sum())).float()

    def readings(self) -> DoseReadings:
        """Return the dose in all the ways in which it is stated elsewhere."""
        counts = self.entries_per_sample()
        copies = int((self.copy > 0).sum())
        copied = torch.bincount(self.source_index[self.copy > 0], minlength=len(counts)) > 0
        originals = len(self) - copies
        return DoseReadings(
            n_source=self.n_source, entries=len(self), originals=originals, copies=copies,
            copied_samples=int(copied.sum()), dropped=self.n_source - originals, unique=int((counts > 0).sum()),
            dose=self.dose, percent_of_source=100 * copies / self.n_source, size_factor=len(self) / self.n_source,
            extra_passes=(len(self) - self.n_source) / self.n_source, max_multiplicity=int(counts.max()),
            mean_multiplicity_of_copied=float(counts[copied].double().mean()) if copies else 0.0,
            effective_sample_size=effective_sample_size(counts),
        )  # fmt: skip

    def without(self, rows: Tensor) -> DuplicationPlan:
        """Return the plan without the copies of these source rows, (k,) int64: for images that cannot be changed."""
        keep = (self.copy == 0) | ~torch.isin(self.source_index, rows)
        labels = None if self.labels is None else self.labels[keep]
        return replace(self, source_index=self.source_index[keep], copy=self.copy[keep], labels=labels)

    def entry_labels(self, labels: Tensor, other_labels: Tensor | None = None) -> Tensor:
        """Return the label of each entry, int64 (M,), from those of the source (n_source,) and of the other split."""
        if self.labels is not None:
            return self.labels
        return (labels if other_labels is None else torch.cat([labels, other_labels]))[self.source_index]


def _little_endian(values: Tensor) -> Any:
    """The bytes of int64 values, without a copy where the machine already has them so."""
    array = values.cpu().contiguous().numpy()
    return (array if sys.byteorder == "little" else array.byteswap()).data.cast("B")


def plan_header(plan: DuplicationPlan) -> dict[str, Any]:
    """Return all of a plan but its entries, ready for JSON."""
    return {
        "format": FORMAT,
        **{name: getattr(plan, name) for name in ("hash", "n_source", "scheme", "mode", "seed")},
        "near": plan.near.text if plan.near is not None else None,
        "options": plan.options,
    }


def save_plan(plan: DuplicationPlan, path: Path) -> None:
    """Write a plan to a file, or to `plan.safetensors` in a folder that exists. Raises RunError where that fails."""
    from safetensors.torch import save  # save_file hides that the disk is full

    parts = {"source_index": plan.source_index, "copy": plan.copy}
    if plan.labels is not None:
        parts["labels"] = plan.labels
    content = save(parts, metadata={"plan": json.dumps(plan_header(plan), sort_keys=True)})
    write_atomic(path / PLAN_FILE if path.is_dir() else path, content)


def load_plan(place: Path) -> DuplicationPlan:
    """Return the plan in a file, or in a folder that `robustdup data duplicate` wrote. Raises UserError.

    A plan whose content is not what its hash says is refused.
    """
    from safetensors import SafetensorError, safe_open

    path = place / PLAN_FILE if place.is_dir() else place
    if not path.is_file():
        raise UserError(
            f"There is no plan at {str(place)!r}: give a file, or a folder that holds {PLAN_FILE}.", code="missing-file"
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["plan"])
            parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["format"] != FORMAT:
            raise UserError(
                f"{str(path)!r} is a plan of the format {header['format']!r}; this version reads {FORMAT!r}.",
                code="bad-file",
            )
        plan = DuplicationPlan(
            source_index=parts["source_index"], copy=parts["copy"], n_source=header["n_source"],
            labels=parts.get("labels"), near=parse_near(header["near"], header["seed"]) if header["near"] else None,
            scheme=header["scheme"], mode=header["mode"], seed=header["seed"], options=header["options"],
        )  # fmt: skip
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(path)!r} is not a plan of duplication: {error}.", code="bad-file") from None
    if plan.hash != header["hash"]:
        raise UserError(
            f"The plan {str(path)!r} was changed after it was written: its hash differs.", code="changed-file"
        )
    return plan
