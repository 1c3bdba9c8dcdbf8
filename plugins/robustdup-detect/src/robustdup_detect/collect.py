"""From what the pieces of work left to all pairs of a search, their clusters, and the rows that would leave."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from robustdup.data.columns import Columns
from robustdup.data.splits import Splits
from robustdup_detect.calibrate import Calibration
from robustdup_detect.clusters import cluster, conflicting, leaving
from robustdup_detect.exact import Groups
from robustdup_detect.pairs import Pairs, joined, turned_round, with_identical
from robustdup_detect.summary import Findings
from robustdup_detect.work import Order, load_found, tasks_of


def collect_pairs(order: Order, groups: dict[str, Groups], rows: int) -> Pairs:
    """Return all pairs of rows: what the pieces of work found, each pair once, and the identical images."""
    config = order.config
    parts = [
        load_found(order.state / order.asking / "done" / f"pairs-{task.start}.safetensors")
        for task in tasks_of(order, "compare", {order.asking: rows})
    ]
    mine, theirs = order.different_rows(config.split), order.different_rows(order.other)
    within = config.against is None
    found = joined(parts)
    if order.asking != config.split:
        found = turned_round(found)
    # Places among the different rows, as identical ones are known by their groups.
    a = torch.from_numpy(np.searchsorted(mine, found.a.numpy()))
    b = torch.from_numpy(np.searchsorted(theirs, found.b.numpy()))
    found = replace(found, a=a, b=b)
    if within:
        later = a > b
        found = joined([found[~later], turned_round(found[later])])
    found = found[found.score.argsort(descending=True, stable=True)]
    _, first = np.unique((found.a * (len(theirs) + 1) + found.b).numpy(), return_index=True)
    found = found[torch.from_numpy(np.sort(first))]
    readable = [np.load(order.state / name / "readable.npy") for name in (config.split, order.other)]
    hashes = [
        np.array(order.store(name).read("hashes")[order.different_rows(name)]) for name in (config.split, order.other)
    ]
    both = groups[config.split], groups[order.other]
    pairs = with_identical(found, hashes[0], None if within else hashes[1], both)
    return Pairs(
        torch.from_numpy(readable[0][pairs.a.numpy()]), torch.from_numpy(readable[1][pairs.b.numpy()]), pairs.score,
        pairs.mirrored, pairs.warp,
    )  # fmt: skip


def findings_of(
    order: Order, pairs: Pairs, calibration: Calibration, columns: dict[str, Columns], source: Splits
) -> Findings:
    """Return the clusters, conflicts and rows to leave out beside the pairs."""
    config = order.config
    n = order.rows[config.split]
    a, b = pairs.a.numpy(), pairs.b.numpy()
    labels = {name: _labels(source.splits[name], found.label) for name, found in columns.items()}
    facts = order.store(config.split).read("facts")
    if config.against is None:
        clusters, all_labels = cluster(n, a, b), labels[config.split]
        out = leaving(clusters, all_labels, facts[:, 0] * facts[:, 1], facts[:, 2], config.keep)
    else:
        all_labels = np.concatenate([labels[config.split], labels[config.against]])
        clusters = cluster(len(all_labels), a, b + n)
        out = np.unique(a)
    broken = {
        name: [row for task in tasks_of(order, "read", {name: order.rows[name]})
               for row in order.store(name).finished("read", task.start) or ()]
        for name in columns
    }  # fmt: skip
    return Findings(
        order, pairs, calibration, columns, source, labels, clusters, conflicting(clusters, all_labels), out, broken
    )


def _labels(dataset: Any, column: str) -> Any:
    """Return the labels of a split, int64 (n,), -1 where there is none; all of them where there is no column."""
    if not column:
        return np.full(len(dataset), -1, np.int64)
    values = dataset.select_columns([column]).with_format("arrow")[:][column]
    return np.array(values.fill_null(-1).to_numpy(), dtype=np.int64)
