"""The cells of a study on a Ray cluster: one worker killed in the middle, and the same results as here."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("ray")

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import cells  # noqa: E402  worker processes import it by this name
from robustdup_study.cell_record import CellOrder  # noqa: E402
from robustdup_study.run import LOG_FILE, Where, cell_folder, results, run_cells  # noqa: E402


def test_a_cluster_gives_the_same_table_though_a_worker_is_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), *sys.path]))

    def run(name, where, run_cell):
        folder = tmp_path / name
        orders = {
            f"k{i}": CellOrder(
                key=f"k{i}", settings={"dose": i / 10, "fail": "die" if i == 2 else ""},
                folder=str(cell_folder(folder, f"k{i}")),
            )
            for i in range(6)
        }  # fmt: skip
        run_cells(orders, run_cell, where, folder)
        lines = map(json.loads, (folder / LOG_FILE).read_text().splitlines())
        return results(folder, list(orders)), Counter((line["cell"], line["event"]) for line in lines)

    here, _ = run("here", Where(workers=1, devices=("cpu",), threads=1), cells.quick)
    there, events = run("there", Where(runner="ray", workers=2, devices=("cpu",), threads=1), cells.dies_once)
    assert {key: r.measurements for key, r in there.items()} == {key: r.measurements for key, r in here.items()}
    assert events["k2", "start"] == 2
    assert {number for (_, event), number in events.items() if event == "complete"} == {1}
