"""The examples run as a user runs them, each in a process of its own."""

from pathlib import Path

import pytest

from tests.forked import run

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
LONG = ("compare_checkpoints", "evaluate_transformer")


@pytest.mark.skipif(not EXAMPLES, reason="the examples are there in a clone only")
@pytest.mark.parametrize(
    "example", [pytest.param(p, marks=[pytest.mark.slow] * (p.stem in LONG), id=p.stem) for p in EXAMPLES]
)
def test_example(example, tmp_path):
    if example.stem == "evaluate_transformer":
        pytest.importorskip("transformers")
    done = run([str(example)], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.strip()
