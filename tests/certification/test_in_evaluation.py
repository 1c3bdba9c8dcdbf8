"""`eval --certify`: proven samples are not attacked, both sides are reported, and `verify` proves them again."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import robustdup
from robustdup import UserError
from robustdup.evidence.bundle import MANIFEST, _canonical, _digest, _sha256, write_bundle
from robustdup.leaderboard.compare import sample_outcomes
from robustdup.records import Outcome, load_record, load_samples, proven_text
from robustdup.report.card import section
from robustdup.report.tables import run_table
from robustdup.report.terminal import latex_table
from tests.raising import raises

QUIET = {"diagnostics": False, "progress": False, "attacks": "pgd(steps=10)", "certify": True, "certify_seconds": None}


class Step(nn.Sequential):
    """Two classes by the mean of four pixels, through one layer of ReLUs: robust where the mean is eps from one half."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2))
        with torch.no_grad():
            self[1].weight.copy_(torch.tensor([[-2.5] * 4, [2.5] * 4]))
            self[1].bias.copy_(torch.tensor([5.0, -5.0]))
            self[3].weight.copy_(torch.eye(2))
            self[3].bias.zero_()


VALUES = torch.linspace(0.3, 0.7, 40)
IMAGES = VALUES.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
LABELS = (VALUES > 0.5).long()
GAP = (VALUES - 0.5).abs()
FAR = GAP > 0.1
N_ROBUST = int(FAR.sum())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certified") / "run"
    return robustdup.evaluate(Step().eval(), IMAGES, LABELS, eps="0.1", out=folder, **QUIET)


def test_both_sides_meet_and_no_pass_is_spent_on_a_certified_sample(run):
    record = run.record
    certification = record.certification
    assert certification.n_certified == N_ROBUST
    assert certification.accuracy.value == record.robust_accuracy.value == N_ROBUST / 40
    assert sum(certification.methods.values()) == N_ROBUST
    assert record.attacks[0].n_attacked == record.attacks[0].n_broken == 40 - N_ROBUST
    assert [word == "certified" for word in run.outcomes] == FAR.tolist()
    assert run.outcomes.count("broken") == 40 - N_ROBUST
    assert proven_text(record) == f"{N_ROBUST / 40:.2%}, all of it proven"
    assert "all of it proven" in str(run)
    found = sample_outcomes(record, load_samples(run.folder))
    assert (found.robust == 1).tolist() == FAR.tolist()
    assert robustdup.gate(run, minimum=0.4).passed
    assert robustdup.compare(run, run).n_undecided == 0


def test_a_curve_is_certified_at_its_largest_eps_for_all(run):
    record = robustdup.evaluate(Step().eval(), IMAGES, LABELS, eps="0.05,0.1", **QUIET).record
    assert record.certification.n_certified == N_ROBUST
    assert record.curve["0.05"].value == pytest.approx(float((GAP > 0.05).double().mean()))
    assert record.curve["0.1"].value == N_ROBUST / 40


def test_both_sides_are_on_table_page_latex_and_card(run, tmp_path):
    record = load_record(run.folder)
    record.certification.n_certified -= 1
    record.certification.accuracy.value -= 1 / 40
    words = f"between {(N_ROBUST - 1) / 40:.2%} proven and {N_ROBUST / 40:.2%} attacked"
    assert proven_text(record) == words
    assert words in str(record)
    assert words.replace("%", r"\%") in latex_table(record)
    assert any(row[0] == "certified, a lower bound" for row in run_table(record)[2])
    assert "certified, a lower bound" in section(record)


def test_a_record_of_an_older_version_has_no_certification(run):
    content = json.loads((run.folder / "record.json").read_text())
    assert content.pop("certification")
    assert type(run.record).model_validate(content).certification is None
    assert proven_text(type(run.record).model_validate(content)) == ""


def test_verify_proves_it_again_and_says_both_sides(run, tmp_path):
    bundle = write_bundle(run.folder, tmp_path / "bundle")
    found = robustdup.verify(bundle, Step().eval(), IMAGES, LABELS)
    assert found.accepted, found.problems
    assert (found.n_certified, found.at_least, found.at_most) == (N_ROBUST, N_ROBUST / 40, N_ROBUST / 40)
    assert "No sample is left open" in found.headline()
    assert "certificates.slopes" in found.rechecked


def forge(bundle, to, change=None, record=None):
    """Copy a bundle, change its certificates or record, and make the manifest fit again."""
    shutil.copytree(bundle, to)
    path = to / "certificates.safetensors"
    if change is not None:
        tensors = load_file(path)
        told = {"told": json.dumps({"methods": {}, "seconds": 0.0, "notes": []})}
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=told)
    if record is not None:
        content = json.loads((to / "record.json").read_text())
        record(content)
        (to / "record.json").write_text(json.dumps(content))
    manifest = json.loads((to / MANIFEST).read_text())
    manifest.pop("sha256")
    manifest["files"] = {name: _sha256(to / name) for name in manifest["files"]}
    (to / MANIFEST).write_bytes(_canonical({**manifest, "sha256": _digest(manifest)}))
    return to


def test_a_changed_certificate_is_refused(run, tmp_path):
    bundle = write_bundle(run.folder, tmp_path / "bundle")
    (plain := tmp_path / "plain").mkdir()
    shutil.copytree(bundle, plain, dirs_exist_ok=True)
    (plain / "certificates.safetensors").write_bytes((plain / "certificates.safetensors").read_bytes() + b" ")
    with raises("refused-bundle", UserError, "certificates.safetensors was changed"):
        robustdup.verify(plain, Step().eval(), IMAGES, LABELS)

    def problems(name, change=None, record=None):
        found = robustdup.verify(forge(bundle, tmp_path / name, change, record), Step().eval(), IMAGES, LABELS)
        assert not found.accepted
        return " ".join(found.problems)

    assert "proves another margin" in problems("more", lambda t: t["margin"].mul_(2))
    assert "not of the samples" in problems("other", lambda t: t["position"].add_(1))
    assert "n_certified" in problems("claim", record=lambda r: r["certification"].update(n_certified=N_ROBUST + 1))
    assert "does not speak of" in problems("silent", record=lambda r: r.update(certification=None))
    slopes = next(name for name in load_file(bundle / "certificates.safetensors") if name.startswith("slopes"))

    def cut(tensors):
        tensors[slopes] = tensors[slopes][:, :1]

    assert "proves nothing" in problems("cut", cut)
    (gone := tmp_path / "gone").mkdir()
    shutil.copytree(bundle, gone, dirs_exist_ok=True)
    (gone / "certificates.safetensors").unlink()
    with raises("refused-bundle", UserError, "missing"):
        robustdup.verify(gone, Step().eval(), IMAGES, LABELS)


def test_certificates_of_another_network_prove_nothing(run, tmp_path):
    """The same file beside weights for which the far samples can be broken: the checker says so, sample by sample."""
    from robustdup.evaluation.certified import load_certified
    from robustdup.evidence.certificates import _margins
    from robustdup.threat import ThreatModel

    certified = load_certified(run.folder / "certificates.safetensors")
    other = Step().eval()
    with torch.no_grad():
        other[1].bias.add_(torch.tensor([-1.2, 1.2]))  # the boundary moves by 0.12
    data = robustdup.api.given.as_dataset(IMAGES, LABELS)
    margins = torch.tensor(_margins(certified, other, data, ThreatModel("Linf", "0.1")))
    still = (VALUES[certified.position] - 0.38 > 0.1) | (VALUES[certified.position] - 0.38 < -0.1)
    right = (VALUES[certified.position] > 0.38).long() == LABELS[certified.position]
    assert torch.equal(margins > 0, still & right)
    assert bool((margins <= 0).any())


class Noisy(Step):
    def forward(self, images):
        return super().forward(images + 0.01 * torch.randn_like(images))


class Odd(nn.Module):
    def forward(self, images):
        return torch.erf(images.flatten(1))


def test_what_cannot_be_certified_is_refused_in_words_before_anything_runs():
    def certify(model=None, **options):
        return robustdup.evaluate(model or Step().eval(), IMAGES, LABELS, **{"eps": "0.1", **QUIET, **options})

    with raises("not-certifiable", UserError, "--individual"):
        certify(individual=True)
    with raises("not-certifiable", UserError, "--min-distance"):
        certify(min_distance=True)
    with raises("not-certifiable", UserError, "float16"):
        certify(Step().half().eval())
    with raises("not-certifiable", UserError, "as-is"):
        certify(mode="as-is")
    with raises("not-certifiable", UserError, "not for L0"):
        certify(norm="L0", eps="2", attacks="sigma-zero")
    with raises("not-boundable"):
        certify(Noisy().eval())
    with raises("not-boundable", UserError, "erf"):
        certify(Odd().eval())


def test_eps_that_is_far_too_large_is_said_and_the_attacks_run_on_all():
    record = robustdup.evaluate(Step().eval(), IMAGES, LABELS, eps="0.45", **QUIET).record
    assert record.certification.n_certified == 0
    assert record.attacks[0].n_attacked == 40
    assert record.robust_accuracy.value == 0
    assert proven_text(record) == "0.00%, all of it proven"


def test_a_run_that_goes_on_takes_the_saved_certificates(tmp_path, monkeypatch):
    from robustdup.config import EvalConfig
    from robustdup.data.dataset import from_tensors
    from robustdup.jobs import certification
    from robustdup.threat import ThreatModel

    data, threat = from_tensors(IMAGES, LABELS, spec="python"), ThreatModel("Linf", "0.1")
    first = certification.certify_first(EvalConfig(certify=True), Step().eval(), data, [threat], tmp_path)
    monkeypatch.setattr(certification, "certify_samples", lambda *_, **__: pytest.fail("proven twice"))
    again = certification.certify_first(EvalConfig(certify=True), Step().eval(), data, [threat], tmp_path)
    assert torch.equal(again.position, first.position)
    assert torch.equal(again.margin, first.margin)
    assert {number: slope.shape for number, slope in again.slopes.items()} == {
        number: slope.shape for number, slope in first.slopes.items()
    }
    with pytest.raises(pytest.fail.Exception):
        certification.certify_first(
            EvalConfig(certify=True), Step().eval(), data, [ThreatModel("Linf", "0.2")], tmp_path
        )


def test_the_words_of_outcomes_have_certified():
    assert Outcome.CERTIFIED.word == "certified"


def test_it_is_tried_unasked_where_a_probe_says_that_it_pays(monkeypatch):
    """Half of the samples of a probe decide; few samples, other attacks, and --no-certify leave a verdict as it was."""
    from robustdup.jobs import certification

    monkeypatch.setattr(certification, "COSTLY", "pgd")
    many = torch.linspace(0.1, 0.9, certification.MANY)
    images, labels = many.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous(), (many > 0.5).long()

    def go(n=None, model=None, **options):
        unasked = {**QUIET, "attacks": "pgd(steps=5)", "certify": None, "eps": "0.1", **options}
        return robustdup.evaluate(model or Step().eval(), images, labels, n=n, **unasked).record

    found = go()
    assert found.certification.n_certified == int(((many - 0.5).abs() > 0.1).sum())
    assert found.certification.n_certified + found.attacks[0].n_attacked == len(many)
    assert any("--no-certify" in note for note in found.certification.notes)
    for left in (
        go(n=100),
        go(certify=False),
        go(eps="0.35"),
        go(individual=True),
        go(attacks="fgsm"),
        go(model=Odd().eval()),
    ):
        assert left.certification is None
    assert go(certify=False).robust_accuracy.value == found.robust_accuracy.value
    assert go(model=Noisy().eval(), diagnostics=False).certification is None


def test_cases_travel_and_are_proven_again(tmp_path):
    """A bundle keeps the tree of a sample that only cases prove; with a leaf cut off its certificate proves nothing."""
    from tests.certification.test_branching import small

    model, images, labels = small()
    options = {**QUIET, "eps": "0.2", "certify_branch": 1e6}
    run = robustdup.evaluate(model, images, labels, out=tmp_path / "run", **options)
    assert run.record.certification.methods["branch-and-bound"] > 0
    assert run.record.certification.accuracy.value == run.record.robust_accuracy.value
    bundle = write_bundle(run.folder, tmp_path / "bundle")
    assert robustdup.verify(bundle, model, images, labels).accepted
    name = next(name for name in load_file(bundle / "certificates.safetensors") if name.startswith("splits"))

    def cut(tensors):
        tensors[name] = tensors[name][:-1]

    found = robustdup.verify(forge(bundle, tmp_path / "cut", cut), model, images, labels)
    assert not found.accepted
    assert "proves nothing" in " ".join(found.problems)
