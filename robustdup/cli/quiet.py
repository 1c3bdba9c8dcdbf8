"""What is printed on standard output while only one thing may stand there: it goes to standard error."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def diverted(wanted: bool = True) -> Iterator[None]:
    """Send what anything prints on standard output to standard error inside the block, where that is `wanted`.

    That holds for `print`, for what writes to file descriptor 1 itself, and for processes that are started inside.
    """
    if not wanted:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr), _descriptor():
        yield


@contextlib.contextmanager
def _descriptor() -> Iterator[None]:
    try:
        sys.__stdout__.flush()  # type: ignore[union-attr]
        kept = os.dup(1)
    except (AttributeError, OSError, ValueError, io.UnsupportedOperation):  # there is none
        yield
        return
    try:
        with contextlib.suppress(OSError):
            os.dup2(2, 1)
        yield
    finally:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            sys.__stdout__.flush()  # type: ignore[union-attr]
        os.dup2(kept, 1)
        os.close(kept)
