"""Every file that a run writes, damaged in every way, and then --resume: one message or the right result."""

from __future__ import annotations

import json
import random
import shutil

import pytest

from robustdup import jobs
from robustdup.cli.main import main
from robustdup.config import EvalConfig, TrainConfig, build
from robustdup.evaluation.saved import load_tensors, save_tensors
from robustdup.records import load_samples, load_training_record
from robustdup.records.sealed import seal, unseal

SETTINGS = {"n": 8, "attacks": "fgsm,pgd(steps=2)", "eps": "0.05,0.1", "batch_size": 4, "seed": 1, "diagnostics": False}
TRAINING = {"epochs": 2, "n": 40, "objective": "standard", "evaluate": "fgsm", "test_n": 8, "batch_size": 20, "seed": 1}
STOPPED_AFTER = 5  # calls
LATER = pytest.mark.slow  # more of the same kinds


def flipped(content: bytes, where: float) -> bytes:
    at = min(int(len(content) * where), len(content) - 1)
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :] if content else content


DAMAGES = {
    "emptied": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "junk": lambda content: random.Random(0).randbytes(len(content)),
    "a list": lambda content: b"[1, 2]",
    "nested": lambda content: b"[" * 100_000,
    "a bit": lambda content: flipped(content, 0.6),
    "an object": lambda content: b'{"a": [1], "b": null}',
    "a number": lambda content: b"3",
    "cut by one byte": lambda content: content[:-1],
    "zeros": lambda content: bytes(len(content)),
    "longer": lambda content: content + b"more",
    "text": lambda content: "schön und gut\n".encode("latin-1"),
    "a bit at the start": lambda content: flipped(content, 0.1),
    "a bit at the end": lambda content: flipped(content, 0.98),
}
QUICK = ("cut", "junk", "a list", "a bit", "gone")
HOW = [pytest.param(how, marks=[] if how in QUICK else LATER) for how in [*DAMAGES, "gone", "a folder"]]


def damage(path, how):
    content = path.read_bytes()
    if how in DAMAGES:
        path.write_bytes(DAMAGES[how](content))
    else:
        path.unlink()
        if how == "a folder":
            path.mkdir()


def stop_after(calls):
    seen = []

    def stop(progress):
        seen.append(progress.done)
        if sum(done > 0 for done in seen) >= calls:
            raise KeyboardInterrupt

    return stop


def files_of(folder):
    """Return the files of a run, of calls the first and the last alone: they are of one kind."""
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    calls = [file for file in files if "eps-" in str(file)]
    return [file for file in files if file not in calls[1:-1]]


def copies(run, to):
    """Walk copies of a run, each with the file in it that is to be damaged."""
    for file in files_of(run):
        folder = to / str(file).replace("/", "-")
        shutil.copytree(run, folder)
        yield folder, folder / file


def said(words, capsys):
    """Run a command and return its exit code and what it printed; whatever it says is one message that was foreseen."""
    code = main(words)
    shown = capsys.readouterr()
    assert code in (0, 1, 2), words
    assert "Traceback" not in shown.err, words
    assert "not foreseen" not in shown.err, (words, shown.err)
    assert code == 0 or 0 < len(shown.err or shown.out) < 1500, words
    return code, shown


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    """An evaluation that was stopped in its second half, and the same one to its end."""
    folder, config = tmp_path_factory.mktemp("evaluations"), build(EvalConfig, values=SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        jobs.run_evaluation(config, folder=folder / "stopped", progress=stop_after(STOPPED_AFTER))
    jobs.run_evaluation(config, folder=folder / "whole")
    return folder


@pytest.mark.parametrize("how", HOW)
def test_an_evaluation_that_was_stopped(evaluations, how, tmp_path, capsys):
    whole, codes = load_samples(evaluations / "whole"), {}
    for folder, file in copies(evaluations / "stopped", tmp_path):
        damage(file, how)
        codes[file.name], _ = said(["eval", "--resume", str(folder)], capsys)
        assert codes[file.name] or load_samples(folder).equals(whole), file
    calls = [code for name, code in codes.items() if name[0].isdigit()]
    assert len(codes) >= 5
    assert calls == [int(how == "a folder")] * len(calls)  # what is missing is made again, where there is place for it


@pytest.mark.parametrize("how", HOW)
def test_an_evaluation_that_is_done(evaluations, how, tmp_path, capsys):
    whole = json.loads((evaluations / "whole" / "record.json").read_text())["robust_accuracy"]["value"]
    for folder, file in copies(evaluations / "whole", tmp_path):
        damage(file, how)
        code, shown = said(["eval", "--resume", str(folder), "--json"], capsys)
        if code == 0 and json.loads(shown.out)["robust_accuracy"]["value"] != whole:
            assert "not as a run under this account" in shown.err, file
        bundle = f"{folder}-bundle"
        code, _ = said(["eval", "--resume", str(folder), "--bundle", bundle, "--json"], capsys)
        if code == 0:
            said(["verify", bundle], capsys)
        said(["report", str(folder), "--card"], capsys)


def test_settings_that_were_edited_are_not_those_of_the_calls(evaluations, tmp_path, capsys):
    shutil.copytree(evaluations / "stopped", tmp_path / "run")
    path = tmp_path / "run" / "state" / "config.json"
    path.write_text(path.read_text().replace("pgd(steps=2)", "pgd(steps=1)"))
    code, shown = said(["eval", "--resume", str(tmp_path / "run")], capsys)
    assert code == 2
    assert "the settings changed" in shown.err


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A training that was stopped after its first epoch, and the same one to its end."""
    folder, config = tmp_path_factory.mktemp("training"), build(TrainConfig, values=TRAINING)

    def stop(progress):
        if progress.epoch and progress.epoch > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.run_training(config, folder=folder / "stopped", progress=stop)
    jobs.run_training(config, folder=folder / "whole")
    return folder


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=[] if how == "a bit" else LATER) for how in [*DAMAGES, "gone"]]
)
def test_a_training_that_was_stopped(training, how, tmp_path, capsys):
    whole = load_training_record(training / "whole").checkpoints
    for folder, file in copies(training / "stopped", tmp_path):
        damage(file, how)
        code, _ = said(["train", "--resume", str(folder)], capsys)
        if code == 0:
            assert [part.fingerprint for part in load_training_record(folder).checkpoints] == [
                part.fingerprint for part in whole
            ], file


def test_what_is_sealed_is_what_was_written_or_is_told(tmp_path):
    assert unseal(seal(b"content")) == b"content"
    assert unseal(b"of an older version") == b"of an older version"
    for sealed in (seal(b"content")[1:], flipped(seal(b"content"), 0.01), flipped(seal(b"content"), 0.999)):
        with pytest.raises(ValueError, match="not what was written"):
            unseal(sealed)
    import torch

    save_tensors(tmp_path / "file", {"a": torch.arange(3)}, {"word": "text"})
    tensors, head = load_tensors(tmp_path / "file")
    assert (tensors["a"].tolist(), head) == ([0, 1, 2], {"word": "text"})
