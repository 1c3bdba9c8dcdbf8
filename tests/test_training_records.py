"""Records of training: each field says what it is, older versions are read, newer ones refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustdup.errors import UserError
from robustdup.records import load_training_record, save_training_record
from robustdup.records import training as records
from robustdup.records.base import Part
from robustdup.report.training import precision_text
from tests.raising import raises

VERSION_1 = Path(__file__).parent / "fixtures" / "training-record-1.json"
PARTS = [
    part for part in vars(records).values() if isinstance(part, type) and issubclass(part, Part) and part is not Part
]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_every_field_says_what_it_is(part):
    schema = part.model_json_schema()
    assert schema["description"]
    silent = [name for name, field in schema["properties"].items() if len(field.get("description", "")) < 8]
    assert silent == []


def test_the_parts_are_those_of_a_training_record():
    assert set(records.TrainingRecord.model_json_schema()["$defs"]) <= {part.__name__ for part in PARTS}


def test_version_1_is_read(tmp_path):
    old = json.loads(VERSION_1.read_text())
    record = load_training_record(VERSION_1)
    assert record.schema_version == records.TRAINING_VERSION
    assert record.n_excluded == old["n_kept_out"] > 0
    assert record.duplication.rates == old["duplication"]["readings"]
    assert (record.steps, len(record.validation), record.checkpoints[1].n) == (2, 2, 20)
    again = record.model_dump(mode="json")
    renamed = {"schema_version", "n_kept_out", "n_excluded", "duplication", "extra"}
    assert again["extra"] is None
    assert {name: again[name] for name in again.keys() - renamed} == {name: old[name] for name in old.keys() - renamed}
    save_training_record(record, tmp_path)
    assert load_training_record(tmp_path) == record


def test_a_newer_version_and_another_kind_are_refused(tmp_path):
    content = json.loads(VERSION_1.read_text())
    (tmp_path / "record.json").write_text(json.dumps(content | {"schema_version": 3}))
    with raises("newer-record", UserError, "version 3", "reads up to 2"):
        load_training_record(tmp_path)
    (tmp_path / "record.json").write_text(json.dumps(content | {"schema_name": "robustdup.evaluation"}))
    with raises("other-record", UserError, "'robustdup.training'"):
        load_training_record(tmp_path)


@pytest.mark.parametrize(
    ("asked", "used", "text"),
    [
        ("auto", "bf16", "bf16; weights, optimizer and averages in fp32 (auto: the device computes in it)"),
        ("auto", "fp32", "fp32 (auto: no bf16 on the device, or a network too small to gain by it)"),
        ("fp16", "fp16", "fp16; weights, optimizer and averages in fp32"),
        ("tf32", "tf32", "tf32"),
    ],
)
def test_a_training_says_in_which_precision_it_ran_and_why(asked, used, text):
    record = load_training_record(VERSION_1)
    environment = record.environment.model_copy(update={"precision": used})
    record = record.model_copy(update={"environment": environment, "config": {**record.config, "precision": asked}})
    assert precision_text(record) == text
