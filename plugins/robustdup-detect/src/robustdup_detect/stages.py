"""The stages of a search, as the parent hands them to workers: read, learn, compare, match, calibrate."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from robustdup.errors import UserError
from robustdup.records import write_atomic
from robustdup.runners import Runner
from robustdup_detect.calibrate import (
    Calibration,
    annotated_recall,
    calibrate,
    compared,
    made_copies,
)
from robustdup_detect.features import SIZE
from robustdup_detect.groups import Groups, group_identical
from robustdup_detect.image_index import PairKind, add_images, add_pairs, load_opened, open_index, save_opened
from robustdup_detect.options import CLASSICAL
from robustdup_detect.pairs import learn
from robustdup_detect.search import approximate, build_index
from robustdup_detect.shards import SearchPlan, Shard, Work, load_candidates, load_new_pairs, shards_of
from robustdup_detect.words import FEWEST, WORDS_FILE, learn_words, save_words
from robustdup_detect.work import FINDER_FILE, INDEX_FILE, ShardWorker, database, load_finder, save_finder, score_of

Progress = Callable[[str, int, int], None]  # stage, done, total
Stage = Callable[[str], None]  # told the name of a stage that is over

LEARN_ROWS = 8000  # rows among which those are that a projection is learned from
WORD_ROWS = 2000  # images from whose local features words are learned
LEARN_LARGE = 2000  # the same for pictures of more than 32 x 32 pixels


def shard_name(shard: Shard) -> str:
    """Return what a piece of work is called in messages."""
    return f"rows {shard.start} to {shard.stop - 1} of {shard.split} ({shard.work})"


def _do(runner: Runner, stage: str, tasks: Iterable[Shard], total: int, progress: Progress) -> None:
    done = 0
    progress(stage, 0, total)
    for rows in runner.map(tasks):
        done += rows
        progress(stage, done, total)


def read(runner: Runner, plan: SearchPlan, progress: Progress) -> None:
    """Decode all images of all splits."""
    _do(runner, "read", shards_of(plan, "read", plan.rows), sum(plan.rows.values()), progress)


def note_index(plan: SearchPlan) -> None:
    """Note which parts of the index this run reads; a resumed run reads the same ones."""
    if plan.config.index is not None and not (plan.state / "index.json").is_file():
        save_opened(open_index(plan.config.index, plan.config), plan.state)


def index_images(plan: SearchPlan) -> str:
    """Add the images that were read to the index, and say how many were in it."""
    if plan.config.index is None:
        return ""
    index = load_opened(plan.state)
    stores = [plan.store(name) for name in plan.rows]
    known = sum(int(index.known_keys(np.array(store.read("keys"))).sum()) for store in stores)
    add_images(index, stores)
    damaged = f" Parts that are damaged were not used: {', '.join(index.damaged)}." if index.damaged else ""
    return f"Index {plan.config.index}: {known:,} of {sum(plan.rows.values()):,} images were in it.{damaged}"


def _index_pairs(plan: SearchPlan, kind: PairKind, work: Work, rows: int) -> None:
    if plan.config.index is not None:
        add_pairs(load_opened(plan.state), kind, load_new_pairs(plan, kind, work, rows))


def group_rows(plan: SearchPlan, split: str) -> Groups:
    """Group the identical rows of a split, keep which are different, and raise UserError where none can be read."""
    store = plan.store(split)
    readable = np.flatnonzero(store.read("facts")[:, 3] == 1)
    if not len(readable):
        raise UserError(f"None of the {store.n} images of {plan.config.data} ({split}) can be read.", code="no-data")
    groups = group_identical(np.array(store.read("hashes")[readable]))
    np.save(store.folder / "readable.npy", readable)
    np.save(store.folder / "different.npy", readable[groups.first])
    return groups


def learn_finder(worker: ShardWorker, names: Iterable[str]) -> None:
    """Learn how candidates are found; what a killed run had learned is used again."""
    plan, splits = worker.plan, list(names)
    if (plan.state / FINDER_FILE).is_file():
        return
    rng = np.random.default_rng(plan.config.seed)
    sample, most = [], LEARN_ROWS if worker.embedder.size == SIZE else LEARN_LARGE
    for name in splits:
        rows = plan.different_rows(name)
        rows = np.sort(rng.permutation(rows)[: most // len(splits)])
        sample.append(worker.pictures(name, rows))
    save_finder(learn(torch.cat(sample), plan.config.seed, worker.embedder), plan.state)


def search(runner: Runner, plan: SearchPlan, progress: Progress, stage: Stage) -> None:
    """Embed the images that are asked, and compare all others with them, as a whole and by local features."""
    config, total = plan.config, plan.rows[plan.asked]
    _do(runner, "embed", shards_of(plan, "embed", {plan.asked: total}), total, progress)
    stage("embed")
    others, index = plan.different_rows(plan.asked), plan.folder(plan.asked) / INDEX_FILE
    if approximate(config.search, len(others)):
        if not index.is_file():
            build_index(database(plan, others).numpy(), index)
        stage("index")
    rows = len(plan.different_rows(plan.asking))
    _do(runner, f"{plan.tag}compare", shards_of(plan, "compare", {plan.asking: rows}), rows, progress)
    _index_pairs(plan, "pairs", "compare", rows)
    stage("compare")
    _match(runner, plan, progress)
    _index_pairs(plan, "local", "match", len(plan.local_rows(plan.asking)))
    stage("local")


def _match(runner: Runner, plan: SearchPlan, progress: Progress) -> None:
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
    _do(runner, f"{plan.tag}match", shards_of(plan, "match", {plan.asking: len(rows)}), len(rows), progress)


def choose(worker: ShardWorker, plans: Sequence[SearchPlan], progress: Progress) -> Calibration:
    """Choose the threshold, and look for made copies."""
    plan = worker.plan
    config = plan.config
    progress("calibrate", 0, 1)
    score = score_of(config)
    seen = compared([load_candidates(each) for each in plans])
    calibration = calibrate(
        seen, len(plan.different_rows(plan.asking)), score, target=config.precision, threshold=config.threshold
    )
    if calibration.tail is not None and _as_annotated(plan):
        calibration = replace(calibration, recall=annotated_recall(seen, calibration.tail, calibration.threshold))
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


def _as_annotated(plan: SearchPlan) -> bool:
    """Whether images are searched as those whose annotated pairs are known: by the same features, as small pictures alone."""
    if plan.config.embedding != CLASSICAL:
        return False
    return not any(len(plan.local_rows(split)) for split in (plan.asking, plan.asked))
