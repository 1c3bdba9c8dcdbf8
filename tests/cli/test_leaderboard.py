"""`robustdup leaderboard`: what people and programs read from it."""

import json
import runpy
from pathlib import Path

import pytest
from typer.testing import CliRunner

from robustdup.cli.leaderboard import app
from robustdup.errors import UserError
from robustdup.records import save_record, save_samples

BUILD = runpy.run_path(str(Path(__file__).parents[1] / "leaderboard" / "conftest.py"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTDUP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run_folder(tmp_path):
    """Write a run of n samples of which `robust` survive."""

    def write(n=200, right=180, robust=114, **changes):
        clean, broken = [i < right for i in range(n)], [-1 if i < robust else 0 for i in range(n)]
        folder = tmp_path / "run"
        shared = {key: changes[key] for key in ("attacks",) if key in changes}
        table = BUILD["table"](clean, broken, **shared)
        save_samples({name: table[name].to_pylist() for name in table.column_names}, folder)
        save_record(BUILD["record"](clean, broken, **changes), folder)
        return folder

    return write


def call(*words, error=None):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if error is not None:
        assert isinstance(result.exception, error), result.output
        return str(result.exception)
    assert result.exception is None, result.exception
    return result.stdout


def test_show_lists_the_best_first():
    text = call("show", "--dataset", "cifar10", "--threat", "Linf", "--top", "3")
    lines = text.splitlines()
    assert "Bartoldson2024Adversarial_WRN-94-16" in lines[1]
    assert "73.71" in lines[1]
    assert "MeanSparse" in lines[2]
    assert "75.28" in lines[2]
    assert "73.10" in lines[2]
    assert lines[-1].startswith("3 of 236 entries. Table of 2026-11-22")


def test_show_takes_dataset_and_threat_as_words():
    wanted = call("show", "--dataset", "cifar10", "--threat", "Linf", "--top", "2")
    assert call("show", "cifar10", "linf", "--top", "2") == call("show", "Linf", "CIFAR10", "--top", "2") == wanted
    assert call("show", "cifar10", "--threat", "Linf", "--top", "2") == wanted
    assert "Did you mean 'imagenet'" in call("show", "imagnet", error=UserError)
    assert "give one dataset" in call("show", "cifar10", "cifar100", error=UserError)
    assert "give one threat model" in call("show", "L2", "--threat", "Linf", error=UserError)


def test_show_as_json_is_json_and_nothing_else():
    found = json.loads(call("show", "--dataset", "imagenet", "--threat", "linf", "--no-extra-data", "--json"))
    assert found["n"] == len(found["entries"])
    assert {(e["dataset"], e["threat_model"], e["extra_data"]) for e in found["entries"]} == {
        ("imagenet", "Linf", False)
    }
    assert "github.com/RobustBench" in found["source"]
    clean = json.loads(call("show", "--dataset", "cifar10", "--sort", "clean", "--top", "1", "--json"))["entries"][0]
    assert clean["clean_acc"] == 96.73


def test_show_marks_what_is_unreliable():
    assert "Kang2021Stable (unreliable)" in call("show", "--unreliable")
    assert "Kang2021Stable" not in call("show", "--dataset", "cifar10", "--no-unreliable")


def test_show_names_mistakes():
    assert "Did you mean 'cifar100'" in call("show", "--dataset", "cifar-1000", error=UserError)
    assert "no leaderboard for imagenet with L2" in call(
        "show", "--dataset", "imagenet", "--threat", "L2", error=UserError
    )


def test_rank_in_words_and_as_json(run_folder):
    folder = run_folder()
    text = call("rank", folder)
    assert "RobustBench cifar10 Linf 8/255: place" in text
    assert "checked on 200 of 200 samples" in text
    assert "RobustBench's own order" in text
    found = json.loads(call("rank", folder, "--json"))
    assert found["comparable"] is True
    assert found["autoattack"]["best"] < found["autoattack"]["place"] < found["autoattack"]["worst"]
    assert json.loads(call("rank", folder / "record.json", "--json")) == found


def test_rank_of_a_weaker_attack_is_labelled_as_a_bound(run_folder):
    text = call("rank", run_folder(attacks=("pgd",), asked="pgd"))
    assert "no rank, only a bound: at best place" in text
    assert "Not comparable: the attack is not AutoAttack (pgd)." in text
    assert "Upper bound, not a rank" in text


def test_rank_of_a_zoo_model_shows_the_published_number(run_folder):
    text = call("rank", run_folder(model={"spec": "robustbench:Carmon2019Unlabeled"}))
    assert "Published for Carmon2019Unlabeled: 59.53% at eps 8/255." in text
    assert "Measured minus published: -2.53 points; the published number is inside the 95% interval." in text


def test_rank_without_a_run(tmp_path):
    assert "There is no record" in call("rank", tmp_path / "nothing", error=UserError)


def test_a_damaged_fetched_table_is_mentioned(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "leaderboard.json").write_text("{")
    assert "Warning: The leaderboard table" in call("show", "--top", "1")
