"""A disk with little room, at many sizes: one message, nothing half-written in the way, and the same bits once there is room."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from robustdup.cli.main import main

DISK = 4 << 20  # bytes of the disk
PAGE = 4096
FILLER = "filler"
TIMED = ("run_id", "created", "command", "environment", "config", "peak_memory")  # of one run alone
UNTIMELY = (
    "cells.parquet",
    "cell.json",
    "log.jsonl",
    "report.md",
    "lock",
    "grid.json",
    "analysis.json",
)  # files that hold times

EVAL = ["eval", "--n", "12", "--attacks", "fgsm,pgd(steps=3)", "--eps", "0.05,0.1", "--batch-size", "6", "--seed", "1"]
TRAIN = ["train", "--n", "40", "--epochs", "2", "--objective", "standard", "--evaluate", "fgsm", "--test-n", "8",
         "--batch-size", "20", "--seed", "1", "duplicate={scheme: uniform, dose: 0.2}"]  # fmt: skip
DUPLICATE = ["data", "duplicate", "--data", "builtin:digits", "--scheme", "uniform", "--dose", "0.1", "--seed", "1"]
RECIPE = """
base: {data: "builtin:digits", n: 40, epochs: 1, model: small-cnn(width=2), batch_size: 20, attack: pgd(steps=1), eps: 0.1,
       validation: 10, evaluate: fgsm, test_n: 8}
factors: {objective: [standard, pgd_at]}
seeds: 1
analysis: {metrics: [clean_accuracy]}
metrics_on: 10
workers: 1
threads: 1
"""


def mounted(place: Path, *, undo: bool = False) -> bool:
    """Mount a disk of its own in a folder, or take it away, as root or by sudo; tell whether that could be done."""
    words = (
        ["umount", str(place)] if undo else ["mount", "-t", "tmpfs", "-o", f"size={DISK},uid={os.getuid()}", "tmpfs"]
    )
    root = [] if os.getuid() == 0 else ["sudo", "-n"]
    try:
        return subprocess.run([*root, *words, *([] if undo else [str(place)])], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    if not mounted(place):
        pytest.skip("no disk can be mounted here")
    yield place
    mounted(place, undo=True)


def room(disk: Path) -> int:
    told = os.statvfs(disk)
    return told.f_bavail * told.f_frsize


def leave(disk: Path, pages: int) -> None:
    """Fill the disk up to so many pages."""
    with (disk / FILLER).open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(room(disk) - pages * PAGE, 1))


def make_room(disk: Path) -> None:
    (disk / FILLER).unlink()


def content_of(folder: Path) -> set[tuple[str, str]]:
    """All that a folder holds: fields of its records without times and places, and a digest of every file but those of times."""
    content = set()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in UNTIMELY):
        name, written = str(path.relative_to(folder)), path.read_bytes().replace(bytes(folder), b"FOLDER")
        if path.name != "record.json":
            content.add((name, hashlib.sha256(written).hexdigest()))
        elif b"robustdup.study" not in written:
            content |= {(name + field, value) for field, value in leaves(json.loads(written))}
    return content


def leaves(content: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(content, dict):
        for key in content.keys() - set(TIMED):
            yield from leaves(content[key], f"{name}.{key}")
    elif isinstance(content, list):
        for number, part in enumerate(content):
            yield from leaves(part, f"{name}[{number}]")
    elif "second" not in name and not str(content).startswith("Resumed after"):
        yield name, repr(content)


def answered(words: list[str], capsys) -> int:
    """Run a command, and see that a disk which is full is told in one message."""
    code = main(words)
    _, err = capsys.readouterr()
    assert code in (0, 1), (words, code, err)
    assert "Traceback" not in err
    assert "not foreseen" not in err, err
    if code:
        assert "Error:" in err
        assert len(err) < 1500
        assert "No space left" in err, err
    return code


def sizes(whole: int, n: int) -> list[int]:
    """Numbers of pages from none to twice what a command leaves behind, and all of the disk."""
    return [*sorted({round(i * 2 * whole / (n - 2)) for i in range(n - 1)}), DISK // PAGE]


def tried(n: int, words: list[str], option: str, again: list[str], disk: Path, capsys) -> None:
    """Run a command that writes to `option` with so much room, then with much, and compare with a run that had it at once."""
    before, codes = room(disk), []
    assert main([*words, option, str(disk / "whole")]) == 0, capsys.readouterr().err
    for number in sizes((before - room(disk)) // PAGE, n):
        to = disk / "other"  # of the same length as 'whole'
        leave(disk, number)
        codes.append(answered([*words, option, str(to)], capsys))
        if codes[-1]:
            assert answered([*words, option, str(to), *again], capsys)  # nothing is worse than before
        make_room(disk)
        if codes[-1]:
            assert answered([*words, option, str(to), *again], capsys) == 0
        assert content_of(to) ^ content_of(disk / "whole") == set()
        shutil.rmtree(to)
        assert [path.name for path in disk.iterdir()] == ["whole"]
    assert (codes[0], codes[-1]) == (1, 0)


N = [pytest.param(3, id="few"), pytest.param(28, marks=pytest.mark.slow, id="many")]


@pytest.mark.parametrize("n", N)
def test_an_evaluation(n, disk, capsys):
    tried(n, EVAL, "--out", ["--resume"], disk, capsys)


@pytest.mark.parametrize("n", N)
def test_a_training_on_duplicates(n, disk, capsys):
    tried(n, TRAIN, "--out", ["--resume"], disk, capsys)


@pytest.mark.parametrize("n", N)
def test_a_dataset(n, disk, capsys):
    tried(n, DUPLICATE, "--to", [], disk, capsys)


@pytest.mark.parametrize("n", N)
def test_a_bundle_and_pages(n, disk, capsys, tmp_path):
    run = str(tmp_path / "run")
    assert main([*EVAL, "--out", run]) == 0
    tried(n, ["eval", "--resume", run], "--bundle", [], disk, capsys)
    shutil.rmtree(disk / "whole")
    tried(n, ["report", run], "--to", [], disk, capsys)


@pytest.mark.parametrize("n", N)
def test_a_study(n, disk, capsys, tmp_path):
    (tmp_path / "small.yaml").write_text(RECIPE)
    tried(n, ["study", "run", str(tmp_path / "small.yaml")], "--out", [], disk, capsys)
