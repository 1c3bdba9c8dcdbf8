"""What a search reads: pixels as they are decoded, upright, over a background; labels of any kind; which files, and which not."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from detect_pictures import detect, encoded, found, pictures, write
from PIL import Image
from robustdup_detect.record import ImageRef, ShownPair, load_pairs
from robustdup_detect.summary import _line

from robustdup.config import DataOptions
from robustdup.data.labels import open_with_any_labels, read_labels
from robustdup.errors import UserError
from tests.raising import raises

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


def as_image(pixels):
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def upright(path):
    return Image.open(path).convert("RGB")


def leaving(run):
    with (run / "leaving.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def folder_of(images, place):
    place.mkdir(parents=True)
    for name, image in images.items():
        image.save(place / name, **({"quality": 60} if name.endswith("jpg") else {}))
    return str(place.parent)


def test_exact_means_equal_decoded_pixels(tmp_path):
    """Copies as JPEG, with one changed pixel, or enlarged are near, however sure their score is; other files of the same
    pixels are exact."""
    images = [as_image(image) for image in pictures(30)]
    touched = np.array(images[2])
    touched[0, 0, 0] ^= 1
    grey = images[4].convert("L")
    copies = {
        "jpeg.jpg": images[1], "touched.png": Image.fromarray(touched), "twice.png": images[3].resize((64, 64), 0),
        "grey.png": grey, "grey-as-colour.png": grey.convert("RGB"), "same.bmp": images[5],
    }  # fmt: skip
    originals = {f"{row:02d}.png": image for row, image in enumerate(images)}
    data = folder_of({**originals, **copies}, tmp_path / "data" / "train")
    record = detect(data, tmp_path / "run")
    pairs = load_pairs(tmp_path / "run").to_pylist()
    named = {frozenset(Path(pair[side]).name for side in ("path_a", "path_b")): pair for pair in pairs}
    for names, pair in named.items():
        first, second = (np.array(upright(Path(data) / "train" / name)) for name in names)
        identical = first.shape == second.shape and bool((first == second).all())
        assert (pair["kind"] == "exact") == identical == (pair["score"] == 1)
    kinds = {tuple(sorted(names)): pair["kind"] for names, pair in named.items()}
    assert kinds["01.png", "jpeg.jpg"] == kinds["02.png", "touched.png"] == kinds["03.png", "twice.png"] == "near"
    assert kinds["grey-as-colour.png", "grey.png"] == kinds["05.png", "same.bmp"] == "exact"
    assert record.n_exact == 2


def test_sixteen_bits_that_eight_can_hold_are_the_same_pixels(tmp_path):
    grey = np.arange(1024, dtype=np.uint8).reshape(32, 32)
    wide = grey.astype(np.uint16) * 257
    rows = [encoded(Image.fromarray(grey)), encoded(Image.fromarray(wide)), encoded(Image.fromarray(wide + 1))]
    record = detect(write(tmp_path / "data", images=[*rows, *map(encoded, pictures(8))]), tmp_path / "run")
    assert {(a, b): kind for a, b, kind in found(tmp_path / "run")}[0, 1] == "exact"
    assert record.n_exact == 1


def test_a_copy_that_is_turned_by_its_exif_tag_is_found(tmp_path):
    images = [as_image(image).resize((48, 32)) for image in pictures(30)]
    tag = Image.Exif()
    tag[0x0112] = 6  # to be shown turned clockwise by 90 degrees
    content = io.BytesIO()
    images[7].transpose(Image.Transpose.ROTATE_90).save(content, "PNG", exif=tag)
    rows = [*map(encoded, images), {"bytes": content.getvalue(), "path": None}]
    record = detect(write(tmp_path / "data", images=rows), tmp_path / "run")
    assert found(tmp_path / "run") == {(7, 30, "exact")}
    assert Image.open(tmp_path / "run" / record.pairs[0].b.file).size == (48, 32)


def test_transparent_pictures_are_seen_over_the_background_that_is_named(tmp_path):
    images = [as_image(image) for image in pictures(20)]
    through = images[3].convert("RGBA")
    through.putalpha(Image.fromarray(np.tri(32, dtype=np.uint8) * 255))
    over = {
        colour: Image.alpha_composite(Image.new("RGBA", (32, 32), colour), through).convert("RGB")
        for colour in ("white", "#204060")
    }
    data = write(tmp_path / "data", images=[encoded(image) for image in [*images, through, *over.values()]])
    detect(data, tmp_path / "white")
    detect(data, tmp_path / "blue", background="#204060")
    exact = [{(a, b) for a, b, kind in found(tmp_path / run) if kind == "exact"} for run in ("white", "blue")]
    assert exact == [{(20, 21)}, {(20, 22)}]
    with raises("bad-value", UserError, "background"):
        detect(data, tmp_path / "none", background="no colour")


def test_unreadable_images_of_any_split_are_not_in_the_deduplicated_dataset(tmp_path):
    images = [encoded(image) for image in pictures(30)]
    broken = {"bytes": encoded(pictures(1, size=99)[0])["bytes"][:300], "path": None}
    data = write(tmp_path / "data", images=[*images[:9], broken, *images[9:20], images[2]])
    write(tmp_path / "data", split="test", images=[broken, *images[20:24]])
    write(tmp_path / "data", split="validation", images=[*images[24:], {"bytes": b"", "path": None}, None])
    record = detect(data, tmp_path / "run", to=str(tmp_path / "less"), against="test")
    splits = datasets.load_dataset(str(tmp_path / "less"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in splits.items()} == {"train": 21, "test": 4, "validation": 6}
    assert all(row["img"].size == (32, 32) for split in splits.values() for row in split)
    assert 9 not in splits["train"]["source_index"]
    assert record.n_unreadable == 2
    card = (tmp_path / "less" / "README.md").read_text()
    for count in ("1 of train", "1 of test", "2 of validation"):
        assert count in card.partition("left out: ")[2]


def test_files_that_are_in_no_split_are_counted(tmp_path):
    data = folder_of(
        {f"{row:02d}.png": as_image(image) for row, image in enumerate(pictures(12))}, tmp_path / "d" / "a"
    )
    (tmp_path / "d" / "a" / "phone.HEIC").write_bytes(b"heic")
    (tmp_path / "d" / "a" / "phone2.heic").write_bytes(b"heic")
    (tmp_path / "d" / "notes.txt").write_text("no picture")
    (tmp_path / "d" / "a" / ".hidden.png").write_bytes(b"")
    record = detect(data, tmp_path / "run")
    assert record.unread_files == {".heic": 2}
    assert [
        note for note in record.notes if "2 pictures of the folder are in no split" in note and "phone.HEIC" in note
    ]


def test_sheets_name_files_by_the_ends_of_their_names():
    def line(path_a, path_b):
        sides = [ImageRef(split="train", row=row, path=path) for row, path in ((3, path_a), (9, path_b))]
        return _line(
            ShownPair(
                a=sides[0],
                b=sides[1],
                score=0.9,
                kind="near",
                mirrored=True,
                cluster=0,
                change="",
                conflict=False,
                sheet=None,
            )
        )

    assert line(None, None) == "3  9  0.90 mirrored"
    assert line("a/x.png", "a/b/holiday-2019-0042.jpeg") == "x.png  ..-0042.jpeg  0.90 mirrored"
    assert line("a/x.png", None) == "x.png  9  0.90 mirrored"
    assert line("Übung.png", "x.png") == "?bung.png  x.png  0.90 mirrored"


def test_pairs_of_files_name_them(tmp_path):
    images = [as_image(image) for image in pictures(12)]
    data = folder_of(
        {**{f"{row:02d}.png": image for row, image in enumerate(images)}, "x.png": images[4]}, tmp_path / "d" / "a"
    )
    record = detect(data, tmp_path / "run", to=str(tmp_path / "less"))
    assert [(pair.a.path, pair.b.path) for pair in record.pairs] == [("a/04.png", "a/x.png")]
    assert [image.path for image in record.clusters[0].images] == ["a/04.png", "a/x.png"]
    assert leaving(tmp_path / "run") == [["train", "12", "a/x.png", "train", "4", "a/04.png"]]
    rows = datasets.load_dataset(str(tmp_path / "less"), cache_dir=str(tmp_path / "cache"))["train"]
    assert rows["source_path"][:2] == ["a/00.png", "a/01.png"]


def test_what_has_no_splits_is_called_what_was_asked_for(tmp_path):
    images = {f"{row}.png": as_image(image) for row, image in enumerate(pictures(6))}
    data = folder_of({**images, "copy.png": images["2.png"]}, tmp_path / "d" / "a")
    names = [*sorted(f"a/{name}" for name in images), "a/copy.png"]
    Path(data, "labels.csv").write_text("file_name,class\n" + "".join(f"{name},cat\n" for name in names))
    other = folder_of({"one.png": images["3.png"]}, tmp_path / "e" / "b")
    record = detect(data, tmp_path / "run", to=str(tmp_path / "less"))
    assert (record.split, [(pair.a.split, pair.b.split) for pair in record.pairs]) == ("train", [("train", "train")])
    assert list(datasets.load_dataset(str(tmp_path / "less"), cache_dir=str(tmp_path / "cache"))) == ["train"]
    detect(data, tmp_path / "two", split="mine", against_data=other, against="train")
    assert leaving(tmp_path / "two") == [["mine", "3", "a/3.png", f"{other} (train)", "0", f"{other}/b/one.png"]]


@pytest.mark.parametrize("inside", [False, True], ids=["a zip", "a folder with a zip"])
def test_pairs_of_pictures_in_an_archive_have_the_names_that_they_have_there(tmp_path, inside):
    images = [as_image(image) for image in pictures(12)]
    data = folder_of(
        {**{f"{row:02d}.png": image for row, image in enumerate(images)}, "x.png": images[4]}, tmp_path / "d" / "a"
    )
    (tmp_path / "z").mkdir()
    archive = shutil.make_archive(str(tmp_path / "z" / "pictures"), "zip", data)
    record = detect(str(tmp_path / "z") if inside else archive, tmp_path / "run", to=str(tmp_path / "less"))
    assert [(pair.a.path, pair.b.path) for pair in record.pairs] == [("a/04.png", "a/x.png")]
    rows = datasets.load_dataset(str(tmp_path / "less"), cache_dir=str(tmp_path / "cache"))["train"]
    assert rows["source_path"][:2] == ["a/00.png", "a/01.png"]


@pytest.mark.parametrize(
    ("column", "values", "numbers", "names"),
    [
        ("label", np.array([3, 0, 3], np.uint8), [3, 0, 3], []),
        ("label", np.array([3, 0, 3], np.uint64), [3, 0, 3], []),
        ("target", ["cat", None, "ant"], [1, -1, 0], ["ant", "cat"]),
        ("class", [True, False, True], [1, 0, 1], ["False", "True"]),
        ("y", [2.0, float("nan"), 10.0], [2, -1, 10], []),
        ("Y", [0.5, 10.5, 9.5], [0, 2, 1], ["0.5", "9.5", "10.5"]),
        ("labels", [-1, 1, 1], [0, 1, 1], ["-1", "1"]),
        ("label", [-1, 0, 1], [-1, 0, 1], []),
        ("category", [["b", "a"], ["a", "b"], []], [0, 0, -1], ["a, b"]),
        ("category_id", [5, 0, 5], [5, 0, 5], []),
        ("Class Name", ["cat", "ant", None], [1, 0, -1], ["ant", "cat"]),
        ("ground-truth", [True, False, True], [1, 0, 1], ["False", "True"]),
    ],
)
def test_labels_of_any_kind_are_read(column, values, numbers, names):
    rows = datasets.Dataset.from_dict({"img": [None] * 3, column: values})
    rows = rows.cast_column("img", datasets.Image())
    opened, columns = open_with_any_labels(rows, DataOptions(split="train"), "d")
    assert columns.label == column
    labels, class_names = read_labels({"train": opened}, {"train": columns.label})
    assert (labels["train"].tolist(), class_names) == (numbers, names)


def test_labels_that_are_no_classes_and_arrays_without_labels_are_searched(tmp_path):
    """Fractions, and several labels an image, are compared as they are; what generators leave has none at all."""
    rows = [encoded(image) for image in pictures(8)]
    rows.append(rows[3])
    for name, values in (("fractions", [0.5] * 8 + [1.5]), ("lists", [[1, 2]] * 8 + [[3]])):
        made = datasets.Dataset.from_dict({"img": rows, "label": values}).cast_column("img", datasets.Image())
        (tmp_path / name).mkdir()
        made.to_parquet(tmp_path / name / "train.parquet")
        record = detect(str(tmp_path / name), tmp_path / f"{name}-run")
        assert (record.n_exact, record.n_conflicts) == (1, 1)
    np.savez(tmp_path / "generated.npz", images=pictures(8)[:4].permute(0, 2, 3, 1).numpy())
    record = detect(str(tmp_path / "generated.npz"), tmp_path / "run", against_data=str(tmp_path / "lists"))
    assert (record.n, record.n_exact) == (4, 5)


def test_classes_that_two_splits_number_otherwise_are_told_by_name():
    made = {
        name: datasets.Dataset.from_dict(
            {"label": [0, 1, -1]}, features=datasets.Features({"label": datasets.ClassLabel(names=names)})
        )
        for name, names in (("train", ["cat", "dog"]), ("test", ["dog", "cat"]))
    }
    labels, names = read_labels(made, {"train": "label", "test": "label"})
    assert names == ["cat", "dog"]
    assert (labels["train"].tolist(), labels["test"].tolist()) == ([0, 1, -1], [1, 0, -1])


def test_columns_that_may_hold_labels_are_named_where_none_is_known():
    rows = datasets.Dataset.from_dict({"img": [None], "breed": ["a"], "size": [3]}).cast_column("img", datasets.Image())
    _, columns = open_with_any_labels(rows, DataOptions(split="train"), "d")
    assert columns.label == ""
    assert columns.notes == (
        "d has no labels: conflicts among them cannot be told. If breed or size holds classes, name it with label_column.",
    )


def test_the_choice_among_two_image_columns_is_told():
    rows = datasets.Dataset.from_dict({"image": [None], "mask": [None], "label": ["a"]})
    rows = rows.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
    _, columns = open_with_any_labels(rows, DataOptions(split="train"), "d")
    assert columns.image == "image"
    assert any("image_column could also be mask" in note for note in columns.notes)
