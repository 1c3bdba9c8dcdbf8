"""Imports point down only, and records are read without torch. Read from the syntax tree; nothing is imported here."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import robustdup

PACKAGE = Path(robustdup.__file__).parent
PLUGINS = PACKAGE.parent / "plugins"

# What each part may import besides itself: everything on the levels below. Parts of one level do not import each other.
LEVELS = [
    {"errors"},
    {"runners", "registry", "config", "records", "threat", "rng"},
    {"attacks", "models", "data"},
    {"training", "evaluation", "leaderboard"},
    {"jobs"},
    {"study"},
    {"bench", "report"},
    {"cli"},
    {"__main__"},
]
ONLY = {"report": {"leaderboard", "records", "errors"}}
TOOLKITS = {"torchattacks", "art", "robustbench", "foolbox", "autoattack", "pyautoattack", "eagerpy"}
NO_TORCH = ("leaderboard", "report", "records", "config", "errors")


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def part_of(path):
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imported(path):
    """Yield the dotted names that a file imports, wherever in the file; relative imports are refused."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def allowed(part):
    level = next((i for i, parts in enumerate(LEVELS) if part in parts), None)
    assert level is not None, f"{part} has no level: DESIGN names the levels"
    return ONLY.get(part, set().union(*LEVELS[:level])) | {part}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    part = part_of(path)
    if part == "__init__":
        return  # the public names: imported on first use, see below
    for name in imported(path):
        top, *rest = name.split(".")
        assert top not in TOOLKITS, f"{path.name} imports {name}: the core knows no toolkit"
        if top == "robustdup" and rest and rest[0] in set().union(*LEVELS):
            assert rest[0] in allowed(part), f"{part} must not import {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_parts_without_torch_do_not_import_it(path):
    if part_of(path) in NO_TORCH:
        assert not {name.split(".")[0] for name in imported(path)} & {"torch", "torchvision"}


def plugin_files():
    return sorted(path for path in PLUGINS.glob("*/src/**/*.py"))


@pytest.mark.skipif(not PLUGINS.is_dir(), reason="the plugins are beside the package only in a clone")
def test_plugins_import_public_names_only():
    assert plugin_files()
    for path in plugin_files():
        for name in imported(path):
            top, *rest = name.split(".")
            if top == "robustdup":
                assert rest == [] or (len(rest) == 1 and rest[0] in robustdup.__all__), f"{path}: {name} is not public"


def light_modules():
    found = ["robustdup", "robustdup.records", "robustdup.config", "robustdup.errors", "robustdup.plugins.registry"]
    for part in ("leaderboard", "report"):
        found += [
            ".".join(["robustdup", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
            for path in sorted((PACKAGE / part).rglob("*.py"))
        ]
    return found


def test_records_tables_and_reports_load_without_torch():
    code = f"""
import importlib, sys
for name in {light_modules()!r}:
    importlib.import_module(name)
    heavy = {{"torch", "torchvision", "sklearn", "datasets"}} & set(sys.modules)
    assert not heavy, (name, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_seeds_and_sets_nothing():
    code = """
import random, numpy, torch
before = random.getstate(), repr(numpy.random.get_state()), torch.get_rng_state().tolist(), torch.get_num_threads()
import robustdup, robustdup.jobs
registry = robustdup.load_plugins()
after = random.getstate(), repr(numpy.random.get_state()), torch.get_rng_state().tolist(), torch.get_num_threads()
assert before == after
import sys
loaded = {"torchattacks", "art", "robustbench", "foolbox", "pyautoattack"} & set(sys.modules)
assert not loaded, loaded
assert len(registry.attacks) >= 3
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_the_checks_above_can_fail(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text("import torch\ndef f():\n    from robustdup.cli import main\n    import foolbox.attacks\n")
    assert set(imported(file)) == {"torch", "robustdup.cli.main", "foolbox.attacks"}
    assert "cli" not in allowed("attacks")
    assert "models" not in allowed("attacks")
