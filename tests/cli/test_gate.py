"""`robustdup gate`: exit codes, the files for the machines around it, and the action that GitHub runs."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import save_file

import robustdup
from robustdup.cli.main import main
from robustdup.records import save_record, save_samples

ROOT = Path(__file__).parents[2]
BUILD = runpy.run_path(str(ROOT / "tests" / "leaderboard" / "conftest.py"))


@pytest.fixture(autouse=True)
def no_summary(monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


@pytest.fixture
def run_folder(tmp_path):
    """Write a run of n samples in which the given ones break, with pictures where asked for."""

    def write(name, broken, n=200, images=None, **changes):
        place = [0 if i in broken else -1 for i in range(n)]
        table = BUILD["table"]([True] * n, place)
        folder = tmp_path / name
        save_samples({column: table[column].to_pylist() for column in table.column_names}, folder)
        save_record(BUILD["record"]([True] * n, place, run_id=name, **changes), folder)
        if images is not None:
            (folder / "images").mkdir()
            for kind, pixels in images.items():
                save_file({"images": pixels}, folder / "images" / f"{kind}.safetensors")
        return str(folder)

    return write


def test_exit_codes_and_words(run_folder, capsys):
    old, same, worse = run_folder("old", {1}), run_folder("same", {2}), run_folder("worse", range(20))
    assert main(["gate", same, "--baseline", old, "--min", "0.9"]) == 0
    assert "The gate is passed." in capsys.readouterr().out
    assert main(["gate", worse, "--baseline", old]) == 3
    assert "exit code 3" in capsys.readouterr().out
    assert main(["gate", worse, "--min", "95%"]) == 3
    capsys.readouterr()
    assert main(["gate", worse, "--baseline", old, "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["passed"], told["paired"]["only_a"], len(told["lost"])) == (False, 19, 19 - 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--baseline", "nowhere"], "The baseline cannot be used: There is no record"),
        (["--min", "45"], "Write 0.02, 2% or 2pt"),
        ([], "--baseline RUN, --min 0.45"),
    ],
)
def test_mistakes_are_told_apart_from_a_gate_that_fails(run_folder, capsys, words, said):
    assert main(["gate", run_folder("new", ()), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_baseline_of_another_kind_or_unfinished_is_refused_in_words(run_folder, tmp_path, capsys):
    new = run_folder("new", ())
    fixtures = ROOT / "tests" / "fixtures"
    (tmp_path / "unfinished" / "state").mkdir(parents=True)
    for place in (fixtures / "training-record-1.json", fixtures / "record-1.json", tmp_path / "unfinished"):
        assert main(["gate", new, "--baseline", str(place)]) == 2
        assert "The baseline cannot be used" in capsys.readouterr().err


def test_junit_sarif_and_summary(run_folder, tmp_path, monkeypatch):
    old = run_folder("old", {1})
    new = run_folder("new", range(20), model={"spec": "<b>&\x1b[31m|x](y)"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    (tmp_path / "summary.md").write_text("# before\n")
    words = ["gate", new, "--baseline", old, "--min", "0.5", "--junit", "deep/gate.xml", "--sarif", "gate.sarif"]
    assert main(words) == 3
    suite = ElementTree.parse(tmp_path / "deep" / "gate.xml").getroot().find("testsuite")
    assert (suite.get("tests"), suite.get("failures")) == ("3", "1")
    failed = [case.get("name") for case in suite.findall("testcase") if case.find("failure") is not None]
    assert failed == ["no-drop"]
    assert "19 lost and 0 gained" in suite.find(".//failure").get("message")
    sarif = json.loads((tmp_path / "gate.sarif").read_text())
    (found,) = sarif["runs"][0]["results"]
    assert found["ruleId"] == "robustdup/no-drop"
    assert found["ruleId"] in {rule["id"] for rule in sarif["runs"][0]["tool"]["driver"]["rules"]}
    assert found["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "new/record.json"
    assert "0 (robustbench:APGD-CE)" in found["message"]["text"]
    summary = (tmp_path / "summary.md").read_text()
    assert summary.startswith("# before\n## Robustness gate: ❌ failed")
    assert "19 samples were lost" in summary
    assert "<b>" not in summary
    assert "\x1b" not in summary
    assert main([*words[:4], "--min", "0.5", "--margin", "20pt", "--summary", "own.md"]) == 0
    assert "✅ passed" in (tmp_path / "own.md").read_text()


def test_the_picture_shows_the_lost_samples(run_folder, tmp_path, capsys):
    clean = np.full((200, 1, 8, 8), 0.5, dtype=np.float32)
    adv = clean.copy()
    adv[3] += np.float32(8 / 255)
    old = run_folder("old", ())
    new = run_folder("new", {3, *range(10, 18)}, images={"clean": clean, "adversarial": adv})
    assert main(["gate", new, "--baseline", old, "--picture", str(tmp_path / "lost.png")]) == 3
    with Image.open(tmp_path / "lost.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape == (9 * 96, 3 * 96)  # nine samples were lost; each tile is grown to be seen
    assert set(np.unique(pixels[:96, :96])) == {128}
    assert set(np.unique(pixels[:96, 192:])) == {255}  # the whole of eps is drawn white
    assert set(np.unique(pixels[96:192, 192:])) == {128}
    bare = run_folder("bare", range(9))
    capsys.readouterr()
    assert main(["gate", bare, "--baseline", old, "--picture", str(tmp_path / "none.png")]) == 3
    assert "no picture" in capsys.readouterr().out
    assert not (tmp_path / "none.png").exists()


def run_action(step, inputs, folder, summary):
    """Run a step of action.yml as a runner does: its script by bash, its inputs in the environment."""
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    values = {name: str(about.get("default", "")) for name, about in action["inputs"].items()} | inputs
    assert values.keys() == action["inputs"].keys()
    (chosen,) = [each for each in action["runs"]["steps"] if each["name"] == step]
    env = {
        name: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: values[found[1]], text)
        for name, text in chosen["env"].items()
    }
    assert "${{" not in chosen["run"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", chosen["run"]], cwd=folder, text=True, timeout=280,
        env={**os.environ, **env, "PATH": path, "GITHUB_STEP_SUMMARY": str(summary)}, capture_output=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


needs_action = pytest.mark.skipif(not (ROOT / "action.yml").is_file(), reason="the action is there in a clone only")


@needs_action
def test_the_step_of_the_action_runs_the_gate(run_folder, tmp_path):
    run_folder("out/run", range(20))
    inputs = {"model": "m", "data": "d", "out": "out", "baseline": run_folder("old", {1})}
    code, said = run_action("Gate", inputs, tmp_path, tmp_path / "summary.md")
    assert code == 3, said
    assert "19 lost" in said
    assert (tmp_path / "out" / "gate.xml").is_file()
    assert "failed" in (tmp_path / "summary.md").read_text()


DIGITS = {"model": "builtin:digits-robust", "data": "builtin:digits", "n": "100", "attacks": "pgd(steps=5)"}


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Evaluate a network by the action's step: a folder with the run `first/run`."""
    folder = tmp_path_factory.mktemp("workflow")
    code, said = run_action("Evaluate", {**DIGITS, "out": "first"}, folder, folder / "summary.md")
    assert code == 0, said
    return folder


@needs_action
@pytest.mark.slow
@pytest.mark.parametrize(
    ("held_against", "code", "said"),
    [
        ({"min": "0.4"}, 0, "The gate is passed"),
        ({"baseline": "first/run"}, 0, "no drop"),
        ({"min": "0.99"}, 3, "below the minimum"),
    ],
)
def test_the_action_green_and_red_by_minimum(released, held_against, code, said):
    done = run_action("Gate", {**DIGITS, "out": "first", **held_against}, released, released / "summary.md")
    assert done[0] == code
    assert said in done[1]


@needs_action
@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"model": "builtin:digits-standard"}, 3, "more than 1pt and than chance"),
        ({"eps": "0.05"}, 2, "The baseline cannot be used"),
    ],
)
def test_the_action_red_by_a_drop_and_a_baseline_that_is_unusable(released, change, code, said):
    inputs = {**DIGITS, **change, "out": f"second{code}"}
    evaluated, words = run_action("Evaluate", inputs, released, released / "summary.md")
    assert evaluated == 0, words
    done = run_action("Gate", {**inputs, "baseline": "first/run"}, released, released / "summary.md")
    assert done[0] == code
    assert said in done[1]
    assert (released / f"second{code}" / "lost.png").is_file() == (code == 3)


def test_from_python(run_folder):
    result = robustdup.gate(run_folder("new", ()), run_folder("old", {1}))
    assert result.passed
    with pytest.raises(robustdup.UserError, match="cannot be used"):
        robustdup.gate(run_folder("newer", ()), "nowhere")
