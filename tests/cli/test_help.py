"""Help that people can read: panels, choices, `-h` everywhere, and where to begin."""

import io
import re
import subprocess
import sys
import types
from typing import Literal, get_args, get_origin

import pytest
from rich.console import Console
from typer.main import get_command

from robustdup import Registry, how_to_install, load_plugins
from robustdup.cli.compare import comparison_table
from robustdup.cli.help import WHERE_TO_BEGIN
from robustdup.cli.main import app, main
from robustdup.cli.verify import USED
from robustdup.config import DuplicateConfig, EvalConfig, TrainConfig
from robustdup.leaderboard import PairedDifference

COMMANDS = {"eval": EvalConfig, "train": TrainConfig, "data duplicate": DuplicateConfig}


def shown(capsys, words):
    assert main([*words.split(), "-h"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", COMMANDS.values())
def test_every_setting_is_in_exactly_one_panel(kind):
    placed = [name for names in kind.panels.values() for name in names]
    assert sorted(placed) == sorted(kind.model_fields)


@pytest.mark.parametrize("words", COMMANDS)
def test_help_shows_every_flag_under_its_panel_and_the_words_of_a_choice(capsys, words):
    text, kind = shown(capsys, words), COMMANDS[words]
    panels = list(kind.panels)
    starts = [text.index(f"\n{panel}:\n") for panel in panels]
    assert starts == sorted(starts)
    for panel, start in zip(panels, starts, strict=True):
        own = text[start : text.index("\n\n", start)]
        for name in kind.panels[panel]:
            annotation, flag = kind.model_fields[name].annotation, f"--{name.replace('_', '-')}"
            by_word = get_origin(annotation) is dict or name == "duplicate"
            assert bool(re.search(rf"^  {flag}\b", own, re.MULTILINE)) != by_word, (panel, name)
            if by_word:
                assert f"  {name}.KEY=VALUE" in text
            if get_origin(annotation) is Literal:
                words_of_choice = get_args(annotation)
                whole = f"{flag} {'|'.join(words_of_choice)}"
                assert whole in own if len(whole) <= 78 else all(word in own.split(flag)[1] for word in words_of_choice)
    assert "<list" not in text


def test_help_names_every_loss_and_norm(capsys):
    text = shown(capsys, "eval")
    assert "--norm Linf|L2|L1" in text
    for name in load_plugins().losses:
        assert name in text


@pytest.mark.parametrize("words", ["", "attacks", "attacks check", "config show", "leaderboard rank", "doctor"])
def test_h_is_help_everywhere(capsys, words):
    assert shown(capsys, words).startswith("Usage: ")


def every_command(group, words=(), context=None):
    """Walk the words of all commands below a group, plugins' too."""
    context = group.make_context(words[-1] if words else "robustdup", [], parent=context, resilient_parsing=True)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*words, name)
        if hasattr(command, "list_commands"):
            yield from every_command(command, (*words, name), context)


def test_no_help_breaks_a_word_or_leaves_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    commands = list(every_command(get_command(app)))
    assert {("eval",), ("attacks", "list"), ("data", "detect"), ("study", "run")} <= set(commands)
    for words in commands:
        lines = shown(capsys, " ".join(words)).splitlines()
        assert max(map(len, lines)) <= 80, words
        assert not [line for line in lines if re.search(r"\w[-/]$", line)], words


@pytest.mark.parametrize("words", ["", "data", "attacks", "leaderboard", "config"])
def test_what_a_command_does_stands_whole_in_the_help_of_its_group(capsys, monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "80")
    commands = shown(capsys, words).partition("\nCommands:\n")[2]
    assert commands.count("\n") >= 3
    assert "..." not in commands


def test_where_to_begin_fits_a_narrow_terminal():
    assert max(map(len, WHERE_TO_BEGIN.splitlines())) <= 80


def test_without_a_command_it_says_where_to_begin(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert out.strip() == WHERE_TO_BEGIN
    for word in ("eval", "train", "data duplicate", "http"):
        assert word in out
    assert "--install-completion" in shown(capsys, "")


def test_verify_offers_only_what_it_uses(capsys):
    text = shown(capsys, "verify")
    flags = set(re.findall(r"^  --([a-z-]+)", text, re.MULTILINE)) - {
        *("json", "trust", "scale", "indices", "replay", "signer", "sign")
    }
    assert flags == {name.replace("_", "-") for name in USED}
    assert "attacks" not in flags
    assert "min-distance" not in flags


def test_help_imports_no_torch():
    code = "import sys; from robustdup.cli.main import main; main(['eval', '-h']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_shell_completes_the_words_of_a_choice():
    words = "robustdup eval --precision "
    done = subprocess.run(
        [sys.executable, "-c", "from robustdup.cli.main import run; run()"],
        env={"_ROBUSTDUP_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "3", "PATH": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["auto", "fp32", "tf32", "bf16"], done.stderr
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["data", "detect", "builtin:digits"], "detect"),
        (["study", "run", "smallest"], "study"),
        (["export", "runs/mine", "--to", "onnx"], "publish"),
        (["leaderboard", "submit", "runs/mine"], "publish"),
        (["leaderboard", "refresh"], "publish"),
    ],
)
def test_a_command_of_a_plugin_that_is_not_installed_names_the_plugin(capsys, monkeypatch, words, extra):
    monkeypatch.setattr("robustdup.cli.plugged.plugged", dict)
    monkeypatch.setattr("robustdup.cli.plugged.load_plugins", Registry)
    assert main(words) == 2
    assert f"robustdup-{extra} is not installed: {how_to_install(f'robustdup[{extra}]')}" in capsys.readouterr().err
    assert main([*words[: words[0] in ("data", "leaderboard")], "nonsense"]) == 2
    assert "No such command 'nonsense'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("rank", "robustdup leaderboard rank"), ("duplicate", "robustdup data duplicate"),
        ("detect", "robustdup data detect"),
        ("show", "robustdup attacks show or robustdup config show or robustdup leaderboard show"),
    ],
)  # fmt: skip
def test_a_command_of_a_group_without_its_group_names_it(capsys, word, meant):
    if word == "detect":
        pytest.importorskip("robustdup_detect")
    assert main([word, "anything"]) == 2
    assert f"No such command '{word}'. Write {meant}." in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("flag", ["--show-completion", "--install-completion"])
def test_completion_is_shown_and_installed(capsys, monkeypatch, tmp_path, shell, flag):
    """Under a home of its own; what shell it is, is asked of the processes above, and so told here."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("typer._completion_shared._get_shell_name", lambda: shell)
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: shell)
    assert main([flag]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    written = "".join(path.read_text() for path in tmp_path.rglob("*robustdup*") if path.is_file())
    assert "_ROBUSTDUP_COMPLETE" in (out if flag == "--show-completion" else written)


@pytest.mark.parametrize(
    ("words", "longest"),
    [
        ("leaderboard show --dataset cifar10 --threat Linf --top 30", "Bartoldson2024Adversarial_WRN-94-16"),
        ("leaderboard show", "Bartoldson2024Adversarial_WRN-94-16"),
        ("leaderboard show cifar10 corruptions", "Diffenderfer2021"),
        ("attacks list", "difference-of-logits"),
    ],
)
def test_tables_do_not_break_words_at_80_columns(capsys, monkeypatch, words, longest):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(words.split()) == 0
    out = capsys.readouterr().out
    assert longest in out
    assert "…" not in out
    assert max(map(len, out.splitlines()[:30])) <= 80
    assert "leaderboard" not in words or re.search(r"\d\d\.\d\d  +\d\d\.\d\d", out)


def test_the_difference_of_two_runs_fits_into_80_columns():
    difference = PairedDifference(
        n=9, a=1.0, b=0.9, difference=0.1, low=-0.1234, high=0.1234, only_a=1000, only_b=1000, p_value=1.23e-45
    )
    console = Console(width=80, file=io.StringIO())
    console.print(comparison_table(types.SimpleNamespace(clean=difference, robust=difference)))
    text = console.file.getvalue()
    assert "…" not in text
    assert "-12.34 to +12.34" in text
