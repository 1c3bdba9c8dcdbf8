"""A stranger's code that ends the process: what it asks for becomes an exception, so that a run never ends in silence."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

ENDINGS = ("_exit", "abort", "execv", "execve")  # of os, and of the module that os takes them from


class Exit(BaseException):
    """A stranger's code asked for the end of the process. No subclass of Exception, so that `except Exception` lets it by."""


@contextmanager
def no_exits() -> Iterator[None]:
    """Turn `os._exit`, `os.abort` and `os.exec…` into the exception `Exit` inside the block, in this process alone.

    A process that was forked inside ends as it wants to. What calls the C library itself is not seen.
    """
    modules = [os, sys.modules[os.name]] if os.name in sys.modules else [os]
    before = [(module, name, getattr(module, name)) for module in modules for name in ENDINGS if hasattr(module, name)]
    try:
        for module, name, ending in before:
            setattr(module, name, _refusing(name, ending))
        yield
    finally:
        for module, name, ending in before:
            setattr(module, name, ending)


def _refusing(name: str, ending: Callable[..., Any]) -> Callable[..., Any]:
    process = os.getpid()

    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        if os.getpid() != process:
            ending(*arguments, **options)
        raise Exit(f"it called os.{name}, which would have ended the process")

    return refuse
