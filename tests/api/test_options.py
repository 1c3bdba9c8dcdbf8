"""The typed options of the verbs are the fields of the configurations, no more, no less, with their types."""

import typing

import pytest

from robustdup.api.options import DuplicateOptions, EvaluateOptions, TrainOptions
from robustdup.config import EvalConfig
from robustdup.config.base import Config
from robustdup.config.duplication import DuplicationOptions
from robustdup.config.training import TrainConfig

POSITIONAL = {"model", "data", "norm", "eps", "threat", "attacks", "attack_model", "n", "out"}


@pytest.mark.parametrize(
    ("options", "config", "named"),
    [
        (EvaluateOptions, EvalConfig, POSITIONAL),
        (TrainOptions, TrainConfig, {"out"}),
        (DuplicateOptions, DuplicationOptions, {"scheme", "seed"}),
    ],
)
def test_options_are_the_fields(options, config, named):
    hints = typing.get_type_hints(options)
    fields = {name: field.annotation for name, field in config.model_fields.items() if name not in named}
    assert set(hints) == set(fields)
    for name, annotation in fields.items():
        nested = isinstance(annotation, type) and issubclass(annotation, Config)
        assert nested or hints[name] == annotation, name
