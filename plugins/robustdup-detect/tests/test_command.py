"""`robustdup data detect`: flags, the table, JSON, and mistakes as one message."""

from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import pytest
from PIL import Image
from robustdup_detect.command import show_duplicates
from robustdup_detect.record import load_duplicates
from robustdup_detect.sheets import change_in_words

from robustdup.cli.main import main
from robustdup.config import DataOptions
from robustdup.data.digits import load_builtin
from robustdup.report.terminal import console


def test_digits_within_the_training_split(tmp_path, capsys, monkeypatch):
    """The first 150 of them: all take half a minute."""
    monkeypatch.chdir(tmp_path)
    images, labels = load_builtin("digits", DataOptions(split="train")).fetch(range(150))
    pictures = [Image.fromarray((image[0] * 255).round().byte().numpy()) for image in images]
    Path("digits").mkdir()
    datasets.Dataset.from_dict({"image": pictures, "label": labels.tolist()}).to_parquet("digits/train.parquet")
    capsys.readouterr()
    assert main(["data", "detect", "digits", "--out", str(tmp_path / "run"), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "digits (train): 150 images" in out
    assert "near-duplicate pairs" in out
    assert (tmp_path / "run" / "record.json").is_file()


def test_json_is_the_record_and_nothing_else(tmp_path, capsys):
    words = [
        "data",
        "detect",
        "builtin:digits",
        "split=test",
        "n=80",
        "--out",
        str(tmp_path / "run"),
        "--workers",
        "1",
        "--json",
    ]
    assert main([*words, "--pictures", "0"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["schema_name"] == "robustdup.duplicates"
    assert (record["n"], record["split"], record["config"]["pictures"]) == (80, "test", 0)
    assert record["pairs"] == []


def test_the_first_images_alone_are_looked_at_and_never_written(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["data", "detect", "builtin:digits", "--against", "test", "--n", "40", "--workers", "1", "--out", str(out)]
    assert main([*words, "--to", str(tmp_path / "clean")]) == 2
    assert "Leave out one of the two" in capsys.readouterr().err
    assert main([*words, "--pictures", "0", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["n"], record["n_against"], record["config"]["n"]) == (40, 40, 40)
    assert "Only the first 40 of 1,297 images of train were looked at (n = 40)." in record["notes"]


def test_mistakes_are_one_message(tmp_path, capsys):
    assert main(["data", "detect", "builtin:digits", "--keep", "best", "--out", str(tmp_path / "run")]) == 2
    assert "'keep'" in capsys.readouterr().err
    assert main(["data", "detect", "builtin:digits", "treshold=0.5"]) == 2
    assert "Did you mean 'threshold'?" in capsys.readouterr().err
    assert main(["data", "detect", "no/such/folder", "--out", str(tmp_path / "run")]) == 2
    assert "There is no file or folder 'no/such/folder'" in capsys.readouterr().err


def test_an_unfinished_run_is_not_started_again(tmp_path, capsys):
    (tmp_path / "run" / "state").mkdir(parents=True)
    (tmp_path / "run" / "state" / "config.json").write_text("{}")
    assert main(["data", "detect", "builtin:digits", "--out", str(tmp_path / "run")]) == 2
    assert "Go on with it by --resume" in capsys.readouterr().err


def test_what_was_found_fits_80_columns_and_breaks_no_word(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    record = load_duplicates(Path(__file__).parent / "fixtures" / "duplicates-1.json")
    place = "photographs-of-2019/third_batch/IMG_20190713_181512.jpeg"
    exact = record.pairs[0]
    exact.a.path, exact.b.path = place, f"others/{place}"
    exact.change = "mirrored, turned by 90 degrees, brighter, and cropped"
    record.class_names = ["automobile", "hammerhead_shark"]
    show_duplicates(record, tmp_path, console())
    lines = capsys.readouterr().out.splitlines()
    table = lines[next(at for at, line in enumerate(lines) if "score" in line and "how" in line) :]
    table = table[: next(at for at, line in enumerate(table) if not line.strip())]
    assert max(map(len, table)) <= 80
    assert not [line for line in table if "…" in line]
    how = table[0].index("how")
    assert exact.change in " ".join(line[how:].strip() for line in table)
    assert {"photographs-", "20190713_", "same pixels", "automobile", "shark"} <= {
        part for line in table for part in re.split(r"\s{2,}| /", line.strip())
    }


@pytest.mark.parametrize(
    ("warp", "text"),
    [
        ((1.0, 1.0, -0.001, 0.04), "shifted 0.6 down (pixels)"),  # nothing of a pixel to the left is no shift
        ((1.0, 1.0, 0.5, -0.25), "shifted 8.0 right and 4.0 up (pixels)"),
        ((0.9, 0.9, -0.1, 0.0), "10% smaller, shifted 1.6 left (pixels)"),
        ((1.0, 1.0, 0.0, 0.0), "in place"),
    ],
)
def test_a_change_in_words(warp, text):
    assert change_in_words(False, warp, (32, 32)) == text
