"""Typed configuration of every command. The names are imported on first use, and none of them imports torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustdup.config.base import Config as Config
    from robustdup.config.base import build as build
    from robustdup.config.base import parse_attacks as parse_attacks
    from robustdup.config.base import parse_call as parse_call
    from robustdup.config.base import parse_value as parse_value
    from robustdup.config.base import rerun_command as rerun_command
    from robustdup.config.base import validate as validate
    from robustdup.config.duplication import DuplicateConfig as DuplicateConfig
    from robustdup.config.duplication import DuplicationOptions as DuplicationOptions
    from robustdup.config.evaluation import EvalConfig as EvalConfig
    from robustdup.config.fields import DataFields as DataFields
    from robustdup.config.fields import DataOptions as DataOptions
    from robustdup.config.fields import DatasetFields as DatasetFields
    from robustdup.config.fields import usual_eps as usual_eps
    from robustdup.config.shipped import recipe_path as recipe_path
    from robustdup.config.shipped import recipes as recipes
    from robustdup.config.training import BUDGETS as BUDGETS
    from robustdup.config.training import TrainConfig as TrainConfig

_HOMES = {
    "base": ("Config", "build", "parse_attacks", "parse_call", "parse_value", "rerun_command", "validate"),
    "duplication": ("DuplicateConfig", "DuplicationOptions"),
    "evaluation": ("EvalConfig",),
    "fields": ("DataFields", "DataOptions", "DatasetFields", "usual_eps"),
    "shipped": ("recipe_path", "recipes"),
    "training": ("BUDGETS", "TrainConfig"),
}
_MODULES = {name: f"robustdup.config.{module}" for module, names in _HOMES.items() for name in names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'robustdup.config' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
