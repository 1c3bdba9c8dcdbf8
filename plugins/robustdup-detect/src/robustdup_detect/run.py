"""From a configuration to a record of duplicates: read, embed, calibrate, compare, cluster, show."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustdup.data.splits import Splits, open_splits
from robustdup.duplication.write import check_target
from robustdup.errors import UserError, unknown
from robustdup.records import write_atomic
from robustdup.records.folder import STATE, freed_by_mistakes, locked, start
from robustdup.runners import Runner, open_runner
from robustdup.runners.local import usable_cores
from robustdup_detect.calibrate import Calibration, calibrate, made_copies
from robustdup_detect.collect import collect_pairs, search_result
from robustdup_detect.dedup import write_deduplicated
from robustdup_detect.features import SIZE, Embedder
from robustdup_detect.groups import Groups, group_identical
from robustdup_detect.labels import open_columns
from robustdup_detect.options import CLASSICAL, ELSEWHERE, DetectConfig
from robustdup_detect.pairs import learn
from robustdup_detect.paths import dataset_paths
from robustdup_detect.record import DuplicatesRecord, save_duplicates, save_pairs
from robustdup_detect.search import LARGE, build_index, import_faiss
from robustdup_detect.shards import SearchPlan, Shard, load_odds, shards_of
from robustdup_detect.summary import SearchResult, make_record, pair_columns
from robustdup_detect.words import FEWEST, WORDS_FILE, learn_words, save_words
from robustdup_detect.work import (
    FINDER_FILE,
    INDEX_FILE,
    ShardWorker,
    WorkerSetup,
    database,
    load_finder,
    save_finder,
    score_of,
)

Progress = Callable[[str, int, int], None]  # stage, done, total

LEARN_ROWS = 8000  # rows among which those are that a projection is learned from
WORD_ROWS = 2000  # images from whose local features words are learned
LEARN_LARGE = 2000  # the same for pictures of more than 32 x 32 pixels
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


def _named_splits(config: DetectConfig, source: Splits) -> tuple[DetectConfig, Splits]:
    """Return the configuration with the names that its splits really have, and the splits with what to tell of it."""
    split, told = source.name_of(config.split)
    changes = {"split": split}
    if config.against is not None:
        changes["against"], more = source.name_of(config.against)
        if changes["against"] == split and config.against not in source.splits and config.against != config.split:
            raise unknown(f"split of {config.data}:", config.against, source.splits)  # no other split stands in for it
        told = (*told, *more)
    return config.model_copy(update=changes), replace(source, notes=(*source.notes, *told))


def _first_rows(source: Splits, names: list[str], n: int) -> Splits:
    """Return the splits with the first n rows of those that are named, and notes that say so."""
    parts = {name: source.get(name) for name in names}
    notes = [
        f"Only the first {n:,} of {len(split):,} images of {name} were looked at (n = {n})."
        for name, split in parts.items()
        if n < len(split)
    ]
    cut = {name: split.select(range(min(n, len(split)))) for name, split in parts.items()}
    return replace(source, splits={**source.splits, **cut}, notes=(*source.notes, *notes))


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
    if config.search == "faiss":
        import_faiss()
    source = open_splits(config.data, config.data_options())
    config, source = _named_splits(config, source)
    names = [config.split] if config.against is None else [config.split, config.against]
    if len(set(names)) < len(names):
        raise UserError(
            f"split and against are both {config.split!r}: leave out against for pairs within it.", code="bad-value"
        )
    if config.n is not None:
        source = _first_rows(source, names, config.n)
    opened = {
        name: open_columns(source.get(name), config.data_options(name), f"{config.data} ({name})") for name in names
    }
    if config.keep == "consistent" and not opened[config.split][1].label:
        raise UserError(
            f"keep = consistent needs labels, which {config.data} ({config.split}) does not have.", code="no-label"
        )
    start(folder, config.model_dump(mode="json"), resume=resume, elsewhere=ELSEWHERE)
    with locked(folder), freed_by_mistakes(folder, resume=resume):
        plan = SearchPlan(config, folder / STATE, {name: len(dataset) for name, (dataset, _) in opened.items()})
        for name in names:
            plan.store(name).create()
        times.stage("open")
        total = sum(plan.rows.values())
        workers = config.workers or (len(usable_cores()) if config.runner == "local" and total >= SPREAD else None)
        with open_runner(
            config.runner, workers, WorkerSetup(plan, open_embedder), devices=["cpu"], describe=_name
        ) as runner:
            _do(runner, "read", shards_of(plan, "read", {n: plan.rows[n] for n in names}), total, progress)
            times.stage("read")
            groups = {name: _groups(plan, name) for name in names}
            worker = ShardWorker(plan, open_embedder)
            _learn(runner, worker, groups, progress, times)
            rows = len(plan.different_rows(plan.asking))
            _do(runner, "compare", shards_of(plan, "compare", {plan.asking: rows}), rows, progress)
            times.stage("compare")
            _match(runner, plan, progress)
        times.stage("local")
        calibration = _calibrate(worker, rows, progress)
        times.stage("calibrate")
        pairs = collect_pairs(plan, groups, rows, calibration.threshold)
        result = search_result(plan, pairs, calibration, {n: c for n, (_, c) in opened.items()}, source)
        times.stage("cluster")
        record = make_record(result, folder, seconds=times.seconds, command=command)
        save_pairs(pair_columns(result), folder)
        times.stage("show")
        if to is not None:
            record = record.model_copy(update={"deduplicated": to})
            write_deduplicated(
                source, config, record, result.leaving, to=Path(to).expanduser(),
                broken=result.broken, paths=_all_paths(source, config, result),
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
    target, source = Path(to).expanduser().resolve(), Path(config.data).expanduser().resolve()
    if target == source or target in source.parents or source in target.parents:
        raise UserError(
            f"The deduplicated dataset must not lie in or around its source {config.data!r}. Choose another.",
            code="bad-value",
        )


def _name(shard: Shard) -> str:
    return f"rows {shard.start} to {shard.stop - 1} of {shard.split} ({shard.work})"


def _do(runner: Runner[Shard, int], stage: str, tasks: Iterable[Shard], total: int, progress: Progress) -> None:
    done = 0
    progress(stage, 0, total)
    for rows in runner.map(tasks):
        done += rows
        progress(stage, done, total)


def _groups(plan: SearchPlan, split: str) -> Groups:
    """Group the identical rows of a split, keep which are different, and raise UserError where none can be read."""
    store = plan.store(split)
    readable = np.flatnonzero(store.read("facts")[:, 3] == 1)
    if not len(readable):
        raise UserError(f"None of the {store.n} images of {plan.config.data} ({split}) can be read.", code="no-data")
    groups = group_identical(np.array(store.read("hashes")[readable]))
    np.save(store.folder / "readable.npy", readable)
    np.save(store.folder / "different.npy", readable[groups.first])
    return groups


def _learn(
    runner: Runner[Shard, int], worker: ShardWorker, groups: dict[str, Groups], progress: Progress, times: StageTimes
) -> None:
    """Learn how candidates are found, embed all rows; what a killed run had learned is used again."""
    plan = worker.plan
    config, state = plan.config, plan.state
    if not (state / FINDER_FILE).is_file():
        rng = np.random.default_rng(config.seed)
        sample, most = [], LEARN_ROWS if worker.embedder.size == SIZE else LEARN_LARGE
        for name in groups:
            rows = plan.different_rows(name)
            rows = np.sort(rng.permutation(rows)[: most // len(groups)])
            sample.append(worker.pictures(name, rows))
        save_finder(learn(torch.cat(sample), config.seed, worker.embedder), state)
    times.stage("learn")
    _do(
        runner,
        "embed",
        shards_of(plan, "embed", {plan.asked: plan.rows[plan.asked]}),
        plan.rows[plan.asked],
        progress,
    )
    times.stage("embed")
    others = plan.different_rows(plan.asked)
    if config.search == "faiss" or (config.search == "auto" and len(others) >= LARGE):
        if not (state / INDEX_FILE).is_file():
            build_index(database(plan, others).numpy(), state / INDEX_FILE)
        times.stage("index")


def _match(runner: Runner[Shard, int], plan: SearchPlan, progress: Progress) -> None:
    """Look for pairs by local features, where images of both sides have them."""
    rows, asked = plan.local_rows(plan.asking), plan.local_rows(plan.asked)
    if not len(rows) or not len(asked):
        return
    if not (plan.state / WORDS_FILE).is_file():
        rng = np.random.default_rng([plan.config.seed, 3])
        sample = plan.store(plan.asked).keypoints(np.sort(rng.permutation(asked)[:WORD_ROWS]))
        descriptors = sample.descriptors[sample.filled]
        if len(descriptors) < FEWEST:
            return
        save_words(learn_words(descriptors, plan.config.seed), plan.state)
    total = plan.rows[plan.asked]
    _do(runner, "words", shards_of(plan, "words", {plan.asked: total}), total, progress)
    _do(runner, "match", shards_of(plan, "match", {plan.asking: len(rows)}), len(rows), progress)


def _calibrate(worker: ShardWorker, rows: int, progress: Progress) -> Calibration:
    """Choose the threshold, and look for made copies."""
    plan = worker.plan
    config = plan.config
    progress("calibrate", 0, 1)
    score = score_of(config)
    odds = load_odds(plan, rows)
    calibration = calibrate(odds, rows, score, target=config.precision, threshold=config.threshold)
    by_change, tried = made_copies(
        partial(worker.pictures, plan.asking), plan.different_rows(plan.asking),
        database(plan, plan.different_rows(plan.asked)), load_finder(plan.state), worker.embedder, score,
        threshold=calibration.threshold, seed=config.seed,
    )  # fmt: skip
    calibration = replace(calibration, recall_by_change=by_change, positives=tried)
    chosen = {"weights": score.weights, "bias": score.bias, "threshold": calibration.threshold}
    write_atomic(plan.state / "score.json", json.dumps(chosen).encode())
    progress("calibrate", 1, 1)
    return calibration
