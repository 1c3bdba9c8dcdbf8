"""Records on disk: whole or not there, versioned, and what is said of damaged ones."""

import json
import os
import re
import stat
from pathlib import Path

import pytest

from robustdup import RunError, UserError, records
from robustdup.records import (
    Accuracy,
    AttackResult,
    DataInfo,
    Environment,
    EvaluationRecord,
    ModelInfo,
    PassTotals,
    Threat,
    atomic_path,
    find_record,
    load_record,
    load_samples,
    save_record,
    save_samples,
    write_atomic,
)  # fmt: skip
from robustdup.records.folder import fresh_folder
from tests.raising import raises


def record(**changes):
    accuracy = Accuracy(value=0.5, low=0.4, high=0.6)
    attack = AttackResult(
        name="pgd", n_attacked=2, n_broken=1, seconds=0.1, forward_passes=10, backward_passes=9, violations=0,
        robust_accuracy_after=0.5,
    )  # fmt: skip
    data = DataInfo(
        spec="builtin:digits", split="test", n_total=500, selection="first", image_shape=[1, 8, 8], class_names=["0"],
        fingerprint="f",
    )  # fmt: skip
    model = ModelInfo(
        spec="builtin:digits-robust", architecture="SmallCNN", fingerprint="m", num_classes=10, parameters=9
    )
    environment = Environment(
        device="cpu", device_name="cpu", threads=1, python="3.12", platform="x", micro_batch=8, batch_size=8
    )
    fields = {
        "run_id": "r", "created": records.now(), "status": "complete", "command": "eval", "n": 2, "interval_about": "split",
        "threat": Threat(norm="Linf", eps=8 / 255, eps_text="8/255"), "tolerance": 1e-6, "clean_accuracy": accuracy,
        "robust_accuracy": accuracy, "n_undecided": 0, "attacks": [attack], "passes": PassTotals(), "seconds": 1.0,
        "seed": 0, "config": {}, "data": data, "model": model, "environment": environment, "versions": {},
    }  # fmt: skip
    return EvaluationRecord(**{**fields, **changes})


def test_a_record_comes_back_as_it_was(tmp_path):
    written = record()
    path = save_record(written, tmp_path / "run")
    assert load_record(tmp_path / "run") == written
    assert load_record(path) == written
    content = json.loads(path.read_text())
    assert content["threat"] == {"norm": "Linf", "eps": 8 / 255, "eps_text": "8/255"}
    assert (content["schema_name"], content["schema_version"]) == ("robustdup.evaluation", records.VERSION)


def test_a_crash_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def crash():
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crash()
    assert path.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # no temporary file stays


def test_a_full_disk_is_a_message_and_loses_nothing(tmp_path, monkeypatch):
    path = save_record(record(), tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with raises("cannot-write", RunError, "No space left on device", "already saved"):
        save_record(record(n=3), tmp_path)
    assert load_record(path).n == 2


def test_a_place_that_cannot_be_written_is_a_message(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with raises("cannot-write", RunError):
        save_record(record(), tmp_path / "file" / "run")

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", forbidden)
    with raises("cannot-write", RunError, "Permission denied"):
        save_record(record(), tmp_path)


def test_written_files_can_be_read_by_others(tmp_path):
    path = save_record(record(), tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def damaged(tmp_path, change):
    path = save_record(record(), tmp_path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_a_newer_version_is_refused(tmp_path):
    path = damaged(tmp_path, lambda content: content.update(schema_version=records.VERSION + 1))
    with raises("newer-record", UserError, str(records.VERSION + 1)):
        load_record(path)


def test_a_damaged_field_is_named(tmp_path):
    path = damaged(tmp_path, lambda content: content["clean_accuracy"].update(value="high"))
    with raises("damaged-record", UserError, "'clean_accuracy.value'"):
        load_record(path)
    path = damaged(tmp_path, lambda content: content.update(surprise=1))
    with raises("damaged-record", UserError, "'surprise'"):
        load_record(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "not a whole JSON file.*Was the copy cut off"),
        ("[1]", r"not an evaluation record \(found 'list'"),
        ('{"schema_name": "other"}', "found 'other'"),
        ('{"schema_name": "robustdup.evaluation"}', "schema version None"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    path = save_record(record(), tmp_path)
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2] if text is None else text)
    with pytest.raises(UserError, match=message):
        load_record(path)


def test_a_missing_record_is_named(tmp_path):
    with raises("no-record", UserError, str(tmp_path)):
        find_record(tmp_path)


def test_samples_come_back_and_a_truncated_file_is_refused(tmp_path):
    rows = {name: [0] for name in records.SAMPLES_SCHEMA.names}
    for name in ("image_sha256", "eps", "attack", "outcome", "violation"):
        rows[name] = ["x"]
    path = save_samples(rows, tmp_path)
    assert load_samples(tmp_path).to_pydict() == {name: list(map(type_of(name), v)) for name, v in rows.items()}
    path.write_bytes(path.read_bytes()[:-20])
    with raises("damaged-record", UserError, "samples.parquet"):
        load_samples(tmp_path)
    path.unlink()
    with raises("missing-file", UserError, "samples.parquet"):
        load_samples(tmp_path)


def type_of(name):
    kind = str(records.SAMPLES_SCHEMA.field(name).type)
    return {"int64": int, "double": float, "string": str}[kind]


def parts_of(kind, known=()):
    """The models that a record is made of, itself included."""
    kinds = {kind, *known}
    for field in kind.model_fields.values():
        for inner in re.findall(r"records\.\w+\.(\w+)", str(field.annotation)):
            part = getattr(records, inner)
            if part not in kinds:
                kinds |= parts_of(part, kinds)
    return kinds


def test_every_field_of_the_record_is_described():
    parts = parts_of(EvaluationRecord)
    assert {Accuracy, AttackResult, records.Escalation, records.MinDistance, records.CurvePoint, Threat} < parts
    for part in {*parts, records.Progress}:
        for name, field in part.model_fields.items():
            assert field.description, f"{part.__name__}.{name} has no description"
    schema = EvaluationRecord.model_json_schema()
    assert all("description" in field for field in schema["properties"].values())


def test_names_of_the_second_version_are_read_as_those_of_today():
    old = json.loads((Path(__file__).parent / "fixtures" / "record-2.json").read_text())
    record = load_record(Path(__file__).parent / "fixtures" / "record-2.json")
    assert (old["schema_version"], record.schema_version) == (2, records.VERSION)
    assert record.escalation.signs == old["escalation"]["seen"]
    assert record.min_distance.n_found == old["min_distance"]["found"]
    for attacks, before in (
        (record.attacks, old["attacks"]),
        *zip(record.curve_attacks.values(), old["curve_attacks"].values(), strict=True),
    ):
        assert [attack.broken_after for attack in attacks] == [[*map(tuple, a["fooled_after"])] for a in before]
    assert any(attack.broken_after for attack in record.attacks)


def test_outcomes_of_older_tables_are_read_in_the_words_of_today(tmp_path):
    rows = {name: [0, 0, 0] for name in records.SAMPLES_SCHEMA.names}
    for name in ("image_sha256", "eps", "attack", "violation"):
        rows[name] = ["x"] * 3
    rows["outcome"] = ["survived", "broken", None]
    save_samples(rows, tmp_path)
    assert load_samples(tmp_path)["outcome"].to_pylist() == ["robust", "broken", None]
    assert [outcome.word for outcome in records.Outcome] == [
        "robust", "broken", "undecided", "not-attacked", "certified",
    ]  # fmt: skip


def test_the_released_schema_is_still_read():
    from robustdup.records import load_record

    record = load_record(Path(__file__).parent / "fixtures" / "record-1.json")
    assert record.schema_version == records.VERSION
    assert (record.n, record.threat.eps_text, list(record.curve)) == (12, "0.15", ["0.1", "0.15"])
    assert record.robust_accuracy.value == record.curve["0.15"].value


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("builtin:digits-robust", "builtin:digits"), "builtin-digits-robust-builtin-digits"),
        (("/home/me/nets/net.py:make@/scratch/w.pth", "/data/sets/cifar10-test/"), "net-py-make-cifar10-test"),
        (("robustbench:Wong2020Fast", "uoft-cs/cifar10"), "robustbench-Wong2020Fast-cifar10"),
        (("run:runs/mine", "torchvision:CIFAR10@/data"), "run-mine-torchvision-CIFAR10"),
        (("train", "C:\\images\\birds\\"), "train-birds"),
        (("train", "."), "train-here"),
    ],
)
def test_a_run_folder_is_named_by_the_last_parts_of_paths(names, words, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = fresh_folder(*names)
    assert folder.parent == Path("runs")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d{6}-(.*)-[0-9a-f]{4}", folder.name)[1] == words


def test_no_device_or_pipe_is_replaced_by_a_file_and_no_link(tmp_path):
    """As root, who may: /dev/stdout would be a file from then on."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    for name in ("pipe", "null"):
        with raises("cannot-write", RunError, "a device or a pipe"):
            write_atomic(tmp_path / name, b"x")
    assert (tmp_path / "pipe").is_fifo()
    assert Path("/dev/null").is_char_device()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    write_atomic(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"x"
