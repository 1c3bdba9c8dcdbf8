"""What a user may get wrong about duplication, and what is said."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from robustdup.config import validate
from robustdup.config.duplication import DuplicateConfig, DuplicationOptions
from robustdup.duplication.make import make_plan
from robustdup.errors import UserError
from robustdup.jobs.duplication import duplicate

LABELS = torch.tensor([0] * 50 + [1] * 40 + [2] * 2)
NAMES = ["cat", "dog", "frog"]

OPTIONS = [
    ({"scheme": "unifrom"}, "Unknown value of scheme: 'unifrom'. Did you mean 'uniform'?"),
    ({"scheme": "uniform", "dosis": 0.1}, "Unknown configuration key 'dosis'. Did you mean 'dose'?"),
    ({"scheme": "uniform"}, "scheme = uniform needs dose or fraction."),
    ({"scheme": "power_law"}, "scheme = power_law needs dose."),
    ({"scheme": "single"}, "scheme = single needs copies or dose."),
    (
        {"scheme": "uniform", "fraction": 1.5},
        "fraction is the share of the samples that are chosen, from 0 to 1; got 1.5. A percentage? Write 0.015.",
    ),
    ({"scheme": "uniform", "fraction": -0.1}, "the samples that are chosen, from 0 to 1; got -0.1."),
    (
        {"scheme": "uniform", "dose": 1.0},
        "dose is the share of training entries that are copies, from 0 to below 1; got 1.",
    ),
    ({"scheme": "uniform", "dose": float("nan")}, "'dose': input should be a finite number, got nan."),
    ({"scheme": "uniform", "fraction": 0.1, "copies": 0}, "copies must be at least 1 for each chosen sample, got 0."),
    ({"scheme": "uniform", "fraction": 0.1, "dose": 0.1}, "Give dose or fraction, not both"),
    ({"scheme": "whole_set", "copies": 2, "dose": 0.1}, "Give dose or copies for scheme = whole_set, not both"),
    ({"scheme": "whole_set", "paper_p": 101}, "paper_p is a percentage from 0 to 100"),
    ({"scheme": "uniform", "paper_r": 0.1, "copies": 2}, "paper_r already says how many copies there are"),
    (
        {"scheme": "uniform", "dose": 0.1, "exponent": 2},
        "scheme = uniform does not use exponent; it takes dose, fraction",
    ),
    ({"scheme": "class_skewed", "dose": 0.1, "skew": 2}, "skew goes from 0 (all classes alike) to 1"),
    ({"scheme": "single", "copies": 2, "row": -1}, "row must be 0 or above, got -1."),
    (
        {"scheme": "power_law", "dose": 0.1, "exponent": 8.1},
        "exponent goes from 0 to 8, got 8.1.",
    ),
    ({"scheme": "leak", "dose": 0.1, "control": "fewer_unique"}, "control = fewer_unique has nothing to compare with"),
]


@pytest.mark.parametrize(("keys", "message"), OPTIONS)
def test_options(keys, message):
    with pytest.raises(UserError) as caught:
        validate(DuplicationOptions, keys)
    assert message in str(caught.value)


PLANS = [
    (
        {"scheme": "class_skewed", "fraction": 0.1, "classes": "fog"},
        "Unknown class 'fog'. Did you mean 'frog'? Allowed: cat, dog, frog.",
    ),
    (
        {"scheme": "class_skewed", "fraction": 0.5, "classes": "frog"},
        "fraction = 0.5 with copies = 1 asks for 46 samples of class 'frog', which has 2. Give more copies",
    ),
    (
        {"scheme": "uniform", "dose": 0.6},
        "dose = 0.6 with copies = 1 asks for 138 samples, but there are 92 to choose from. Give more copies",
    ),
    (
        {"scheme": "single", "copies": 91, "row": 0, "mode": "replace"},
        "mode = replace would leave no sample of class 'dog'. Give a lower dose or mode = append.",
    ),
    (
        {"scheme": "whole_set", "copies": 1, "mode": "replace"},
        "mode = replace has no room: 92 copies would take the places of 92 samples without copies, but there are 0.",
    ),
    (
        {"scheme": "whole_set", "dose": 0.6},
        "is not a whole number of copies of the whole set. Give copies = 1 (dose 0.5)",
    ),
    ({"scheme": "single", "copies": 3, "row": 92}, "row = 92 is beyond the last row, 91."),
    ({"scheme": "hardest", "dose": 0.1}, "scheme = hardest needs a score for each sample, the lower the harder"),
    ({"scheme": "leak", "dose": 0.1}, "scheme = leak needs the rows of another split (leak_from); there are none."),
    ({"scheme": "uniform", "dose": 0.1, "near": "rotate"}, "Unknown near transform 'rotate'."),
]


@pytest.mark.parametrize(("keys", "message"), PLANS)
def test_plans(keys, message):
    with pytest.raises(UserError) as caught:
        make_plan(LABELS, DuplicationOptions(**keys), seed=0, class_names=NAMES)
    assert message in str(caught.value)


def test_a_replaced_class_is_named_by_its_number_where_it_has_no_name():
    with pytest.raises(UserError, match="no sample of class '1'"):
        make_plan(LABELS, DuplicationOptions(scheme="single", copies=91, row=0, mode="replace"), seed=0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(0, dtype=torch.int64), "There are no rows to duplicate: the split is empty."),
        (torch.tensor([0, -1]), "labels must be 0 or above, got -1."),
        (torch.tensor([0, 3]), "labels must be below the number of classes, 3; got 3."),
        (torch.tensor([0.0, 1.0]), "labels must be integers, got float32."),
    ],
)
def test_labels(labels, message):
    with pytest.raises(UserError) as caught:
        make_plan(labels, DuplicationOptions(scheme="uniform", dose=0.1), seed=0, class_names=NAMES)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.zeros(5), "scores must have the shape (92,), got (5,)."),
        (torch.full((92,), float("nan")), "92 scores are NaN or infinite, the first in row 0."),
    ],
)
def test_scores(scores, message):
    with pytest.raises(UserError) as caught:
        make_plan(LABELS, DuplicationOptions(scheme="easiest", dose=0.1), seed=0, scores=scores)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"scheme": "uniform", "dose": 0.1, "near": "flip"}, "Near copies cannot be expressed as loss weights"),
        ({"scheme": "conflicting", "dose": 0.1}, "Scheme = conflicting cannot be expressed as loss weights"),
        ({"scheme": "leak", "dose": 0.1}, "Scheme = leak cannot be expressed as loss weights"),
    ],
)
def test_plans_that_no_weights_stand_for(keys, message):
    plan = make_plan(LABELS, DuplicationOptions(**keys), seed=0, n_other=50)
    with pytest.raises(UserError, match=message):
        plan.weights()


def test_conflicting_needs_two_classes():
    with pytest.raises(UserError, match="needs at least two classes"):
        make_plan(torch.zeros(9, dtype=torch.int64), DuplicationOptions(scheme="conflicting", dose=0.1), seed=0)


def parquet(folder, columns, names):
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table([pa.array(column) for column in columns], names=names), folder / "train.parquet")
    return str(folder)


IMAGES = [{"bytes": b"1", "path": None}] * 3


@pytest.mark.parametrize(
    ("columns", "names", "message"),
    [
        (
            [IMAGES], ["img"],
            "The images of DATA (train) have no labels: put pictures into folders of classes, or a list of file_name and label "
            "(CSV, JSON, text) beside them. Names of files say the class only where all are a class and a number (cat.1.png).",
        ),
        (
            [IMAGES, [0, 1, 2], [0, 1, 2]], ["img", "label", "label"],
            "'DATA' has several columns of the name 'label': rename or drop one of them.",
        ),
        ([IMAGES, [0, None, 2]], ["img", "label"], "Row 1 of DATA (train) has no label in column 'label'."),
        (
            [IMAGES, [0.5, 1.0, 2.0]], ["img", "label"],
            "The labels of DATA (train) are fractions, not classes.",
        ),
        (
            [[0, 1, 2]], ["label"],
            "No column of DATA (train) holds images; it has label (int64). Name it with image_column if one of them does.",
        ),
        (
            [IMAGES, [0, 1, 2], [0, 1, 2]], ["img", "label", "copy"],
            "There is a column 'copy' already, which duplication adds. Is this a duplicated dataset? Else rename it: "
            "dataset.rename_column('copy', 'my_copy').",
        ),
    ],
)  # fmt: skip
def test_columns(tmp_path, columns, names, message):
    data = parquet(tmp_path / "data", columns, names)
    with pytest.raises(UserError) as caught:
        duplicate(
            validate(DuplicateConfig, {"data": data, "scheme": "conflicting", "fraction": 0.5}), str(tmp_path / "out")
        )
    assert str(caught.value).replace(data, "DATA") == message
    assert not (tmp_path / "out").exists()


def test_an_empty_split_is_named(tmp_path):
    data = parquet(tmp_path / "data", [IMAGES, [0, 1, 2]], ["img", "label"])
    table = pq.read_table(tmp_path / "data" / "train.parquet").slice(0, 0)
    pq.write_table(table, tmp_path / "data" / "test.parquet")
    with pytest.raises(UserError) as caught:
        duplicate(validate(DuplicateConfig, {"data": data, "scheme": "whole_set", "copies": 1}), str(tmp_path / "out"))
    assert str(caught.value) == f"'{data}/test.parquet' has no rows: give it some, or take it away."


def test_fewer_unique_speaks_of_itself_and_not_of_a_mode_that_nobody_chose():
    options = validate(DuplicationOptions, {"scheme": "whole_set", "copies": 1, "control": "fewer_unique"})
    with pytest.raises(UserError, match="control = fewer_unique has no room: 10 copies") as caught:
        make_plan(torch.arange(10) % 2, options, seed=0)
    assert "mode =" not in str(caught.value)


def test_matched_names_the_class_that_has_too_few_samples():
    keys = {"scheme": "class_skewed", "classes": ["1"], "dose": 0.5, "copies": 2, "control": "matched"}
    with pytest.raises(UserError, match="class '1' has only 50 of the 75 that are its share. Give mode = replace"):
        make_plan(torch.arange(100) % 2, validate(DuplicationOptions, keys), seed=0)
