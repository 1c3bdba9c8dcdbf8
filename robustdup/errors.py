"""Errors that a person reads: what came, what is allowed, and what to type instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RobustdupError(Exception):
    """Anything that robustdup raises on purpose."""


class UserError(RobustdupError):
    """A mistake of the user: shown as one message without a traceback, exit code 2."""


class RunError(RobustdupError):
    """A run that could not be finished (exit code 1): the cause is in the message."""


class Unavailable(UserError):
    """Something known that cannot run here; the message says why and what to install or change."""


class AttackWarning(UserWarning):
    """What an attack did that a reader of its result should know, given with `warnings.warn`: kept in the record."""


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed spelling nearest to `word`, or None where nothing is near (case is ignored)."""
    by_lower = {candidate.lower(): candidate for candidate in allowed}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    if found:
        return by_lower[found[0]]
    # "PGDL2" for "torchattacks:PGDL2": people leave the source out.
    tails = [candidate for candidate in by_lower.values() if candidate.lower().split(":")[-1] == word.lower()]
    return tails[0] if tails else None


def unknown(what: str, word: str, allowed: Iterable[str], *, see: str | None = None) -> UserError:
    """Build the error for an unknown name: names what came, the nearest right spelling, and what is allowed."""
    names = sorted(allowed)
    message = f"Unknown {what} {word!r}."
    near = nearest(word, names)
    if near is not None:
        message += f" Did you mean {near!r}?"
    if see is not None:
        message += f" {see}"
    elif names:
        shown = ", ".join(names[:20])
        message += f" Allowed: {shown}{', …' if len(names) > 20 else '.'}"
    return UserError(message)
