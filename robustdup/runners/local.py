"""Workers on this machine: one in this process, several as spawned processes with their own cores, threads and GPU."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Self

from robustdup.errors import RobustdupError, RunError
from robustdup.runners.pool import Death, Pool, Runner, Slot, payload_name
from robustdup.runners.worker import (
    THREAD_VARIABLES,
    WorkerPlace,
    answer,
    begin,
    error_text,
    limit_threads,
    to_bytes,
)

Setup = Callable[[WorkerPlace], Callable[[Any], Any]]

HELLO = b""  # the first message of a worker: it asks for its setup
PATIENCE = 5.0  # seconds in which a worker that is asked to end may do so by itself


def open_local(
    workers: int | None,
    setup: Setup,
    *,
    devices: Sequence[str] | None,
    threads: int | None,
    retries: int,
    describe: Callable[[Any], str] | None,
) -> Runner[Any, Any]:
    """Open a runner on this machine; the arguments are those of `open_runner`."""
    devices = visible_gpus() if devices is None else devices
    workers = workers or len(devices) or 1
    cores = usable_cores()
    if workers == 1:
        place = WorkerPlace(0, 1, devices[0] if devices else None, threads or len(cores))
        return InProcess(setup, place, describe)
    return Processes(setup, places(workers, devices, threads, cores), cores, retries=retries, describe=describe)


def visible_gpus() -> list[str]:
    """Return "cuda:0", … for each GPU that torch sees."""
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]


def usable_cores() -> list[int]:
    """Return the numbers of the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def share(cores: Sequence[int], number: int, workers: int) -> list[int]:
    """Return the cores of worker `number`: neighbours, shares differ by one at most, one core in turn if too few."""
    if workers >= len(cores):
        return [cores[number % len(cores)]]
    return list(cores[number * len(cores) // workers : (number + 1) * len(cores) // workers])


def places(workers: int, devices: Sequence[str], threads: int | None, cores: Sequence[int]) -> list[WorkerPlace]:
    """Return the place of each worker."""
    return [
        WorkerPlace(
            number, workers, devices[number % len(devices)] if devices else None,
            threads or len(share(cores, number, workers)),
        )
        for number in range(workers)
    ]  # fmt: skip


class InProcess:
    """The runner of one worker: payloads are taken one by one, in this process, and nothing is pickled."""

    workers = 1

    def __init__(self, setup: Setup, place: WorkerPlace, describe: Callable[[Any], str] | None):
        self._setup = setup
        self._place = place
        self._describe = describe
        self._function: Callable[[Any], Any] | None = None

    def map(self, payloads: Iterable[Any]) -> Iterator[Any]:
        """Yield the results in the order of the payloads; see `Runner.map`."""
        for number, payload in enumerate(payloads):
            if self._function is None:
                with _named("Worker 0 failed to start"):
                    self._function = self._setup(self._place)
            with _named(f"Worker 0 failed on {payload_name(self._describe, number, payload)}"):
                result = self._function(payload)
            yield result

    def close(self) -> None:
        """Let go of what the setup made."""
        self._function = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """Raise what is not an error of robustdup as a RunError, as several workers do."""
    try:
        yield
    except RobustdupError:
        raise
    except Exception as error:
        raise RunError(f"{where}: {error_text(error)}") from error


@dataclass(eq=False)
class Child:
    """A worker process and this end of its pipe."""

    process: SpawnProcess
    pipe: Connection
    greeted: bool = False


class Processes(Pool[Child]):
    """The runner of several spawned processes."""

    _dumps = staticmethod(pickle.dumps)

    def __init__(
        self,
        setup: Setup,
        places: Sequence[WorkerPlace],
        cores: Sequence[int],
        *,
        retries: int,
        describe: Callable[[Any], str] | None,
    ):
        super().__init__(len(places), retries=retries, describe=describe)
        self._setup = to_bytes("the setup to a worker", setup)
        self._places = places
        self._cores = cores
        # Processes that nobody closed would keep this one from ending.
        atexit.register(self.close)
        try:
            for number in range(self.workers):
                self._slots.append(Slot(number, self._start(number)))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the workers, at once where they are at work. Closing twice is fine."""
        atexit.unregister(self.close)
        super().close()

    def _start(self, number: int) -> Child:
        place = self._places[number]
        cores = share(self._cores, number, self.workers)
        context = multiprocessing.get_context("spawn")
        pipe, far_end = context.Pipe()
        process = context.Process(
            target=_serve, args=(far_end, place, cores if place.threads <= len(cores) else None),
            name=f"robustdup-worker-{number}",
        )  # fmt: skip
        # The child imports the main module, and perhaps torch with it, before a line of ours runs there.
        with _environment(dict.fromkeys(THREAD_VARIABLES, str(place.threads))), _interrupts_held():
            process.start()
        far_end.close()
        return Child(process, pipe)

    def _give(self, handle: Child, payload: bytes) -> None:
        with contextlib.suppress(OSError):
            handle.pipe.send_bytes(payload)

    def _wait(self, slots: list[Slot[Child]]) -> list[tuple[Slot[Child], bytes | Death]]:
        heard = set(wait([slot.handle.pipe for slot in slots], timeout=0.5))
        events: list[tuple[Slot[Child], bytes | Death]] = []
        for slot in slots:
            child = slot.handle
            # A pipe can outlive its worker: a process that the worker had forked holds it open.
            if child.pipe not in heard and (heard or child.process.is_alive()):
                continue
            try:
                if child.pipe not in heard and not child.pipe.poll():
                    raise EOFError
                message = child.pipe.recv_bytes()
            except (EOFError, OSError):
                events.append((slot, _death(slot)))
                continue
            if message == HELLO:
                child.greeted = True
                self._give(child, self._setup)
            else:
                events.append((slot, message))
        return events

    def _end(self, slots: list[Slot[Child]]) -> None:
        children = [slot.handle for slot in slots]
        for slot in slots:
            if slot.task is not None or not slot.ready:
                slot.handle.process.terminate()
        for child in children:
            child.pipe.close()
        until = time.monotonic() + PATIENCE
        for child in children:
            child.process.join(max(until - time.monotonic(), 0))
            if child.process.exitcode is None:
                child.process.kill()
                child.process.join()


def _death(slot: Slot[Child]) -> Death:
    """Say how a worker ended, and make sure that it did."""
    process = slot.handle.process
    slot.handle.pipe.close()
    process.join(1)
    if process.exitcode is None:
        process.kill()
        process.join()
    code = process.exitcode or 0
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = " (the system may have run out of memory)" if name == "SIGKILL" else ""
        return Death(f"was killed by {name}{hint}")
    if slot.ready:
        return Death(f"ended with exit code {code}")
    hint = "; a script that starts workers must do so below `if __name__ == '__main__':`"
    return Death(f"ended with exit code {code} before it was ready{'' if slot.handle.greeted else hint}", hopeless=True)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back meanwhile; processes that are started inherit this, so that none dies of it with a traceback."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection, place: WorkerPlace, cores: Sequence[int] | None) -> None:
    """Be a worker: answer the setup, then payloads, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if cores is not None and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # pinning is for speed alone
            os.sched_setaffinity(0, cores)
    limit_threads(place.threads)
    # Both ends of the pipe may vanish at any time: the parent then has no more use for an answer.
    with contextlib.suppress(EOFError, OSError):
        pipe.send_bytes(HELLO)
        function, reply = begin(pipe.recv_bytes(), place)
        pipe.send_bytes(reply)
        if function is None:
            pipe.recv_bytes()  # until the parent has read why
            return
        while True:
            pipe.send_bytes(answer(function, pipe.recv_bytes()))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
