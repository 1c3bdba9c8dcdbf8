"""Classes compared by name: orders that are certain, doubts, and refusals."""

from __future__ import annotations

import pytest

from robustdup.models.class_names import match_classes, names_in
from tests.raising import raises

CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def order(model_names, data_names, labels=()):
    return match_classes(model_names, data_names, outputs=len(model_names), labels=labels)


def test_the_same_order_or_no_names_leave_outputs_alone():
    for data_names in (CIFAR, [], [name.upper() for name in CIFAR], [str(n) for n in range(10)]):
        match = order(CIFAR, data_names)
        assert (match.order, match.doubtful) == (None, False)
    assert order([f"LABEL_{n}" for n in range(10)], CIFAR).order is None
    assert match_classes(CIFAR[:3], CIFAR, outputs=10).order is None  # names that do not fit the model say nothing


@pytest.mark.parametrize(
    ("model_names", "data_names", "expected"),
    [
        (["cat", "dog", "bird"], ["bird", "cat", "dog"], (2, 0, 1)),
        (["Cats", "DOG", "T-shirt/top"], ["t shirt top", "cat", "dogs"], (2, 0, 1)),
        (["tench, Tinca tinca", "goldfish, Carassius auratus"], ["goldfish", "tench"], (1, 0)),
        (["Chihuahua", "Maltese_dog"], ["n02085936-Maltese_dog", "n02085620-Chihuahua"], (1, 0)),
        (["zero", "one", "two"], ["2 - two", "0 - zero", "1 - one"], (2, 0, 1)),
        ([str(n) for n in range(12)], sorted(str(n) for n in range(12)), (0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9)),
        (["a", "b", "c", "d"], ["d", "b"], (3, 1, 0, 2)),  # a part of the model's classes: the others come after
        (["Ärger", "Zorn"], ["zorn", "arger"], (1, 0)),
        (["n02085936 Maltese", "n02085620 Chihuahua"], ["n02085620", "n02085936"], (1, 0)),
        (["class_cat", "class_dog", "class_bird"], ["bird", "cat", "dog"], (2, 0, 1)),
        (["a photo of a car", "a photo of a ship"], ["ship", "automobile"], (1, 0)),
        (["animal/cat", "vehicle/car"], ["car", "cat"], (1, 0)),
        (["cat (class 0)", "the dog"], ["Dog", "CAT"], (1, 0)),
        (["greatWhiteShark", "ankleBoot"], ["ankle_boot", "great white shark"], (1, 0)),
    ],
)
def test_orders_that_are_certain(model_names, data_names, expected):
    match = order(model_names, data_names)
    assert match.order == expected
    assert not match.doubtful
    assert "mapped by name" in match.note


def test_synonyms_of_cifar10_in_the_order_of_their_folders():
    folders = sorted(["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"])
    match = order(CIFAR, folders)
    assert [CIFAR[output] for output in match.order] == [
        {"plane": "airplane", "car": "automobile"}.get(name, name) for name in folders
    ]
    assert "synonyms" in match.note


def test_other_classes_are_refused_and_nothing_in_common_is_a_doubt():
    stl10 = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    with raises("other-classes", ValueError, "'monkey'", "--class-names ignore"):
        order(CIFAR, stl10)
    with raises("other-classes", ValueError, "'monkey'"):
        order(CIFAR, stl10, labels=[0, 7])
    match = order(CIFAR, stl10, labels=[0, 1, 2])  # no sample is of the class that the model does not know
    assert [CIFAR[output] for output in match.order[:3]] == ["airplane", "bird", "automobile"]
    assert sorted(match.order) == list(range(10))
    match = order(CIFAR, [f"flower {letter}" for letter in "abcdefghij"])
    assert match.doubtful
    assert match.order is None
    assert "share no name" in match.note


def test_a_few_other_names_at_the_same_numbers_are_taken_by_number_with_a_word():
    match = order(["cat", "dog", "horse"], ["cat", "dog", "Pferd"])
    assert (match.order, match.doubtful) == (None, True)
    assert "'Pferd' for 'horse'" in match.note


@pytest.mark.parametrize(
    "content",
    [
        {"classes": ["b", "a"]}, {"class_to_idx": {"a": 1, "b": 0}}, {"id2label": {"0": "b", "1": "a"}},
        {"id2label": {"1": "b", "2": "a"}}, {"class_to_idx": {"a": 2, "b": 1}}, {"CLASSES": ("b", "a")},
        {"idx_to_class": {1: "a", 0: "b"}}, {"label2id": {"b": "0", "a": "1"}}, {"class_names": ("b", "a")},
    ],
)  # fmt: skip
def test_names_that_a_checkpoint_keeps(content):
    assert names_in(content) == ["b", "a"]


def test_what_is_no_list_of_names():
    assert names_in({"classes": 10, "class_to_idx": {"a": 0, "b": 2}, "id2label": None}) == []
