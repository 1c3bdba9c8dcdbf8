"""State files that know their own content: what a disk or an editor damaged is told from what was written.

A digest follows the content. Files of versions that wrote none are read as they are: whoever parses them finds damage.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from robustdup.records.base import write_atomic

MARK = b"\nsha256 "
LENGTH = len(MARK) + 64


def seal(content: bytes) -> bytes:
    """Return the content with its SHA-256 behind it."""
    return content + MARK + hashlib.sha256(content).hexdigest().encode()


def unseal(sealed: bytes) -> bytes:
    """Return the content of what `seal` returned. Raises ValueError where it is not what was sealed."""
    content, end = sealed[:-LENGTH], sealed[-LENGTH:]
    if not end.startswith(MARK):
        return sealed
    if end[len(MARK) :] != hashlib.sha256(content).hexdigest().encode():
        raise ValueError("its content is not what was written")
    return content


def write_sealed(path: Path, content: bytes) -> None:
    """Write a file with its digest, so that it is either whole or not there. Raises RunError."""
    write_atomic(path, seal(content))


def read_sealed(path: Path) -> bytes:
    """Return the content of a file that `write_sealed` wrote. Raises OSError, and ValueError where it was damaged."""
    return unseal(path.read_bytes())
