"""Layouts of data on a disk, each built small: what is read is what was written, with the labels that it was written with."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from safetensors.torch import save_file

import robustdup
from robustdup.config import DataOptions, DuplicateConfig, validate
from robustdup.data.classes import number_classes
from robustdup.data.sources import open_samples
from robustdup.data.splits import open_splits
from robustdup.errors import UserError
from robustdup.jobs.duplication import duplicate
from robustdup.plugins import load_plugins
from tests.raising import raises

N = 12
LABELS = np.array([3, 0, 2, 1, 0, 3, 1, 2, 2, 0, 1, 3])
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 32, 32, 3), dtype=np.uint8)
NAMES = ["ant", "bee", "cat", "dog"]


pytestmark = pytest.mark.usefixtures("own_datasets_cache")


def save(image, *place):
    file = Path(*place)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(file)


def png(image):
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def same(data, names=NAMES, labels=LABELS, pixels=PIXELS):
    """Compare by pixels: which image has which label, whatever the order."""
    planes = pixels.transpose(0, 3, 1, 2) if pixels.ndim == 4 else pixels[:, None]
    wanted = {
        (plane.astype(np.float32) / 255).tobytes(): int(label) for plane, label in zip(planes, labels, strict=True)
    }
    found = {image.numpy().tobytes(): int(label) for image, label in zip(data.images, data.labels, strict=True)}
    assert found == wanted
    assert list(data.class_names) == list(names)


def class_folders(root, names=NAMES, split="test"):
    for i, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        save(image, root, *([split] if split else []), names[label], f"{i:02d}.png")


# --- folders ---


def test_class_folders_with_and_without_splits(tmp_path):
    class_folders(tmp_path / "a")
    same(robustdup.load_data(str(tmp_path / "a")))
    class_folders(tmp_path / "b", split=None)
    data = robustdup.load_data(str(tmp_path / "b"))
    same(data)
    assert "has no splits" in data.notes[-1]
    for word in ("val", "validation", "valid"):
        class_folders(tmp_path / word, split=word)
        data = robustdup.load_data(str(tmp_path / word))
        same(data)
        assert "'validation' is taken" in data.notes[-1]
        same(robustdup.load_data(str(tmp_path / word), split="val"))


def test_split_words_inside_names_mean_nothing(tmp_path):
    names = ["ant_test", "train", "test-bed", "validate"]
    for i, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        save(image, tmp_path, names[label], f"{i:02d}_{'test' if i % 3 else 'train'}.png")
    same(
        robustdup.load_data(str(tmp_path)), names=sorted(names), labels=[sorted(names).index(names[k]) for k in LABELS]
    )
    assert len(open_splits(str(tmp_path), DataOptions(split="train")).get("train")) == N


@pytest.mark.parametrize(
    ("place", "wanted"),
    [("{split}_set", "test"), ("seg_{split}/seg_{split}", "test"), ("{split}2017", "test"), ("My{Split}Data", "test")],
)
def test_folders_that_are_called_by_a_split_among_other_words_are_splits(tmp_path, place, wanted):
    for split in ("train", "test"):
        class_folders(tmp_path, split=place.format(split=split, Split=split.title()))
    data = robustdup.load_data(str(tmp_path), split=wanted)
    same(data)
    assert "taken for splits by their names" in " ".join(data.notes)


def test_splits_inside_folders_of_classes_are_splits(tmp_path):
    for i, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        for split in ("train", "test"):
            save(image, tmp_path, NAMES[label], split, f"{i:02d}.png")
    same(robustdup.load_data(str(tmp_path)))
    assert len(robustdup.load_data(str(tmp_path), split="train")) == N


def test_class_numbers_as_whole_floats_and_from_minus_one():
    names, numbers, _ = number_classes(["10.0", "2.0", "0.0"])
    assert (len(names), numbers) == (11, {"0.0": 0, "2.0": 2, "10.0": 10})
    _, numbers, notes = number_classes(["-1", "1", "0"])
    assert numbers == {"-1": 0, "0": 1, "1": 2}
    assert "samples without a class" in " ".join(notes)


def test_numbered_folders_in_the_order_of_numbers(tmp_path):
    for k in range(12):
        save(PIXELS[k], tmp_path, "test", str(k), "1.png")
    same(robustdup.load_data(str(tmp_path)), names=[str(k) for k in range(12)], labels=range(12))
    for k in (0, 1, 4):
        save(PIXELS[k], tmp_path / "gaps", str(k), "1.png")
    data = robustdup.load_data(str(tmp_path / "gaps"))
    assert (sorted(data.labels.tolist()), data.class_names) == ([0, 1, 4], list("01234"))
    for k in range(1, 4):
        save(PIXELS[k], tmp_path / "from1", str(k), "1.png")
    data = robustdup.load_data(str(tmp_path / "from1"))
    assert sorted(data.labels.tolist()) == [0, 1, 2]
    assert "numbered from 1 to 3" in " ".join(data.notes)


def test_empty_and_missing_class_folders_keep_their_number(tmp_path):
    class_folders(tmp_path)
    for file in (tmp_path / "test" / "bee").iterdir():
        file.unlink()
    left = LABELS != 1
    data = robustdup.load_data(str(tmp_path))
    same(data, labels=LABELS[left], pixels=PIXELS[left])
    assert "bee has no picture in test" in data.notes[0]
    (tmp_path / "test" / "bee").rmdir()
    class_folders(tmp_path, split="train")
    same(robustdup.load_data(str(tmp_path)), labels=LABELS[left], pixels=PIXELS[left])


def test_folders_in_folders(tmp_path):
    for i, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        save(image, tmp_path, "super", "test", "insect" if label < 2 else "mammal", NAMES[label], f"{i}.png")
        save(image, tmp_path, "images", "test", NAMES[label], "images", f"{i}.png")
        save(image, tmp_path, "outer", "test", NAMES[label], f"session{i % 2}", f"{i}.png")
    for kind in ("super", "images", "outer"):
        same(robustdup.load_data(str(tmp_path / kind)))


def test_split_folders_without_classes_have_no_labels(tmp_path):
    for i in range(6):
        save(PIXELS[i], tmp_path, ["train", "test"][i % 2], f"{i}.png")
    with raises("no-column", UserError, "image"):
        robustdup.load_data(str(tmp_path))
    assert len(open_splits(str(tmp_path), DataOptions()).get("test")) == 3


def test_files_of_other_kinds_are_counted(tmp_path):
    class_folders(tmp_path)
    for name in ("1.heic", "2.HEIC", "3.psd"):
        (tmp_path / "test" / "ant" / name).write_bytes(b"x")
    (tmp_path / "test" / "ant" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "test" / "ant" / "Thumbs.db").write_bytes(b"x")
    data = robustdup.load_data(str(tmp_path))
    same(data)
    assert "3 files" in data.notes[0]
    assert "2 .heic, 1 .psd" in data.notes[0]
    assert open_splits(str(tmp_path), DataOptions()).notes == data.notes


# --- lists ---


@pytest.mark.parametrize(
    ("head", "name", "labels"),
    [
        (("file_name", "label"), "test/metadata.csv", "names"),
        (("filename", "class"), "test/labels.csv", "names"),
        (("path", "target"), "list.csv", "numbers"),
        (None, "val.txt", "numbers"),
        (("image", "label"), "test.tsv", "names"),
    ],
)
def test_lists_of_paths(tmp_path, head, name, labels):
    for i, image in enumerate(PIXELS):
        save(image, tmp_path, "test", f"{i:02d}.png")
    below = "" if name.startswith("test/") else "test/"
    rows = [(f"{below}{i:02d}.png", NAMES[k] if labels == "names" else k) for i, k in enumerate(LABELS)]
    mark = "\t" if name.endswith("tsv") else "," if head else " "
    with (tmp_path / name).open("w", newline="") as file:
        csv.writer(file, delimiter=mark).writerows([*([head] if head else []), *rows])
    expected = NAMES if labels == "names" else list("0123")
    same(robustdup.load_data(str(tmp_path)), names=expected)
    if not name.startswith("test/"):
        same(robustdup.load_data(str(tmp_path / name)), names=expected)


def test_json_lines_with_splits_and_missing_files(tmp_path):
    for i, image in enumerate(PIXELS):
        save(image, tmp_path, "pictures", f"{i}.png")
    rows = [
        {"file_name": f"pictures/{i}.png", "label": NAMES[k], "split": ["train", "test"][i % 2]}
        for i, k in enumerate(LABELS)
    ]
    rows.append({"file_name": "pictures/none.png", "label": "ant", "split": "test"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    data = robustdup.load_data(str(tmp_path))
    same(data, labels=LABELS[1::2], pixels=PIXELS[1::2])
    assert "1 rows of metadata.jsonl" in " ".join(data.notes)


def test_tiny_imagenet_as_downloaded(tmp_path):
    wnids = [f"n0{k}" for k in (4, 1, 3, 2)]
    order = np.argsort(np.argsort(wnids))
    for i, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        save(image, tmp_path, "train", wnids[label], "images", f"{wnids[label]}_{i}.png")
        save(image, tmp_path, "val", "images", f"val_{i}.png")
    save(PIXELS[0], tmp_path, "test", "images", "test_0.png")
    (tmp_path / "wnids.txt").write_text("\n".join(wnids))
    lines = [f"val_{i}.png\t{wnids[label]}\t0\t0\t31\t31" for i, label in enumerate(LABELS)]
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(lines))
    for place, split in (
        (tmp_path, "train"),
        (tmp_path, "validation"),
        (tmp_path, "test"),
        (tmp_path / "val", "validation"),
    ):
        same(robustdup.load_data(str(place), split=split), names=sorted(wnids), labels=order[LABELS])


def test_flat_imagenet_validation_with_its_lists(tmp_path):
    wnids = ["n01", "n02", "n03", "n04"]
    place = tmp_path / "val"
    for i, image in enumerate(PIXELS):
        save(image, place, f"ILSVRC2012_val_{i + 1:08d}.png")
    solution = ["ImageId,PredictionString"] + [
        f"ILSVRC2012_val_{i + 1:08d},{wnids[k]} 1 2 3 4" for i, k in enumerate(LABELS)
    ]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(solution))
    same(robustdup.load_data(str(place)), names=wnids)
    (tmp_path / "LOC_val_solution.csv").unlink()
    challenge = [3, 1, 4, 2]  # the challenge's numbers of the four synsets
    truth = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("\n".join(str(challenge[k]) for k in LABELS))
    with raises("bad-data", UserError, "meta.mat"):
        robustdup.load_data(str(place))
    synsets = np.array(list(zip(challenge, wnids, strict=True)), dtype=[("ILSVRC2012_ID", "i4"), ("WNID", "O")])
    scipy.io.savemat(tmp_path / "meta.mat", {"synsets": synsets})
    same(robustdup.load_data(str(place)), names=wnids)


# --- arrays ---


def test_npz_and_pt_in_usual_forms(tmp_path):
    np.savez(tmp_path / "xy.npz", x_test=PIXELS, y_test=LABELS[:, None], x_train=PIXELS[:1], y_train=LABELS[:1])
    same(robustdup.load_data(str(tmp_path / "xy.npz")), names=[])
    np.savez(tmp_path / "plain.npz", PIXELS.transpose(0, 3, 1, 2), LABELS)
    same(robustdup.load_data(str(tmp_path / "plain.npz")), names=[])
    floats, labels = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(LABELS)
    forms = (
        (floats, labels),
        {"images": floats, "labels": labels},
        torch.utils.data.TensorDataset(floats, labels),
        {"x": floats * 255, "y": labels},
    )
    for number, form in enumerate(forms):
        torch.save(form, tmp_path / f"{number}.pt")
        same(robustdup.load_data(str(tmp_path / f"{number}.pt")), names=[])
    torch.save((floats - 0.5, labels), tmp_path / "normalised.pt")
    with raises("bad-images", UserError, "normalised"):
        robustdup.load_data(str(tmp_path / "normalised.pt"))
    torch.save(Trap(), tmp_path / "trap.pt")
    with raises("bad-file", UserError, "trap.pt"):
        robustdup.load_data(str(tmp_path / "trap.pt"))


def test_npy_pairs_and_severities(tmp_path):
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "cifar10.1_v6_data.npy", PIXELS)
    np.save(tmp_path / "a" / "cifar10.1_v6_labels.npy", LABELS.astype(np.int32))
    data = robustdup.load_data(str(tmp_path / "a"))
    same(data, names=data.class_names)
    assert data.class_names[0] == "airplane"
    (tmp_path / "b").mkdir()
    np.save(tmp_path / "b" / "labels.npy", np.tile(LABELS[:4], 5))
    twenty = np.random.default_rng(1).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    for name in ("fog", "snow"):
        np.save(tmp_path / "b" / f"{name}.npy", twenty)
    with raises("bad-option", UserError, "fog, snow"):
        robustdup.load_data(str(tmp_path / "b"))
    data = robustdup.load_data(str(tmp_path / "b"), config="fog")
    assert len(data) == 20
    assert "five severities" in data.notes[0]
    same(
        robustdup.load_data(str(tmp_path / "b" / "fog.npy"), split="severity-5"),
        names=[],
        labels=LABELS[:4],
        pixels=twenty[16:],
    )
    np.save(tmp_path / "alone.npy", PIXELS)
    with raises("no-label", UserError, "alone_labels.npy"):
        robustdup.load_data(str(tmp_path / "alone.npy"))


# --- well-known files ---


class Trap:
    def __reduce__(self):
        return (os.mkdir, ("trapped",))


def cifar_rows():
    return PIXELS.transpose(0, 3, 1, 2).reshape(N, -1)


def test_cifar_pickles_run_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "cifar-10-batches-py"
    place.mkdir()
    names = [f"class {k}" for k in range(10)]
    (place / "batches.meta").write_bytes(pickle.dumps({b"label_names": [name.encode() for name in names]}))
    (place / "test_batch").write_bytes(pickle.dumps({b"data": cifar_rows(), b"labels": LABELS.tolist()}))
    same(robustdup.load_data(str(tmp_path)), names=names)
    same(robustdup.load_data(str(place)), names=names)
    same(robustdup.load_data(f"torchvision:CIFAR10@{tmp_path}"), names=names)
    (place / "test_batch").write_bytes(pickle.dumps({b"data": Trap(), b"labels": LABELS.tolist()}))
    with raises("bad-file", UserError, "mkdir"):
        robustdup.load_data(str(place))
    assert not (tmp_path / "trapped").exists()
    other = tmp_path / "cifar-100-python"
    other.mkdir()
    (other / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"f{k}" for k in range(100)]}))
    (other / "test").write_bytes(
        pickle.dumps({"data": cifar_rows(), "fine_labels": LABELS.tolist(), "coarse_labels": [0] * N})
    )
    same(robustdup.load_data(str(other)), names=[f"f{k}" for k in range(100)])


def test_cifar_binaries(tmp_path):
    rows = np.concatenate([LABELS[:, None].astype(np.uint8), cifar_rows()], axis=1)
    (tmp_path / "ten").mkdir()
    rows.tofile(tmp_path / "ten" / "test_batch.bin")
    data = robustdup.load_data(str(tmp_path / "ten"))
    same(data, names=data.class_names)
    assert data.class_names[3] == "cat"
    (tmp_path / "hundred").mkdir()
    np.concatenate([np.full((N, 1), 7, np.uint8), rows], axis=1).tofile(tmp_path / "hundred" / "test.bin")
    (tmp_path / "hundred" / "fine_label_names.txt").write_text("\n".join(f"f{k}" for k in range(100)))
    same(robustdup.load_data(str(tmp_path / "hundred")), names=[f"f{k}" for k in range(100)])


def test_mnist_idx_plain_and_gzipped(tmp_path):
    grey = PIXELS[..., 0][:, :28, :28]
    images = struct.pack(">HBB3I", 0, 8, 3, *grey.shape) + grey.tobytes()
    labels = struct.pack(">HBBI", 0, 8, 1, N) + LABELS.astype(np.uint8).tobytes()
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "t10k-images-idx3-ubyte").write_bytes(images)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(labels)
    for spec in (str(raw), str(tmp_path / "MNIST"), str(tmp_path), f"torchvision:MNIST@{tmp_path}"):
        same(robustdup.load_data(spec), names=[], pixels=grey)
    (tmp_path / "gz").mkdir()
    (tmp_path / "gz" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (tmp_path / "gz" / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    same(robustdup.load_data(str(tmp_path / "gz"), split="train"), names=[], pixels=grey)
    (raw / "t10k-images-idx3-ubyte").write_bytes(images[:-5])
    with raises("bad-file", UserError, "whole idx"):
        robustdup.load_data(str(raw))


def test_svhn_and_stl10(tmp_path):
    svhn = {"X": PIXELS.transpose(1, 2, 3, 0), "y": np.where(LABELS == 0, 10, LABELS)[:, None]}
    scipy.io.savemat(tmp_path / "test_32x32.mat", svhn)
    for spec in (str(tmp_path), str(tmp_path / "test_32x32.mat"), f"torchvision:SVHN@{tmp_path}"):
        same(robustdup.load_data(spec), names=list("0123456789"))
    large = np.random.default_rng(2).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    place = tmp_path / "stl10_binary"
    place.mkdir()
    large.transpose(0, 3, 2, 1).tofile(place / "test_X.bin")
    np.array([4, 1], dtype=np.uint8).tofile(place / "test_y.bin")
    same(robustdup.load_data(str(place)), names=[], labels=[3, 0], pixels=large)


MATLAB = {
    "images, labels": lambda: {"images": PIXELS, "labels": LABELS[:, None] + 1},
    "samples along the last axis": lambda: {"X": PIXELS.transpose(1, 2, 3, 0), "y": LABELS + 1},
    "rows, and names": lambda: {
        "data": PIXELS.transpose(0, 3, 1, 2).reshape(N, -1), "labels": LABELS[:, None] + 1,
        "label_names": np.array(NAMES, object),
    },
    "a struct": lambda: {"dataset": {"images": PIXELS, "labels": LABELS[None] + 1}},
    "splits, one without the first class": lambda: {
        "train_x": PIXELS, "train_y": LABELS + 1, "test_x": PIXELS[LABELS > 0], "test_y": LABELS[LABELS > 0] + 1,
    },
    "counted from 0, by Python": lambda: {"x": PIXELS, "y": LABELS},
}  # fmt: skip


@pytest.mark.parametrize("form", MATLAB)
def test_matlab_files_of_other_forms(tmp_path, form):
    scipy.io.savemat(tmp_path / "set.mat", MATLAB[form]())
    data = robustdup.load_data(str(tmp_path / "set.mat"), split="train" if "splits" in form else "test")
    same(data, names=NAMES if "names" in form else [])
    assert ("as MATLAB counts" in " ".join(data.notes)) == ("Python" not in form)
    if "splits" in form:
        same(robustdup.load_data(str(tmp_path / "set.mat")), [], LABELS[LABELS > 0], PIXELS[LABELS > 0])


# --- archives ---


def test_zips_and_tars_of_folders(tmp_path):
    class_folders(tmp_path / "mine")
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for file in sorted((tmp_path / "mine").rglob("*.png")):
            archive.write(file, file.relative_to(tmp_path))
    with tarfile.open(tmp_path / "mine.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "mine", "mine")
    for name in ("mine.zip", "mine.tar.gz"):
        same(robustdup.load_data(str(tmp_path / name)))
        same(robustdup.load_data(str(tmp_path / name)))  # from what was unpacked
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../../outside.png", png(PIXELS[0]))
    with raises("bad-file", UserError, "outside"):
        robustdup.load_data(str(tmp_path / "bad.zip"))


@pytest.mark.parametrize("kind", ["cls", "json", "text"])
def test_webdataset_shards(tmp_path, kind):
    with tarfile.open(tmp_path / "test-000000.tar", "w") as shard:
        for i, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
            text = {"cls": str(label), "json": json.dumps({"label": int(label), "key": i}), "text": NAMES[label]}[kind]
            for ending, content in (("png", png(image)), ("json" if kind == "json" else "cls", text.encode())):
                info = tarfile.TarInfo(f"{i:04d}.{ending}")
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))
    names = NAMES if kind == "text" else []
    same(robustdup.load_data(str(tmp_path)), names=names)
    same(robustdup.load_data(str(tmp_path / "test-000000.tar")), names=names)


# --- columns ---


@pytest.mark.parametrize(
    ("column", "values", "names", "labels"),
    [
        ("label", [NAMES[k] for k in LABELS], NAMES, LABELS),
        ("label", [str(k) for k in LABELS], list("0123"), LABELS),
        ("label", (LABELS > 1).tolist(), ["False", "True"], LABELS > 1),
        ("label", LABELS.astype(float).tolist(), [], LABELS),
        ("label", np.eye(4)[LABELS].tolist(), [], LABELS),
        ("target", LABELS.tolist(), [], LABELS),
        ("y", LABELS.tolist(), [], LABELS),
        ("class", [NAMES[k] for k in LABELS], NAMES, LABELS),
        ("category", LABELS.tolist(), [], LABELS),
    ],
)
def test_labels_of_any_usual_kind(tmp_path, column, values, names, labels):
    rows = {"image": [{"bytes": png(image), "path": None} for image in PIXELS], column: values}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(tmp_path / "test.parquet")
    same(robustdup.load_data(str(tmp_path)), names=names, labels=labels)


def test_text_labels_have_one_number_in_all_splits(tmp_path):
    for split, kept in (("train", LABELS >= 0), ("test", LABELS > 0)):
        rows = {
            "image": [{"bytes": png(image), "path": None} for image in PIXELS[kept]],
            "label": [NAMES[k] for k in LABELS[kept]],
        }
        datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(
            tmp_path / f"{split}.parquet"
        )
    same(robustdup.load_data(str(tmp_path)), labels=LABELS[LABELS > 0], pixels=PIXELS[LABELS > 0])


@pytest.mark.parametrize("wrong", [[[1, 2]] * N, [0.5] * N, [[1, 1, 0]] * N])
def test_labels_that_are_no_classes(tmp_path, wrong):
    rows = {"image": [{"bytes": png(image), "path": None} for image in PIXELS], "label": wrong}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(tmp_path / "test.parquet")
    with raises("bad-labels", UserError, "test"):
        robustdup.load_data(str(tmp_path))


@pytest.mark.parametrize(
    "feature",
    [
        datasets.Array3D(shape=(4, 4, 3), dtype="uint8"),
        datasets.Array3D(shape=(4, 4, 3), dtype="float32"),
        datasets.List(datasets.List(datasets.List(datasets.Value("int64")))),
    ],
)
def test_columns_of_arrays_and_nested_lists(tmp_path, feature):
    small = PIXELS[:, :4, :4]
    pixels = small.astype(np.float32) / 255 if getattr(feature, "dtype", "") == "float32" else small
    features = datasets.Features({"pixels": feature, "label": datasets.ClassLabel(names=NAMES)})
    table = datasets.Dataset.from_dict({"pixels": pixels.tolist(), "label": LABELS.tolist()}, features=features)
    table.to_parquet(tmp_path / "test.parquet")
    same(robustdup.load_data(str(tmp_path)), pixels=small)
    pictures = open_splits(str(tmp_path), DataOptions()).get("test")
    assert np.array_equal(np.asarray(pictures[0]["pixels"]), small[0])


def test_two_image_columns_are_told(tmp_path):
    both = [{"bytes": png(image), "path": None} for image in PIXELS]
    rows = datasets.Dataset.from_dict({"mask": both[::-1], "image": both, "label": LABELS.tolist()})
    rows.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image()).to_parquet(
        tmp_path / "test.parquet"
    )
    data = robustdup.load_data(str(tmp_path))
    same(data, names=[])
    assert "image_column could also be mask" in data.notes[0]


def test_parquet_files_that_are_in_no_split_are_told(tmp_path):
    rows = {"image": [{"bytes": png(image), "path": None} for image in PIXELS], "label": LABELS.tolist()}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table.to_parquet(tmp_path / "test.parquet")
    table.to_parquet(tmp_path / "more.parquet")
    assert "1 parquet files" in " ".join(robustdup.load_data(str(tmp_path)).notes)


def test_every_layout_can_be_described_and_duplicated(tmp_path):
    np.savez(tmp_path / "xy.npz", x_train=PIXELS, y_train=LABELS)
    rows = open_splits(str(tmp_path / "xy.npz"), DataOptions(split="train")).get("train")
    assert np.array_equal(np.asarray(rows[5]["image"]), PIXELS[5])
    assert rows["label"] == LABELS.tolist()


def test_labels_from_one_are_told(tmp_path):
    np.savez(tmp_path / "xy.npz", x_test=PIXELS, y_test=LABELS + 1)
    assert "run from 1 to 4" in robustdup.load_data(str(tmp_path / "xy.npz")).notes[-1]


# --- kinds of picture files ---


@pytest.mark.parametrize(
    ("ending", "convert", "lossless"),
    [
        ("png", lambda p: p.convert("RGBA"), True),
        ("png", lambda p: p.quantize(16), True),
        ("gif", lambda p: p.quantize(16), True),
        ("bmp", lambda p: p, True),
        ("ppm", lambda p: p, True),
        ("tif", lambda p: p, True),
        ("webp", lambda p: p, False),
        ("jpg", lambda p: p, False),
        ("jpg", lambda p: p.convert("CMYK"), False),
        ("PNG", lambda p: p.convert("L"), True),
    ],
)
def test_kinds_of_picture_files(tmp_path, ending, convert, lossless):
    smooth = np.linspace(0, 255, 8 * 8 * 3).reshape(8, 8, 3).astype(np.uint8)
    picture = convert(Image.fromarray(smooth))
    (tmp_path / "test" / "one").mkdir(parents=True)
    picture.save(tmp_path / "test" / "one" / f"1.{ending}", format="PNG" if ending == "PNG" else None)
    data = robustdup.load_data(str(tmp_path))
    wanted = np.asarray(picture if picture.mode == "L" else picture.convert("RGB"), dtype=np.float32) / 255
    found = data.images[0].permute(1, 2, 0).numpy().reshape(wanted.shape)
    assert np.abs(found - wanted).max() < (1e-6 if lossless else 0.12)


# --- one split where another is asked for ---


def test_training_data_of_another_name_are_taken_with_a_note(tmp_path):
    class_folders(tmp_path / "only", split="test")
    data = open_samples(str(tmp_path / "only"), DataOptions(split="train"), load_plugins(), lenient=True)
    assert data.split == "test"
    assert "its only split, 'test', is taken" in data.notes[0]
    class_folders(tmp_path / "two", split="test")
    class_folders(tmp_path / "two", split="val")
    with raises("unknown-split"):
        open_samples(str(tmp_path / "two"), DataOptions(split="train"), load_plugins(), lenient=True)


def test_the_record_names_the_split_that_was_taken(tmp_path):
    class_folders(tmp_path, split="val")
    assert robustdup.load_data(str(tmp_path)).split == "validation"


def test_nothing_is_tested_on_what_it_is_trained_on(tmp_path):
    class_folders(tmp_path, split="train")
    with raises("no-test-data", UserError, "has no split 'test'"):
        robustdup.train(data=str(tmp_path), model="linear", epochs=1, out=tmp_path / "run", validation=0)
    assert not (tmp_path / "run").exists()  # told before training, and --out is free


def test_a_split_is_duplicated_by_any_of_its_names(tmp_path):
    class_folders(tmp_path / "data", split=None)
    for wanted in ("train", "test"):  # neither: all of it is taken
        config = validate(
            DuplicateConfig, {"data": str(tmp_path / "data"), "split": wanted, "scheme": "uniform", "dose": 0.5}
        )
        made = duplicate(config, str(tmp_path / wanted))
        assert sum(made.rows.values()) == 2 * len(PIXELS)  # its copies are written
    class_folders(tmp_path / "val", split="val")
    config = validate(
        DuplicateConfig,
        {"data": str(tmp_path / "val"), "split": "val", "scheme": "uniform", "dose": 0.5, "mode": "append"},
    )
    made = duplicate(config, str(tmp_path / "out"))
    assert made.rows["validation"] > len(PIXELS)  # written under its own name, with its copies


# --- zips of folders, and tensors ---


def test_zips_of_folders(tmp_path):
    class_folders(tmp_path / "pictures")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for file in (tmp_path / "pictures").rglob("*.png"):
            archive.write(file, file.relative_to(tmp_path / "pictures"))
    same(robustdup.load_data(str(tmp_path / "data.zip")))
    (tmp_path / "folder").mkdir()
    (tmp_path / "data.zip").rename(tmp_path / "folder" / "data.zip")  # alone in a folder
    same(robustdup.load_data(str(tmp_path / "folder")))
    with zipfile.ZipFile(tmp_path / "below.zip", "w") as archive:  # in one more folder of the archive
        for file in (tmp_path / "pictures").rglob("*.png"):
            archive.write(file, file.relative_to(tmp_path))
    same(robustdup.load_data(str(tmp_path / "below.zip")))


def test_safetensors(tmp_path):
    tensors = {"images": torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy()), "labels": torch.from_numpy(LABELS)}
    save_file(tensors, tmp_path / "test.safetensors")
    same(robustdup.load_data(str(tmp_path / "test.safetensors")), names=())
    floats = {"x_test": tensors["images"].float() / 255, "y_test": tensors["labels"].to(torch.int32)}
    save_file(floats, tmp_path / "data.safetensors")
    same(robustdup.load_data(str(tmp_path / "data.safetensors")), names=())


def read_back(path, names=None, n=None):
    """Read what was written from PIXELS and LABELS, in any order."""
    data = robustdup.load_data(str(path))
    digests = [image.tobytes() for image in PIXELS]
    pixels = (data.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    rows = [digests.index(image.tobytes()) for image in pixels]
    assert sorted(rows) == list(range(N if n is None else n))
    assert data.labels.tolist() == LABELS[rows].tolist()
    if names is not None:
        assert list(data.class_names) == names
    return data


def pictures(folder):
    folder.mkdir(parents=True)
    for number, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")


JSON = {
    "a class under each path": lambda: {f"{i:02d}.png": NAMES[label] for i, label in enumerate(LABELS)},
    "a row for each": lambda: [
        {"file_name": f"{i:02d}.png", "category": NAMES[label]} for i, label in enumerate(LABELS)
    ],
}


@pytest.mark.parametrize("form", JSON)
def test_json_lists(tmp_path, form):
    pictures(tmp_path / "images")
    (tmp_path / "labels.json").write_text(json.dumps(JSON[form]()))
    read_back(tmp_path, NAMES)


def test_a_column_for_each_class(tmp_path):
    pictures(tmp_path / "images")
    rows = [f"{i:02d}," + ",".join(str(float(j == label)) for j in range(4)) for i, label in enumerate(LABELS)]
    (tmp_path / "truth.csv").write_text("\n".join(["image," + ",".join(NAMES), *rows]))
    read_back(tmp_path, NAMES)


ARRAYS = {
    "capitals": lambda place: (np.save(place / "X_test.npy", PIXELS), np.save(place / "Y_test.npy", LABELS)),
    "short words": lambda place: (np.save(place / "imgs.npy", PIXELS), np.save(place / "lbls.npy", LABELS)),
    "a pickled dict": lambda place: (place / "test.pkl").write_bytes(
        pickle.dumps({"data": PIXELS, "labels": LABELS.tolist()})
    ),
    "a pickled pair": lambda place: (place / "test.pickle").write_bytes(pickle.dumps((PIXELS, LABELS))),
    "a list of samples": lambda place: torch.save(
        [(torch.from_numpy(image).permute(2, 0, 1), int(label)) for image, label in zip(PIXELS, LABELS, strict=True)],
        place / "test.pt",
    ),
}


PLANES = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
ARRAYS |= {
    "samples along the last axis": lambda place: np.savez(
        place / "test.npz", x=PIXELS.transpose(1, 2, 3, 0), y=LABELS[None]
    ),
    "a list of dicts": lambda place: torch.save(
        [{"image": image, "label": int(label)} for image, label in zip(PLANES, LABELS, strict=True)], place / "test.pt"
    ),
    "training and test data in a row": lambda place: torch.save(
        (PLANES[:2], torch.tensor([1, 2]), PLANES, torch.from_numpy(LABELS)), place / "all.pt"
    ),
}


def test_names_of_classes_beside_the_arrays_are_kept(tmp_path):
    torch.save({"classes": NAMES[::-1], "data": PLANES, "targets": torch.from_numpy(LABELS)}, tmp_path / "test.pt")
    np.savez(tmp_path / "test.npz", x=PIXELS, y=LABELS, class_names=np.array(NAMES[::-1]))
    for file in ("test.pt", "test.npz"):
        same(robustdup.load_data(str(tmp_path / file)), names=NAMES[::-1])


@pytest.mark.parametrize("form", ARRAYS)
def test_arrays_in_further_forms(tmp_path, form):
    ARRAYS[form](tmp_path)
    read_back(tmp_path)


@pytest.mark.parametrize(("kind", "packed"), [("cls.txt", ""), ("index", ""), ("class", ":gz")])
def test_webdataset_labels_of_other_names_and_packed_shards(tmp_path, kind, packed):
    with tarfile.open(tmp_path / f"test-0000.tar{'.gz' if packed else ''}", f"w{packed}") as archive:
        for number, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            for ending, content in (("png", stream.getvalue()), (kind, str(label).encode())):
                member = tarfile.TarInfo(f"{number:05d}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    read_back(tmp_path)


def test_rows_with_the_channels_of_a_pixel_side_by_side_are_told_by_smoothness(tmp_path):
    ramp = np.linspace(0, 200, 32)[None, :, None, None] + np.array([0, 25, 50]) + np.arange(N)[:, None, None, None]
    smooth = np.broadcast_to(ramp, PIXELS.shape).astype(np.uint8)
    for name, rows in (("beside", smooth), ("planes", smooth.transpose(0, 3, 1, 2))):
        np.savez(tmp_path / f"{name}.npz", x=rows.reshape(N, -1), y=LABELS)
        same(robustdup.load_data(str(tmp_path / f"{name}.npz")), names=[], pixels=smooth)


def test_bytes_of_0_and_1_are_black_and_white_and_what_was_divided_twice_is_refused(tmp_path):
    drawn = (PIXELS > 127).astype(np.uint8)
    np.savez(tmp_path / "drawn.npz", x=drawn, y=LABELS)
    same(robustdup.load_data(str(tmp_path / "drawn.npz")), names=[], pixels=drawn * 255)
    np.savez(tmp_path / "twice.npz", x=PIXELS / 255 / 255, y=LABELS)
    with raises("bad-images", UserError, "divided by 255 twice"):
        robustdup.load_data(str(tmp_path / "twice.npz"))


def test_lists_with_backslashes_are_read_and_lists_that_fit_nothing_are_no_single_class(tmp_path):
    for i, image in enumerate(PIXELS):
        save(image, tmp_path, "pictures", f"{i:02d}.png")
    rows = [f"pictures\\{i:02d}.png,{NAMES[label]}" for i, label in enumerate(LABELS)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    same(robustdup.load_data(str(tmp_path)))
    (tmp_path / "labels.csv").write_text("\n".join(["path,coarse,fine", *(f"{row},7" for row in rows)]))
    with raises("bad-data", UserError, "'path,coarse,fine'", "--label-column"):
        robustdup.load_data(str(tmp_path))


def test_names_with_numbers_inside_say_their_order():
    assert number_classes(["class_10", "class_1", "class_2"])[0] == ["class_1", "class_10", "class_2"]
    (told,) = number_classes(["class_10", "class_1", "class_2"])[2]
    assert "class_1, class_10, class_2" in told
    for quiet in (["class_01", "class_02", "class_10"], ["n01440764", "n01443537"], ["b2", "a10", "c"], ["cat", "dog"]):
        assert not number_classes(quiet)[2]
