"""Local folders: parquet files, imagefolder, save_to_disk; columns, pixel modes, sizes, and what is broken."""

from __future__ import annotations

import io
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from robustdup.config import DataOptions
from robustdup.data.sources import load_images
from robustdup.errors import UserError
from robustdup.plugins import Registry
from tests.raising import raises

RANDOM = np.random.default_rng(0)


pytestmark = pytest.mark.usefixtures("own_datasets_cache")


def read(folder, *, n=None, **options):
    return load_images(str(folder), DataOptions(**options), n=n, registry=Registry())


def pixels(*shape):
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def png(array, mode=None):
    content = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    (image.convert(mode) if mode else image).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": None}


def write(folder, images, labels, *, image="img", label="label", names=("a", "b", "c"), split="test", **more):
    folder.mkdir(exist_ok=True, parents=True)
    features = {
        image: datasets.Image(),
        label: datasets.ClassLabel(names=list(names)) if names else datasets.Value("int64"),
    }
    columns = {image: images, label: labels}
    for name, (values, feature) in more.items():
        columns[name], features[name] = values, feature
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    rows.to_parquet(folder / f"{split}.parquet")
    return rows


def test_parquet_pixels_labels_and_first_rows(tmp_path):
    arrays = [pixels(6, 5, 3) for _ in range(4)]
    write(tmp_path, [png(a) for a in arrays], [2, 0, 1, 1])
    data = read(tmp_path, n=3)
    expected = torch.stack([transforms.ToTensor()(a) for a in arrays[:3]])
    assert torch.equal(data.images, expected)
    assert data.labels.tolist() == [2, 0, 1]
    assert (data.n_total, data.selection, data.class_names) == (4, "first", ["a", "b", "c"])
    assert torch.equal(read(tmp_path / "test.parquet").images[:3], expected)


def test_only_chosen_rows_are_decoded_and_a_broken_image_is_named(tmp_path):
    broken = png(pixels(8, 8, 3))
    broken["bytes"] = broken["bytes"][:60]
    write(tmp_path, [png(pixels(8, 8, 3)), broken, {"bytes": b"<html>", "path": None}], [0, 1, 2])
    assert len(read(tmp_path, n=1)) == 1
    with raises("unreadable-image", UserError, "row 1"):
        read(tmp_path)
    with raises("unreadable-image", UserError, "row 1"):
        load_images(str(tmp_path), sample=3, registry=Registry())


def test_imagefolder_and_saved_to_disk(tmp_path):
    for split, label in (("train", "cat"), ("test", "cat"), ("test", "dog")):
        folder = tmp_path / "folder" / split / label
        folder.mkdir(parents=True)
        Image.new("L", (4, 4), 51 if label == "cat" else 204).save(folder / "1.png")
    data = read(tmp_path / "folder")
    assert data.class_names == ["cat", "dog"]
    assert dict(zip(data.labels.tolist(), data.images[:, 0, 0, 0].tolist(), strict=True)) == pytest.approx(
        {0: 0.2, 1: 0.8}
    )
    rows = write(tmp_path / "rows", [png(pixels(4, 4, 3))] * 2, [0, 2])
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "dict")
    rows.save_to_disk(tmp_path / "single")
    for folder in ("dict", "single"):
        assert read(tmp_path / folder).fingerprint == read(tmp_path / "rows").fingerprint
    with raises("bad-option", UserError):
        read(tmp_path / "dict", config="x")


def test_missing_split_and_columns_name_the_nearest(tmp_path):
    write(tmp_path, [png(pixels(4, 4))], [0], split="train")
    assert "'train', is taken" in read(tmp_path).notes[-1]
    with raises("unknown-split", UserError, "'tst'", "train"):
        read(tmp_path, split="tst")
    with raises("unknown-split", UserError, "'validation'", "train"):
        read(tmp_path, split="validation")
    with raises("unknown-image-column", UserError, "'img'"):
        read(tmp_path, split="train", image_column="imgs")
    with raises("unknown-label-column", UserError, "'label'"):
        read(tmp_path, split="train", label_column="lable")
    with raises("bad-column", UserError, "'label'", "ClassLabel"):
        read(tmp_path, split="train", image_column="label")
    with raises("bad-option", UserError, "'main'"):
        read(tmp_path, split="train", revision="main")


def test_ambiguous_and_unsuitable_columns(tmp_path):
    names = datasets.ClassLabel(names=["x", "y"])
    image = [png(pixels(4, 4))]
    write(tmp_path / "fine", image, [1], label="fine_label", coarse_label=([0], names))
    data = read(tmp_path / "fine")
    assert data.labels.tolist() == [1]
    assert "'fine_label'" in data.notes[0]
    write(tmp_path / "two", image, [1], label="colour", shape=([0], names))
    with raises("ambiguous-column", UserError, "colour, shape", "label_column"):
        read(tmp_path / "two")
    assert read(tmp_path / "two", label_column="shape").labels.tolist() == [0]
    write(tmp_path / "text", image, [1], label="colour", names=(), label_=(["red"], datasets.Value("string")))
    assert read(tmp_path / "text", label_column="label_").class_names == ["red"]
    with raises("no-column", UserError, "label_column"):
        read(tmp_path / "text")
    write(tmp_path / "negative", image, [-1], names=())
    with raises("bad-labels", UserError, "-1"):
        read(tmp_path / "negative")
    write(tmp_path / "none", image, [None], names=())
    with raises("no-label", UserError, "Row 0"):
        read(tmp_path / "none")


def test_parquet_written_without_datasets(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    array = pixels(4, 4, 3)
    pq.write_table(pa.table({"image": [png(array)["bytes"]], "label": [7]}), tmp_path / "test.parquet")
    data = read(tmp_path)
    assert torch.equal(data.images[0], transforms.ToTensor()(array))
    assert data.class_names == []


def one(tmp_path, name, image, **options):
    write(tmp_path / name, [png(image)], [0])
    return read(tmp_path / name, **options).images[0]


def test_pixel_modes(tmp_path):
    array = pixels(4, 4, 3)
    rgb = transforms.ToTensor()(array)
    assert torch.equal(one(tmp_path, "opaque", Image.fromarray(array).convert("RGBA")), rgb)
    palette = Image.fromarray(array).convert("P")
    assert torch.equal(one(tmp_path, "palette", palette), transforms.ToTensor()(palette.convert("RGB")))
    bilevel = Image.fromarray(array).convert("1")
    assert one(tmp_path, "bilevel", bilevel).unique().tolist() == [0, 1]
    deep = RANDOM.integers(0, 65536, (4, 4), dtype=np.uint16)
    expected = torch.from_numpy(deep.astype(np.float64) / 65535)
    assert (one(tmp_path, "deep", Image.fromarray(deep))[0] - expected).abs().max() < 1e-6
    assert read(tmp_path / "deep").notes == ()
    one(tmp_path, "twelve", Image.fromarray(deep // 16))
    assert "12-bit" in read(tmp_path / "twelve").notes[0]
    assert one(tmp_path, "grey", array, grey=True).shape == (1, 4, 4)
    see_through = Image.fromarray(array).convert("RGBA")
    see_through.putpixel((0, 0), (1, 2, 3, 0))
    on_white = rgb.clone()
    on_white[:, 0, 0] = 1
    assert torch.equal(one(tmp_path, "alpha", see_through), on_white)
    assert "1 pictures of" in read(tmp_path / "alpha").notes[0]
    assert "white is put behind" in read(tmp_path / "alpha").notes[0]
    write(tmp_path / "mixed", [png(pixels(4, 4)), png(array)], [0, 1])
    assert read(tmp_path / "mixed").images.shape == (2, 3, 4, 4)


def test_resize_and_crop_are_those_of_torchvision(tmp_path):
    arrays = [pixels(40, 60, 3), pixels(75, 50, 3)]
    write(tmp_path, [png(a) for a in arrays], [0, 1])
    with pytest.raises(
        UserError, match=r"differ in size: row 0 is 40x60, row 1 is 75x50 .* resize = 256 and crop = 224"
    ):
        read(tmp_path)
    expected = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(28), transforms.ToTensor()])
    data = read(tmp_path, resize=32, crop=28)
    assert torch.equal(data.images, torch.stack([expected(Image.fromarray(a)) for a in arrays]))
    with raises("unreadable-image", UserError, "crop = 45"):
        read(tmp_path, crop=45)
    with raises("bad-option", UserError, "crop = 40", "resize = 32"):
        read(tmp_path, resize=32, crop=40)
    with raises("bad-option", UserError, "resize"):
        read(tmp_path, resize=0)


def test_broken_and_missing_files_are_named(tmp_path):
    write(tmp_path, [png(pixels(32, 32, 3)) for _ in range(8)], [0] * 8)
    file = tmp_path / "test.parquet"
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"<html>404</html>"):
        file.write_bytes(content)
        with raises("bad-file", UserError, "test.parquet"):
            read(tmp_path)
    file.unlink()
    with raises("no-data", UserError):
        read(tmp_path)
    with raises("unknown-data", UserError, "nowhere", "owner/name"):
        read(tmp_path / "nowhere")
    (tmp_path / "notes.md").write_text("no")
    with raises("bad-data", UserError, "parquet"):
        read(tmp_path / "notes.md")


def test_empty_split(tmp_path):
    write(tmp_path, [], [])
    with raises("bad-file", UserError, "no rows"):
        read(tmp_path)


def shared(name):
    root = os.environ.get("ROBUSTDUP_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data"
    folder = Path(root) / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not here")
    return folder


def test_real_cifar10():
    data = read(shared("cifar10-lossless"), n=20)
    assert data.images.shape == (20, 3, 32, 32)
    assert data.labels.tolist()[:10] == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]  # the well-known first test labels
    assert data.class_names[3] == "cat"


def test_folders_of_one_name_with_configurations_are_told_apart(tmp_path):
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n    path: '*.parquet'\n---\n"
    images = [np.full((4, 4, 3), value, dtype=np.uint8) for value in (10, 200)]
    for place, image in zip(("a", "b"), images, strict=True):
        folder = tmp_path / place / "same"
        write(folder, [png(image)], [0])
        (folder / "README.md").write_text(card)
    assert [int(read(tmp_path / place / "same").images.max() * 255 + 0.5) for place in ("a", "b")] == [10, 200]
    folder = tmp_path / "a" / "same"
    write(folder, [png(images[1])], [0])  # and what was there before is not what is there now
    assert int(read(folder).images.max() * 255 + 0.5) == 200
