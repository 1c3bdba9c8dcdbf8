"""Errors that a person reads: what came, what is allowed, and what to type instead."""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class RobustdupError(Exception):
    """Anything that robustdup raises on purpose.

    `code` is a stable word for the kind of mistake, such as "unknown-attack": programs and tests ask for it, and the text
    of the message may change.
    """

    code: str = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        """Keep the code where an error comes out of another process."""
        return functools.partial(type(self), code=self.code), (str(self),)


class UserError(RobustdupError, ValueError):
    """A mistake of the user: shown as one message without a traceback, exit code 2."""

    code = "user-error"


class RunError(RobustdupError):
    """A run that could not be finished (exit code 1): the cause is in the message."""

    code = "run-error"


class Unavailable(UserError):
    """Something known that cannot run here; the message says why and what to install or change."""

    code = "unavailable"


class AttackWarning(UserWarning):
    """What an attack did that a reader of its result should know, given with `warnings.warn`: kept in the record."""


LONGEST_REASON = 2000  # letters of a stranger's message that are kept


def plain(text: object, limit: int | None = None, *, lines: bool = False) -> str:
    """Return text that any terminal, file or page can take: no control characters and no lone surrogates.

    Args:
        text: anything; what raises when it is asked for its text is called by its type.
        limit: letters that are kept, the middle of a longer text being left out; None keeps all.
        lines: whether line breaks and tabs are kept.
    """
    try:
        words = str.__str__(text) if isinstance(text, str) else str(text)
    except BaseException as error:  # a stranger's __str__ may do anything
        if isinstance(error, KeyboardInterrupt):
            raise
        words = f"({type(text).__name__} without a text)"
    if limit is not None and len(words) > limit:
        words = f"{words[: limit // 2]} … ({len(words)} letters) … {words[-(limit // 2) :]}"
    if words.isprintable():
        return words
    kept = "\n\t" if lines else ""
    return "".join(letter if letter.isprintable() or letter in kept else _escape(letter) for letter in words)


def _escape(letter: str) -> str:
    """Return a letter that cannot be printed as it would be written in code; odd spaces become plain ones."""
    return " " if letter.isspace() and letter not in "\x0b\x0c\x1c\x1d\x1e\x1f\x85" else ascii(letter)[1:-1]


def error_text(error: BaseException, limit: int = LONGEST_REASON) -> str:
    """Return "ValueError: what it says" in plain text, or the name alone of an exception that says nothing."""
    words, kind = plain(error, limit), plain(type(error).__name__, 100)
    return f"{kind}: {words}" if words else kind


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed spelling nearest to `word`, or None where nothing is near (case is ignored)."""
    by_lower = {candidate.lower(): candidate for candidate in allowed}
    matches = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    if matches:
        return by_lower[matches[0]]
    # "PGDL2" for "torchattacks:PGDL2": people leave the source out.
    tails = [candidate for candidate in by_lower.values() if candidate.lower().split(":")[-1] == word.lower()]
    return tails[0] if tails else None


def unknown(noun: str, word: str, allowed: Iterable[str], *, see: str | None = None) -> UserError:
    """Build the error for an unknown name: names what came, the nearest right spelling, and what is allowed.

    Its code is "unknown-" and the first words of `what`, up to " of " or a colon: "unknown-attack", "unknown-option".
    """
    names = sorted(allowed)
    message = f"Unknown {noun} {word!r}."
    near = nearest(word, names)
    if near is not None:
        message += f" Did you mean {near!r}?"
    if see is not None:
        message += f" {see}"
    elif names:
        shown = ", ".join(names[:20])
        message += f" Allowed: {shown}{', …' if len(names) > 20 else '.'}"
    kind = noun.split(" of ")[0].split(":")[0].strip().lower().replace(" ", "-")
    return UserError(message, code=f"unknown-{kind}")


def check_counts(attack: str, *, least: int = 1, **counts: int) -> None:
    """Raise UserError (`bad-option`), in the name of the attack, for an option below the `least` that it can be."""
    for option, count in counts.items():
        if count < least:
            raise UserError(f"{attack}: {option} must be at least {least}, got {count}.", code="bad-option")


def user_path(text: str | Path) -> Path:
    """Return what a user named as a path: with ~ as the home, as it is where no user has that name."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def how_to_install(*requirements: str) -> str:
    """Return the command that installs packages into this environment: one that works where it is printed.

    Args:
        requirements: as pip takes them: "numba", "robustdup[timm]". An extra of robustdup, in an environment that uv made
            for a clone, becomes `uv sync --inexact --extra timm`. A flag, such as --no-deps, may stand among them.
    """
    extras = [match[1] for match in (re.fullmatch(r"robustdup\[(\S+)\]", each) for each in requirements) if match]
    if len(extras) == len(requirements) and _clone_of_uv():
        clone = Path(sys.prefix).parent
        project = [] if Path.cwd().is_relative_to(clone) else [f"--project {shlex.quote(str(clone))}"]
        return " ".join(["uv sync", *project, "--inexact", *(f"--extra {extra}" for extra in extras)])
    return f"{_installer()} {shlex.join(requirements)}"


def not_importable(subject: str, package: str, error: ImportError, extra: str) -> Unavailable:
    """Return the error for a subject that needs a package of an extra of robustdup, which cannot be imported here."""
    return Unavailable(
        f"{subject} needs {package}, which cannot be imported here ({error}). Install it: "
        + how_to_install(f"robustdup[{extra}]")
    )


def _installer() -> str:
    """Return the command that installs into this environment, whether or not a shell has activated it."""
    pip_is_here = importlib.util.find_spec("pip") is not None
    if not pip_is_here and (_made_by_uv() or shutil.which("uv")):
        active = os.environ.get("VIRTUAL_ENV")
        above = (folder / ".venv" for folder in (Path.cwd(), *Path.cwd().parents))
        environment = Path(active) if active else next((place for place in above if place.is_dir()), None)
        return "uv pip install" + ("" if environment == Path(sys.prefix) else f" --python {shlex.quote(sys.prefix)}")
    python, pip = shlex.quote(sys.executable), shutil.which("pip")
    if not pip_is_here:
        return f"{python} -m ensurepip && {python} -m pip install"
    foreign = pip and Path(pip).parent != Path(sys.executable).parent
    return f"{python} -m pip install" if foreign else "pip install"


@functools.cache
def _made_by_uv() -> bool:
    """Say whether this environment was made by uv, which puts no pip into it."""
    if importlib.util.find_spec("pip") is not None:
        return False
    try:
        return re.search(r"^uv\s*=", (Path(sys.prefix) / "pyvenv.cfg").read_text(encoding="utf-8"), re.M) is not None
    except OSError:
        return False


@functools.cache
def _clone_of_uv() -> bool:
    """Say whether this is the environment that `uv sync` keeps beside a clone of robustdup."""
    if not _made_by_uv():
        return False
    project = Path(sys.prefix).parent / "pyproject.toml"
    try:
        return re.search(r'^name = "robustdup"$', project.read_text(encoding="utf-8"), re.M) is not None
    except OSError:
        return False


def missing_plugin(prefix: str) -> Unavailable | None:
    """Return the error for a name `prefix:…` of a plugin of ours that is not installed; None where there is no such."""
    name = f"robustdup-{prefix}"
    try:
        known = [re.match(r"[\w.-]+", each) for each in importlib.metadata.requires("robustdup") or ()]
    except importlib.metadata.PackageNotFoundError:
        return None
    if prefix.startswith("robustdup") or name not in {match[0] for match in known if match}:
        return None
    return Unavailable(
        f"The plugin {name} is not installed: {how_to_install(f'robustdup[{prefix}]')}", code="plugin-not-installed"
    )
