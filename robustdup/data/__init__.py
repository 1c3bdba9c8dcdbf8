"""Data: from a spec to labelled images in [0, 1]."""

from __future__ import annotations

from robustdup.plugins import Registry


def register(registry: Registry) -> None:
    """Register the built-in data source. (Local folders and Hub ids need no scheme.)"""
    registry.add_data_source(
        "builtin", "robustdup.data.digits:load_builtin", description="Data that comes with robustdup, offline.",
        examples=("builtin:digits",),
    )  # fmt: skip
