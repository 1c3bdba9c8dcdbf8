"""Sets whose classes stand in lists beside their pictures, in files of their own or in names, as their authors publish them."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import scipy.io

import robustdup
from robustdup.errors import UserError
from tests.data.test_layouts import LABELS, NAMES, PIXELS, N, same, save
from tests.raising import raises

pytestmark = pytest.mark.usefixtures("own_datasets_cache")
TEST = np.arange(N) % 3 != 0  # the others are of training
WORDS = [NAMES[label] for label in LABELS]


def lines(root, name, rows):
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(rows) + "\n")


def both(root, names, labels=LABELS):
    """Compare both splits with what was written."""
    for split, rows in (("test", TEST), ("train", ~TEST)):
        same(robustdup.load_data(str(root), split=split), names, labels[rows], PIXELS[rows])


def texts(words):
    """Return a column of text as MATLAB keeps it."""
    cells = np.empty((len(words), 1), dtype=object)
    cells[:, 0] = list(words)
    return cells


def test_flowers_with_classes_and_splits_by_place(tmp_path):
    for i, image in enumerate(PIXELS):
        save(image, tmp_path, "jpg", f"image_{i + 1:05d}.png")
    scipy.io.savemat(tmp_path / "imagelabels.mat", {"labels": LABELS[None] + 1})
    numbers = np.arange(1, N + 1)
    scipy.io.savemat(tmp_path / "setid.mat", {"trnid": numbers[~TEST], "valid": numbers[:0], "tstid": numbers[TEST]})
    both(tmp_path, "1234")
    (tmp_path / "jpg" / "image_00002.png").unlink()  # then the places of the others are not known
    with raises("no-column", UserError, "have no labels"):
        robustdup.load_data(str(tmp_path))


def test_cars_with_structs_whose_files_are_called_alike_in_both_splits(tmp_path):
    kind = np.dtype([("bbox", "O"), ("class", "O"), ("fname", "O")])
    (tmp_path / "devkit").mkdir()
    for split, rows, name in (("train", ~TEST, "cars_train_annos"), ("test", TEST, "cars_test_annos_withlabels")):
        structs = np.zeros((1, rows.sum()), kind)
        for place, (image, label) in enumerate(zip(PIXELS[rows], LABELS[rows], strict=True)):
            save(image, tmp_path, f"cars_{split}", f"{place + 1:05d}.png")
            structs[0, place] = (7, label + 1, f"{place + 1:05d}.png")
        scipy.io.savemat(tmp_path / "devkit" / f"{name}.mat", {"annotations": structs})
    scipy.io.savemat(tmp_path / "devkit" / "cars_meta.mat", {"class_names": texts(NAMES).T})
    both(tmp_path, NAMES)


def test_dogs_with_lists_of_files_and_one_of_all(tmp_path):
    paths = [f"{name}/{i}.png" for i, name in enumerate(WORDS)]
    for image, path in zip(PIXELS, paths, strict=True):
        save(image, tmp_path, "Images", path)
    for name, rows in (("file_list", np.ones(N, bool)), ("train_list", ~TEST), ("test_list", TEST)):
        some = [path for path, there in zip(paths, rows, strict=True) if there]
        content = {"file_list": texts(some), "annotation_list": texts(some), "labels": LABELS[rows][:, None] + 1}
        scipy.io.savemat(tmp_path / f"{name}.mat", content)
    both(tmp_path, NAMES)


@pytest.mark.parametrize("key", ["{}", "{:08x}-cafe"], ids=["CUB", "NABirds"])
def test_lists_that_are_joined_by_keys(tmp_path, key):
    """Of boxes and attributes too, which say no classes."""
    keys = [key.format(i + 1) for i in range(N)]
    paths = [f"{name}/{name}_{i}.png" for i, name in enumerate(WORDS)]
    for image, path in zip(PIXELS, paths, strict=True):
        save(image, tmp_path, "images", path)
    lines(tmp_path, "images.txt", map(" ".join, zip(keys, paths, strict=True)))
    lines(tmp_path, "image_class_labels.txt", [f"{k} {label + 1}" for k, label in zip(keys, LABELS, strict=True)])
    lines(tmp_path, "train_test_split.txt", [f"{k} {int(not test)}" for k, test in zip(keys, TEST, strict=True)])
    lines(tmp_path, "classes.txt", [f"{i + 1} {name} of (all)" for i, name in enumerate(NAMES)])
    lines(tmp_path, "bounding_boxes.txt", [f"{k} 60.0 27.0 325.0 304.0" for k in keys])
    lines(tmp_path, "attributes/attributes.txt", [f"{k} has::{k}" for k in keys[:4]])
    both(tmp_path, [f"{name} of (all)" for name in NAMES])


@pytest.mark.parametrize("beside", [True, False], ids=["of the archive", "of torchvision"])
def test_gtsrb_with_a_list_in_each_folder(tmp_path, beside):
    head, numbers = "Filename;Width;Height;Roi.X1;ClassId", ["00000", "00001", "00002", "00003"]
    train, test = tmp_path / "GTSRB" / "Training", tmp_path / "GTSRB" / "Final_Test" / "Images"
    for label, folder in enumerate(numbers):
        rows = np.flatnonzero(~TEST & (label == LABELS))
        for place, i in enumerate(rows):
            save(PIXELS[i], train, folder, f"{place:05d}.ppm")
        lines(train / folder, f"GT-{folder}.csv", [head, *(f"{p:05d}.ppm;9;9;1;{label}" for p in range(len(rows)))])
    for place, image in enumerate(PIXELS[TEST]):
        save(image, test, f"{place:05d}.ppm")
    rows = [f"{place:05d}.ppm;9;9;1;{label}" for place, label in enumerate(LABELS[TEST])]
    lines(test if beside else tmp_path, "GT-final_test.csv", [head, *rows])
    both(tmp_path, "0123")


def test_one_of_the_partitions_of_dtd_is_named(tmp_path):
    paths = [f"{name}/{name}_{i}.png" for i, name in enumerate(WORDS)]
    for image, path in zip(PIXELS, paths, strict=True):
        save(image, tmp_path, "images", path)
    for part in (1, 2):
        for split, rows in (("test", (part == 1) == TEST), ("train", (part == 1) != TEST)):
            some = [path for path, there in zip(paths, rows, strict=True) if there]
            lines(tmp_path, f"labels/{split}{part}.txt", some)
    with raises("bad-data", UserError, "two splits", "train"):
        robustdup.load_data(str(tmp_path))
    same(robustdup.load_data(str(tmp_path / "labels" / "test2.txt")), NAMES, LABELS[~TEST], PIXELS[~TEST])


def test_one_of_the_labels_of_aircraft_is_named(tmp_path):
    """Names of classes with blanks, behind numbers of pictures without endings."""
    for i, image in enumerate(PIXELS):
        save(image, tmp_path, "images", f"{1000 + i}.png")
    families = ["Boeing 707", "Boeing 747", "A300", "DC"]
    for kind, names in (("family", families), ("variant", ["707-1", "747-1", "A300B4", "DC-3"])):
        rows = [f"{1000 + i} {names[label]}" for i, label in enumerate(LABELS)]
        lines(tmp_path, f"images_{kind}_test.txt", rows)
    lines(tmp_path, "images_box.txt", [f"{1000 + i} 1 2 3 4" for i in range(N)])
    with raises("bad-data", UserError, "two classes", "images_family_test.txt"):
        robustdup.load_data(str(tmp_path))
    order = sorted(families)
    labels = np.array([order.index(families[label]) for label in LABELS])
    same(robustdup.load_data(str(tmp_path / "images_family_test.txt")), order, labels)


@pytest.mark.parametrize("named", [True, False])
def test_json_of_pictures_annotations_and_categories(tmp_path, named):
    """Keys of pictures in another order than the pictures; with two classes for one picture it is no such list."""
    for i, image in enumerate(PIXELS):
        save(image, tmp_path, "pictures", f"{i:03d}.png")
    content = {
        "images": [{"id": 50 - i, "file_name": f"{i:03d}.png"} for i in range(N)],
        "annotations": [{"id": i, "image_id": 50 - i, "category_id": int(label)} for i, label in enumerate(LABELS)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)] if named else [],
    }
    lines(tmp_path, "val2018.json", [json.dumps(content)])
    same(robustdup.load_data(str(tmp_path)), NAMES if named else "0123")
    content["annotations"].append({"id": N, "image_id": 50, "category_id": 3 - int(LABELS[0])})
    lines(tmp_path, "val2018.json", [json.dumps(content)])
    with raises("no-column", UserError, "have no labels"):
        robustdup.load_data(str(tmp_path))


@pytest.mark.parametrize(
    ("head", "row"),
    [
        ("img_id,img_filename,y,split,place", "{i},{path},{label},{number},0"),
        ("fname,label,is_test", "{path},{label},{truth}"),
        ("lesion_id,image_id,dx,age", "HAM_{i},{stem},{label},30"),
        ("id_code,diagnosis", "{stem},{label}"),
    ],
    ids=["WILDS", "fastai", "HAM10000", "APTOS"],
)
def test_columns_are_told_by_what_they_hold(tmp_path, head, row):
    """Parts of the set in folders are no classes, and names of columns are anybody's."""
    rows = []
    for i, (image, label, test) in enumerate(zip(PIXELS, LABELS, TEST, strict=True)):
        path = f"part_{1 + i % 2}/isic{i}.png"
        save(image, tmp_path, path)
        rows.append(row.format(i=i, path=path, stem=f"isic{i}", label=label, number=2 * test, truth=bool(test)))
    lines(tmp_path, "metadata.csv", [head, *rows])
    if "split" in head or "is_test" in head:
        both(tmp_path, "0123")
    else:
        same(robustdup.load_data(str(tmp_path)), "0123")


def test_numbers_alone_are_looked_for_in_the_split_that_the_list_is_of(tmp_path):
    """Kaggle's CIFAR-10: the same names in both splits, and an example of what is to be handed in."""
    for place, image in enumerate(PIXELS):
        save(image, tmp_path, "train", f"{place + 1}.png")
        save(255 - image, tmp_path, "test", f"{place + 1}.png")
    rows = [f"{place + 1},{word}" for place, word in enumerate(WORDS)]
    lines(tmp_path, "trainLabels.csv", ["id,label", *rows])
    lines(tmp_path, "sampleSubmission.csv", ["id,label", *(f"{place + 1},cat" for place in range(N))])
    same(robustdup.load_data(str(tmp_path), split="train"))
    (tmp_path / "trainLabels.csv").rename(tmp_path / "labels.csv")  # of which split it is, nobody knows
    with raises("bad-data", UserError, "labels.csv"):
        robustdup.load_data(str(tmp_path), split="train")


def test_names_of_numbered_classes_beside_a_list(tmp_path):
    for i, image in enumerate(PIXELS):
        save(image, tmp_path, "val_256", f"Places_{i}.png")
    lines(tmp_path, "places_val.txt", [f"Places_{i}.png {label}" for i, label in enumerate(LABELS)])
    lines(tmp_path, "categories_places.txt", [f"/{name[0]}/{name} {i}" for i, name in enumerate(NAMES)])
    same(robustdup.load_data(str(tmp_path)), [f"/{name[0]}/{name}" for name in NAMES])


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("VAL.TXT", "{path} {label}"), ("val.txt", "{label} {path}"), ("val.lst", "{i}\t{label}\t{path}"),
        ("val.csv", "/home/somebody/data/{path},{label}"), ("val.csv", "C:\\data\\old\\{path},{label}"),
    ],
    ids=["large letters", "class first", "MXNet", "paths of another machine", "of Windows"],
)  # fmt: skip
def test_lists_in_further_forms(tmp_path, name, row):
    """Pictures of the same name in two folders, so that the paths must be read to their beginning."""
    rows = []
    for i, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        path = f"{'ab'[i % 2]}/{i // 2}.png"
        save(image, tmp_path, path)
        rows.append(row.format(i=i, path=path, label=label))
    lines(tmp_path, name, rows)
    same(robustdup.load_data(str(tmp_path)), "0123")


def test_json_of_pairs(tmp_path):
    for i, image in enumerate(PIXELS):
        save(image, tmp_path, "all", f"{i}.png")
    lines(tmp_path, "labels.json", [json.dumps([[f"all/{i}.png", word] for i, word in enumerate(WORDS)])])
    same(robustdup.load_data(str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("classes.txt", "dog\ncat\nbee\nant", "another order"),
        ("class_to_idx.json", json.dumps({"dog": 0, "cat": 1, "bee": 2, "ant": 3}), "another order"),
        ("train.csv", "elsewhere/a.png,1\nelsewhere/b.png,2", "not there"),
        ("classes.txt", "ant\nbee\ncat\ndog", ""),
        ("README.txt", "pictures of 4 animals\nby somebody", ""),
    ],
)
def test_a_list_that_folders_are_not_numbered_by_is_told(tmp_path, name, content, said):
    for i, (image, word) in enumerate(zip(PIXELS, WORDS, strict=True)):
        save(image, tmp_path, word, f"{i}.png")
    before = robustdup.load_data(str(tmp_path)).notes
    (tmp_path / name).write_text(content)
    data = robustdup.load_data(str(tmp_path))
    same(data)
    more = [note for note in data.notes if note not in before]
    assert said in "".join(more)
    assert bool(more) == bool(said)


def test_an_accent_is_one_letter_or_two_and_the_same_class(tmp_path):
    """As unpacked on a Mac and elsewhere."""
    for i, (image, test) in enumerate(zip(PIXELS, TEST, strict=True)):
        folder = ("test", "caf\u00e9") if test else ("train", "cafe\u0301")
        save(image, tmp_path, *folder, f"{i}.png")
        save(image, tmp_path, folder[0], "zoo", f"{i}.png")
    for split in ("train", "test"):
        assert robustdup.load_data(str(tmp_path), split=split).class_names == ["caf\u00e9", "zoo"]


# --- names of files and folders ---


@pytest.mark.parametrize("form", ["{}.{}.png", "{}_{}.png", "images/{}__{}.png"])
def test_pictures_that_are_called_by_class_and_number(tmp_path, form):
    """Dogs-vs-Cats, Oxford-IIIT Pets, COIL; pictures of test that are called otherwise have no labels."""
    for i, (image, word) in enumerate(zip(PIXELS, WORDS, strict=True)):
        save(image, tmp_path, "train", form.format(word, i))
        save(image, tmp_path, "test1", f"{i}.png")
    data = robustdup.load_data(str(tmp_path), split="train")
    same(data)
    assert any("class and number" in note for note in data.notes)
    with raises("no-column", UserError, "have no labels"):
        robustdup.load_data(str(tmp_path))


@pytest.mark.parametrize("words", [("IMG", "DSC"), ("patient1", "patient2"), ("ISIC", "ISIC")])
def test_names_of_cameras_and_persons_are_no_classes(tmp_path, words):
    for i, image in enumerate(PIXELS):
        save(image, tmp_path, f"{words[i % 2]}_{i:04d}.png")
    with raises("no-column", UserError, "have no labels"):
        robustdup.load_data(str(tmp_path))


@pytest.mark.parametrize("folder", ["images_00{}", "HAM10000_images_part_{}", "batch{}", "all"])
def test_parts_of_a_set_and_an_only_folder_are_no_classes(tmp_path, folder):
    for i, image in enumerate(PIXELS):
        save(image, tmp_path, folder.format(i % 3), f"x{i}y.png")
    with raises("no-column", UserError, "have no labels"):
        robustdup.load_data(str(tmp_path))


def test_folders_of_letters_hold_those_of_classes(tmp_path):
    names = ["a/abbey", "b/bazaar/indoor", "b/bazaar/outdoor", "f/flat/outdoor"]
    for i, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        save(image, tmp_path, "SUN397", names[label], f"sun_{i}.png")
    same(robustdup.load_data(str(tmp_path)), [name[2:] for name in names])


def test_clutter_is_told(tmp_path):
    for i, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        save(image, tmp_path, "101_ObjectCategories", ["BACKGROUND_Google", *NAMES][label], f"{i}.png")
    assert any("BACKGROUND_Google" in note for note in robustdup.load_data(str(tmp_path)).notes)


# --- arrays ---


def arrays(root, suffix, name, values):
    """Write one array."""
    if suffix == "npz":
        np.savez(root / f"{name}.npz", values)
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(root / f"{name}.h5", "w") as file:
            file["x" if values.ndim == PIXELS.ndim and values.shape[-1] == 3 else "y"] = values


@pytest.mark.parametrize(
    ("suffix", "images", "labels"),
    [("npz", "kmnist-{}-imgs", "kmnist-{}-labels"), ("h5", "patch_split_{}_x", "patch_split_{}_y")],
    ids=["KMNIST", "PatchCamelyon"],
)
def test_labels_in_a_file_of_their_own(tmp_path, suffix, images, labels):
    for split, rows in (("test", TEST), ("train", ~TEST)):
        arrays(tmp_path, suffix, images.format(split), PIXELS[rows])
        arrays(tmp_path, suffix, labels.format(split), LABELS[rows].reshape(-1, 1, 1, 1))
    both(tmp_path, [])
    same(robustdup.load_data(str(tmp_path / f"{images.format('test')}.{suffix}")), [], LABELS[TEST], PIXELS[TEST])


@pytest.mark.parametrize("packed", ["", ".npz"])
def test_imagenet_in_small(tmp_path, packed):
    rows = PIXELS.transpose(0, 3, 1, 2).reshape(N, -1)
    for name, some in (("train_data_batch_1", ~TEST), ("val_data", TEST)):
        content = {"data": rows[some], "labels": LABELS[some] + 1}
        if packed:
            np.savez(tmp_path / name, **content)
        else:
            content["labels"] = content["labels"].tolist()
            (tmp_path / name).write_bytes(pickle.dumps(content))
    both(tmp_path, [])


@pytest.mark.parametrize("name", ["features", "dataset"])
def test_images_by_rarer_names(tmp_path, name):
    (tmp_path / "test.p").write_bytes(pickle.dumps({name: PIXELS, "labels": LABELS, "sizes": LABELS}))
    same(robustdup.load_data(str(tmp_path / "test.p")), [])
