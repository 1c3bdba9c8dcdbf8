"""The table of attacks in a terminal: no number is cut, whatever the names and the width."""

import io
import shutil
import subprocess

import pytest
from rich.console import Console

from robustdup.report.format import folded_spec
from robustdup.report.tables import as_latex
from robustdup.report.terminal import attack_table, remarks, show_record


@pytest.mark.parametrize(
    ("asked", "used", "said"),
    [
        ("auto", "fp32", []),
        (
            "auto",
            "tf32",
            ["Attacks computed in tf32, as torch's own defaults have it on this device; the referee judged in fp32."],
        ),
        ("bf16", "bf16", ["Attacks computed in bf16; the referee judged in fp32."]),
    ],
)
def test_another_precision_than_fp32_is_said(run, asked, used, said):
    record = run().record
    environment = record.environment.model_copy(update={"attack_precision": used})
    record = record.model_copy(
        update={"environment": environment, "config": {**record.config, "precision": asked}, "curve": {}}
    )
    assert [line for line in remarks(record) if "computed" in line] == said


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("left_over", [False, True])
def test_no_number_is_cut(run, width, left_over):
    record = run().record
    long = record.attacks[0].model_copy(
        update={
            "name": "foolbox:LinfProjectedGradientDescentAttack", "options": {"steps": 2}, "n_attacked": 10_000,
            "n_broken": 9_876, "robust_accuracy_after": 1.0, "seconds": 12345.6, "forward_passes": 999_000,
            "backward_passes": 888_000, "n_undecided": 7_654 * left_over, "violations": 4_321 * left_over,
        }
    )  # fmt: skip
    record = record.model_copy(update={"attacks": [long]})
    console = Console(width=width, force_terminal=False, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(attack_table(record, width))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    heading, row = lines[1].split(), next(line for line in lines if "9876" in line).split()[1:]
    values = {
        "Samples": "10000", "Broken": "9876", "Robust": "100.00%", "Seconds": "12345.6", "Forward": "999k",
        "Backward": "888k", "Undecided": "7654", "Violations": "4321",
    }  # fmt: skip
    assert row == [values[name] for name in heading[1:]]
    assert ("Undecided" in heading) == left_over
    if width == 100 and not left_over:
        assert heading[1:] == list(values)[:6]
    name = "".join(line.strip().split("  ")[0] for line in lines if "Samples" not in line and "─" not in line)
    assert name.replace(" ", "") == "foolbox:LinfProjectedGradientDescentAttacksteps=2"


@pytest.mark.parametrize("width", [20, 30, 40, 50])
def test_a_narrow_terminal_shows_whole_numbers_too(run, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    record = run().record
    show_record(record, None)
    heading = ["Samples", "Broken", "Robust"]
    lines = capsys.readouterr().out.splitlines()
    place = next(number for number, line in enumerate(lines) if heading[0] in line)
    assert lines[place].split()[1:4] == heading
    attack = record.attacks[0]
    values = [str(attack.n_attacked), str(attack.n_broken), f"{attack.robust_accuracy_after:.2%}"]
    assert lines[place + 2].split()[1:4] == values
    assert width < 40 or max(map(len, lines[place : place + 3])) <= width


@pytest.mark.parametrize("letters", range(18, 26))
def test_no_line_of_the_table_holds_a_bracket_alone(run, letters):
    record = run().record
    spec = {"name": "a" * (letters - len("(steps=20)")), "options": {"steps": 20}}
    record = record.model_copy(update={"attacks": [record.attacks[0].model_copy(update=spec)]})
    for width in range(60, 90):
        console = Console(width=width, file=io.StringIO())
        console.print(attack_table(record, width))
        assert not any(line.strip() == ")" for line in console.file.getvalue().splitlines()), width


def test_options_stand_below_a_name_that_they_do_not_fit_beside():
    assert folded_spec("pgd(steps=20)", 13) == "pgd(steps=20)"
    assert folded_spec("cosine-pgd(steps=20)", 16) == "cosine-pgd\n  steps=20"
    assert folded_spec("pgd(steps=20, loss=dlr, start=[0, 1])", 24) == "pgd\n  steps=20, loss=dlr,\n  start=[0, 1]"
    assert folded_spec("Linf 8/255: torchattacks:PGDRS(steps=5)", 16) == "Linf 8/255:\ntorchattacks:\nPGDRS\n  steps=5"


ODD = "net_50%&#{}~^\\$ <b> \\input{x} é Ł ğ ß Ą ≤ ≥ ± × → – — … “q” ∞ ε α 中文 𝒳 ✓ ′ − "


def test_latex_holds_what_every_latex_reads():
    text = as_latex(ODD, ["name", "n"], [[ODD, "1"]])
    assert "{[}U+4E2D]{[}U+6587]" in text
    assert r"$\leq$ $\geq$" in text
    assert r"\textbackslash{}input\{x\}" in text
    assert not set(text) & set("Ą中文𝒳✓′−αε∞")
    assert {"é", "Ł", "ğ", "ß"} <= set(text)
    assert text.startswith(r"% needs \usepackage{booktabs}")


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex")
def test_latex_compiles(tmp_path):
    letters = [*map(chr, range(0x20, 0x250)), *ODD]
    tables = [as_latex(ODD, ["name", "n"], [[f"{letter}x", "1"] for letter in letters[at : at + 40]])
              for at in range(0, len(letters), 40)]  # fmt: skip
    page = "\n\\clearpage\n".join(tables)
    (tmp_path / "page.tex").write_text(
        f"\\documentclass{{article}}\n\\usepackage{{booktabs}}\n\\begin{{document}}\n{page}\n\\end{{document}}\n",
        encoding="utf-8",
    )
    command = ["pdflatex", "-interaction=batchmode", "-halt-on-error", "-draftmode", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, (tmp_path / "page.log").read_text(errors="replace")[-2000:]
