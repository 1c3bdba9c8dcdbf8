"""The benchmark of a GPU runs small on a CPU, so that it works the first time where there is one."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

from benchmarks import gpu, gpu_parts
from benchmarks.gpu import PARTS, main, missing, name_entry_points, read, registered, run_part, summary


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("machine", "bits", "training") else pytest.mark.slow) for n in PARTS]
)
def test_each_part_runs_small_on_a_cpu_and_writes_its_lines(tmp_path, name):
    out = tmp_path / "lines.jsonl"
    gpu_parts.run(name, data="", device="cpu", out=out)
    lines = read(out)
    assert lines
    assert {line["part"] for line in lines} == {name}
    assert not any(line.get("same") is False for line in lines)
    if name != "toolkits":
        assert not any("error" in line for line in lines)


def test_all_limits_together_are_less_than_eight_minutes():
    assert sum(PARTS.values()) < 480
    assert set(PARTS) == set(gpu_parts.FUNCTIONS)


def test_a_part_that_fails_or_hangs_does_not_stop_the_rest(tmp_path, monkeypatch):
    commands = iter(["import time; time.sleep(60)", "raise SystemExit('it broke')", "pass"])
    real = subprocess.run
    monkeypatch.setattr(gpu, "PARTS", {"a": 0.5, "b": 20, "c": 20})
    monkeypatch.setattr(
        gpu.subprocess, "run", lambda _, **more: real([sys.executable, "-S", "-c", next(commands)], **more)
    )
    out = tmp_path / "lines.jsonl"
    assert main(["--out", str(out), "--parts", "a,b,c"]) == 1
    ends = {line["part"]: line for line in read(out) if "status" in line}
    assert {name: line["status"] for name, line in ends.items()} == {"a": "out of time", "b": "failed", "c": "done"}
    assert "it broke" in ends["b"]["error"]
    assert "a: out of time" in summary(read(out))
    assert run_part.__doc__


def test_what_is_missing_is_said_first(tmp_path, monkeypatch, capsys):
    assert missing() == []
    found = gpu._is_there
    monkeypatch.setattr(gpu, "_is_there", lambda module: module != "pydantic" and found(module))
    assert main(["--out", str(tmp_path / "lines.jsonl")]) == 1
    assert "Missing here: pydantic" in capsys.readouterr().err
    assert read(tmp_path / "lines.jsonl")[0]["missing"] == ["pydantic"]


def test_entry_points_are_named_where_nothing_is_installed(tmp_path):
    name_entry_points(tmp_path)
    (found,) = importlib.metadata.distributions(path=[str(tmp_path)])
    assert {point.group for point in found.entry_points} >= {gpu.GROUP}
    assert {point.value for point in found.entry_points} >= {
        "robustdup.attacks:register",
        "robustdup.training:register",
    }
    with registered() as folder:
        assert folder == ""  # it is installed here


def test_goals_are_told_beside_what_was_measured():
    lines = [
        {"part": "training", "what": "a", "images_per_second": 1234.4, "training_over_plain_loop": 2.0, "at": 3.0},
        {"part": "pgd", "what": "autoattack", "robust": 0.4, "robust_accuracy": 0.4, "events": []},
        {"part": "training", "status": "failed", "seconds": 7.5, "error": "Traceback\nValueError: no"},
    ]
    assert summary(lines).splitlines() == [
        "training: failed after 7.5 s",
        "  a: 1,234 images/s, 2.00 times the plain loop (goal 3)",
        "  error: ValueError: no",
        "  autoattack: 40.0% robust, 40.0% robust by AutoAttack (goal 48.5%)",
    ]
    small = summary(lines, goals=False)
    assert "goal" not in small
    assert "On a CPU" in small
    assert "the same: NO" in summary([{"part": "bits", "what": "bits of draw 0", "same": False}])


def test_a_small_run_has_longer_limits_and_goes_on_with_what_is_not_done(tmp_path, monkeypatch, capsys):
    ran = []

    def part(name, options, limit):
        ran.append((name, limit))
        gpu.write(
            tmp_path / "lines.jsonl", {"part": name, "status": "failed" if name == "bits" else "done", "seconds": 1}
        )
        return name != "bits"

    monkeypatch.setattr(gpu, "run_part", part)
    words = ["--out", str(tmp_path / "lines.jsonl"), "--parts", "machine,bits,broken"]
    assert main([*words, "--device", "cpu"]) == 1
    assert ran == [(name, 10 * PARTS[name]) for name in ("machine", "bits", "broken")]
    ran.clear()
    assert main([*words, "--device", "cuda", "--resume"]) == 1
    assert ran == [("bits", PARTS["bits"])]
    capsys.readouterr()
    ran.clear()
    monkeypatch.setattr(gpu, "is_small", lambda device: True)
    assert main([*words, "--share", "0.5", "--resume"]) == 1
    said = capsys.readouterr().out
    assert ran == [("bits", 5 * PARTS["bits"])]
    assert said.count("bits: failed") == 1
    assert "machine: done" in said
