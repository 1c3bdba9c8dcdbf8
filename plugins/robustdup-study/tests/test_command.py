"""`robustdup study` as a user runs it: the published protocol on a few digits, which takes seconds."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from robustdup_study.cell_record import Measurement
from robustdup_study.records import load_study_record

from robustdup.cli.main import main

RECIPE = """
protocol: as-published
base: {data: "builtin:digits", epochs: 1, n: 60, test_n: 40}
factors:
  arm: [standard, adversarial]
  percent: [0, 10]
seeds: 2
published: true
workers: 1
analysis: {dose: percent, metrics: [test_clean_acc, test_adv_acc], margins: {test_clean_acc: 5}}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def quick_cells(monkeypatch):
    """Cells that train nothing: what they would measure is told from their settings."""

    def arm(config, device, progress):
        accuracy = 0.7 + 0.01 * config.seed
        metrics = {"test_clean_acc": accuracy, "test_adv_acc": accuracy / 2}
        return [Measurement(factors={"percent": percent}, metrics=metrics) for percent in config.percents]

    monkeypatch.setattr("robustdup_study.paper_2504_00638.protocol.run_arm", arm)


def test_run_status_report(recipe, tmp_path, capsys):
    out = tmp_path / "study"
    words = [str(recipe), "--out", str(out)]
    assert main(["study", "run", *words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["schema_name"], record["status"], record["n_cells"], record["n_complete"]) == (
        "robustdup.study", "complete", 6, 6,
    )  # fmt: skip
    assert record["command"] == shlex.join(["robustdup", "study", "run", *words])
    assert len(record["runs"]) == 8  # the standard arm measures both doses in one cell
    assert len(record["conclusions"]) == 3  # clean accuracy in both arms, adversarial in one
    assert all("at dose 10 (" in text for text in record["conclusions"])
    assert [claim["verdict"] for claim in record["claims"]][2] == "not tested"
    beside = {(p["arm"], p["percent"], p["metric"], p["source"]): p for p in record["published"]}
    here = beside["standard", 10.0, "clean", "authors' notebook output"]
    assert (here["published"], here["seeds"]) == (73.41, 2)
    assert 0 <= here["here"] <= 100
    assert load_study_record(out).n_cells == 6
    assert pq.read_table(out / "cells.parquet").num_rows == 8
    report = (out / "report.md").read_text()
    assert "# small" in report
    assert "| arm | percent | metric | published |" in report

    log = (out / "log.jsonl").read_text()
    assert main(["study", "run", *words]) == 0  # nothing is run twice
    assert (out / "log.jsonl").read_text() == log
    shown = capsys.readouterr().out
    assert "6 of 6 cells, 2 seeds" in shown
    assert "Conclusions" in shown

    assert main(["study", "status", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "name": "small", "cells": 6, "complete": 6, "failed": 0, "missing": 0, "errors": {},
    }  # fmt: skip

    (next((out / "cells").glob("*")) / "cell.json").unlink()
    assert main(["study", "report", *words]) == 0
    shown = capsys.readouterr().out
    assert "5 of 6 cells" in shown
    assert "1 of 6 cells has not run: run the study again to go on." in shown


def test_an_interrupted_study_says_the_whole_command_that_goes_on(recipe, tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("robustdup_study.run.run_cells", interrupted)
    words = ["study", "run", str(recipe), "seeds=1", "--out", str(tmp_path / "a study"), "--workers", "2"]
    assert main(words) == 130
    assert shlex.join(["robustdup", *words]) in capsys.readouterr().err


def test_margins_that_change_after_results_are_told(recipe, quick_cells, tmp_path, capsys):
    words = [str(recipe), "--out", str(tmp_path / "study"), "seeds=1"]
    assert main(["study", "run", *words]) == 0
    assert main(["study", "report", *words, "analysis.margins.test_clean_acc=9"]) == 0
    assert "is not the one that was fixed when the study was run" in capsys.readouterr().out
    assert main(["study", "run", *words, "analysis.margins.test_clean_acc=9", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert "when 3 cells were finished" in record["analysis_changes"][0]


def test_more_seeds_reuse_what_is_there_and_a_report_of_another_recipe_is_refused(
    recipe, quick_cells, tmp_path, capsys
):
    words = [str(recipe), "--out", str(tmp_path / "study")]
    assert main(["study", "run", *words, "seeds=1"]) == 0
    assert main(["study", "report", *words]) == 2
    assert "'seeds' in the recipe is not what was run" in capsys.readouterr().err
    assert main(["study", "status", *words, "--json"]) == 0  # overrides need not be typed again to look
    assert json.loads(capsys.readouterr().out)["cells"] == 3
    assert main(["study", "status", *words, "seeds=2", "--json"]) == 2  # but one that is typed must be what was run
    assert "'seeds'" in capsys.readouterr().err
    assert main(["study", "run", *words]) == 0
    starts = [line for line in (tmp_path / "study/log.jsonl").read_text().splitlines() if '"start"' in line]
    assert len(starts) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study", "run"], "Name a recipe"),
        (["study", "run", "missing.yaml"], "There is no configuration file"),
        (["study", "status", "RECIPE", "--out", "nowhere"], "There is no study in 'nowhere' yet"),
        (["study", "run", "RECIPE", "base.epoch=3"], "Unknown key of base: 'epoch'. Did you mean 'epochs'"),
        (["study", "run", "RECIPE", "factors.doses=[1]"], "Unknown factor of the published protocol: 'doses'"),
        (["study", "run", "RECIPE", "factors.percent=[0, 500]"], "percent goes from 0 to 100"),
        (["study", "run", "RECIPE", "runner=cloud"], "Unknown runner 'cloud'"),
        (["study", "gaussian", "--out", "x.bmp"], "must end in .png, .pdf or .svg"),
    ],
)
def test_mistakes(recipe, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main([str(recipe) if word == "RECIPE" else word for word in words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_grid_that_nobody_meant_is_asked_about_and_left_alone(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    asked = []
    monkeypatch.setattr("typer.confirm", lambda question: asked.append(question))
    assert main(["study", "run", str(recipe), "seeds=3000"]) == 1
    assert asked == ["This recipe has 12,000 cells. Go on?"]
    assert capsys.readouterr().err == "Nothing was run.\n"
    assert not (tmp_path / "studies").exists()


def test_the_gaussian_illustration_draws_its_picture(tmp_path, capsys):
    path = tmp_path / "picture.png"
    assert main(["study", "gaussian", "--seeds", "2", "--out", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "80/20, 400 duplicates of 200 points: accuracy on fresh points changed by" in capsys.readouterr().out


def test_help_needs_no_torch():
    code = "import sys, robustdup_study.command, robustdup_study.report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
