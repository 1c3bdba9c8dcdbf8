"""Packages that belong together: one version, compatible pins, recipes that travel, names that are typed."""

import importlib.metadata
import itertools
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import robustdup
from robustdup.cli.main import main

ROOT = Path(__file__).parents[1]
PROJECTS = [ROOT / "pyproject.toml", *sorted((ROOT / "plugins").glob("*/pyproject.toml"))]

clone = pytest.mark.skipif(len(PROJECTS) < 2, reason="the packages stand side by side in a clone only")


def projects():
    return {content["project"]["name"]: content["project"] for content in map(_read, PROJECTS)}


def _read(path):
    return tomllib.loads(path.read_text(encoding="utf-8"))


@clone
def test_all_packages_have_one_version():
    assert {project["version"] for project in projects().values()} == {importlib.metadata.version("robustdup")}
    assert robustdup.__version__ == importlib.metadata.version("robustdup")


@clone
def test_packages_ask_for_compatible_ones_of_each_other():
    known = projects()
    for name, project in known.items():
        asked = [*project["dependencies"], *itertools.chain(*project.get("optional-dependencies", {}).values())]
        for requirement in map(Requirement, asked):
            if requirement.name in known:
                assert requirement.specifier.contains(known[requirement.name]["version"]), f"{name}: {requirement}"
                assert not any(part.operator == "==" for part in requirement.specifier), f"{name}: {requirement}"


def test_types_reach_users():
    assert (Path(robustdup.__file__).parent / "py.typed").is_file()


def test_recipes_are_listed_shown_and_copied(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["config", "list", "study"]) == 0
    assert "study/quickstart" in capsys.readouterr().out
    assert main(["config", "show", "quickstart"]) == 0
    shown = capsys.readouterr().out
    assert main(["config", "copy", "quickstart"]) == 0
    assert (tmp_path / "quickstart.yaml").read_text() == shown
    assert main(["config", "copy", "quickstart"]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert main(["config", "show", "quickstat"]) == 2
    assert "quickstart" in capsys.readouterr().err
