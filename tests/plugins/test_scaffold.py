"""The package that `attacks new` writes: it installs, keeps the contract, and its own tests pass."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

from robustdup.cli.main import main
from robustdup.errors import UserError
from robustdup.plugins import Registry
from robustdup.plugins.scaffold import new_package
from tests.forked import run
from tests.raising import raises


def distribution(folder: Path, package: Path) -> None:
    """Lay down what `pip install` would of a pure package: its files on the path and its metadata beside them."""
    import tomllib

    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = project["entry-points"]["robustdup.plugins"]
    (info / "entry_points.txt").write_text(
        "[robustdup.plugins]\n" + "".join(f"{name} = {place}\n" for name, place in points.items())
    )


def test_its_own_tests_pass_where_it_is_installed(tmp_path, capsys):
    assert main(["attacks", "new", "my-attack", "--to", str(tmp_path / "package")]) == 0
    assert "robustdup attacks check my-attack" in capsys.readouterr().out
    distribution(tmp_path / "site", tmp_path / "package")
    path = os.pathsep.join([str(tmp_path / "site"), str(tmp_path / "package" / "src"), *sys.path])
    words = ["-q", "-p", "no:cacheprovider", "-n", "0", str(tmp_path / "package" / "tests")]
    (tmp_path / "run.py").write_text(f"import sys, pytest\nsys.exit(pytest.main({words}))")
    done = run([str(tmp_path / "run.py")], folder=tmp_path, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("....") or "4 passed" in done.stdout


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv builds and installs the wheel")
def test_its_wheel_brings_the_attack(tmp_path, monkeypatch):
    """Build and install without a network; examples/package_an_attack.py goes on to evaluate with it."""
    pytest.importorskip("hatchling")
    new_package("grey-steps", tmp_path / "package")
    env = {**os.environ, "VIRTUAL_ENV": sys.prefix, "UV_OFFLINE": "1", "UV_NO_BUILD_ISOLATION": "1"}
    for words in (
        "uv build --quiet --wheel package --out-dir dist",
        "uv pip install --quiet --no-deps --target site --find-links dist robustdup-grey-steps",
    ):
        done = subprocess.run(words.split(), cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    monkeypatch.syspath_prepend(tmp_path / "site")
    (installed,) = distributions(path=[str(tmp_path / "site")])
    (point,) = installed.entry_points.select(group="robustdup.plugins")
    registry = Registry()
    point.load()(registry)
    assert callable(registry.get_attack("grey-steps").function)


@pytest.mark.parametrize("name", ["My-Attack", "a b", "1st", "", "a--b", "../x"])
def test_a_name_that_no_attack_can_have(tmp_path, name):
    with raises("bad-value", UserError, "towards-grey"):
        new_package(name, tmp_path / "package")
    assert not (tmp_path / "package").exists()


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with raises("not-empty", UserError, str(tmp_path)):
        new_package("lambda", tmp_path)
    assert [path.name for path in new_package("lambda", tmp_path / "package")][-1] == "test_attack.py"
    assert "def lambda_(" in (tmp_path / "package" / "src" / "robustdup_lambda_" / "attack.py").read_text()
