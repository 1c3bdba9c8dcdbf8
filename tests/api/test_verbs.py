"""The verbs of a user, on built-in data: what they take, what they return, and what they say to a mistake."""

import itertools
import subprocess
import sys
import warnings

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import robustdup
from robustdup import UserError
from robustdup.report.training import data_text
from tests.raising import raises

N = 12
QUICK = {"eps": "0.15", "attacks": "fgsm", "diagnostics": False, "progress": False}


@pytest.fixture(scope="module")
def model():
    return robustdup.load_model("builtin:digits-robust")


@pytest.fixture(scope="module")
def data():
    return robustdup.load_data("builtin:digits", n=N)


@pytest.fixture(scope="module")
def result(model, data):
    return robustdup.evaluate(model, data, **QUICK)


def as_table(data):
    pixels = (data.images[:, 0] * 255).round().to(torch.uint8).numpy()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=data.class_names)})
    content = {"image": [Image.fromarray(image) for image in pixels], "label": data.labels.tolist()}
    return datasets.Dataset.from_dict(content, features=features)


def test_data_in_every_form_gives_the_same_outcomes(model, data, result):
    pairs = TensorDataset(data.images, data.labels)
    for form in (
        (data.images, data.labels),
        ((data.images, data.labels),),
        (data.images.numpy(), data.labels.numpy()),
        (DataLoader(pairs, batch_size=5),),
        (pairs,),
        ([(data.images[:4], data.labels[:4]), (data.images[4:], data.labels[4:])],),
    ):
        again = robustdup.evaluate(model, *form, **QUICK)
        assert again.outcomes == result.outcomes
        assert torch.equal(again.adv_images, result.adv_images)


def test_a_hub_dataset_is_read_with_its_class_names(model, data, result):
    table = as_table(data)
    for form in (table, table.to_iterable_dataset()):
        again = robustdup.evaluate(model, form, n=N, **QUICK)
        assert again.record.data.class_names == data.class_names
        # PNGs have 256 levels, the digits 17: close images, the same verdict
        assert again.outcomes == result.outcomes


def test_the_result_holds_what_happened(model, data, result):
    assert len(result.outcomes) == len(result.adv_images) == N
    wrong = model(result.adv_images).argmax(dim=1) != data.labels
    assert torch.equal(result.is_adv, wrong.cpu())
    assert result.robust_accuracy.value == pytest.approx(1 - float(wrong.double().mean()))
    assert 0 < result.outcomes.count("broken") < N
    assert float((result.adv_images - data.images).abs().max()) <= 0.15 + 1e-6
    assert "12 samples" in str(result)
    assert "Robust" in result._repr_html_()
    assert "| fgsm" in result._repr_markdown_()


PASSED_ON = (
    "n", "threat", "seed", "attacks", "diagnostics", "events", "per_class", "curve", "n_undecided", "seconds", "clean_accuracy",
    "robust_accuracy", "reliable",
)  # fmt: skip


def test_what_people_reach_for_stands_at_the_result(result):
    assert all(getattr(result, name) == getattr(result.record, name) for name in PASSED_ON)
    (fgsm,) = result.attacks
    assert (result.n, fgsm.name, fgsm.n_broken) == (N, "fgsm", result.outcomes.count("broken"))


def test_a_result_is_short_in_a_shell(result):
    assert repr(result) == f"<EvaluationResult: {result}>"
    assert len(repr(result)) < 200


def test_a_result_is_saved_ranked_compared(model, data, result, tmp_path):
    folder = result.save(tmp_path / "mine")
    assert (folder / "record.json").is_file()
    with raises("not-empty"):
        result.save(folder)
    assert robustdup.rank(folder) == result.rank() == robustdup.rank(result)
    assert not result.rank().comparable
    difference = robustdup.compare(folder, result)
    assert difference.robust.difference == 0
    value = f"{result.robust_accuracy.value:.2%}"
    assert f"robust {value} and {value}, +0.00 points" in str(difference)
    assert str(result.rank()) == result.rank().sentence()


def test_what_train_and_verify_return_prints_as_a_sentence(model, data, tmp_path):
    made = robustdup.train(model="small-cnn(width=4)", n=50, steps=2, evaluate=None, validation=10, out=tmp_path / "t")
    text = str(made)
    assert text.startswith(
        "small-cnn(width=4) on builtin:digits (train), pgd_at, Linf, eps = 0.15, 2 steps; best (step "
    )
    assert f"robust {made.checkpoints[-1].validation_robust:.2%} (validation)" in text
    assert "40 entries; 10 images validate" in data_text(made)
    np.savez(tmp_path / "adv.npz", adv_images=data.images.numpy(), labels=data.labels.numpy())
    judged = robustdup.verify(
        tmp_path / "adv.npz", model="builtin:digits-robust", data="builtin:digits", n=N, eps="0.15"
    )
    assert str(judged) == f"Accepted. {judged.headline()}"
    refused = judged.model_copy(update={"accepted": False, "problems": ["one", "two"]})
    assert str(refused) == "Refused: one; two"


def test_an_attack_returns_verified_images(model, data):
    adv_images = robustdup.attack(model, data.images, data.labels, "pgd", eps="0.15", steps=10)
    assert adv_images.shape == data.images.shape
    assert float(adv_images.min()) >= 0
    assert float(adv_images.max()) <= 1
    assert float((adv_images - data.images).abs().max()) <= 0.15 + 1e-6
    assert (model(adv_images).argmax(dim=1) != data.labels).any()
    with raises("unknown-option", UserError, "steps"):
        robustdup.attack(model, data.images, data.labels, "pgd", eps="0.15", step=10)


def test_the_old_decorator_still_works_with_a_warning():
    with pytest.warns(DeprecationWarning, match="register_attack"):

        @robustdup.attack("old", norms=["Linf"])
        def old(model, images, labels, threat, *, rng):
            """Do nothing."""
            return images

    assert old.__robustdup_attack__.name == "old"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        robustdup.register_attack("new", norms=["Linf"])(old)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda model, data: robustdup.evaluate(model, data, epsilon="0.1"), "unknown-option"),
        (lambda model, data: robustdup.evaluate(model, data, attaks="fgsm"), "unknown-configuration-key"),
        (lambda model, data: robustdup.evaluate(model, data.images), "bad-data"),
        (lambda model, data: robustdup.evaluate(model, data, n=N + 1), "bad-value"),
        (lambda model, data: robustdup.evaluate(model, data, n=2.5), "bad-value"),
        (lambda model, data: robustdup.evaluate(model, as_table(data), n="5"), "bad-value"),
        (lambda model, data: robustdup.evaluate(model, data, eps=[]), "bad-eps"),
        (lambda model, data: robustdup.find_duplicates([1, 2]), "bad-data"),
        (lambda model, data: robustdup.find_duplicates(datasets.DatasetDict(test=as_table(data))), "bad-data"),
        (lambda model, data: robustdup.find_duplicates(as_table(data).to_iterable_dataset()), "bad-data"),
        (lambda model, data: robustdup.find_duplicates(as_table(data).select([])), "no-data"),
        (lambda model, data: robustdup.evaluate(model, []), "no-data"),
        (lambda model, data: robustdup.evaluate(model, [data.images]), "bad-data"),
        (lambda model, data: robustdup.evaluate(model, itertools.repeat((data.images, data.labels))), "bad-value"),
        (lambda model, data: robustdup.evaluate(model, data, attacks=[len]), "bad-attack"),
        (lambda model, data: robustdup.duplicate(data.images, dose=0.5), "bad-data"),
        (lambda model, data: robustdup.verify("nowhere"), "missing-file"),
    ],
)  # fmt: skip
def test_mistakes_have_codes(model, data, call, code):
    with raises(code):
        call(model, data)


def test_several_eps_may_come_as_an_array(model, data):
    result = robustdup.evaluate(model, data, **{**QUICK, "eps": np.array([0.125, 0.25])})
    assert list(result.record.curve) == ["0.125", "0.25"]


def test_events_come_to_a_function(model, data):
    seen = []
    robustdup.evaluate(model, data, **{**QUICK, "progress": seen.append})
    assert seen[-1].attack == "fgsm"


def test_duplicates_in_every_kind_of_dataset(data):
    table = as_table(data)
    copies = robustdup.duplicate(table, dose=0.5, copies=3, seed=1)
    assert copies.features["label"] == table.features["label"]
    assert sum(copies["copy"][i] > 0 for i in range(len(copies))) == len(copies) - N
    assert len(copies) == 2 * N
    again = robustdup.duplicate(datasets.DatasetDict(train=table, test=table), dose=0.5, copies=3, seed=1)
    assert again["train"]["source_index"][:] == copies["source_index"][:]
    assert len(again["test"]) == N
    stream = robustdup.duplicate(table.to_iterable_dataset(), dose=0.5, copies=3, seed=1)
    assert sorted(row["source_index"] for row in stream) == sorted(copies["source_index"])
    words = datasets.Dataset.from_dict({"text": list("abcd")})
    assert len(robustdup.duplicate(words, scheme="whole_set", copies=1)) == 8
    skewed = robustdup.duplicate(table, scheme="class_skewed", classes=["1"], copies=4, dose=0.25)
    assert {skewed["label"][i] for i in range(len(skewed)) if skewed["copy"][i]} == {1}
    with raises("no-labels"):
        robustdup.duplicate(words, scheme="class_skewed", dose=0.2)


def test_copies_are_found_again():
    pytest.importorskip("robustdup_detect")
    random = np.random.default_rng(0)
    images = torch.tensor(random.random((20, 3, 4, 4)), dtype=torch.float32)
    images = torch.nn.functional.interpolate(images, (32, 32), mode="bicubic").clamp(0, 1)
    doubled = torch.cat([images, images[[3, 7]]])
    pairs = robustdup.find_duplicates(doubled)
    assert {(3, 20), (7, 21)} <= set(zip(pairs.a.tolist(), pairs.b.tolist(), strict=True))
    across = robustdup.find_duplicates(images[:10], against=images[5:])
    assert set(zip(across.a.tolist(), across.b.tolist(), strict=True)) >= {(i, i - 5) for i in range(5, 10)}


def picture_dataset(rows, label):
    random = torch.Generator().manual_seed(0)
    small = torch.rand(12, 3, 4, 4, generator=random)
    images = (torch.nn.functional.interpolate(small, (32, 32), mode="bicubic").clamp(0, 1) * 255).byte()
    pictures = [Image.fromarray(images[row].permute(1, 2, 0).numpy()) for row in rows]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    return datasets.Dataset.from_dict(
        {"image": pictures, "label": [f"{label}{i}" for i in range(len(rows))]}, features=features
    )


@pytest.mark.parametrize(("keep", "rows"), [("first", [0, 1, 2, 5]), ("last", [1, 4, 5, 6]), ("none", [1, 5])])
def test_duplicates_are_dropped(keep, rows):
    """Rows 0, 3 and 6 are one picture, 2 and 4 another."""
    pytest.importorskip("robustdup_detect")
    dataset = picture_dataset([0, 1, 2, 0, 2, 5, 0], "text ")
    left = robustdup.drop_duplicates(dataset, keep=keep)
    assert left["label"] == [f"text {row}" for row in rows]
    across = robustdup.drop_duplicates(dataset, against=picture_dataset([5, 7, 2], ""))
    assert across["label"] == ["text 0", "text 1", "text 3", "text 6"]
    none = dataset.select([])
    assert (len(robustdup.drop_duplicates(none)), len(robustdup.drop_duplicates(dataset, against=none))) == (0, 7)


def test_duplicates_of_several_sizes_and_modes_are_dropped():
    """Row 1 is row 0 at another size, row 3 is row 2 made wider; row 4 is another picture, in grey."""
    pytest.importorskip("robustdup_detect")
    pictures = [picture_dataset([row], "")[0]["image"] for row in (0, 0, 1, 1, 2)]
    pictures[1], pictures[3], pictures[4] = (
        pictures[1].resize((40, 40)),
        pictures[3].resize((48, 32)),
        pictures[4].convert("L"),
    )
    features = datasets.Features({"image": datasets.Image()})
    left = robustdup.drop_duplicates(datasets.Dataset.from_dict({"image": pictures}, features=features))
    assert [(picture.size, picture.mode) for picture in left["image"]] == [
        ((32, 32), mode) for mode in ("RGB", "RGB", "L")
    ]


def test_likeness_is_not_handed_on():
    """0 is like 1 and 1 is like 2, but 0 is not like 2: 2 stays. 3, 4, 5 are identical, and 5 is like 6."""
    from robustdup.duplication.representatives import representatives

    chain = np.array([0, 1, 3, 3, 5]), np.array([1, 2, 4, 5, 6]), np.array([0.9, 0.9, 1.0, 1.0, 0.8])
    assert representatives(8, *chain).tolist() == [0, 0, 2, 3, 3, 3, 3, 7]
    assert representatives(8, *chain, order=np.arange(8)[::-1]).tolist() == [0, 2, 2, 6, 6, 6, 6, 7]


def test_mistakes_in_dropping_are_explained():
    with raises("bad-value"):
        robustdup.drop_duplicates(picture_dataset([0], ""), keep="best")
    with raises("bad-data"):
        robustdup.drop_duplicates(torch.zeros(2, 3, 8, 8))


def test_importing_is_light():
    heavy = {"torch", "datasets", "numpy", "pydantic", "importlib.metadata"}
    code = f"import sys, robustdup; heavy = {heavy} & set(sys.modules); assert not heavy, heavy"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.timing
def test_importing_takes_less_than_a_fifth_of_a_second():
    code = "import time; began = time.process_time(); import robustdup; print(time.process_time() - began)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert float(result.stdout) < 0.2
