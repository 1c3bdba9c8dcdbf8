"""A deduplicated dataset: the rows that stay, written anew, and the list of those that leave; the source is never touched."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from robustdup.data.hub import quiet
from robustdup.data.labels import open_with_any_labels
from robustdup.data.splits import Splits
from robustdup.duplication.write import write_folder
from robustdup.records import write_atomic
from robustdup_detect.options import DetectConfig
from robustdup_detect.paths import encoded_column
from robustdup_detect.record import DuplicatesRecord, save_duplicates
from robustdup_detect.store import unreadable_rows
from robustdup_detect.summary import SearchResult

LEAVING_FILE = "leaving.csv"  # in a run folder: what would leave, and what stays in its place
KEPT = {
    "first": "the first image",
    "quality": "the image with the most pixels (then bytes)",
    "consistent": "the first image with the label of most of the cluster, and none where there is no such label",
}


def save_leaving(result: SearchResult, folder: Path) -> None:
    """Write LEAVING_FILE: split, row and file of every image that would leave, and of the image of its cluster that stays."""
    n, clusters = result.plan.rows[result.plan.config.split], result.clusters
    stays = np.setdiff1d(np.flatnonzero(clusters >= 0), result.leaving)
    stays = stays[np.argsort(stays < n, kind="stable")]  # images of the other split first, which all stay
    keeper = {int(clusters[place]): place for place in reversed(stays.tolist())}

    def named(place: int | None) -> tuple[str, ...]:
        if place is None:  # nothing of the cluster stays
            return "", "", ""
        split, row = result.split_and_row(place)
        return split, str(row), result.paths[split][row]

    content = io.StringIO()
    lines = csv.writer(content, lineterminator="\n")
    lines.writerow(["split", "row", "file", "stays_split", "stays_row", "stays_file"])
    lines.writerows([*named(row), *named(keeper.get(int(clusters[row])))] for row in result.leaving.tolist())
    write_atomic(folder / LEAVING_FILE, content.getvalue().encode())


def write_deduplicated(
    source: Splits, config: DetectConfig, record: DuplicatesRecord, leaving: Any, *, to: Path,
    broken: Mapping[str, Sequence[Any]], paths: Mapping[str, Sequence[str]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:  # fmt: skip
    """Write all splits to a folder that `load_dataset` reads, without the rows `leaving` of the searched one.

    Images that cannot be read are in no split: those of the splits that were read are `broken`, as (row, …); the other
    splits are looked through here. The column `source_index` says which row of the source each is, `source_path` which file
    where images are files. Returns the rows of each split. Raises RunError where the disk is full; then nothing is left behind.
    """
    written, unread = {}, {}
    with quiet():
        for name, split in source.splits.items():
            options = config.data_options(name)
            dataset, columns = open_with_any_labels(split, options, f"{config.data} ({name})")
            bad = broken.get(name)
            if bad is None:
                bad = unreadable_rows(encoded_column(dataset, columns.image), columns.image, config.background)
            unread[name] = len(bad)
            rows = np.setdiff1d(np.arange(len(dataset)), [row for row, *_ in bad])
            if name == config.split:
                rows = np.setdiff1d(rows, leaving)
            if len(rows) < len(dataset):
                dataset = dataset.select(rows)
            if "source_index" not in dataset.column_names:
                dataset = dataset.add_column("source_index", rows.tolist())
            if any(paths[name]) and "source_path" not in dataset.column_names:
                dataset = dataset.add_column("source_path", [paths[name][row] for row in rows.tolist()])
            if len(dataset):
                written[name] = dataset
    card = _card(config, record, {name: len(split) for name, split in written.items()}, unread, paths)
    write_folder(to, written, card, lambda folder: _keep_record(record, folder), progress=progress)
    return {name: len(split) for name, split in written.items()}


def _keep_record(record: DuplicatesRecord, folder: Path) -> None:
    path = save_duplicates(record, folder)
    path.rename(path.with_name("duplicates.json"))  # beside a dataset, record.json would say too little


def _card(
    config: DetectConfig, record: DuplicatesRecord, rows: dict[str, int], unread: dict[str, int],
    paths: Mapping[str, Sequence[str]],
) -> str:  # fmt: skip
    head = {
        "configs": [{"config_name": "default", "data_files": [{"split": s, "path": f"data/{s}-*"} for s in rows]}],
        "task_categories": ["image-classification"],
        "tags": ["robustdup", "deduplicated"],
    }
    where = f"between `{config.split}` and `{config.against}`" if config.against else f"within `{config.split}`"
    where += f" and within `{config.split}`" if config.add is not None else ""
    rule = (
        f"images of `{config.split}` that also occur in `{config.against}`{' or repeat another one' if config.add else ''} left"
        if config.against
        else f"of each cluster of one picture, {KEPT[config.keep]} stayed"
    )
    named = f"`{record.data}`" + (f" at commit `{record.revision}`" if record.revision else "")
    files = ", `source_path` its file" if any(map(any, paths.values())) else ""
    lost = ", ".join(f"{n:,} of {name}" for name, n in unread.items() if n)
    unreadable = f" Images that cannot be read were left out: {lost}." if lost else ""
    table = "\n".join(f"| {name} | {n:,} |" for name, n in rows.items())
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n# {record.data}, deduplicated\n\n"
        f"Made from {named}. Exact and near duplicates were looked for {where}; {rule}: {record.n_redundant:,} of "
        f"{config.split} left.{unreadable} The column `source_index` is the row of an image in the "
        f"source{files}. The licence and the terms of the source hold for this dataset too.\n\n"
        f"| split | rows |\n|---|---|\n{table}\n\n`duplicates.json` says what was found, with the threshold "
        f"({record.method.threshold:g}) and what to expect of it. Made with\n\n"
        f"```\n{record.command}\n```\n"
    )
