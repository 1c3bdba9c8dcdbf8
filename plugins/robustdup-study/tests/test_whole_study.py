"""Whole studies with real cells: killed at random moments, and on a cluster that loses a worker; the table stays the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pyarrow.parquet as pq
import pytest
from robustdup_study.records import load_study_record

from robustdup.cli.main import main

RECIPE = """
name: whole
base:
  data: builtin:digits
  n: 300
  model: small-cnn(width=4)
  attack: pgd(steps=3)
  eps: 0.15
  augment: none
  batch_size: 32
  optimizer: adamw
  lr: 0.003
  validation: 50
  validate_every: 10
  evaluate: pgd(steps=3)
  test_n: 100
  duplicate: {scheme: uniform}
factors:
  objective: [standard, pgd_at]
  dose: [0, 0.25, 0.5]
  budget: [fixed-epochs, fixed-steps]
budgets:
  fixed-epochs: {epochs: 6}
  fixed-steps: {samples: 1500}
baseline_budget: fixed-epochs
seeds: 2
metrics_on: 50
workers: 2
threads: 1
analysis: {contrasts: [objective]}
"""
CELLS = 20
TIMED = ("seconds",)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "whole.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "study"
    assert main(["study", "run", str(recipe), "--out", str(out)]) == 0
    return out


def events(out):
    lines = (out / "log.jsonl").read_text().splitlines() if (out / "log.jsonl").exists() else []
    return [json.loads(line) for line in lines]


def shown(out):
    """The table and what was concluded from it, without times and folders."""
    table = pq.read_table(out / "cells.parquet")
    record = load_study_record(out)
    parts = [one.model_dump() for one in (*record.means, *record.comparisons) if one.metric not in TIMED]
    kept = [name for name in table.column_names if name not in (*TIMED, "folder")]
    return table.select(kept).to_pylist(), parts, record.conclusions, [term.model_dump() for term in record.anova]


def start(recipe, out, *more):
    code = "from robustdup.cli.main import run; run()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "study", "run", str(recipe), "--out", str(out), *more],
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def wait_for(condition, process, seconds=600):
    until = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert process.poll() is None, "it ended before it could be disturbed"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_kills_of_the_whole_study_change_nothing_and_no_cell_runs_twice(recipe, undisturbed, tmp_path):
    draw, out = random.Random(6), tmp_path / "study"
    for kill in range(5):
        process = start(recipe, out)
        before = len(events(out))
        # At a random moment of what is left, so that none of the kills comes after the end.
        wait_for(lambda before=before: len(events(out)) > before, process)
        more = draw.randrange(max(1, (2 * CELLS - before) // (6 - kill)))
        wait_for(lambda aim=before + more: len(events(out)) > aim, process)
        time.sleep(draw.uniform(0, 0.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        finished = {event["cell"] for event in events(out) if event["event"] == "complete"}
        assert len(finished) < CELLS
    process = start(recipe, out)
    assert process.wait(timeout=900) == 0
    counts = Counter((event["cell"], event["event"]) for event in events(out))
    assert {number for (_, event), number in counts.items() if event == "complete"} == {1}
    assert len({cell for cell, _ in counts}) == CELLS
    assert all(number <= 6 for number in counts.values())
    assert sum(number for (_, event), number in counts.items() if event == "start") <= CELLS + 5 * 2
    assert shown(out) == shown(undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_cluster_that_loses_a_worker_gives_the_same_table(recipe, undisturbed, tmp_path):
    pytest.importorskip("ray")
    out = tmp_path / "study"
    process = start(recipe, out, "--runner", "ray", "--workers", "2")
    wait_for(lambda: sum(event["event"] == "complete" for event in events(out)) >= CELLS // 3, process)

    def at_work():
        ended = {event["cell"] for event in events(out) if event["event"] != "start"}
        return [event for event in events(out) if event["cell"] not in ended]

    wait_for(at_work, process)
    victim = at_work()[-1]
    os.kill(victim["pid"], signal.SIGKILL)
    assert process.wait(timeout=900) == 0
    counts = Counter((event["cell"], event["event"]) for event in events(out))
    assert counts[victim["cell"], "start"] == 2
    assert {number for (_, event), number in counts.items() if event == "complete"} == {1}
    assert len({event["pid"] for event in events(out)}) == 3
    assert shown(out) == shown(undisturbed)
