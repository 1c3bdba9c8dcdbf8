"""From cells to record and report: what is missing is told, claims are judged by what was found, old records are read."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from robustdup.errors import UserError
from robustdup.records import (
    CellResult,
    Measured,
    load_study_record,
    load_study_table,
    now,
    save_cell,
    save_study_record,
)
from robustdup.report.study import cells_of_table, dose_tables, markdown, sections
from robustdup.study.grid import Line
from robustdup.study.recipe import load_recipe
from robustdup.study.record import make_record
from robustdup.study.run import cell_folder


def study(tmp_path, effect, *, seeds=6, skip=(), fail=(), extra=None, **content):
    """A study whose cells were "run": clean accuracy is 0.8 plus effect(factors), with a little noise."""
    config = load_recipe(
        None, [],
        {
            "name": "made", "out": str(tmp_path), "seeds": seeds,
            "factors": {"objective": ["standard", "pgd_at"], "scheme": ["uniform", "class_skewed"], "dose": [0, 0.5]},
            "analysis": {"metrics": ["clean_accuracy"], "margins": {"clean_accuracy": 1.0}, "contrasts": ["scheme"]},
            **content,
        },
    )  # fmt: skip
    draw, lines, level = np.random.default_rng(0), [], {}
    for seed in config.seed_list:
        for objective in ("standard", "pgd_at"):
            for scheme in ("uniform", "class_skewed"):
                for dose in (0, 0.5):
                    factors = {"objective": objective, "scheme": scheme, "dose": dose}
                    key = f"{objective}-{seed}" if dose == 0 else f"{objective}-{scheme}-{seed}"
                    lines.append(Line(factors, seed, key))
                    if key in skip or key in level:
                        continue
                    level[key] = 0.8 + effect(factors) + 0.001 * draw.normal() + 0.01 * seed
                    metrics = {"clean_accuracy": level[key], "best_clean_accuracy": level[key] + 0.05}
                    if extra is not None:
                        metrics |= extra(level[key], factors)
                    result = CellResult(
                        key=key, created=now(), status="failed" if key in fail else "complete", error="out of memory",
                        measured=[] if key in fail else [Measured(metrics=metrics)], seconds=2.0,
                    )  # fmt: skip
                    save_cell(result, cell_folder(tmp_path, key))
    return make_record(config, lines, command="robustdup study run made.yaml", versions={})


def skewed_harm(factors):
    return -0.04 * (factors["scheme"] == "class_skewed") * (factors["dose"] > 0)


def test_a_complete_study_says_what_was_put_in(tmp_path):
    record = study(tmp_path, skewed_harm)
    assert (record.status, record.n_cells, record.n_complete) == ("complete", 36, 36)
    assert record.seconds == 72
    skewed = [one for one in record.comparisons if one.primary and one.factors["scheme"] == "class_skewed"]
    assert [one.verdict for one in skewed] == ["lower", "lower"]
    assert all(one.low < -0.04 < one.high for one in skewed)
    assert record.conclusions[0].startswith("Clean accuracy is equivalent within ±1.0 points (")
    assert {term.term for term in record.anova} == {"objective", "scheme", "objective × scheme"}
    assert {term.term for term in record.anova if term.p < 0.001} == {"scheme"}
    header, rows, verdicts = cells_of_table(record)
    assert header == ["objective", "scheme", "dose", "seeds", "clean_accuracy", "difference"]
    assert len(rows) == 8
    assert sorted(verdicts) == ["", "", "", "", "equivalent", "equivalent", "lower", "lower"]


def test_the_table_fits_eighty_columns_with_nothing_cut(tmp_path):
    second = {"metrics": ["clean_accuracy", "robust_accuracy"], "margins": {"clean_accuracy": 1.0}}
    record = study(tmp_path, skewed_harm, extra=lambda clean, _: {"robust_accuracy": clean / 2}, analysis=second)
    console = Console(width=80, file=io.StringIO())
    for part in dose_tables(record):
        console.print(part)
    lines = console.file.getvalue().splitlines()
    assert lines[0].split() == ["dose", "seeds", "clean", "change", "robust", "change"]
    _, rows, _ = cells_of_table(record)
    shown = iter(line.split() for line in lines[1:])
    place = None
    for row in rows:
        if row[:2] != place:
            place = row[:2]
            assert next(shown) == f"{place[0]}, {place[1]}".split()
        assert next(shown) == " ".join(row[2:]).split()


def test_claims_follow_the_evidence(tmp_path):
    record = study(tmp_path, skewed_harm, published=True)
    verdicts = [claim.verdict for claim in record.claims]
    # no budget in steps; some drop; skewed is worse than uniform; pgd_at drops too; uniform brings nothing
    assert verdicts == ["not tested", "confirmed", "confirmed", "confirmed", "confirmed"]
    assert "4.06 points [3.97, 4.16] lower than under uniform" in record.claims[2].evidence[0]
    better = study(tmp_path / "better", lambda f: 0.03 * (f["dose"] > 0), published=True)
    assert [claim.verdict for claim in better.claims] == ["not tested", "refuted", "equivalent", "refuted", "refuted"]
    noise = np.random.default_rng(100)
    open_ = study(tmp_path / "open", lambda f: 0.05 * noise.normal(), published=True, seeds=3)
    assert {claim.verdict for claim in open_.claims[1:]} == {"undecided"}
    assert "need about" in open_.claims[1].sentence
    same = study(tmp_path / "same", lambda f: 0.0, published=True)
    assert [claim.verdict for claim in same.claims[1:4]] == ["equivalent"] * 3


def test_failed_and_missing_cells_are_listed_and_the_rest_is_analysed(tmp_path):
    record = study(tmp_path, skewed_harm, fail=["pgd_at-uniform-1"], skip=["standard-uniform-0", "standard-uniform-3"])
    assert (record.status, record.n_failed, record.n_missing) == ("partial", 1, 2)
    assert "1 cell failed (pgd_at-uniform-1): out of memory" in record.remarks
    assert "2 of 36 cells have not run: run the study again to go on." in record.remarks
    one = next(c for c in record.comparisons if c.factors == {"objective": "standard", "scheme": "uniform"})
    assert (one.seeds, one.missing_seeds) == ([1, 2, 4, 5], [0, 3])
    report = markdown(record)
    assert "## Failed cells" in report
    assert "- `pgd_at-uniform-1` (seed 1, objective pgd_at, scheme uniform, dose 0.5): out of memory" in report


def test_the_best_checkpoint_may_stand_for_the_study(tmp_path):
    last, best = (study(tmp_path, skewed_harm, checkpoint=name) for name in ("last", "best"))
    assert best.rows[0].metrics["clean_accuracy"] == pytest.approx(last.rows[0].metrics["clean_accuracy"] + 0.05)


def test_effective_robustness_is_what_clean_accuracy_does_not_predict(tmp_path):
    def shifted(clean, factors):
        value = clean - 0.2 - (0.03 if factors["dose"] else 0.0)
        return {"shifted_accuracy": value}

    record = study(tmp_path, lambda f: 0.0, extra=shifted)
    found = {row.factors["dose"]: row.metrics["effective_robustness"] for row in record.rows if row.seed == 2}
    assert found[0] == pytest.approx(0, abs=0.005)
    assert found[0.5] == pytest.approx(-0.03, abs=0.005)


def test_records_go_round_and_newer_ones_are_refused(tmp_path):
    record = study(tmp_path, skewed_harm)
    path = save_study_record(record, tmp_path)
    assert load_study_record(tmp_path) == record
    table = load_study_table(tmp_path)
    assert table.num_rows == 48
    assert {"objective", "scheme", "dose", "seed", "cell", "status", "clean_accuracy"} <= set(table.column_names)
    assert table.column("dose").to_pylist()[:2] == [0.0, 0.5]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(UserError, match="has schema version 99; this robustdup reads up to 1"):
        load_study_record(tmp_path)
    path.write_text(json.dumps({"schema_name": "robustdup.evaluation", "schema_version": 1}))
    with pytest.raises(UserError, match="is not a study's record"):
        load_study_record(tmp_path)
    with pytest.raises(UserError, match="There is no cells.parquet"):
        load_study_table(tmp_path / "nowhere")


def test_the_report_tells_power_and_needed_seeds(tmp_path):
    titles = dict(sections(study(tmp_path, skewed_harm)))
    assert titles["Seeds"][0].startswith("clean_accuracy: with 6 seeds the power to see a difference of the size")
    assert "Doses in all readings" in titles
