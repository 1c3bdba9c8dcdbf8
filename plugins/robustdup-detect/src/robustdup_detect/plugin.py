"""What this plugin adds to robustdup."""

from __future__ import annotations

from robustdup import Registry


def register(registry: Registry) -> None:
    """Register near-duplicate search."""
