"""README and documentation: small, its snippets run, its links lead somewhere, its pictures are today's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = {"cli.md", "config.md", "attacks.md", "record.md"}

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the documentation is there in a clone only")


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 8 * 1024


def test_the_snippets_of_the_readme_run():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(snippets) >= 2
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(snippets)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target and Path(target).name not in GENERATED:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_picture_of_the_rooms_is_todays():
    subprocess.run([sys.executable, ROOT / "docs" / "rooms.py", "--check"], check=True, timeout=120)


def test_the_files_that_the_architecture_names_are_there():
    text = (ROOT / "docs" / "contributing" / "architecture.md").read_text(encoding="utf-8")
    files = set(re.findall(r"`((?:robustdup|plugins|benchmarks|docs)/[\w/.-]+\.py)`", text))
    assert len(files) >= 6
    missing = {file for file in files if not (ROOT / file).is_file()}
    assert not missing
