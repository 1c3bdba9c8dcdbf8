"""A union over norms: what survives it survives every separate run, at fewer passes; records, tables and bundles say so."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import robustdup
from robustdup.evidence import bundle as bundles
from robustdup.leaderboard import position
from robustdup.leaderboard.compare import compare
from robustdup.records import load_record, load_samples
from robustdup.report.card import model_card
from robustdup.report.samples import read_samples
from robustdup.report.tables import runs_table
from robustdup.report.terminal import latex_table, markdown_table
from robustdup.threat import ThreatModel
from robustdup.union import parse_balls, union_name
from tests.raising import raises

BALLS = (("Linf", "0.15"), ("L2", "0.5"), ("L1", "2"))
THREAT = "Linf 0.15 + L2 0.5 + L1 2"
SETTINGS = {"attacks": "pgd(steps=2),apgd-ce(steps=2)", "n": 30, "progress": False, "diagnostics": False}


def run(**changes):
    return robustdup.evaluate(
        "builtin:digits-robust", robustdup.load_data("builtin:digits", n=30), **{**SETTINGS, **changes}
    )


@pytest.fixture(scope="module")
def union(tmp_path_factory):
    folder = tmp_path_factory.mktemp("union")
    result = run(threat=THREAT, out=folder / "run")
    bundles.write_bundle(folder / "run", folder / "bundle")
    return result


@pytest.fixture(scope="module")
def each():
    return run(threat=THREAT, each_norm=True)


@pytest.fixture(scope="module")
def separate():
    return [run(norm=norm, eps=eps) for norm, eps in BALLS]


def broken(result):
    return np.array([outcome == "broken" for outcome in result.outcomes])


def passes(result):
    return result.record.passes.attacks_forward + result.record.passes.attacks_backward


def test_the_union_breaks_what_any_separate_run_breaks_at_fewer_passes(union, each, separate):
    apart = np.stack([broken(result) for result in separate])
    assert 0 < apart.any(axis=0).sum() < 30
    assert len({row.tobytes() for row in apart}) == 3  # the norms break other samples, or nothing is shown
    assert np.array_equal(broken(union), apart.any(axis=0))
    assert np.array_equal(broken(each), apart.any(axis=0))
    assert passes(union) < sum(map(passes, separate)) == passes(each)


def test_each_norm_alone_is_what_its_separate_run_says(union, each, separate):
    assert [ball.robust_accuracy for ball in each.record.union] == [r.record.robust_accuracy for r in separate]
    assert [ball.n_open for ball in each.record.union] == [0, 0, 0]
    for ball, result in zip(union.record.union, separate, strict=True):  # bounds that hold, exact in the first norm
        value = result.record.robust_accuracy.value
        assert ball.robust_accuracy.value <= value <= ball.at_most <= ball.robust_accuracy.high
    first, last = union.record.union[0], union.record.union[-1]
    assert (first.n_open, first.robust_accuracy) == (0, separate[0].record.robust_accuracy)
    assert last.n_open == broken(separate[0]).sum() + (broken(separate[1]) & ~broken(separate[0])).sum()
    assert last.robust_accuracy_after == union.record.robust_accuracy


def test_every_example_lies_in_the_ball_in_which_it_was_found(union):
    samples = read_samples(union.record, pa.table(union.samples))
    images = robustdup.load_data("builtin:digits", n=30).images
    names = [ball.name for ball in union.record.union]
    for row in np.flatnonzero(samples.outcome == "broken"):
        ball = ThreatModel(*BALLS[names.index(samples.eps[row])])
        assert not ball.violations(images[row : row + 1], union.adv_images[row : row + 1]).any.any()
    assert set(samples.eps[samples.outcome == "broken"]) == set(names)


def test_reports_name_the_union_and_its_balls(union, separate, tmp_path):
    record = load_record(union.folder)
    assert (record.threat.norm, record.threat.eps_text) == ("union", THREAT)
    assert [attack.ball for attack in record.attacks] == [name for name in THREAT.split(" + ") for _ in range(2)]
    for text in (markdown_table(record), latex_table(record), model_card(record), str(union), str(record)):
        assert f"union of {THREAT}" in text
    assert "robust in L2 0.5 alone" in markdown_table(record)
    head = runs_table([record, separate[1].record])[1]
    assert head[-2:] == [f"Robust at {THREAT}", "Robust at 0.5"]
    rank = position(record, load_samples(union.folder))
    assert not rank.comparable
    cifar = record.model_copy(update={"data": record.data.model_copy(update={"spec": "uoft-cs/cifar10"})})
    assert any("no union leaderboard for cifar10" in reason for reason in position(cifar).reasons)
    same = compare(record, load_samples(union.folder), record, load_samples(union.folder))
    assert same.robust.difference == 0
    with raises("not-comparable"):
        compare(record, load_samples(union.folder), separate[0].record, load_samples(separate[0].folder))


def verify(folder):
    model, data = robustdup.load_model("builtin:digits-robust"), robustdup.load_data("builtin:digits", n=30)
    return robustdup.verify(folder, model, data.images, data.labels)


def test_a_bundle_is_verified_ball_by_ball(union, tmp_path):
    honest = verify(union.folder.parent / "bundle")
    assert (honest.accepted, honest.problems, honest.threat.eps_text) == (True, [], THREAT)
    for name in ("union[].robust_accuracy.value", "union[].n_open", "attacks[].ball", "threat.norm"):
        assert f"record.{name}" in honest.consistent

    run = tmp_path / "run"  # an example that breaks the sample in a larger ball than the one that is named
    shutil.copytree(union.folder, run)
    samples = read_samples(union.record, pa.table(union.samples))
    place = run / "images" / "adversarial.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(place).items()}
    row = int(np.flatnonzero(samples.eps == "L1 2")[0])
    clean = robustdup.load_data("builtin:digits", n=30).images[row]
    tensors["images"][row] = (clean + 0.149 * torch.where(clean > 0.5, -1, 1)).clamp(0, 1)  # in Linf, far outside in L1
    save_file(tensors, place)
    forged = verify(bundles.write_bundle(run, tmp_path / "forged"))
    assert any("outside the threat model" in problem for problem in forged.problems)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["union"][1].update(n_broken=0),
        lambda record: record["union"][2].update(at_most=0.1),
        lambda record: record["threat"].update(eps_text="Linf 0.15 + L2 0.5"),
        lambda record: record["config"].update(threat="Linf 0.15 + L2 0.4 + L1 2"),
        lambda record: record["attacks"].reverse(),
        lambda record: record.update(union=[]),
    ],
)
def test_a_union_that_is_dressed_up_is_refused(union, tmp_path, change):
    run = tmp_path / "run"
    shutil.copytree(union.folder, run)
    content = json.loads((run / "record.json").read_text())
    change(content)
    (run / "record.json").write_text(json.dumps(content))
    bundle = bundles.write_bundle(run, tmp_path / "bundle")
    assert refused(bundle)


def refused(bundle):
    """Tell whether a bundle is refused, by a problem or by an error."""
    try:
        return not verify(bundle).accepted
    except robustdup.UserError as error:
        return error.code == "refused-bundle"


class Noisy(nn.Module):
    """Two classes by the mean of the image, with noise on the logits."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        signal = 40 * (images.flatten(1).mean(dim=1) - 0.5)
        signal = signal + 0.5 * torch.randn(len(images), device=images.device)
        return torch.stack([-signal, signal], dim=1)


def test_a_model_that_answers_at_random_has_the_least_expected_accuracy_over_the_balls():
    values = torch.linspace(0.3, 0.7, 16)
    images = values.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    settings = {"attacks": "pgd(steps=3)", "progress": False, "diagnostics": False, "judge_draws": 20}
    both = robustdup.evaluate(Noisy(), images, (values > 0.5).long(), threat="L2 0.05 + Linf 0.1", **settings)
    wide = robustdup.evaluate(Noisy(), images, (values > 0.5).long(), norm="Linf", eps=0.1, **settings)
    assert abs(both.record.robust_accuracy.value - wide.record.robust_accuracy.value) < 0.1
    assert both.record.robust_accuracy.value <= both.record.union[0].robust_accuracy.value


def test_what_an_attack_fails_on_in_one_ball_is_undecided_unless_another_breaks_it(linear, points):
    images, labels = points

    @robustdup.register_attack("fails-in-l2", norms=["Linf", "L2"])
    def fails(model, images, labels, threat, *, rng):
        if threat.norm == "L2":
            raise RuntimeError("no")
        return images + threat.radius * torch.where(labels == 1, -1.0, 1.0).view(-1, 1, 1, 1)

    settings = {"attacks": [fails], "progress": False, "diagnostics": False}
    result = robustdup.evaluate(linear, images, labels, threat="Linf 0.1 + L2 0.01", **settings)
    near = ((images[:, 0, 0, 0] - 0.5).abs() < 0.1).sum().item()
    assert result.outcomes.count("broken") == near == result.record.union[0].n_broken
    assert (
        result.outcomes.count("undecided")
        == 40 - near
        == result.record.n_undecided
        == result.record.union[1].n_undecided
    )
    assert result.record.robust_accuracy.value == 0
    assert result.record.robust_accuracy.high > 0.4
    turned = robustdup.evaluate(linear, images, labels, threat="L2 0.01 + Linf 0.1", **settings)
    assert (turned.outcomes.count("broken"), turned.outcomes.count("undecided")) == (near, 40 - near)


@pytest.mark.parametrize("text", ["Linf 8/255 + L2 0.5 + L1 12", "linf, eps = 8/255+l2 0.5 + L1: 12"])
def test_balls_are_read(text):
    assert union_name(parse_balls(text)) == "Linf 8/255 + L2 0.5 + L1 12"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Linf + L2 0.5", "bad-threat"), ("Linf 8/255 +", "bad-threat"), ("Linf 8/255 + Linf 4/255", "bad-threat"),
        ("L2 0.5,1 + L1 12", "bad-threat"), ("", "bad-threat"), ("L7 1 + L2 0.5", "unknown-norm"), ("L2 x + L1 1", "bad-eps"),
    ],
)  # fmt: skip
def test_a_union_that_cannot_be_read_says_why(text, code):
    with raises(code):
        parse_balls(text)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"threat": THREAT, "norm": "L2"}, "leave out --norm"),
        ({"threat": THREAT, "eps": "0.1"}, "leave out --norm"),
        ({"each_norm": True}, "goes with a union"),
        ({"threat": THREAT, "min_distance": True}, "one norm"),
    ],
)
def test_what_does_not_go_with_a_union_is_refused(settings, words):
    with raises("bad-option", robustdup.UserError, words):
        run(**settings)


def test_one_ball_is_the_same_as_norm_and_eps(separate):
    result = run(threat="L2 0.5")
    assert (result.record.threat, result.record.union) == (separate[1].record.threat, [])
    assert torch.equal(result.adv_images, separate[1].adv_images)


def test_an_attack_is_left_out_in_a_norm_that_it_does_not_know_unless_none_is_left():
    result = run(threat="Linf 0.1 + L0 5", attacks="fgsm,sigma-zero(steps=3)", n=6)
    assert [(attack.ball, attack.name) for attack in result.record.attacks] == [
        ("Linf 0.1", "fgsm"),
        ("L0 5", "sigma-zero"),
    ]
    assert "sigma-zero does not know Linf and was left out there." in result.record.events
    with raises("no-stage", robustdup.UserError, "works in L0"):
        run(threat="Linf 0.1 + L0 5", attacks="fgsm")
