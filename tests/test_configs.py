"""The recipes in configs/ are valid, and the one that writes the defaults out says what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustdup.config import EvalConfig, TrainConfig, build, recipe_path, recipes
from robustdup.jobs.training import check
from robustdup.plugins import load_plugins

CONFIGS = Path(__file__).parent.parent / "configs"


def test_the_recipes_are_those_of_this_folder():
    assert {recipe_path(name) for name in recipes()} == set(CONFIGS.rglob("*.yaml"))


def recipes_of(command):
    found = sorted((CONFIGS / command).glob("*.yaml"))
    assert found
    return pytest.mark.parametrize("file", found, ids=lambda file: file.stem)


@recipes_of("eval")
def test_recipe_of_an_evaluation_is_valid(file):
    assert build(EvalConfig, file).attacks


@recipes_of("train")
def test_recipe_of_a_training_is_valid(file):
    config = build(TrainConfig, file)
    assert check(config, load_plugins()).objective.name == config.objective.split("(")[0]


@recipes_of("study")
def test_recipe_of_a_study_is_valid(file):
    recipe = pytest.importorskip("robustdup_study.recipe")
    assert recipe.load_recipe(file, []).seed_list


def test_the_first_recipe_writes_the_defaults_out():
    assert build(EvalConfig, CONFIGS / "eval" / "digits.yaml") == build(EvalConfig)
