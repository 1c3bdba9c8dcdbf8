"""Runs on corruptions that are interrupted and go on, and their bundles: what is made again must be what was said."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from published_sets import Bright, made_here, published
from robustdup_corruptions import run as jobs
from robustdup_corruptions.run import finished_corruptions, run_corruptions
from robustdup_corruptions.tables import read_answers
from torch import nn

import robustdup
from robustdup.cli.main import main
from robustdup.config import EvalConfig, build
from robustdup.evidence.bundle import _canonical, _digest, write_bundle
from robustdup.evidence.fields import leaves
from tests.raising import raises
from tests.test_evidence import changed, holders, split_path

KINDS = ["snow", "fog"]


def config(data, **settings):
    values = {
        "data": str(data),
        "model": "python",
        "threat": "corruptions(severities=[1,2,5])",
        "threads": 1,
        **settings,
    }
    return build(EvalConfig, values=values)


def interrupted(after):
    """Return what is told of the sets and interrupts before set number `after`, as a person would."""

    def tell(name, number, total):
        if number == after:
            raise KeyboardInterrupt

    return tell


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder of published images and a whole run on it."""
    place = tmp_path_factory.mktemp("whole")
    published(place / "CIFAR-10-C", KINDS)
    run = run_corruptions(config(place / "CIFAR-10-C"), model=Bright(), folder=place / "run")
    return place, run


def same(run, other):
    """Compare what was found: all but times and names."""
    ours, theirs = (each.record.model_dump(exclude={"seconds", "created", "run_id"}) for each in (run, other))
    return ours == theirs and all(list(run.table[name]) == list(other.table[name]) for name in run.table)


def test_a_run_goes_on_after_an_interruption_to_the_same_result(finished, tmp_path, monkeypatch):
    place, whole = finished
    settings = config(place / "CIFAR-10-C")
    with pytest.raises(KeyboardInterrupt):
        run_corruptions(settings, model=Bright(), folder=tmp_path / "run", progress=interrupted(4))
    with raises("unfinished-run", robustdup.UserError, "--resume"):
        run_corruptions(settings, model=Bright(), folder=tmp_path / "run")
    judged, judge = [], jobs._judge_set
    monkeypatch.setattr(
        jobs, "_judge_set", lambda context, part: judged.append((part.kind, part.severity)) or judge(context, part)
    )
    again = run_corruptions(settings, model=Bright(), folder=tmp_path / "run", resume=True)
    assert judged == [("fog", 2), ("fog", 5)]
    assert same(again, whole)
    assert not (tmp_path / "run" / "state").exists()
    assert finished_corruptions(tmp_path / "run").kinds == whole.record.kinds


def test_what_a_kill_has_damaged_is_judged_again(finished, tmp_path):
    place, whole = finished
    with pytest.raises(KeyboardInterrupt):
        run_corruptions(config(place / "CIFAR-10-C"), model=Bright(), folder=tmp_path, progress=interrupted(3))
    kept = sorted((tmp_path / "state" / "sets").iterdir())
    assert len(kept) == 3
    kept[0].write_bytes(kept[0].read_bytes()[:100])
    kept[1].write_bytes(b"")
    assert same(run_corruptions(config(place / "CIFAR-10-C"), model=Bright(), folder=tmp_path, resume=True), whole)


class Other(Bright):
    """The same answers with a weight that the first one did not have."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Linear(1, 1)


def test_a_run_goes_on_only_with_the_same_settings_and_weights(finished, tmp_path):
    place, _ = finished
    with pytest.raises(KeyboardInterrupt):
        run_corruptions(config(place / "CIFAR-10-C"), model=Bright(), folder=tmp_path, progress=interrupted(1))
    with raises("other-run", robustdup.UserError, "seed"):
        run_corruptions(config(place / "CIFAR-10-C", seed=1), model=Bright(), folder=tmp_path, resume=True)
    with raises("other-run", robustdup.UserError, "weights"):
        run_corruptions(config(place / "CIFAR-10-C"), model=Other(), folder=tmp_path, resume=True)


def bundled(place, folder, change=None, **columns):
    """Write the bundle of a run whose record is passed through `change` and whose table has other columns."""
    run = folder / "run"
    run.mkdir(parents=True)
    content = json.loads((place / "run" / "record.json").read_text())
    if change is not None:
        change(content)
    (run / "record.json").write_text(json.dumps(content))
    table = pq.read_table(place / "run" / "corrupted.parquet")
    for name, edit in columns.items():
        values = edit(table[name].to_numpy().copy())
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, run / "corrupted.parquet")
    return write_bundle(run, folder / "bundle")


def test_a_bundle_is_accepted_where_everything_comes_out_again(finished, tmp_path):
    place, whole = finished
    found = robustdup.verify(bundled(place, tmp_path), Bright())
    assert found.accepted, found.problems
    assert (found.n, found.n_sets, found.n_differing) == (20, 6, 0)
    assert found.corruption_accuracy == found.stated == whole.record.corruption_accuracy
    assert "judged again here on 6 sets" in found.headline()


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_every_field_is_in_one_class_and_none_that_is_looked_at_can_be_changed(finished, tmp_path, every):
    place, _ = finished
    honest = robustdup.verify(bundled(place, tmp_path / "honest"), Bright())
    classes = [honest.rechecked, honest.consistent, honest.only_stated]
    fields = [field for kind in classes for field in kind]
    content = json.loads((place / "run" / "record.json").read_text())
    columns = {f"table.{name}" for name in pq.read_schema(place / "run" / "corrupted.parquet").names}
    assert len(fields) == len(set(fields))
    assert {field for field in fields if field.startswith(("record.", "table."))} == {*leaves(content), *columns}
    known = [field for kind in classes[:2] for field in kind if field.startswith("record.")]
    assert len(known) > 30
    let_pass = []
    for number, field in enumerate(known[::every]):

        def change(content, field=field):
            holder, key = next(holders(content, split_path(field, content)))
            holder[key] = changed(holder[key])

        with contextlib.suppress(robustdup.UserError):  # refused as a damaged record, or as another one
            if robustdup.verify(bundled(place, tmp_path / str(number), change), Bright()).accepted:
                let_pass.append(field)
    assert let_pass == []


@pytest.mark.parametrize("column", ["index", "label", "kind", "severity", "prediction", "correct_share", "margin"])
def test_no_column_of_the_table_can_be_changed(finished, tmp_path, column):
    def other(values):
        values[3] = values[-1] if column == "kind" else values[3] + 1
        return values

    assert not robustdup.verify(bundled(finished[0], tmp_path, **{column: other}), Bright()).accepted


def better(content):
    content["corruption_accuracy"]["value"] += 0.01


def kind_better(content):
    content["kinds"][1]["severities"][0]["accuracy"]["value"] -= 0.05


def one_other(values):
    values[7] = (values[7] + 1) % 10
    return values


@pytest.mark.parametrize(
    ("change", "columns", "word"),
    [
        (better, {}, "corruption_accuracy does not follow"),
        (kind_better, {}, "kinds does not follow"),
        (lambda content: content.update(seed=9), {}, "seed does not follow"),
        (lambda content: content["model"].update(fingerprint="0" * 64), {}, "weights"),
        (lambda content: content["data"].update(fingerprint="0" * 64), {}, "images or labels"),
        (lambda content: content["kinds"][0]["severities"][2].update(pixels="0" * 64), {}, "snow 5"),
        (None, {"prediction": one_other}, "answers otherwise here on 1 images"),
        (None, {"label": one_other}, "about other images"),
    ],
)  # fmt: skip
def test_a_bundle_that_says_otherwise_is_refused(finished, tmp_path, change, columns, word):
    found = robustdup.verify(bundled(finished[0], tmp_path, change, **columns), Bright())
    assert not found.accepted
    assert word in " ".join(found.problems)


def without_pixels(content):
    for kind in content["kinds"]:
        for part in kind["severities"]:
            part["pixels"] = None


class Tiny(Bright):
    """The same classes by logits a million times smaller."""

    def forward(self, images):
        return super().forward(images) * 1e-6


def all_wrong(content):
    for accuracy in (content["corruption_accuracy"], *(part["accuracy"] for part in content["kinds"])):
        accuracy.update(value=0.0, low=0.0)
    for kind in content["kinds"]:
        for part in kind["severities"]:
            part["accuracy"].update(value=0.0, low=0.0)


def test_no_size_of_logits_makes_room_for_claims(finished, tmp_path):
    folder = finished[0] / "CIFAR-10-C"
    run_corruptions(config(folder), model=Tiny(), folder=tmp_path / "run")
    assert robustdup.verify(bundled(tmp_path, tmp_path / "honest"), Tiny()).accepted
    other = {"prediction": lambda values: (values + 1) % 10, "correct_share": lambda values: 0 * values}
    assert not robustdup.verify(bundled(tmp_path, tmp_path / "forged", all_wrong, **other), Tiny()).accepted


def test_a_bundle_that_leaves_out_what_its_images_were_is_refused(finished, tmp_path):
    found = robustdup.verify(bundled(finished[0], tmp_path, without_pixels), Bright())
    assert "are others here" in " ".join(found.problems)


@pytest.mark.parametrize("column", ["index", "label", "kind", "severity", "prediction", "correct_share", "margin"])
def test_columns_of_other_kinds_are_refused(finished, tmp_path, column):
    odd = {"kind": np.arange}.get(column, lambda n: np.array(["x"] * n))
    with raises("refused-bundle", robustdup.UserError, column):
        robustdup.verify(bundled(finished[0], tmp_path, **{column: lambda values: odd(len(values))}), Bright())


def test_a_column_that_stands_twice_is_refused(finished, tmp_path):
    folder = bundled(finished[0], tmp_path)
    table = pq.read_table(folder / "corrupted.parquet")
    pq.write_table(table.append_column("margin", table["margin"]), tmp_path / "run" / "corrupted.parquet")
    with raises("refused-bundle", robustdup.UserError, "other columns"):
        robustdup.verify(write_bundle(tmp_path / "run", tmp_path / "again"), Bright())


class Chance(Bright):
    """Answers by chance."""

    def forward(self, images):
        return torch.randn(len(images), 10)


def test_a_model_by_chance_is_not_what_a_wide_interval_says(finished, tmp_path):
    run_corruptions(config(finished[0] / "CIFAR-10-C"), model=Chance(), folder=tmp_path / "run")

    def change(content):
        content["corruption_accuracy"].update(value=0.99, low=0.0, high=1.0)

    found = robustdup.verify(bundled(tmp_path, tmp_path / "forged", change), Chance())
    assert "outside the interval of the other" in " ".join(found.problems)


def test_a_folder_whose_name_begins_with_a_tilde_is_verified_and_shown(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundled(finished[0], tmp_path / "~mine")
    assert robustdup.verify("~mine/bundle", Bright()).accepted
    assert read_answers(Path("~mine/run")) is not None


def test_other_images_in_the_folder_and_a_changed_bundle_are_noticed(finished, tmp_path):
    place, _ = finished
    bundle = bundled(place, tmp_path)
    published(tmp_path / "other", KINDS)
    pixels = np.load(tmp_path / "other" / "fog.npy")
    pixels[85, 0, 0, 0] ^= 1
    np.save(tmp_path / "other" / "fog.npy", pixels)
    found = robustdup.verify(bundle, Bright(), data=None)
    assert found.accepted
    from robustdup_corruptions.evidence import verify_corruptions

    moved = verify_corruptions(bundle, {"data": str(tmp_path / "other")}, model=Bright())
    assert moved.n_other_pixels == 1
    assert "The images of 1 sets are others here: fog 5" in " ".join(moved.problems)
    (bundle / "record.json").write_text((bundle / "record.json").read_text().replace("snow", "snov"))
    with raises("refused-bundle", robustdup.UserError, "record.json was changed"):
        robustdup.verify(bundle, Bright())


def test_a_manifest_that_names_other_weights_than_the_record_is_refused(finished, tmp_path):
    bundle = bundled(finished[0], tmp_path)
    content = json.loads((bundle / "manifest.json").read_text())
    content = {**{key: value for key, value in content.items() if key != "sha256"}, "weights": "0" * 64}
    (bundle / "manifest.json").write_bytes(_canonical({**content, "sha256": _digest(content)}))
    assert "manifest's weights" in " ".join(robustdup.verify(bundle, Bright()).problems)


def test_a_bundle_of_objects_in_memory_asks_for_them(finished, tmp_path):
    with raises("bad-option", robustdup.UserError, "--model"):
        robustdup.verify(bundled(finished[0], tmp_path))


@made_here
def test_on_the_command_line_images_made_here_are_bundled_resumed_and_verified(tmp_path, capsys):
    run, bundle = str(tmp_path / "run"), str(tmp_path / "bundle")
    words = ["--threat", "corruptions(kinds=[contrast],severities=[1,5])", "--n", "12", "--threads", "1"]
    assert main(["eval", *words, "--out", run, "--bundle", bundle, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main(["eval", "--resume", run, "--json"]) == 0  # it is done: what it found is shown
    assert json.loads(capsys.readouterr().out) == first
    assert main(["verify", bundle]) == 0
    shown = capsys.readouterr().out
    assert "accepted" in shown
    assert "nobody signed it" in shown
    assert main(["verify", bundle, "--replay", "0.1"]) == 2
    assert len({part["pixels"] for part in first["kinds"][0]["severities"]}) == 2


def test_bundles_of_corruptions_are_signed_too(tmp_path, capsys):
    pytest.importorskip("cryptography")
    from tests.test_signature import key_file

    published(tmp_path / "CIFAR-10-C", ["fog"])
    (tmp_path / "bright.py").write_text("from published_sets import Bright as make")
    key, bundle = key_file(tmp_path / "key"), str(tmp_path / "bundle")
    words = ["--threat", "corruptions(severities=[1])", "--data", str(tmp_path / "CIFAR-10-C"), "--threads", "1"]
    model = ["--model", f"{tmp_path / 'bright.py'}:make"]
    run = ["--out", str(tmp_path / "run"), "--bundle", bundle, "--sign", str(key), "--json"]
    assert main(["eval", *words, *model, *run]) == 0
    assert main(["verify", bundle, *model, "--signer", f"{key}.pub"]) == 0
    assert "(ada@example)" in capsys.readouterr().out
    assert main(["verify", bundle, *model, "--signer", f"{key_file(tmp_path / 'other')}.pub"]) == 2
    assert "none of --signer" in " ".join(capsys.readouterr().err.split())
