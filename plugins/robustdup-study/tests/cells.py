"""Quick stand-ins for the training of a cell: pure functions of the settings, importable by worker processes."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

from robustdup_study.cell_record import CELL_FILE, CellOrder, CellResult, CellStep, Measurement

from robustdup.errors import UserError
from robustdup.records import now
from robustdup.runners import tell


def quick(order: CellOrder) -> CellResult:
    """Accuracy falls by a tenth of the dose; 0.02 s."""
    time.sleep(order.settings.get("sleep", 0.02))
    for other in order.settings.get("until", []):
        while not (Path(order.folder).parent / other / CELL_FILE).is_file():
            time.sleep(0.02)
    metrics = {"clean_accuracy": 0.9 - 0.1 * order.settings.get("dose", 0), "robust_accuracy": 0.3}
    return CellResult(
        key=order.key,
        created=now(),
        status="complete",
        measurements=[Measurement(metrics=metrics)],
        config=order.settings,
    )


def telling(order: CellOrder) -> CellResult:
    """Say once at which step it is."""
    tell(CellStep(order.key, 3, 8))
    return quick(order)


def sometimes_fails(order: CellOrder) -> CellResult:
    if order.settings.get("fail") == "user":
        raise UserError("the dose is too high")
    if order.settings.get("fail") == "crash":
        raise ZeroDivisionError("division by zero")
    if order.settings.get("fail") == "full":
        raise OSError(errno.ENOSPC, "No space left on device")
    return quick(order)


def dies(order: CellOrder) -> CellResult:
    """Kills its own process on the cells that are told to die."""
    if order.settings.get("fail") == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return quick(order)


def dies_once(order: CellOrder) -> CellResult:
    marker = Path(order.folder) / "tried"
    if order.settings.get("fail") == "die" and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return quick(order)
