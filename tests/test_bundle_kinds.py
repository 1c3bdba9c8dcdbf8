"""Bundles of each kind of run: every field that is called rechecked or consistent is changed in turn, and refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import robustdup
from robustdup import UserError, jobs
from robustdup.config import EvalConfig, build
from robustdup.evidence import bundle as bundles
from robustdup.evidence.fields import leaves
from robustdup.records import load_samples
from tests.raising import raises
from tests.test_evidence import KINDS, changed, forge, holders, refused, refused_forgery, split_path, verify

RUNS = {
    "union": {"attacks": "fgsm,pgd(steps=2)", "threat": "Linf 0.1 + L2 0.5"},
    "each norm of a union": {"attacks": "fgsm", "threat": "Linf 0.1 + L2 0.5", "each_norm": True},
    "certified": {"attacks": "fgsm", "eps": "0.1", "certify": True, "model": "builtin:digits-certified"},
    "smallest distances": {"attacks": "fgsm,fab-t(steps=2,targets=2)", "eps": "0.1", "min_distance": True},
    "each attack alone": {"attacks": "fgsm,pgd(steps=2)", "eps": "0.1", "individual": True},
}
N = 12
QUICK = 16  # of how many fields the quick test changes one
SLOW = [name for name in RUNS if name not in ("union", "certified")]


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in RUNS]
)
def kind(request, tmp_path_factory):
    """A finished run of one kind, what its bundle is verified with, and the honest verification."""
    settings = {"n": N, "seed": 3, "model": "builtin:digits-robust", **RUNS[request.param]}
    run = tmp_path_factory.mktemp("kind") / "run"
    jobs.run_evaluation(build(EvalConfig, values=settings), folder=run)
    parts = robustdup.load_model(settings["model"]), robustdup.load_data("builtin:digits", n=N)
    honest = verify(bundles.write_bundle(run, run.parent / "bundle"), parts)
    assert (honest.accepted, honest.problems) == (True, [])
    return run, parts, honest


def checked_fields(honest, place):
    return [field for name in KINDS[:2] for field in getattr(honest, name) if field.startswith(place)]


def test_every_field_is_in_one_class(kind):
    run, _, honest = kind
    fields = [field for name in KINDS for field in getattr(honest, name)]
    assert len(fields) == len(set(fields))
    content = json.loads((run / "record.json").read_text())
    assert {field for field in fields if field.startswith("record.")} == set(leaves(content))
    columns = {field.split(".")[1] for field in fields if field.startswith("samples")}
    assert columns == set(load_samples(run).column_names)
    if (run / "certificates.safetensors").exists():
        tensors = {name.partition(".")[0] for name in load_file(run / "certificates.safetensors")}
        named = {field.split(".")[1] for field in fields if field.startswith("certificates.")}
        assert {name.split("/")[0] for name in tensors} >= {"position"} <= named


@pytest.mark.parametrize("every", [QUICK, pytest.param(1, marks=pytest.mark.slow)])
def test_a_field_of_the_record_cannot_be_changed(kind, every, tmp_path):
    run, parts, honest = kind
    fields = checked_fields(honest, "record.")
    assert len(fields) > 40
    let_pass = []
    for number, field in enumerate(fields[every // 2 :: every]):

        def change(content, field=field):
            holder, key = list(holders(content, split_path(field, content)))[-1]
            holder[key] = changed(holder[key])

        if not refused_forgery(run, tmp_path / str(number), parts, record=change):
            let_pass.append(field)
    assert let_pass == []


def rows_of_each_kind(table):
    """Return the place of a row on a clean image, of one whose example is kept, and of one whose example is not."""
    worst = {}
    for place, row in enumerate(table):
        if row["outcome"] == "broken":
            before = worst.get(row["position"], place)
            worst[row["position"]] = min(before, place, key=lambda place: table[place]["margin"])
    proven = [place for place, row in enumerate(table) if row["stage"] == -1 and row.get("certified_margin")]
    others = [place for place, row in enumerate(table) if row["outcome"] == "robust"]
    clean = proven or [place for place, row in enumerate(table) if row["outcome"] == "correct"]
    return {"clean": clean, "kept": list(worst.values()), "others": others}


@pytest.mark.parametrize("every", [QUICK, pytest.param(1, marks=pytest.mark.slow)])
def test_a_column_of_samples_cannot_be_changed(kind, every, tmp_path):
    run, parts, honest = kind
    rows = rows_of_each_kind(load_samples(run).to_pylist())
    let_pass = []
    for number, field in enumerate(checked_fields(honest, "samples")[every // 2 :: every]):
        kinds, name = field.removeprefix("samples").split(".")
        for of_kind in [kinds.strip("[]")] if kinds else rows:
            if not rows[of_kind]:
                continue

            def change(table, name=name, place=rows[of_kind][-1]):
                row = table[place]
                row[name] = {"robust": "broken", "broken": "robust"}.get(row[name], changed(row[name]))
                if name == "correct_share":
                    row[name] = float(row["outcome"] in ("broken", "misclassified"))
                if name == "min_distance":
                    row[name] = 0.5 if row["stage"] >= 0 or row[name] != 0.5 else 0.25

            if not refused(forge(run, tmp_path / f"{number}-{of_kind}", rows=change), parts):
                let_pass.append(f"{field} ({of_kind})")
    assert let_pass == []


def test_a_signed_bundle_of_each_kind_holds_for_each_of_its_files(kind, tmp_path):
    pytest.importorskip("cryptography")
    from robustdup.evidence.signature import sign_bundle, signer_of
    from tests.test_signature import key_file

    run, _, _ = kind
    bundle = bundles.write_bundle(run, tmp_path / "bundle")
    assert sign_bundle(bundle, key_file(tmp_path / "key")) == signer_of(bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest.pop("sha256")
    for name in manifest["files"]:
        before = (bundle / name).read_bytes()
        (bundle / name).write_bytes(before + b" ")
        with raises("refused-bundle", UserError, "was changed"):
            bundles.check_manifest(bundle)
        again = {**manifest, "files": {**manifest["files"], name: bundles._sha256(bundle / name)}}
        (bundle / "manifest.json").write_bytes(bundles._canonical({**again, "sha256": bundles._digest(again)}))
        bundles.check_manifest(bundle)  # it fits again, but is not what was signed
        with raises("refused-bundle", UserError, "its signature does not hold"):
            signer_of(bundle)
        (bundle / name).write_bytes(before)


def other_tensors(change):
    """Return what writes a bundle whose certificates were changed."""

    def write(run, folder):
        shutil.copytree(run, folder / "run")
        path = folder / "run" / "certificates.safetensors"
        with safe_open(path, framework="pt") as file:
            tensors, head = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
        change(tensors)
        save_file(tensors, path, metadata=head)
        return bundles.write_bundle(folder / "run", folder / "bundle")

    return write


def slopes_of(tensors, change):
    tensors.update({name: change(tensor) for name, tensor in tensors.items() if name.startswith("slopes")})


CERTIFICATES = {
    "margins of two numbers": lambda tensors: tensors.update(margin=tensors["margin"][:, None].repeat(1, 2)),
    "complex margins": lambda tensors: tensors.update(margin=tensors["margin"].to(torch.complex64)),
    "whole margins": lambda tensors: tensors.update(margin=tensors["margin"].ceil().long()),
    "margins that are no numbers": lambda tensors: tensors["margin"].fill_(torch.nan),
    "larger margins": lambda tensors: tensors["margin"].mul_(2),
    "complex slopes": lambda tensors: slopes_of(tensors, lambda slope: slope.to(torch.complex64)),
    "slopes of another size": lambda tensors: slopes_of(tensors, lambda slope: slope[:, :-1].contiguous()),
    "other positions": lambda tensors: tensors["position"].add_(1),
}


@pytest.mark.parametrize("change", CERTIFICATES)
def test_forged_certificates_are_refused(kind, tmp_path, change):
    run, parts, _ = kind
    if not (run / "certificates.safetensors").exists():
        pytest.skip("of certified runs")
    assert refused(other_tensors(CERTIFICATES[change])(run, tmp_path), parts)
