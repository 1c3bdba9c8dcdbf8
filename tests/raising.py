"""Errors are told by their codes: the wording of a message may change, and a few snapshots hold it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from robustdup.errors import RobustdupError, UserError


@contextlib.contextmanager
def raises(
    code: str, kind: type[RobustdupError] = UserError, *names: str
) -> Iterator[pytest.ExceptionInfo[RobustdupError]]:
    """Expect an error of this code, whose message holds all `names`: what came, what is allowed, what to type."""
    with pytest.raises(kind) as caught:
        yield caught
    assert caught.value.code == code, f"{caught.value.code}: {caught.value}"
    for name in names:
        assert name in str(caught.value), f"{name!r} is not in: {caught.value}"
