"""Messages whose instruction works where it is printed."""

import importlib.metadata
import importlib.util
import shutil
import sys

import pytest

from robustdup import Registry, Unavailable, errors
from robustdup.attacks import register
from robustdup.errors import how_to_install, missing_plugin
from robustdup.models.load import load_model
from robustdup.plugins import PluginStatus
from tests.raising import raises


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Stand in an environment: with pip or without, of uv or not, beside a clone or not."""

    def make(*, pip, uv, clone):
        errors._made_by_uv.cache_clear()
        errors._clone_of_uv.cache_clear()
        prefix = tmp_path / ".venv"
        prefix.mkdir()
        (prefix / "pyvenv.cfg").write_text("home = /usr/bin\n" + ("uv = 0.9.1\n" if uv else ""))
        if clone:
            (tmp_path / "pyproject.toml").write_text('[project]\nname = "robustdup"\n')
        monkeypatch.setattr(sys, "prefix", str(prefix))
        monkeypatch.setattr(sys, "executable", str(prefix / "bin" / "python"))
        monkeypatch.setattr(shutil, "which", lambda name: str(prefix / "bin" / name))
        monkeypatch.setenv("VIRTUAL_ENV", str(prefix))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: object() if pip else None)
        return prefix

    yield make
    errors._made_by_uv.cache_clear()
    errors._clone_of_uv.cache_clear()


@pytest.mark.parametrize(
    ("where", "extra", "package"),
    [
        ({"pip": True, "uv": False, "clone": True}, "pip install 'robustdup[timm]'", "pip install numba"),
        ({"pip": False, "uv": True, "clone": False}, "uv pip install 'robustdup[timm]'", "uv pip install numba"),
        ({"pip": False, "uv": True, "clone": True}, "uv sync --inexact --extra timm", "uv pip install numba"),
        ({"pip": False, "uv": False, "clone": True}, "uv pip install 'robustdup[timm]'", "uv pip install numba"),
    ],
)
def test_the_command_is_one_that_this_environment_has(place, where, extra, package):
    place(**where)
    assert how_to_install("robustdup[timm]") == extra
    assert how_to_install("numba") == package


def test_the_command_names_an_environment_that_no_shell_has_activated(place, monkeypatch, tmp_path_factory):
    prefix = place(pip=False, uv=True, clone=True)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert how_to_install("numba") == "uv pip install numba"
    assert how_to_install("robustdup[timm]") == f"uv sync --project {prefix.parent} --inexact --extra timm"
    monkeypatch.delenv("VIRTUAL_ENV")
    assert how_to_install("numba") == f"uv pip install --python {prefix} numba"
    (prefix.parent / "sub").mkdir()
    monkeypatch.chdir(prefix.parent / "sub")  # uv finds .venv above
    assert how_to_install("numba") == "uv pip install numba"


def test_a_pip_of_another_environment_is_not_called(place, monkeypatch):
    prefix = place(pip=True, uv=False, clone=False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert how_to_install("numba") == f"{prefix}/bin/python -m pip install numba"


def test_without_pip_and_without_uv_pip_is_put_there_first(place, monkeypatch):
    python = place(pip=False, uv=False, clone=False) / "bin" / "python"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert how_to_install("numba") == f"{python} -m ensurepip && {python} -m pip install numba"


def test_every_extra_that_a_message_names_exists():
    offered = set(importlib.metadata.metadata("robustdup").get_all("Provides-Extra"))
    assert {"torchattacks", "art", "foolbox", "advlib", "robustbench", "zoo", "hf", "timm", "ray", "detect"} <= offered


@pytest.mark.parametrize(
    "name", ["torchattacks:PGD", "art:FastGradientMethod", "foolbox:LinfPGD", "advlib:alma", "robustbench:APGD-CE"]
)
def test_an_attack_of_a_plugin_that_is_not_installed_names_the_plugin(name):
    registry, prefix = Registry(), name.partition(":")[0]
    register(registry)
    for look in (registry.get_attack, registry.stages):
        with raises("plugin-not-installed", Unavailable, f"robustdup-{prefix}", how_to_install(f"robustdup[{prefix}]")):
            look(name)
    with raises("unknown-attack"):
        registry.get_attack("nobody:PGD")
    registry.plugins.append(PluginStatus(prefix, "dist", "1", ok=False, reason="it broke"))
    with raises("unknown-attack", errors.UserError, "it broke"):
        registry.get_attack(name)


def test_a_model_of_a_plugin_that_is_not_installed_names_the_plugin():
    with raises("plugin-not-installed", Unavailable, "robustdup-robustbench"):
        load_model("robustbench:Wong2020Fast", registry=Registry())
    assert missing_plugin("timm") is None
