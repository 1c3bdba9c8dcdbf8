"""The two commands, as they are called: `robustdup leaderboard submit` and `robustdup leaderboard refresh`."""

import json

import pytest
from typer.testing import CliRunner

from robustdup.cli.main import app
from robustdup.errors import RunError, UserError
from robustdup.records import save_record, save_samples


@pytest.fixture
def run_folder(tmp_path, make_table, make_record):
    """Write a run of n samples of which `robust` survive."""

    def write(n=200, right=180, robust=114, **changes):
        clean, broken = [i < right for i in range(n)], [-1 if i < robust else 0 for i in range(n)]
        folder = tmp_path / "run"
        table = make_table(clean, broken, **{key: changes[key] for key in ("attacks",) if key in changes})
        save_samples({name: table[name].to_pylist() for name in table.column_names}, folder)
        save_record(make_record(clean, broken, **changes), folder)
        return folder

    return write


def call(*words, error=None):
    result = CliRunner().invoke(app, ["leaderboard", *map(str, words)])
    if error is not None:
        assert isinstance(result.exception, error), result.output
        return str(result.exception)
    assert result.exception is None, result.exception
    return result.stdout


def test_submit_writes_beside_the_run(run_folder):
    folder = run_folder()
    assert "10000 of cifar10" in call("submit", folder, error=UserError)
    text = call("submit", folder, "--draft", "--name", "Mine2026Model", "--paper-title", "A title", "--no-extra-data")
    info = json.loads((folder / "robustbench/model_info/cifar10/Linf/Mine2026Model.json").read_text())
    assert (info["name"], info["additional_data"], info["autoattack_acc"]) == ("A title", False, "57.00")
    assert "claim.md" in text
    assert "--authors" in text
    assert "--paper-title" not in text


def test_submit_refuses_another_attack(run_folder):
    assert "not AutoAttack" in call("submit", run_folder(attacks=("pgd",), asked="pgd"), error=UserError)


def test_refresh_without_a_network_says_so(tmp_path):
    message = call("refresh", "--url", "http://127.0.0.1:9/repo", "--to", tmp_path / "table.json", error=RunError)
    assert "Is this machine online?" in message
    assert not (tmp_path / "table.json").exists()
    assert "not an http" in call("refresh", "--url", "ftp://x", error=UserError)
