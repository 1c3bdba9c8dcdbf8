"""A stranger's code that ends the process: what it asks for becomes an exception, so that a run never ends in silence."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ENDINGS = ("_exit", "abort", "execv", "execve", "kill", "killpg")  # of os, and of the module that os takes them from
SIGNALS = ("raise_signal", "pthread_kill")  # of signal
LATER = "dump_traceback_later"  # of faulthandler: ends the process where it is told to, from outside of Python


class Exit(BaseException):
    """A stranger's code asked for the end of the process. No subclass of Exception, so that `except Exception` lets it by."""


_inside: list[object] = []  # the blocks that are open, in all threads
_before: list[tuple[Any, str, Callable[..., Any]]] = []  # what the names stood for before the first of them
_standing_in: list[tuple[Any, str, Callable[..., Any]]] = []
_changing = threading.Lock()


@contextmanager
def no_exits() -> Iterator[None]:
    """Turn `os._exit`, `os.abort`, `os.exec…` and the like into the exception `Exit` inside the block, in this process alone.

    Signals that somebody handles reach the process as usual; those that would end it do not. A process that was forked
    inside ends as it wants to. What calls the C library itself is not seen. Blocks may overlap, in several threads too: the
    first one in puts the names into place, and the last one out puts them back.
    """
    block = object()
    with _changing:
        if not _inside:
            _name_stand_ins()
        _put(_standing_in)  # again, whatever a stranger put there
        _inside.append(block)
    try:
        yield
    finally:
        with _changing:
            _inside.remove(block)
            if not _inside:
                _put(_before)


def _name_stand_ins() -> None:
    modules = [os, sys.modules[os.name]] if os.name in sys.modules else [os]
    named = [(module, name) for module in modules for name in ENDINGS] + [(signal, name) for name in SIGNALS]
    named.append((faulthandler, LATER))
    _before[:] = [(module, name, getattr(module, name)) for module, name in named if hasattr(module, name)]
    _standing_in[:] = [(module, name, _refusing(name, ending, module.__name__)) for module, name, ending in _before]


def _put(named: list[tuple[Any, str, Callable[..., Any]]]) -> None:
    for module, name, ending in named:
        setattr(module, name, ending)


def _refusing(name: str, ending: Callable[..., Any], home: str) -> Callable[..., Any]:
    process = os.getpid()

    def refuse(*arguments: Any, **options: Any) -> Any:
        if os.getpid() != process or not _ends(name, arguments, options):
            return ending(*arguments, **options)
        raise Exit(f"it called {home}.{name}, which would have ended the process")

    return refuse


def _ends(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Say whether a call would end this process."""
    if name == LATER:
        return bool(options.get("exit", arguments[3] if len(arguments) > 3 else False))
    if name in (*SIGNALS, "kill", "killpg"):
        if not arguments or not 0 < int(arguments[-1]) < signal.NSIG:
            return False
        own = (
            {"kill": (os.getpid(), 0, -1), "killpg": (os.getpgrp(), 0)}
            if os.name == "posix"
            else {"kill": (os.getpid(),)}
        )
        return arguments[0] in own.get(name, arguments) and signal.getsignal(arguments[-1]) in (signal.SIG_DFL, None)
    return True
