"""From what the pieces of work left to all pairs of a search, their clusters, and the rows that would leave."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from robustdup.data.columns import Columns
from robustdup.data.labels import read_labels
from robustdup.data.splits import Splits
from robustdup.duplication.representatives import representatives
from robustdup_detect.calibrate import Calibration
from robustdup_detect.decisions import Decisions, decide, known_recall, read_decisions
from robustdup_detect.groups import Groups, cluster, conflicting, keeping_order, leaving
from robustdup_detect.options import DetectConfig
from robustdup_detect.pairlist import Pairs, best_ways, joined, turned_round, with_identical
from robustdup_detect.paths import load_paths
from robustdup_detect.shards import SearchPlan, load_judged, shards_of
from robustdup_detect.sources import split_of
from robustdup_detect.summary import SearchResult


def collect_pairs(plan: SearchPlan, groups: dict[str, Groups], threshold: float) -> Pairs:
    """Return all pairs that score at least the threshold, each once, and the identical images.

    `a` are rows of the split, `b` places: rows of the split, or of the other one, which come after them.
    """
    config = plan.config
    own_rows, other_rows = plan.different_rows(config.split), plan.different_rows(plan.other)
    within = config.against is None
    judged = load_judged(plan)
    judged = judged[judged.score >= threshold]
    if plan.asking != config.split:
        judged = turned_round(judged)
    # Places among the different rows, as identical ones are known by their groups.
    a = torch.from_numpy(np.searchsorted(own_rows, judged.a.numpy()))
    b = torch.from_numpy(np.searchsorted(other_rows, judged.b.numpy()))
    judged = replace(judged, a=a, b=b)
    if within:
        later = a > b
        judged = joined([judged[~later], turned_round(judged[later])])
    judged = best_ways(judged, len(other_rows) + 1)
    readable = [np.load(plan.folder(name) / "readable.npy") for name in (config.split, plan.other)]
    hashes = [
        np.array(plan.store(name).read("hashes")[plan.different_rows(name)]) for name in (config.split, plan.other)
    ]
    both = groups[config.split], groups[plan.other]
    pairs = with_identical(judged, hashes[0], None if within else hashes[1], both)
    a, b = (torch.from_numpy(known[side.numpy()]) for known, side in zip(readable, (pairs.a, pairs.b), strict=True))
    return replace(pairs, a=a, b=b if within else b + plan.rows[config.split])


def search_result(
    plan: SearchPlan, pairs: Pairs, calibration: Calibration, columns: dict[str, Columns], source: Splits
) -> SearchResult:
    """Return the clusters, conflicts and rows to leave out beside the pairs."""
    config = plan.config
    n = plan.rows[config.split]
    paths = {
        name: load_paths(
            plan.store(name).folder, plan.rows[name],
            [shard.start for shard in shards_of(plan, "read", {name: plan.rows[name]})],
            config.data if split_of(config, name)[0] == config.data else "",  # from where the command runs
        )
        for name in columns
    }  # fmt: skip
    decisions = _decisions(config, n, paths, plan.other) if config.decisions is not None else Decisions()
    recall = known_recall(pairs, decisions)
    pairs, decided = decide(pairs, decisions)
    a, b, score = pairs.a.numpy(), pairs.b.numpy(), pairs.score.numpy()
    labels, class_names = read_labels(
        {name: source.get(name) for name in columns}, {name: split.label for name, split in columns.items()}
    )
    all_labels = np.concatenate([labels[name] for name in columns])
    facts = plan.store(config.split).read("facts")
    pixels, content = facts[:, 0] * facts[:, 1], facts[:, 2]
    # Images of another split stay: they are representatives before all others.
    order = np.concatenate([np.arange(n, len(all_labels)), keeping_order(pixels, content, config.keep)])
    clusters = cluster(len(all_labels), a, b, score, order)
    if config.against is None:
        out = leaving(clusters, all_labels, pixels, content, config.keep)
    else:
        out = np.flatnonzero(representatives(len(all_labels), a, b, score, order)[:n] != np.arange(n))
    broken = {
        name: [row for shard in shards_of(plan, "read", {name: plan.rows[name]})
               for row in plan.store(name).finished("read", shard.start) or ()]
        for name in columns
    }  # fmt: skip
    return SearchResult(
        plan, pairs, calibration, columns, source, labels, class_names, clusters, conflicting(clusters, all_labels), out,
        broken, paths, decisions, decided, recall,
    )  # fmt: skip


def _decisions(config: DetectConfig, n: int, paths: dict[str, list[str]], other: str) -> Decisions:
    """Read what somebody decided, as pairs (a, b) of a row and a place."""
    file, own, others = str(config.decisions), paths[config.split], paths[other]
    if config.against is None:
        return read_decisions(file, own, others, within=True)
    if config.add is None:
        return read_decisions(file, own, others, within=False).moved(lambda a, b: (a, b + n))
    # Rows of the second column are those of the old images, files any.
    return read_decisions(file, own, [*others, *own], within=False).moved(
        lambda a, b: (a, b + n) if b < len(others) else (min(a, b - len(others)), max(a, b - len(others)))
    )
