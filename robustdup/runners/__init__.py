"""Runners: map a function over independent payloads, in this process, in local processes or on a Ray cluster.

    with open_runner("local", 4, setup) as runner:
        for result in runner.map(payloads):
            ...

`setup(place)` runs once in each worker and returns the function that the payloads are given to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from robustdup.errors import UserError, unknown
from robustdup.runners.pool import Death, PoolOptions, Runner
from robustdup.runners.worker import WorkerPlace, tell

__all__ = ["KINDS", "Death", "Runner", "WorkerPlace", "open_runner", "tell"]

KINDS = ("local", "ray")


def open_runner(
    kind: str,
    workers: int | None,
    setup: Callable[[WorkerPlace], Callable[[Any], Any]],
    *,
    devices: Sequence[str] | None = None,
    threads: int | None = None,
    retries: int = 2,
    describe: Callable[[Any], str] | None = None,
    seconds: float | None = None,
    lost: Callable[[Any, Death], Any] | None = None,
) -> Runner:
    """Open `workers` workers of a kind: "local" (one worker: this process; more: processes) or "ray" (actors).

    `workers` None: one for each GPU; without GPUs one on "local", one for each core on "ray". `setup` and the payloads are
    pickled where there are several workers. `devices` are shared out in turn (worker i gets number i modulo their count);
    None: the GPUs that are there, if any. `threads` is the number of CPU threads a worker; None: an even share of the
    cores ("local"), 1 ("ray"). A payload whose worker dies is tried `retries` more times. `describe(payload)` is what
    error messages call it. A payload that takes longer than `seconds` ends its worker, which then is a process of its own
    even where it is the only one. `lost(payload, death)` gives the result of a payload that is given up; without it that
    is a RunError.
    Raises UserError (unknown kind, workers < 1, a setup that cannot be sent, several workers from a daemonic process)
    and Unavailable where ray is not installed.
    """
    if kind not in KINDS:
        raise unknown("runner", kind, KINDS)
    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and value < 1:
            raise UserError(f"{name} = {value}: it must be at least 1.", code="bad-value")
    if retries < 0:
        raise UserError(f"retries = {retries}: it must be at least 0.", code="bad-value")
    options = PoolOptions(retries, describe, seconds, lost)
    if kind == "ray":
        from robustdup.runners.ray import open_ray as open_here
    else:
        from robustdup.runners.local import open_local as open_here
    return open_here(workers, setup, devices=devices, threads=threads, options=options)
