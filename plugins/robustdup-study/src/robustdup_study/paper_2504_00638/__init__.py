"""The published protocol of arXiv 2504.00638: its networks, its table, its illustration, and verdicts on its claims."""

from __future__ import annotations

from robustdup import Registry


def register(registry: Registry) -> None:
    """Register the networks of the paper."""
