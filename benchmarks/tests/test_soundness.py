"""The soundness run, small: no certified sample is broken, and a certificate that is made up is."""

import pytest
import torch

from benchmarks import soundness
from robustdup.certification.proofs import Certificates

QUICK = ("pgd(restarts=2,steps=5)",)


@pytest.mark.parametrize("seed", [0, 7])
def test_no_certified_sample_is_broken(seed, monkeypatch):
    monkeypatch.setattr(soundness, "ATTACKS", QUICK)
    row = soundness.measure(seed, 12)
    assert row["certified"] > 0
    assert row["broken"] == 0


def test_false_certificates_are_seen(monkeypatch):
    def all_of_them(model, images, labels, threat, **_):
        n = len(images)
        return Certificates(labels == labels, labels == labels, torch.ones(n), ["crown"] * n, 0.0)

    monkeypatch.setattr(soundness, "ATTACKS", QUICK)
    monkeypatch.setattr(soundness, "_radius", lambda *_: 0.3)
    monkeypatch.setattr(soundness, "certify_samples", all_of_them)
    assert soundness.measure(1, 12)["broken"] > 0


@pytest.mark.slow
def test_a_thousand_certificates_hold():
    found = list(soundness.rows(1000, 100, branch_seconds=0.2))
    assert sum(row["certified"] for row in found) >= 1000
    assert not any(row["broken"] for row in found)
    assert {row["norm"] for row in found} == set(soundness.NORMS)
