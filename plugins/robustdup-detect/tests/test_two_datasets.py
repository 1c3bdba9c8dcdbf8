"""Pairs between two datasets, such as generated images and what their generator was trained on."""

from __future__ import annotations

import datasets
import pytest
from detect_pictures import NAMES, detect, encoded, pictures, write
from robustdup_detect.record import load_pairs

from robustdup.cli.main import main
from robustdup.errors import UserError
from tests.raising import raises

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


@pytest.fixture
def made(tmp_path):
    """Twelve generated images, of which 2 and 5 are the training images 7, moved, and 9; other columns, splits and numbers."""
    images = pictures(20)
    generated = pictures(12, seed=5)
    generated[2], generated[5] = images[7].roll((1, 2), (1, 2)), images[9]
    trained = write(
        tmp_path / "trained", images=[encoded(image) for image in images], labels=[i % 3 for i in range(20)]
    )
    write(tmp_path / "trained", split="test", images=[encoded(image) for image in pictures(3, seed=6)])
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES[::-1])})
    rows = {"image": [encoded(image) for image in generated], "label": [1] * 12}
    (tmp_path / "generated").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "generated" / "train.parquet")
    return str(tmp_path / "generated"), trained


def test_a_dataset_against_another(made, tmp_path):
    generated, trained = made
    record = detect(generated, tmp_path / "run", against_data=trained, to=str(tmp_path / "less"))
    pairs = load_pairs(tmp_path / "run").to_pylist()
    other = f"{trained} (train)"
    assert {(pair["row_a"], pair["row_b"], pair["kind"]) for pair in pairs} == {(2, 7, "near"), (5, 9, "exact")}
    assert {(pair["split_a"], pair["split_b"]) for pair in pairs} == {("train", other)}
    assert (record.n, record.n_against, record.against, record.n_redundant) == (12, 20, other, 2)
    labels = {
        pair["row_a"]: (record.class_names[pair["label_a"]], record.class_names[pair["label_b"]]) for pair in pairs
    }
    assert labels == {2: (NAMES[1], NAMES[1]), 5: (NAMES[1], NAMES[0])}
    assert [pair.conflict for pair in sorted(record.pairs, key=lambda pair: pair.a.row)] == [False, True]
    less = datasets.load_dataset(str(tmp_path / "less"), cache_dir=str(tmp_path / "cache"))
    assert list(less) == ["train"]
    assert less["train"]["source_index"] == [0, 1, 3, 4, 6, 7, 8, 9, 10, 11]


def test_the_command_names_the_other_dataset_and_its_split(made, tmp_path, capsys):
    generated, trained = made
    words = ["data", "detect", trained, "--split", "test", "--against-data", generated, "--against", "train"]
    assert main([*words, "--workers", "1", "--out", str(tmp_path / "run")]) == 0
    assert "3 x 12 images" in capsys.readouterr().out
    with raises("unknown-split", UserError, "generated"):
        detect(trained, tmp_path / "none", against_data=generated, against="validation")


def test_new_images_are_looked_for_among_old_and_new(made, tmp_path):
    """Of twelve new ones, 2 and 5 are old; 7 is made the same as 6, moved. The old ones hold a pair of their own."""
    _, trained = made
    images = pictures(20)
    rows = [*images, images[3]]
    write(tmp_path / "trained", images=[encoded(image) for image in rows], labels=[i % 3 for i in range(21)])
    new = pictures(12, seed=5)
    new[2], new[5], new[7] = images[7].roll((1, 2), (1, 2)), images[9], new[6].roll((2, -1), (1, 2))
    fresh = write(tmp_path / "fresh", images=[encoded(image) for image in [*new, new[0]]])
    index = str(tmp_path / "index")
    record = detect(trained, tmp_path / "run", add=fresh, to=str(tmp_path / "less"), index=index)
    old = f"{trained} (train)"
    pairs = load_pairs(tmp_path / "run").to_pylist()
    assert {(pair["split_a"], pair["row_a"], pair["split_b"], pair["row_b"], pair["kind"]) for pair in pairs} == {
        ("train", 2, old, 7, "near"), ("train", 5, old, 9, "exact"), ("train", 6, "train", 7, "near"),
        ("train", 0, "train", 12, "exact"),
    }  # fmt: skip
    assert (record.data, record.n, record.n_against, record.n_redundant, record.n_clusters) == (fresh, 13, 21, 4, 4)
    less = datasets.load_dataset(str(tmp_path / "less"), cache_dir=str(tmp_path / "cache"))
    assert less["train"]["source_index"] == [0, 1, 3, 4, 6, 8, 9, 10, 11]
    again = detect(trained, tmp_path / "again", add=fresh, index=index)
    assert load_pairs(tmp_path / "again").equals(load_pairs(tmp_path / "run"))
    assert any("34 of 34 images were in it" in note for note in again.notes)
    decided = tmp_path / "pairs.csv"
    decided.write_text("a,b,duplicate\n2,7,false\n1,0,true\n")
    told = detect(trained, tmp_path / "told", add=fresh, decisions=str(decided))
    assert told.n_redundant == 4
    pairs = load_pairs(tmp_path / "told").to_pylist()
    assert {(pair["row_a"], pair["row_b"]) for pair in pairs if pair["split_b"] == old} == {(5, 9), (1, 0)}


def test_a_run_that_adds_goes_on_where_it_was(made, tmp_path, monkeypatch):
    import robustdup_detect.run

    generated, trained = made
    detect(trained, tmp_path / "whole", add=generated)
    with monkeypatch.context() as patched:
        patched.setattr(robustdup_detect.run, "choose", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            detect(trained, tmp_path / "run", add=generated)
    resumed = detect(trained, tmp_path / "run", add=generated, resume=True)
    assert load_pairs(tmp_path / "run").equals(load_pairs(tmp_path / "whole"))
    assert resumed.data == generated
    with raises("bad-value", UserError, "give one of them"):
        detect(trained, tmp_path / "none", add=generated, against="test")
