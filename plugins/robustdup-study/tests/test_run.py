"""Every cell runs once: with failures, deaths, interruption, kill -9, and two studies on one folder."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from robustdup_study.cell_record import CELL_FILE, CellOrder, load_cell
from robustdup_study.recipe import StudyConfig
from robustdup_study.report import LiveStudy
from robustdup_study.run import LOG_FILE, Where, cell_folder, choose_where, results, run_cells, study_folder, unreadable

from robustdup.errors import RunError, UserError
from robustdup.report.live import Lines
from robustdup.runners import local
from robustdup.runners.pool import PoolOptions
from tests.forked import Forked, run
from tests.raising import raises

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import cells  # noqa: E402  worker processes import it by this name

ONE, TWO = Where(workers=1, devices=("cpu",), threads=1), Where(workers=2, devices=("cpu",), threads=1)


def test_several_cells_go_onto_one_gpu():
    base = {"data": "builtin:digits", "model": "small-cnn", "epochs": 1}
    recipe = {"base": base, "factors": {"objective": ["standard"]}, "seeds": 5, "device": "cuda", "workers": 5}
    where = choose_where(StudyConfig.model_validate(recipe))
    assert (where.devices, where.workers) == (("cuda",), 5)
    launched = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "Process", lambda place, cores: launched.append(place))
        patch.setattr(
            local, "Pool", lambda workers, launch, *_: [launch(number) for number in range(workers)] and Idle()
        )
        local.open_local(where.workers, len, devices=where.devices, threads=1, options=PoolOptions())
    assert [(place.device, place.sharing) for place in launched] == [("cuda", 5)] * 5


class Idle:
    def close(self):
        """Nothing was started."""


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE))


def orders(folder, n=6, **special):
    """Cells k0, k1, …; `special` gives settings to some: k2={"fail": "user"}."""
    return {
        f"k{i}": CellOrder(
            key=f"k{i}", settings={"dose": i / 10, **special.get(f"k{i}", {})}, folder=str(cell_folder(folder, f"k{i}"))
        )
        for i in range(n)
    }


def events(folder):
    return Counter(
        (line["cell"], line["event"]) for line in map(json.loads, (folder / LOG_FILE).read_text().splitlines())
    )


def test_a_log_says_at_which_step_cells_are(tmp_path, capsys):
    """Cells tell their steps to whoever runs them, here in this process."""
    wanted, seen = orders(tmp_path, 2), []
    with LiveStudy(enabled=False, lines=True) as view:
        view._lines = Lines(every=0.0)
        run_cells(wanted, cells.telling, ONE, tmp_path, progress=lambda event: (seen.append(event), view.update(event)))
    assert [event.under_way for event in seen] == ["", "training at step 3/8", "", "training at step 3/8", ""]
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line.split(": ", 1)[1] for line in err.splitlines()]
    assert lines[0] == "0/2 cells"
    assert lines[1] == "0/2 cells; training at step 3/8"
    assert lines[-1].startswith("2/2 cells")


@pytest.mark.parametrize("where", [ONE, TWO], ids=["one", "two"])
def test_all_cells_run_once_and_running_again_runs_none(tmp_path, where):
    wanted, seen = orders(tmp_path), []
    run_cells(wanted, cells.quick, where, tmp_path, progress=seen.append)
    found = results(tmp_path, list(wanted))
    assert {key: r.measurements[0].metrics["clean_accuracy"] for key, r in found.items()} == {
        f"k{i}": pytest.approx(0.9 - i / 100) for i in range(6)
    }
    assert (seen[0].done, seen[0].seconds_left, seen[-1].done, seen[-1].total) == (0, None, 6, 6)
    assert seen[1].seconds_left > 0 == seen[-1].seconds_left
    before = events(tmp_path)
    assert set(before.values()) == {1}
    run_cells(orders(tmp_path, 8), cells.quick, where, tmp_path)
    after = events(tmp_path)
    assert set(after.values()) == {1}
    assert len(after) == len(before) + 4  # the two new cells, start and end


def test_failures_are_kept_and_the_rest_goes_on(tmp_path):
    wanted = orders(tmp_path, k1={"fail": "user"}, k3={"fail": "crash"})
    seen = []
    run_cells(wanted, cells.sometimes_fails, TWO, tmp_path, progress=seen.append)
    found = results(tmp_path, list(wanted))
    assert {key for key, r in found.items() if r.status == "failed"} == {"k1", "k3"}
    assert found["k1"].error == "the dose is too high"
    assert found["k3"].error == "ZeroDivisionError: division by zero"
    assert seen[-1].failed == 2
    assert "k1 failed: the dose is too high" in [p.message for p in seen]
    run_cells(wanted, cells.quick, ONE, tmp_path)  # failures count as run …
    assert load_cell(tmp_path / "cells/k1" / CELL_FILE).status == "failed"
    run_cells(wanted, cells.quick, ONE, tmp_path, retry=True)  # … until they are asked for again
    assert {r.status for r in results(tmp_path, list(wanted)).values()} == {"complete"}


@pytest.mark.parametrize("where", [ONE, TWO], ids=["one", "two"])
def test_a_full_disk_stops_the_study_and_no_cell_is_to_blame(tmp_path, where):
    wanted = orders(tmp_path, k1={"fail": "full"})
    with raises("cannot-write", RunError, "No space left on device", "no cell is marked as failed"):
        run_cells(wanted, cells.sometimes_fails, where, tmp_path)
    assert {result.status for result in results(tmp_path, list(wanted)).values()} <= {"complete"}
    run_cells(wanted, cells.quick, ONE, tmp_path)  # there is room again
    assert [result.status for result in results(tmp_path, list(wanted)).values()] == ["complete"] * 6


def test_a_result_that_finds_no_room_is_not_kept_as_a_failure(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    wanted = orders(tmp_path, 2)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with raises("cannot-write", RunError):
            run_cells(wanted, cells.quick, ONE, tmp_path)
    assert not results(tmp_path, list(wanted))
    assert not unreadable(tmp_path, list(wanted))
    run_cells(wanted, cells.quick, ONE, tmp_path)
    assert len(results(tmp_path, list(wanted))) == 2


def test_a_cell_that_kills_its_workers_is_given_up_and_the_rest_goes_on(tmp_path):
    wanted = orders(tmp_path, k2={"fail": "die"})
    run_cells(wanted, cells.dies, Where(workers=2, devices=("cpu",), threads=1, retries=1), tmp_path)
    found = results(tmp_path, list(wanted))
    assert found["k2"].status == "failed"
    assert "each of the 2 workers that tried it died" in found["k2"].error
    assert [r.status for key, r in sorted(found.items()) if key != "k2"] == ["complete"] * 5
    assert events(tmp_path)["k2", "start"] == 2
    assert all(number == 1 for (cell, _), number in events(tmp_path).items() if cell != "k2")


def test_a_long_cell_holds_nobody_up_and_goes_on_where_another_is_given_up(tmp_path):
    """The first cell ends only once all others have: more than are sent ahead, and one that kills its worker."""
    wanted = orders(tmp_path, 8, k0={"until": [f"k{i}" for i in range(1, 8)]}, k1={"fail": "die"})
    run_cells(wanted, cells.dies, Where(workers=2, devices=("cpu",), threads=1, retries=0), tmp_path)
    found = results(tmp_path, list(wanted))
    assert {key for key, r in found.items() if r.status == "complete"} == set(wanted) - {"k1"}
    assert "the 1 workers" not in found["k1"].error
    assert "the worker that tried it died; it was killed by SIGKILL" in found["k1"].error
    assert events(tmp_path)["k0", "start"] == 1


def test_a_cell_whose_worker_died_is_tried_again(tmp_path):
    wanted = orders(tmp_path, 4, k1={"fail": "die"})
    run_cells(wanted, cells.dies_once, TWO, tmp_path)
    assert {r.status for r in results(tmp_path, list(wanted)).values()} == {"complete"}
    assert events(tmp_path)["k1", "start"] == 2


def test_ctrl_c_keeps_what_is_finished(tmp_path):
    wanted = orders(tmp_path)

    def stop(progress):
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(wanted, cells.quick, ONE, tmp_path, progress=stop)
    assert len(results(tmp_path, list(wanted))) == 3
    run_cells(wanted, cells.quick, ONE, tmp_path)
    assert set(events(tmp_path).values()) == {1}


def test_two_studies_on_one_folder_are_refused(tmp_path):
    with study_folder(tmp_path):
        code = f"""
from pathlib import Path
from robustdup_study.run import study_folder
with study_folder(Path({str(tmp_path)!r})):
    print("in")
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "Another process is at work in" in done.stderr
    assert "in" not in done.stdout.split()
    with study_folder(tmp_path):  # let go
        pass


def test_damaged_and_newer_results_count_as_missing_and_are_told(tmp_path):
    wanted = orders(tmp_path, 3)
    run_cells(wanted, cells.quick, ONE, tmp_path)
    (tmp_path / "cells/k0" / CELL_FILE).write_text("{")
    newer = json.loads((tmp_path / "cells/k1" / CELL_FILE).read_text()) | {"schema_version": 99}
    (tmp_path / "cells/k1" / CELL_FILE).write_text(json.dumps(newer))
    assert list(results(tmp_path, list(wanted))) == ["k2"]
    told = unreadable(tmp_path, list(wanted))
    assert "is not a whole JSON file" in told[0]
    assert "has schema version 99; this robustdup reads up to 2" in told[1]


def test_an_error_that_is_no_cells_fault_ends_the_run(tmp_path):
    wanted = orders(tmp_path, 2)
    with pytest.raises(UserError, match="Unknown runner 'cloud'"):
        run_cells(wanted, cells.quick, Where(runner="cloud"), tmp_path)
    Path(tmp_path / "cells").mkdir()
    Path(tmp_path / "cells/k0").write_text("a file where a folder should be")
    with pytest.raises((RunError, OSError)):
        run_cells(wanted, cells.quick, ONE, tmp_path)


STUDY = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
import cells, test_run
from robustdup_study.run import run_cells, study_folder
if __name__ == "__main__":
    folder = Path({folder!r})
    with study_folder(folder):
        slow = {{f"k{{i}}": {{"sleep": 0.15}} for i in range(24)}}
        run_cells(test_run.orders(folder, 24, **slow), cells.quick, test_run.TWO, folder)
"""


def test_kill_9_and_continue_runs_no_finished_cell_twice(tmp_path):
    script = tmp_path / "study.py"
    folder = tmp_path / "study"
    script.write_text(STUDY.format(here=str(HERE), folder=str(folder)))
    draw, env = random.Random(3), {**os.environ, "PYTHONPATH": str(HERE)}
    for _ in range(2):
        process = Forked([str(script)], env=env)
        started, first = time.monotonic(), len(list(folder.glob("cells/*/cell.json")))
        while process.poll() is None and time.monotonic() - started < 60:
            if len(list(folder.glob("cells/*/cell.json"))) > first:
                break
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.4))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = set(folder.glob("cells/*/cell.json"))
    assert 0 < len(before) < 24
    done = run([str(script)], env=env)
    assert done.returncode == 0, done.stderr
    found = events(folder)
    assert len(list(folder.glob("cells/*/cell.json"))) == 24
    assert all(number == 1 for (_, event), number in found.items() if event == "complete")
