"""Give payloads to several workers and their results back; a worker that dies is replaced, its payload tried again.

Each worker has a thread here, which starts it, gives it payloads and starts another where it dies. A pool of
`concurrent.futures` or loky breaks as a whole when one process dies, and cannot say which payload it was at.
What a worker is (a process, a Ray actor) is said in `local` and `ray`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, wait
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from robustdup.errors import RunError, UserError
from robustdup.runners.worker import Reply, error_of, from_bytes, to_bytes

LISTEN = 0.5  # seconds between two looks for notes
PATIENCE = 5.0  # seconds in which a worker that is asked to end may do so by itself


class Runner:
    """Maps the function that its workers were set up with over payloads. A context manager: leaving it closes it."""

    workers: int

    def map(
        self, payloads: Iterable[Any], *, ordered: bool = True, listener: Callable[[Any], None] | None = None
    ) -> Iterator[Any]:
        """Yield the results in the order of the payloads (or as they come), which are taken as workers become free.

        `listener` is given what payloads `tell` meanwhile on local workers, in this thread.

        An error of robustdup is raised again as its kind; RunError for any other, and where workers keep dying.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End the workers, at once where they are at work."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Death(Exception):
    """A worker ended by itself, or was ended. `how` continues "Worker 0 …".

    `hopeless` where another start would end the same, `timed_out` where its payload took too long.
    """

    def __init__(self, how: str, *, hopeless: bool = False, timed_out: bool = False):
        super().__init__(how)
        self.how, self.hopeless, self.timed_out = how, hopeless, timed_out


class Worker(Protocol):
    """What a pool needs of a worker. `begin` and `call` return the bytes of a `Reply`; they raise Death."""

    def begin(self, setup: bytes) -> bytes:
        """Do the setup."""
        ...

    def call(self, payload: bytes, seconds: float | None, hear: Callable[[bytes], None]) -> bytes:
        """Answer a payload, within so many seconds; `hear` is given the notes that come meanwhile."""
        ...

    def alive(self) -> bool:
        """Return whether it can still be called."""
        ...

    def stop(self, hard: bool) -> None:
        """End it from another thread where it is at work; `hard` where it was asked before."""
        ...

    def end(self) -> None:
        """End it and wait until it is gone."""
        ...


@dataclass(eq=False)
class Task:
    """A payload, what error messages call it, and where its result will be."""

    name: str
    payload: Any
    message: bytes
    tries: int = 0
    future: Future[Any] = field(default_factory=Future)

    def ended(self, well: bool) -> bool:
        """Return whether there is a result (`well`), or an error."""
        return self.future.done() and (self.future.exception() is None) == well


@dataclass(frozen=True)
class PoolOptions:
    """What `open_runner` was told of payloads: see there."""

    retries: int = 2
    describe: Callable[[Any], str] | None = None
    seconds: float | None = None
    lost: Callable[[Any, Death], Any] | None = None

    def name_of(self, number: int, payload: object) -> str:
        """Return what error messages call a payload: what the caller says, or its number from 0."""
        return f"payload {number}" if self.describe is None else self.describe(payload)


class Pool(Runner):
    """The runner of several workers, which `launch(number)` starts. `dumps` pickles payloads; `finish` is what ends it."""

    def __init__(
        self,
        workers: int,
        launch: Callable[[int], Worker],
        setup: bytes,
        options: PoolOptions,
        dumps: Callable[..., bytes],
    ):
        self.workers = workers
        self._launch, self._setup, self._options, self._dumps = launch, setup, options, dumps
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._notes: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._running: dict[int, Worker] = {}
        self._failure: Future[None] = Future()  # of a worker that cannot be started
        self._mapping = False
        self._closed = False
        self.finish: Callable[[], None] = lambda: None
        self._threads = [threading.Thread(target=self._feed, args=(number,), daemon=True) for number in range(workers)]
        for thread in self._threads:
            thread.start()

    def map(
        self, payloads: Iterable[Any], *, ordered: bool = True, listener: Callable[[Any], None] | None = None
    ) -> Iterator[Any]:
        """Yield the results; see `Runner.map`. At most two payloads a worker are taken ahead of the results."""
        if self._mapping:
            raise RunError("This runner is still at work on another map: finish or close that one first.")
        self._mapping = True
        source = enumerate(payloads)
        pending: deque[Task] = deque()
        try:
            while True:
                if self._closed:
                    raise RunError("This runner is closed.")
                self._pass_on(listener)
                while len(pending) < 2 * self.workers and (task := self._take(source)) is not None:
                    pending.append(task)
                if not pending:
                    return
                deliverable = [pending[0]] if ordered else list(pending)
                if (ready := next((task for task in deliverable if task.ended(well=True)), None)) is not None:
                    pending.remove(ready)
                    yield ready.future.result()
                elif (failed := next((task for task in pending if task.ended(well=False)), None)) is not None:
                    failed.future.result()
                else:
                    open_tasks = [task.future for task in pending if not task.future.done()]
                    self._wait(open_tasks, None if listener is None else LISTEN)
        except (KeyboardInterrupt, SystemExit):
            self.close()
            raise
        finally:
            for task in pending:
                task.future.cancel()
            self._mapping = False

    def _take(self, source: Iterator[tuple[int, Any]]) -> Task | None:
        """Send the next payload on its way; None where there is none."""
        for number, payload in source:
            name = self._options.name_of(number, payload)
            task = Task(name, payload, to_bytes(f"{name} to a worker", payload, self._dumps))
            self._tasks.put(task)
            return task
        return None

    def _pass_on(self, listener: Callable[[Any], None] | None) -> None:
        """Give the notes that have come to the listener; what cannot be read is no note."""
        with contextlib.suppress(queue.Empty):
            while True:
                message = self._notes.get_nowait()
                if listener is not None:
                    try:
                        note = from_bytes("a note of a worker", message)
                    except UserError:
                        continue
                    listener(note)

    def _wait(self, futures: Sequence[Future[Any]], seconds: float | None) -> None:
        """Wait for one of these, so many seconds at most. Raises the error of a worker that cannot be started."""
        wait([self._failure, *futures], timeout=seconds, return_when=FIRST_COMPLETED)
        if self._failure.done():
            self.close()
            self._failure.result()

    def _feed(self, number: int) -> None:
        """Be the thread of a worker."""
        try:
            self._started(number)
            while (task := self._tasks.get()) is not None and not self._closed:
                if not self._running[number].alive():
                    self._tasks.put(task)  # for whichever worker is ready first
                    self._started(number)
                elif task.tries or task.future.set_running_or_notify_cancel():  # not of a map that was left early
                    self._try(number, task)
        except BaseException as error:  # noqa: BLE001
            with contextlib.suppress(InvalidStateError):  # another worker failed before
                self._failure.set_exception(error)
        finally:
            if number in self._running:
                self._running[number].end()

    def _try(self, number: int, task: Task) -> None:
        """Let a worker answer a payload; where it dies of it, another tries again."""
        try:
            answer = self._running[number].call(task.message, self._options.seconds, self._notes.put)
            reply: Reply = from_bytes("the result", answer)
            if reply.failed:
                raise error_of(reply, f"Worker {number} failed on {task.name}")
            task.future.set_result(reply.result)
        except Death as death:
            task.tries += 1
            self._running[number].end()
            if task.tries <= self._options.retries:
                self._tasks.put(task)
            elif self._options.lost is not None:
                task.future.set_result(self._options.lost(task.payload, death))
            else:
                text = f"Gave up on {task.name}: each of the {task.tries} workers that tried it died; worker {number}"
                task.future.set_exception(RunError(f"{text} {death.how}."))
        except BaseException as error:  # noqa: BLE001
            task.future.set_exception(error)

    def _started(self, number: int) -> Worker:
        """Start a worker and its setup, again where it dies of it. Raises what the setup raised, or RunError."""
        deaths = 0
        while True:
            if self._closed:
                raise RunError("This runner is closed.")
            worker = self._running[number] = self._launch(number)
            try:
                reply: Reply = from_bytes("the reply to the setup", worker.begin(self._setup))
            except Death as death:
                deaths += 1
                worker.end()
                if death.hopeless or deaths > self._options.retries:
                    times = "" if deaths == 1 else f" ({deaths} times)"
                    raise RunError(f"Worker {number} {death.how}{times}.") from None
                continue
            if reply.failed:
                raise error_of(reply, f"Worker {number} failed to start")
            return worker

    def close(self) -> None:
        """End the workers, at once where they are at work. Closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        for _ in self._threads:
            self._tasks.put(None)
        until = time.monotonic() + PATIENCE
        for thread in self._threads:
            while thread.is_alive():
                for worker in list(self._running.values()):
                    worker.stop(hard=time.monotonic() > until)
                thread.join(0.05)
        self.finish()
