"""`robustdup attacks`: what it prints, what it refuses, and its exit codes."""

import json
import textwrap

import pytest

from robustdup.cli.attacks import call_text, markdown_table
from robustdup.cli.main import main

PLUGIN = """
    import torch
    from robustdup import AttackSpec, input_gradient

    def sign(model, images, labels, threat, *, rng, rate: float = 1.0):
        loss = lambda logits, rows: torch.nn.functional.cross_entropy(logits, labels[rows], reduction="none")
        gradient, _, _ = input_gradient(model, images, loss)
        return threat.project(images, images + rate * threat.radius * gradient.sign())

    def idle(model, images, labels, threat, *, rng):
        return images

    def register(registry):
        registry.add_attack(AttackSpec(name="lab:sign", function=sign, norms=["Linf"], batching="pool"))
        registry.add_attack(AttackSpec(name="lab:idle", function=idle, norms=["L2"]))
        registry.add_attack(AttackSpec(name="lab:gone", function=None, norms=["L1"], available=False, reason="needs | x"))
"""


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "lab.py"
    path.write_text(textwrap.dedent(PLUGIN))
    return str(path)


def run_json(capsys, *words):
    code = main(["attacks", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_list_json_has_the_fixed_fields(capsys, plugin):
    code, found = run_json(capsys, "list", "--plugin", plugin)
    assert code == 0
    by_name = {entry["name"]: entry for entry in found}
    assert {"pgd", "fgsm", "noise", "lab:sign", "lab:gone"} <= set(by_name)
    fixed = {"name", "source", "norms", "kind", "knowledge", "batching", "available", "reason"}
    assert all(fixed <= set(entry) for entry in found)
    assert by_name["pgd"]["source"] == "native"
    assert by_name["pgd"]["norms"] == ["Linf", "L2", "L1"]
    assert by_name["lab:gone"]["available"] is False
    assert by_name["lab:gone"]["reason"] == "needs | x"


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--norm", "linf"], {"lab:sign"}),
        (["--norm", "L1"], {"lab:gone"}),
        (["--norm", "L1", "--available"], set()),
        (["--kind", "minimum-norm"], set()),
        ([], {"lab:sign", "lab:idle", "lab:gone"}),
    ],
)
def test_list_filters(capsys, plugin, words, names):
    _, found = run_json(capsys, "list", "--source", "lab", "--plugin", plugin, *words)
    assert {entry["name"] for entry in found} == names


def test_list_prints_reasons_and_ensembles_and_failed_plugins(capsys, plugin, tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("import nothing_like_this")
    assert main(["attacks", "list", "--plugin", plugin, "--plugin", str(bad)]) == 0
    shown = capsys.readouterr()
    assert "cannot run here: needs | x" in shown.out
    assert "default: " in shown.out
    assert "Plugin bad" in shown.err
    assert "No module named 'nothing_like_this'" in shown.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "--norm", "Linff"], "Did you mean 'Linf'"),
        (["list", "--kind", "bound"], "Did you mean 'bounded'"),
        (["list", "--source", "natives"], "Did you mean 'native'"),
        (["show", "pgdd"], "Unknown attack 'pgdd'. Did you mean 'pgd'"),
        (["check", "fgsn"], "Did you mean 'fgsm'"),
        (["check", "pgd", "step=3"], "Did you mean 'steps'"),
        (["check", "pgd", "three"], "Write KEY=VALUE"),
        (["check", "pgd", "--norm", "L7"], "Unknown norm of attack 'pgd'"),
    ],
)
def test_mistakes_are_messages(capsys, words, message):
    assert main(["attacks", *words]) == 2
    said = capsys.readouterr()
    assert message in " ".join(said.err.split())
    assert said.out == ""


def test_show_names_options_defaults_and_the_call(capsys):
    code, shown = run_json(capsys, "show", "pgd")
    assert code == 0
    assert shown["options"]["steps"] == {"default": "40", "type": "int"}
    assert shown["passes"] == [41, 40]
    assert shown["call"] == "robustdup eval --attacks 'pgd(steps=40)'"
    assert main(["attacks", "show", "pgd"]) == 0
    assert "random_start" in capsys.readouterr().out


def test_show_an_ensemble_and_an_unavailable_attack(capsys, plugin):
    _, shown = run_json(capsys, "show", "autoattack")
    assert shown["stages"][0] == "apgd-ce  [in Linf and L2]"
    assert shown["stages"][-1] == "square"
    assert main(["attacks", "show", "lab:gone", "--plugin", plugin]) == 0
    assert "needs | x" in capsys.readouterr().out


def test_check_is_0_for_a_conforming_attack_of_a_stranger(capsys, plugin):
    code, reports = run_json(capsys, "check", "lab:sign", "--plugin", plugin)
    assert code == 0
    assert [(report["norm"], report["ok"], report["demonstrated"]) for report in reports] == [("Linf", True, True)]


def test_check_is_1_where_the_attack_does_nothing_and_passes_options_on(capsys, plugin):
    assert main(["attacks", "check", "lab:idle", "--plugin", plugin]) == 1
    shown = capsys.readouterr().out
    assert "FAIL unchanged" in shown
    assert "not demonstrated" in shown
    code, reports = run_json(capsys, "check", "lab:sign", "rate=0", "--plugin", plugin)
    assert code == 1
    assert "unchanged" in {finding["code"] for finding in reports[0]["findings"] if not finding["ok"]}


def test_check_of_an_unavailable_attack_says_why(capsys, plugin):
    assert main(["attacks", "check", "lab:gone", "--plugin", plugin]) == 2
    assert "cannot run here: needs | x" in capsys.readouterr().err


def test_table_checks_all_attacks_in_workers_and_keeps_the_results(capsys, plugin, tmp_path):
    out = tmp_path / "results.json"
    words = ["table", "--source", "lab", "--workers", "1", "--plugin", plugin, "--out", str(out)]
    code, rows = run_json(capsys, *words)
    assert code == 0
    by_name = {row["name"]: row for row in rows}
    assert (by_name["lab:sign"]["runs"], by_name["lab:sign"]["conforms"], by_name["lab:sign"]["demonstrated"]) == (
        1,
        1,
        1,
    )
    assert (by_name["lab:idle"]["conforms"], by_name["lab:idle"]["demonstrated"]) == (False, False)
    assert (by_name["lab:gone"]["runs"], by_name["lab:gone"]["reason"]) == (False, "needs | x")
    kept = json.loads(out.read_text())
    assert {report["attack"] for report in kept} == {"lab:sign", "lab:idle"}
    assert main(["attacks", *words, "--markdown"]) == 0  # from the kept results
    text = capsys.readouterr().out
    assert "| lab | 3 | 2 | 1 | 1 |" in text
    assert "| lab:gone | does not run: needs \\| x |" in text


def test_a_hanging_or_crashing_attack_is_a_finding(tmp_path):
    from robustdup.testing.survey import survey

    path = tmp_path / "bad.py"
    path.write_text(
        textwrap.dedent("""
        import os, time
        from robustdup import register_attack

        @register_attack("hangs", norms=["L2"])
        def hangs(model, images, labels, threat, *, rng):
            time.sleep(300)

        @register_attack("dies", norms=["L2"])
        def dies(model, images, labels, threat, *, rng):
            os._exit(1)
    """)
    )
    hangs, dies = survey([("hangs", "L2"), ("dies", "L2")], files=[str(path)], workers=1, seconds=20.0)
    assert (hangs.ok, hangs.findings[0].code) == (False, "time")
    assert (dies.ok, dies.findings[0].code) == (False, "crash")


def test_markdown_escapes_what_would_break_a_table():
    row = {"name": "a", "source": "s", "runs": True, "conforms": False, "demonstrated": False, "reason": "x | <b>\ny",
           "not_conforming": ""}  # fmt: skip
    assert "| a | x \\| &lt;b> y |" in markdown_table([row])


def test_call_text_is_what_the_command_line_reads():
    from robustdup.config import parse_attacks

    options = {"steps": 3, "random_start": False, "loss": "margin", "rate": 0.5}
    assert parse_attacks(call_text("pgd", options)) == [("pgd", options)]
