"""A study analysed again from the table of its cells: the same comparisons, and what is no such table is refused."""

from __future__ import annotations

import pyarrow.csv as pc
import pytest
from robustdup_study.published_cells import record_of_table, runs_of_table
from robustdup_study.recipe import load_recipe
from robustdup_study.record import record_of
from robustdup_study.records import StudyRun, study_table

from robustdup.errors import UserError
from tests.raising import raises


def made(tmp_path):
    recipe = {
        "factors": {"condition": ["copies", "as-weights"], "dose": [0, 0.5]}, "seeds": 3,
        "analysis": {"metrics": ["clean_accuracy"], "margins": {"clean_accuracy": 1.0}},
    }  # fmt: skip
    config = load_recipe(None, [], recipe)
    runs = [
        StudyRun(
            factors={"condition": condition, "dose": dose}, seed=seed, cell=f"{condition}-{dose}-{seed}", status="complete",
            metrics={"clean_accuracy": 0.5 + 0.01 * seed - 0.02 * (dose > 0) * (1 + 0.1 * seed), "seconds": 2.0},
        )
        for condition in ("copies", "as-weights") for dose in (0, 0.5) for seed in range(3)
    ]  # fmt: skip
    record = record_of(config, runs, {}, [run.cell for run in runs], command="c", versions={})
    table = study_table(record)
    pc.write_csv(
        table.rename_columns(["arm" if name == "condition" else name for name in table.column_names]),
        tmp_path / "t.csv",
    )
    return config, record


def test_a_table_gives_the_record_that_it_came_from(tmp_path):
    config, record = made(tmp_path)
    again = record_of_table(tmp_path / "t.csv", config, "c")
    assert again.comparisons == record.comparisons
    assert (again.n_complete, again.status, again.seconds) == (12, "complete", 24.0)
    assert any("answers to single images" in remark for remark in again.remarks)


def test_what_is_no_table_of_this_recipe_is_refused(tmp_path):
    config, _ = made(tmp_path)
    with raises("missing-file", UserError, "nowhere.csv"):
        runs_of_table(tmp_path / "nowhere.csv", config)
    (tmp_path / "other.csv").write_text("seed,clean_accuracy\n0,0.5\n")
    with raises("bad-file", UserError, "no column condition, dose, cell, status"):
        runs_of_table(tmp_path / "other.csv", config)
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read as a table"):
        runs_of_table(tmp_path / "bad.parquet", config)
