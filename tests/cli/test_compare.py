"""`robustdup compare`: the table that people read, the JSON that programs read, and refusals."""

import json
import re
import runpy
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

import robustdup.cli.compare as comparing
from robustdup.errors import UserError
from robustdup.records import load_record, save_record, save_samples
from robustdup.records.evaluation import CurvePoint
from robustdup.report.terminal import latex_table
from tests.raising import raises

BUILD = runpy.run_path(str(Path(__file__).parents[1] / "leaderboard" / "conftest.py"))


@pytest.fixture
def run_folder(tmp_path):
    """Write a run in which the given samples break."""

    def write(name, broken, n=50, **changes):
        place = [0 if i in broken else -1 for i in range(n)]
        rows = {key: changes.pop(key) for key in ("hashes",) if key in changes}
        table = BUILD["table"]([True] * n, place, **rows)
        save_samples({column: table[column].to_pylist() for column in table.column_names}, tmp_path / name)
        save_record(BUILD["record"]([True] * n, place, run_id=name, **changes), tmp_path / name)
        return str(tmp_path / name)

    return write


def call(*words, error=None):
    app = typer.Typer()
    app.command()(comparing.compare)
    result = CliRunner().invoke(app, list(words))
    if error is not None:
        assert isinstance(result.exception, error), result.output
        return str(result.exception)
    assert result.exception is None, result.exception
    return result.stdout


def test_the_difference_in_words(run_folder):
    text = call(run_folder("first", {1, 2}), run_folder("second", {2, *range(10, 20)}))
    robust = next(line for line in text.splitlines() if line.startswith("robust"))
    assert [robust.split()[i] for i in (1, 2, 3)] == ["96.00%", "78.00%", "+18.00"]
    assert robust.split()[-3:-1] == ["10", "1"]
    assert "11 samples changed; indices: 1, 10, 11" in text
    assert "50 samples, Linf, eps = 8/255" in text


def test_the_difference_as_json(run_folder):
    found = json.loads(call(run_folder("first", {1}), run_folder("second", {1, 3, 4}), "--json"))
    assert (found["run_a"], found["run_b"], found["n_common"]) == ("first", "second", 50)
    assert (found["robust"]["only_a"], found["robust"]["only_b"], found["robust"]["p_value"]) == (2, 0, 0.5)
    assert [point["index"] for point in found["changed"]] == [3, 4]
    assert found["robust"]["low"] < 0.04 < found["robust"]["high"]
    assert found["clean"]["difference"] == 0


def test_runs_on_other_images_are_refused(run_folder):
    message = call(run_folder("first", {1}), run_folder("second", {1}, hashes=["a" * 64] * 50), error=UserError)
    assert "other pixels" in message
    assert "There is no record" in call(run_folder("third", {1}), "nowhere", error=UserError)


def test_equal_runs(run_folder):
    assert "No sample changed." in call(run_folder("first", {1}), run_folder("second", {1}))


def test_several_runs_are_a_table_a_row_each(run_folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    runs = [run_folder(f"run-{k}", set(range(k))) for k in (1, 5, 10)]
    lines = call(*runs).splitlines()
    assert "norm Linf" in lines[0]
    assert "n 50" in lines[0]
    assert lines[1].split()[:2] == ["Model", "Clean"]
    assert [re.findall(r"\d+\.\d\d%", line)[-1] for line in lines[2:5]] == ["98.00%", "90.00%", "80.00%"]
    summaries = json.loads(call(*runs, "--json"))
    assert [summary["robust_accuracy"]["value"] for summary in summaries] == [0.98, 0.9, 0.8]
    assert [summary["run"] for summary in summaries] == runs


@pytest.mark.parametrize("width", [80, 200])
def test_names_of_runs_break_no_word(run_folder, monkeypatch, width):
    monkeypatch.setattr(comparing, "console", lambda: Console(width=width, soft_wrap=True))
    runs = [run_folder(f"digits-standard-{letter}-long", {1, 2}) for letter in "abc"]
    lines = call(*runs).splitlines()
    shown = "\n".join(lines[lines.index("Who fails where: error consistency (kappa), 0 is chance") :])
    assert max(map(len, lines[1:])) <= width  # the caption is prose
    assert "/" not in shown  # the folder that all lie in
    for part in ("digits-", "standard-", "a-long", "b-long", "c-long"):
        assert part in shown
    assert ("digits-standard-a-long" in shown) == (width == 200)


def test_runs_as_latex_and_markdown_with_a_column_for_each_eps(run_folder):
    plain = run_folder("plain", {1})
    curved = Path(run_folder("curved", {1, 2}))
    record = load_record(curved)
    low = CurvePoint(value=0.98, low=0.9, high=1.0, eps=2 / 255, alone=0.98)
    high = CurvePoint(value=0.96, low=0.9, high=1.0, eps=8 / 255, alone=0.96)
    save_record(record.model_copy(update={"curve": {"2/255": low, "8/255": high}}), curved)
    text = call(plain, str(curved), "--latex")
    assert r"\begin{tabular}{lrrr}" in text
    assert r"Model & Clean & Robust at 2/255 & Robust at 8/255 \\" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")][1:]
    assert rows[0].split(" & ")[2] == "--"
    assert rows[1].split(" & ")[2] == r"98.00\%"
    assert rows[1].split(" & ")[3].startswith(r"96.00\%")
    text = call(plain, str(curved), "--markdown")
    assert "| Model | Clean | Robust at 2/255 | Robust at 8/255 |" in text
    assert "|---|---:|---:|---:|" in text
    assert r"robust at eps = 2/255 & 50 &  & 98.00\%" in latex_table(load_record(curved))
    with raises("missing-argument"):
        raise call_error(plain)


def call_error(*words):
    app = typer.Typer()
    app.command()(comparing.compare)
    return CliRunner().invoke(app, list(words)).exception


def test_a_record_prints_itself_in_a_line(run_folder):
    text = str(load_record(run_folder("first", {1, 2})))
    assert "\n" not in text
    assert len(text) < 250
    assert "robust 96.00% [" in text
