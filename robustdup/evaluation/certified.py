"""Certificates that an evaluation starts from: samples for which no adversarial example exists, and what proves it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from robustdup.certification.checker import Tree
from robustdup.errors import UserError
from robustdup.evaluation.metrics import accuracy
from robustdup.evaluation.saved import load_tensors
from robustdup.records import Certification, write_atomic
from robustdup.records.sealed import seal

CERTIFICATES = "certificates.safetensors"  # in a run folder, its state, and a bundle


@dataclass(frozen=True)
class Certified:
    """What was proven of the samples of a run.

    Attributes:
        position: int64 (k,), rising: the samples that are certified, by their row in the run.
        margin: float64 (k,): the least margin that is possible in the ball, above 0.
        slopes: float32 (k, size) by rectifier: of the lower lines that the checker needs to prove it again.
        asked: whether it was asked for; what a run tries unasked is dropped where it cannot be used.
        trees: by such a row that was proven case by case, by the other class: the cases.
        methods: how many were proven by which bound.
        seconds: what it took.
        notes: what a reader should know.
    """

    position: Tensor
    margin: Tensor
    slopes: Mapping[int, Tensor] = field(default_factory=dict)
    methods: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    trees: Mapping[int, Mapping[int, Tree]] = field(default_factory=dict)
    asked: bool = True

    def mask(self, n: int) -> Tensor:
        """Return which of n samples are certified: (n,) bool."""
        mask = torch.zeros(n, dtype=torch.bool)
        mask[self.position] = True
        return mask

    def among(self, right: Tensor) -> Certified:
        """Keep the samples that the referee gets right, (n,) bool."""
        kept = right[self.position]
        slopes = {number: slope[kept] for number, slope in self.slopes.items()}
        trees = {row: tree for row, tree in self.trees.items() if bool(right[row])}
        return replace(self, position=self.position[kept], margin=self.margin[kept], slopes=slopes, trees=trees)

    def part(self, n: int) -> Certification:
        """Return what a record says of it, among n samples."""
        share = accuracy(self.mask(n).double().numpy())
        return Certification(
            n_certified=len(self.position), accuracy=share, methods=dict(Counter(self.methods)), seconds=self.seconds,
            notes=list(self.notes),
        )  # fmt: skip


def save_certified(path: Path, certified: Certified, about: Mapping[str, str] | None = None) -> None:
    """Write certificates; `about` says of what they speak, so that others are not taken for them."""
    tensors = {"position": certified.position, "margin": certified.margin}
    tensors |= {f"slopes.{number}": slope.contiguous() for number, slope in certified.slopes.items()}
    for row, trees in certified.trees.items():
        for other, tree in trees.items():
            tensors[f"splits.{row}.{other}"] = torch.from_numpy(np.ascontiguousarray(tree.splits))
            tensors[f"weights.{row}.{other}"] = torch.from_numpy(np.ascontiguousarray(tree.weights))
    about_run = {"methods": dict(certified.methods), "seconds": certified.seconds, "notes": list(certified.notes)}
    content = save(tensors, metadata={**(about or {}), "told": json.dumps(about_run)})
    write_atomic(path, seal(content) if about else content)  # of a run that goes on; what is finished others read too


def load_certified(path: Path, about: Mapping[str, str] | None = None) -> Certified | None:
    """Read certificates; None where they speak of something else than `about`. Raises UserError where they are damaged."""
    try:
        tensors, head = load_tensors(path)
        about_run = json.loads(head["told"])
        position, margin = tensors.pop("position"), tensors.pop("margin")
        trees = _read_trees(tensors)
        slopes = {int(name.removeprefix("slopes.")): slope for name, slope in tensors.items()}
        sizes = {len(position), len(margin), *map(len, slopes.values())}
        plain = margin.ndim == 1 and all(tensor.is_floating_point() for tensor in (margin, *slopes.values()))
        if position.dtype != torch.int64 or len(sizes) != 1 or position.ndim != 1 or not plain:
            raise ValueError("its parts do not belong together")
        certified = Certified(
            position,
            margin.double(),
            slopes,
            dict(about_run["methods"]),
            float(about_run["seconds"]),
            tuple(about_run["notes"]),
            trees,
        )
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{str(path)!r} is damaged ({error}).", code="damaged-run") from None
    return certified if all(head.get(name) == value for name, value in (about or {}).items()) else None


def _read_trees(tensors: dict[str, Tensor]) -> dict[int, dict[int, Tree]]:
    """Take the cases out of the tensors of a file. Raises ValueError or KeyError where they are damaged."""
    trees: dict[int, dict[int, Tree]] = {}
    for name in [name for name in tensors if name.startswith("splits.")]:
        _, row, other = name.split(".")
        splits, weights = tensors.pop(name), tensors.pop(f"weights.{row}.{other}")
        if splits.dtype != torch.int64 or splits.ndim != 2 or splits.shape[1] != 2 or weights.ndim != 1:
            raise ValueError("cases are of the wrong kind")
        trees.setdefault(int(row), {})[int(other)] = Tree(splits.numpy(), weights.float().numpy())
    return trees
