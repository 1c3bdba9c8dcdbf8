"""Tables that compare verdicts: counts by hand, lines that are not run twice."""

from __future__ import annotations

import json

import pytest

from benchmarks import misses, parity


def line(attack, native, reference, attacked, n, model="a.py:net@w", seed=0):
    return {"attack": attack, "model": model, "norm": "Linf", "eps": "8/255", "seed": seed, "n": n,
            "broken_native": native, "broken_reference": reference, "attacked": attacked}  # fmt: skip


def test_parity_counts_both_directions_and_pools_models_and_seeds():
    lines = [
        line("whole", [1, 2], [2, 3], [1, 2, 3, 4], 6),
        line("whole", [1], [1], [1, 2], 4, model="b.py:net", seed=1),
    ]
    found = parity.summary(lines, "whole")
    assert found is not None
    assert (found["points"], found["attacked"]) == (10, 6)
    assert (found["only_native_broke"], found["only_reference_broke"]) == (1, 1)
    assert (found["native"], found["reference"], found["difference"]) == (0.3, 0.3, 0.0)
    assert found["low"] < 0 < found["high"]
    assert parity.summary(lines, "square") is None
    text = parity.table(lines)
    assert text.count("| whole |") == 3
    assert "| whole | all | 10 | 30.00% | 30.00% | 1 | 1 |" in text


def test_parity_runs_what_is_missing_and_nothing_twice(tmp_path, capsys, monkeypatch):
    pytest.importorskip("pyautoattack")
    out = tmp_path / "lines.jsonl"
    monkeypatch.setitem(parity.PAIRS, "square", "robustbench:Square(n_queries=30)")
    monkeypatch.setattr(parity, "call_text", lambda name, norm: "square(queries=30)")
    words = ["n=30", "eps=0.3", "--out", str(out), "--attacks", "square"]
    assert parity.main(words) == 0
    (first,) = parity.read(out)
    # Square draws its own windows: both break a share, and mostly the same points.
    assert 3 <= len(first["broken_native"]) <= 29
    assert len(set(first["broken_native"]) ^ set(first["broken_reference"])) <= 10
    monkeypatch.setattr(parity, "compare_once", lambda *_: pytest.fail("run twice"))
    assert parity.main(words) == 0
    assert "| square | builtin:digits-robust, Linf 0.3 | 30 |" in capsys.readouterr().out
    assert parity.main(["n=0", "--out", str(out)]) == 2
    with pytest.raises(pytest.fail.Exception, match="run twice"):  # other points are another comparison
        parity.main(["n=31", *words[1:]])


def run(attacks, broken, seed=0, passes=100, n=10, escalated=False):
    return {"attacks": attacks, "model": "a.py:net@w", "norm": "Linf", "eps": "8/255", "n": n, "seed": seed,
            "right": list(range(8)), "broken": broken, "passes": passes, "escalated": escalated, "seconds": 1.0}  # fmt: skip


def test_misses_are_counted_against_all_that_any_run_broke():
    lines = [run(misses.TRUTH, [0, 1, 2], passes=3000), run("fast", [0, 1, 2, 3]), run("fast", [0, 1], seed=1)]
    found = misses.summary(lines)
    assert found is not None
    assert found["missed"] == [0, 2]
    assert (found["mean"], found["robust"], found["only_fast"], found["ratio"]) == (0.1, 0.4, 1, 30.0)
    assert found["upper"] == pytest.approx(0.5069, abs=1e-3)  # Clopper-Pearson, one-sided, 2 of 10
    assert misses.summary(lines[:1]) is None
    other = [{**each, "model": "b.py:net"} for each in lines]
    text = misses.table([*lines, *other])
    assert "| all | 20 | 2 | | 0, 4 | 10.00 |" in text


def test_misses_are_found_on_a_real_model_and_nothing_runs_twice(tmp_path, monkeypatch):
    out = tmp_path / "lines.jsonl"
    monkeypatch.setattr(misses, "TRUTH", "apgd-ce(steps=20),apgd-t(steps=5)")
    words = ["n=40", "threads=1", "--out", str(out), "--seeds", "0"]
    assert misses.main(words) == 0
    truth, fast = parity.read(out)
    assert (truth["attacks"], fast["attacks"]) == (misses.TRUTH, "fast")
    assert len(set(truth["broken"]) ^ set(fast["broken"])) <= 2
    assert 5 < len(fast["broken"]) < 40
    assert not fast["escalated"]
    before = out.read_text()
    assert misses.main(words) == 0
    assert out.read_text() == before
    assert json.loads(before.splitlines()[0])["n"] == 40
