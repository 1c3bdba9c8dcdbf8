"""The examples run as a user runs them, each in a process of its own."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.forked import run

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
LONG = ("compare_checkpoints", "evaluate_transformer", "package_an_attack")  # .ci/wheels runs the last at each push


@pytest.mark.skipif(not EXAMPLES, reason="the examples are there in a clone only")
@pytest.mark.parametrize(
    "example", [pytest.param(p, marks=[pytest.mark.slow] * (p.stem in LONG), id=p.stem) for p in EXAMPLES]
)
def test_example(example, tmp_path):
    if example.stem == "evaluate_transformer":
        pytest.importorskip("transformers")
    if example.stem == "package_an_attack" and shutil.which("uv") is None:
        pytest.skip("uv is not installed")
    # Wheels are built by the hatchling that is here: no network is asked.
    offline = {"UV_NO_BUILD_ISOLATION": "1", "UV_OFFLINE": "1", "VIRTUAL_ENV": sys.prefix}
    done = run([str(example)], folder=tmp_path, env={**os.environ, **offline})
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.strip()
