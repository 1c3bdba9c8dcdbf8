"""From cells to record and report: what is missing is told, claims are judged by what was found, old records are read."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from robustdup_study.cell_record import CellResult, Measurement, load_cell, save_cell
from robustdup_study.grid import PlannedRun
from robustdup_study.recipe import load_recipe
from robustdup_study.record import make_record
from robustdup_study.records import (
    ImageDifference,
    StudyRecord,
    load_study_record,
    save_study_record,
)
from robustdup_study.report import cells_of_table, dose_tables, markdown, sections
from robustdup_study.run import cell_folder

from robustdup.errors import UserError
from robustdup.records import now


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
                    lines.append(PlannedRun(factors, seed, key))
                    if key in skip or key in level:
                        continue
                    level[key] = 0.8 + effect(factors) + 0.001 * draw.normal() + 0.01 * seed
                    metrics = {"clean_accuracy": level[key], "best_clean_accuracy": level[key] + 0.05}
                    if extra is not None:
                        metrics |= extra(level[key], factors)
                    result = CellResult(
                        key=key, created=now(), status="failed" if key in fail else "complete", error="out of memory",
                        measurements=[] if key in fail else [Measurement(metrics=metrics)], seconds=2.0,
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
    """Here no cell counted its steps or images, so that only the names of the schemes tell what differs besides copies."""
    record = study(tmp_path, skewed_harm, published=True)
    claims = {claim.claim: claim for claim in record.claims}
    assert len(claims) == 5
    skewed = claims["The harm shows most when duplication is non-uniform over classes"]
    assert (skewed.verdict, skewed.effect, skewed.attribution) == ("undecided", "seen", "open")
    assert skewed.attribution_text.startswith("Also different: class shares.")
    assert "4.06 points [3.97, 4.16] lower than under uniform" in skewed.evidence[0]
    assert claims["Even uniform duplication, increased, brings no significant gain in accuracy"].verdict == "confirmed"
    harm = study(tmp_path / "harm", lambda f: -0.03 * (f["dose"] > 0), published=True)
    assert [(claim.verdict, claim.attribution) for claim in harm.claims if "non-uniform" not in claim.claim] == [
        ("confirmed", "copies")
    ] * 4
    better = study(tmp_path / "better", lambda f: 0.03 * (f["dose"] > 0), published=True)
    assert {claim.verdict for claim in better.claims if "non-uniform" not in claim.claim} == {"refuted"}
    noise = np.random.default_rng(100)
    open_ = study(tmp_path / "open", lambda f: 0.05 * noise.normal(), published=True, seeds=3)
    assert {claim.verdict for claim in open_.claims} == {"undecided"}
    assert " seeds." in open_.claims[1].sentence


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
    assert best.runs[0].metrics["clean_accuracy"] == pytest.approx(last.runs[0].metrics["clean_accuracy"] + 0.05)


def test_seeds_of_one_setting_are_no_line_of_effective_robustness(tmp_path):
    """Two settings with six seeds each are two points, however far the seeds lie apart."""
    record = study(tmp_path, lambda f: 0.0, extra=lambda clean, _: {"shifted_accuracy": clean - 0.2})
    assert not any("effective_robustness" in run.metrics for run in record.runs)
    assert (
        "No effective robustness: the line needs 3 settings without copies that differ in more than the seed; here are 2."
        in record.remarks
    )


def test_records_go_round_and_newer_ones_are_refused(tmp_path):
    record = study(tmp_path, skewed_harm)
    path = save_study_record(record, tmp_path)
    assert load_study_record(tmp_path) == record
    table = pq.read_table(tmp_path / "cells.parquet")
    assert table.num_rows == 48
    assert {"objective", "scheme", "dose", "seed", "cell", "status", "clean_accuracy"} <= set(table.column_names)
    assert table.column("dose").to_pylist()[:2] == [0.0, 0.5]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    with pytest.raises(UserError, match="has schema version 99; this robustdup reads up to 2"):
        load_study_record(tmp_path)
    path.write_text(json.dumps({"schema_name": "robustdup.evaluation", "schema_version": 1}))
    with pytest.raises(UserError, match="is not a study's record"):
        load_study_record(tmp_path)


@pytest.mark.parametrize("version", [1, 2])
def test_records_of_every_schema_are_read(version):
    fixtures = Path(__file__).parent / "fixtures"
    record = load_study_record(fixtures / f"study-{version}.json")
    assert (record.schema_version, record.n_cells, record.seeds) == (2, 4, [0, 1])
    assert [run.cell for run in record.runs][:2] == ["acbf36aae54ea041", "7286661266a43cae"]
    assert len(record.comparisons) == 8  # of one dose, in all that was measured
    assert record.comparisons[0].sentence == "Optimizer steps was the same in every seed at dose 10, 2 paired seeds."
    assert record == load_study_record(fixtures / "study-1.json")
    cell = load_cell(fixtures / f"cell-{version}.json")
    assert (cell.status, cell.config["arm"], set(cell.measurements[0].metrics) >= {"test_clean_acc", "steps"}) == (
        "complete", "adversarial", True,
    )  # fmt: skip
    assert cell == load_cell(fixtures / "cell-1.json")
    markdown(record)


def test_what_the_first_schema_called_arms_are_control_conditions():
    """In a recipe of robustdup's own training: its factor, exclusions, contrasts, comparisons, terms; not published arms."""
    content = json.loads((Path(__file__).parent / "fixtures" / "study-1.json").read_text())
    arm = {"arm": "prior-matched", "dose": 0.5}
    content["recipe"] |= {"protocol": "train", "factors": {"arm": ["copies", "prior-matched"]}, "exclude": [arm]}
    content["recipe"]["analysis"] |= {"contrasts": ["arm"], "primary": [{"contrast": "arm"}]}
    content["factors"], content["rows"][0]["factors"] = {"arm": ["copies", "prior-matched"]}, arm
    content["comparisons"][0] |= {"kind": "contrast", "contrast": "arm", "level": "arm"}
    content["anova"] = [
        {
            "metric": "m",
            "term": "objective × arm",
            "df": 1,
            "df_error": 1,
            "f": 1,
            "p": 1,
            "p_lower_bound": 1,
            "seeds": [],
        }
    ]
    content["crossovers"] = [
        {"measure": "accuracy", "factors": {"arm": "copies"}, "dose": 0.5, "seeds": [0, 1], "images": 9, "difference": 0.1,
         "low": 0.0, "high": 0.2, "sentence": "s"}
    ]  # fmt: skip
    record = StudyRecord.model_validate(content)
    assert [one.factors for one in record.image_differences] == [{"condition": "copies"}]
    condition = {"condition": "prior-matched", "dose": 0.5}
    assert record.recipe["factors"] == record.factors == {"condition": ["copies", "prior-matched"]}
    assert (record.recipe["exclude"], record.runs[0].factors) == ([condition], condition)
    assert record.recipe["analysis"]["contrasts"] == ["condition"]
    assert record.recipe["analysis"]["primary"] == [{"contrast": "condition"}]
    assert (record.comparisons[0].contrast, record.comparisons[0].level) == ("condition", "arm")
    assert record.anova[0].term == "objective × condition"
    assert record.published[0].arm == "standard"


def test_samples_of_a_cell_of_the_first_schema_are_read():
    content = json.loads((Path(__file__).parent / "fixtures" / "cell-1.json").read_text())
    content |= {
        "points": {"row": [3], "copies": [2], "right": [1], "held": [0]},
        "readings": {"dose": 0.5},
        "run": {"n": 1},
    }
    cell = CellResult.model_validate(content)
    assert cell.samples == {"index": [3], "copies": [2], "correct": [1], "robust": [0]}
    assert (cell.duplication, cell.training) == ({"dose": 0.5}, {"n": 1})


def published_study(tmp_path, name, values, **content):
    """A study of the adversarial arm at 0 and 60 whose clean accuracies are given: {clamp or part: (at 0, at 60)}."""
    config = load_recipe(
        None, [], {"name": name, "out": str(tmp_path / name), "seeds": 2, "published": True, **content}
    )
    lines = []
    for factors, pair in values:
        for seed in (0, 1):
            for percent, value in zip((0, 60), pair, strict=True):
                key = f"{len(lines)}"
                lines.append(PlannedRun({**factors, "percent": percent}, seed, key))
                metrics = {content["analysis"]["metrics"][0]: value + 0.001 * seed}
                save_cell(
                    CellResult(key=key, created=now(), status="complete", measurements=[Measurement(metrics=metrics)]),
                    cell_folder(tmp_path / name, key),
                )
    record = make_record(config, lines, command="c", versions={})
    save_study_record(record, tmp_path / name)
    return record


def test_published_as_published_here_and_repaired_stand_side_by_side(tmp_path):
    def figures(record):
        rows = {
            one.percent: one
            for one in record.published
            if (one.arm, one.metric) == ("adversarial", "clean") and "output" in one.source
        }
        return [
            (one.published, one.here and round(one.here, 2), one.repaired and round(one.repaired, 2), one.mended)
            for one in (rows[0], rows[60])
        ]

    factors = {"arm": ["adversarial"], "clamp": ["published", "repaired"], "percent": [0, 60]}
    arms = [
        ({"arm": "adversarial", "clamp": "published"}, (0.30, 0.20)),
        ({"arm": "adversarial", "clamp": "repaired"}, (0.5, 0.52)),
    ]
    published = published_study(
        tmp_path, "published", arms,
        protocol="as-published", factors=factors, analysis={"dose": "percent", "metrics": ["test_clean_acc"]},
    )  # fmt: skip
    assert figures(published) == [(41.16, 30.05, 50.05, "clamp"), (20.90, 20.05, 52.05, "clamp")]
    report = markdown(published)
    assert (
        "| adversarial | 60 | clean | 20.90 | 20.05 [19.41, 20.69], 2 seeds | 52.05 [51.41, 52.69], 2 seeds, the clamp"
        in report
    )
    assert (
        "- 60 (adversarial arm): in the adversarial arm 60% of the images are added once more: 37.5% of the" in report
    )
    content = {
        "factors": {"part": ["adversarial"], "percent": [0, 60]},
        "analysis": {"dose": "percent", "metrics": ["clean_accuracy"]},
    }
    repaired = published_study(tmp_path, "repaired", [({"part": "adversarial"}, (0.6, 0.62))], **content)
    assert figures(repaired) == [(41.16, None, 60.05, "all"), (20.90, None, 62.05, "all")]
    both = published_study(
        tmp_path,
        "both",
        [({"part": "adversarial"}, (0.6, 0.62))],
        compare_with=[str(tmp_path / "published")],
        **content,
    )
    assert figures(both) == [(41.16, 30.05, 60.05, "all"), (20.90, 20.05, 62.05, "all")]


def test_the_report_tells_power_and_needed_seeds(tmp_path):
    titles = dict(sections(study(tmp_path, skewed_harm)))
    assert titles["Seeds"][0].startswith("clean_accuracy: with 6 seeds the power to see a difference of the size")
    assert "Doses stated in all usual ways" in titles


def test_the_terminal_tells_of_the_same_images_only_what_is_beyond_chance(tmp_path):
    record = study(tmp_path, skewed_harm)
    ranges = [(0.1, 0.3), (-0.3, -0.1), (-0.1, 0.1), (0.0, 0.2)]
    record.image_differences = [
        ImageDifference(
            measure="accuracy", factors={}, dose=0.5, seeds=[0, 1], images=9, difference=(low + high) / 2, low=low,
            high=high, sentence=f"{low} to {high}",
        )
        for low, high in ranges
    ]  # fmt: skip
    title = "The same training images with and without copies"
    assert dict(sections(record))[title] == [f"{low} to {high}" for low, high in ranges]
    assert dict(sections(record, brief=True))[title] == [
        "0.1 to 0.3", "-0.3 to -0.1", "2 more show no difference beyond chance.",
    ]  # fmt: skip
