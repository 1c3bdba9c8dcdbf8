"""From a configuration to a record of duplicates: read, embed, calibrate, compare, cluster, show."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from robustdup.data.labels import open_with_any_labels
from robustdup.data.splits import Splits
from robustdup.duplication.write import check_target
from robustdup.errors import UserError, user_path
from robustdup.records.folder import STATE, freed_by_mistakes, locked, start
from robustdup.runners import open_runner
from robustdup.runners.local import usable_cores
from robustdup_detect.collect import collect_pairs, search_result
from robustdup_detect.dedup import save_leaving, write_deduplicated
from robustdup_detect.features import Embedder
from robustdup_detect.options import CLASSICAL, ELSEWHERE, DetectConfig
from robustdup_detect.pairlist import best_first, joined
from robustdup_detect.paths import dataset_paths
from robustdup_detect.record import DuplicatesRecord, save_duplicates, save_pairs
from robustdup_detect.search import approximate, import_faiss
from robustdup_detect.shards import SearchPlan
from robustdup_detect.sources import first_rows, open_sides, side_options, split_of
from robustdup_detect.stages import (
    Progress,
    choose,
    group_rows,
    index_images,
    learn_finder,
    note_index,
    read,
    search,
    shard_name,
)
from robustdup_detect.summary import SearchResult, make_record, pair_columns
from robustdup_detect.work import ShardWorker, WorkerSetup

SPREAD = 10000  # images from which several processes are worth their start


@dataclass
class StageTimes:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def stage(self, name: str) -> None:
        """Count the time since the last call under a name."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now


def detect(config: DetectConfig, folder: Path, **options: Any) -> DuplicatesRecord:
    """Find duplicates as `config` says; `options` are those of `run_detection`. Raises UserError and RunError."""
    if config.embedding == CLASSICAL:
        return run_detection(config, folder, **options)
    from robustdup_detect.embedding import open_embedder, try_embedder

    try_embedder(config.embedding)  # a mistake shows before anything is read
    return run_detection(config, folder, open_embedder=partial(open_embedder, config.embedding), **options)


def run_detection(
    config: DetectConfig, folder: Path, *, resume: bool = False, to: str | None = None, overwrite: bool = False,
    command: str = "", open_embedder: Callable[[], Embedder] | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> DuplicatesRecord:  # fmt: skip
    """Find duplicates as `config` says, and leave a record, all pairs and pictures of some in `folder`.

    With `to`, a deduplicated dataset is written there. With `resume` an unfinished run in `folder` goes on.
    `open_embedder` opens the network that `config.embedding` names, in every process that uses it (classical features if
    None). `progress(stage, done, total)` is told how far it is. Raises UserError for a mistake, RunError where the disk is full.
    """
    times = StageTimes()
    if to is not None:
        _check_written(config, to, overwrite)
        if config.n is not None:
            raise UserError(
                "--n looks at a part of the images, so that --to could leave duplicates in. Leave out one of the two.",
                code="bad-option",
            )
    config, own, source = open_sides(config)
    names = [config.split] if config.against is None else [config.split, config.against]
    if config.n is not None:
        source = first_rows(source, names, config.n)
    opened = {
        name: open_with_any_labels(
            source.get(name), side_options(config, name), "{} ({})".format(*split_of(config, name))
        )
        for name in names
    }
    if config.keep == "consistent" and not opened[config.split][1].label:
        raise UserError(
            f"keep = consistent needs labels, which {config.data} ({config.split}) does not have.", code="no-label"
        )
    if approximate(config.search, max(len(dataset) for dataset, _ in opened.values())):
        import_faiss()  # where it is missing, that shows before anything is read
    start(folder, config.model_dump(mode="json"), resume=resume, elsewhere=ELSEWHERE)
    with locked(folder), freed_by_mistakes(folder, resume=resume):
        plan = SearchPlan(config, folder / STATE, {name: len(dataset) for name, (dataset, _) in opened.items()})
        for name in names:
            plan.store(name).create()
        note_index(plan)
        times.stage("open")
        total = sum(plan.rows.values())
        workers = config.workers or (len(usable_cores()) if config.runner == "local" and total >= SPREAD else None)
        plans = [plan, plan.among_new()] if config.add is not None else [plan]
        worker = ShardWorker(plan, open_embedder)
        for each in plans:
            setup = WorkerSetup(each, open_embedder)
            with open_runner(config.runner, workers, setup, devices=["cpu"], describe=shard_name) as runner:
                if each is plan:
                    read(runner, plan, progress)
                    times.stage("read")
                    known = index_images(plan)
                    groups = {name: group_rows(plan, name) for name in names}
                    learn_finder(worker, names)
                    times.stage("learn")
                search(runner, each, progress, times.stage)
        calibration = choose(worker, plans, progress)
        times.stage("calibrate")
        pairs = best_first(joined([collect_pairs(each, groups, calibration.threshold) for each in plans]))
        result = search_result(plan, pairs, calibration, {n: c for n, (_, c) in opened.items()}, source)
        times.stage("cluster")
        record = make_record(result, folder, seconds=times.seconds, command=command)
        record = record.model_copy(update={"notes": [*record.notes, *([known] if known else [])]})
        save_pairs(pair_columns(result), folder)
        save_leaving(result, folder)
        times.stage("show")
        if to is not None:
            record = record.model_copy(update={"deduplicated": to})
            write_deduplicated(
                own, config, record, result.leaving, to=user_path(to),
                broken=result.broken, paths=_all_paths(own, config, result),
                progress=lambda done, total: progress("write", done, total),
            )  # fmt: skip
            times.stage("write")
        record = record.model_copy(update={"seconds": times.seconds})
        save_duplicates(record, folder)
        return record


def _all_paths(source: Splits, config: DetectConfig, result: SearchResult) -> dict[str, list[str]]:
    """Return the files of the rows of every split, those that were not searched too."""
    image = result.columns[config.split].image
    return {
        name: result.paths[name] if name in result.paths
        else dataset_paths(split, image, config.data) if image in split.column_names else [""] * len(split)
        for name, split in source.splits.items()
    }  # fmt: skip


def _check_written(config: DetectConfig, to: str, overwrite: bool) -> None:
    if to.startswith("hub:"):
        raise UserError(
            f"A deduplicated dataset is written to a folder, not to {to!r}. Push the folder from there.",
            code="bad-value",
        )
    check_target(to, overwrite=overwrite)
    target = user_path(to).resolve()
    for data in (config.data, config.add, config.against_data):
        source = user_path(data or "").resolve()
        if data is not None and (target == source or target in source.parents or source in target.parents):
            raise UserError(
                f"The deduplicated dataset must not lie in or around its source {data!r}. Choose another.",
                code="bad-value",
            )
