"""kill -9 at any moment loses at most one call: the resumed run's results equal those of a run that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from robustdup.records import load_record, load_samples
from tests.forked import Forked, run

# A model that writes down every row it sees, so that passes are counted outside the code under test.
MODEL = """
import os, torch
from robustdup.models.load import load_model
from robustdup.plugins import load_plugins

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
    "native": "pgd(steps=15,restarts=2)",
    "torchattacks": "torchattacks:APGD(steps=20)",
    "art": "art:ProjectedGradientDescentPyTorch(max_iter=15)",
    "foolbox": "foolbox:LinfProjectedGradientDescentAttack(steps=20)",
    "robustbench": "robustbench:APGD-CE(n_iter=20)",
}

CALLS = 5  # of 8 points each: of the first 41 points the model gets 40 right


def command(folder: Path, model: Path, attack: str, *more: str) -> list[str]:
    return [
        "robustdup", "eval", "--model", f"{model}:make",
        "--n", "41", "--eps", "0.05", "--attacks", attack, "--batch-size", "8", "--micro-batch", "8",
        "--out", str(folder), "--no-diagnostics", "--individual", "--json", *more,
    ]  # fmt: skip


def start(folder: Path, model: Path, attack: str, rows: Path, *more: str) -> Forked:
    return Forked(command(folder, model, attack, *more), env={**os.environ, "ROWS": str(rows), "OMP_NUM_THREADS": "1"})


def seen(rows: Path) -> int:
    return sum(int(line) for line in rows.read_text().split()) if rows.exists() else 0


def longest_call(folder: Path) -> int:
    """The most forward rows that one call of an attack cost in a finished run."""
    costs, before = [0], {}
    for row in load_samples(folder).to_pylist():
        if row["stage"] >= 0:
            last = before.get(row["stage"], 0)
            costs.append(row["forward_passes"] - last)
            before[row["stage"]] = row["forward_passes"]
    return max(costs)


def kill_inside(process: Forked, folder: Path, rows: Path, stage: int, calls: int, extra: int) -> bool:
    """Kill the run inside a call of a stage: when `calls` of it are saved and `extra` more rows were computed."""

    def saved(number: int) -> int:
        return len(list(folder.glob(f"state/eps-*/{number:02d}-*/0*.safetensors")))

    before = None
    while process.poll() is None:
        if before is None and saved(stage) >= calls and (stage == 0 or saved(stage - 1) == CALLS):
            before = seen(rows)
        if before is not None and seen(rows) >= before + extra:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.001)
    return False


def kill_and_resume(tmp_path: Path, attacks: list[str], kills_each: int, seed: int) -> None:
    """Kill a run `kills_each` times inside each attack, at random calls and rows; the result must be that of a whole run."""
    model = tmp_path / "model.py"
    model.write_text(MODEL)
    whole_rows, rows, folder = tmp_path / "whole_rows", tmp_path / "rows", tmp_path / "run"
    process = start(tmp_path / "whole", model, ",".join(attacks), whole_rows)
    assert process.wait(300) == 0, process.stderr
    moments, killed = random.Random(seed), 0
    for stage in range(len(attacks)):
        for calls in sorted(moments.sample(range(CALLS), kills_each)):
            process = start(folder, model, ",".join(attacks), rows, "--resume")
            killed += kill_inside(process, folder, rows, stage, calls, moments.randint(1, 40))
    process = start(folder, model, ",".join(attacks), rows, "--resume")
    assert process.wait(300) == 0, process.stderr
    assert killed == kills_each * len(attacks)
    looks = 2 + 3 * 8  # what a start looks at before the first call
    judging = 2 * 8  # the referee's look at the call that was lost
    assert seen(rows) <= seen(whole_rows) + killed * (longest_call(tmp_path / "whole") + judging + looks)
    record, whole = load_record(folder), load_record(tmp_path / "whole")
    assert record.robust_accuracy == whole.robust_accuracy
    assert record.passes == whole.passes
    assert load_samples(folder).equals(load_samples(tmp_path / "whole"))
    assert all(attack.n_attacked == 8 * CALLS for attack in whole.attacks)
    assert 0 < whole.attacks[0].n_broken < 8 * CALLS
    assert not (folder / "state").exists()


def test_killed_inside_a_native_attack(tmp_path):
    kill_and_resume(tmp_path, [ATTACKS["native"]], kills_each=2, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_ten_moments_inside_an_attack_of_every_source(tmp_path):
    for package in ("torchattacks", "art", "foolbox", "pyautoattack"):
        pytest.importorskip(package)
    kill_and_resume(tmp_path, list(ATTACKS.values()), kills_each=2, seed=2)


def test_interrupted_by_ctrl_c_says_how_to_go_on(tmp_path):
    model = tmp_path / "model.py"
    model.write_text(MODEL)
    rows = tmp_path / "rows"
    process = start(tmp_path / "run", model, ATTACKS["native"], rows)
    while process.poll() is None and seen(rows) < 300:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert f"robustdup eval --resume {tmp_path / 'run'}" in process.stderr
    again = ["robustdup", "eval", "--resume", str(tmp_path / "run"), "--json"]
    resumed = run(again, env={**os.environ, "ROWS": str(rows)})
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["status"] == "complete"


ENDINGS = {"kill": [signal.SIGKILL], "term": [signal.SIGTERM], "hup": [signal.SIGHUP], "ctrl-c": [signal.SIGINT],
           "double ctrl-c": [signal.SIGINT, signal.SIGINT]}  # fmt: skip
CODES = {"kill": {-9}, "term": {-15, 143}, "hup": {-1, 129}, "ctrl-c": {130}, "double ctrl-c": {130, -2}}
STAGES = "fgsm,pgd(steps=6,restarts=2),square(queries=20)"


def said(folder: Path) -> dict:
    """What a record says, without times, and without how and where it was started."""
    content = json.loads((folder / "record.json").read_text())
    for name in ("run_id", "created", "seconds", "command"):
        del content[name]
    del content["config"]["out"]
    for stage in content["attacks"]:
        del stage["seconds"]
    return content


def series(tmp_path: Path, endings: list[str], seed: int) -> dict[str, int]:
    """End runs at random instants, going on after each; return how often each ending met a run that was at work.

    Each run that comes to its end says what a run says that was left alone.
    """
    model = tmp_path / "model.py"
    model.write_text(MODEL)
    process = start(tmp_path / "whole", model, STAGES, tmp_path / "whole_rows")
    assert process.wait(600) == 0, process.stderr
    total, whole = seen(tmp_path / "whole_rows"), said(tmp_path / "whole")
    moments, met, finished, folder = random.Random(seed), dict.fromkeys(endings, 0), 0, tmp_path / "run-0"

    def check_whole() -> None:
        assert said(folder) == whole
        assert load_samples(folder).equals(load_samples(tmp_path / "whole"))
        assert not (folder / "state").exists()

    for number, ending in enumerate(endings):
        rows, least = tmp_path / f"rows-{number}", moments.randrange(total // 3)
        process = start(folder, model, STAGES, rows, "--resume")
        while process.poll() is None and seen(rows) < least:
            time.sleep(0.001)
        time.sleep(moments.random() * 0.05)
        for sign in ENDINGS[ending] if process.poll() is None else []:
            os.kill(process.pid, sign)
            time.sleep(0.002)
        code = process.wait(600)
        if code == 0:
            check_whole()
            finished += 1
            folder = tmp_path / f"run-{finished}"
        else:
            met[ending] += 1
            assert code in CODES[ending], (ending, code, process.stderr)
    process = start(folder, model, STAGES, tmp_path / "rows", "--resume")
    assert process.wait(600) == 0, process.stderr
    check_whole()
    return met


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ended_in_every_way_at_random_instants(tmp_path):
    ways = [*["kill"] * 6, *["term", "hup", "ctrl-c", "double ctrl-c"] * 2]
    random.Random(5).shuffle(ways)
    met = series(tmp_path, ways, seed=5)
    assert sum(met.values()) > len(ways) // 2
