"""Which records, networks and unfinished runs were made under this account: hashes, so that a stranger's are told apart.

The list lies under ROBUSTDUP_CACHE, or under ~/.cache/robustdup, and holds nothing but SHA-256 sums. Where it cannot be
written or was lost, a run counts as a stranger's in later processes: it asks for more, never for less.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

LIST = "made-here"
_noted: set[str] = set()  # by this process, which knows them where the list cannot be written


def _place() -> Path:
    folder = os.environ.get("ROBUSTDUP_CACHE")
    return (Path(folder) if folder else Path.home() / ".cache" / "robustdup") / LIST


def note_made_here(content: bytes) -> None:
    """Remember that these bytes (a whole file) were written under this account."""
    digest = hashlib.sha256(content).hexdigest()
    _noted.add(digest)
    line = f"{digest}\n".encode()
    try:
        place = _place()
        place.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, line)  # one short write at the end: processes do not mix their lines
        finally:
            os.close(handle)
    except (OSError, RuntimeError):  # no home, or a read-only one
        return


def was_made_here(content: bytes) -> bool:
    """Tell whether exactly these bytes were written under this account."""
    digest = hashlib.sha256(content).hexdigest()
    try:
        return digest in _noted or digest in _place().read_text(encoding="ascii").split()
    except (OSError, RuntimeError, UnicodeDecodeError):
        return False


def file_made_here(path: Path) -> bool:
    """Tell whether the file is byte for byte one that was written under this account."""
    try:
        return was_made_here(path.read_bytes())
    except OSError:
        return False


def settings_of(folder: Path, content: bytes) -> bytes:
    """Return what is noted of an unfinished run: its settings together with the place where it was started."""
    return f"settings of {folder.resolve()}\n".encode() + content
