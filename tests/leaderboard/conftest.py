"""Runs for the tests: real records and sample tables, without a model."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import robustdup.leaderboard
from robustdup.records import (
    SAMPLES_SCHEMA,
    Accuracy,
    AttackResult,
    DataInfo,
    Environment,
    EvaluationRecord,
    ModelInfo,
    PassTotals,
    Threat,
)

HEAD = json.loads((Path(robustdup.leaderboard.__file__).parent / "data" / "cifar10_test_head.json").read_text())
AUTOATTACK = ("robustbench:APGD-CE", "robustbench:APGD-T", "robustbench:FAB-T", "robustbench:Square")


def shares(right):
    """A share with a generous interval around it; an interval of width zero for a whole CIFAR test set."""
    value = float(np.mean(right))
    half = 0.0 if len(right) == 10_000 else 0.05
    return Accuracy(value=value, low=max(0.0, value - half), high=min(1.0, value + half))


def table(clean, broken_by, *, attacks=AUTOATTACK, eps="8/255", index=None, labels=None, hashes=None, undecided=()):
    """Rows as an evaluation writes them: a clean row a point, then a row for each point that an attack still meets."""
    n = len(clean)
    index = np.arange(n) if index is None else np.asarray(index)
    labels = [int(HEAD["labels"][i % 500]) for i in index] if labels is None else labels
    if hashes is None:
        hashes = [HEAD["hashes"][i].ljust(64, "0") if i < 500 else f"{i:064x}" for i in index]
    rows = [(i, "clean", -1, "correct" if clean[i] else "misclassified", "") for i in range(n)]
    for stage, attack in enumerate(attacks):
        for i in np.flatnonzero(np.asarray(clean)):
            if 0 <= broken_by[i] < stage:
                continue
            last = stage == len(attacks) - 1
            outcome = "broken" if broken_by[i] == stage else "undecided" if last and i in undecided else "robust"
            rows.append((i, attack, stage, outcome, eps))
    at = [row[0] for row in rows]
    columns = {
        "position": at, "index": [int(index[i]) for i in at], "label": [labels[i] for i in at],
        "image_sha256": [hashes[i] for i in at], "eps": [row[4] for row in rows], "attack": [row[1] for row in rows],
        "stage": [row[2] for row in rows], "outcome": [row[3] for row in rows],
    }  # fmt: skip
    rest = {field.name: [0 if pa.types.is_integer(field.type) else "" if pa.types.is_string(field.type) else 0.0]
            * len(rows) for field in SAMPLES_SCHEMA if field.name not in columns}  # fmt: skip
    return pa.table({**columns, **rest}, schema=SAMPLES_SCHEMA)


def record(clean, broken_by, *, attacks=AUTOATTACK, asked="robustbench:AutoAttack", eps="8/255", norm="Linf",
           data="uoft-cs/cifar10", undecided=(), n_total=10_000, model=None, **changes):  # fmt: skip
    """A record that agrees with `table` of the same arguments."""
    clean, broken_by = np.asarray(clean), np.asarray(broken_by)
    robust = clean & (broken_by < 0)
    numerator, _, denominator = eps.partition("/")
    results = []
    for stage, name in enumerate(attacks):
        left = clean & ((broken_by < 0) | (broken_by > stage))
        hit = int((clean & (broken_by == stage)).sum())
        results.append(
            AttackResult(
                name=name, n_attacked=int(left.sum()) + hit, n_broken=hit, seconds=1.0, forward_passes=10,
                backward_passes=10, violations=0, robust_accuracy_after=float(left.mean()),
            )
        )  # fmt: skip
    fields = {
        "run_id": "run-a", "created": "2026-11-22T12:00:00+00:00", "status": "complete", "command": "robustdup eval",
        "n": len(clean), "threat": Threat(norm=norm, eps=float(numerator) / float(denominator or 1), eps_text=eps),
        "tolerance": 1e-6, "clean_accuracy": shares(clean), "robust_accuracy": shares(robust),
        "n_undecided": len(undecided), "attacks": results, "passes": PassTotals(), "seconds": 1.0, "seed": 0,
        "interval_about": "the images", "config": {"attacks": asked, "loss": None},
        "data": DataInfo(
            spec=data, split="test", n_total=n_total, selection="first", image_shape=[3, 32, 32],
            class_names=[str(i) for i in range(10)], fingerprint="0" * 64,
        ),
        "model": ModelInfo(
            **{"spec": "model.py:make", "architecture": "WideResNet", "fingerprint": "f" * 64, "num_classes": 10,
               "parameters": 1000, **(model or {})}
        ),
        "environment": Environment(
            device="cpu", device_name="CPU", threads=2, python="3.12", platform="Linux", micro_batch=128, batch_size=128
        ),
        "versions": {"robustdup": "0.1.0"},
    }  # fmt: skip
    return EvaluationRecord(**{**fields, **changes})


@pytest.fixture
def make_table():
    return table


@pytest.fixture
def make_record():
    return record


@pytest.fixture
def points():
    """(clean, broken_by) of n points: the first `right` are classified, the first `robust` survive everything."""

    def build(n, right, robust, stage=0):
        place = np.arange(n)
        return place < right, np.where(place < robust, -1, stage)

    return build


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("ROBUSTDUP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
