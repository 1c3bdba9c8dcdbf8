"""The recipes in configs/ are valid, and the one that writes the defaults out says what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustdup.config import EvalConfig, build

RECIPES = sorted((Path(__file__).parent.parent / "configs" / "eval").glob("*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipe_is_valid(file):
    assert build(EvalConfig, file).attacks


def test_there_are_recipes_and_the_first_writes_the_defaults_out():
    digits = next(file for file in RECIPES if file.stem == "digits")
    assert build(EvalConfig, digits) == build(EvalConfig)
