"""A bundle that is dressed up is refused: each field is changed in turn, and each kind of forgery that was tried."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import robustdup
from robustdup import UserError, jobs
from robustdup.cli.main import main
from robustdup.config import EvalConfig, build
from robustdup.errors import RunError
from robustdup.evidence import bundle as bundles
from robustdup.evidence.fields import leaves
from robustdup.models.adapt import Adaptation, adapted
from robustdup.records import SAMPLES_SCHEMA, load_samples, save_samples
from robustdup.statistics import wilson
from tests.raising import raises

SETTINGS = {"n": 40, "attacks": "fgsm,pgd(steps=3),fab-t(steps=2,targets=2)", "eps": "0.05,0.1", "min_distance": True}
SETTINGS["seed"] = 3
KINDS = ("rechecked", "consistent", "only_stated")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on the built-in digits, with a curve, and its honest bundle."""
    folder = tmp_path_factory.mktemp("honest") / "run"
    jobs.run_evaluation(build(EvalConfig, values=SETTINGS), folder=folder)
    bundles.write_bundle(folder, folder.parent / "bundle")
    return folder


@pytest.fixture(scope="module")
def parts(finished):
    """What is asked for each forgery again and again: model and data."""
    return robustdup.load_model("builtin:digits-robust"), robustdup.load_data("builtin:digits", n=40)


@pytest.fixture(scope="module")
def honest(finished, parts):
    found = verify(finished.parent / "bundle", parts)
    assert (found.accepted, found.problems) == (True, [])
    return found


def verify(folder, parts):
    """Verify a bundle with the model and the data of `parts`, loaded once for all."""
    from robustdup.evaluation.context import make_context
    from robustdup.evidence.recheck import recheck_bundle

    model, data = parts
    return recheck_bundle(folder, make_context(model, None, torch.device("cpu")), data, same_data=True)


def forge(finished, to, *, record=None, rows=None, tensors=None):
    """Write a bundle with right hashes and other content: each argument changes its part in place."""
    run = to / "run"
    shutil.copytree(finished, run)
    path = run / "record.json"
    content = json.loads(path.read_text())
    if record is not None:
        record(content)
        path.write_text(json.dumps(content))
    if rows is not None:
        found = load_samples(run)
        table = found.to_pylist()
        table = rows(table) or table
        save_samples({name: [row[name] for row in table] for name in found.column_names}, run)
    if tensors is not None:
        place = run / "images" / "adversarial.safetensors"
        examples = {name: tensor.clone() for name, tensor in load_file(place).items()}
        tensors(examples)
        save_file(examples, place)
    return bundles.write_bundle(run, to / "bundle")


def refused(folder, parts):
    """Tell whether a bundle is refused, by a problem or by an error."""
    try:
        return not verify(folder, parts).accepted
    except UserError:
        return True


def refused_forgery(finished, to, parts, **changes):
    """Tell whether a forgery is refused: as what it is, or already as a damaged record."""
    try:
        folder = forge(finished, to, **changes)
    except UserError as error:
        return error.code == "damaged-record"
    return refused(folder, parts)


def changed(value):
    """Return another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value + 0.01
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, list):
        return [*value, value[0] if value else 1]
    if isinstance(value, dict):
        return {**value, "more": 1}
    return 0.5


def holders(content, parts):
    """Walk the places of a field in a record: (what holds it, its key there)."""
    if len(parts) == 1:
        yield content, parts[0]
        return
    inner = content[parts[0]]
    for one in inner if isinstance(inner, list) else [inner]:
        yield from holders(one, parts[1:])


def split_path(field, content):
    """Return the keys of 'record.curve.8/255.value': those of eps hold dots themselves."""
    keys, rest, at = [], field.removeprefix("record.").replace("[]", ""), content
    while rest:
        at = at[0] if isinstance(at, list) else at
        key = next(key for key in sorted(at, key=len, reverse=True) if rest == key or rest.startswith(f"{key}."))
        keys.append(key)
        at, rest = at[key], rest[len(key) + 1 :]
    return keys


def test_every_field_of_a_bundle_is_in_exactly_one_class(finished, honest):
    fields = [field for kind in KINDS for field in getattr(honest, kind)]
    assert len(fields) == len(set(fields))
    content = json.loads((finished / "record.json").read_text())
    assert {field for field in fields if field.startswith("record.")} == set(leaves(content))
    named = {field.split(".")[1] for field in fields if field.startswith("samples")}
    assert named == set(SAMPLES_SCHEMA.names)
    manifest = json.loads((finished.parent / "bundle" / "manifest.json").read_text())
    assert {field for field in fields if field.startswith("manifest.")} == {f"manifest.{name}" for name in manifest}
    assert {f"examples.{name}" for name in load_file(finished / "images" / "adversarial.safetensors")} <= set(fields)


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_field_of_the_record_that_is_rechecked_or_consistent_cannot_be_changed(
    finished, honest, parts, tmp_path, every
):
    known = [field for kind in KINDS[:2] for field in getattr(honest, kind) if field.startswith("record.")]
    assert len(known) > 60
    let_pass = []
    for number, field in enumerate(known[::every]):

        def change(content, field=field):
            holder, key = next(holders(content, split_path(field, content)))
            holder[key] = changed(holder[key])

        if not refused_forgery(finished, tmp_path / str(number), parts, record=change):
            let_pass.append(field)
    assert let_pass == []


def test_a_column_of_samples_that_is_rechecked_or_consistent_cannot_be_changed(finished, honest, parts, tmp_path):
    table = load_samples(finished).to_pylist()
    worst: dict = {}  # of each sample that is broken at the largest eps: the row whose example is kept
    for row in table:
        if row["outcome"] == "broken" and row["eps"] == "0.1":
            worst[row["position"]] = min(worst.get(row["position"], row), row, key=lambda row: row["margin"])
    rows = {
        "clean": [i for i, row in enumerate(table) if row["stage"] == -1],
        "kept": [i for i, row in enumerate(table) if any(row is kept for kept in worst.values())],
        "others": [i for i, row in enumerate(table) if row["outcome"] == "robust" and row["eps"] == "0.05"],
    }
    assert all(rows.values())
    let_pass = []
    for number, field in enumerate(f for kind in KINDS[:2] for f in getattr(honest, kind) if f.startswith("samples")):
        kinds, name = field.removeprefix("samples").split(".")
        for kind in [kinds.strip("[]")] if kinds else rows:

            def change(table, name=name, kind=kind):
                row = table[rows[kind][-1]]
                row[name] = {"robust": "broken", "broken": "robust"}.get(row[name], changed(row[name]))
                if name == "correct_share":
                    row[name] = float(row["outcome"] in ("broken", "misclassified"))
                if name == "min_distance" and kind != "clean":
                    row[name] = 0.5

            if not refused(forge(finished, tmp_path / f"{number}-{kind}", rows=change), parts):
                let_pass.append(f"{field} ({kind})")
    assert let_pass == []


@pytest.mark.parametrize("name", ["format", "command", "data", "weights", "files", "sha256"])
def test_a_field_of_the_manifest_cannot_be_changed(finished, parts, tmp_path, name):
    folder = forge(finished, tmp_path)
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    stated = content.pop("sha256")
    if name == "files":
        content["files"]["record.json"] = "0" * 64
    elif name != "sha256":
        content[name] = "robustdup.bundle/2" if name == "format" else content[name] + "x"
    digest = bundles._digest(content) if name != "sha256" else stated[:-1] + "x"
    path.write_bytes(bundles._canonical({**content, "sha256": digest}))
    assert refused(folder, parts)


# --- forgeries by kind: each with right hashes ---


def set_in(*path, to):
    def change(content):
        *outer, last = path
        for key in outer:
            content = content[key]
        content[last] = to(content[last]) if callable(to) else to

    return change


def clean_again(tensors):
    tensors["images"][:] = 0.0


def relabel(content):
    content["threat"] = {"norm": "L1", "eps": 40.0, "eps_text": "40"}
    content["config"] |= {"norm": "L1", "eps": "40"}


FORGED_RECORDS = {
    "interval": set_in("robust_accuracy", "low", to=lambda value: value + 0.05),
    "interval of the clean accuracy": set_in("clean_accuracy", "low", to=0.5),
    "what intervals speak of": set_in("interval_about", to="95% intervals about the whole split of 500"),
    "8-bit accuracy": set_in("robust_accuracy_8bit", to=0.99),
    "8-bit accuracy left out": set_in("robust_accuracy_8bit", to=None),
    "robust accuracy": set_in("robust_accuracy", to={"value": 0.94, "low": 0.9, "high": 0.97}),
    "accuracy of one class": set_in("per_class", 0, "robust_accuracy", to=0.123),
    "a class left out": set_in("per_class", to=lambda classes: classes[1:]),
    "curve": set_in("curve", "0.05", "value", to=0.99),
    "curve left out": set_in("curve", to={}),
    "status": set_in("status", to="failed"),
    "size of the split": set_in("data", "n_total", to=100_000),
    "how samples were chosen": set_in("data", "selection", to="all"),
    "class names": set_in("data", "class_names", to=lambda names: names[::-1]),
    "an attack invented": set_in("attacks", to=lambda attacks: [*attacks, {**attacks[0], "name": "autoattack"}]),
    "an attack renamed": set_in("attacks", 0, "name", to="autoattack"),
    "attacks left out": set_in("attacks", to=[]),
    "name of the model": set_in("model", "spec", to="robustbench:Wong2020Fast"),
    "name of the data": set_in("data", "spec", to="uoft-cs/cifar10"),
    "architecture": set_in("model", "architecture", to="WideResNet"),
    "number of classes": set_in("model", "num_classes", to=11),
    "parameters": set_in("model", "parameters", to=10**9),
    "another norm": set_in("threat", "norm", to="L2"),
    "a deterministic model that is called random": set_in("model", "randomized", to=True),
    "several draws of a deterministic model": set_in("model", "judge_draws", to=2),
    "no draws": set_in("model", "judge_draws", to=0),
    "NaN as robust accuracy": set_in("robust_accuracy", "value", to=math.nan),
    "NaN as clean accuracy": set_in("clean_accuracy", "value", to=math.nan),
    "NaN as an end of an interval": set_in("robust_accuracy", "high", to=math.nan),
    "NaN as 8-bit accuracy": set_in("robust_accuracy_8bit", to=math.nan),
    "infinite accuracy": set_in("robust_accuracy", "value", to=math.inf),
    "seed": set_in("seed", to=4),
    "settings of another eps": set_in("config", "eps", to="8/255"),
    "counts of an attack": set_in("attacks", 0, "n_broken", to=0),
    "smallest distances": set_in("min_distance", "median", to=0.5),
    "norm and eps relabelled, with the settings": relabel,
    "options of an attack": lambda content: [
        stage["options"].update(steps=1000)
        for stages in (content["attacks"], *content["curve_attacks"].values())
        for stage in stages
        if stage["name"] == "pgd"
    ],
    "samples said to be left out": set_in("n_not_attacked", to=3),
    "batches of a billion": set_in("model", "judged_in_batches_of", to=10**9),
    "batches of none": set_in("model", "judged_in_batches_of", to=0),
    "certificates that are not there": set_in(
        "certification", to={"n_certified": 5, "accuracy": {"value": 0.125, "low": 0.05, "high": 0.3}, "methods": {}}
    ),
    "a union that is none": set_in("union", to=[]) and set_in("threat", "norm", to="union"),
    "each attack on all samples": set_in("individual", to=True),
    "a wider tolerance": set_in("tolerance", to=0.1),
    "smallest distances left out": set_in("min_distance", to=None),
    "a sample more": set_in("n", to=41),
    "undecided samples": set_in("n_undecided", to=2),
    "a count as text": set_in("n", to=str),
    "a count as a fraction": set_in("n", to=float),
    "a number as true": set_in("schema_version", to=True),
    "a version before the first": set_in("schema_version", to=0),
    "a field of no version": set_in("robust_a\u0441curacy", to=0.99),
    "seconds below zero": set_in("seconds", to=-5.0),
    "passes below zero": set_in("passes", "referee", to=-1),
    "reliable for reasons against it": lambda content: content.update(reliable=True, unreliable_reasons=["masked"]),
    "dropped ones that come back": lambda content: [
        stage.update(broken_after=[[1, 5], [2, 3]])
        for stages in (content["attacks"], *content["curve_attacks"].values())
        for stage in stages
    ],
    "fewer than none dropped": lambda content: [
        stage.update(broken_after=[[1, -5]])
        for stages in (content["attacks"], *content["curve_attacks"].values())
        for stage in stages
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", FORGED_RECORDS)
def test_a_forged_record_is_refused(finished, parts, tmp_path, kind):
    assert refused_forgery(finished, tmp_path, parts, record=FORGED_RECORDS[kind])


def without_survivors(rows):
    """Take all rows of attacks on one survivor away."""
    survivor = next(row["position"] for row in rows[::-1] if row["outcome"] == "robust")
    return [row for row in rows if row["stage"] == -1 or row["position"] != survivor]


def with_column(name, value, *, of=lambda row: row["stage"] >= 0):
    def change(rows):
        for row in rows:
            if of(row):
                row[name] = value(row) if callable(value) else value

    return change


def broken(row):
    return row["outcome"] == "broken"


def clean(row):
    return row["stage"] == -1


FORGED_ROWS = {
    "a row removed": lambda rows: rows[:-1],
    "rows of a survivor removed": without_survivors,
    "a row on a clean image removed": lambda rows: rows[1:],
    "a row doubled": lambda rows: [*rows, rows[-1]],
    "a row on a clean image doubled": lambda rows: [rows[0], *rows],
    "a row invented": lambda rows: [*rows, {**rows[-1], "attack": "square", "stage": 3}],
    "a row of no sample": lambda rows: [*rows, {**rows[-1], "position": 40}],
    "an unknown outcome": with_column("outcome", "defended", of=broken),
    "a certified sample": with_column("outcome", "certified", of=broken),
    "an unknown clean outcome": with_column("outcome", "fine", of=clean),
    "labels": with_column("label", lambda row: (row["label"] + 1) % 10),
    "labels on clean images": with_column("label", lambda row: (row["label"] + 1) % 10, of=lambda row: True),
    "predictions on clean images": with_column("prediction", lambda row: (row["prediction"] + 1) % 10, of=clean),
    "predictions on examples": with_column("prediction", lambda row: (row["label"] + 5) % 10, of=broken),
    "margins on clean images": with_column("margin", lambda row: row["margin"] * 1.5, of=clean),
    "margins on examples": with_column("margin", lambda row: row["margin"] * 1.5, of=broken),
    "margins that are no numbers": with_column("margin", math.nan),
    "distances": with_column("distance", lambda row: row["distance"] / 2, of=broken),
    "distances outside": with_column("distance", 9.0),
    "half right": with_column("correct_share", 0.4, of=broken),
    "all robust": with_column("outcome", "robust", of=broken),
    "all undecided": with_column("outcome", "undecided", of=broken),
    "hashes": with_column("image_sha256", "0" * 64, of=lambda row: True),
    "eps of rows": with_column("eps", "0.2"),
}


@pytest.mark.parametrize("kind", FORGED_ROWS)
def test_forged_rows_are_refused(finished, parts, tmp_path, kind):
    assert refused(forge(finished, tmp_path, rows=FORGED_ROWS[kind]), parts)


FORGED_TENSORS = {
    "labels": lambda tensors: tensors["labels"].add_(1),
    "index": lambda tensors: tensors["index"].add_(1),
    "empty images": clean_again,
    "far away": lambda tensors: tensors["images"].add_(0.3),
    "not finite": lambda tensors: tensors["images"].fill_(math.nan),
    "other examples of survivors": lambda tensors: tensors["images"].mul_(0.999),
    "a tensor more": lambda tensors: tensors.update(more=torch.zeros(1)),
    "another type": lambda tensors: tensors.update(images=tensors["images"].double()),
    "labels as fractions": lambda tensors: tensors.update(labels=tensors["labels"].double()),
    "an index of 32 bits": lambda tensors: tensors.update(index=tensors["index"].int()),
    "fewer": lambda tensors: tensors.update({name: tensor[:39].clone() for name, tensor in tensors.items()}),
}


@pytest.mark.parametrize("kind", FORGED_TENSORS)
def test_forged_examples_are_refused(finished, parts, tmp_path, kind):
    assert refused(forge(finished, tmp_path, tensors=FORGED_TENSORS[kind]), parts)


def test_a_manifest_whose_files_are_no_names_and_digests_is_refused(finished, tmp_path):
    folder = bundles.write_bundle(finished, tmp_path / "bundle")
    content = json.loads((folder / "manifest.json").read_text())
    content.pop("sha256")
    for files in ([["record.json", "x"]], {"record.json": []}, None, "record.json"):
        other = {**content, "files": files}
        (folder / "manifest.json").write_bytes(bundles._canonical({**other, "sha256": bundles._digest(other)}))
        with raises("refused-bundle", UserError):
            bundles.check_manifest(folder)


def test_names_that_stand_twice_are_refused(finished, parts, tmp_path):
    """What one reader takes for 94% is something else to the next."""
    folder = forge(finished, tmp_path)
    path = tmp_path / "run" / "record.json"
    path.write_text(path.read_text().replace('"n": 40,', '"n": 40, "n": 40,'))
    with raises("damaged-record", UserError, "stands twice"):
        bundles.write_bundle(tmp_path / "run", tmp_path / "again")
    (folder / "record.json").write_bytes(path.read_bytes())
    assert refused(folder, parts)


def test_rows_beyond_what_the_record_speaks_of_are_not_read(finished, parts, tmp_path, monkeypatch):
    """A table that unpacks to gigabytes: it is counted and measured first."""
    from robustdup import inflation
    from robustdup.evidence import replay

    many = forge(finished, tmp_path / "many", rows=lambda rows: rows * 20)
    honest = forge(finished, tmp_path / "honest")
    monkeypatch.setattr(replay, "load_samples", lambda folder: pytest.fail("it was read"))
    with raises("refused-bundle", UserError, "rows; its record speaks of"):
        verify(many, parts)
    monkeypatch.setattr(inflation, "ROOM", 1000)
    monkeypatch.setattr(inflation, "MOST", 0)
    with raises("unpacks-too-large", UserError, "samples.parquet"):
        verify(honest, parts)


def test_columns_that_no_version_writes_are_refused(finished, parts, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = forge(finished, tmp_path)
    table = load_samples(folder)
    for number, other in enumerate((table.drop_columns("margin"), table.append_column("more", pa.nulls(len(table))))):
        pq.write_table(other, tmp_path / "run" / "samples.parquet")
        assert refused(bundles.write_bundle(tmp_path / "run", tmp_path / f"bundle-{number}"), parts)
    pq.write_table(table.append_column("outcome", table["outcome"]), tmp_path / "run" / "samples.parquet")
    with raises("damaged-record", UserError, "a column twice"):
        load_samples(tmp_path / "run")


ODD = {
    bool: [None],
    int: [10**400, -1, -(2**63)],
    float: [1e308, -0.0, math.nan, -math.inf],
    str: ["", "x" * 100_000, "\x1b[2J[/bold]\u202e\0", "../../etc/passwd"],
    list: [[], [[[]]], [None]],
    dict: [{}, {"": None}],
    type(None): [0, "x", [], {}],
}


@pytest.mark.parametrize("every", [40, pytest.param(1, marks=pytest.mark.slow)])
def test_odd_values_are_refused_or_only_stated_and_crash_nothing(finished, honest, parts, tmp_path, every):
    content = json.loads((finished / "record.json").read_text())
    fields, values = [field for field in leaves(content) if ".config." not in field and ".options." not in field], []
    for field in fields:
        with contextlib.suppress(TypeError):  # of a list in which only some have a part of this name
            holder, key = next(holders(content, split_path(field, content)))
            values += [(field, value) for value in ODD[type(holder[key])]]
    known, let_pass = {field for kind in KINDS[:2] for field in getattr(honest, kind)}, []
    for number, (field, value) in enumerate(values[every // 2 :: every]):

        def change(content, field=field, value=value):
            holder, key = next(holders(content, split_path(field, content)))
            holder[key] = value

        before, after = (json.loads(json.dumps(content)) for _ in range(2))
        change(after)
        passed = not refused_forgery(finished, tmp_path / str(number), parts, record=change)
        if passed and field in known and after != before:
            let_pass.append((field, value))
    assert let_pass == []


def other_files(folder):
    """Files that are no files, or far larger than they look, in place of what a bundle holds."""
    yield "a pipe", lambda path: os.mkfifo(path)
    yield "a device", lambda path: path.symlink_to("/dev/zero")
    yield "a link that goes round", lambda path: path.symlink_to(path)
    yield "a folder", lambda path: path.mkdir()
    yield "nothing", lambda path: None
    yield "terabytes of nothing", lambda path: (path.touch(), os.truncate(path, 1 << 40))


@pytest.mark.parametrize(
    "name", ["record.json", "samples.parquet", "adversarial.safetensors", "manifest.json", "signature.json"]
)
def test_files_of_a_bundle_that_are_none_are_refused_at_once(finished, tmp_path, name, capsys):
    folder = bundles.write_bundle(finished, tmp_path / "bundle")
    for kind, make in other_files(folder):
        path = folder / name
        if path.is_symlink() or path.is_file() or path.is_fifo():
            path.unlink()
        elif path.is_dir():
            path.rmdir()
        make(path)
        code = main(["verify", str(folder)])
        err = capsys.readouterr().err
        assert code == 2 or (name == "signature.json" and kind != "terabytes of nothing"), (kind, err)
        assert "not foreseen" not in err, (kind, err)


@pytest.mark.parametrize(("norm", "eps"), [("L1", "64"), ("L2", "8"), ("L1", "1000000")])
def test_a_ball_in_which_any_image_lies_is_refused(finished, parts, tmp_path, norm, eps):
    def change(content):
        content["threat"] = {"norm": norm, "eps": float(eps), "eps_text": eps}

    with raises("vacuous-ball", UserError, "random noise lies in it"):
        verify(forge(finished, tmp_path, record=change), parts)


class Around(torch.nn.Module):
    """The built-in digits network with other logits of the same meaning."""

    def __init__(self, scale=1.0, offset=0.0):
        super().__init__()
        self.net, self.scale, self.offset = robustdup.load_model("builtin:digits-robust"), scale, offset

    def forward(self, images):
        return self.net(images) * self.scale + self.offset


def all_broken(rows):
    for row in rows:
        if row["outcome"] == "robust":
            row.update(outcome="broken", correct_share=0.0, prediction=(row["label"] + 1) % 10)
            row["margin"] = -1e-3 * abs(row["margin"])


def nothing_robust(content):
    content["robust_accuracy"] = {"value": 0.0, "low": 0.0, "high": wilson(0, content["n"])[1]}
    content["robust_accuracy_8bit"] = 0.0
    for attack in content["attacks"]:
        attack.update(n_broken=attack["n_attacked"], robust_accuracy_after=0.0)
    for part in content["per_class"]:
        part["robust_accuracy"] = 0.0


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-6, 0.0), (1.0, 1e5), (1e4, 0.0)])
def test_no_size_of_logits_makes_room_for_claims(tmp_path, scale, offset):
    """What is within rounding goes by the margins of the model: one of small logits would have all of them within it."""
    data = robustdup.load_data("builtin:digits", n=12)
    model = Around(scale, offset)
    options = {"eps": "0.1", "attacks": "fgsm", "diagnostics": False}
    robustdup.evaluate(model, data.images, data.labels, out=str(tmp_path / "run"), **options)
    honest = robustdup.verify(
        bundles.write_bundle(tmp_path / "run", tmp_path / "honest"), model, data.images, data.labels
    )
    assert (honest.accepted, honest.problems) == (True, [])
    forged = forge(tmp_path / "run", tmp_path / "forged", record=nothing_robust, rows=all_broken)
    found = robustdup.verify(forged, model, data.images, data.labels)
    assert "is claimed to be broken" in " ".join(found.problems)


def test_an_order_of_outputs_that_makes_a_model_fail_is_refused(tmp_path):
    """Images in memory have no names of classes: a stranger's order would prove that a good model is at most 0% robust."""
    data, order = robustdup.load_data("builtin:digits", n=12), (*range(1, 10), 0)
    turned, options = (
        adapted(Around(), Adaptation(order=order)),
        {"eps": "0.1", "attacks": "fgsm", "diagnostics": False},
    )
    robustdup.evaluate(turned, data.images, data.labels, out=str(tmp_path / "run"), **options)
    folder = bundles.write_bundle(tmp_path / "run", tmp_path / "bundle")
    with raises("refused-bundle", UserError, "in which it is right on 0 of 12"):
        robustdup.verify(folder, Around(), data.images, data.labels)
    none = forge(tmp_path / "run", tmp_path / "none", record=set_in("model", "class_order", to=[99] * 10))
    with raises("refused-bundle", UserError, "order of outputs that it states is none"):
        robustdup.verify(none, Around(), data.images, data.labels)


def test_what_a_bundle_has_the_model_asked_with_is_said(tmp_path):
    settings = {"n": 8, "attacks": "fgsm", "eps": "0.1", "diagnostics": False, "normalize": "0.5,1000"}
    jobs.run_evaluation(build(EvalConfig, values=settings), folder=tmp_path / "run")
    folder = bundles.write_bundle(tmp_path / "run", tmp_path / "bundle")
    assert "asked with normalize = 0.5,1000" in " ".join(jobs.verify_bundle(folder).notes)
    assert jobs.verify_bundle(folder, {"normalize": "0.5,1000"}).notes == []


def test_a_model_in_memory_is_asked_as_the_verifier_says(tmp_path):
    model, data = robustdup.load_model("builtin:digits-robust"), robustdup.load_data("builtin:digits", n=8)
    options = {"attacks": "fgsm", "eps": "0.1", "diagnostics": False, "normalize": "0.5,1000"}
    robustdup.evaluate(model, data.images, data.labels, out=tmp_path / "run", **options)
    folder = bundles.write_bundle(tmp_path / "run", tmp_path / "bundle")
    stated = robustdup.verify(folder, model, data.images, data.labels)
    assert stated.accepted
    assert "asked with normalize = 0.5,1000" in " ".join(stated.notes)
    named = robustdup.verify(folder, model, data.images, data.labels, normalize="0.5,1000")
    assert (named.accepted, named.notes) == (True, [])
    with raises("refused-bundle", UserError, "weights"):  # before, the setting was passed over in silence
        robustdup.verify(folder, model, data.images, data.labels, normalize="0.1,1")
    with raises("bad-option", UserError, "robustdup.verify(folder, model, images, labels)"):
        robustdup.verify(folder, data=data)


# --- what honest bundles look like ---


@pytest.mark.parametrize(
    "settings",
    [
        {"attacks": "fgsm", "eps": "0.1"},
        {"attacks": "fgsm,pgd(steps=3)", "eps": "0.1", "individual": True},
        {"attacks": "fgsm", "eps": "0.02", "norm": "L2"},
        {"attacks": "pgd(steps=2)", "eps": "0.05,0.1,0.15", "batch_size": 7},
        {"attacks": "fgsm", "eps": "0.1", "sample": 20},
        {"attacks": "fgsm,fab-t(steps=3)", "eps": "0.1", "min_distance": True},
    ],
)
def test_honest_bundles_of_all_kinds_are_accepted(tmp_path, settings):
    settings = {"n": None if "sample" in settings else 20, **settings}
    jobs.run_evaluation(build(EvalConfig, values=settings), folder=tmp_path / "run")
    found = jobs.verify_bundle(bundles.write_bundle(tmp_path / "run", tmp_path / "bundle"))
    assert (found.accepted, found.problems) == (True, [])


def test_what_is_proven_comes_first_and_the_three_classes_are_printed(finished, honest, tmp_path, capsys):
    folder = str(finished.parent / "bundle")
    assert main(["verify", folder]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    wrong, n_broken = honest.n_misclassified, honest.n_broken
    assert honest.at_most == pytest.approx((40 - wrong - n_broken) / 40)
    assert f"At most {100 * honest.at_most:.2f}% robust (proven here by {n_broken} adversarial examples" in shown
    assert f"That stronger attacks fail on the other {honest.n_left} samples is only stated." in shown
    for words in ("rechecked here", "consistent", "only stated"):
        assert f"{words} (" in shown
    assert main(["verify", folder, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {"record.attacks[].seconds", "record.seed", "record.diagnostics"} <= set(content["only_stated"])
    assert "record.robust_accuracy.low" in content["consistent"]
    assert "record.robust_accuracy_8bit" in content["rechecked"]


@pytest.mark.parametrize("words", [["--eps", "0.2"], ["--norm", "L2"], ["--eps", "0.05"]])
def test_another_threat_model_than_the_bundles_is_refused(finished, capsys, words):
    assert main(["verify", str(finished.parent / "bundle"), *words]) == 2
    assert "Leave out --norm and --eps" in " ".join(capsys.readouterr().err.split())


def test_the_bundles_own_threat_model_may_be_named(finished, capsys):
    assert main(["verify", str(finished.parent / "bundle"), "--norm", "Linf", "--eps", "1/10", "--json"]) == 0


def rehashed(finished, to, only=None):
    """What was done to a network that one FGSM step breaks: a bundle that says of each sample that it survived."""

    def innocent(rows):
        clean = {row["position"]: row for row in rows if row["stage"] == -1}
        right = [position for position, row in clean.items() if row["outcome"] == "correct"]
        right = sorted(right, key=lambda position: clean[position]["margin"])[:only]
        of_stage = {row["stage"]: row for row in rows if row["stage"] >= 0}
        invented = [
            {**of_stage[stage], **clean[position], **{name: of_stage[stage][name] for name in ("eps", "attack", "stage")},
             "outcome": "robust", "min_distance": None, "forward_passes": 1, "violation": ""}
            for stage in sorted(of_stage) for position in right
        ]  # fmt: skip
        return [*clean.values(), *invented]

    def record(content):
        content["robust_accuracy"] = content["clean_accuracy"]
        content["robust_accuracy_8bit"] = content["clean_accuracy"]["value"]
        right = only or round(content["n"] * content["clean_accuracy"]["value"])
        for attack in content["attacks"]:
            attack |= {"n_attacked": right, "n_broken": 0, "violations": 0, "violation_kinds": {}, "forward_passes": 1,
                       "backward_passes": 0, "robust_accuracy_after": content["clean_accuracy"]["value"]}  # fmt: skip
        for part in content["per_class"]:
            part["robust_accuracy"] = part["clean_accuracy"]
        content["passes"] |= {"attacks_forward": len(content["attacks"]), "attacks_backward": 0}

    clean = load_file(finished / "images" / "clean.safetensors")["images"]
    images = clean.float() / 255 if clean.dtype == torch.uint8 else clean
    return forge(
        finished, to, rows=innocent, record=record, tensors=lambda tensors: tensors.update(images=images.contiguous())
    )


def test_a_bundle_without_examples_proves_nothing_but_its_clean_accuracy_and_a_replay_refutes_it(tmp_path, capsys):
    settings = {"n": 30, "attacks": "fgsm,pgd(steps=3)", "eps": "0.15", "model": "builtin:digits-standard"}
    record = jobs.run_evaluation(build(EvalConfig, values=settings), folder=tmp_path / "run").record
    assert record.robust_accuracy.value < record.clean_accuracy.value - 0.3
    honest = bundles.write_bundle(tmp_path / "run", tmp_path / "bundle")
    assert main(["verify", str(honest), "--replay", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n_replayed"], found["n_replayed_broken"]) == (round(30 * record.robust_accuracy.value), 0)
    folder = rehashed(tmp_path / "run", tmp_path / "forged")
    found = jobs.verify_bundle(folder)
    assert (found.accepted, found.problems) == (True, [])  # each field fits: it says little
    assert "by its clean accuracy alone" in found.headline()
    assert found.at_most == pytest.approx(record.clean_accuracy.value)
    assert main(["verify", str(folder), "--replay", "1"]) == 1
    assert "run again here, break" in " ".join(capsys.readouterr().out.split())
    assert main(["leaderboard", "rank", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("By what the record states alone")
    lazy = jobs.verify_bundle(
        rehashed(tmp_path / "run", tmp_path / "lazy", only=1)
    )  # what nothing was tried on is said
    assert any("n_not_attacked" in problem for problem in lazy.problems)
    for words in (["--replay", "0"], ["--replay", "1.5"]):
        assert main(["verify", str(folder), *words]) == 2


# --- a disk that is full ---


def test_a_bundle_is_whole_or_not_there(finished, tmp_path, monkeypatch):
    copies = []

    def full_at_the_third(source, to):
        copies.append(to)
        if len(copies) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        to.write_bytes(source.read_bytes())

    with monkeypatch.context() as patched:
        patched.setattr(bundles.shutil, "copyfile", full_at_the_third)
        with raises("cannot-write", RunError, "No space left", "--bundle"):
            bundles.write_bundle(finished, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "bundle").mkdir()  # an empty folder may be there
    bundles.write_bundle(finished, tmp_path / "bundle")
    assert bundles.check_manifest(tmp_path / "bundle")["format"] == bundles.FORMAT
    assert (tmp_path / "bundle").stat().st_mode & 0o777 == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
