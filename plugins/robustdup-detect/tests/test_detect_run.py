"""Duplicates found in datasets: exact and near, within and across splits, resumed, shared out, written without them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from detect_pictures import NAMES, detect, encoded, found, pictures, write
from PIL import Image
from robustdup_detect.groups import cluster, conflicting, keeping_order, leaving
from robustdup_detect.pairlist import Pairs, turned_round
from robustdup_detect.record import load_duplicates, load_pairs
from robustdup_detect.search import build_index, nearest, nearest_by_index
from robustdup_detect.store import Store
from robustdup_detect.transforms import change, changed_copies
from robustdup_detect.work import ShardWorker

from robustdup.errors import RunError, UserError
from robustdup.records import RECORD_FILE
from robustdup.records.folder import STATE
from tests.raising import raises

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


@pytest.fixture
def planted(tmp_path):
    """50 pictures; 50 and 54 are row 3 again (with another label), 51 is row 4, 52 row 5 cropped, 53 row 6 mirrored."""
    images = pictures(50)
    rng = np.random.default_rng(0)
    more = [images[3], images[4], change("crop", images[5:6], rng)[0], images[6].flip(-1), images[3]]
    labels = [i % 3 for i in range(50)] + [1, 1, 2, 0, 1]
    return write(tmp_path / "data", images=[encoded(image) for image in [*images, *more]], labels=labels)


def test_within_a_split(planted, tmp_path):
    record = detect(planted, tmp_path / "run")
    assert found(tmp_path / "run") == {
        (3, 50, "exact"), (3, 54, "exact"), (4, 51, "exact"), (5, 52, "near"), (6, 53, "near"),
    }  # fmt: skip
    assert (record.n, record.n_exact, record.n_near, record.n_mirrored) == (55, 3, 2, 1)
    assert (record.n_clusters, record.n_rows, record.n_redundant) == (4, 9, 5)
    assert record.n_conflicts == 1
    assert {(pair.a.row, pair.b.row) for pair in record.pairs if pair.conflict} == {(3, 50), (3, 54)}
    mirrored = next(pair for pair in record.pairs if pair.mirrored)
    assert (mirrored.a.row, mirrored.b.row, mirrored.change) == (6, 53, "mirrored")
    assert not record.expected.calibrated
    assert load_duplicates(tmp_path / "run") == record


def test_every_picture_that_the_record_names_is_there(planted, tmp_path):
    record = detect(planted, tmp_path / "run")
    for pair in record.pairs:
        for side in (pair.a, pair.b):
            assert Image.open(tmp_path / "run" / side.file).size == (32, 32)
    assert record.sheets == ["sheets/pairs-001.png"]
    assert Image.open(tmp_path / "run" / record.sheets[0]).width > 6 * 2 * 96


def test_pictures_of_large_clusters_are_kept_whatever_pairs_are_shown(planted, tmp_path):
    record = detect(planted, tmp_path / "run", pictures=1)
    assert len(record.pairs) == 1
    files = [image.file for found in record.clusters for image in found.images]
    assert len(files) == 9
    assert all(Image.open(tmp_path / "run" / file).size == (32, 32) for file in files)
    none = detect(planted, tmp_path / "none", pictures=0)
    assert {image.file for found in none.clusters for image in found.images} == {None}
    assert not (tmp_path / "none" / "images").exists()


def test_classes_share_what_leaves(planted, tmp_path):
    """Rows 50 to 54, of classes 1, 1, 2, 0, 1, leave; 3, 4, 5 and 6, of classes 0, 1, 2, 0, are what they repeat."""
    record = detect(planted, tmp_path / "run", keep="first")
    counts = {found.name: (found.n, found.n_clustered, found.n_redundant) for found in record.classes}
    assert counts == {NAMES[0]: (18, 3, 1), NAMES[1]: (20, 4, 3), NAMES[2]: (17, 2, 1)}


def test_across_splits_both_ways_round(tmp_path):
    images = pictures(60)
    moved = torch.roll(images[:12], 2, 3)
    data = write(tmp_path / "data", images=[encoded(image) for image in images])
    write(
        tmp_path / "data", split="test", images=[encoded(image) for image in [*moved, images[20], *pictures(7, seed=9)]]
    )
    there = detect(data, tmp_path / "there", against="test")
    back = detect(data, tmp_path / "back", split="test", against="train")
    expected = {(i, i, "near") for i in range(12)} | {(20, 12, "exact")}
    assert found(tmp_path / "there") == expected
    assert found(tmp_path / "back") == {(b, a, kind) for a, b, kind in expected}
    assert (there.n, there.n_against, there.n_redundant) == (60, 20, 13)
    assert back.n_redundant == 13
    shift = {name: load_pairs(tmp_path / name).to_pydict()["shift_x"] for name in ("there", "back")}
    assert np.median(shift["there"]) == pytest.approx(2 / 16, abs=0.02)
    assert np.median(shift["back"]) == pytest.approx(-2 / 16, abs=0.02)


@pytest.mark.parametrize(
    ("keep", "out"), [("first", {50, 51, 52, 53, 54}), ("consistent", {3, 54, 51, 52, 53}), ("quality", None)]
)
def test_a_deduplicated_dataset_is_read_by_load_dataset(planted, tmp_path, keep, out):
    before = {path: path.read_bytes() for path in Path(planted).iterdir()}
    record = detect(planted, tmp_path / "run", to=str(tmp_path / "less"), keep=keep)
    rows = datasets.load_dataset(str(tmp_path / "less"), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(rows) == 55 - record.n_redundant
    if out is not None:
        assert set(rows["source_index"]) == set(range(55)) - out
    assert rows.features["label"].names == NAMES
    assert rows[0]["img"].size == (32, 32)
    assert {path: path.read_bytes() for path in Path(planted).iterdir()} == before
    assert json.loads((tmp_path / "less" / "duplicates.json").read_text())["n_clusters"] == 4


def test_broken_images_are_skipped_listed_and_counted(tmp_path):
    images = [encoded(image) for image in pictures(30)]
    images[4] = {"bytes": b"no image", "path": None}
    images[9] = {"bytes": encoded(pictures(1, size=200)[0])["bytes"][:500], "path": None}
    record = detect(write(tmp_path / "data", images=[*images, images[0]]), tmp_path / "run")
    assert [(bad.split, bad.row) for bad in record.unreadable] == [("train", 4), ("train", 9)]
    assert record.unreadable[0].reason == "no image file of a known kind"
    assert record.unreadable[1].reason.startswith("image file is truncated")
    assert record.n_unreadable == 2
    assert record.n == 29
    assert found(tmp_path / "run") == {(0, 30, "exact")}


def test_sizes_and_modes_mix(tmp_path):
    images = pictures(40, size=64)
    whole = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    mixed = [whole[0].resize((48, 40)), whole[1].convert("RGBA"), whole[2].convert("L"), whole[2].convert("LA")]
    mixed += [whole[3].convert("P", palette=Image.Palette.ADAPTIVE), whole[4]]
    rows = [encoded(image) for image in [*whole, *mixed]]
    record = detect(write(tmp_path / "data", images=rows), tmp_path / "run")
    kinds = {(a, b): kind for a, b, kind in found(tmp_path / "run")}
    assert record.n_unreadable == 0
    assert kinds[1, 41] == "exact"  # opaque, so the same colours
    assert kinds[42, 43] == "exact"
    assert kinds[4, 45] == "exact"
    assert kinds[0, 40] == "near"
    assert kinds[3, 44] == "near"


def test_a_killed_run_goes_on_where_it_was(planted, tmp_path, monkeypatch):
    whole = detect(planted, tmp_path / "whole")
    calls = []
    work = ShardWorker.__call__

    def dying(self, task):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(task)
        return work(self, task)

    monkeypatch.setattr(ShardWorker, "__call__", dying)
    with pytest.raises(KeyboardInterrupt):
        detect(planted, tmp_path / "run")
    assert not (tmp_path / "run" / RECORD_FILE).exists()
    read = []
    real = ShardWorker.read

    def counting(self, store, task):
        read.append(task.start)
        return real(self, store, task)

    monkeypatch.setattr(ShardWorker, "__call__", work)
    monkeypatch.setattr(ShardWorker, "read", counting)
    resumed = detect(planted, tmp_path / "run", resume=True)
    assert read == [40]  # rows 0-39 had been read
    assert resumed.pairs == whole.pairs
    with pytest.raises(UserError, match="was started with shard=20, not 50"):
        detect(planted, tmp_path / "run", resume=True, shard=50)


@pytest.mark.parametrize("labels", [None, "text"])
def test_data_without_labels_will_do(planted, tmp_path, labels):
    """Duplicates need none; what is left out is said."""
    rows = datasets.Dataset.from_parquet(f"{planted}/train.parquet", cache_dir=str(tmp_path / "cache"))
    names = [NAMES[label] for label in rows["label"]]
    rows = rows.remove_columns("label")
    (tmp_path / "bare").mkdir()
    (rows if labels is None else rows.add_column("label", names)).to_parquet(tmp_path / "bare" / "train.parquet")
    record = detect(str(tmp_path / "bare"), tmp_path / "run", to=str(tmp_path / "less"))
    detect(planted, tmp_path / "labelled")
    assert found(tmp_path / "run") == found(tmp_path / "labelled")
    if labels is None:
        assert (record.n_conflicts, record.class_names) == (0, [])
        assert all(pair.a.label is None for pair in record.pairs)
        assert [note for note in record.notes if "(train) has no labels: conflicts among them cannot be told." in note]
    else:
        assert (record.n_conflicts, record.class_names) == (1, NAMES)
    less = datasets.load_dataset(str(tmp_path / "less"), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(less) == 50
    assert less.column_names == ["img", *(["label"] if labels else []), "source_index"]
    if labels is None:
        with pytest.raises(UserError, match="consistent"):
            detect(str(tmp_path / "bare"), tmp_path / "none", keep="consistent")


@pytest.mark.parametrize("file", ["finder.safetensors", "score.json", "pairs-20.safetensors", "pairs.parquet"])
def test_a_disk_that_fills_up_midway_is_one_message_and_the_run_goes_on(planted, tmp_path, monkeypatch, file):
    whole = detect(planted, tmp_path / "whole")
    replaced = os.replace

    def full(source, target):
        if Path(target).name == file:
            raise OSError(errno.ENOSPC, "No space left on device")
        replaced(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match=rf"{file}.*No space left on device"):
        detect(planted, tmp_path / "run")
    monkeypatch.undo()
    assert not list((tmp_path / "run").rglob("*.part"))
    assert detect(planted, tmp_path / "run", resume=True).pairs == whole.pairs


@pytest.mark.slow
@pytest.mark.parametrize("marker", ["read-32", "embed-16", "compare-32"])
def test_a_command_that_is_killed_goes_on_where_it_was(tmp_path, marker):
    images = pictures(300)
    copies, _ = changed_copies(images[:63], np.random.default_rng(0))
    data = write(tmp_path / "data", images=[encoded(image) for image in [*images, *copies]])
    words = [sys.executable, "-m", "robustdup", "data", "detect", data, "--shard", "16", "--workers", "1"]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    quietly = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*words, "--out", str(tmp_path / "whole")], check=True, **quietly)
    run = subprocess.Popen([*words, "--out", str(tmp_path / "run")], **quietly)
    done = tmp_path / "run" / STATE / "train" / "done" / f"{marker}.json"
    while not done.exists() and run.poll() is None:
        time.sleep(0.001)
    run.kill()
    assert run.wait() == -9
    assert not (tmp_path / "run" / RECORD_FILE).exists()
    again = [*words[:4], "detect", "--resume", str(tmp_path / "run")]
    subprocess.run(again, check=True, **quietly)
    assert load_pairs(tmp_path / "run").equals(load_pairs(tmp_path / "whole"))
    assert load_duplicates(tmp_path / "run").expected == load_duplicates(tmp_path / "whole").expected


def test_two_workers_find_what_one_finds(planted, tmp_path):
    assert detect(planted, tmp_path / "two", workers=2).pairs == detect(planted, tmp_path / "one").pairs


@pytest.mark.slow
def test_two_actors_of_a_ray_cluster_find_what_one_process_finds(tmp_path):
    """All three kinds of work, with a calibration and an index, on a cluster of this machine."""
    pytest.importorskip("ray")
    images = pictures(300)
    copies, _ = changed_copies(images[:63], np.random.default_rng(0))
    data = write(tmp_path / "data", images=[encoded(image) for image in [*images, *copies, images[9]]])
    write(tmp_path / "data", split="test", images=[encoded(image) for image in [*copies[40:60], *pictures(30, seed=8)]])
    for name, settings in (("within", {}), ("across", {"against": "test"}), ("index", {"search": "faiss"})):
        if name == "index" and not find_spec("faiss"):
            continue
        one = detect(data, tmp_path / f"{name}-one", shard=50, **settings)
        two = detect(data, tmp_path / f"{name}-ray", shard=50, workers=2, runner="ray", **settings)
        assert load_pairs(tmp_path / f"{name}-ray").equals(load_pairs(tmp_path / f"{name}-one"))
        assert two.pairs == one.pairs
        assert two.expected == one.expected
        assert one.expected.calibrated == (name != "across")  # 50 images are too few
        assert one.n_near >= 18


def test_shards_do_not_matter(planted, tmp_path):
    assert detect(planted, tmp_path / "a", shard=16).pairs == detect(planted, tmp_path / "b", shard=1000).pairs


@pytest.mark.parametrize(
    ("settings", "code", "named"),
    [
        ({"split": "trian"}, "unknown-split", "Did you mean 'train'"),
        ({"against": "train"}, "bad-value", "'train'"),
        ({"image_column": "imgs"}, "unknown-image-column", "Did you mean 'img'"),
        ({"against": "test"}, "unknown-split", "'test'"),
    ],
)
def test_mistakes_are_explained(planted, tmp_path, settings, code, named):
    with raises(code, UserError, named):
        detect(planted, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_nothing_readable_is_one_message(tmp_path):
    data = write(tmp_path / "data", images=[{"bytes": b"x", "path": None}] * 3)
    with raises("no-data", UserError, "3 images"):
        detect(data, tmp_path / "run")


def test_the_source_is_never_written_over(planted, tmp_path):
    for place in (planted, f"{planted}/inside"):
        with pytest.raises(UserError, match="not empty|must not lie in"):
            detect(planted, tmp_path / "run", to=place)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_message(tmp_path):
    store = Store(tmp_path / "store", 10)
    store.create()
    path = tmp_path / "store" / "hashes.bin"
    path.unlink()
    path.symlink_to("/dev/full")
    with raises("not-written", RunError, "No space left on device", "--resume"):
        store.write("hashes", 0, np.zeros((10, 16)))


def test_clusters_do_not_chain_unlike_images_together():
    """0 ~ 4 ~ 5, and 0 and 5 are unlike; 1 and 2 are identical, and 2 ~ 3."""
    pairs = np.array([4, 1, 5, 2]), np.array([0, 2, 4, 3]), np.array([0.9, 1.0, 0.99, 0.8])
    assert cluster(7, *pairs).tolist() == [0, 1, 1, 1, 0, -1, -1]
    assert cluster(7, *pairs, order=np.array([5, 4, 3, 2, 1, 0, 6])).tolist() == [-1, 0, 0, 0, 1, 1, -1]
    # 2 joins the representative that it is most like, whichever comes first.
    assert cluster(3, np.array([0, 1]), np.array([2, 2]), np.array([0.7, 0.8])).tolist() == [-1, 0, 0]
    assert cluster(5, np.array([3, 0]), np.array([4, 1]), np.array([0.9, 0.9])).tolist() == [0, 0, -1, 1, 1]
    nothing = np.array([], dtype=np.int64)
    assert cluster(2, nothing, nothing, nothing).tolist() == [-1, -1]


def test_what_leaves_is_a_duplicate_of_what_stays():
    """In any set of pairs, by any order; and as few rows are kept as there are clusters and rows alone."""
    rng = np.random.default_rng(0)
    for keep in ("first", "quality"):
        a, b = rng.integers(0, 30, (2, 40))
        a, b = a[a != b], b[a != b]
        pixels, content = rng.integers(1, 4, (2, 30))
        clusters = cluster(30, a, b, np.full(len(a), 0.9), keeping_order(pixels, content, keep))
        out = leaving(clusters, np.zeros(30, np.int64), pixels, content, keep)
        paired = {(int(one), int(other)) for one, other in [*zip(a, b, strict=True), *zip(b, a, strict=True)]}
        for row in out.tolist():
            (stays,) = set(np.flatnonzero(clusters == clusters[row]).tolist()) - set(out.tolist())
            assert (row, stays) in paired


def test_a_chain_of_pictures_is_no_cluster(tmp_path):
    """Somebody says that A is B and B is C, but A is not C: clusters and the written dataset keep A and C."""
    decided = tmp_path / "pairs.csv"
    decided.write_text("a,b,duplicate\n0,1,true\n1,2,true\n0,2,false\n")
    rows = [encoded(image) for image in pictures(12)]
    data = write(tmp_path / "data", images=rows)
    record = detect(data, tmp_path / "run", decisions=str(decided), to=str(tmp_path / "less"))
    assert [[image.row for image in cluster.images] for cluster in record.clusters] == [[0, 1]]
    less = datasets.load_dataset(str(tmp_path / "less"), cache_dir=str(tmp_path / "cache"))["train"]
    assert less["source_index"][:3] == [0, 2, 3]


def test_who_leaves():
    clusters, labels = np.array([0, 0, 0, 1, 1, -1]), np.array([2, 1, 1, 0, 2, 0])
    pixels, content = np.array([9, 9, 16, 4, 4, 1]), np.array([1, 1, 1, 5, 6, 1])
    assert leaving(clusters, labels, pixels, content, "first").tolist() == [1, 2, 4]
    assert leaving(clusters, labels, pixels, content, "quality").tolist() == [0, 1, 3]
    assert leaving(clusters, labels, pixels, content, "consistent").tolist() == [0, 2, 3, 4]
    assert conflicting(clusters, labels).tolist() == [0, 1]
    assert conflicting(clusters, np.array([1, 1, 1, -1, 2, 0])).tolist() == []


@pytest.mark.parametrize("mirrored", [False, True])
def test_turning_a_pair_round_turns_the_warp_round(mirrored):
    warp = torch.tensor([[1.1, 0.9, 0.2, -0.1]])
    pair = Pairs(torch.tensor([1]), torch.tensor([2]), torch.ones(1), torch.tensor([mirrored]), warp)
    turned = turned_round(pair)
    x, y = 0.3, -0.5  # of a, before it is mirrored
    sign = -1 if mirrored else 1
    bx, by = 1.1 * sign * x + 0.2, 0.9 * y - 0.1
    back = turned.warp[0].tolist()
    assert back[0] * sign * bx + back[2] == pytest.approx(x)
    assert back[1] * by + back[3] == pytest.approx(y)
    assert torch.allclose(turned_round(turned).warp, warp)


def test_an_approximate_index_finds_nearly_the_same(tmp_path):
    pytest.importorskip("faiss")
    database = torch.nn.functional.normalize(torch.randn(3000, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    queries = torch.nn.functional.normalize(database[:200] + 0.05, dim=1)
    build_index(database.numpy(), tmp_path / "index")
    exact = set(zip(*(part.tolist() for part in nearest(queries, database, 3, least=0.5)[:2]), strict=True))
    nearly = set(
        zip(*(part.tolist() for part in nearest_by_index(queries, tmp_path / "index", 3, least=0.5)[:2]), strict=True)
    )
    assert len(exact) >= 200
    assert nearly <= exact
    assert len(nearly) >= 0.95 * len(exact)


def test_faiss_finds_planted_copies(planted, tmp_path):
    pytest.importorskip("faiss")
    record = detect(planted, tmp_path / "run", search="faiss")
    assert record.method.search == "faiss"
    assert (3, 50, "exact") in found(tmp_path / "run")
    assert (5, 52, "near") in found(tmp_path / "run")


@pytest.mark.slow
def test_real_images_with_planted_copies(tmp_path):
    root = Path(os.environ.get("ROBUSTDUP_TEST_DATA") or Path(__file__).resolve().parents[4] / "shared" / "data")
    if not (root / "cifar10-jpeg" / "test.parquet").is_file():
        pytest.skip("CIFAR-10 is not here (ROBUSTDUP_TEST_DATA)")
    from benchmarks.detection import run
    from robustdup.config import DataOptions
    from robustdup.data.cache import load_pixels
    from robustdup.data.sources import open_samples
    from robustdup.plugins import load_plugins

    rows = open_samples(str(root / "cifar10-jpeg"), DataOptions(split="test"), load_plugins())
    pixels, _ = load_pixels(rows, range(5000))
    others = [name for name in ("imagededup:phash", "cleanvision:phash") if find_spec(name.split(":")[0])]
    result = run(pixels, 630, 0, others)
    mine = result["contenders"]["robustdup"]
    assert mine["recall"] >= 0.98
    assert mine["precision"] >= 0.95
    for name in others:
        assert result["contenders"][name]["recall"] < 0.5
    if others:
        assert (result["exact"]["robustdup"]["recall"], result["exact"]["robustdup"]["precision"]) == (1.0, 1.0)
