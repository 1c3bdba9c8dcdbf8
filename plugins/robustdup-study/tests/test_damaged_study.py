"""Every file of a study, damaged: one message, or a cell that counts as missing; never a traceback."""

from __future__ import annotations

import json
import shutil

import pytest
from robustdup_study.cell_record import Measurement

from robustdup.cli.main import main
from tests.test_damaged_runs import DAMAGES, QUICK, damage, said

RECIPE = """
protocol: as-published
base: {data: "builtin:digits", epochs: 1, n: 150, test_n: 100}
factors: {arm: [standard, adversarial], percent: [0, 10]}
seeds: 2
published: true
workers: 1
analysis: {dose: percent, metrics: [test_clean_acc, test_adv_acc]}
"""
LATER = pytest.mark.slow


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study whose cells train nothing."""

    def arm(config, device, progress):
        accuracy = 0.7 + 0.01 * config.seed
        metrics = {"test_clean_acc": accuracy, "test_adv_acc": accuracy / 2}
        return [Measurement(factors={"percent": percent}, metrics=metrics) for percent in config.percents]

    folder = tmp_path_factory.mktemp("studies")
    (folder / "small.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("robustdup_study.paper_2504_00638.protocol.run_arm", arm)
        assert main(["study", "run", str(folder / "small.yaml"), "--out", str(folder / "study")]) == 0
    return folder


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=[] if how in QUICK else LATER) for how in [*DAMAGES, "gone", "a folder"]]
)
def test_no_file_of_a_study_ends_in_a_traceback(study, how, tmp_path, capsys):
    shutil.copytree(study / "study", tmp_path / "study")
    cell = next((tmp_path / "study" / "cells").glob("*/cell.json"))
    words = [str(study / "small.yaml"), "--out", str(tmp_path / "study")]
    for file in (cell, *(tmp_path / "study" / name for name in ("grid.json", "analysis.json", "record.json"))):
        kept = file.read_bytes()
        damage(file, how)
        said(["study", "status", *words], capsys)
        said(["study", "report", *words], capsys)
        if file.is_dir():
            file.rmdir()
        file.write_bytes(kept)
    assert said(["study", "status", *words, "--json"], capsys)[0] == 0


@pytest.mark.parametrize(
    ("name", "edit", "says"),
    [
        ("grid.json", lambda content: content["runs"][0].update(key="../../other"), "grid.json"),
        ("grid.json", lambda content: content["runs"].append(3), "grid.json"),
        ("grid.json", lambda content: content.update(recipe=None), "grid.json"),
        ("analysis.json", lambda content: content[0].pop("analysis"), "analysis.json"),
        ("analysis.json", lambda content: content.append("x"), "analysis.json"),
        ("cell", lambda content: content.update(key="another"), "another cell"),
        ("cell", lambda content: content.update(measurements=[]), None),
        ("cell", lambda content: content["measurements"][0].update(factors={}), None),
        ("cell", lambda content: content["measurements"][0]["metrics"].update(test_clean_acc=None), None),
        ("cell", lambda content: content["measurements"][0]["metrics"].update(test_clean_acc=1e308), None),
    ],
)  # fmt: skip
def test_odd_content_is_told_or_counts_as_missing(study, name, edit, says, tmp_path, capsys):
    shutil.copytree(study / "study", tmp_path / "study")
    cell = next((tmp_path / "study" / "cells").glob("*/cell.json"))
    file = cell if name == "cell" else tmp_path / "study" / name
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))
    words = [str(study / "small.yaml"), "--out", str(tmp_path / "study")]
    code, shown = said(["study", "report", *words], capsys)
    assert code == (0 if name == "cell" else 2)
    assert says is None or says in " ".join((shown.out + shown.err).split())
