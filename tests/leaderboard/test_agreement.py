"""Who fails where: kappa against its definition, shared failures, and adversarial images shown to other models."""

from __future__ import annotations

import json

import numpy as np
import pytest

import robustdup
from robustdup.cli.main import main
from robustdup.leaderboard.agreement import agreements, error_consistency
from robustdup.records import load_record, load_samples
from tests.raising import raises


def test_kappa_is_what_its_definition_says():
    rng = np.random.default_rng(0)
    a, b = rng.random(500) < 0.7, rng.random(500) < 0.6
    found = error_consistency(a, b)
    observed = (a == b).mean()
    expected = a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean())
    assert found.kappa == pytest.approx((observed - expected) / (1 - expected))
    assert (found.observed, found.expected) == (pytest.approx(observed), pytest.approx(expected))
    assert found.low < found.kappa < found.high
    assert abs(found.kappa) < 0.1  # independent by construction
    assert found.both_right + found.only_a + found.only_b + found.both_wrong == found.n == 500


def test_the_ends_of_kappa():
    a = np.arange(100) < 50
    assert error_consistency(a, a).kappa == pytest.approx(1.0)
    assert error_consistency(a, ~a).kappa == pytest.approx(-1.0)
    assert error_consistency(np.ones(10, dtype=bool), np.ones(10, dtype=bool)).kappa is None
    assert error_consistency(np.ones(10, dtype=bool), np.arange(10) < 5).kappa == pytest.approx(0.0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of one model by attacks of other strengths, and one of a model that is not robust."""
    folder = tmp_path_factory.mktemp("runs")
    for name, model, attacks in (
        ("weak", "builtin:digits-robust", "fgsm"), ("strong", "builtin:digits-robust", "pgd(steps=5)"),
        ("standard", "builtin:digits-standard", "fgsm"),
    ):  # fmt: skip
        data = robustdup.load_data("builtin:digits", n=40)
        settings = {"progress": False, "diagnostics": False, "eps": "0.2", "attacks": attacks}
        robustdup.evaluate(model, data, out=folder / name, **settings)
    return [str(folder / name) for name in ("weak", "strong", "standard")]


def test_pairs_agree_as_counted_by_hand(runs):
    found = agreements([(load_record(run), load_samples(run)) for run in runs])
    assert [(pair.run_a, pair.run_b) for pair in found] == [
        ("weak", "strong"),
        ("weak", "standard"),
        ("strong", "standard"),
    ]
    weak_strong = found[0]
    assert weak_strong.clean.only_a == weak_strong.clean.only_b == 0
    broken = [_broken(run) for run in runs]
    assert weak_strong.broken_too_b == pytest.approx(len(broken[0] & broken[1]) / len(broken[0]))
    assert weak_strong.broken_too_a == pytest.approx(len(broken[0] & broken[1]) / len(broken[1]))
    assert weak_strong.same_threat


def _broken(run):
    table = load_samples(run).to_pylist()
    return {row["index"] for row in table if row["outcome"] == "broken"}


def test_adversarial_images_mislead_their_own_model_and_some_others(runs, capsys):
    assert main(["compare", *runs, "--transfer", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    for run, row in zip(runs, content, strict=True):
        assert row["transfer_to"][run] == 1.0
        assert len(row["transfer_to"]) == 3
    assert content[0]["transfer_to"][runs[1]] == 1.0  # the same model
    other = content[0]["transfer_to"][runs[2]]
    assert 0 <= other < 1
    assert [pair["with"] for pair in content[0]["agreement"]] == runs[1:]
    assert main(["compare", *runs]) == 0
    text = capsys.readouterr().out
    assert "Who fails where" in text


def test_what_transfer_cannot_use_is_said(runs, tmp_path):
    from robustdup.jobs import transfer

    data = robustdup.load_data("builtin:digits", n=4)
    settings = {"progress": False, "diagnostics": False, "eps": "0.2", "attacks": "fgsm"}
    robustdup.evaluate("builtin:digits-robust", data, out=tmp_path / "bare", save_images=False, **settings)
    with raises("no-images"):
        transfer([runs[0], str(tmp_path / "bare")])
    robustdup.evaluate(robustdup.load_model("builtin:digits-standard"), data, out=tmp_path / "object", **settings)
    with raises("bad-option", robustdup.UserError, "object in memory"):
        transfer([runs[0], str(tmp_path / "object")])
