"""models."""

from __future__ import annotations

from robustdup.registry import Registry


def register(registry: Registry) -> None:
    """Register the built-in sources."""
