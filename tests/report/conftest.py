"""Run folders as an evaluation leaves them, made without a model."""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from robustdup.records import (
    SAMPLES_SCHEMA,
    Accuracy,
    AttackResult,
    ClassResult,
    DataInfo,
    Environment,
    EvaluationRecord,
    ModelInfo,
    PassTotals,
    Threat,
    save_record,
    save_samples,
)

# These draw studies too.
collect_ignore = [] if importlib.util.find_spec("robustdup_study") else ["test_kinds.py", "test_plots.py"]

ATTACKS = ("apgd-ce", "apgd-t", "fab-t", "square")


@dataclass
class Made:
    """A run and what it was made of: labels (N,), and the attack (its number) that broke each point."""

    folder: Path
    record: EvaluationRecord
    labels: np.ndarray
    right: np.ndarray
    broken_by: np.ndarray
    clean: np.ndarray
    adversarial: np.ndarray
    rows: dict = field(default_factory=dict)


def accuracy(right):
    value = float(np.mean(right))
    return Accuracy(value=value, low=max(0.0, value - 0.06), high=min(1.0, value + 0.05))


def make_run(
    folder, n=40, k=4, *, seed=0, attacks=ATTACKS, shape=(1, 8, 8), eps=0.1, images=True, clean_images=True,
    right=None, broken_by=None, samples=True, **changes,
):  # fmt: skip
    """Write a run folder: `right` (N,) on the clean image, `broken_by` (N,) the number of an attack or -1."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % k
    right = rng.random(n) < 0.9 if right is None else np.asarray(right)
    broken_by = rng.integers(-1, len(attacks), n) if broken_by is None else np.asarray(broken_by)
    broken_by = np.where(right, broken_by, -1)
    robust = right & (broken_by < 0)
    clean = rng.integers(0, 256, (n, *shape)).astype(np.uint8)
    change = np.where((broken_by >= 0)[:, None, None, None], rng.choice([-eps, eps], (n, *shape)), 0)
    adversarial = (clean / 255 + change).clip(0, 1).astype(np.float32)
    rows = _rows(labels, right, broken_by, attacks, eps, k)
    results = []
    for stage, name in enumerate(attacks):
        met = right & ((broken_by < 0) | (broken_by >= stage))
        hit = right & (broken_by == stage)
        results.append(
            AttackResult(
                name=name, n_attacked=int(met.sum()), n_broken=int(hit.sum()), seconds=1.5, forward_passes=1200,
                backward_passes=1100, violations=0, robust_accuracy_after=float((met & ~hit).mean()),
            )
        )  # fmt: skip
    fields = {
        "run_id": folder.name, "created": "2026-11-22T12:00:00+00:00", "status": "complete", "command": "robustdup eval n=40",
        "n": n, "threat": Threat(norm="Linf", eps=eps, eps_text=str(eps)), "tolerance": 1e-6,
        "clean_accuracy": accuracy(right), "robust_accuracy": accuracy(robust), "robust_accuracy_8bit": float(robust.mean()),
        "n_undecided": 0, "attacks": results, "passes": PassTotals(), "seconds": 6.0, "seed": 0,
        "interval_about": "95% intervals about images like these.", "config": {"attacks": "autoattack", "diagnostics": True},
        "per_class": [
            ClassResult(
                label=c, name=f"class {c}", n=int((labels == c).sum()), clean_accuracy=_mean(right[labels == c]),
                robust_accuracy=_mean(robust[labels == c]),
            )
            for c in range(k)
        ],
        "data": DataInfo(
            spec="some/data", split="test", n_total=n, selection="all", image_shape=list(shape),
            class_names=[f"class {c}" for c in range(k)], fingerprint="0" * 64,
        ),
        "model": ModelInfo(spec="model.py:make", architecture="Net", fingerprint="f" * 64, num_classes=k, parameters=19178),
        "environment": Environment(
            device="cpu", device_name="CPU", threads=2, python="3.12", platform="Linux", micro_batch=128, batch_size=128
        ),
        "versions": {"robustdup": "0.1.0"},
    }  # fmt: skip
    if "attack_results" in changes:
        changes["attacks"] = changes.pop("attack_results")
    record = EvaluationRecord(**{**fields, **changes})
    save_record(record, folder)
    if samples:
        save_samples(rows, folder)
    if images:
        (folder / "images").mkdir(exist_ok=True)
        save_file({"images": adversarial, "labels": labels}, folder / "images" / "adversarial.safetensors")
    if images and clean_images:
        save_file({"images": clean}, folder / "images" / "clean.safetensors")
    return Made(folder, record, labels, right, broken_by, clean, adversarial, rows)


def _mean(values):
    return float(np.mean(values)) if len(values) else None


def _rows(labels, right, broken_by, attacks, eps, k):
    """The columns of samples.parquet: a clean row a point, then a row a point and attack that met it."""
    columns = {name: [] for name in SAMPLES_SCHEMA.names}

    def add(i, attack, stage, outcome, prediction, margin, distance):
        row = {
            "position": i, "index": 100 + i, "label": int(labels[i]), "image_sha256": f"{i:064x}",
            "eps": "" if stage < 0 else str(eps), "attack": attack, "stage": stage, "outcome": outcome,
            "prediction": int(prediction), "margin": margin, "distance": distance, "violation": "", "forward_passes": 1,
            "backward_passes": 1, "correct_share": float(prediction == labels[i]), "min_distance": None,
        }  # fmt: skip
        for name, value in row.items():
            columns[name].append(value)

    for i in range(len(labels)):
        wrong = (labels[i] + 2) % k if k > 2 else (labels[i] + 1) % max(k, 2)
        add(i, "clean", -1, "correct" if right[i] else "misclassified", labels[i] if right[i] else wrong, 1.0, 0.0)
    for stage, attack in enumerate(attacks):
        for i in np.flatnonzero(right & ((broken_by < 0) | (broken_by >= stage))):
            hit = broken_by[i] == stage
            taken = (labels[i] + 1) % max(k, 2) if hit else labels[i]
            add(int(i), attack, stage, "broken" if hit else "robust", taken, -0.5 if hit else 0.4, eps)
    return columns


@pytest.fixture
def run(tmp_path):
    """A factory of run folders under tmp_path, by name."""

    def make(name="run", **options):
        return make_run(tmp_path / name, **options)

    return make


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("ROBUSTDUP_CACHE", str(tmp_path / "cache"))
