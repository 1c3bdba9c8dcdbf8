"""Packages that belong together: one version, compatible pins, recipes that travel, names that are typed."""

import importlib.metadata
import itertools
import re
import shutil
import subprocess
import sys
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


@clone
def test_one_command_sets_the_version_everywhere(tmp_path):
    files = [*PROJECTS, ROOT / "CITATION.cff", ROOT / "CHANGELOG.md", ROOT / ".ci" / "version"]
    for file in files:
        to = tmp_path / file.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, to)
    subprocess.run([sys.executable, tmp_path / ".ci" / "version", "1.2.3"], check=True, capture_output=True, timeout=60)
    written = [_read(tmp_path / file.relative_to(ROOT))["project"] for file in PROJECTS]
    assert {project["version"] for project in written} == {"1.2.3"}
    asked = [each for project in written for each in project["dependencies"]]
    asked += [
        each for project in written for extra in project.get("optional-dependencies", {}).values() for each in extra
    ]
    ours = [each for each in map(Requirement, asked) if each.name in projects()]
    assert len(ours) >= 15
    assert {str(each.specifier) for each in ours} == {"~=1.2.3"}
    others = [(tmp_path / file.relative_to(ROOT)).read_text() for file in files[-3:-1]]
    assert "\nversion: 1.2.3\n" in others[0]
    assert re.search(r"^## Unreleased\n\n## 1\.2\.3 - \d{4}-\d\d-\d\d\n", others[1], flags=re.MULTILINE)
    assert subprocess.run(
        [sys.executable, tmp_path / ".ci" / "version", "next"], capture_output=True, check=False
    ).returncode
