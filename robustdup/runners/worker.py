"""What happens in a worker: it knows its place, does its setup once, and answers payloads with replies.

Payloads and replies travel as bytes. An exception is a reply too, so that only the death of a worker is a surprise.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from robustdup.errors import RobustdupError, RunError, Unavailable, UserError, error_text, plain

NOTE = b"n"  # what a message that is a note begins with; replies are pickles, which begin otherwise
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
LONGEST_TRACE = 20_000  # letters
USABLE = 0.95  # of a GPU's memory, by workers that share it; the rest is for what each process keeps there besides
WHAT_TO_DO = (
    "use one local worker (workers=1), to which nothing is sent, "
    "or name the model by a spec such as 'path/to/model.py:make_model'."
)


@dataclass(frozen=True)
class WorkerPlace:
    """Where a worker stands: its number of `workers`, its device (None: choose one) and how many CPU threads it has.

    `sharing` workers have its device.
    """

    number: int
    workers: int
    device: str | None
    threads: int
    sharing: int = 1


@dataclass(frozen=True)
class Reply:
    """What came of a payload: its result, or the error (`kind`: a class of `errors`, or None for a foreign one; `code`)."""

    result: Any = None
    failed: bool = False
    kind: type[RobustdupError] | None = None
    text: str = ""
    code: str = ""
    trace: str = ""


class WorkerTraceback(Exception):
    """The traceback of an exception in another process, as text: the cause of the error that is raised here."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0].rstrip()}"


_listeners: list[Callable[[Any], None]] = []  # what hears the notes of this process


def tell(note: Any) -> None:
    """Send a note out of a payload to what `Runner.map` was given as `listener`; to nobody where none was given."""
    for listener in _listeners:
        listener(note)


@contextlib.contextmanager
def listening(listener: Callable[[Any], None] | None) -> Iterator[None]:
    """Let a function hear all notes of this process meanwhile."""
    before = list(_listeners)
    _listeners[:] = [*before, *([] if listener is None else [listener])]
    try:
        yield
    finally:
        _listeners[:] = before


def limit_threads(threads: int) -> None:
    """Let this process compute with `threads` threads, now where torch is imported and else when it will be."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def share_memory(place: WorkerPlace) -> None:
    """Let no worker take more than its share of a GPU's memory: it runs out by itself, and not by what others do meanwhile."""
    if place.sharing > 1 and (place.device or "").startswith("cuda"):
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(USABLE / place.sharing, place.device)


def to_bytes(noun: str, value: object, dumps: Callable[..., bytes] = pickle.dumps) -> bytes:
    """Pickle a value for another process. Plain pickle copies: no shared memory or open files to lose with a worker."""
    try:
        return dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # whatever a stranger's __reduce__ raises
        raise UserError(f"Cannot send {noun} ({error_text(error)}): {WHAT_TO_DO}", code="cannot-send") from error


def from_bytes(noun: str, data: bytes) -> Any:
    """Load what another process sent; UserError where this one lacks what it is made of."""
    try:
        return pickle.loads(data)
    except Exception as error:
        raise UserError(f"Cannot load {noun} ({error_text(error)}): {WHAT_TO_DO}", code="cannot-send") from error


def begin(setup: bytes, place: WorkerPlace) -> tuple[Callable[[Any], Any] | None, bytes]:
    """Do the pickled setup: return the function for the payloads (None where it failed) and the pickled `Reply`."""
    try:
        function = from_bytes("the setup in a worker", setup)
        # Again: loading it may have imported torch, which takes no more threads than cores.
        limit_threads(place.threads)
        share_memory(place)
        return function(place), pickle.dumps(Reply())
    except BaseException as error:  # noqa: BLE001
        return None, failure(error)


def answer(function: Callable[[Any], Any] | None, payload: bytes, dumps: Callable[..., bytes] = pickle.dumps) -> bytes:
    """Apply `function` to a pickled payload and return the pickled `Reply`."""
    try:
        assert function is not None, "a worker whose setup failed is given no payload"
        result = function(from_bytes("the payload in a worker", payload))
        return to_bytes("the result back", Reply(result), dumps)
    except BaseException as error:  # SystemExit of a payload must not end the worker  # noqa: BLE001
        return failure(error)


def failure(error: BaseException) -> bytes:
    """Return the pickled `Reply` of an exception: its kind and text, because the exception itself may not travel."""
    kinds = (Unavailable, UserError, RunError, RobustdupError)
    kind = next((kind for kind in kinds if isinstance(error, kind)), None)
    text = plain(error) if kind is not None else error_text(error)
    trace = _trace(error)
    return pickle.dumps(
        Reply(
            failed=True, kind=kind, text=text, code=error.code if isinstance(error, RobustdupError) else "", trace=trace
        )
    )


def error_of(reply: Reply, where: str) -> RobustdupError:
    """Build the exception of a failed reply: of its own kind, or a RunError that says where it happened."""
    error = RunError(f"{where}: {reply.text}") if reply.kind is None else reply.kind(reply.text, code=reply.code)
    error.__cause__ = WorkerTraceback(reply.trace)
    return error


def _trace(error: BaseException) -> str:
    """Return the traceback of an exception as text, as far as the exception lets it be written."""
    try:
        return plain("".join(traceback.format_exception(error)), LONGEST_TRACE, lines=True)
    except Exception as failure:  # a stranger's __str__ may raise  # noqa: BLE001
        return f"(no traceback: {type(failure).__name__})"
