from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys

import pytest
from PIL import Image

from robustdup.cli.main import main
from robustdup.records import EvaluationRecord, load_record

QUICK = ["--n", "20", "--attacks", "fgsm", "--eps", "0.1"]


def run(capsys, *words):
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_json_prints_the_record_and_nothing_else(capsys, tmp_path):
    code, out, err = run(capsys, "eval", *QUICK, "--out", tmp_path / "run", "--json")
    assert code == 0
    assert err == ""
    content = json.loads(out)
    assert EvaluationRecord.model_validate(content) == load_record(tmp_path / "run")
    for name in (
        "n",
        "threat",
        "clean_accuracy",
        "robust_accuracy",
        "n_undecided",
        "attacks",
        "curve",
        "diagnostics",
        "seed",
    ):
        assert name in content
    assert set(content["threat"]) == {"norm", "eps", "eps_text"}
    assert set(content["clean_accuracy"]) == {"value", "low", "high"}
    needed = {"name", "n_attacked", "n_broken", "seconds", "forward_passes", "backward_passes", "violations"}
    assert needed <= set(content["attacks"][0])


def test_the_table_shows_clean_robust_interval_and_each_attack(capsys, tmp_path):
    code, out, _ = run(capsys, "eval", *QUICK, "--out", tmp_path / "run")
    record = load_record(tmp_path / "run")
    assert code == 0
    clean, robust = record.clean_accuracy, record.robust_accuracy
    for value in (clean, robust):
        assert f"{100 * value.value:.2f}% [{100 * value.low:.2f}, {100 * value.high:.2f}]" in out
    assert "fgsm" in out
    assert "not the strength of the attack" in " ".join(out.replace("│", " ").split())
    assert "No RobustBench rank" in out


def test_markdown_and_latex_are_escaped_tables(capsys, tmp_path):
    code, out, _ = run(capsys, "eval", *QUICK, "--out", tmp_path / "a", "--markdown")
    assert code == 0
    assert "| attack | attacked | broken | robust accuracy after |" in out
    code, out, _ = run(
        capsys, "eval", *QUICK, "attacks=pgd(steps=2,random_start=false)", "--out", tmp_path / "b", "--latex"
    )
    assert code == 0
    assert r"random\_start" in out or "fgsm" in out
    assert r"\begin{tabular}{lrrr}" in out


def test_flags_key_value_and_yaml_mean_the_same_and_flags_win(capsys, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("n: 30\neps: 0.2\nattacks: [fgsm, 'pgd(steps=2)']\nseed: 3\n")
    code, out, err = run(capsys, "eval", file, "n=25", "--n", "20", "--out", tmp_path / "run", "--json")
    assert (code, err) == (0, "")
    content = json.loads(out)
    assert content["n"] == 20
    assert content["seed"] == 3
    assert content["threat"]["eps_text"] == "0.2"
    assert [attack["name"] for attack in content["attacks"]] == ["fgsm", "pgd"]


def test_a_recorded_command_gives_the_same_result(capsys, tmp_path, monkeypatch):

    monkeypatch.chdir(tmp_path)
    run(capsys, "eval", *QUICK, "options.fgsm={}", "--out", "first")
    record = load_record("first")
    words = shlex.split(record.command)
    assert words[:2] == ["robustdup", "eval"]
    code, _, _ = run(capsys, *words[1:], "--out", "second")
    assert code == 0
    assert load_record("second").robust_accuracy == record.robust_accuracy


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--attacks", "pdg"], "Unknown attack 'pdg'. Did you mean 'pgd'?"),
        (["--attacks", "fgsm(stps=1)"], "Unknown option of attack 'fgsm': 'stps'"),
        (["--model", "builtin:digit-robust"], "Did you mean 'builtin:digits-robust'?"),
        (["--data", "builtin:digit"], "Did you mean 'builtin:digits'?"),
        (["--data", "./no/such/folder"], "no/such/folder"),
        (["--eps", "8"], "Did you mean '8/255'?"),
        (["--eps", "-1"], "eps must be above 0"),
        (["--norm", "Linff"], "Did you mean 'Linf'?"),
        (["--n", "501"], "500"),
        (["--split", "tset"], "Did you mean 'test'?"),
        (["bath_size=3"], "Did you mean 'batch_size'?"),
        (["--batch-size", "0"], "batch_size"),
        (["no-such-recipe.yaml"], "no configuration file"),
        (["--n", "5", "--sample", "5"], "sample"),
        (["--modle", "x"], "--model"),
        (["--resume", "no-such-run"], "no run in"),
        (["--plugin", "missing.py", "--attacks", "mine"], "there is no file 'missing.py'"),
        (["--norm", "L1", "--attacks", "torchattacks:PGD"], "works in Linf, not in L1"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(capsys, tmp_path, monkeypatch, words, text):
    monkeypatch.chdir(tmp_path)
    if any("torchattacks" in word for word in words):
        pytest.importorskip("torchattacks")
    code, out, err = run(capsys, "eval", *words)
    assert code == 2
    assert text in " ".join(err.split())
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


PLUGIN = '''
import robustdup

@robustdup.register_attack("towards-grey", norms=["Linf"])
def towards_grey(model, images, labels, threat, *, rng, share: float = 1.0):
    """Move every pixel towards grey as far as allowed."""
    return threat.project(images, images + share * (0.5 - images))
'''


def test_a_plugin_file_appears_in_eval_list_and_check(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grey.py").write_text(PLUGIN)
    code, out, _ = run(
        capsys,
        "eval",
        "--plugin",
        "grey.py",
        "--attacks",
        "towards-grey(share=0.5)",
        "--n",
        "20",
        "--json",
        "--out",
        "run",
    )
    assert code == 0
    assert json.loads(out)["attacks"][0]["options"] == {"share": 0.5}
    _, out, _ = run(capsys, "attacks", "list", "--plugin", "grey.py", "--json")
    (mine,) = [attack for attack in json.loads(out) if attack["name"] == "towards-grey"]
    assert mine["source"] == "grey"
    _, out, _ = run(capsys, "attacks", "check", "towards-grey", "--plugin", "grey.py", "--json")
    assert json.loads(out)[0]["ok"]


def test_a_broken_plugin_that_is_named_is_an_error_and_doctor_says_why(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("import does_not_exist\n")
    code, _, err = run(capsys, "eval", "--plugin", "broken.py", *QUICK, "--out", "run", "--json")
    assert code == 2  # it was named, so that leaving it out would be another run than was asked for
    assert "does_not_exist" in err
    code, out, _ = run(capsys, "doctor", "--plugin", "broken.py", "--json")
    assert code == 1
    (status,) = [plugin for plugin in json.loads(out)["plugins"] if plugin["name"] == "broken"]
    assert "does_not_exist" in status["reason"]


def test_bundle_and_verify(capsys, tmp_path):
    code, _, _ = run(capsys, "eval", *QUICK, "--out", tmp_path / "run", "--bundle", tmp_path / "bundle")
    assert code == 0
    code, out, _ = run(capsys, "verify", tmp_path / "bundle", "--json")
    assert code == 0
    assert json.loads(out)["accepted"]
    file = tmp_path / "bundle" / "samples.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    code, _, err = run(capsys, "verify", tmp_path / "bundle")
    assert code == 2
    assert "samples.parquet was changed after it was written" in " ".join(err.split())


def test_an_attack_that_never_finishes_is_a_failed_run(capsys, tmp_path):
    (tmp_path / "never.py").write_text(
        "import robustdup\n@robustdup.register_attack('never', norms=['Linf'])\n"
        "def never(model, images, labels, threat, *, rng):\n    raise RuntimeError('gave up')\n"
    )
    code, _, err = run(
        capsys, "eval", "--plugin", tmp_path / "never.py", "--attacks", "never", "--n", "5", "--out", tmp_path / "run"
    )
    assert code == 1
    assert "gave up" in err


def test_what_only_the_attack_can_refuse_is_a_mistake_too(capsys, tmp_path):
    code, _, err = run(capsys, "eval", *QUICK, "attacks=fgsm", "--attacks", "pgd(steps=0)", "--out", tmp_path / "run")
    assert code == 2
    assert err.splitlines()[-1] == "Error: No attack finished a single call: pgd: steps must be at least 1, got 0."


@pytest.mark.parametrize(
    ("command", "name"), [("eval", "net.py"), ("eval", "images"), ("train", "weights.pt"), ("eval", "[1]")]
)
def test_a_word_alone_that_is_no_configuration_is_told_where_models_and_data_go(
    capsys, tmp_path, monkeypatch, command, name
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for file, text in (("net.py", '"""A network: it."""\nimport torch\n'), ("weights.pt", "PK"), ("[1]", "- 1")):
        (tmp_path / file).write_text(text)
    code, _, err = run(capsys, command, name)
    assert code == 2
    assert name in err
    assert "a model goes behind --model, data behind --data." in err


def test_what_was_taken_in_place_of_data_or_a_model_that_nobody_named_is_said(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())\n"
    )
    code, _, err = run(capsys, "eval", "--model", "net.py:net", "--n", "4")
    assert code == 2
    assert "(1, 8, 8)" in err
    assert err.endswith("The data are builtin:digits, since none were named: --data path/to/images.\n")
    for split in ("test/0", "test/1"):
        (tmp_path / "colours" / split).mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(tmp_path / "colours" / split / "a.png")
    code, _, err = run(capsys, "eval", "--data", "colours")
    assert code == 2
    assert "(3, 8, 8)" in err
    assert "The model is builtin:digits-robust, since none was named: --model " in err


def test_a_run_in_place_of_its_bundle_is_told_how_to_write_one(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(capsys, "eval", *QUICK, "--out", "a run")
    code, _, err = run(capsys, "verify", "a run")
    assert code == 2
    [command] = re.findall(r"It is a run: robustdup (.*) writes its bundle", err)
    assert run(capsys, *shlex.split(command))[0] == 0
    assert run(capsys, "verify", "FOLDER")[0] == 0


def test_resume_of_a_finished_run_shows_its_record(capsys, tmp_path):
    run(capsys, "eval", *QUICK, "--out", tmp_path / "run")
    code, out, _ = run(capsys, "eval", "--resume", tmp_path / "run", "--json")
    assert code == 0
    assert json.loads(out)["run_id"] == "run"


def test_resume_of_a_finished_run_with_other_settings_is_refused(capsys, tmp_path):
    run(capsys, "eval", *QUICK, "--out", tmp_path / "run", "--json")
    code, out, err = run(capsys, "eval", "--resume", tmp_path / "run", "--eps", "0.2", "--json")
    assert (code, out) == (2, "")
    assert "was started with eps='0.1', not '0.2'" in err


def test_what_a_kill_left_of_a_finished_runs_state_costs_no_attack(capsys, tmp_path):
    run(capsys, "eval", *QUICK, "--out", tmp_path / "run", "--json")
    record = (tmp_path / "run" / "record.json").read_bytes()
    (tmp_path / "run" / "state" / "eps-0.1").mkdir(parents=True)
    code, _, _ = run(capsys, "eval", "--resume", tmp_path / "run", "--json")
    assert code == 0
    assert (tmp_path / "run" / "record.json").read_bytes() == record
    assert not (tmp_path / "run" / "state").exists()


def test_places_that_cannot_be_written_are_refused_before_anything_runs(capsys, tmp_path):
    (tmp_path / "file").write_text("x")
    code, _, err = run(capsys, "eval", *QUICK, "--out", tmp_path / "file")
    assert code == 2
    assert "is not a folder" in " ".join(err.split())
    for words, text in (
        (["--bundle", tmp_path / "file"], "is not an empty folder"),
        (["--bundle", tmp_path], "is not an empty folder"),
        (["--bundle", tmp_path / "new", "--no-save-images"], "--bundle needs the adversarial images"),
    ):
        code, _, err = run(capsys, "eval", *QUICK, "--out", tmp_path / "run", *words)
        assert code == 2
        assert text in " ".join(err.split())
    assert not (tmp_path / "run").exists()


def test_json_stays_whole_where_an_attack_prints_and_paths_are_not_markup(capsys, tmp_path):
    (tmp_path / "loud.py").write_text(
        "import robustdup\n@robustdup.register_attack('loud[/b]', norms=['Linf'])\n"
        "def loud(model, images, labels, threat, *, rng):\n    print('LOUD')\n    return images\n"
    )
    words = ["--plugin", tmp_path / "loud.py", "--attacks", "loud[/b]", "--n", "5", "--out", tmp_path / "a[" / "b]"]
    code, out, err = run(capsys, "eval", *words, "--json")
    assert code == 0
    assert json.loads(out)["attacks"][0]["name"] == "loud[/b]"
    assert "LOUD" in err
    code, out, _ = run(capsys, "eval", "--resume", tmp_path / "a[" / "b]")
    assert code == 0
    assert "a[/b]/record.json" in out


def test_an_early_interruption_offers_no_run_that_is_not_there(capsys, tmp_path, monkeypatch):
    from robustdup import jobs

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "run_evaluation", interrupted)
    code, _, err = run(capsys, "eval", *QUICK, "--out", tmp_path / "run")
    assert code == 130
    assert "--resume" not in err


def test_a_reader_that_goes_away_is_no_error(capsys, monkeypatch):
    """`robustdup … | head` ends where head does: click asks for an exit then, which is no stranger's."""

    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w", buffering=1)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        code = main(["attacks", "list"])
    with contextlib.suppress(BrokenPipeError):
        stream.close()
    assert code == 0
    assert "wanted to end" not in capsys.readouterr().err
