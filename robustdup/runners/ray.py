"""Workers on a Ray cluster: actors that hold what the setup made, replaced when an actor or its node is lost.

Connects to the cluster that RAY_ADDRESS names, or starts one on this machine. https://docs.ray.io/en/latest/ray-core/actors.html
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from robustdup.errors import RunError, Unavailable, error_text, how_to_install
from robustdup.runners.pool import Death, Pool, PoolOptions, Runner
from robustdup.runners.worker import (
    WorkerPlace,
    answer,
    begin,
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
    options: PoolOptions,
) -> Runner:
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
    # A replacement is our business: Ray's own restart would lose the setup.
    actor_class = ray.remote(num_cpus=threads, num_gpus=gpu_share, max_restarts=0, max_task_retries=0)(Actor)
    room, needs, total_workers = Room(), f"{threads} CPUs and {gpu_share:g} GPUs", workers

    def launch(number: int) -> Remote:
        actor = actor_class.remote(number, total_workers, devices, threads, gpu_share)
        return Remote(ray, actor, room, needs)

    try:
        pool = Pool(
            workers, launch, to_bytes("the setup to a worker", setup, ray.cloudpickle.dumps), options,
            ray.cloudpickle.dumps,
        )  # fmt: skip
    except BaseException:
        if owned:
            ray.shutdown()
        raise
    if owned:
        pool.finish = ray.shutdown
    return pool


def import_ray() -> Any:
    """Return the module ray; Unavailable with what to install where it is missing."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise Unavailable(
            f"The runner 'ray' needs the package ray ({error}): {how_to_install('robustdup[ray]')}"
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
        problem = (
            f"There is no Ray cluster at RAY_ADDRESS={address}" if address else "Ray did not start on this machine"
        )
        raise RunError(f"{problem}: {error_text(error)}") from error
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


class Room:
    """Whether the cluster has room: when a worker last had a place, and how many have."""

    def __init__(self) -> None:
        self.placed, self.since = 0, time.monotonic()

    def wait_for(self, ray: Any, here: Any, needs: str, ended: Callable[[], bool]) -> None:
        """Wait until an actor is placed. Raises RunError where the cluster has had no room for any for a long time."""
        while not ray.wait([here], timeout=0.5)[0]:
            if ended():
                raise Death("was ended before there was room for it", hopeless=True)
            if self.placed:
                self.since = time.monotonic()
            elif time.monotonic() - self.since > PATIENCE:
                raise RunError(
                    f"The Ray cluster had no room for a worker for {PATIENCE:.0f} s: each needs {needs}; "
                    f"the cluster has {ray.cluster_resources()}."
                )
        self.placed += 1


class Remote:
    """A worker that is an actor."""

    def __init__(self, ray: Any, actor: Any, room: Room, needs: str):
        self._ray, self._actor, self._room, self._needs = ray, actor, room, needs
        self._gone = False

    def begin(self, setup: bytes) -> bytes:
        """Do the setup, once the cluster has room."""
        self._room.wait_for(self._ray, self._actor.here.remote(), self._needs, lambda: self._gone)
        return self._get(self._actor.start.remote(setup), None)

    def call(self, payload: bytes, seconds: float | None, hear: Callable[[bytes], None]) -> bytes:
        """Answer a payload; actors send no notes."""
        return self._get(self._actor.call.remote(payload), seconds)

    def _get(self, answer: Any, seconds: float | None) -> bytes:
        errors = self._ray.exceptions
        try:
            reply: bytes = self._ray.get(answer, timeout=seconds)
            return reply
        except errors.GetTimeoutError:
            self.stop(hard=True)
            raise Death(f"took longer than {seconds:g} s", timed_out=True) from None
        except errors.RayError as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            self.stop(hard=True)  # it may be alive and only out of reach
            hopeless = isinstance(error, errors.RuntimeEnvSetupError) or getattr(error, "actor_init_failed", False)
            hint = "; every node needs the same robustdup" if hopeless else ""
            raise Death(f"was lost ({type(error).__name__}: {first}){hint}", hopeless=hopeless) from None

    def alive(self) -> bool:
        """Return whether the actor was not lost."""
        return not self._gone

    def stop(self, hard: bool) -> None:
        """End the actor."""
        if self._gone:
            return
        self._gone = True
        with contextlib.suppress(Exception):  # gone already, or the cluster with it
            self._ray.kill(self._actor, no_restart=True)

    def end(self) -> None:
        """End the actor."""
        self.stop(hard=True)
