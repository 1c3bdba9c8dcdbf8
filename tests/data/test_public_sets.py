"""Layouts of sets that people have on their disks as they were published, each built small: read right, or refused in words."""

from __future__ import annotations

import gzip
import struct
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pytest
import scipy.io

import robustdup
from robustdup.errors import UserError
from tests.data.test_layouts import LABELS, NAMES, PIXELS, N, cifar_rows, png, same, save
from tests.raising import raises

pytestmark = pytest.mark.usefixtures("own_datasets_cache")
GREY = PIXELS[..., 0][:, :28, :28]


def idx(place, name, labels):
    """Write test images and labels as MNIST and its kind have them; `name` stands before both."""
    place.mkdir(parents=True, exist_ok=True)
    images = struct.pack(">HBB3I", 0, 8, 3, *GREY.shape) + GREY.tobytes()
    (place / f"{name}t10k-images-idx3-ubyte").write_bytes(images)
    numbers = struct.pack(">HBBI", 0, 8, 1, N) + labels.astype(np.uint8).tobytes()
    (place / f"{name}t10k-labels-idx1-ubyte").write_bytes(numbers)


def test_of_several_sets_side_by_side_none_is_taken_unasked(tmp_path):
    for name, labels in (("FashionMNIST", LABELS), ("KMNIST", 3 - LABELS)):
        idx(tmp_path / name / "raw", "", labels)
        same(robustdup.load_data(f"torchvision:{name}@{tmp_path}"), [], labels, GREY)
        same(robustdup.load_data(str(tmp_path / name)), [], labels, GREY)
    with raises("bad-data", UserError, "FashionMNIST", "KMNIST"):
        robustdup.load_data(str(tmp_path))


def test_torchvision_takes_the_set_that_it_names_where_others_lie_beside(tmp_path):
    rows = np.concatenate([LABELS[:, None].astype(np.uint8), cifar_rows()], axis=1)
    (tmp_path / "cifar-10-batches-bin").mkdir()
    rows.tofile(tmp_path / "cifar-10-batches-bin" / "test_batch.bin")
    other = {"X": PIXELS.transpose(1, 2, 3, 0), "y": 4 - LABELS[:, None]}
    scipy.io.savemat(tmp_path / "test_32x32.mat", other)
    same(robustdup.load_data(f"torchvision:SVHN@{tmp_path}"), list("0123456789"), 4 - LABELS)
    data = robustdup.load_data(f"torchvision:CIFAR10@{tmp_path}")
    same(data, data.class_names)


def test_one_of_the_sets_of_emnist_is_named(tmp_path):
    idx(tmp_path / "EMNIST" / "raw", "emnist-balanced-", LABELS)
    idx(tmp_path / "EMNIST" / "raw", "emnist-digits-", 3 - LABELS)
    for spec in (str(tmp_path / "EMNIST"), f"torchvision:EMNIST@{tmp_path}"):
        same(robustdup.load_data(spec, config="digits"), [], 3 - LABELS, GREY)
        with raises("bad-option", UserError, "balanced, digits"):
            robustdup.load_data(spec)


@pytest.mark.parametrize("below", ["{domain}/{name}/{i}.png", "{domain}/images/{name}/{i}.png"])
def test_domains_are_not_classes(tmp_path, below):
    for i, label in enumerate(LABELS):
        for domain in ("Art", "Clipart"):
            save(PIXELS[i], tmp_path, below.format(domain=domain, name=NAMES[label], i=i))
    with raises("bad-data", UserError, "Art, Clipart", "ant, bee, cat, dog"):
        robustdup.load_data(str(tmp_path))
    same(robustdup.load_data(str(tmp_path / "Art")))


@pytest.mark.parametrize("name", ["images", "JPEGImages", "jpg"])
def test_a_folder_of_all_images_is_no_class(tmp_path, name):
    save(PIXELS[0], tmp_path, name, "cat_1.png")
    save(PIXELS[1], tmp_path, name, "dog_1.png")
    with raises("no-column", UserError, "have no labels"):
        robustdup.load_data(str(tmp_path))


def celeba(root):
    for i, image in enumerate(PIXELS):
        save(image, root, "img_align_celeba", f"{i + 1:06d}.png")
    faces = [f"{i + 1:06d}.png" for i in range(N)]
    smiles = "".join(f"{face} {-1 if label < 2 else 1} -1\n" for face, label in zip(faces, LABELS, strict=True))
    (root / "list_attr_celeba.txt").write_text(f"{N}\nSmiling Young\n{smiles}")
    (root / "list_eval_partition.txt").write_text("".join(f"{face} {i % 3}\n" for i, face in enumerate(faces)))
    (root / "identity_CelebA.txt").write_text(
        "".join(f"{face} {label + 7}\n" for face, label in zip(faces, LABELS, strict=True))
    )


def test_celeba_with_its_partition_and_one_attribute(tmp_path):
    celeba(tmp_path)
    for part, split in enumerate(("train", "validation", "test")):
        rows = np.arange(N) % 3 == part
        data = robustdup.load_data(str(tmp_path), split=split, label_column="Smiling")
        same(data, ["-1", "1"], (LABELS > 1)[rows], PIXELS[rows])
    with raises("ambiguous-column", UserError, "--label-column Smiling"):
        robustdup.load_data(str(tmp_path))


def test_lists_that_disagree_are_refused_and_lists_that_agree_are_counted_once(tmp_path):
    for i, image in enumerate(PIXELS):
        save(image, tmp_path, "images", f"{i}.png")
    for name in ("a.csv", "b.csv"):
        rows = [f"{i}.png,{NAMES[label]}" for i, label in enumerate(LABELS)]
        (tmp_path / name).write_text("\n".join(["file_name,label", *rows]))
    assert len(robustdup.load_data(str(tmp_path))) == N
    (tmp_path / "b.csv").write_text("\n".join(["file_name,label", *(f"{i}.png,{3 - k}" for i, k in enumerate(LABELS))]))
    with raises("bad-data", UserError, "a.csv", "b.csv"):
        robustdup.load_data(str(tmp_path))


@pytest.mark.parametrize("pairs", ["a,b,duplicate\n{0},{1},true", "a;b;duplicate\n0;1;1", "first,second\n{0},{1}"])
def test_a_list_of_pairs_of_pictures_says_no_classes(tmp_path, pairs):
    """Such as `data detect --decisions` takes: beside the pictures it changes nothing."""
    for i, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        save(image, tmp_path, "images", NAMES[label], f"{i}.png")
    (tmp_path / "decisions.csv").write_text(pairs.format("0.png", "1.png"))
    for place in (tmp_path, tmp_path / "images"):
        same(robustdup.load_data(str(place)), NAMES)


def test_imagenet_as_kaggle_and_the_development_kit_have_it(tmp_path):
    place = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    for i, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        save(image, place, "val", f"ILSVRC2012_val_{i + 1:08d}.png")
        save(image, place, "train", f"n0{label}", f"n0{label}_{i}.png")
    names = ["n00", "n01", "n02", "n03"]
    with raises("no-column", UserError, "validation", "no labels"):  # no list: "val" is no class
        robustdup.load_data(str(tmp_path))
    solution = [f"ILSVRC2012_val_{i + 1:08d},n0{label} 1 2 3 4" for i, label in enumerate(LABELS)]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *solution]))
    for split in ("validation", "train"):
        same(robustdup.load_data(str(tmp_path), split=split), names)
    (tmp_path / "LOC_val_solution.csv").unlink()
    kit = place / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    synsets = np.array(list(zip([3, 1, 4, 2], names, strict=True)), dtype=[("ILSVRC2012_ID", "i4"), ("WNID", "O")])
    scipy.io.savemat(kit / "meta.mat", {"synsets": synsets})
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(str([3, 1, 4, 2][label]) for label in LABELS))
    for spec, split in ((place, "validation"), (place, "train"), (place / "val", "validation")):
        same(robustdup.load_data(str(spec), split=split), names)


def test_lists_of_paths_alone_say_the_split(tmp_path):
    for i, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        save(image, tmp_path, "images", NAMES[label], f"{i}.png")
    (tmp_path / "meta").mkdir()
    for k, split in enumerate(("train", "test")):  # as Food-101 has them
        rows = [f"{NAMES[label]}/{i}" for i, label in enumerate(LABELS) if i % 2 == k]
        (tmp_path / "meta" / f"{split}.txt").write_text("\n".join(rows))
        same(robustdup.load_data(str(tmp_path), split=split), NAMES, LABELS[k::2], PIXELS[k::2])


def test_more_numbers_behind_a_class_are_passed_over(tmp_path):
    for i, image in enumerate(PIXELS):
        save(image, tmp_path, "images", f"some_pet_{i}.png")
    rows = [f"some_pet_{i} {label + 1} 1 2" for i, label in enumerate(LABELS)]  # as Oxford-IIIT Pets have them
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "test.txt").write_text("\n".join(rows))
    same(robustdup.load_data(str(tmp_path)), list("1234"))


SECOND = {"label, label_name": True, "class_name, class_id": False, "class, target": False, "ClassId, category": True}


@pytest.mark.parametrize("columns", SECOND)
def test_a_second_column_of_class_names_names_the_numbers_and_changes_none(tmp_path, columns):
    reversed_names = NAMES[::-1]  # so that the order of the letters is not that of the numbers
    first, second = columns.split(", ")
    values = [list(LABELS.tolist()), [reversed_names[label] for label in LABELS]]
    values = values if SECOND[columns] else values[::-1]
    for i, image in enumerate(PIXELS):
        save(image, tmp_path / "list", f"{i}.png")
    rows = [f"{i}.png,{a},{b}" for i, (a, b) in enumerate(zip(*values, strict=True))]
    (tmp_path / "list" / "labels.csv").write_text("\n".join([f"path,{first},{second}", *rows]))
    same(robustdup.load_data(str(tmp_path / "list")), reversed_names)
    if first == "ClassId":  # no usual name of a column in a table
        return
    table = {"image": [{"bytes": png(image), "path": None} for image in PIXELS], first: values[0], second: values[1]}
    (tmp_path / "table").mkdir()
    datasets.Dataset.from_dict(table).cast_column("image", datasets.Image()).to_parquet(
        tmp_path / "table" / "test.parquet"
    )
    same(robustdup.load_data(str(tmp_path / "table")), reversed_names)
    text = second if SECOND[columns] else first
    named = robustdup.load_data(
        str(tmp_path / "table"), label_column=text
    )  # asked for, text is numbered by its letters
    same(named, NAMES, 3 - LABELS)
    same(robustdup.load_data(str(tmp_path / "list"), label_column=text), NAMES, 3 - LABELS)


# --- tables of pixels ---


def table(place, head, rows):
    lines = [",".join(map(str, row)) for row in ([head] if head else []) + rows]
    content = "\n".join(lines).encode()
    place.write_bytes(gzip.compress(content) if place.suffix == ".gz" else content)


PIXEL_NAMES = [f"pixel{i}" for i in range(784)]
ORDER = np.random.default_rng(1).permutation(784)
PIXEL_TABLES = {
    "the class first": (["label", *PIXEL_NAMES], lambda k, image: [k, *image]),
    "the class last, rows numbered": (["id", *PIXEL_NAMES, "class"], lambda k, image: [7, *image, NAMES[k]]),
    "fractions": (["label", *PIXEL_NAMES], lambda k, image: [k, *(image / 255).astype(np.float32)]),
    "columns in another order": (["label", *(PIXEL_NAMES[i] for i in ORDER)], lambda k, image: [k, *image[ORDER]]),
    "rows and columns in the names": (
        ["label", *(f"{i}x{j}" for i in range(1, 29) for j in range(1, 29))], lambda k, image: [k, *image],
    ),
    "no head": (None, lambda k, image: [k, *image]),
}  # fmt: skip


@pytest.mark.parametrize("form", PIXEL_TABLES)
def test_tables_of_pixels(tmp_path, form):
    head, row = PIXEL_TABLES[form]
    rows = [row(label, image.ravel()) for label, image in zip(LABELS, GREY, strict=True)]
    names = NAMES if "last" in form else []
    for name in ("mnist_test.csv", "packed.csv.gz"):
        table(tmp_path / name, head, rows)
        same(robustdup.load_data(str(tmp_path / name)), names, pixels=GREY)


def test_tables_of_pixels_of_a_competition(tmp_path):
    rows = [[label, *image.ravel()] for label, image in zip(LABELS, GREY, strict=True)]
    table(tmp_path / "train.csv", ["label", *PIXEL_NAMES], rows)
    table(tmp_path / "test.csv", PIXEL_NAMES, [row[1:] for row in rows])
    data = robustdup.load_data(str(tmp_path), split="train")
    same(data, [], pixels=GREY)
    assert "test.csv has no labels" in " ".join(data.notes)
    with raises("no-label", UserError, "no labels"):
        robustdup.load_data(str(tmp_path / "test.csv"))
    table(tmp_path / "odd.csv", ["label", *PIXEL_NAMES[:700]], [row[:701] for row in rows])
    with raises("bad-data", UserError, "700 columns of pixels"):
        robustdup.load_data(str(tmp_path / "odd.csv"))


def test_all_pixels_in_one_cell_with_a_usage(tmp_path):
    words = ["Training", "PublicTest", "PrivateTest"]
    rows = [
        [label, " ".join(map(str, image.ravel())), words[i % 3]]
        for i, (label, image) in enumerate(zip(LABELS, GREY, strict=True))
    ]
    table(tmp_path / "fer2013.csv", ["emotion", "pixels", "Usage"], rows)
    for part, split in enumerate(("train", "validation", "test")):
        same(robustdup.load_data(str(tmp_path), split=split), [], LABELS[part::3], GREY[part::3])


# --- files of other programs ---


def test_structs_in_a_struct_of_matlab(tmp_path):
    part = {"images": GREY.reshape(N, -1), "labels": LABELS[:, None].astype(np.uint8), "writers": np.arange(N)[:, None]}
    sets = {"train": part, "test": part, "mapping": np.array([[k, 48 + k] for k in range(4)])}
    scipy.io.savemat(tmp_path / "emnist-digits.mat", {"dataset": sets})
    same(robustdup.load_data(str(tmp_path / "emnist-digits.mat")), [], pixels=GREY)


def test_cifar_for_matlab(tmp_path):
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        scipy.io.savemat(tmp_path / f"{name}.mat", {"data": cifar_rows(), "labels": LABELS[:, None].astype(np.uint8)})
    scipy.io.savemat(tmp_path / "batches.meta.mat", {"label_names": np.array(["plane"], dtype=object)})
    data = robustdup.load_data(str(tmp_path))
    same(data, data.class_names)
    assert len(robustdup.load_data(str(tmp_path), split="train")) == 2 * N


def test_hdf5_and_matlab_from_version_7_3(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "set.h5", "w") as file:
        file["train/images"], file["train/labels"] = PIXELS[:2], LABELS[:2]
        file["test/images"], file["test/labels"] = PIXELS, LABELS
        file["elsewhere"] = h5py.ExternalLink("other.h5", "images")
    same(robustdup.load_data(str(tmp_path / "set.h5")), [])
    with h5py.File(
        tmp_path / "new.mat", "w", userblock_size=512
    ) as file:  # what MATLAB calls (32, 32, 3, N) and (N, 1)
        file["X"], file["y"] = PIXELS.transpose(1, 2, 3, 0).T, LABELS[:, None].T + 1
    content = (tmp_path / "new.mat").read_bytes()
    (tmp_path / "new.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + content[512:])
    data = robustdup.load_data(str(tmp_path / "new.mat"))
    same(data, [])
    assert "as MATLAB counts" in " ".join(data.notes)
    (tmp_path / "broken.h5").write_bytes(b"weights")
    with raises("bad-file", UserError, "broken.h5"):
        robustdup.load_data(str(tmp_path / "broken.h5"))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with raises("unavailable", UserError, "needs h5py", "hdf5"):
        robustdup.load_data(str(tmp_path / "new.mat"), split="train")


def test_tables_of_arrow(tmp_path):
    columns = pa.table({"image": [png(image) for image in PIXELS], "label": pa.array(NAMES).take(pa.array(LABELS))})
    columns = columns.set_column(1, "label", columns["label"].dictionary_encode())  # a category of pandas
    pyarrow.feather.write_feather(columns, tmp_path / "test.feather")
    with pa.OSFile(str(tmp_path / "stream.arrow"), "wb") as sink, pa.ipc.new_stream(sink, columns.schema) as writer:
        writer.write_table(columns)
    for name in ("test.feather", "stream.arrow"):
        same(robustdup.load_data(str(tmp_path / name)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar-train.tfrecord-00000-of-00002", "TensorFlow records"),
        ("validation-00000-of-00128", "TensorFlow records"),
        ("data.mdb", "LMDB"),
        ("train.rec", "MXNet"),
        ("train.beton", "FFCV"),
        ("all.rar", "Unpack it first"),
        ("labels.xlsx", "as CSV"),
    ],
)
def test_kinds_that_are_not_read_are_named_with_what_to_do(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"\0" * 64)
    for spec in (tmp_path, tmp_path / name):
        with raises("bad-data", UserError, words, name):
            robustdup.load_data(str(spec))
