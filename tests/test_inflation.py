"""Files that unpack to far more than they are, and pictures that are programs: nothing of them is unpacked or run."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zipfile

import pytest
import torch
from PIL import EpsImagePlugin, Image

from robustdup import inflation
from robustdup.config import DataOptions
from robustdup.data.decode import check_options, open_picture
from robustdup.data.hub import checked_downloads
from robustdup.data.layouts.local import open_layout
from robustdup.errors import UserError
from robustdup.evidence.examples import read_examples
from robustdup.inflation import check_file, check_tensor
from robustdup.models.files import read_checkpoint
from robustdup.models.load import load_script
from tests.cli.odd_files import postscript, repeated, zeros
from tests.raising import raises

ZEROS = bytes(3 << 20)


def zipped(content):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", content)
    return stream.getvalue()


@pytest.fixture
def small_room(monkeypatch):
    monkeypatch.setattr(inflation, "ROOM", 1 << 20)
    monkeypatch.setattr(inflation, "MOST", 20)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zipped])
def test_a_file_is_measured_by_what_it_is_and_not_by_its_name(pack, tmp_path, small_room):
    file = tmp_path / "no-ending"
    file.write_bytes(pack(ZEROS))
    with raises("unpacks-too-large", UserError, "no-ending"):
        check_file(file)
    file.write_bytes(pack(os.urandom(1 << 19)))
    check_file(file)
    file.write_bytes(pack(ZEROS)[:12])  # cut off: whoever reads it says so
    check_file(file)


@pytest.mark.parametrize("named", ["data.pkl", "constants.pkl"])  # weights, TorchScript
def test_weights_are_measured_before_they_are_loaded(named, tmp_path, small_room):
    file = tmp_path / "weights.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in ((named, b"junk"), ("code/__torch__.py", b""), ("data/0", ZEROS)):
            archive.writestr(f"archive/{name}", content)
    for read in (read_checkpoint, read_examples, load_script):
        if read is not load_script or named == "constants.pkl":
            with raises("unpacks-too-large", UserError, "weights.pt"):
                read(file)


LISTS, OTHERS = dict.fromkeys(("list.json", "labels.csv"), "unpacks-too-large"), ("README.md", "fine_label_names.txt")


@pytest.mark.parametrize(("name", "code"), [*LISTS.items(), *((name, "too-large") for name in OTHERS)])
def test_text_that_says_what_data_are_is_measured_before_it_is_read(name, code, tmp_path, small_room, monkeypatch):
    monkeypatch.setattr(inflation, "LONGEST_TEXT", 1 << 20)
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, len(ZEROS))
    with raises(code, UserError, name):
        open_layout(tmp_path / name if name == "list.json" else tmp_path, DataOptions())


def test_other_files_are_left_alone(tmp_path):
    for content in (b"", b"text", bytes(99)):
        (tmp_path / "file").write_bytes(content)
        check_file(tmp_path / "file")


@pytest.mark.parametrize("write", [zeros, repeated])
def test_what_datasets_fetches_is_looked_at_before_it_is_unpacked(write, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(inflation, "ROOM", 40 << 20)
    write(tmp_path / "file.parquet")
    usual = datasets.builder.DownloadManager
    with raises("unpacks-too-large", UserError, "fill a disk"), checked_downloads():
        datasets.load_dataset("parquet", data_files=str(tmp_path / "file.parquet"), cache_dir=str(tmp_path / "cache"))
    assert datasets.builder.DownloadManager is usual


def test_a_tensor_stands_for_no_more_numbers_than_it_has():
    check_tensor(torch.zeros(4, 1, 8, 8), "It")
    check_tensor(torch.zeros(1).expand(1000), "It")
    with raises("unpacks-too-large", UserError, "contiguous"):
        check_tensor(torch.zeros(1).expand(10**9), "It")
    for odd in (torch.zeros(3).to_sparse(), torch.zeros(3, device="meta")):
        with raises("bad-data", UserError, "no plain array"):
            check_tensor(odd, "It")


def test_postscript_that_calls_itself_a_picture_runs_no_program(tmp_path, monkeypatch):
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises(OSError, match="Ghostscript"):
        open_picture({"bytes": postscript(), "path": None})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["resize", "crop"])
def test_images_are_not_made_larger_than_any_memory(name):
    with raises("bad-option", UserError, "1 to 4096"):
        check_options(DataOptions(**{name: 30_000}))
