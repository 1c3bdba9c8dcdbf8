"""Workers on a Ray cluster: actors that hold what the setup made, replaced when an actor or its node is lost.

Connects to the cluster that RAY_ADDRESS names, or starts one on this machine. https://docs.ray.io/en/latest/ray-core/actors.html
"""

from __future__ import annotations

import importlib
import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from robustdup.errors import RunError, Unavailable
from robustdup.runners.pool import Death, Pool, Runner, Slot
from robustdup.runners.worker import (
    WorkerPlace,
    answer,
    begin,
    error_text,
    limit_threads,
    to_bytes,
)

Setup = Callable[[WorkerPlace], Callable[[Any], Any]]

PATIENCE = 600.0  # seconds in which a cluster may find room for a first worker (clusters that grow need minutes)


def open_ray(
    workers: int | None,
    setup: Setup,
    *,
    devices: Sequence[str] | None,
    threads: int | None,
    retries: int,
    describe: Callable[[Any], str] | None,
) -> Runner[Any, Any]:
    """Open a runner of Ray actors; the arguments are those of `open_runner`. Raises Unavailable without ray."""
    ray = import_ray()
    threads = threads or 1
    owned = connect(ray, (workers or 1) * threads)
    total = ray.cluster_resources()
    gpus = (
        0.0 if devices is not None and not any(name.startswith("cuda") for name in devices) else total.get("GPU", 0.0)
    )
    workers = workers or int(gpus) or max(int(total.get("CPU", 1)) // threads, 1)
    # Workers that share a GPU get equal parts of it.
    gpu_share = 1 / math.ceil(workers / gpus) if gpus else 0.0
    return Actors(
        ray, setup, workers, devices=devices, threads=threads, gpus=gpu_share, owned=owned,
        retries=retries, describe=describe,
    )  # fmt: skip


def import_ray() -> Any:
    """Return the module ray; Unavailable with what to install where it is missing."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise Unavailable(
            f"The runner 'ray' needs the package ray ({error}): uv sync --extra ray, or pip install 'robustdup[ray]'."
        ) from error


def connect(ray: Any, cpus: int) -> bool:
    """Connect to the cluster, or start one here with room for `cpus` threads; True if this process must leave it."""
    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address:
            _knock(address)
            ray.init(address=address, **quiet)
        else:
            ray.init(address="local", num_cpus=max(cpus, os.cpu_count() or 1), include_dashboard=False, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        what = f"There is no Ray cluster at RAY_ADDRESS={address}" if address else "Ray did not start on this machine"
        raise RunError(f"{what}: {error_text(error)}") from error
    return True


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at host:port. Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


class Actor:
    """A worker: its setup is a call like a payload's, so that its failure is a reply and not a dead actor."""

    def __init__(self, number: int, workers: int, devices: Sequence[str] | None, threads: int, gpus: float):
        limit_threads(threads)
        # Ray shows an actor only the GPUs that are reserved for it, numbered from 0.
        device = devices[number % len(devices)] if devices and not gpus else ("cuda:0" if gpus else "cpu")
        self.place = WorkerPlace(number, workers, device, threads)
        self.function: Callable[[Any], Any] | None = None

    def here(self) -> bool:
        """Say that there was room for this actor."""
        return True

    def start(self, setup: bytes) -> bytes:
        """Do the setup."""
        self.function, reply = begin(setup, self.place)
        return reply

    def call(self, payload: bytes) -> bytes:
        """Answer a payload."""
        assert self.function is not None
        return answer(self.function, payload, importlib.import_module("ray").cloudpickle.dumps)


@dataclass(eq=False)
class Remote:
    """An actor, the answer that is awaited from it, and whether the cluster found room for it (`here`)."""

    actor: Any
    awaited: Any
    here: Any
    placed: bool = False


class Actors(Pool[Remote]):
    """The runner of Ray actors."""

    def __init__(
        self,
        ray: Any,
        setup: Setup,
        workers: int,
        *,
        devices: Sequence[str] | None,
        threads: int,
        gpus: float,
        owned: bool,
        retries: int,
        describe: Callable[[Any], str] | None,
    ):
        super().__init__(workers, retries=retries, describe=describe)
        self._ray = ray
        self._owned = owned
        self._dumps = ray.cloudpickle.dumps
        self._arguments = (devices, threads, gpus)
        # A replacement is our business: Ray's own restart would lose the setup.
        self._class = ray.remote(num_cpus=threads, num_gpus=gpus, max_restarts=0, max_task_retries=0)(Actor)
        self._last_placed = time.monotonic()
        try:
            self._setup = ray.put(to_bytes("the setup to a worker", setup, self._dumps))
            for number in range(workers):
                self._slots.append(Slot(number, self._start(number)))
        except BaseException:
            self.close()
            raise

    def _start(self, number: int) -> Remote:
        actor = self._class.remote(number, self.workers, *self._arguments)
        here = actor.here.remote()
        return Remote(actor, actor.start.remote(self._setup), here)

    def _give(self, handle: Remote, payload: bytes) -> None:
        handle.awaited = handle.actor.call.remote(payload)

    def _wait(self, slots: list[Slot[Remote]]) -> list[tuple[Slot[Remote], bytes | Death]]:
        awaiting = {slot.handle.awaited: slot for slot in slots if slot.handle.awaited is not None}
        done, _ = self._ray.wait(list(awaiting), num_returns=1, timeout=0.5)
        if not done:
            self._check_room(slots)
        return [(awaiting[answer], self._fetch(awaiting[answer])) for answer in done]

    def _fetch(self, slot: Slot[Remote]) -> bytes | Death:
        errors = self._ray.exceptions
        handle = slot.handle
        awaited, handle.awaited = handle.awaited, None
        try:
            reply: bytes = self._ray.get(awaited)
            return reply
        except errors.RayError as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            self._kill(handle)  # it may be alive and only out of reach
            hopeless = isinstance(error, errors.RuntimeEnvSetupError) or getattr(error, "actor_init_failed", False)
            hint = "; every node needs the same robustdup" if hopeless else ""
            return Death(f"was lost ({type(error).__name__}: {first}){hint}", hopeless)

    def _check_room(self, slots: list[Slot[Remote]]) -> None:
        """Raise RunError where the cluster has had no room for any worker for a long time."""
        for slot in slots:
            if not slot.handle.placed:
                slot.handle.placed = bool(self._ray.wait([slot.handle.here], timeout=0)[0])
        if any(slot.handle.placed for slot in slots):
            self._last_placed = time.monotonic()
        elif time.monotonic() - self._last_placed > PATIENCE:
            _, threads, gpus = self._arguments
            raise RunError(
                f"The Ray cluster had no room for a worker for {PATIENCE:.0f} s: each needs {threads} CPUs and {gpus:g} GPUs; "
                f"the cluster has {self._ray.cluster_resources()}."
            )

    def _kill(self, handle: Remote) -> None:
        try:
            self._ray.kill(handle.actor, no_restart=True)
        except Exception:  # gone already, or the cluster with it
            return

    def _end(self, slots: list[Slot[Remote]]) -> None:
        for slot in slots:
            self._kill(slot.handle)
        if self._owned:
            self._ray.shutdown()
