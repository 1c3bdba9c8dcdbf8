"""What RobustBench asks for is written whole, and only from records that may claim it."""

import json
from pathlib import Path

import pytest
from robustdup_publish.claim import Paper, submit
from robustdup_publish.refresh import parse_entry

from robustdup.errors import UserError
from tests.raising import raises

PAPER = Paper(
    title="Overfitting in deep learning", url="https://arxiv.org/abs/2002.11569", authors="Leslie Rice, Eric Wong",
    venue="ICML 2020", architecture="WideResNet-34-20", extra_data=False, reported="58", checkpoint="https://x.org/c",
)  # fmt: skip


@pytest.fixture
def full(make_record, make_table, points):
    clean, broken = points(10_000, 8534, 5342)
    return make_record(clean, broken), make_table(clean, broken)


def test_the_model_info_file_holds_the_claim(full, tmp_path):
    result = submit(*full, tmp_path, PAPER)
    assert result.missing == []
    path = tmp_path / "model_info" / "cifar10" / "Linf" / "Rice2020Overfitting.json"
    assert result.files == [str(path), str(tmp_path / "claim.md")]
    assert json.loads(path.read_text()) == {
        "link": "https://arxiv.org/abs/2002.11569", "name": "Overfitting in deep learning",
        "authors": "Leslie Rice, Eric Wong", "additional_data": False, "number_forward_passes": 1,
        "dataset": "cifar10", "venue": "ICML 2020", "architecture": "WideResNet-34-20", "eps": "8/255",
        "clean_acc": "85.34", "reported": "58", "autoattack_acc": "53.42", "unreliable": False,
    }  # fmt: skip
    entry = parse_entry(json.loads(path.read_text()), "cifar10", "Linf", "Rice2020Overfitting")
    assert (entry.clean_acc, entry.robust_acc, entry.reported_acc) == (85.34, 53.42, 58.0)
    claim = (tmp_path / "claim.md").read_text()
    for part in ("[New Model] Rice2020Overfitting", "**Robust accuracy**: 53.42%", "**eps**: 8/255", "10000 samples",
                 "robustbench:Square 53.42%", "checked on 500 of 10000", "f" * 64):  # fmt: skip
        assert part in claim
    assert "FILL IN" not in claim
    assert "TODO" not in claim


def test_missing_fields_are_marked_and_listed(full, tmp_path):
    result = submit(*full, tmp_path)
    info = json.loads(Path(result.files[0]).read_text())
    marked = {key for key, value in info.items() if str(value).startswith("FILL IN")}
    assert marked == {"link", "name", "authors", "additional_data", "venue"}
    assert {"--paper-url", "--paper-title", "--authors", "--extra-data", "--venue", "--name"} <= set(result.missing)
    assert "FILL IN" in Path(result.files[1]).read_text()


@pytest.mark.parametrize(
    ("changes", "code", "name"),
    [
        ({"asked": "pgd", "attacks": ["pgd"]}, "not-comparable", "AutoAttack"),
        ({"status": "failed"}, "not-comparable", "failed"),
        ({"undecided": [0]}, "not-comparable", "1 of 200"),
        ({"data": "builtin:digits"}, "not-comparable", "builtin:digits"),
        ({}, "too-few-samples", "10000"),
    ],
)
def test_unfit_records_are_refused_and_nothing_is_written(
    make_record, make_table, points, tmp_path, changes, code, name
):
    clean, broken = points(200, 180, 100)
    shared = {key: changes[key] for key in ("attacks", "undecided") if key in changes}
    hashes = ["e" * 64] * 200 if "data" in changes else None
    made = make_table(clean, broken, hashes=hashes, **shared)
    with raises(code, UserError, name):
        submit(make_record(clean, broken, **changes), made, tmp_path / "out", PAPER)
    assert not (tmp_path / "out").exists()


def test_a_draft_says_that_it_is_one(make_record, make_table, points, tmp_path):
    clean, broken = points(200, 180, 100)
    result = submit(make_record(clean, broken), make_table(clean, broken), tmp_path, PAPER, draft=True)
    assert result.draft
    assert "Draft: 200 of 10000 samples" in (tmp_path / "claim.md").read_text()


@pytest.mark.parametrize("name", ["../../x", "a b", ".hidden", ""])
def test_a_name_cannot_leave_the_folder(full, tmp_path, name):
    paper = PAPER.model_copy(update={"name": name})
    if name:
        with raises("bad-option", UserError, "--name"):
            submit(*full, tmp_path, paper)
    else:
        assert "Rice2020Overfitting" in submit(*full, tmp_path, paper).files[0]
