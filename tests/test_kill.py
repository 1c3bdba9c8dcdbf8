"""kill -9 at any moment loses at most one call: the resumed run's results equal those of a run that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from robustdup.records import load_record, load_samples

# A model that writes down every row it sees, so that passes are counted outside the code under test.
MODEL = """
import os, torch
from robustdup.models.load import load_model
from robustdup.registry import load_plugins

class Counted(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
    def forward(self, images):
        with open(os.environ["ROWS"], "a") as file:
            file.write(f"{len(images)}\\n")
        return self.inner(images)

def make():
    return Counted(load_model("builtin:digits-standard", registry=load_plugins()))
"""

ATTACKS = {
    "native": "pgd(steps=30,restarts=4)",
    "torchattacks": "torchattacks:APGD(steps=20)",
    "art": "art:ProjectedGradientDescentPyTorch(max_iter=15)",
    "foolbox": "foolbox:LinfPGDAttack(steps=20)",
    "robustbench": "robustbench:APGD-CE(n_iter=20)",
}


def command(folder: Path, model: Path, attack: str, *more: str) -> list[str]:
    return [
        sys.executable, "-c", "from robustdup.cli.main import run; run()", "eval", "--model", f"{model}:make",
        "--n", "48", "--eps", "0.05", "--attacks", attack, "--batch-size", "8", "--micro-batch", "8",
        "--out", str(folder), "--no-diagnostics", "--json", *more,
    ]  # fmt: skip


def start(folder: Path, model: Path, attack: str, rows: Path, *more: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "ROWS": str(rows), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(folder, model, attack, *more), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def seen(rows: Path) -> int:
    return sum(int(line) for line in rows.read_text().split()) if rows.exists() else 0


def kill_and_resume(tmp_path: Path, attack: str, kills: int, seed: int) -> None:
    model = tmp_path / "model.py"
    model.write_text(MODEL)
    whole_rows, rows = tmp_path / "whole_rows", tmp_path / "rows"
    process = start(tmp_path / "whole", model, attack, whole_rows)
    assert process.wait(200) == 0, process.stderr.read().decode()
    total = seen(whole_rows)
    longest = max(1, total // 5)  # a call of 8 of 48 points: no call costs more than this here
    moments = random.Random(seed)
    folder = tmp_path / "run"
    killed = 0
    for _ in range(kills):
        before = seen(rows)
        process = start(folder, model, attack, rows, "--resume")
        stop_at = before + moments.randint(1, max(2, total // (kills + 1) + total // 12))
        while process.poll() is None and seen(rows) < stop_at:
            time.sleep(0.002)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
    process = start(folder, model, attack, rows, "--resume")
    assert process.wait(200) == 0, process.stderr.read().decode()
    assert killed >= 1
    overhead = 2 + 3 * 8  # what a fresh start looks at before the first call
    assert seen(rows) <= total + killed * (longest + overhead)
    record, other = load_record(folder), load_record(tmp_path / "whole")
    assert record.robust_accuracy == other.robust_accuracy
    assert record.passes == other.passes
    assert load_samples(folder).equals(load_samples(tmp_path / "whole"))
    assert [a.n_broken for a in record.attacks] == [a.n_broken for a in other.attacks]
    assert sum(a.n_broken for a in record.attacks) > 0
    assert not (folder / "state").exists()


def test_killed_inside_a_native_attack(tmp_path):
    kill_and_resume(tmp_path, ATTACKS["native"], kills=2, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("source", list(ATTACKS))
def test_killed_at_ten_moments_inside_an_attack_of_every_source(tmp_path, source):
    if source != "native":
        pytest.importorskip({"robustbench": "pyautoattack"}.get(source, source))
    kill_and_resume(tmp_path, ATTACKS[source], kills=10, seed=2)


def test_interrupted_by_ctrl_c_says_how_to_go_on(tmp_path):
    model = tmp_path / "model.py"
    model.write_text(MODEL)
    rows = tmp_path / "rows"
    process = start(tmp_path / "run", model, ATTACKS["native"], rows)
    while process.poll() is None and seen(rows) < 300:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert f"robustdup eval --resume {tmp_path / 'run'}" in process.stderr.read().decode()
    resumed = subprocess.run(
        [sys.executable, "-c", "from robustdup.cli.main import run; run()", "eval", "--resume", str(tmp_path / "run"), "--json"],
        env={**os.environ, "ROWS": str(rows)}, capture_output=True, check=True, timeout=200,
    )  # fmt: skip
    assert json.loads(resumed.stdout)["status"] == "complete"
