"""What comes from somebody else runs nothing unasked: bundles, runs that are resumed, ranks of records from elsewhere."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from robustdup import UserError, jobs, load_model
from robustdup.cli.main import main
from robustdup.config import EvalConfig, TrainConfig, build
from robustdup.evidence.bundle import write_bundle
from robustdup.jobs.trust import code_of_data, code_of_model, would_run
from robustdup.leaderboard import position
from robustdup.models.trained import describe_network, save_weights
from robustdup.records import load_record
from robustdup.records.base import to_json
from robustdup.records.origin import note_made_here, was_made_here
from tests.raising import raises

CODE = """
import pathlib, robustdup
pathlib.Path(__file__).with_suffix(".ran").write_text("ran")
def make(): return robustdup.load_model("builtin:digits-robust")
@robustdup.register_attack("late", norms=["Linf"])
def late(model, images, labels, threat, *, rng): return images
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    jobs.run_evaluation(build(EvalConfig, values={"n": 10, "attacks": "fgsm", "eps": "0.1"}), folder=folder)
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a file beside the bundle, and another outside of where the commands run."""
    inside = tmp_path / "work"
    inside.mkdir()
    monkeypatch.chdir(inside)
    for file in (inside / "evil.py", tmp_path / "evil.py"):
        file.write_text(CODE)
    network = inside / "network"
    network.mkdir()
    described = describe_network(
        f"{tmp_path / 'evil.py'}:make", channels=1, size=8, classes=10, mean=[0.0], std=[1.0], class_names=[]
    )
    (network / "network.json").write_text(to_json(described))
    (network / "best.safetensors").write_bytes(b"")
    return inside


def ran(place):
    return [*place.glob("*.ran"), *place.parent.glob("*.ran")]


def bundle_with(finished, to, **settings):
    """Write a bundle whose record names other settings, as a forger would: with right hashes."""
    run = to / "forged-run"
    shutil.copytree(finished, run)
    path = run / "record.json"
    content = json.loads(path.read_text())
    content["config"] |= settings
    content["model"]["spec"] = content["config"]["model"]
    path.write_text(json.dumps(content))
    return write_bundle(run, to / "bundle")


@pytest.mark.parametrize(
    "spec",
    [
        "evil.py:make",
        "./evil.py:make",
        "../evil.py:make",
        "{outside}/evil.py:make",
        "run:network",
        "run:./network@best",
    ],
)
def test_a_file_that_a_bundle_names_is_not_run_unasked(finished, place, capsys, spec):
    spec = spec.format(outside=place.parent)
    bundle = bundle_with(finished, place, model=spec)
    assert main(["verify", str(bundle)]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "evil.py" in shown
    assert "--model" in shown
    assert "--trust" in shown
    with raises("untrusted-code", UserError, "was not run"):
        jobs.verify_bundle(bundle)
    assert ran(place) == []
    assert main(["verify", str(bundle), "--model", "builtin:digits-robust", "--json"]) == 0
    assert ran(place) == []


def test_with_trust_what_runs_is_said_and_runs(finished, place, capsys):
    bundle = bundle_with(finished, place, model="evil.py:make")
    assert main(["verify", str(bundle), "--trust"]) == 0
    assert "evil.py" in capsys.readouterr().err
    assert ran(place) == [place / "evil.ran"]


def test_plugins_pickles_and_attacked_models_of_a_bundle_are_left_alone(finished, place):
    settings = {"plugin": ["evil.py"], "allow_pickle": True, "attack_model": "evil.py:make"}
    assert would_run(settings).keys() == set(settings)
    bundle = bundle_with(finished, place, plugin=["evil.py"], allow_pickle=True)
    assert jobs.verify_bundle(bundle).n == 10
    assert ran(place) == []


def test_a_bundle_makes_no_demands_on_memory_threads_or_devices(finished, place):
    bundle = bundle_with(finished, place, micro_batch=10**9, threads=10**6, workers=500, runner="ray", device="cuda:7")
    assert jobs.verify_bundle(bundle).accepted


@pytest.mark.parametrize("settings", [{"resize": 30_000}, {"n": 10**12}, {"sample": 10**12}])
def test_sizes_that_a_bundle_asks_for_are_refused(finished, place, settings):
    with pytest.raises(UserError):
        jobs.verify_bundle(bundle_with(finished, place, **settings))


def test_a_model_card_of_a_record_from_elsewhere_says_so(finished, tmp_path, capsys):
    assert main(["report", str(finished), "--card"]) == 0
    assert "not made here" not in capsys.readouterr().out
    shutil.copytree(finished, tmp_path / "copy")
    path = tmp_path / "copy" / "record.json"
    path.write_text(path.read_text().replace('"n": 10,', '"n": 10 ,'))
    assert main(["report", str(path), "--card"]) == 0
    assert "By what the record states alone" in capsys.readouterr().out


def test_data_by_a_plugged_loader_is_asked_about(finished, place):
    bundle = bundle_with(finished, place, data="strange:place")
    with raises("untrusted-code", UserError, "the loader of 'strange' data"):
        jobs.verify_bundle(bundle)
    assert jobs.verify_bundle(bundle, {"data": "builtin:digits"}).n == 10


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("builtin:digits-robust", None),
        ("robustbench:Wong2020Fast", None),
        ("run:nowhere", None),
        ("python", None),
        ("hf:owner/name", "the loader of 'hf' models, on 'owner/name'"),
        ("strange:thing", "the loader of 'strange' models, on 'thing'"),
        ("script.pt", "the program in 'script.pt'"),
        ("program.pt2", "the program in 'program.pt2'"),
        ("weights.safetensors", None),
        ("wide-resnet(depth=28,width=10)", None),
        ("timm:lcnet_035@w.pt", "the loader of 'timm' models, on 'lcnet_035@w.pt'"),
    ],
)
def test_which_models_need_trust(spec, code):
    assert code_of_model(spec) == code


# Settings that hold text and can run nothing: names of what is registered, numbers, columns, folders.
HARMLESS = {
    "normalize", "split", "data_config", "revision", "image_column", "label_column", "norm", "eps", "threat", "attacks",
    "options", "replay", "loss", "device", "runner", "out", "freeze", "test_split", "extra_split", "objective", "update",
    "attack", "eps_schedule", "steps_schedule", "transforms", "mix", "validation_attack", "evaluate", "track",
}  # fmt: skip


@pytest.mark.parametrize("kind", [EvalConfig, TrainConfig])
def test_every_setting_that_may_name_code_is_asked_about(kind):
    """A setting that is added must be put into one of the two lists."""
    texts = {name for name, field in kind.model_fields.items() if "str" in str(field.annotation)} - HARMLESS
    unasked = {
        name
        for name in texts
        if name not in would_run({name: ["evil.py"] if name == "plugin" else "evil:evil.py:make"})
    }
    assert unasked == set()


def test_data_that_is_only_read_needs_no_trust():
    for spec in (None, "builtin:digits", "uoft-cs/cifar10", "/data/folder", "./a:b/c", r"C:\data", "mnist"):
        assert code_of_data(spec) is None


def unfinished(folder, kind, **values):
    """A run folder as a stranger would send it: started elsewhere, to be resumed here."""
    settings = build(kind, values=values).model_dump(mode="json")
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"plugin": ["evil.py"]},
        {"model": "evil.py:make"},
        {"attack_model": "../evil.py:make"},
        {"model": "run:network"},
        {"allow_pickle": True},
    ],
)
def test_a_run_of_somebody_else_is_not_resumed_with_its_code(place, capsys, settings):
    folder = unfinished(place / "theirs", EvalConfig, n=4, attacks="fgsm", **settings)
    assert main(["eval", "--resume", str(folder)]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "was not started here" in shown
    assert "--trust" in shown
    assert ran(place) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"plugin": ["evil.py"]},
        {"init": "evil.py:make"},
        {"duplicate": {"scheme": "hardest", "dose": 0.1}, "score_model": "evil.py:make"},
        {"extra_data": "extra.npz", "extra_labels": "evil.py:make"},
        {"extra_data": "mine:extra"},
    ],
)
def test_a_training_of_somebody_else_is_not_resumed_with_its_code(place, capsys, settings):
    folder = unfinished(place / "theirs", TrainConfig, **settings)
    assert main(["train", "--resume", str(folder)]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "was not started here" in shown
    assert "model = 'small-cnn'" not in shown  # an architecture runs nothing of theirs
    assert ran(place) == []


def test_a_run_without_code_goes_on_wherever_it_was_started(place, capsys):
    folder = unfinished(place / "theirs", EvalConfig, n=4, attacks="fgsm", eps="0.1")
    assert main(["eval", "--resume", str(folder), "--json"]) == 0


def test_named_again_or_trusted_a_run_of_somebody_else_goes_on(place, capsys):
    for number, more in enumerate((["--plugin", "evil.py"], ["--trust"])):
        folder = unfinished(place / f"theirs-{number}", EvalConfig, n=4, attacks="late", plugin=["evil.py"])
        assert main(["eval", "--resume", str(folder), "--json", *more]) == 0
        assert ran(place) == [place / "evil.ran"]
        (place / "evil.ran").unlink()


def test_ones_own_run_is_resumed_without_a_word(place, capsys):
    def stop(progress):
        raise KeyboardInterrupt

    config = build(EvalConfig, values={"n": 4, "attacks": "late", "plugin": ["evil.py"]})
    with pytest.raises(KeyboardInterrupt):
        jobs.run_evaluation(config, folder=place / "mine", progress=stop)
    assert main(["eval", "--resume", str(place / "mine"), "--json"]) == 0


def working(place):
    """Return the stranger's run folder that `place` holds, with weights that fit the network of its file."""
    save_weights(place / "network", "best", load_model("builtin:digits-robust"))
    return place / "network"


def test_a_network_of_somebody_else_is_not_built_by_a_file_unasked(finished, place, capsys):
    working(place)
    uses = [
        ["eval", "--model", "run:network", "--n", "4", "--attacks", "fgsm"],
        ["eval", "--attack-model", "run:network@best", "--n", "4", "--attacks", "fgsm"],
        ["certify", "--model", "run:network", "--n", "4"],
        ["train", "--init", "run:network", "--steps", "1"],
        ["verify", str(write_bundle(finished, place / "bundle")), "--model", "run:network"],
    ]
    for words in uses:
        assert main(words) == 2, words
        shown = " ".join(capsys.readouterr().err.split())
        assert "evil.py" in shown, words
        assert "--trust" in shown, words
    with raises("untrusted-code", UserError, "was not run"):
        load_model("run:network")
    assert ran(place) == []


@pytest.mark.parametrize("command", ["eval", "verify"])
def test_a_network_that_is_trusted_once_is_built_also_later(finished, place, capsys, command, monkeypatch):
    monkeypatch.setenv("ROBUSTDUP_CACHE", str(place / "cache"))
    monkeypatch.setattr("robustdup.records.origin._noted", set())
    folder = working(place)
    words = {
        "eval": ["eval", "--n", "4", "--attacks", "fgsm", "--eps", "0.1", "--no-diagnostics"],
        "verify": ["verify", str(write_bundle(finished, place / "bundle"))],
    }[command]
    assert main([*words, "--model", "run:network", "--trust", "--json"]) == 0
    assert "evil.py" in capsys.readouterr().err  # what runs is said
    assert ran(place) == [place.parent / "evil.ran"]
    monkeypatch.setattr("robustdup.records.origin._noted", set())
    assert load_model("run:network")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    path = folder / "network.json"
    path.write_text(path.read_text().replace(str(place.parent / "evil.py"), str(place / "evil.py")))
    with raises("untrusted-code", UserError):  # another file than the one that was trusted
        load_model("run:network")


def test_what_was_made_here_is_known_by_its_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTDUP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("robustdup.records.origin._noted", set())
    assert not was_made_here(b"a record")
    note_made_here(b"a record")
    note_made_here(b"another")
    monkeypatch.setattr("robustdup.records.origin._noted", set())  # as in another process
    assert was_made_here(b"a record")
    assert not was_made_here(b"a record ")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROBUSTDUP_CACHE", str(tmp_path / "file"))  # cannot be written: nothing is known, nothing fails
    note_made_here(b"a third")
    assert not was_made_here(b"a record")
    assert was_made_here(b"a third")  # by this process alone


def test_a_rank_says_that_it_rests_on_a_record_from_elsewhere(finished, tmp_path, capsys):
    assert main(["leaderboard", "rank", str(finished)]) == 0
    assert "not made here" not in capsys.readouterr().out
    shutil.copytree(finished, tmp_path / "copy")
    path = tmp_path / "copy" / "record.json"
    path.write_text(path.read_text().replace('"n": 10,', '"n": 10 ,'))
    assert main(["leaderboard", "rank", str(path)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("By what the record states alone")
    assert main(["leaderboard", "rank", str(path), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["made_here"] is False
    assert "claims" in content["rests_on"]
    assert position(load_record(path)).rests_on == ""
