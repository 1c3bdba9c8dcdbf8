"""The page of a search for duplicates: the record's numbers, pictures, hostile names, and records that are older or damaged."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from robustdup_detect.record import NO_LABEL, DuplicatesRecord, load_duplicates

from robustdup.errors import UserError
from robustdup.report.html import write_report
from tests.report.reading import read

HOSTILE = "</script><img src=x onerror=alert(1)>\"'"
FIXTURES = Path(__file__).parent / "fixtures"


def save_record(folder, word="cat", **changes):
    """A search of 50 training images against 10 of the test split: two pairs, one across splits and in conflict."""
    (folder / "images").mkdir(parents=True)
    for name, level in (("a", 10), ("b", 200)):
        Image.new("RGB", (32, 32), (level, 0, 0)).save(folder / "images" / f"{name}.png")
    refs = {
        "one": {"split": "train", "row": 3, "label": 0, "file": "images/a.png"},
        "two": {"split": "test", "row": 7, "label": 1, "file": "images/b.png"},
        "three": {"split": "train", "row": 9, "label": 0, "file": "images/a.png"},
        "outside": {"split": "train", "row": 11, "label": 0, "file": "../outside.png"},
    }
    Image.new("RGB", (32, 32), (255, 255, 255)).save(folder.parent / "outside.png")
    common = {"mirrored": False, "change": word, "sheet": None}
    pairs = [
        ("one", "three", {"score": 1.0, "kind": "exact", "cluster": 0, "conflict": False}),
        ("one", "two", {"score": 0.95, "kind": "near", "cluster": 1, "conflict": True}),
        ("outside", "outside", {"score": 0.9, "kind": "near", "cluster": 1, "conflict": False}),
    ]
    method = {"search": word, "dimensions": 64, "neighbours": 12, "least_similarity": 0.5, "threshold": 0.92}
    expected = {"calibrated": True, "precision": 0.987, "different_pairs": 0.013, "recall": 0.9, "about": word}
    record = {
        "schema_name": "robustdup.duplicates",
        "schema_version": 1,
        "run_id": word,
        "created": "2026-11-22T12:00:00+00:00",
        "command": word,
        "data": word,
        "split": "train",
        "against": "test",
        "data_config": None,
        "revision": None,
        "class_names": [word, "dog"],
        "n": 50,
        "n_against": 10,
        "n_unreadable": 1,
        "unreadable": [{"split": "train", "row": 1, "path": word, "reason": word}],
        "n_exact": 1,
        "n_near": 1,
        "n_mirrored": 0,
        "n_clusters": 2,
        "n_rows": 8,
        "n_redundant": 5,
        "keep": "first",
        "n_conflicts": 1,
        "conflicts": [1],
        "bands": [{"low": 0.5, "high": 0.9, "pairs": 0}, {"low": 0.9, "high": 1.0, "pairs": 1}],
        "pairs": [{**common, "a": refs[a], "b": refs[b], **pair} for a, b, pair in pairs],
        "clusters": [
            {"cluster": 0, "size": 2, "conflict": False, "images": [refs["one"], refs["three"]]},
            {"cluster": 1, "size": 6, "conflict": True, "images": [refs["one"], refs["two"]]},
        ],
        "classes": [
            {"name": word, "n": 40, "n_clustered": 6, "n_redundant": 4},
            {"name": "dog", "n": 10, "n_clustered": 2, "n_redundant": 1},
            {"name": "none", "n": 0, "n_clustered": 0, "n_redundant": 0},
        ],
        "sheets": [],
        "method": {**method, "measures": [word], "weights": [1.5], "bias": 0.5},
        "expected": {**expected, "recall_by_change": {word: 0.8}, "positives": 9, "negatives": 8},
        "seconds": {word: 1.5},
        "config": {},
        "environment": {"torch": word},
        "notes": [word],
    }
    record |= changes
    (folder / "record.json").write_text(json.dumps(record))
    return record


def lookup(record, path):
    for part in path.split("."):
        record = record[int(part)] if isinstance(record, list) else record[part]
    return record


def floats(content, path=()):
    """Yield the places of a record's real numbers; one of each list will do."""
    if isinstance(content, float):
        yield path
    for key, value in (
        content.items() if isinstance(content, dict) else enumerate(content[:1] if isinstance(content, list) else ())
    ):
        yield from floats(value, (*path, key))


def test_numbers_are_the_records(tmp_path):
    record = save_record(tmp_path / "run")
    page = read(write_report([tmp_path / "run"], tmp_path / "pages"))
    assert page.fields
    for field, (value, _) in page.fields.items():
        assert float(value) == lookup(record, field), field


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_none_is_a_dash_wherever_it_stands(tmp_path, bad):
    """Every real number of the record in turn: the page is made, and says and draws nothing of nan or inf."""
    folder = tmp_path / "run"
    content = save_record(folder)
    places = list(floats(content))
    assert len(places) > 2
    for path in places:
        broken = json.loads(json.dumps(content))
        inner = broken
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = bad
        (folder / "record.json").write_text(json.dumps(broken))
        page = write_report([folder], tmp_path / "pages")
        assert not re.search(r"\b(nan|inf)\b", read(page).text.lower()), path
        drawn = re.sub(r'data-value="[^"]*"', "", page.read_text(encoding="utf-8"))
        assert not re.search(r'="[^"]*\b(nan|inf)\b[^"]*"', re.sub(r"<style>.*?</script>", "", drawn, flags=re.S)), path


def test_hostile_names_change_nothing_but_text(tmp_path):
    structures = []
    for name, word in (("plain", "plain"), ("hostile", HOSTILE)):
        save_record(tmp_path / name, word)
        page = read(write_report([tmp_path / name], tmp_path / f"pages-{name}"))
        structures.append(page.structure)
    assert structures[0] == structures[1]
    assert HOSTILE in page.text


def test_searches_of_several_runs_have_a_page_each(tmp_path):
    for name in ("a", "b"):
        save_record(tmp_path / name, HOSTILE)
    write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "pages")
    files = sorted(path.name for path in (tmp_path / "pages").iterdir())
    assert files == [".robustdup-report.json", "images", "index.html", "run-001.html", "run-002.html"]


def test_a_search_in_words_and_pictures(tmp_path):
    save_record(tmp_path / "run")
    path = write_report([tmp_path / "run"], tmp_path / "pages")
    text = read(path).text
    assert (
        "16.00% of the 50 images are in some cluster of duplicates; 10.00% could go without losing a picture." in text
    )
    assert "The largest cluster has 6 images." in text
    assert "1 listed pair across train and test: 1 image of test." in text
    assert "train 3: cat test 7: dog near cat 0.95" in text
    assert "Expected precision of the near pairs: 98.70%." in text
    assert "1 image could not be read." in text
    sheet = np.asarray(Image.open(path.parent / "images" / "index-00.png"))
    assert sheet.shape == (3 * 32, 2 * 32, 3)
    levels = sheet[16::32, [16, 48], 0].tolist()
    assert levels == [[10, 200], [10, 10], [128, 128]]  # the conflict first; what lies outside the folder is not shown
    strip = np.asarray(Image.open(path.parent / "images" / "index-clusters.png"))
    assert strip[16, [16, 48], 0].tolist() == [10, 200]
    assert "conflict cat, dog · 6 images, 4 not shown train 3: cat; test 7: dog" in text


def test_a_search_by_class(tmp_path):
    """Of 40 and 10 images 4 and 1 leave: the shares stay 80% and 20%. Where 0 and 5 leave they become 8 and 1 ninths."""
    record = save_record(tmp_path / "run")
    text = read(write_report([tmp_path / "run"], tmp_path / "pages")).text
    assert "cat 40 6 4 10.00% 80.00% 80.00% dog 10 2 1 10.00% 20.00% 20.00%" in text
    record["classes"] = [
        {"name": "cat", "n": 40, "n_clustered": 0, "n_redundant": 0},
        {"name": "dog", "n": 10, "n_clustered": 0, "n_redundant": 5},
    ]
    (tmp_path / "run" / "record.json").write_text(json.dumps(record))
    text = read(write_report([tmp_path / "run"], tmp_path / "pages")).text
    assert "Class dog repeats itself most: 50.00% of its images could go." in text
    assert "the share of dog goes from 20.00% to 11.11%" in text
    assert "cat 40 0 0 0.00% 80.00% 88.89%" in text
    del record["classes"]
    (tmp_path / "run" / "record.json").write_text(json.dumps(record))
    assert (
        "Most images of clusters are of class cat (75.00%)"
        in read(write_report([tmp_path / "run"], tmp_path / "pages")).text
    )


def classes(**counts):
    return [
        {"name": name, "n": n, "n_clustered": redundant, "n_redundant": redundant}
        for name, (n, redundant) in counts.items()
    ]


@pytest.mark.parametrize(
    ("counts", "said", "unsaid"),
    [
        ({"cat": (40, 4), "dog": (10, 1)}, "All classes repeat themselves alike: 10.00% of the images of each", "most"),
        ({"cat": (20, 4), "dog": (10, 2), "ant": (20, 0)}, "Classes cat, dog repeat themselves most: 20.00%", "alike"),
        ({"cat": (30, 0), NO_LABEL: (20, 5)}, "No image of any class is redundant.", "(no label) repeats"),
        ({"cat": (10, 1), "dog": (10, 0), NO_LABEL: (30, 9)}, "Class cat repeats itself most: 10.00%", "share of (no"),
    ],
)
def test_sentences_on_classes_hold(tmp_path, counts, said, unsaid):
    save_record(tmp_path / "run", classes=classes(**counts))
    text = read(write_report([tmp_path / "run"], tmp_path / "pages")).text
    assert said in text
    assert unsaid not in text


def test_nothing_is_said_of_labels_where_there_are_none(tmp_path):
    save_record(tmp_path / "run", classes=classes(**{NO_LABEL: (50, 5)}), n_conflicts=0, n_rows=0, n_redundant=0)
    text = read(write_report([tmp_path / "run"], tmp_path / "pages")).text
    assert "Label conflicts" not in text
    assert "Class balance" not in text
    assert "None of the 50 images was found to repeat another." in text
    assert "0.00% of the 50 images" not in text


def test_a_record_of_version_1_is_read_and_shown(tmp_path):
    record = load_duplicates(FIXTURES / "duplicates-1.json")
    assert (record.n, record.n_exact, record.n_near, record.n_conflicts) == (219, 6, 4, 1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "record.json").write_bytes((FIXTURES / "duplicates-1.json").read_bytes())
    assert "219 images" in read(write_report([tmp_path / "run"], tmp_path / "pages")).text


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n": "many"}, "'n'"),
        ({"pairs": [1]}, "'pairs.0'"),
        ({"clusters": {}}, "'clusters'"),
        ({"bands": [{"low": None}]}, "'bands.0.low'"),
        ({"expected": []}, "'expected'"),
        ({"seconds": {"a": None}}, "'seconds.a'"),
        ({"schema_version": 99}, "99"),
    ],
)
def test_a_damaged_or_later_record_is_refused(tmp_path, change, named):
    save_record(tmp_path / "run", **change)
    with pytest.raises(UserError, match=re.escape(named)):
        write_report([tmp_path / "run"], tmp_path / "pages")


def test_every_field_of_the_record_is_described():
    schema = DuplicatesRecord.model_json_schema()
    own = {"schema_name", "schema_version"}
    bare = [name for name, field in schema["properties"].items() if not ("description" in field or "$ref" in field)]
    assert set(bare) <= own | {"class_names"}
