"""Running the missing cells of a study: each once, in workers here or on a cluster, each result written as it comes.

A cell's folder holds `cell.json` once it is done, whole or not at all. Cells that fail are kept and the rest goes on; a cell
whose worker was killed is tried again, and given up after a few deaths.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from robustdup.errors import RobustdupError, RunError, UserError, error_text, plain
from robustdup.records import is_of_disk, now
from robustdup.records.folder import STATE, locked
from robustdup.runners import Death, WorkerPlace, open_runner
from robustdup.runners.local import usable_cores, visible_gpus
from robustdup_study.cell_record import CELL_FILE, CellOrder, CellResult, CellStep, load_cell, save_cell
from robustdup_study.recipe import StudyConfig
from robustdup_study.records import StudyProgress

CELLS = "cells"
LOG_FILE = "log.jsonl"


RunCell = Callable[[CellOrder], CellResult]


@dataclass(frozen=True)
class Where:
    """How the cells are run: the kind of runner, how many at a time, their devices, threads, and how many tries."""

    runner: str = "local"
    workers: int | None = None
    devices: tuple[str, ...] | None = None
    threads: int | None = None
    retries: int = 2


def choose_where(config: StudyConfig) -> Where:
    """Return how a recipe's cells are run: one for each GPU, else one for each core, where it does not say."""
    devices: tuple[str, ...] | None
    if config.runner != "local":
        devices = None if config.device == "auto" else (config.device,)
        return Where(config.runner, config.workers, devices, config.threads, config.retries)
    devices = (config.device,) if config.device != "auto" else tuple(visible_gpus()) or ("cpu",)
    usual = len(usable_cores()) if devices == ("cpu",) else len(devices)
    return Where("local", config.workers or usual, devices, config.threads, config.retries)


@contextlib.contextmanager
def study_folder(folder: Path) -> Iterator[None]:
    """Hold a study's folder for this process. Raises UserError where another study is at work in it."""
    (folder / STATE).mkdir(parents=True, exist_ok=True)
    with locked(folder):
        yield


def cell_folder(folder: Path, key: str) -> Path:
    """Return the folder of a cell."""
    return folder / CELLS / key


def results(folder: Path, keys: Sequence[str]) -> dict[str, CellResult]:
    """Return the results that are there, by key; a damaged one counts as missing, and is said by `damaged`."""
    cells = {}
    for key in keys:
        path = cell_folder(folder, key) / CELL_FILE
        if path.is_file():
            with contextlib.suppress(RobustdupError):
                cells[key] = _cell_of(path, key)
    return cells


def _cell_of(path: Path, key: str) -> CellResult:
    """Return the result in a cell's folder. Raises UserError where it is another cell's."""
    result = load_cell(path)
    if result.key != key:
        raise UserError(f"{str(path)!r} is of another cell ({plain(result.key, 60)}).", code="other-record")
    return result


def unreadable(folder: Path, keys: Sequence[str]) -> list[str]:
    """Return what is wrong with results that cannot be read: of a newer schema, or damaged."""
    wrong = []
    for key in keys:
        path = cell_folder(folder, key) / CELL_FILE
        if path.is_file():
            try:
                _cell_of(path, key)
            except RobustdupError as error:
                wrong.append(str(error))
    return wrong


def run_cells(
    orders: Mapping[str, CellOrder], run_cell: RunCell, where: Where, folder: Path, *, retry: bool = False,
    progress: Callable[[StudyProgress], None] = lambda _: None,
) -> None:  # fmt: skip
    """Run the cells that have no result yet; with `retry` also those that failed. The folder must be held.

    Raises KeyboardInterrupt when stopped (what is finished stays), and RunError where no cell can run at all.
    """
    done = results(folder, list(orders))
    if retry:
        for key in [key for key, result in done.items() if result.status == "failed"]:
            (cell_folder(folder, key) / CELL_FILE).unlink()
            del done[key]
    left = [order for key, order in orders.items() if key not in done]
    tally = _Tally(len(orders), done, progress, workers=1)
    tally.show()
    if not left:
        return
    workers = None if where.workers is None else min(where.workers, len(left))
    with open_runner(
        where.runner, workers, functools.partial(cell_worker, run_cell), devices=where.devices, threads=where.threads,
        retries=where.retries, describe=lambda order: f"cell {order.key}",
        lost=lambda order, death: _given_up(order, death, where.retries + 1),
    ) as runner:  # fmt: skip
        tally.workers = runner.workers
        for result in runner.map(left, ordered=False, listener=tally.hear):
            place = cell_folder(folder, result.key)
            if not (place / CELL_FILE).is_file():  # the worker's disk was not ours, or it died
                save_cell(result, place)
            tally.add(result)


def _given_up(order: CellOrder, death: Death, tries: int) -> CellResult:
    """Return the result of a cell whose workers kept dying; the other workers go on with theirs."""
    who = (
        "the worker that tried it died; it"
        if tries == 1
        else f"each of the {tries} workers that tried it died; the last"
    )
    error = f"Gave up on cell {order.key}: {who} {death.how}."
    return CellResult(key=order.key, created=now(), status="failed", error=error, config=order.settings)


class _Tally:
    """Counts what is done and guesses the time left from the mean time of the cells run so far."""

    def __init__(
        self, total: int, done: Mapping[str, CellResult], progress: Callable[[StudyProgress], None], workers: int
    ) -> None:
        self.total, self.workers, self._progress = total, workers, progress
        self.seen = set(done)
        self.under_way: dict[str, str] = {}
        self._failed = sum(result.status == "failed" for result in done.values())
        self._started, self._before, self._spent = time.perf_counter(), len(done), 0.0

    def add(self, result: CellResult) -> None:
        """Count a result and show where the study stands."""
        self.seen.add(result.key)
        self.under_way.pop(result.key, None)
        self._failed += result.status == "failed"
        self._spent += result.seconds
        self.show(f"{result.key} failed: {result.error}" if result.status == "failed" else "")

    def hear(self, note: object) -> None:
        """Take what a worker tells of the cell that it is at."""
        if isinstance(note, CellStep) and note.key not in self.seen:
            self.under_way[note.key] = f"{note.step}/{note.n_steps}"
            self.show()

    def show(self, message: str = "") -> None:
        """Tell where the study stands."""
        done, run = len(self.seen), len(self.seen) - self._before
        left = self._spent / run * (self.total - done) / max(self.workers, 1) if run else None
        self._progress(
            StudyProgress(
                done=done, failed=self._failed, total=self.total, workers=self.workers,
                seconds=time.perf_counter() - self._started, seconds_left=left, message=message,
                under_way=f"training at step {', '.join(self.under_way.values())}" if self.under_way else "",
            )
        )  # fmt: skip


def cell_worker(run_cell: RunCell, place: WorkerPlace) -> RunCell:
    """Set up a worker that runs cells on its device, with its threads."""
    return functools.partial(run_once, run_cell, place)


def run_once(run_cell: RunCell, place: WorkerPlace, order: CellOrder) -> CellResult:
    """Run a cell unless its result is there, write the result, and return it. What the cell raises is its result too.

    Raises RunError where the disk takes no more: that says nothing of the cell, which is run again once there is room.
    """
    folder = Path(order.folder)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):  # a worker that a killed study left behind may still be at it for a moment
        if (folder / CELL_FILE).is_file():
            return load_cell(folder / CELL_FILE)
        device = place.device or ("cpu" if order.device == "auto" else order.device)
        order = order.model_copy(update={"device": device, "threads": place.threads})
        log(folder, order.key, "start")
        started = time.perf_counter()
        try:
            result = run_cell(order)
        except Exception as error:
            if is_of_disk(error):
                raise RunError(
                    f"{error_text(error)} The study stops, and no cell is marked as failed: make room, and run it again.",
                    code="cannot-write",
                ) from error
            text = str(error) if isinstance(error, RobustdupError) else f"{type(error).__name__}: {error}"
            result = CellResult(key=order.key, created=now(), status="failed", error=text, config=order.settings)
        result.seconds, result.host = time.perf_counter() - started, socket.gethostname()
        save_cell(result, folder)
        log(folder, order.key, result.status)
    return result


def log(folder: Path, key: str, event: str) -> None:
    """Add a line to the study's log: which cell started or ended when, and in which process."""
    line = json.dumps({"time": time.time(), "cell": key, "event": event, "pid": os.getpid(), "host": platform.node()})
    with (
        contextlib.suppress(OSError),
        (folder.parent.parent / LOG_FILE).open("a") as file,
    ):  # a full disk is said elsewhere
        file.write(line + "\n")  # one write of a short line: whole or not there
