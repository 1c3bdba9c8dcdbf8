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
from multiprocessing.connection import Connection, wait
from multiprocessing.process import current_process
from typing import Any

from robustdup.errors import RobustdupError, RunError, UserError, error_text
from robustdup.runners.pool import PATIENCE, Death, Pool, PoolOptions, Runner
from robustdup.runners.worker import (
    NOTE,
    THREAD_VARIABLES,
    WorkerPlace,
    answer,
    begin,
    limit_threads,
    listening,
    to_bytes,
)

END_NOW = os._exit  # while an attack runs, the name in os stands for something else: `robustdup.plugins.exits`
Setup = Callable[[WorkerPlace], Callable[[Any], Any]]


def open_local(
    workers: int | None,
    setup: Setup,
    *,
    devices: Sequence[str] | None,
    threads: int | None,
    options: PoolOptions,
) -> Runner:
    """Open a runner on this machine; the arguments are those of `open_runner`."""
    devices = visible_gpus() if devices is None else devices
    workers = workers or len(devices) or 1
    cores = usable_cores()
    if workers == 1 and options.seconds is None:
        place = WorkerPlace(0, 1, devices[0] if devices else None, threads or len(cores))
        return InProcess(setup, place, options)
    if current_process().daemon:
        raise UserError(
            "This process is a daemonic worker of multiprocessing, which may start no processes: take workers=1.",
            code="daemonic-process",
        )

    def launch(number: int) -> Process:
        own_cores = share(cores, number, workers)
        names = [devices[other % len(devices)] if devices else None for other in range(workers)]
        place = WorkerPlace(
            number, workers, names[number], threads or len(own_cores), names.count(names[number]) if devices else 1
        )
        return Process(place, own_cores if place.threads <= len(own_cores) else None)

    pool = Pool(workers, launch, to_bytes("the setup to a worker", setup), options, pickle.dumps)
    pool.finish = lambda: atexit.unregister(pool.close)
    atexit.register(pool.close)  # processes that nobody closed would keep this one from ending
    return pool


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


class InProcess(Runner):
    """The runner of one worker: payloads are taken one by one, in this process, and nothing is pickled."""

    workers = 1

    def __init__(self, setup: Setup, place: WorkerPlace, options: PoolOptions):
        self._setup = setup
        self._place = place
        self._options = options
        self._function: Callable[[Any], Any] | None = None

    def map(
        self, payloads: Iterable[Any], *, ordered: bool = True, listener: Callable[[Any], None] | None = None
    ) -> Iterator[Any]:
        """Yield the results in the order of the payloads; see `Runner.map`."""
        for number, payload in enumerate(payloads):
            if self._function is None:
                with _named("Worker 0 failed to start"):
                    self._function = self._setup(self._place)
            with _named(f"Worker 0 failed on {self._options.name_of(number, payload)}"), listening(listener):
                result = self._function(payload)
            yield result

    def close(self) -> None:
        """Let go of what the setup made."""
        self._function = None


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """Raise what is not an error of robustdup as a RunError, as several workers do."""
    try:
        yield
    except RobustdupError:
        raise
    except Exception as error:
        raise RunError(f"{where}: {error_text(error)}") from error


class Process:
    """A worker in a spawned process, and this end of its pipe."""

    def __init__(self, place: WorkerPlace, cores: Sequence[int] | None):
        context = multiprocessing.get_context("spawn")
        self._pipe, far_end = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(far_end, place, cores), name=f"robustdup-worker-{place.number}"
        )
        # The child imports the main module, and perhaps torch with it, before a line of ours runs there.
        with _START, _environment(dict.fromkeys(THREAD_VARIABLES, str(place.threads))), _interrupts_held():
            self._process.start()
        far_end.close()
        self._busy = False

    def begin(self, setup: bytes) -> bytes:
        """Do the setup, after a first word that the process has come to life."""
        hint = "; a script that starts workers must do so below `if __name__ == '__main__':`"
        try:
            self._receive(None)
            hint = ""
            return self.call(setup, None, lambda _: None)
        except Death as death:
            if (self._process.exitcode or 0) < 0:
                raise
            raise Death(f"{death.how} before it was ready{hint}", hopeless=True) from None

    def call(self, payload: bytes, seconds: float | None, hear: Callable[[bytes], None]) -> bytes:
        """Answer a payload; `hear` is given the pickled notes that come meanwhile."""
        with contextlib.suppress(OSError):
            self._pipe.send_bytes(payload)
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            message = self._receive(seconds, until)
            if not message.startswith(NOTE):
                return message
            hear(message.removeprefix(NOTE))

    def _receive(self, seconds: float | None, until: float | None = None) -> bytes:
        self._busy = True
        left = None if until is None else max(until - time.monotonic(), 0.0)
        try:
            # A pipe can outlive its worker: a process that the worker had forked holds it open.
            if not wait([self._pipe, self._process.sentinel], left):
                self._process.kill()
                raise Death(f"took longer than {seconds:g} s", timed_out=True)
            if not self._pipe.poll():
                raise EOFError
            return self._pipe.recv_bytes()
        except (EOFError, OSError):
            raise Death(self._how()) from None
        finally:
            self._busy = False

    def _how(self) -> str:
        """Say how the process ended, and make sure that it did."""
        self._process.join(1)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        code = self._process.exitcode or 0
        if code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = " (the system may have run out of memory)" if name == "SIGKILL" else ""
        return f"was killed by {name}{hint}"

    def alive(self) -> bool:
        """Return whether the process runs."""
        return self._process.is_alive()

    def stop(self, hard: bool) -> None:
        """Terminate the process where it is at work, or kill it."""
        if self._busy:
            self._process.kill() if hard else self._process.terminate()

    def end(self) -> None:
        """Close the pipe, at which an idle process ends, and kill one that does not."""
        self._pipe.close()
        self._process.join(PATIENCE)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()


_START = threading.Lock()  # the environment of a process that starts is that of this one


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
    sending = threading.Lock()  # notes may come from any thread of an attack

    def send(message: bytes) -> None:
        with sending:
            pipe.send_bytes(message)

    def note(value: Any) -> None:
        with contextlib.suppress(OSError):
            send(NOTE + pickle.dumps(value))

    # Both ends of the pipe may vanish at any time: the parent then has no more use for an answer.
    with contextlib.suppress(EOFError, OSError), listening(note):
        send(b"")
        function, reply = begin(pipe.recv_bytes(), place)
        send(reply)
        while True:
            send(answer(function, pipe.recv_bytes()))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        END_NOW(1)
