"""Some nine hundred mistakes: each is answered by one message and the right exit code, without a traceback."""

from __future__ import annotations

import os
import re

import pytest
from huggingface_hub.utils import logging as hub_logging

from robustdup import inflation
from robustdup.cli.main import main
from tests.cli import mistakes, odd_files, odd_values
from tests.lanes import each_once


def answered(capsys, words, codes=(1, 2)):
    """Run a command that cannot work, and look at how it says so."""
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert code in codes, f"{code}: {out[-300:]} {err[-500:]}"
    assert "Traceback" not in err
    assert "not foreseen" not in err
    assert 0 < len(err) < 8000
    assert "\x1b[2J" not in err
    assert "\x1b[31m[" not in err
    return err


hub_logging.get_logger()  # here, and not within a test whose stream is closed when another one asks the Hub


def name_of(words):
    return " ".join(words)[-60:].encode("ascii", "backslashreplace").decode()


@pytest.mark.parametrize("words", [*mistakes.EPS, *mistakes.INTEGERS, *mistakes.WORDS, *odd_values.WORDS], ids=name_of)
def test_words(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answered(capsys, words)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished run, its bundle, and what is neither file nor run."""
    place = tmp_path_factory.mktemp("finished")
    words = ("--eps", "0.1", "--attacks", "fgsm", "--n", "4", "--no-diagnostics", "--bundle", place / "bundle")
    assert main([str(word) for word in ("eval", *words, "--out", place / "run")]) == 0
    os.mkfifo(place / "pipe")
    (place / "loop").symlink_to("loop")
    (place / "file").write_text("hello")
    (place / "folder").mkdir()
    return place


@pytest.mark.parametrize("words", odd_values.OF_RUNS, ids=name_of)
def test_words_about_a_run(words, finished, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    places = {name: str(finished / name.lower()) for name in ("RUN", "BUNDLE", "PIPE", "LOOP", "FILE", "FOLDER")}
    ready = [re.sub(rf"^({'|'.join(places)})(?=/|$)", lambda match: places[match[1]], word) for word in words]
    answered(capsys, ready)
    assert (finished / "pipe").is_fifo()
    assert sorted(path.name for path in finished.iterdir()) == ["bundle", "file", "folder", "loop", "pipe", "run"]


@each_once(who=mistakes.WHO_READS, path=mistakes.PATHS)
def test_paths(who, path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mistakes.odd_paths(tmp_path)
    answered(capsys, [word.replace("PATH", path) for word in mistakes.WHO_READS[who]])


def test_an_out_whose_links_go_round(capsys, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "names no folder" in answered(capsys, (*mistakes.EVAL, "--out", tmp_path / "loop" / "run"))


@pytest.mark.parametrize("reader", mistakes.READERS)
@pytest.mark.parametrize("content", mistakes.BROKEN_JSON)
def test_records(content, reader, capsys, tmp_path):
    run = mistakes.broken_run(tmp_path / "run", mistakes.BROKEN_JSON[content])
    answered(capsys, [str(run) if word == "RUN" else word for word in mistakes.READERS[reader]])


@pytest.mark.parametrize("content", mistakes.YAML)
def test_recipes(content, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(mistakes.YAML[content])
    answered(capsys, ("eval", "recipe.yaml", "--attacks", "fgsm"))


@pytest.mark.parametrize("factory", mistakes.FACTORIES)
def test_models(factory, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").write_text(mistakes.MODELS)
    answered(capsys, (*mistakes.EVAL, "--model", f"m.py:{factory}"))


@pytest.mark.parametrize("content", mistakes.PLUGINS)
def test_plugins(content, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.py").write_text(mistakes.PLUGINS[content])
    answered(capsys, (*mistakes.EVAL, "--plugin", "p.py"))


def new(file, write):
    """Let a file of strange content be written, and return its path."""
    write(file)
    return str(file)


EVAL = ("eval", "--attacks", "fgsm", "--eps", "1/255", "--n", "4", "--no-diagnostics")


@pytest.mark.parametrize("content", odd_files.TABLES)
def test_tables(content, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inflation, "ROOM", 40 << 20)
    data = new(tmp_path / "data.parquet", odd_files.TABLES[content])
    answered(capsys, (*EVAL, "--data", data, "--out", "run"))
    assert not (tmp_path / "run").exists()  # the corrected command finds it free
    assert main(["data", "describe", data, "--split", "test"]) in (0, 2)  # what cannot be read is listed
    assert "not foreseen" not in capsys.readouterr().err


@pytest.mark.parametrize("name", odd_files.OTHERS)
def test_data_of_other_kinds(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    answered(capsys, (*EVAL, "--data", new(tmp_path / "data" / name, odd_files.OTHERS[name]), "--out", "run"))
    answered(capsys, (*EVAL, "--data", str(tmp_path / "data"), "--out", "run"))
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "evil.png").exists()


@pytest.mark.parametrize("name", odd_files.EXAMPLES)
def test_examples(name, capsys, tmp_path):
    answered(capsys, ("verify", new(tmp_path / name, odd_files.EXAMPLES[name]), "--eps", "1/255"))


@pytest.mark.parametrize("write", [odd_files.zeros, odd_files.repeated])
def test_a_table_that_fills_the_disk_is_not_read(write, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(inflation, "ROOM", 40 << 20)
    err = answered(capsys, (*EVAL, "--data", new(tmp_path / "data.parquet", write)))
    assert "fill a disk" in err.replace("\n", " ")
