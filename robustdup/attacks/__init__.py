"""Attacks: one a file, each a plain function on the contract of `robustdup.registry.AttackSpec`."""

from __future__ import annotations

from robustdup.registry import Registry


def register(registry: Registry) -> None:
    """Register the native attacks, losses and ensembles."""
