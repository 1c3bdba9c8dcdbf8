"""README and documentation: small, its snippets run, its links lead somewhere, its pictures are today's."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from robustdup.cli.help import WHERE_TO_BEGIN
from robustdup.cli.main import app
from robustdup.config import DuplicateConfig, EvalConfig, TrainConfig, build
from robustdup.errors import UserError
from tests.forked import run

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "plugins").glob("*/README.md")),
    *sorted((ROOT / "examples").glob("*.md")),
]  # fmt: skip
PLUGGED = {"study": "robustdup_study", "detect": "robustdup_detect"}  # commands, and what brings them
GENERATED = {"cli.md", "config.md", "attacks.md", "record.md"}

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the documentation is there in a clone only")


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 8 * 1024


def test_the_snippets_of_the_readme_run(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(snippets) >= 2
    (tmp_path / "readme.py").write_text("\n".join(snippets), encoding="utf-8")
    done = run([str(tmp_path / "readme.py")], folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_snippet_of_the_duplicate_searchs_readme_runs():
    pytest.importorskip("robustdup_detect")
    text = (ROOT / "plugins" / "robustdup-detect" / "README.md").read_text(encoding="utf-8")
    [snippet] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names = {}
    exec(snippet, names)
    assert set(zip(names["pairs"].a.tolist(), names["pairs"].b.tolist(), strict=True)) >= {(i, i) for i in range(100)}
    assert all(names["pairs"].mirrored)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page):
    for target, place in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text(encoding="utf-8")):
        if "://" in target or Path(target).name in GENERATED:
            continue
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name}: {target}"
        if place and file.suffix == ".md":
            assert place in anchors(file.read_text(encoding="utf-8")), f"{page.name}: {target}#{place}"


def test_every_picture_is_on_a_page():
    shown = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    }
    assert {path for path in (ROOT / "docs").rglob("*") if path.suffix in (".png", ".svg")} <= shown


def anchors(text):
    """What the headings of a page are linked by: their words in lower case, joined by hyphens."""
    headings = re.findall(r"^#+ +(.+?) *$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def commands_in(text):
    """Yield the command lines of robustdup in the blocks of a page, as words up to a pipe or redirection."""
    for block in re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"\s*(\$ )?(uv run )?robustdup ", line):
                words = shlex.split(line.strip().removeprefix("$ ").removeprefix("uv run "), comments=True)
                yield list(itertools.takewhile(lambda word: word not in ("|", "&&", ";", ">", "2>"), words))[1:]


def mistakes_in(words):
    """Return what in a command line is no command, option or setting of today."""
    command = get_command(app)
    context = typer.Context(command, info_name="robustdup")
    words = list(words)
    while hasattr(command, "get_command") and words and not words[0].startswith("-"):
        name = words.pop(0)
        command = command.get_command(context, name)
        if command is None:
            plugin = PLUGGED.get(name)
            return [] if plugin is not None and importlib.util.find_spec(plugin) is None else [name]
        context = typer.Context(command, parent=context, info_name=name)
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"-h", "--help"}
    options = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
    settings = [match[1] for match in (re.match(r"([a-z_]+)(\.[\w.-]+)?=", word) for word in words) if match]
    fields = {"eval": EvalConfig, "train": TrainConfig, "duplicate": DuplicateConfig}.get(command.name)
    unknown = [] if fields is None else [name for name in settings if name not in fields.model_fields]
    mistakes = [option for option in options if option not in known] + unknown
    return mistakes if mistakes or fields is None or "--resume" in words else refused(command, words, fields)


def refused(command, words, fields):
    """Return what the configuration says to these settings, where it does not take them together."""
    try:
        given = command.make_context(command.name, list(words), resilient_parsing=True).params
        flags = {
            name: value for name, value in given.items() if name in fields.model_fields and value not in (None, [])
        }
        build(fields, overrides=[word for word in given["words"] or [] if "=" in word], values=flags)
    except UserError as error:
        return [str(error)]
    return []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_are_those_of_today(page):
    if page.name in GENERATED:
        pytest.skip("made from the commands themselves")
    for words in commands_in(page.read_text(encoding="utf-8")):
        assert mistakes_in(words) == [], " ".join(words)


def test_the_commands_that_the_program_begins_with_are_those_of_today():
    lines = [
        line.partition(":")[2].split("  built-in")[0]
        for line in WHERE_TO_BEGIN.splitlines()
        if ", robustdup" not in line
    ]
    commands = list(commands_in("```\n" + "\n".join(line.strip() for line in lines) + "\n```"))
    assert len(commands) == 5
    assert [mistake for words in commands for mistake in mistakes_in(words)] == []


def test_commands_of_yesterday_are_seen():
    text = (
        "```\nrobustdup evaluate x\nrobustdup eval --epsilon 1 attack=fgsm --n 3 # --no\n"
        "uv run robustdup eval \\\n  -h | x --y\n```"
    )
    found = [mistakes_in(words) for words in commands_in(text)]
    assert found == [["evaluate"], ["--epsilon", "attack"], []]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("train --model resnet18 duplicate.dose=0.5", "dose needs a scheme"),
        ("data duplicate x scheme=uniform dose=0.1 exponent=2", "does not use exponent"),
    ],
)
def test_settings_that_do_not_go_together_are_seen(line, reason):
    [[mistake]] = [mistakes_in(words) for words in commands_in(f"```\nrobustdup {line}\n```")]
    assert reason in mistake


def test_the_picture_of_the_rooms_is_todays():
    subprocess.run([sys.executable, ROOT / "docs" / "rooms.py", "--check"], check=True, timeout=120)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_page_of_tests_names_the_modules_of_the_slow_lane(whole):
    """Each push: what it names is there. By night: it names all."""
    text = (ROOT / "docs" / "contributing" / "tests.md").read_text(encoding="utf-8")
    named = {ROOT / name for name in re.findall(r"^\| `(\S+\.py)` \|", text, flags=re.MULTILINE)}
    modules = [path for part in ("tests", "plugins", "benchmarks") for path in (ROOT / part).rglob("test_*.py")]
    slow = {path for path in modules if re.search(r"pytest\.mark\.slow|@each_once\(", path.read_text(encoding="utf-8"))}
    assert len(named) > 20
    assert named <= slow
    assert not whole or named == slow


def test_the_files_that_the_architecture_names_are_there():
    text = (ROOT / "docs" / "contributing" / "architecture.md").read_text(encoding="utf-8")
    files = set(re.findall(r"`((?:robustdup|plugins|benchmarks|docs)/[\w/.-]+\.py)`", text))
    assert len(files) >= 6
    missing = {file for file in files if not (ROOT / file).is_file()}
    assert not missing
    walk = re.findall(r"`([\w/.-]+\.py)`, `(\w+)`", text)
    assert len(walk) >= 7
    assert [name for file, name in walk if f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")] == []
