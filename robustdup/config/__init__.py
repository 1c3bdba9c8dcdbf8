"""Typed configuration of every command. None of it imports torch."""

from __future__ import annotations

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
