"""The tables of layouts in the documentation: each row names tests that are there, and each layout that is built has a row."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from tests import test_programs, test_tools_examples
from tests.data import test_layouts, test_listed_sets, test_public_sets
from tests.models import test_checkpoint_layouts

DOCS = Path(__file__).parent.parent / "docs" / "how-to"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the documentation is there in a clone only")
TABLES: list[tuple[str, str, tuple[ModuleType, ...], frozenset[str]]] = [
    ("data.md", "What is read from the disk", (test_layouts, test_public_sets, test_listed_sets), frozenset()),
    (
        "your-checkpoint.md",
        "Layouts of checkpoints",
        (test_checkpoint_layouts,),
        frozenset(test_checkpoint_layouts.LAYOUTS),
    ),
    ("your-checkpoint.md", "What is refused", (test_checkpoint_layouts, test_programs), frozenset()),
    (
        "resume-and-verify.md",
        "Examples of other tools",
        (test_tools_examples,),
        frozenset(test_tools_examples.CONTENTS),
    ),
]


def rows(page: str, heading: str) -> list[str]:
    """Return the last cells of the first table under a heading."""
    text = (DOCS / page).read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [line.strip("| ").rpartition(" | ")[2] for line in text.splitlines() if line.startswith("|")][2:]


@pytest.mark.parametrize(("page", "heading", "modules", "layouts"), TABLES, ids=[table[1] for table in TABLES])
def test_each_row_names_its_tests_and_each_layout_has_a_row(page, heading, modules, layouts):
    cells = rows(page, heading)
    assert len(cells) > 8
    named = [(set(re.findall(r"`(test_\w+)`", cell)), set(re.findall(r"\*([^*]+)\*", cell))) for cell in cells]
    assert all(tests or built for tests, built in named), [
        cell for cell, pair in zip(cells, named, strict=True) if not any(pair)
    ]
    missing = {test for tests, _ in named for test in tests if not any(hasattr(module, test) for module in modules)}
    assert not missing
    assert set().union(*(built for _, built in named)) == layouts
