"""Give payloads to workers and their results back in order; a worker that dies is replaced, its payload tried again.

What a worker is (a process, a Ray actor) is left to the subclasses in `local` and `ray`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from robustdup.errors import RunError
from robustdup.runners.worker import Reply, error_of, from_bytes, to_bytes

P_contra = TypeVar("P_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)
Handle = TypeVar("Handle")


class Runner(Protocol[P_contra, R_co]):
    """Maps the function that its workers were set up with over payloads. A context manager: leaving it closes it."""

    workers: int

    def map(self, payloads: Iterable[P_contra]) -> Iterator[R_co]:
        """Yield the results in the order of the payloads, which are taken as workers become free.

        An error of robustdup is raised again as its kind; RunError for any other, and where workers keep dying.
        """
        ...

    def close(self) -> None:
        """End the workers, at once where they are at work."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(eq=False)
class Task:
    """A payload under way, as bytes; `owner` is the map that it belongs to."""

    owner: object
    number: int
    name: str
    payload: bytes
    tries: int = 0


@dataclass(frozen=True)
class Death:
    """A worker ended by itself: `how` continues "Worker 0 …". `hopeless` where another start would end the same."""

    how: str
    hopeless: bool = False


@dataclass(eq=False)
class Slot(Generic[Handle]):
    """The place of a worker, which outlives it. `ready` once its setup is done; `deaths` in a row without a result."""

    number: int
    handle: Handle
    ready: bool = False
    task: Task | None = None
    deaths: int = 0


@dataclass
class Order:
    """The state of one map: payloads `taken` and `given` back, those that wait for a worker, results that came early."""

    source: Iterator[Any]
    waiting: deque[Task] = field(default_factory=deque)
    early: dict[int, Any] = field(default_factory=dict)
    taken: int = 0
    given: int = 0
    exhausted: bool = False


def payload_name(describe: Callable[[Any], str] | None, number: int, payload: object) -> str:
    """Return what error messages call a payload: what the caller says, or its number from 0."""
    return f"payload {number}" if describe is None else describe(payload)


class Pool(ABC, Generic[Handle]):
    """The runner of several workers. Subclasses start, feed, watch and end them."""

    def __init__(self, workers: int, *, retries: int, describe: Callable[[Any], str] | None):
        self.workers = workers
        self._retries = retries
        self._describe = describe
        self._slots: list[Slot[Handle]] = []
        self._mapping = False
        self._closed = False

    # How to pickle payloads; Ray's way also takes functions of notebooks and scripts.
    _dumps: Callable[..., bytes]

    @abstractmethod
    def _start(self, number: int) -> Handle:
        """Start a worker and its setup, without waiting for either."""

    @abstractmethod
    def _give(self, handle: Handle, payload: bytes) -> None:
        """Send a payload to a worker that is ready. One that died meanwhile is noticed by `_wait`."""

    @abstractmethod
    def _wait(self, slots: list[Slot[Handle]]) -> list[tuple[Slot[Handle], bytes | Death]]:
        """Wait a moment and return what came: a reply to the setup or to a payload, or a death."""

    @abstractmethod
    def _end(self, slots: list[Slot[Handle]]) -> None:
        """End the workers and wait until they are gone."""

    def close(self) -> None:
        """End the workers, at once where they are at work. Closing twice is fine."""
        if not self._closed:
            self._closed = True
            self._end(self._slots)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def map(self, payloads: Iterable[Any]) -> Iterator[Any]:
        """Yield the results in the order of the payloads; see `Runner.map`."""
        if self._mapping:
            raise RunError("This runner is still at work on another map: finish or close that one first.")
        self._mapping = True
        order = Order(iter(payloads))
        try:
            while True:
                if self._closed:
                    raise RunError("This runner is closed.")
                self._hand_out(order)
                if order.given in order.early:
                    result = order.early.pop(order.given)
                    order.given += 1
                    yield result
                elif order.exhausted and order.given == order.taken:
                    return
                else:
                    for slot, event in self._wait(self._slots):
                        if isinstance(event, Death):
                            self._bury(slot, event, order)
                        else:
                            self._receive(slot, from_bytes("the result", event), order)
        except KeyboardInterrupt:
            self.close()
            raise
        finally:
            self._mapping = False

    def _hand_out(self, order: Order) -> None:
        free = [slot for slot in self._slots if slot.ready and slot.task is None]
        # One payload is kept at hand; results that wait for an earlier one bound how far ahead the others may go.
        while (
            not order.exhausted
            and len(order.waiting) < max(len(free), 1)
            and order.taken - order.given < 2 * self.workers
        ):
            try:
                payload = next(order.source)
            except StopIteration:
                order.exhausted = True
                break
            name = payload_name(self._describe, order.taken, payload)
            order.waiting.append(Task(order, order.taken, name, to_bytes(f"{name} to a worker", payload, self._dumps)))
            order.taken += 1
        for slot in free:
            if order.waiting:
                slot.task = order.waiting.popleft()
                self._give(slot.handle, slot.task.payload)

    def _receive(self, slot: Slot[Handle], reply: Reply, order: Order) -> None:
        if not slot.ready:
            if reply.failed:
                self.close()
                raise error_of(reply, f"Worker {slot.number} failed to start")
            slot.ready = True
            return
        task, slot.task, slot.deaths = slot.task, None, 0
        if task is None or task.owner is not order:
            return  # of a map that was left early
        if reply.failed:
            raise error_of(reply, f"Worker {slot.number} failed on {task.name}")
        order.early[task.number] = reply.result

    def _bury(self, slot: Slot[Handle], death: Death, order: Order) -> None:
        task, slot.task, slot.ready = slot.task, None, False
        slot.deaths += 1
        lost = task is not None and task.owner is order
        if death.hopeless or (not lost and slot.deaths > self._retries):
            self.close()
            times = "" if slot.deaths == 1 else f" ({slot.deaths} times)"
            raise RunError(f"Worker {slot.number} {death.how}{times}.")
        slot.handle = self._start(slot.number)
        if task is not None and lost:
            task.tries += 1
            if task.tries > self._retries:
                raise RunError(
                    f"Gave up on {task.name}: each of the {task.tries} workers that tried it died; "
                    f"worker {slot.number} {death.how}."
                )
            order.waiting.appendleft(task)
