"""What importing does: nothing is seeded or set, and records, tables and reports load without torch.

Which part may import which is a contract of import-linter in pyproject.toml: `uv run lint-imports`.
"""

import subprocess
import sys
from pathlib import Path

import robustdup

PACKAGE = Path(robustdup.__file__).parent


def light_modules():
    names = ["robustdup", "robustdup.records", "robustdup.config", "robustdup.errors", "robustdup.plugins.registry"]
    for part in ("leaderboard", "report"):
        names += [
            ".".join(["robustdup", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
            for path in sorted((PACKAGE / part).rglob("*.py"))
        ]
    return names


def test_records_tables_and_reports_load_without_torch():
    code = f"""
import importlib, sys
for name in {light_modules()!r}:
    importlib.import_module(name)
    heavy = {{"torch", "torchvision", "sklearn", "datasets"}} & set(sys.modules)
    assert not heavy, (name, heavy)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr


def test_importing_seeds_and_sets_nothing():
    code = """
import random, numpy, torch
before = random.getstate(), repr(numpy.random.get_state()), torch.get_rng_state().tolist(), torch.get_num_threads()
import robustdup, robustdup.jobs
registry = robustdup.load_plugins()
after = random.getstate(), repr(numpy.random.get_state()), torch.get_rng_state().tolist(), torch.get_num_threads()
assert before == after
import sys
loaded = {"torchattacks", "art", "robustbench", "foolbox", "pyautoattack", "adv_lib"} & set(sys.modules)
assert not loaded, loaded
assert len(registry.attacks) >= 3
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
