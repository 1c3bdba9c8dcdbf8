"""One plan, applied to datasets, streams and tensors: the same entries; written, read again, and pushed."""

from __future__ import annotations

import errno
import io
import pickle

import datasets
import mlcroissant
import numpy as np
import pytest
import torch
from PIL import Image

from robustdup.config import validate
from robustdup.config.duplication import DuplicateConfig, DuplicationOptions
from robustdup.duplication.apply import apply_plan
from robustdup.duplication.make import make_plan
from robustdup.duplication.plan import load_plan
from robustdup.errors import RunError, UserError
from robustdup.jobs.duplication import duplicate
from tests.raising import raises

N, OTHER = 30, 8
PIXELS = torch.randint(0, 256, (N + OTHER, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.arange(N + OTHER) % 3
FEATURES = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})

CASES = {
    "whole_set": {"scheme": "whole_set", "copies": 2},
    "replace": {"scheme": "uniform", "dose": 0.3, "mode": "replace"},
    "near": {"scheme": "uniform", "dose": 0.4, "copies": 2, "near": "crop_resize,noise"},
    "often": {"scheme": "single", "copies": 700},
    "conflicting": {"scheme": "conflicting", "fraction": 0.5, "copies": 3},
    "conflicting often": {"scheme": "conflicting", "fraction": 0.1, "copies": 300},
    "leak": {"scheme": "leak", "fraction": 0.5, "copies": 2},
}


def table(rows):
    images = [Image.fromarray(PIXELS[row].permute(1, 2, 0).numpy()) for row in rows]
    return datasets.Dataset.from_dict({"img": images, "label": LABELS[rows].tolist()}, features=FEATURES)


@pytest.fixture(scope="module")
def source():
    return table(list(range(N)))


@pytest.fixture(scope="module")
def other():
    return table(list(range(N, N + OTHER)))


def plan_of(name):
    options = DuplicationOptions(**CASES[name])
    return make_plan(LABELS[:N], options, seed=2, n_other=OTHER if options.scheme == "leak" else 0)


def rows_of(data):
    """Return {(source row, copy): (pixels, label)} of what was iterated over."""
    return {(row["source_index"], row["copy"]): (np.asarray(row["img"]).tobytes(), row["label"]) for row in data}


def entry_pixels(plan, pixels, entries, other=None):
    """Return the images of some entries (k,) of the plan as uint8 tensors: what every other form of them must agree with."""
    source, copy = plan.source_index[entries], plan.copy[entries]
    images = (pixels if other is None else torch.cat([pixels, other]))[source]
    if plan.near is not None:
        images[copy > 0] = plan.near(images[copy > 0], source[copy > 0], copy[copy > 0])
    return images


@pytest.mark.parametrize("name", CASES)
def test_datasets_streams_and_tensors_agree(name, source, other):
    plan = plan_of(name)
    leaks = name == "leak"
    pixels = entry_pixels(plan, PIXELS[:N], torch.arange(len(plan)), PIXELS[N:] if leaks else None)
    labels = plan.entry_labels(LABELS[:N], LABELS[N:])
    pairs = zip(plan.source_index.tolist(), plan.copy.tolist(), strict=True)
    expected = {
        pair: (image.permute(1, 2, 0).contiguous().numpy().tobytes(), label)
        for pair, image, label in zip(pairs, pixels, labels.tolist(), strict=True)
    }
    made = apply_plan(plan, source, other=other if leaks else None)
    assert made["source_index"][:] == plan.source_index.tolist()  # in the order of the plan
    assert rows_of(made) == expected
    assert rows_of([made[0], made[len(made) - 1]]).items() <= expected.items()
    batch = made[list(range(0, len(made), 3))]
    assert batch["copy"] == plan.copy[::3].tolist()
    streams = source.to_iterable_dataset(num_shards=3), other.to_iterable_dataset() if leaks else None
    streamed = list(apply_plan(plan, streams[0], other=streams[1]))
    assert len(streamed) == len(plan)
    assert rows_of(streamed) == expected


def test_a_source_with_an_index_of_its_own_is_numbered_as_it_comes(source):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    shuffled = source.select(order.tolist())
    plan = plan_of("replace")
    made = apply_plan(plan, shuffled)
    assert made["source_index"][:] == plan.source_index.tolist()
    assert made["label"][:] == LABELS[order][plan.source_index].tolist()
    twice = source.select([0, 0, *range(2, N)])
    assert apply_plan(plan, twice)["label"][:] == LABELS[torch.tensor([0, 0, *range(2, N)])][plan.source_index].tolist()


def test_a_shuffled_stream_is_numbered_by_its_column(source):
    plan = plan_of("whole_set")
    numbered = source.add_column("row", list(range(N))).to_iterable_dataset().shuffle(seed=1, buffer_size=N)
    found = rows_of(apply_plan(plan, numbered, index_column="row"))
    assert found == rows_of(apply_plan(plan, source))
    part = rows_of(apply_plan(plan, numbered.take(10), index_column="row"))
    assert len(part) == 30
    assert part.items() <= found.items()
    with raises("wrong-plan", UserError, "30", "10", "index_column"):
        list(apply_plan(plan, source.to_iterable_dataset().take(10)))


def test_no_image_is_copied_or_written(tmp_path, source):
    source.save_to_disk(tmp_path / "data")
    disk = datasets.load_from_disk(str(tmp_path / "data"))
    before = {path: path.stat().st_size for path in tmp_path.rglob("*")}
    made = apply_plan(plan_of("whole_set"), disk)
    assert len(made) == 3 * N
    assert {path: path.stat().st_size for path in tmp_path.rglob("*")} == before
    assert made.cache_files[0]["filename"] == disk.cache_files[0]["filename"]
    addresses = {
        chunk.field("bytes").buffers()[2].address for chunk in made.data.column("img").chunks if len(chunk)
    } - {chunk.field("bytes").buffers()[2].address for chunk in disk.data.column("img").chunks}
    assert not addresses  # every view is of the one file in memory
    again = pickle.loads(pickle.dumps(made))
    assert rows_of(again) == rows_of(made)


def test_what_people_do_with_a_dataset_goes_on_working(source):
    plan = plan_of("near")
    made = apply_plan(plan, source)
    originals = made.filter(lambda row: row["copy"] == 0)
    assert [np.asarray(image).tobytes() for image in originals["img"]] == [
        np.asarray(image).tobytes() for image in source["img"]
    ]
    assert made.with_format("torch")[len(made) - 1]["copy"].item() == int(plan.copy[-1])
    assert len(made.shuffle(seed=0).select(range(7))) == 7
    assert apply_plan(plan, source.with_format("numpy")).format["type"] == "numpy"
    assert apply_plan(plan, source)._fingerprint == made._fingerprint
    both = apply_plan(plan, datasets.DatasetDict(train=source, test=source))
    assert {name: len(split) for name, split in both.items()} == {"train": len(plan), "test": N}


@pytest.mark.parametrize("column", ["copy", "source_index"])
def test_columns_that_are_there_already_are_refused(column, source):
    with raises("already-duplicated", UserError, column):
        apply_plan(plan_of("whole_set"), source.add_column(column, [0] * N))
    with raises("already-duplicated", UserError, column):
        apply_plan(plan_of("whole_set"), source.add_column(column, [0] * N).to_iterable_dataset())


def test_a_plan_for_other_data_is_refused(source):
    with raises("wrong-plan", UserError, "30", "29"):
        apply_plan(plan_of("whole_set"), source.select(range(29)))
    with raises("wrong-plan", UserError, "`other`"):
        apply_plan(plan_of("leak"), source)
    with raises("bad-data", UserError, "list"):
        apply_plan(plan_of("leak"), [1, 2])


def config(**keys):
    return validate(DuplicateConfig, {"data": "builtin:digits", **keys})


@pytest.mark.parametrize(
    "keys",
    [
        {"scheme": "class_skewed", "classes": "3", "dose": 0.2, "copies": 3},
        {"scheme": "uniform", "fraction": 0.1, "near": "flip"},
        {"scheme": "leak", "fraction": 0.2, "mode": "replace"},
        {"scheme": "conflicting", "fraction": 0.1, "other_splits": False},
    ],
)
def test_load_dataset_reads_what_was_written(tmp_path, keys):
    done = duplicate(config(**keys), str(tmp_path / "out"), command="robustdup data duplicate …")
    back = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    train = back["train"]
    plan = load_plan(tmp_path / "out")
    assert plan.hash == done.plan.hash
    assert train["source_index"][:] == plan.source_index.tolist()
    assert train["copy"][:] == plan.copy.tolist()
    assert train.features["label"].names == [str(digit) for digit in range(10)]
    assert {name: len(split) for name, split in back.items()} == done.rows
    assert ("test" in back) == keys.get("other_splits", True)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for text in (plan.hash, "robustdup data duplicate …", f"| entries | {len(plan):,} |", "17 grey levels"):
        assert text in card
    again = duplicate(config(**keys), str(tmp_path / "out"), overwrite=True)
    assert again.plan.hash == plan.hash
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "out"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of rdflib and pandas, called by mlcroissant
def test_croissant_metadata_is_valid_and_gives_the_rows(tmp_path, source, monkeypatch):
    """mlcroissant, the reference implementation, checks the metadata, the files' hashes, and reads the rows."""
    monkeypatch.setattr("robustdup.duplication.write._FILE_BYTES", 6000)  # so that a split takes several files
    source.to_parquet(tmp_path / "in" / "train.parquet")
    keys = {"data": str(tmp_path / "in"), "scheme": "uniform", "dose": 0.4}
    done = duplicate(config(**keys), str(tmp_path / "out"))
    metadata = mlcroissant.Dataset(jsonld=str(tmp_path / "out" / "croissant.json"))
    assert metadata.metadata.ctx.issues.errors == set()
    parts = metadata.metadata.record_sets
    assert len(parts) > 1
    rows = []
    for part in parts:
        for row in metadata.records(record_set=part.id):
            values = {key.rsplit("/", 1)[1]: value for key, value in row.items()}
            rows.append((values["source_index"], values["copy"], values["label"], np.asarray(values["img"]).tobytes()))
    with_labels = done.plan.entry_labels(LABELS[:N])
    pixels = entry_pixels(done.plan, PIXELS[:N], torch.arange(len(done.plan))).permute(0, 2, 3, 1).contiguous().numpy()
    expected = zip(done.plan.source_index.tolist(), done.plan.copy.tolist(), with_labels.tolist(), pixels, strict=True)
    assert rows == [(index, copy, label, image.tobytes()) for index, copy, label, image in expected]


def damaged(tmp_path, rows):
    """Write a split of six images of two sizes and modes, of which these rows are truncated."""
    content = []
    for row in range(6):
        buffer = io.BytesIO()
        size, mode = ((8, 8), "RGB") if row % 2 else ((10, 6), "L")
        pixels = np.random.default_rng(row).integers(
            0, 256, (*size[::-1], 3) if mode == "RGB" else size[::-1], np.uint8
        )
        Image.fromarray(pixels).save(buffer, "PNG")
        data = buffer.getvalue()
        content.append({"bytes": data[: len(data) // 2] if row in rows else data, "path": None})
    made = {"img": content, "label": [0, 1, 0, 1, 0, 1]}
    datasets.Dataset.from_dict(made, features=FEATURES).to_parquet(tmp_path / "train.parquet")
    return str(tmp_path / "train.parquet")


def test_broken_images_are_left_out_of_near_copies_and_named(tmp_path):
    keys = {"data": damaged(tmp_path, {1, 4}), "scheme": "whole_set", "copies": 2}
    exact = duplicate(config(**keys), str(tmp_path / "exact"))
    assert len(exact.plan) == 18
    note = "2 of the copied images cannot be read; they are written as they are, with their copies: rows 1, 4."
    assert note in exact.notes
    assert note in (tmp_path / "exact" / "README.md").read_text(encoding="utf-8")
    trusted = duplicate(config(**keys, check_images=False), str(tmp_path / "trusted"))
    assert trusted.notes == ()
    assert trusted.plan.hash == exact.plan.hash
    near = duplicate(config(**keys, near="flip"), str(tmp_path / "near"))
    assert len(near.plan) == 14
    note = "2 images cannot be read, so that their 4 near copies were left out: rows 1, 4."
    assert note in near.notes
    assert note in (tmp_path / "near" / "README.md").read_text(encoding="utf-8")
    back = datasets.load_dataset(str(tmp_path / "near"), cache_dir=str(tmp_path / "cache"))["train"]
    sizes = [(row["img"].size, row["img"].mode) for row in back.select(range(6, 14))]
    assert sorted(set(sizes)) == [((8, 8), "RGB"), ((10, 6), "L")]  # mixed sizes and modes are kept


def test_nothing_is_overwritten_unasked_and_nothing_is_left_of_a_failure(tmp_path, monkeypatch):
    keys = {"scheme": "uniform", "dose": 0.1}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with raises("not-empty", UserError, "--overwrite"):
        duplicate(config(**keys), str(tmp_path / "mine"))
    with raises("not-empty", UserError, "README.md"):
        duplicate(config(**keys), str(tmp_path / "mine"), overwrite=True)
    with raises("bad-value", UserError, "hub:owner/name"):
        duplicate(config(**keys), "hub:name")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("robustdup.duplication.write._write_parquet", full)
    with raises("not-written", RunError, "No space left on the disk"):
        duplicate(config(**keys), str(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_scores_come_from_a_column_or_a_model(tmp_path):
    rows = datasets.load_dataset("parquet", data_files=damaged(tmp_path, set()), cache_dir=str(tmp_path / "c"))["train"]
    rows.add_column("margin", [5.0, 1.0, 4.0, 0.5, 3.0, 2.0]).to_parquet(tmp_path / "scored.parquet")
    keys = {"data": str(tmp_path / "scored.parquet"), "scheme": "hardest", "fraction": 0.34}
    done = duplicate(config(**keys, score_column="margin"), str(tmp_path / "out"))
    assert done.plan.source_index[done.plan.copy > 0].sort().values.tolist() == [1, 3]
    with raises("unknown-score-column", UserError, "'margin'"):
        duplicate(config(**keys, score_column="margins"), str(tmp_path / "no"))
    with raises("bad-score", UserError):
        duplicate(config(**keys, score_column="img"), str(tmp_path / "no"))
    hard, easy = (
        duplicate(
            config(scheme=scheme, fraction=0.05, score_model="builtin:digits-robust"), str(tmp_path / scheme)
        ).plan
        for scheme in ("hardest", "easiest")
    )
    assert not set(hard.source_index[hard.copy > 0].tolist()) & set(easy.source_index[easy.copy > 0].tolist())


def test_a_folder_of_the_same_name_is_not_taken_for_the_one_in_the_cache(tmp_path):
    for number, dose in enumerate((0.1, 0.2)):
        folder = tmp_path / str(number) / "out"
        made = duplicate(config(scheme="uniform", dose=dose), str(folder))
        back = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
        assert len(back["train"]) == len(made.plan)
    duplicate(config(scheme="uniform", dose=0.3), str(folder), overwrite=True)
    again = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert len(again["train"]) == len(load_plan(folder))
