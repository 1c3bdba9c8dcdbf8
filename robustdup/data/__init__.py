"""Data: from a spec to labelled images in [0, 1]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustdup.plugins.registry import Registry

if TYPE_CHECKING:
    from robustdup.data.options import DataOptions
    from robustdup.data.sources import Rows


def register(registry: Registry) -> None:
    """Register the built-in data source. (Local folders and Hub ids need no scheme.)"""
    registry.add_data_source(
        "builtin", _load_builtin, description="Data that comes with robustdup, offline.", examples=("builtin:digits",)
    )


def _load_builtin(rest: str, options: DataOptions) -> Rows:
    from robustdup.data.digits import load_builtin

    return load_builtin(rest, options)
