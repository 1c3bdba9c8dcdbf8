"""The benchmark of precisions takes steps of real runs in turn, and tells what it measured."""

from __future__ import annotations

import json

from benchmarks import precisions


def test_steps_of_both_precisions_take_turns_and_are_written(tmp_path, capsys, monkeypatch):
    seen = []
    real = precisions.step

    def look(trainer, batches):
        seen.append(trainer.options.precision)
        return real(trainer, batches)

    monkeypatch.setattr(precisions, "step", look)
    out = tmp_path / "lines.jsonl"
    case = "digits:small-cnn|standard|32"
    assert precisions.main(["--data", "", "--cases", case, "--steps", "2", "--out", str(out)]) == 0
    assert seen == ["bf16", "fp32", "fp32", "bf16"] * 2
    (line,) = map(json.loads, out.read_text().splitlines())
    assert (line["case"], len(line["fp32"]), len(line["bf16"])) == (case, 2, 2)
    assert min(line["fp32"] + line["bf16"]) > 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("| digits:small-cnn | standard | 32 | 19,178 | 0.24 |")


def test_a_row_holds_medians_and_the_ratios_of_turns():
    line = {"case": "a|b|1", "parameters": 1000, "operations": 2e6, "fp32": [0.2, 0.3, 0.4], "bf16": [0.1, 0.1, 0.1]}
    assert precisions.row(line) == "| a | b | 1 | 1,000 | 2.00 | 300 | 100 | 3.00 (2.00 to 4.00) |"
