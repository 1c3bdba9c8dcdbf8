"""An index: a search that finds one says what a search from nothing says, and computes only what is new."""

from __future__ import annotations

import numpy as np
import pytest
import robustdup_detect.known
import robustdup_detect.store
import robustdup_detect.work
from detect_pictures import detect, encoded, found, photos, pictures, write
from PIL import Image
from robustdup_detect.kinds import KINDS
from robustdup_detect.record import load_pairs
from robustdup_detect.transforms import change

from robustdup.errors import UserError
from tests.raising import raises

pytestmark = pytest.mark.usefixtures("own_datasets_cache")


@pytest.fixture
def counted(monkeypatch):
    """How many images were decoded by a search, and how many candidates were compared, as a whole and by local features."""
    counts = {"decoded": 0, "compared": 0, "laid": 0, "measured": 0}
    decode, compare = robustdup_detect.store.decode_content, robustdup_detect.work.compare
    lay, measured = robustdup_detect.work.lay, robustdup_detect.work.measured

    def counting_decode(*given):
        counts["decoded"] += 1
        return decode(*given)

    def counting_compare(first, second, candidates, **given):
        counts["compared"] += len(candidates.a)
        return compare(first, second, candidates, **given)

    def counting_lay(way, asked, database, query, place):
        counts["laid"] += len(query)
        return lay(way, asked, database, query, place)

    def counting_measured(overlaps, *given):
        counts["measured"] += len(overlaps)
        return measured(overlaps, *given)

    monkeypatch.setattr(robustdup_detect.store, "decode_content", counting_decode)
    for module in (robustdup_detect.work, robustdup_detect.known):
        monkeypatch.setattr(module, "compare", counting_compare)
        monkeypatch.setattr(module, "lay", counting_lay)
    monkeypatch.setattr(robustdup_detect.work, "measured", counting_measured)
    return counts


def images():
    """Five copies of some of forty pictures, two of them identical, the pictures, and two copies more."""
    made, rng = pictures(40), np.random.default_rng(0)
    first = [made[3], change("crop", made[5:6], rng)[0], made[6].flip(-1), change("jpeg", made[7:8], rng)[0], made[9]]
    last = [made[3], change("jpeg", made[8:9], rng)[0]]
    return [encoded(image) for image in [*first, *made, *last]]


def same(first, second):
    """Whether two runs found the same pairs, with the same scores and maps."""
    return load_pairs(first).equals(load_pairs(second))


def alike(first, second):
    """Whether two runs found the same pairs, with the same scores and maps but for rounding: batches are of other sizes."""
    tables = [load_pairs(run) for run in (first, second)]
    numbers = ["score", "scale_x", "scale_y", "shift_x", "shift_y", "turn"]
    exact, close = ([table.drop_columns(numbers) for table in tables], [table.select(numbers) for table in tables])
    values = [np.array([column.to_pylist() for column in table.columns]) for table in close]
    return exact[0].equals(exact[1]) and np.allclose(*values, atol=1e-4)


def test_a_second_search_computes_nothing_and_says_the_same(tmp_path, counted):
    data = write(tmp_path / "data", images=images())
    options = {"index": str(tmp_path / "index"), "pictures": 0}
    alone = detect(data, tmp_path / "alone", pictures=0)
    first = detect(data, tmp_path / "first", **options)
    compared = counted["compared"]
    counted.update(dict.fromkeys(counted, 0))
    second = detect(data, tmp_path / "second", **options)
    assert (counted["decoded"], counted["compared"]) == (0, 0)
    assert compared > 0
    assert same(tmp_path / "first", tmp_path / "alone")
    assert same(tmp_path / "second", tmp_path / "alone")
    assert second.expected == first.expected == alone.expected
    assert second.n_near >= 3
    assert any("47 of 47 images were in it" in note for note in second.notes)


def test_a_grown_set_computes_what_is_new_and_says_what_a_search_from_nothing_says(tmp_path, counted):
    rows = images()
    options = {"index": str(tmp_path / "index"), "pictures": 0}
    detect(write(tmp_path / "small", images=rows[:42]), tmp_path / "small-run", **options)
    data = write(tmp_path / "grown", images=rows)
    counted.update(decoded=0, compared=0)
    detect(data, tmp_path / "grown-run", **options)
    grown = dict(counted)
    counted.update(decoded=0, compared=0)
    detect(data, tmp_path / "nothing", pictures=0)
    assert alike(tmp_path / "grown-run", tmp_path / "nothing")
    assert grown["decoded"] == 4  # of the five that are new, one has the bytes of a picture that was there
    assert counted["decoded"] == 47
    assert 0 < grown["compared"] < counted["compared"] / 2


def test_local_features_and_what_they_say_of_pairs_are_kept(tmp_path, counted):
    rng = np.random.default_rng(1)
    made = [Image.fromarray(image) for image in photos(14)]
    changed = [KINDS[kind](made[row], rng) for row, kind in enumerate(("rotation 15", "flip vertical", "crop 65%"))]
    rows = [encoded(image) for image in [*changed[:2], *made, changed[2]]]
    options = {"index": str(tmp_path / "index"), "pictures": 0}
    detect(write(tmp_path / "small", images=rows[:-1]), tmp_path / "small-run", **options)
    data = write(tmp_path / "grown", images=rows)
    counted.update(dict.fromkeys(counted, 0))
    detect(data, tmp_path / "grown-run", **options)
    grown = dict(counted)
    detect(data, tmp_path / "nothing", pictures=0)
    assert alike(tmp_path / "grown-run", tmp_path / "nothing")
    assert {(0, 2), (1, 3), (4, 16)} <= {(a, b) for a, b, _ in found(tmp_path / "nothing")}
    assert 0 < grown["laid"] < (counted["laid"] - grown["laid"]) / 2
    counted.update(dict.fromkeys(counted, 0))
    detect(data, tmp_path / "again", **options)
    assert same(tmp_path / "again", tmp_path / "grown-run")
    assert counted == {"decoded": 0, "compared": 0, "laid": 0, "measured": 0}


@pytest.mark.slow
def test_two_workers_share_an_index(tmp_path):
    data = write(tmp_path / "data", images=images())
    for run in ("first", "second"):
        detect(data, tmp_path / run, index=str(tmp_path / "index"), workers=2)
    assert same(tmp_path / "first", tmp_path / "second")


def test_other_settings_have_values_of_their_own(tmp_path, counted):
    data = write(tmp_path / "data", images=images())
    detect(data, tmp_path / "first", index=str(tmp_path / "index"))
    counted.update(decoded=0)
    detect(data, tmp_path / "second", index=str(tmp_path / "index"), background="black", pictures=0)
    assert counted["decoded"] == 47


@pytest.mark.parametrize("part", ["images-0/pictures.bin", "pairs-0.safetensors"])
def test_a_damaged_part_is_noticed_and_not_used(tmp_path, part):
    data = write(tmp_path / "data", images=images())
    detect(data, tmp_path / "first", index=str(tmp_path / "index"))
    (file,) = (tmp_path / "index").glob(f"*/{part}")
    content = bytearray(file.read_bytes())
    content[-7] ^= 1
    file.write_bytes(content)
    record = detect(data, tmp_path / "second", index=str(tmp_path / "index"))
    assert same(tmp_path / "first", tmp_path / "second")
    assert any("damaged" in note and part.partition("/")[0] in note for note in record.notes)


def test_what_is_no_index_is_left_alone(tmp_path):
    data = write(tmp_path / "data", images=images())
    with raises("not-an-index", UserError, "other things"):
        detect(data, tmp_path / "run", index=data)
    detect(data, tmp_path / "run", index=str(tmp_path / "index"))
    (manifest,) = (tmp_path / "index").glob("*/manifest.json")
    manifest.write_text(manifest.read_text().replace('"images-0"', '"../../images-0"'))
    with raises("damaged-index", UserError, "Remove"):
        detect(data, tmp_path / "again", index=str(tmp_path / "index"))
